/** The divider between two panes that lie over each other, and the choice of these panes. */

import { create } from "../dom.js";
import { PANES, paneOf, titleOf } from "./panes.js";

/** Pairs of panes in the order in which they are taken if a scene has both. */
const PAIRS = [
  ["prediction", "other"],
  ["truth", "prediction"],
  ["photo", "prediction"],
  ["photo", "truth"],
  ["prediction", "confidence"],
];

/** @returns {?{left: string, right: string, at: number}} a divider that suits a scene */
export function dividerFor(state) {
  const has = (name) => paneOf(name).lacks(state.scene, state.shown) === null;
  const pair = PAIRS.find((names) => names.every(has));
  return pair ? { left: pair[0], right: pair[1], at: 0.5 } : null;
}

/** @returns {boolean} whether a scene has both panes of a divider */
export function dividerFits({ scene, shown, slider }) {
  return [slider.left, slider.right].every((name) => paneOf(name)?.lacks(scene, shown) === null);
}

export class Divider {
  #store;
  #selects = {};
  #range = create("input", {
    type: "range",
    min: 0,
    max: 1,
    step: 0.001,
    className: "viewer-divider-range",
    oninput: () => this.#move(Number(this.#range.value)),
  });
  #line = create("div", { className: "viewer-divider" }, create("div"));

  /** @param {import("../state.js").Store} store */
  constructor(store) {
    this.#store = store;
    for (const side of ["left", "right"]) {
      this.#selects[side] = create("select", {
        "aria-label": side === "left" ? "Left pane" : "Right pane",
        onchange: ({ target }) => {
          store.set({ slider: { ...store.state.slider, [side]: target.value } });
        },
      });
    }
    this.element = create(
      "div",
      { className: "viewer-divider-controls" },
      this.#selects.left,
      this.#range,
      this.#selects.right,
    );
    this.#drag();
  }

  /** Puts the line on a stage, and takes it from the last one. */
  attach(stage) {
    if (this.#line.parentElement !== stage) stage.append(this.#line);
  }

  update(state) {
    const { slider, scene, shown } = state;
    if (slider === null) return;
    for (const [side, select] of Object.entries(this.#selects)) {
      const panes = PANES.filter(({ lacks }) => lacks(scene, shown) === null);
      const names = panes.map(({ name }) => name);
      if (select.dataset.names !== `${names}`) {
        select.dataset.names = `${names}`;
        select.replaceChildren(
          ...panes.map((pane) => create("option", { value: pane.name }, titleOf(pane, state))),
        );
      }
      select.value = slider[side];
    }
    const [left, right] = [slider.left, slider.right].map((name) => titleOf(paneOf(name), state));
    this.#range.setAttribute("aria-label", `Divider between ${left} and ${right}`);
    this.#range.setAttribute("aria-valuetext", `${Math.round(100 * slider.at)} % ${left}`);
    if (Number(this.#range.value) !== slider.at) this.#range.value = slider.at;
    this.#line.style.left = `${100 * slider.at}%`;
  }

  #move(at) {
    const { slider } = this.#store.state;
    if (slider) this.#store.set({ slider: { ...slider, at: Math.min(Math.max(at, 0), 1) } });
  }

  #drag() {
    const line = this.#line;
    line.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      event.preventDefault();
      line.setPointerCapture(event.pointerId);
    });
    line.addEventListener("pointermove", (event) => {
      if (!line.hasPointerCapture(event.pointerId)) return;
      event.stopPropagation();
      const box = line.parentElement.getBoundingClientRect();
      this.#move((event.clientX - box.left) / box.width);
    });
  }
}
