/** One canvas with its title, legend and buttons, for one pane or for two with a divider. */

import { create } from "../dom.js";
import { toPane } from "./camera.js";
import { legendOf } from "./legend.js";
import { paneOf, titleOf } from "./panes.js";
import { summaryOf } from "./summary.js";

const MIN_MARKER_PX = 9;

/** The id of the text that says how a pane is used by keyboard. */
export const INSTRUCTIONS_ID = "viewer-instructions";

export class Stage {
  #title = create("span", { className: "viewer-title" });
  #legend = create("div", { className: "viewer-legend" });
  #marker = create("div", { className: "viewer-marker", hidden: true });
  canvas = create("canvas", { role: "img" });

  /**
   * @param {string[]} names  of one or two panes
   * @param {{toggleAlone: (name: string) => void, download: (name: string) => void}} actions
   */
  constructor(names, actions) {
    this.names = names;
    this.stage = create(
      "div",
      {
        className: "viewer-stage",
        tabIndex: 0,
        role: "application",
        "aria-describedby": INSTRUCTIONS_ID,
      },
      this.canvas,
      this.#marker,
    );
    const [name] = names;
    const buttons =
      names.length > 1
        ? []
        : [
            this.#button("Show alone, or all again", "⤢", () => actions.toggleAlone(name)),
            this.#button("Save as PNG", "⤓", () => actions.download(name)),
          ];
    this.element = create(
      "figure",
      { className: "viewer-pane" },
      create("figcaption", { className: "viewer-head" }, this.#title, ...buttons),
      this.stage,
      this.#legend,
    );
  }

  #button(label, text, onclick) {
    return create(
      "button",
      { type: "button", className: "viewer-icon", title: label, "aria-label": label, onclick },
      text,
    );
  }

  /** Sets the size, in CSS pixels. */
  resize({ width, height }) {
    for (const element of [this.stage, this.canvas]) {
      element.style.width = `${width}px`;
      element.style.height = `${height}px`;
    }
  }

  /** Updates title and legend. */
  update(state) {
    this.element.dataset.pane = this.names.join(" ");
    const title = this.names.map((name) => titleOf(paneOf(name), state)).join(" | ");
    this.#title.textContent = title;
    this.#title.title = title;
    this.stage.setAttribute("aria-label", `${title}, picture`);
    // What it shows is counted later.
    if (!this.canvas.ariaLabel) this.canvas.setAttribute("aria-label", `${title}.`);
    for (const button of this.element.querySelectorAll(".viewer-icon")) {
      button.setAttribute("aria-label", `${title}: ${button.title}`);
    }
    const legends = this.names.flatMap((name) => legendOf(name, state));
    this.#legend.replaceChildren(...legends);
  }

  /** Describes the picture in words. */
  summarize(state) {
    const sentences = this.names.map((name) => summaryOf(paneOf(name), state));
    this.canvas.setAttribute("aria-label", sentences.join(" "));
  }

  /** Marks a pixel; null for none. */
  mark(pixel, camera, size) {
    const marker = this.#marker;
    marker.hidden = pixel === null;
    if (pixel === null) return;
    const { left, top } = toPane(camera, size, pixel.x + 0.5, pixel.y + 0.5);
    const side = Math.max(camera.scale, MIN_MARKER_PX);
    marker.hidden = left < 0 || top < 0 || left > size.width || top > size.height;
    marker.style.width = marker.style.height = `${side}px`;
    marker.style.transform = `translate(${left - side / 2}px, ${top - side / 2}px)`;
  }
}
