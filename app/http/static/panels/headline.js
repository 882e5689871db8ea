/** The numbers that everyone looks for first, and the choice between two predictions. */

import { create } from "../dom.js";
import { evaluationOf } from "./answers.js";
import { createPanel } from "./elements.js";
import { counted, differenceText, lossText, percentText } from "./numbers.js";

/**
 * @typedef {object} Headline
 * @property {string} title
 * @property {(evaluation: object) => ?number} value
 * @property {(value: ?number) => string} text
 * @property {(difference: ?number) => string} difference
 * @property {(evaluation: object) => string} note
 */

/** @type {Headline[]} */
const HEADLINES = [
  {
    title: "Mean IU",
    value: (evaluation) => evaluation.metrics.mean_iu,
    text: percentText,
    difference: (value) => differenceText(value === null ? null : 100 * value, 1),
    note: ({ metrics }) => `${counted(metrics.num_classes_averaged, "class", "classes")}`,
  },
  {
    title: "Pixel accuracy",
    value: (evaluation) => evaluation.metrics.pixel_accuracy,
    text: percentText,
    difference: (value) => differenceText(value === null ? null : 100 * value, 1),
    note: ({ valid_pixels }) => `${counted(valid_pixels, "pixel")}`,
  },
  {
    title: "Loss",
    value: (evaluation) => evaluation.loss,
    text: lossText,
    difference: (value) => differenceText(value, 4),
    note: ({ loss, uniform_loss }) =>
      loss === null ? "needs logits" : `ln C is ${lossText(uniform_loss)}`,
  },
];

export function mountHeadline(store) {
  const section = createPanel("headline", "Result");
  const choice = create("div", {
    className: "choice predictions",
    role: "group",
    "aria-label": "Prediction shown",
  });
  const tiles = create("dl", { className: "tiles" });
  const note = create("p", { className: "muted" });
  section.append(choice, tiles, note);

  function show({ scene, prediction, evaluation }) {
    choice.hidden = scene.predictions.length < 2;
    choice.replaceChildren(
      ...scene.predictions.map((other, index) => choiceButton(other, index, prediction)),
    );
    tiles.hidden = evaluation === null;
    const others = scene.predictions.filter((other) => other !== prediction);
    const other = others.length ? evaluationOf(others[0].answer) : null;
    const otherName = "AB"[scene.predictions.indexOf(others[0])];
    tiles.replaceChildren(
      ...(evaluation === null
        ? []
        : HEADLINES.map((headline) => tile(headline, evaluation, other, otherName))),
    );
    note.textContent =
      evaluation === null
        ? "Without true labels there is nothing to compare with. Add them to see metrics and the loss."
        : scene.numImages > 1
          ? `All numbers are those of the whole batch of ${scene.numImages} images.`
          : "";
    note.hidden = !note.textContent;
  }

  function choiceButton(other, index, prediction) {
    const attributes = {
      type: "button",
      title: other.name,
      "aria-pressed": `${other === prediction}`,
      onclick: () => {
        store.set({ shown: index });
        choice.children[index].focus(); // showing it has replaced the buttons
      },
    };
    return create("button", attributes, create("b", {}, "AB"[index]), ` ${other.name}`);
  }

  return { section, show };
}

function tile({ title, value, text, difference, note }, evaluation, other, otherName) {
  const shown = value(evaluation);
  const lines = [create("dd", { className: "value number" }, text(shown))];
  if (other !== null) {
    const otherValue = value(other);
    const change = shown === null || otherValue === null ? null : shown - otherValue;
    lines.push(create("dd", { className: "note number" }, `${difference(change)} vs ${otherName}`));
  } else {
    lines.push(create("dd", { className: "note number" }, note(evaluation)));
  }
  return create("div", { className: "tile" }, create("dt", {}, title), ...lines);
}
