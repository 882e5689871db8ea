/** The box beside the pixel under the pointer or the cursor. */

import { create } from "../dom.js";
import { css } from "./colours.js";
import { layersOf } from "./layers.js";
import { digits, nameOf, percent, valuesAt } from "./pixel.js";

/** The distance from the pixel, in CSS pixels. */
const GAP = 14;

export class Tooltip {
  // A screen reader reads the status line, which has the same values.
  element = create("div", { className: "viewer-tooltip", hidden: true, "aria-hidden": "true" });

  /**
   * Shows a pixel's values.
   * @param {import("../types.js").Scene} scene
   * @param {{x: number, y: number}} pixel
   * @param {{left: number, top: number}} position  of the pixel in the window
   */
  show(scene, pixel, position) {
    const key = `${pixel.x},${pixel.y}`;
    if (this.scene !== scene || this.key !== key) {
      this.element.replaceChildren(...content(scene, valuesAt(scene, pixel)));
      Object.assign(this, { scene, key });
    }
    this.element.hidden = false;
    this.#place(position);
  }

  hide() {
    this.element.hidden = true;
  }

  /** Beside the pixel, on the side that has room. */
  #place({ left, top }) {
    const { offsetWidth: width, offsetHeight: height } = this.element;
    const right = left + GAP;
    const below = top + GAP;
    const x = right + width <= innerWidth ? right : Math.max(0, left - GAP - width);
    const y = below + height <= innerHeight ? below : Math.max(0, top - GAP - height);
    this.element.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
  }
}

function content(scene, values) {
  const { colours } = layersOf(scene);
  const classRow = (label, index, ...more) =>
    create(
      "div",
      { className: "viewer-tooltip-row" },
      create("span", { className: "viewer-tooltip-label" }, label),
      swatch(index < 0 ? null : colours[index]),
      create("span", { className: "viewer-tooltip-name" }, nameOf(scene, index)),
      ...more,
    );
  const rows = [
    create("div", { className: "viewer-tooltip-place" }, `Row ${values.y}, column ${values.x}`),
  ];
  if (values.truth !== null) rows.push(classRow("Truth", values.truth));
  for (const each of values.predictions) {
    if (values.predictions.length > 1) {
      rows.push(create("div", { className: "viewer-tooltip-file" }, each.name));
    }
    const isJudged = values.truth !== null && values.truth >= 0;
    const isRight = each.predicted === values.truth;
    const verdict = create(
      "span",
      { className: isRight ? "viewer-tooltip-right" : "viewer-tooltip-wrong" },
      isRight ? "right" : "wrong",
    );
    rows.push(classRow("Prediction", each.predicted, ...(isJudged ? [verdict] : [])));
    rows.push(...each.top.map(({ predicted, probability }) => topRow(predicted, probability)));
    const facts = [
      each.nll === null ? null : `NLL ${digits(each.nll)} nats`,
      each.confidence === null ? null : `confidence ${digits(each.confidence)}`,
      each.entropy === null ? null : `entropy ${digits(each.entropy)} nats`,
    ].filter((fact) => fact !== null);
    if (facts.length) {
      const spans = facts.map((fact) => create("span", {}, fact));
      rows.push(create("div", { className: "viewer-tooltip-facts" }, ...spans));
    }
  }
  return rows;

  function topRow(index, probability) {
    const bar = create("span", { className: "viewer-tooltip-bar" });
    bar.style.width = `${Math.max(2, 100 * probability)}%`;
    bar.style.backgroundColor = index < 0 ? "transparent" : css(colours[index]);
    return create(
      "div",
      { className: "viewer-tooltip-top" },
      create("span", { className: "viewer-tooltip-name" }, nameOf(scene, index)),
      create("span", { className: "viewer-tooltip-track" }, bar),
      create("span", { className: "viewer-tooltip-number" }, percent(probability)),
    );
  }
}

/** @returns {HTMLElement} a small square of a colour; a checkerboard if there is none */
export function swatch(pixel) {
  const element = create("span", { className: "viewer-swatch", "aria-hidden": "true" });
  if (pixel === null || pixel === undefined) element.classList.add("viewer-swatch-ignored");
  else element.style.backgroundColor = css(pixel);
  return element;
}
