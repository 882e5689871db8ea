/** The table of panes: what each one is called, needs, and is painted by. */

import { DIVERGING, lookupTable } from "./colours.js";
import { INFERNO, VIRIDIS } from "./colormaps.js";
import {
  paintBetter,
  paintClasses,
  paintDifference,
  paintError,
  paintPhoto,
  paintValues,
} from "./paint.js";

export const TABLES = {
  inferno: lookupTable(INFERNO),
  viridis: lookupTable(VIRIDIS),
  diverging: lookupTable(DIVERGING),
};

/**
 * @typedef {object} Pane
 * @property {string} name  as in the state
 * @property {string} title
 * @property {string} means  one sentence for those who point at its button
 * @property {(scene: import("../types.js").Scene, shown: number) => ?string} lacks  why a scene has no
 *   such pane; null if it has
 * @property {(frame: import("./frame.js").Frame, out: Int32Array) => void} paint
 * @property {(keyof import("../types.js").State)[]} follows  members of the state that change this
 *   pane, apart from those that change all
 */

const prediction = (scene, shown) => scene.predictions[shown];
const lacksPhoto = (scene) => (scene.photo ? null : "No photo was given.");
const lacksTruth = (scene) => (scene.truth ? null : "No truth was given.");
const lacksPrediction = (scene, shown) =>
  prediction(scene, shown) ? null : "No prediction was given.";
const lacksLogits = (member) => (scene, shown) =>
  lacksPrediction(scene, shown) ??
  (prediction(scene, shown)[member] ? null : "It needs logits, not only a label map.");
const lacksSecond = (scene) =>
  scene.predictions.length > 1 ? null : "It needs two predictions.";

function paintClassesOf(classes, frame, out) {
  const { layers, state } = frame;
  paintClasses(frame.raster, frame.common, out, {
    classes,
    colours: layers.colours,
    classLevels: frame.classLevels,
    photo: layers.photo ? frame.photo : null,
    opacity: state.opacity,
  });
}

function paintValuesOf(values, top, table, frame, out) {
  const source = { values, top, table, truth: frame.layers.truth };
  paintValues(frame.raster, frame.levels, out, source);
}

/** @type {Pane[]} in the order of their keys */
export const PANES = [
  {
    name: "photo",
    title: "Photo",
    means: "The photo as it was given.",
    lacks: lacksPhoto,
    paint: (frame, out) => paintPhoto(frame.raster, frame.levels, out, frame.photo),
    follows: [],
  },
  {
    name: "truth",
    title: "Truth",
    means: "The true class of each pixel.",
    lacks: lacksTruth,
    paint: (frame, out) => paintClassesOf(frame.layers.truth, frame, out),
    follows: ["opacity"],
  },
  {
    name: "prediction",
    title: "Prediction",
    means: "The predicted class of each pixel.",
    lacks: lacksPrediction,
    paint: (frame, out) => paintClassesOf(frame.layers.classes(frame.state.shown), frame, out),
    follows: ["opacity"],
  },
  {
    name: "error",
    title: "Error",
    means: "Where the prediction differs from the truth.",
    lacks: (scene, shown) => lacksTruth(scene) ?? lacksPrediction(scene, shown),
    paint: paintErrorOf,
    follows: ["errorColours", "borderPx"],
  },
  {
    name: "nll",
    title: "NLL",
    means: "The negative log-likelihood of the true class, which is what a pixel adds to the loss.",
    lacks: (scene, shown) => lacksTruth(scene) ?? lacksLogits("nll")(scene, shown),
    paint: (frame, out) => {
      const { layers, state } = frame;
      const top = layers.nllTop(state.shown, state.nllScale);
      paintValuesOf(prediction(layers.scene, state.shown).nll, top, TABLES.inferno, frame, out);
    },
    follows: ["nllScale"],
  },
  {
    name: "confidence",
    title: "Confidence",
    means: "The probability of the predicted class.",
    lacks: lacksLogits("confidence"),
    paint: (frame, out) => {
      const { confidence } = prediction(frame.layers.scene, frame.state.shown);
      paintValuesOf(confidence, 1, TABLES.viridis, frame, out);
    },
    follows: [],
  },
  {
    name: "entropy",
    title: "Entropy",
    means: "How undecided the prediction is: 0 if sure, ln C if all classes are alike.",
    lacks: lacksLogits("entropy"),
    paint: (frame, out) => {
      const { layers, state } = frame;
      const { entropy } = prediction(layers.scene, state.shown);
      paintValuesOf(entropy, layers.lnC, TABLES.inferno, frame, out);
    },
    follows: [],
  },
  {
    name: "better",
    title: "Which is better",
    means: "Which of two predictions is better at each pixel.",
    lacks: (scene) => lacksSecond(scene) ?? lacksTruth(scene),
    paint: paintBetterOf,
    follows: ["nllScale"],
  },
  {
    name: "other",
    title: "Other prediction",
    means: "The prediction that the other panes do not show.",
    lacks: lacksSecond,
    paint: (frame, out) => paintClassesOf(frame.layers.classes(1 - frame.state.shown), frame, out),
    follows: ["opacity"],
  },
];

function paintErrorOf(frame, out) {
  const { layers, state } = frame;
  paintError(frame.raster, frame.levels, out, {
    truth: layers.truth,
    classes: layers.classes(state.shown),
    isolated: state.isolated,
    boundary: state.errorColours === "kinds" ? layers.nearBoundary(state.borderPx) : null,
    colours: layers.colours,
  });
}

function paintBetterOf(frame, out) {
  const { layers, state } = frame;
  const { truth, scene } = layers;
  const table = TABLES.diverging;
  if (layers.comparesNll) {
    const nll = scene.predictions.map((each) => each.nll);
    const top = layers.differenceTop(state.nllScale);
    paintDifference(frame.raster, frame.levels, out, { nll, top, table, truth });
  } else {
    const classes = [layers.classes(0), layers.classes(1)];
    paintBetter(frame.raster, frame.levels, out, { classes, table, truth });
  }
}

/** @returns {Pane} */
export function paneOf(name) {
  return PANES.find((pane) => pane.name === name);
}

/** @returns {string[]} the panes that the state asks for and its scene has, in the table's order */
export function panesToShow(state) {
  return PANES.filter(
    ({ name, lacks }) => state.panes.includes(name) && lacks(state.scene, state.shown) === null,
  ).map(({ name }) => name);
}

/** @returns {string} the title of a pane, with the file's name if there are two predictions */
export function titleOf(pane, state) {
  const { predictions } = state.scene;
  const which = { prediction: state.shown, other: 1 - state.shown }[pane.name];
  if (predictions.length < 2 || which === undefined) return pane.title;
  return `${pane.title}: ${predictions[which].name}`;
}
