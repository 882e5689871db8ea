/**
 * The panes: mounts the viewer's parts and connects them.
 *
 * panes.js lists the panes, renderer.js keeps their canvases up to date, stage.js is one canvas with
 * its title and legend, and keys.js lists the shortcuts.
 */

import { create } from "../dom.js";
import * as cameras from "./camera.js";
import { Divider, dividerFits, dividerFor } from "./divider.js";
import { download } from "./download.js";
import { attachGestures } from "./gestures.js";
import { attachKeys } from "./keys.js";
import { deviceSize, layoutOf } from "./layout.js";
import { layersOf } from "./layers.js";
import { countLit, isSelective, selectionOf } from "./levels.js";
import { panesToShow } from "./panes.js";
import { describe, digits, nameOf, valuesAt } from "./pixel.js";
import { Regions } from "./regions.js";
import { Renderer } from "./renderer.js";
import { INSTRUCTIONS_ID, Stage } from "./stage.js";
import { Toolbar } from "./toolbar.js";
import { Tooltip } from "./tooltip.js";

/** The part of a pane that an arrow key moves the image by. */
const ARROW_SHARE = 0.1;
const FAST_CURSOR_PX = 10;
const ARROWS = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

/** Counting and describing wait until a control has been still for so long. */
const STILL_MS = 120;

const INSTRUCTIONS =
  "Arrow keys move the image, plus and minus enlarge and reduce it. Enter starts a cursor that " +
  "arrow keys move from pixel to pixel; Escape ends it.";

/**
 * @param {HTMLElement} viewer
 * @param {import("../state.js").Store} store
 */
export function mountViewer(viewer, store) {
  new Viewer(viewer, store);
}

class Viewer {
  #viewer;
  #store;
  #renderer;
  #toolbar;
  #divider;
  #regions;
  #tooltip = new Tooltip();
  #panes = create("div", { className: "viewer-panes" });
  #status = create("p", { className: "viewer-status" });
  #spoken = create("p", { className: "visually-hidden", "aria-live": "polite" });
  #litText = create("span", { role: "status" });
  #lit;
  /** @type {Map<string, Stage>} */
  #stages = new Map();
  /** @type {Stage[]} */
  #shown = [];
  #arrangement = "";
  /** Of each pane, in CSS pixels. */
  #size = { width: 0, height: 0 };
  #scene = null;
  #active = null;
  #pointed = null;
  #hasCursor = false;
  #panesBefore = null;
  #timers = new Map();

  constructor(viewer, store) {
    this.#viewer = viewer;
    this.#store = store;
    const actions = this.#actions();
    this.#renderer = new Renderer(store);
    this.#toolbar = new Toolbar(store, actions);
    this.#divider = new Divider(store);
    this.#regions = new Regions(store, {
      visit: (region) => this.#visit(region),
      outline: (region) => this.#renderer.outline(region),
    });
    this.#lit = create(
      "p",
      { className: "viewer-lit", hidden: true },
      this.#litText,
      " ",
      create("button", { type: "button", onclick: () => this.#lightAll() }, "Light all"),
    );
    viewer.append(
      this.#toolbar.element,
      create("p", { id: INSTRUCTIONS_ID, className: "visually-hidden" }, INSTRUCTIONS),
      this.#panes,
      this.#divider.element,
      create("div", { className: "viewer-foot" }, this.#status, this.#lit),
      this.#spoken,
      this.#regions.element,
      this.#tooltip.element,
    );
    attachKeys(viewer, actions);
    this.#listen();
  }

  #listen() {
    const store = this.#store;
    store.on(["scene"], () => this.#changeScene());
    store.on(["scene", "shown", "panes"], () => this.#arrange());
    store.on(["slider"], () => this.#changeSlider());
    store.on(["scene", "shown", "isolated", "errorColours", "borderPx", "nllScale"], () =>
      this.#updateStages(),
    );
    const selecting = ["minNll", "maxConfidence", "isolated", "cell"];
    store.on(["scene", "shown", ...selecting], () => this.#later("lit", () => this.#countLit()));
    store.on(["hover", "camera"], () => this.#pointOut());
    this.#renderer.onFrame(() => {
      this.#toolbar.showScale(this.#camera.scale);
      this.#pointOut();
    });
    new ResizeObserver(() => this.#arrange()).observe(this.#panes);
    window.addEventListener("resize", () => this.#arrange());
  }

  // What keys and buttons do.
  #actions() {
    const store = this.#store;
    const clip = (value) => Math.min(Math.max(value, 0), 1);
    return {
      togglePane: (name) => this.#togglePane(name),
      toggleAlone: (name = this.#active?.names[0] ?? this.#shown[0]?.names[0]) =>
        this.#toggleAlone(name),
      zoomBy: (factor) => this.#zoomBy(factor),
      fit: () => store.set({ camera: null }),
      fade: (by) => {
        const opacity = Math.round(100 * clip(store.state.opacity + by)) / 100;
        store.set({ opacity });
      },
      toggleSlider: () => this.#toggleSlider(),
      moveDivider: (by) => {
        const { slider } = store.state;
        if (slider) store.set({ slider: { ...slider, at: clip(slider.at + by) } });
      },
      toggleErrorColours: () => {
        const errorColours = store.state.errorColours === "plain" ? "kinds" : "plain";
        store.set({ errorColours });
      },
      stepRegion: (by) => this.#regions.step(by),
      swap: () => {
        const { scene, shown } = store.state;
        if (scene?.predictions.length > 1) store.set({ shown: 1 - shown });
      },
      escape: () => {
        if (this.#hasCursor) this.#endCursor();
        else this.#lightAll();
      },
      showRaw: (isRaw) => this.#renderer.showRaw(isRaw),
      refuse: (text) => this.#say(text),
      download: (name) => download(name, store.state),
    };
  }

  get #camera() {
    const { camera, scene } = this.#store.state;
    return cameras.resolve(camera, scene, this.#size);
  }

  #changeScene() {
    const { scene } = this.#store.state;
    const before = this.#scene;
    this.#scene = scene;
    this.#hasCursor = false;
    const isOtherSize =
      before !== null &&
      (scene === null || scene.width !== before.width || scene.height !== before.height);
    const count = scene?.predictions.length ?? 0;
    const { shown } = this.#store.state;
    this.#store.set({
      hover: null,
      ...(isOtherSize ? { camera: null } : {}),
      ...(shown > 0 && shown >= count ? { shown: 0 } : {}),
    });
  }

  /** A divider that moves leaves the canvases where they are. */
  #changeSlider() {
    const { state } = this.#store;
    const names = state.slider && `${state.slider.left} ${state.slider.right}`;
    if (names !== null && names === this.#shown[0]?.names.join(" ")) this.#divider.update(state);
    else this.#arrange();
  }

  /** Puts the canvases that the state asks for in their places. */
  #arrange() {
    const { state } = this.#store;
    if (state.scene === null) return;
    if (state.slider !== null && !dividerFits(state)) {
      this.#store.set({ slider: dividerFor(state) });
      return;
    }
    const { slider } = state;
    const slots = slider ? [[slider.left, slider.right]] : panesToShow(state).map((name) => [name]);
    this.#shown = slots.map((names) => this.#stageOf(names));
    if (this.#active !== null && !this.#shown.includes(this.#active)) {
      // A pane that is removed gets no event when the pointer leaves its place.
      this.#active = null;
      this.#endCursor();
    }
    const arrangement = slots.join(" ");
    if (arrangement !== this.#arrangement) {
      this.#arrangement = arrangement;
      this.#panes.replaceChildren(...this.#shown.map(({ element }) => element));
      this.#updateStages();
    }
    this.#divider.element.hidden = slider === null;
    this.#divider.update(state);
    if (slider) this.#divider.attach(this.#shown[0].stage);
    this.#resize(state.scene);
  }

  #resize(scene) {
    const ratio = devicePixelRatio;
    const width = this.#panes.clientWidth;
    if (width < 1) return;
    const layout = layoutOf(this.#shown.length, scene, width, innerHeight);
    const size = deviceSize(layout, ratio);
    this.#size = { width: size.width / ratio, height: size.height / ratio };
    this.#panes.style.setProperty("--viewer-columns", layout.columns);
    for (const stage of this.#shown) stage.resize(this.#size);
    this.#renderer.show(this.#shown, size);
    this.#viewer.classList.toggle("viewer-zoomed", this.#store.state.camera !== null);
  }

  #stageOf(names) {
    const key = names.length > 1 ? "divided" : names[0];
    let stage = this.#stages.get(key);
    if (!stage) {
      stage = new Stage(names, {
        toggleAlone: (name) => this.#toggleAlone(name),
        download: (name) => download(name, this.#store.state),
      });
      this.#stages.set(key, stage);
      this.#attach(stage);
    }
    stage.names = names;
    return stage;
  }

  #attach(stage) {
    const element = stage.stage;
    attachGestures(element, {
      pan: (right, down) => this.#move((...view) => cameras.pan(...view, right, down)),
      zoom: (...by) => this.#move((...view) => cameras.zoom(...view, ...by)),
      point: (left, top) => this.#point(stage, left, top),
      leave: () => {
        if (!this.#hasCursor) this.#store.set({ hover: null });
      },
    });
    element.addEventListener("focus", () => {
      if (!this.#hasCursor) this.#active = stage;
    });
    element.addEventListener("blur", () => {
      if (this.#hasCursor) this.#endCursor();
    });
    element.addEventListener("keydown", (event) => this.#press(stage, event));
  }

  #updateStages() {
    const { state } = this.#store;
    if (state.scene === null) return;
    for (const stage of this.#shown) stage.update(state);
    this.#later("summaries", () => {
      for (const stage of this.#shown) stage.summarize(this.#store.state);
    });
  }

  /** Calls a function once nothing has asked for it for a while. */
  #later(name, run) {
    clearTimeout(this.#timers.get(name));
    const check = () => {
      if (this.#store.state.scene !== null) run();
    };
    this.#timers.set(name, setTimeout(check, STILL_MS));
  }

  #move(change) {
    const { scene } = this.#store.state;
    if (scene === null || this.#size.width < 1) return;
    this.#store.set({ camera: change(this.#camera, scene, this.#size) });
    this.#viewer.classList.toggle("viewer-zoomed", this.#store.state.camera !== null);
  }

  /** Zooms at the cursor or the pointer, or else at the centre. */
  #zoomBy(factor) {
    const { hover } = this.#store.state;
    const { width, height } = this.#size;
    this.#move((camera, image, pane) => {
      const at = hover && cameras.toPane(camera, pane, hover.x + 0.5, hover.y + 0.5);
      const { left, top } = at ?? { left: width / 2, top: height / 2 };
      return cameras.zoom(camera, image, pane, factor, left, top);
    });
  }

  #point(stage, left, top) {
    this.#active = stage;
    this.#hasCursor = false;
    this.#setHover(cameras.pixelAt(this.#camera, this.#store.state.scene, this.#size, left, top));
  }

  #setHover(pixel) {
    const { hover } = this.#store.state;
    if (pixel && hover && pixel.x === hover.x && pixel.y === hover.y) return;
    this.#store.set({ hover: pixel });
  }

  /** Shows tooltip, markers and status line for the pixel of the state. */
  #pointOut() {
    const { hover, scene } = this.#store.state;
    if (scene === null || this.#size.width < 1) return;
    const camera = this.#camera;
    for (const stage of this.#shown) {
      stage.mark(hover, camera, this.#size);
    }
    const stage = this.#active;
    if (hover === null) {
      this.#tooltip.hide();
      // What #say has written stays.
      if (this.#pointed !== null) this.#status.textContent = "";
      this.#pointed = null;
      return;
    }
    if (this.#pointed !== hover) {
      this.#pointed = hover;
      const text = describe(scene, valuesAt(scene, hover));
      this.#status.textContent = text;
      if (this.#hasCursor) this.#later("spoken", () => this.#say(text));
    }
    if (stage === null) {
      this.#tooltip.hide();
      return;
    }
    const { left, top } = cameras.toPane(camera, this.#size, hover.x + 0.5, hover.y + 0.5);
    const box = stage.stage.getBoundingClientRect();
    this.#tooltip.show(scene, hover, { left: box.left + left, top: box.top + top });
  }

  /** Has a screen reader read a text. */
  #say(text) {
    if (this.#spoken.textContent !== text) this.#spoken.textContent = text;
    if (!this.#store.state.hover) this.#status.textContent = text;
  }

  /** A key in a pane: arrows move the image, or the cursor once Enter has started it. */
  #press(stage, event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter") {
      event.preventDefault();
      if (this.#hasCursor) this.#endCursor();
      else this.#startCursor(stage);
      return;
    }
    const arrow = ARROWS[event.key];
    if (!arrow) return;
    event.preventDefault();
    const [right, down] = arrow;
    if (this.#hasCursor) {
      this.#moveCursor(right, down, event.shiftKey ? FAST_CURSOR_PX : 1);
    } else {
      const { width, height } = this.#size;
      const by = [-right * width * ARROW_SHARE, -down * height * ARROW_SHARE];
      this.#move((...view) => cameras.pan(...view, ...by));
    }
  }

  #startCursor(stage) {
    const { scene, hover } = this.#store.state;
    const { width, height } = this.#size;
    this.#hasCursor = true;
    this.#active = stage;
    const centre = cameras.pixelAt(this.#camera, scene, this.#size, width / 2, height / 2);
    // The pixel is described again, this time for screen readers.
    this.#pointed = null;
    this.#store.set({ hover: { ...(hover ?? centre ?? { x: 0, y: 0 }) } });
  }

  #endCursor() {
    this.#hasCursor = false;
    this.#store.set({ hover: null });
  }

  #moveCursor(right, down, by) {
    const { hover, scene } = this.#store.state;
    const within = (value, size) => Math.min(Math.max(value, 0), size - 1);
    const pixel = {
      x: within(hover.x + right * by, scene.width),
      y: within(hover.y + down * by, scene.height),
    };
    const { left, top } = cameras.toPane(this.#camera, this.#size, pixel.x + 0.5, pixel.y + 0.5);
    const { width, height } = this.#size;
    const isVisible = left >= 0 && top >= 0 && left <= width && top <= height;
    if (!isVisible) {
      this.#move((camera, image, pane) =>
        cameras.clamp({ ...camera, x: pixel.x + 0.5, y: pixel.y + 0.5 }, image, pane),
      );
    }
    this.#setHover(pixel);
  }

  #togglePane(name) {
    const { panes, slider, scene } = this.#store.state;
    if (scene === null) return;
    const changed = panes.includes(name) ? panes.filter((pane) => pane !== name) : [...panes, name];
    // Panes that were chosen are wanted side by side.
    this.#store.set({ panes: changed, ...(slider ? { slider: null } : {}) });
  }

  #toggleAlone(name) {
    if (!name) return;
    const { panes } = this.#store.state;
    const isAlone = this.#shown.length === 1 && this.#shown[0].names[0] === name;
    if (isAlone) this.#store.set({ panes: this.#panesBefore ?? panes, slider: null });
    else {
      this.#panesBefore = panes;
      this.#store.set({ panes: [name], slider: null });
    }
  }

  #toggleSlider() {
    const { state } = this.#store;
    if (state.scene === null) return;
    const slider = state.slider === null ? dividerFor(state) : null;
    if (slider === null && state.slider === null) this.#say("There are no two panes to compare.");
    this.#store.set({ slider });
  }

  #visit(region) {
    const { scene } = this.#store.state;
    this.#move((camera, image, pane) => cameras.around(region, image, pane));
    this.#reveal();
    const [truth, predicted] = [region.truth, region.predicted].map((k) => nameOf(scene, k));
    const nll = region.nll === null ? "" : `, NLL ${digits(region.nll)} nats in sum`;
    this.#say(`Region ${region.rank}: ${truth} predicted as ${predicted}, ${region.pixels} pixels${nll}.`);
  }

  /** Scrolls to the panes if none is in the window. */
  #reveal() {
    const isVisible = this.#shown.some(({ stage }) => {
      const { top, bottom } = stage.getBoundingClientRect();
      return bottom > 0 && top < innerHeight;
    });
    if (!isVisible) this.#shown[0]?.stage.scrollIntoView({ block: "center" });
  }

  #lightAll() {
    this.#store.set({ cell: null, isolated: null, minNll: 0, maxConfidence: 1 });
    this.#regions.choose(-1);
  }

  #countLit() {
    const { state } = this.#store;
    const { scene, cell, isolated } = state;
    const selection = selectionOf(layersOf(scene), state);
    this.#lit.hidden = !isSelective(selection);
    if (this.#lit.hidden) return;
    const count = countLit(selection, scene.width * scene.height);
    const what = [];
    if (selection.cell) {
      const [truth, predicted] = [cell.truth, cell.predicted].map((k) => nameOf(scene, k));
      what.push(`truth ${truth} and prediction ${predicted}`);
    }
    if (isolated !== null) what.push(`truth or prediction ${nameOf(scene, isolated)}`);
    if (selection.nll) what.push(`NLL of at least ${digits(state.minNll)} nats`);
    if (selection.confidence) what.push(`confidence of at most ${digits(state.maxConfidence)}`);
    const noun = count === 1 ? "pixel is" : "pixels are";
    this.#litText.textContent = `${count.toLocaleString("en")} ${noun} lit: ${what.join(", ")}.`;
  }
}
