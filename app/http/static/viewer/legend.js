/** What the colours of a pane mean: a colour bar with units, or swatches with words. */

import { create } from "../dom.js";
import { DIVERGING } from "./colours.js";
import { INFERNO, VIRIDIS } from "./colormaps.js";
import { layersOf } from "./layers.js";
import { ERROR } from "./paint.js";
import { digits, nameOf } from "./pixel.js";
import { swatch } from "./tooltip.js";

/**
 * @param {string} name  of the pane
 * @param {Readonly<import("../types.js").State>} state
 * @returns {HTMLElement[]} nothing for panes that the class table explains
 */
export function legendOf(name, state) {
  const layers = layersOf(state.scene);
  const { lnC } = layers;
  const isClipped = state.nllScale === "auto";
  switch (name) {
    case "error":
      return errorLegend(state);
    case "nll": {
      const top = layers.nllTop(state.shown, state.nllScale);
      const ticks = [tick(0, "0"), tick(1, isClipped ? `${digits(top)} (99th percentile)` : lnCText(lnC))];
      // A label close to an end would cover that end's.
      if (isClipped && lnC > 0.25 * top && lnC < 0.6 * top) ticks.push(tick(lnC / top, lnCText(lnC)));
      return [bar(INFERNO, "nats", ticks)];
    }
    case "entropy":
      return [bar(INFERNO, "nats", [tick(0, "0"), tick(1, lnCText(lnC))])];
    case "confidence":
      return [bar(VIRIDIS, "probability", [tick(0, "0"), tick(0.5, "0.5"), tick(1, "1")])];
    case "better":
      return betterLegend(state, layers);
    default:
      return [];
  }
}

function lnCText(lnC) {
  return `ln C = ${digits(lnC)}`;
}

function betterLegend(state, layers) {
  // Their names may be long; the result says which is which.
  const ends = [tick(0, "A"), tick(1, "B")];
  if (!layers.comparesNll) return [bar(DIVERGING, "right where the other is wrong", ends)];
  const top = digits(layers.differenceTop(state.nllScale));
  return [bar(DIVERGING, `NLL smaller by up to ${top} nats`, ends)];
}

function errorLegend(state) {
  const { scene, isolated, errorColours } = state;
  const entries = (rows) =>
    rows.map(([pixel, text]) =>
      create("span", { className: "viewer-legend-entry" }, swatch(pixel), text),
    );
  if (isolated !== null) {
    const name = nameOf(scene, isolated);
    return entries([
      [ERROR.hit, `${name}: hit`],
      [ERROR.missed, "missed"],
      [ERROR.falseAlarm, "false alarm"],
    ]);
  }
  if (errorColours === "plain") {
    return entries([
      [ERROR.correct, "right"],
      [ERROR.wrong, "wrong"],
      [null, "ignored"],
    ]);
  }
  return [
    ...entries([
      [ERROR.correct, "right"],
      [ERROR.boundary, `within ${state.borderPx} px of a boundary`],
    ]),
    create("span", { className: "viewer-legend-entry" }, "else the predicted class"),
  ];
}

/** @returns {{at: number, text: string}} a label at a fraction of a bar */
function tick(at, text) {
  return { at, text };
}

function bar(table, unit, ticks) {
  const canvas = create("canvas", { width: 256, height: 1, className: "viewer-bar" });
  canvas.setAttribute("aria-hidden", "true");
  const context = canvas.getContext("2d");
  const image = context.createImageData(256, 1);
  for (let i = 0; i < 256; i++) {
    image.data.set([table[3 * i], table[3 * i + 1], table[3 * i + 2], 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
  const labels = ticks.map(({ at, text }) => {
    const label = create("span", { className: "viewer-tick" }, text);
    if (at === 0) label.classList.add("viewer-tick-first");
    else if (at === 1) label.classList.add("viewer-tick-last");
    else label.style.left = `${100 * at}%`;
    return label;
  });
  return create(
    "div",
    { className: "viewer-scale" },
    canvas,
    create("div", { className: "viewer-ticks" }, ...labels),
    create("span", { className: "viewer-unit" }, unit),
  );
}
