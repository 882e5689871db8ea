/** Tables and diagrams beside the panes. */

import { mountClasses } from "./classes.js";
import { mountConfusions } from "./confusions.js";
import { evaluationOf } from "./answers.js";
import { Confusion } from "./confusion.js";
import { mountHeadline } from "./headline.js";
import { mountHelp } from "./help.js";
import { mountImages } from "./images.js";
import { mountLoss } from "./loss.js";
import { mountReadings } from "./readings.js";
import { mountReliability } from "./reliability.js";
import { mountSelection } from "./selection.js";
import { mountWarnings } from "./warnings.js";

/**
 * What every panel is drawn from.
 * @typedef {object} Shown
 * @property {import("../types.js").Scene} scene
 * @property {?import("../types.js").Prediction} prediction  the one that is shown
 * @property {?object} evaluation  the members of its evaluation; null without truth
 * @property {?Confusion} confusion
 */

// A panel is a section, and a function that redraws it: `show(shown)`.
const PANELS = [
  mountHeadline,
  mountWarnings,
  mountClasses,
  mountConfusions,
  mountLoss,
  mountReliability,
  mountImages,
  mountReadings,
  mountSelection,
];

/**
 * @param {{header: HTMLElement, panels: HTMLElement}} elements
 * @param {import("../state.js").Store} store
 * @param {object} actions
 * @param {(index: number) => void} actions.chooseImage  shows an image of the batch
 */
export function mountPanels({ header, panels }, store, actions) {
  mountHelp(header.querySelector("#header-actions"));
  const mounted = PANELS.map((mount) => mount(store, actions));
  panels.append(...mounted.map(({ section }) => section));
  const confusions = new WeakMap(); // by the answer that a matrix comes from

  store.on(["scene", "shown"], ({ scene, shown }) => {
    if (scene === null) return;
    const prediction = scene.predictions[shown] ?? scene.predictions[0] ?? null;
    const evaluation = prediction && evaluationOf(prediction.answer);
    let confusion = null;
    if (evaluation?.confusion) {
      confusion = confusions.get(evaluation) ?? new Confusion(evaluation.confusion);
      confusions.set(evaluation, confusion);
    }
    for (const { show } of mounted) show({ scene, prediction, evaluation, confusion });
  });
}
