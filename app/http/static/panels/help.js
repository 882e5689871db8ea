/** The help sheet: what the page's words mean, and its keys. */

import { create } from "../dom.js";
import { SHORTCUTS } from "../viewer/keys.js";
import { createFacts } from "./elements.js";

const WORDS = [
  [
    "NLL",
    "The negative log-likelihood of a pixel: minus the logarithm of the probability that the network gives to the true class. The loss is its sum over the valid pixels, divided as the normalization says.",
  ],
  [
    "ln C",
    "The loss of a network that gives all C classes the same probability. A loss near it has not begun to learn; a greater one is confidently wrong.",
  ],
  [
    "IU",
    "Intersection over union of a class: its correctly predicted pixels, divided by the pixels that are of the class in the truth or in the prediction.",
  ],
  [
    "ECE",
    "The expected calibration error: how far confidence and accuracy are apart, as a mean over all pixels in bins of equal confidence.",
  ],
];

/** @param {HTMLElement} actions  the part of the header that holds buttons */
export function mountHelp(actions) {
  const close = create("button", { type: "button", onclick: () => dialog.close() }, "Close");
  const title = create("h2", { id: "help-title" }, "Help");
  const dialog = create(
    "dialog",
    { id: "help", "aria-labelledby": title.id },
    create("div", { className: "dialog-head" }, title, close),
    create("h3", {}, "Keys"),
    create("dl", { className: "keys" }, ...SHORTCUTS.map(shortcut)),
    create("h3", {}, "Words"),
    createFacts(WORDS),
    create("h3", {}, "Files"),
    create(
      "p",
      {},
      "The prediction is an NPY or safetensors file of logits, or a PNG of class indices. Files go to " +
        "this service and nowhere else. ",
      create("a", { href: "/docs" }, "The API pages"),
      " say what the service answers.",
    ),
  );
  const button = create(
    "button",
    { type: "button", title: "Help and keys (?)", onclick: open },
    "Help",
  );
  actions.append(button);
  document.body.append(dialog);

  function open() {
    if (!dialog.open) dialog.showModal(); // at its end the browser returns the focus
  }

  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  document.addEventListener("keydown", (event) => {
    const isText = event.target.closest?.(
      "input:not([type=range]):not([type=checkbox]), textarea, select",
    );
    if (event.key !== "?" || event.ctrlKey || event.metaKey || event.altKey || isText) return;
    event.preventDefault();
    open();
  });
}

function shortcut({ keys, does }) {
  const names = keys.flatMap((key, index) => [...(index ? [" "] : []), create("kbd", {}, key)]);
  return create("div", {}, create("dt", {}, ...names), create("dd", {}, does));
}
