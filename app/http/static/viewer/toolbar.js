/** The controls above the panes. */

import { create } from "../dom.js";
import { layersOf } from "./layers.js";
import { PANES, paneOf } from "./panes.js";
import { digits, percent } from "./pixel.js";

const MAX_BORDER_PX = 20;

export class Toolbar {
  #store;
  #actions;
  #toggles = new Map();
  #scale = create("output", { className: "viewer-zoom-value" });
  #slider;
  #opacity;
  #minNll;
  #maxConfidence;
  #errorColours;
  #border;
  #nllScale;

  /**
   * @param {import("../state.js").Store} store
   * @param {object} actions  as those of the keys, and `refuse`, which says why a pane is not there
   */
  constructor(store, actions) {
    this.#store = store;
    this.#actions = actions;
    this.element = create(
      "div",
      { className: "viewer-toolbar" },
      create("div", { className: "viewer-row" }, this.#paneGroup(), this.#viewGroup()),
      create("div", { className: "viewer-row" }, ...this.#ranges(), ...this.#choices()),
    );
    const members = ["scene", "shown", "panes", "slider", "opacity", "minNll", "maxConfidence"];
    store.on([...members, "errorColours", "borderPx", "nllScale"], () => this.#update());
  }

  /** Shows the enlargement, in CSS pixels for each pixel of the image. */
  showScale(scale) {
    this.#scale.textContent = `${Math.round(100 * scale)} %`;
  }

  #paneGroup() {
    const group = create("div", {
      className: "viewer-group viewer-toggles",
      role: "group",
      "aria-label": "Panes",
    });
    PANES.forEach((pane, i) => {
      const toggle = create(
        "button",
        {
          type: "button",
          title: pane.means,
          "aria-pressed": "false",
          onclick: () => this.#press(pane),
        },
        pane.title,
        create("kbd", { "aria-hidden": "true" }, `${i + 1}`),
      );
      this.#toggles.set(pane.name, toggle);
      group.append(toggle);
    });
    return group;
  }

  #press(pane) {
    const { scene, shown } = this.#store.state;
    const lacks = pane.lacks(scene, shown);
    if (lacks) this.#actions.refuse(`${pane.title}: ${lacks}`);
    else this.#actions.togglePane(pane.name);
  }

  #viewGroup() {
    const { zoomBy, fit, toggleSlider } = this.#actions;
    this.#slider = create(
      "button",
      { type: "button", "aria-pressed": "false", onclick: () => toggleSlider() },
      "Compare two",
    );
    return create(
      "div",
      { className: "viewer-group", role: "group", "aria-label": "View" },
      create(
        "button",
        { type: "button", "aria-label": "Reduce", onclick: () => zoomBy(1 / 1.5) },
        "−",
      ),
      this.#scale,
      create("button", { type: "button", "aria-label": "Enlarge", onclick: () => zoomBy(1.5) }, "+"),
      create("button", { type: "button", onclick: () => fit() }, "Fit"),
      this.#slider,
    );
  }

  #ranges() {
    this.#opacity = this.#range("Opacity", "opacity", 1, 0.01);
    this.#minNll = this.#range("NLL from", "minNll", 1, 0.01);
    this.#maxConfidence = this.#range("Confidence up to", "maxConfidence", 1, 0.01);
    return [this.#opacity, this.#minNll, this.#maxConfidence].map(({ element }) => element);
  }

  #range(text, member, max, step) {
    const input = create("input", {
      type: "range",
      min: 0,
      max,
      step,
      oninput: () => this.#store.set({ [member]: Number(input.value) }),
    });
    const output = create("output");
    const element = create("label", { className: "viewer-field viewer-range" }, text, input, output);
    return { element, input, output };
  }

  #choices() {
    const set = (changes) => this.#store.set(changes);
    this.#errorColours = create(
      "select",
      { onchange: ({ target }) => set({ errorColours: target.value }) },
      create("option", { value: "plain" }, "all alike"),
      create("option", { value: "kinds" }, "by kind"),
    );
    this.#border = create("input", {
      type: "number",
      min: 1,
      max: MAX_BORDER_PX,
      onchange: ({ target }) => {
        const borderPx = Math.round(Math.min(Math.max(Number(target.value) || 1, 1), MAX_BORDER_PX));
        target.value = borderPx;
        set({ borderPx });
      },
    });
    this.#nllScale = create(
      "select",
      { onchange: ({ target }) => set({ nllScale: target.value }) },
      create("option", { value: "lnC" }, "ln C"),
      create("option", { value: "auto" }, "99th percentile"),
    );
    return [
      create("label", { className: "viewer-field" }, "Errors", this.#errorColours),
      create("label", { className: "viewer-field" }, "Boundary px", this.#border),
      create("label", { className: "viewer-field" }, "NLL up to", this.#nllScale),
    ];
  }

  #update() {
    const { state } = this.#store;
    const { scene, shown } = state;
    if (scene === null) return;
    for (const [name, toggle] of this.#toggles) {
      const pane = paneOf(name);
      const lacks = pane.lacks(scene, shown);
      toggle.setAttribute("aria-disabled", `${lacks !== null}`);
      toggle.setAttribute("aria-pressed", `${lacks === null && state.panes.includes(name)}`);
      toggle.title = lacks ?? pane.means;
      // A pane of two predictions is no pane that is missing from one.
      toggle.hidden = ["better", "other"].includes(name) && scene.predictions.length < 2;
    }
    this.#slider.setAttribute("aria-pressed", `${state.slider !== null}`);
    this.#updateRanges(state);
    this.#errorColours.value = state.errorColours;
    this.#border.value = state.borderPx;
    this.#border.parentElement.hidden = state.errorColours !== "kinds";
    this.#errorColours.parentElement.hidden = paneOf("error").lacks(scene, shown) !== null;
    this.#nllScale.value = state.nllScale;
    this.#nllScale.parentElement.hidden = paneOf("nll").lacks(scene, shown) !== null;
  }

  #updateRanges(state) {
    const { scene, shown } = state;
    const prediction = scene.predictions[shown];
    const { lnC } = layersOf(scene);
    // Above ln C a pixel is worse than a guess; twice that is beyond all but the worst.
    const step = 0.05;
    this.#minNll.input.max = Math.ceil((2 * lnC) / step) * step;
    this.#minNll.input.step = step;
    const rows = [
      [this.#opacity, state.opacity, percent(state.opacity), scene.photo],
      [this.#minNll, state.minNll, `${digits(state.minNll)} nats`, prediction?.nll],
      [
        this.#maxConfidence,
        state.maxConfidence,
        digits(state.maxConfidence),
        prediction?.confidence,
      ],
    ];
    for (const [{ element, input, output }, value, text, data] of rows) {
      element.hidden = !data;
      // The value that is being dragged is the input's own.
      if (Number(input.value) !== value) input.value = value;
      output.textContent = text;
    }
  }
}
