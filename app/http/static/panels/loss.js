/** The loss, what divides it, how it compares with a uniform prediction, and what it says. */

import { create } from "../dom.js";
import { meanNll } from "./answers.js";
import { createFacts, createPanel, createSvg } from "./elements.js";
import { createFixes } from "./fix-buttons.js";
import { countText, lossText } from "./numbers.js";

const DIVISORS = {
  valid: "the number of valid pixels",
  full: "the number of all pixels",
  batch: "the number of images",
  none: "nothing: the loss is a sum",
  weight: "the sum of the weights of the valid pixels",
};

const STATES = {
  learning: "Learning",
  at_chance: "At chance",
  worse_than_chance: "Worse than chance",
  saturated: "Saturated",
  single_class: "One class only",
  nothing_valid: "Nothing valid",
  non_finite: "Not finite",
};

// In the units of the viewBox. Each mark has its text in a row of its own, above the line.
const SCALE = { width: 400, left: 10, right: 390, row: 16, below: 30 };

export function mountLoss(store) {
  const body = create("div");
  const section = createPanel("loss", "Loss", body);

  function show({ scene, evaluation }) {
    section.hidden = evaluation === null;
    if (evaluation === null) return;
    if (evaluation.loss === null) {
      body.replaceChildren(
        create(
          "p",
          {},
          "A label map has no loss: the loss needs the logits of each class. Metrics and confusion are above.",
        ),
        createFacts(pixelCounts(evaluation)),
      );
      return;
    }
    const marks = scene.predictions
      .map(({ answer }, index) => ({ evaluation: answer.evaluation ?? answer, name: "AB"[index] }))
      .filter((mark) => (mark.evaluation.loss ?? null) !== null)
      .map((mark) => ({ ...mark, mean: meanNll(mark.evaluation) }));
    const mean = meanNll(evaluation);
    const isMean = mean !== null && Math.abs(mean - evaluation.loss) <= 1e-6 * Math.abs(mean);
    body.replaceChildren(
      createFacts([
        ...(marks.length > 1
          ? marks.map((mark) => [`Loss of ${mark.name}`, lossText(mark.evaluation.loss)])
          : [["Loss", lossText(evaluation.loss)]]),
        ...(isMean || mean === null ? [] : [["Mean NLL of a valid pixel", lossText(mean)]]),
        [
          "Divided by",
          `${countText(evaluation.divisor)}, ${DIVISORS[evaluation.normalization]} `,
          create("code", { className: "muted" }, `normalization=${evaluation.normalization}`),
        ],
        ...pixelCounts(evaluation),
      ]),
      scale(marks, evaluation.uniform_loss),
      diagnosis(evaluation.diagnosis, store),
    );
  }

  return { section, show };
}

function pixelCounts({ valid_pixels, ignored_pixels }) {
  return [["Pixels", `${countText(valid_pixels)} valid, ${countText(ignored_pixels)} ignored`]];
}

/** A line from 0 on, with a mark at the mean NLL of each prediction and at ln C. */
function scale(marks, uniformLoss) {
  const means = marks.filter(({ mean }) => mean !== null);
  const end = 1.15 * Math.max(uniformLoss, ...means.map(({ mean }) => mean)) || 1;
  const { width, left, right, row, below } = SCALE;
  const line = row * Math.max(1, means.length) + 12;
  const at = (value) => left + ((right - left) * value) / end;
  const text = means
    .map(({ mean, name }) => `${means.length > 1 ? `of ${name} ` : ""}${lossText(mean)}`)
    .join(", ");
  const label = `The mean NLL of a pixel ${text}, on a line from 0 with ln C at ${lossText(uniformLoss)}`;
  const tick = (value, name, className) => [
    createSvg("path", { class: className, d: `M${at(value)} ${line - 6}v12` }),
    createSvg(
      "text",
      { class: className, x: at(value), y: line + 22, "text-anchor": "middle" },
      name,
    ),
  ];
  return createSvg(
    "svg",
    { class: "scale", viewBox: `0 0 ${width} ${line + below}`, role: "img", "aria-label": label },
    createSvg("path", { class: "line", d: `M${left} ${line}H${right}` }),
    createSvg("path", { class: "below", d: `M${left} ${line}H${at(uniformLoss)}` }),
    ...tick(0, "0", "tick"),
    ...tick(uniformLoss, `ln C = ${lossText(uniformLoss)}`, "tick"),
    ...means.flatMap(({ mean, name }, index) => [
      createSvg("path", { class: "mark", d: `M${at(mean)} ${row * (index + 1)}V${line}` }),
      createSvg("circle", { class: "mark", cx: at(mean), cy: line, r: 6 }),
      createSvg(
        "text",
        { class: "mark", x: at(mean), y: row * (index + 1) - 4, "text-anchor": anchor(mean / end) },
        means.length > 1 ? `${name} ${lossText(mean)}` : lossText(mean),
      ),
    ]),
  );
}

// Text at an end of the line must not be cut off.
function anchor(share) {
  if (share < 0.06) return "start";
  return share > 0.94 ? "end" : "middle";
}

function diagnosis({ state, advice }, store) {
  const badge = create(
    "strong",
    { className: `badge ${state === "learning" ? "good" : "bad"}` },
    STATES[state] ?? state,
  );
  return create(
    "div",
    { className: "diagnosis" },
    create("p", {}, badge, " ", advice),
    createFixes(advice, store),
  );
}
