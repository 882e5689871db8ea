/** What is known about one pixel, as data and in words. */

import { layersOf } from "./layers.js";

/** @returns {string} a number with four significant digits */
export function digits(value) {
  if (!Number.isFinite(value)) return value > 0 ? "infinite" : "not a number";
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(2);
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

/** @returns {string} a fraction in per cent */
export function percent(fraction) {
  return `${(100 * fraction).toFixed(1)} %`;
}

/**
 * @param {import("../types.js").Scene} scene
 * @param {{x: number, y: number}} pixel
 * @returns the values of each map at a pixel; null where there are none
 */
export function valuesAt(scene, { x, y }) {
  const offset = y * scene.width + x;
  const layers = layersOf(scene);
  const label = scene.truth ? scene.truth[offset] : null;
  return {
    x,
    y,
    truth: label,
    predictions: scene.predictions.map((prediction, which) => ({
      name: prediction.name,
      predicted: layers.classes(which)[offset],
      nll: prediction.nll && label >= 0 ? prediction.nll[offset] : null,
      confidence: prediction.confidence?.[offset] ?? null,
      entropy: prediction.entropy?.[offset] ?? null,
      top: prediction.topClasses
        ? prediction.topClasses.map((classes, i) => ({
            predicted: classes[offset],
            probability: prediction.topProbabilities[i][offset],
          }))
        : [],
    })),
  };
}

/** @returns {string} the name of a class, or what its index stands for */
export function nameOf(scene, index) {
  if (index < 0) return "ignored";
  return scene.classNames[index] ?? "no class";
}

/** @returns {string} one sentence about a pixel, for the status line and screen readers */
export function describe(scene, values) {
  const parts = [`Row ${values.y}, column ${values.x}`];
  if (values.truth !== null) parts.push(`truth ${nameOf(scene, values.truth)}`);
  const isOne = values.predictions.length === 1;
  for (const each of values.predictions) {
    const subject = isOne ? "prediction" : each.name;
    const correct = values.truth === null || values.truth < 0 || each.predicted === values.truth;
    const verdict = correct ? "" : ", wrong";
    const probability = each.confidence === null ? "" : ` ${percent(each.confidence)}`;
    const nll = each.nll === null ? "" : `, NLL ${digits(each.nll)} nats`;
    parts.push(`${subject} ${nameOf(scene, each.predicted)}${probability}${verdict}${nll}`);
  }
  return `${parts.join("; ")}.`;
}
