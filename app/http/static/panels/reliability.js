/** The reliability diagram: the accuracy of pixels by their confidence. */

import { create } from "../dom.js";
import { createPanel, createSvg } from "./elements.js";
import { countText, percentText } from "./numbers.js";

// The diagram in the units of its viewBox: a square, and below it the bars of pixels.
const LEFT = 40;
const TOP = 8;
const SIDE = 252;
const BARS_TOP = TOP + SIDE + 12;
const BARS_HEIGHT = 44;
const WIDTH = LEFT + SIDE + 12;
const HEIGHT = BARS_TOP + BARS_HEIGHT + 38;
const TICKS = [0, 0.25, 0.5, 0.75, 1];

export function mountReliability() {
  const summary = create("p");
  const figure = create("figure");
  const body = create("tbody");
  const columns = ["Confidence", "Pixels", "Mean confidence", "Accuracy"];
  const head = create("tr", {}, ...columns.map((title) => create("th", { scope: "col" }, title)));
  const table = create(
    "table",
    {},
    create("caption", { className: "visually-hidden" }, "Reliability by confidence"),
    create("thead", {}, head),
    body,
  );
  const scroller = create("div", { className: "scroller" }, table);
  const details = create("details", {}, create("summary", {}, "As a table"), scroller);
  const section = createPanel("reliability", "Reliability", summary, figure, details);

  function show({ evaluation }) {
    const calibration = evaluation?.calibration ?? null;
    section.hidden = calibration === null || calibration.ece === null;
    if (section.hidden) return;
    const { ece, bins } = calibration;
    const filled = bins.filter(({ pixels }) => pixels);
    summary.replaceChildren(
      "Expected calibration error (ECE) ",
      create("strong", { className: "number" }, percentText(ece)),
      `. ${verdict(filled, ece)}`,
    );
    figure.replaceChildren(diagram(bins, ece));
    body.replaceChildren(...filled.map(row));
  }

  return { section, show };
}

/** Says whether pixels are more often right, or less often, than their confidence is. */
function verdict(bins, ece) {
  const total = bins.reduce((sum, { pixels }) => sum + pixels, 0);
  const gap =
    bins.reduce(
      (sum, { pixels, confidence, accuracy }) => sum + pixels * (confidence - accuracy),
      0,
    ) / total;
  if (Math.abs(gap) < 0.005) {
    return ece < 0.02
      ? "The confidence agrees with the accuracy."
      : "The confidence is too high in some bins and too low in others.";
  }
  const points = `${(100 * Math.abs(gap)).toFixed(1)} points`;
  return gap > 0
    ? `The prediction is too confident, by ${points} on average.`
    : `The prediction is not confident enough, by ${points} on average.`;
}

function row({ lower, upper, pixels, confidence, accuracy }) {
  return create(
    "tr",
    {},
    create("th", { scope: "row" }, `${lower.toFixed(2)} to ${upper.toFixed(2)}`),
    ...[countText(pixels), percentText(confidence), percentText(accuracy)].map((text) =>
      create("td", {}, text),
    ),
  );
}

function diagram(bins, ece) {
  const x = (value) => LEFT + SIDE * value;
  const y = (value) => TOP + SIDE * (1 - value);
  const mostPixels = Math.max(...bins.map(({ pixels }) => pixels));
  const label = `Reliability diagram: accuracy against confidence in ${bins.length} bins; ECE ${percentText(ece)}. The table below has the numbers.`;
  const rectangle = (className, left, top, right, bottom, title) =>
    createSvg(
      "rect",
      {
        class: className,
        x: left + 0.5,
        y: top,
        width: Math.max(0, right - left - 1),
        height: Math.max(0, bottom - top),
      },
      ...(title ? [createSvg("title", {}, title)] : []),
    );
  const bars = bins.flatMap((bin) => {
    if (!bin.pixels) return [];
    const [left, right] = [x(bin.lower), x(bin.upper)];
    const [low, high] = [
      Math.min(bin.accuracy, bin.confidence),
      Math.max(bin.accuracy, bin.confidence),
    ];
    const title = `Confidence ${bin.lower.toFixed(2)} to ${bin.upper.toFixed(2)}: ${countText(bin.pixels)} pixels, mean confidence ${percentText(bin.confidence)}, accuracy ${percentText(bin.accuracy)}`;
    return [
      rectangle("accuracy", left, y(low), right, y(0)),
      rectangle(
        bin.accuracy < bin.confidence ? "gap over" : "gap under",
        left,
        y(high),
        right,
        y(low),
      ),
      createSvg("path", { class: "level", d: `M${left + 0.5} ${y(bin.accuracy)}H${right - 0.5}` }),
      rectangle(
        "pixels",
        left,
        BARS_TOP + BARS_HEIGHT * (1 - bin.pixels / mostPixels),
        right,
        BARS_TOP + BARS_HEIGHT,
      ),
      rectangle("target", left, TOP, right, BARS_TOP + BARS_HEIGHT, title),
    ];
  });
  const grid = TICKS.flatMap((tick) => [
    createSvg("path", {
      class: "grid",
      d: `M${x(0)} ${y(tick)}H${x(1)}M${x(tick)} ${y(0)}V${y(1)}`,
    }),
    createSvg("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, `${tick}`),
    createSvg(
      "text",
      { x: x(tick), y: BARS_TOP + BARS_HEIGHT + 14, "text-anchor": "middle" },
      `${tick}`,
    ),
  ]);
  const [middle, bottom] = [x(0.5), HEIGHT - 6];
  return createSvg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
    ...grid,
    ...bars,
    createSvg("path", { class: "ideal", d: `M${x(0)} ${y(0)}L${x(1)} ${y(1)}` }),
    createSvg("text", { x: middle, y: bottom, "text-anchor": "middle" }, "confidence"),
    createSvg(
      "text",
      { transform: `translate(10 ${y(0.5)}) rotate(-90)`, "text-anchor": "middle" },
      "accuracy",
    ),
    createSvg(
      "text",
      {
        transform: `translate(10 ${BARS_TOP + BARS_HEIGHT / 2}) rotate(-90)`,
        "text-anchor": "middle",
      },
      "pixels",
    ),
  );
}
