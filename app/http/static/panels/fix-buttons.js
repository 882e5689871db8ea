/** Buttons that set the options a sentence of the service advises. */

import { create } from "../dom.js";
import { fixesIn } from "../fixes.js";

/** The options that say how files are read, which sentences of the service name. */
const OPTIONS = [
  "ignore_index",
  "label_encoding",
  "label_space",
  "layout",
  "normalization",
  "num_classes",
  "palette",
  "prediction_space",
  "scores",
  "temperature",
  "upsampling",
];

/**
 * Returns a group with a button for each option=value of a sentence; it is hidden if there is none.
 * @param {string} sentence
 * @param {import("../state.js").Store} store
 */
export function createFixes(sentence, store) {
  const { options } = store.state;
  const fixes = fixesIn(sentence, OPTIONS).filter(({ option, value }) => options[option] !== value);
  const buttons = fixes.map(({ option, value }) => {
    const onclick = () => store.set({ options: { ...store.state.options, [option]: value } });
    return create(
      "button",
      { type: "button", onclick },
      "Use ",
      create("code", {}, `${option}=${value}`),
    );
  });
  return create("div", { className: "fixes", hidden: !buttons.length }, ...buttons);
}
