/** What the panels take from the JSON of /v1/evaluate and /v1/predict. */

/** @typedef {import("../types.js").Scene} Scene */
/** @typedef {import("../types.js").Prediction} Prediction */

/**
 * One class of a prediction. Numbers are null where the answer has none.
 * @typedef {object} ClassResult
 * @property {number} index
 * @property {number} pixels  of the truth; of the prediction where there is no truth
 * @property {number} share  of all counted pixels
 * @property {?number} iu
 * @property {?number} accuracy
 * @property {?number} nll  the mean NLL of its pixels
 */

/** The members of an evaluation; null without truth. /v1/predict has them in a member. */
export function evaluationOf(answer) {
  const evaluation = answer.evaluation === undefined ? answer : answer.evaluation;
  return evaluation?.metrics ? evaluation : null;
}

/**
 * Every class of the scene, whether it occurs or not.
 * @param {Scene} scene
 * @param {?Prediction} prediction
 * @param {?import("./confusion.js").Confusion} confusion
 * @returns {ClassResult[]}
 */
export function classResults(scene, prediction, confusion) {
  const evaluation = prediction ? evaluationOf(prediction.answer) : null;
  const pixels = confusion ? confusion.truthPixels : pixelsByClass(scene, prediction);
  const total = pixels.reduce((sum, count) => sum + count, 0);
  return Array.from({ length: scene.numClasses }, (_, index) => ({
    index,
    pixels: pixels[index] ?? 0,
    share: total ? (pixels[index] ?? 0) / total : 0,
    iu: evaluation?.metrics.iu[index] ?? null,
    accuracy: evaluation?.metrics.accuracy[index] ?? null,
    nll: evaluation?.per_class?.[index]?.mean_nll ?? null,
  }));
}

/** The mean NLL of the valid pixels, whatever the normalization of the loss; null without logits. */
export function meanNll(evaluation) {
  if (evaluation.loss === null || !evaluation.valid_pixels) return null;
  const sum = evaluation.per_class.reduce(
    (total, { pixels, mean_nll }) => total + pixels * (mean_nll ?? 0),
    0,
  );
  return sum / evaluation.valid_pixels;
}

function pixelsByClass(scene, prediction) {
  const counts = new Float64Array(scene.numClasses);
  for (const { index, pixels } of prediction?.answer.classes ?? []) counts[index] = pixels;
  if (prediction?.answer.classes) return counts;
  for (const index of prediction?.classes ?? scene.truth ?? []) if (index >= 0) counts[index] += 1;
  return counts;
}
