/**
 * Turns answers of the service into what the page shows of one image.
 *
 * @typedef {import("./types.js").Scene} Scene
 * @typedef {import("./types.js").Prediction} Prediction
 * @typedef {import("./formats/safetensors.js").Tensor} Tensor
 *
 * @typedef {object} Answer  the answer for one prediction, for all images of its batch
 * @property {string} name  the name of the file
 * @property {object} json  the members of /v1/evaluate, or of /v1/predict without truth
 * @property {Object<string, Tensor>} maps
 */

import { decode } from "./formats/safetensors.js";
import { RequestError } from "./requests.js";

/**
 * Returns the JSON object and the maps in the answer of /v1/evaluate or /v1/predict.
 * @param {ArrayBuffer} buffer
 * @param {string} name  the name of the file of the prediction
 * @returns {Answer}
 */
export function answerOf(buffer, name) {
  let file;
  let json;
  try {
    file = decode(buffer);
    json = JSON.parse(file.metadata.evaluation ?? file.metadata.prediction);
  } catch {
    throw new RequestError({ detail: "The answer of the service is damaged.", fix: "Try again." });
  }
  const { prediction } = file.tensors;
  if (prediction?.shape.length !== 3) {
    const got = prediction === undefined ? "none" : `shape (${prediction.shape.join(", ")})`;
    throw new RequestError({
      where: "logits",
      detail: `logits: expected images, [N,C,H,W] or [C,H,W], got a prediction of ${got}.`,
      fix: "The page shows images; the service's JSON has the loss of other shapes.",
    });
  }
  return { name, json, maps: file.tensors };
}

/**
 * Checks that two answers are about the same truth.
 * @param {Answer[]} answers
 * @throws {RequestError}
 */
export function checkComparable(answers) {
  const [first, second] = answers;
  if (second === undefined) return;
  const sizes = answers.map(({ maps }) => maps.prediction.shape.join(" x "));
  const counts = answers.map(numClassesOf);
  const differences = [
    ["images x height x width", ...sizes],
    ["classes", ...counts],
    ["valid pixels", first.json.valid_pixels, second.json.valid_pixels],
  ];
  for (const [subject, expected, got] of differences) {
    if (expected === got) continue;
    throw new RequestError({
      where: "second",
      detail: `Prediction B: expected ${expected} ${subject}, as in the first, got ${got}.`,
      fix: "Choose another file, or remove it.",
    });
  }
}

/** @param {Answer} answer */
export function numClassesOf({ json, maps }) {
  const { confusion } = json;
  if (Array.isArray(confusion)) return confusion.length;
  return confusion?.num_classes ?? json.num_classes ?? maps.prediction.data.reduce(max, 0) + 1;
}

/**
 * Returns what is shown of one image of the batch. Arrays are views of the answers.
 * @param {Answer[]} answers  one or two, of the same truth
 * @param {object} options
 * @param {number} options.imageIndex
 * @param {?ImageBitmap} options.photo
 * @param {number[]} options.ignored  the values of labels that do not count
 * @returns {Scene}
 */
export function sceneOf(answers, { imageIndex, photo, ignored }) {
  const [{ json, maps }] = answers;
  const [numImages, height, width] = maps.prediction.shape;
  const numClasses = numClassesOf(answers[0]);
  const labels = maps.labels;
  return {
    width,
    height,
    numClasses,
    ...classesOf(json.palette, numClasses),
    photo,
    truth:
      labels === undefined ? null : truthOf(imageOf(labels, imageIndex), numClasses, ignored),
    predictions: answers.map((answer) => predictionOf(answer, imageIndex)),
    imageIndex,
    numImages,
  };
}

/** @returns {Prediction} */
function predictionOf({ name, json, maps }, imageIndex) {
  const image = (map) => (map === undefined ? null : imageOf(map, imageIndex));
  const planes = (map) => (map === undefined ? null : planesOf(map, imageIndex));
  return {
    name,
    classes: numbersOf(imageOf(maps.prediction, imageIndex)),
    nll: image(maps.nll),
    confidence: image(maps.confidence),
    entropy: image(maps.entropy),
    topClasses: planes(maps.top_classes),
    topProbabilities: planes(maps.top_probabilities),
    answer: json,
  };
}

/** Returns the names and colours of classes in an answer. */
function classesOf(palette, numClasses) {
  const names = palette?.class_names ?? [];
  const colours = new Uint8Array(3 * numClasses);
  colours.set((palette?.colours ?? []).slice(0, numClasses).flat());
  return {
    classNames: Array.from({ length: numClasses }, (_, index) => names[index] || `class ${index}`),
    colours,
    ignoreColour: palette?.ignore_colour ?? [224, 224, 192],
  };
}

/** Returns the part of a map [N,H,W] that belongs to one image. */
function imageOf({ data, shape }, imageIndex) {
  const [, height, width] = shape;
  const numPixels = height * width;
  return data.subarray(imageIndex * numPixels, (imageIndex + 1) * numPixels);
}

/** Returns classes as numbers, -1 for what no class can be: a map of classes may have 64 bits. */
function numbersOf(classes) {
  if (classes.BYTES_PER_ELEMENT < 8) return classes;
  return Int32Array.from(classes, (value) => (value >= 0 && value < 2 ** 31 ? Number(value) : -1));
}

/** Returns the maps of one image in a map [N,K,H,W]. */
function planesOf({ data, shape }, imageIndex) {
  const [, numPlanes, height, width] = shape;
  const numPixels = height * width;
  return Array.from({ length: numPlanes }, (_, plane) => {
    const begin = (imageIndex * numPlanes + plane) * numPixels;
    return data.subarray(begin, begin + numPixels);
  });
}

/** Returns classes from 0 on, and -1 for pixels that do not count. */
function truthOf(labels, numClasses, ignored) {
  const truth = new Int32Array(labels.length);
  const isIgnored = new Uint8Array(numClasses);
  for (const value of ignored) if (value >= 0 && value < numClasses) isIgnored[value] = 1;
  for (let pixel = 0; pixel < labels.length; pixel++) {
    const value = Number(labels[pixel]);
    truth[pixel] = value >= 0 && value < numClasses && !isIgnored[value] ? value : -1;
  }
  return truth;
}

function max(left, right) {
  return left > right ? left : right;
}
