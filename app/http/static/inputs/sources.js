/**
 * Recognizes the files that someone has chosen: which input each is, and how it is sent.
 *
 * Nothing is decoded here: the service says what the values in a file mean, and what is wrong with
 * it. A file whose header is not as expected is sent as it is.
 *
 * @typedef {"photo" | "prediction" | "truth" | "second" | "palette"} Role
 *
 * @typedef {object} Source  the bytes of one input
 * @property {string} name  the name of its file
 * @property {?string} tensorName  the name of the tensor in a file of several
 * @property {Blob} blob  the elements of a tensor, or a whole file
 * @property {?{dtype: string, shape: number[]}} tensor  null for a picture, and for other files
 * @property {boolean} isPicture
 * @property {string} description  such as "float16 1×19×512×1024"
 * @property {?boolean} [hasFloats]  whether the service finds floats in a file; null: unknown
 * @property {boolean} [isNetwork]  whether it stands for the network of the service
 * @property {?Role} role  null: its role is unknown
 */

import { hasFloats, readTensor } from "../formats/npy.js";
import { readHeader } from "../formats/png.js";
import { readTensors } from "../formats/safetensors.js";

/** Larger files stay on disk. */
const MAX_MEMORY_BYTES = 512 * 1024 * 1024;

/** @type {Object<Role, string>} */
export const ROLES = {
  photo: "Photo",
  prediction: "Prediction",
  truth: "Truth",
  second: "Prediction B",
  palette: "Palette",
};

/** Words in the names of files. Those of the last row also occur beside one of the second. */
const WORDS = {
  truth: ["gt", "truth", "groundtruth", "ground", "target", "targets"],
  prediction: [
    ...["pred", "preds", "prediction", "predictions", "predicted", "output", "outputs"],
    ...["logits", "scores", "probs", "probabilities", "result", "results"],
  ],
  labels: ["label", "labels", "mask", "masks", "anno", "annotation", "annotations"],
};
const ROLE_OF_TENSOR = {
  image: "photo",
  labels: "truth",
  logits: "prediction",
  prediction: "prediction",
};
const PHOTO = /\.(jpe?g|webp|avif|gif)$/i;
const PALETTE = /\.(gpl|json|txt)$/i;
const PICTURE = /\.(png|tiff?|bmp)$/i;

/**
 * Returns what is in a file: one source, or one for each known tensor of a safetensors file.
 * @param {File} file
 * @returns {Promise<Source[]>}
 * @throws {DOMException} if the file cannot be read
 */
export async function sourcesOf(file) {
  const { name } = file;
  // In memory, the bytes stay the same when the file on disk changes.
  const blob = file.size <= MAX_MEMORY_BYTES ? new Blob([await file.arrayBuffer()]) : file;
  const png = await readHeader(blob);
  if (png !== null) return [pngSource(name, blob, png)];
  const tensor = await readTensor(blob);
  if (tensor !== null) return [tensorSource(name, tensor, null)];
  const tensors = (await readTensors(blob)) ?? {};
  const known = Object.keys(ROLE_OF_TENSOR).filter((key) => Object.hasOwn(tensors, key));
  if (known.length) return known.map((key) => tensorSource(name, tensors[key], key));
  const [only, ...others] = Object.values(tensors);
  if (only !== undefined && !others.length) return [tensorSource(name, only, null)];
  return [otherSource(name, blob, await hasFloats(blob))];
}

/**
 * Returns a source that stands for what the network of the service predicts.
 * @param {string} name
 * @returns {Source}
 */
export function networkSource(name) {
  return {
    name,
    tensorName: null,
    blob: new Blob(),
    tensor: null,
    isPicture: false,
    isNetwork: true,
    description: "the network of this service",
    role: "prediction",
  };
}

/** Returns whether a source has scores of classes, and not the classes themselves. */
export function hasScores({ tensor, isPicture, name, hasFloats: isFloat = null }) {
  if (tensor === null) return isFloat ?? (!isPicture && roleOfName(name) !== "truth");
  return /^B?F/.test(tensor.dtype);
}

function pngSource(name, blob, { width, height, bits, mode }) {
  const isColoured = mode.startsWith("RGB");
  return {
    name,
    tensorName: null,
    blob,
    tensor: null,
    isPicture: true,
    description: `PNG, ${mode}${bits === 8 ? "" : ` ${bits} bits`}, ${width}×${height}`,
    role: roleOfName(name) ?? (isColoured ? "photo" : null),
  };
}

function tensorSource(name, { dtype, shape, blob }, tensorName) {
  const isPhoto = dtype === "U8" && shape.length >= 3 && shape.at(-1) === 3;
  const hasClasses = /^B?F/.test(dtype);
  const guess = isPhoto ? "photo" : hasClasses ? "prediction" : roleOfName(name);
  const description = `${dtypeName(dtype)} ${shape.join("×")}`;
  return {
    name,
    tensorName,
    blob,
    tensor: { dtype, shape },
    isPicture: false,
    description: tensorName === null ? description : `${tensorName}, ${description}`,
    role: ROLE_OF_TENSOR[tensorName] ?? guess,
  };
}

function otherSource(name, blob, isFloat) {
  const isPhoto = PHOTO.test(name);
  const isPicture = isPhoto || PICTURE.test(name);
  const guess = isPhoto ? "photo" : PALETTE.test(name) ? "palette" : roleOfName(name);
  return {
    name,
    tensorName: null,
    blob,
    tensor: null,
    isPicture,
    description: `${name.split(".").at(-1).toUpperCase()}, ${byteText(blob.size)}`,
    hasFloats: isFloat,
    role: guess ?? (isPicture || isFloat === false ? null : "prediction"),
  };
}

/** Returns the role that the name of a file contains; null if it contains none, or two. */
function roleOfName(name) {
  const words = name
    .replace(/([a-z])([A-Z])/g, "$1 $2")
    .toLowerCase()
    .split(/[^a-z]+/);
  const [isTruth, isPrediction, isLabels] = Object.values(WORDS).map((row) =>
    row.some((word) => words.includes(word)),
  );
  if (isPrediction) return isTruth ? null : "prediction";
  return isTruth || isLabels ? "truth" : null;
}

function dtypeName(dtype) {
  const names = { F: "float", BF: "bfloat", I: "int", U: "uint" };
  return dtype.replace(/^[A-Z]+/, (letters) => names[letters] ?? letters);
}

function byteText(count) {
  const units = ["bytes", "kB", "MB", "GB"];
  const power = Math.min(3, Math.floor(Math.log10(Math.max(count, 1)) / 3));
  const number = count / 1000 ** power;
  return `${number.toFixed(power > 0 && number < 10 ? 1 : 0)} ${units[power]}`;
}
