/** Which pixels are lit and which are dimmed. */

import { DIMMED, FAINT, LIT } from "./colours.js";

/**
 * Which pixels the state points at, in terms of one scene.
 * @param {import("./layers.js").Layers} layers
 * @param {Readonly<import("../types.js").State>} state
 */
export function selectionOf(layers, state) {
  const { scene } = layers;
  const prediction = scene.predictions[state.shown];
  const { cell, isolated, highlighted } = state;
  return {
    truth: layers.truth,
    predicted: layers.classes(state.shown),
    cell: cell && layers.truth && prediction ? cell : null,
    nll: state.minNll > 0 ? (prediction?.nll ?? null) : null,
    minNll: state.minNll,
    confidence: state.maxConfidence < 1 ? (prediction?.confidence ?? null) : null,
    maxConfidence: state.maxConfidence,
    isolated,
    // A table's row under the pointer does not compete with a choice that was clicked.
    highlighted: isolated === null && cell === null ? highlighted : null,
  };
}

/** @returns {boolean} whether a selection leaves some pixels out */
export function isSelective(selection) {
  return (
    selection.cell !== null ||
    selection.nll !== null ||
    selection.confidence !== null ||
    selection.isolated !== null
  );
}

/**
 * Computes the level of the pixels at some offsets.
 * @param {ReturnType<typeof selectionOf>} selection
 * @param {Int32Array} index  offsets of pixels, -1 outside the image
 * @param {Uint8Array} common  receives the levels by cell and thresholds, which hold for every pane
 * @returns {Uint8Array} the levels by class too, for panes that do not show classes: a pixel belongs to
 *   a class if it is its true or its predicted one
 */
export function computeLevels(selection, index, common) {
  computeCommon(selection, index, common);
  const { truth, predicted, isolated, highlighted } = selection;
  const chosen = isolated ?? highlighted;
  if (chosen === null) return common;
  const rest = isolated === null ? FAINT : DIMMED;
  const levels = common.slice();
  for (let i = 0; i < index.length; i++) {
    const offset = index[i];
    if (offset < 0 || levels[i] > rest) continue;
    const isChosen =
      (truth !== null && truth[offset] === chosen) ||
      (predicted !== null && predicted[offset] === chosen);
    if (!isChosen) levels[i] = rest;
  }
  return levels;
}

function computeCommon(selection, index, levels) {
  const { truth, predicted, cell, nll, minNll, confidence, maxConfidence } = selection;
  levels.fill(LIT);
  if (cell !== null) {
    for (let i = 0; i < index.length; i++) {
      const offset = index[i];
      if (offset < 0) continue;
      if (truth[offset] !== cell.truth || predicted[offset] !== cell.predicted) levels[i] = DIMMED;
    }
  }
  if (nll !== null) {
    for (let i = 0; i < index.length; i++) {
      const offset = index[i];
      if (offset >= 0 && !(nll[offset] >= minNll)) levels[i] = DIMMED;
    }
  }
  if (confidence !== null) {
    for (let i = 0; i < index.length; i++) {
      const offset = index[i];
      if (offset >= 0 && confidence[offset] > maxConfidence) levels[i] = DIMMED;
    }
  }
}

/** @returns {Uint8Array} the level of each class, in panes that show classes */
export function classLevels(selection, numClasses) {
  const { isolated, highlighted } = selection;
  const chosen = isolated ?? highlighted;
  const levels = new Uint8Array(numClasses + 1);
  if (chosen === null) return levels;
  levels.fill(isolated === null ? FAINT : DIMMED);
  if (chosen >= 0 && chosen <= numClasses) levels[chosen] = LIT;
  return levels;
}

/** @returns {number} how many pixels of the whole image a selection lights */
export function countLit(selection, numPixels) {
  const { truth, predicted, cell, nll, minNll, confidence, maxConfidence, isolated } = selection;
  let count = 0;
  for (let i = 0; i < numPixels; i++) {
    if (cell !== null && (truth[i] !== cell.truth || predicted[i] !== cell.predicted)) continue;
    if (nll !== null && !(nll[i] >= minNll)) continue;
    if (confidence !== null && confidence[i] > maxConfidence) continue;
    if (isolated !== null && truth?.[i] !== isolated && predicted?.[i] !== isolated) continue;
    count++;
  }
  return count;
}
