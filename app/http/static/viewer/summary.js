/** Each pane in one sentence, for those who do not see it. */

import { layersOf } from "./layers.js";
import { digits, percent } from "./pixel.js";

const NUM_CLASSES_NAMED = 5;

/**
 * @param {import("./panes.js").Pane} pane
 * @param {Readonly<import("../types.js").State>} state
 * @returns {string}
 */
export function summaryOf(pane, state) {
  const { scene, shown } = state;
  const layers = layersOf(scene);
  const prediction = scene.predictions[shown];
  const numbers = {
    photo: () => `${scene.width} x ${scene.height} pixels`,
    truth: () => shares(scene, layers.truth),
    prediction: () => shares(scene, layers.classes(shown)),
    other: () => shares(scene, layers.classes(1 - shown)),
    error: () => errors(layers, shown),
    nll: () => `mean ${mean(layers, prediction.nll)} nats, ln C is ${digits(layers.lnC)}`,
    confidence: () => `mean ${mean(layers, prediction.confidence)}`,
    entropy: () => `mean ${mean(layers, prediction.entropy)} nats`,
    better: () => better(scene, layers),
  }[pane.name]();
  return `${pane.title}: ${numbers}.`;
}

/** The largest classes and their shares of all pixels. */
function shares(scene, classes) {
  const counts = new Map();
  for (let i = 0; i < classes.length; i++) {
    counts.set(classes[i], (counts.get(classes[i]) ?? 0) + 1);
  }
  const ignored = counts.get(-1) ?? 0;
  counts.delete(-1);
  const largest = [...counts].sort((a, b) => b[1] - a[1]).slice(0, NUM_CLASSES_NAMED);
  const parts = largest.map(
    ([k, count]) => `${scene.classNames[k] ?? "no class"} ${percent(count / classes.length)}`,
  );
  const others = counts.size - largest.length;
  if (others > 0) parts.push(`${others} more class${others > 1 ? "es" : ""}`);
  if (ignored) parts.push(`ignored ${percent(ignored / classes.length)}`);
  return parts.join(", ");
}

function errors(layers, shown) {
  const { truth } = layers;
  const classes = layers.classes(shown);
  let wrong = 0;
  for (let i = 0; i < truth.length; i++) wrong += truth[i] >= 0 && truth[i] !== classes[i];
  const share = layers.validPixels ? wrong / layers.validPixels : 0;
  return `${wrong.toLocaleString("en")} pixels are wrong, ${percent(share)} of those that count`;
}

function mean(layers, values) {
  const { truth } = layers;
  let sum = 0;
  let count = 0;
  for (let i = 0; i < values.length; i++) {
    if (truth !== null && truth[i] < 0) continue;
    sum += values[i];
    count++;
  }
  return digits(count ? sum / count : 0);
}

function better(scene, layers) {
  const { truth, comparesNll } = layers;
  const [first, second] = comparesNll
    ? scene.predictions.map(({ nll }) => nll)
    : [layers.classes(0), layers.classes(1)];
  const counts = [0, 0];
  for (let i = 0; i < truth.length; i++) {
    if (truth[i] < 0) continue;
    const gain = comparesNll
      ? first[i] - second[i]
      : (second[i] === truth[i]) - (first[i] === truth[i]);
    if (gain < 0) counts[0]++;
    else if (gain > 0) counts[1]++;
  }
  return scene.predictions
    .map(({ name }, which) => {
      const share = layers.validPixels ? counts[which] / layers.validPixels : 0;
      return `${name} is better at ${percent(share)} of the pixels that count`;
    })
    .join(", ");
}
