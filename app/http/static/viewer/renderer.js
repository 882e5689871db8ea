/**
 * Keeps the canvases up to date: repaints what a change of the state affects, at most once a frame.
 *
 * A picture is one pane as pixels, at the size of a canvas. A slot is a canvas, which shows one picture,
 * or two that a divider separates: moving the divider repaints nothing.
 */

import { resolve } from "./camera.js";
import { Frame } from "./frame.js";
import { layersOf } from "./layers.js";
import { findOutline, paintOutline } from "./paint.js";
import { PANES, paneOf } from "./panes.js";
import { Raster } from "./raster.js";

/** Members of the state that move the image, and those that dim other pixels. */
const MOVES = ["scene", "camera"];
const SELECTS = ["shown", "cell", "isolated", "highlighted", "minNll", "maxConfidence"];

/** The picture that all slots show while the raw photo is asked for. */
const RAW = "raw";

export class Renderer {
  #store;
  #size = { width: 0, height: 0, ratio: 1 };
  #slots = [];
  #pictures = new Map();
  #versions = 0;
  #raster = new Raster();
  #frame = null;
  #isMoved = true;
  #isSelected = true;
  #isRaw = false;
  #region = null;
  #outline = null;
  #request = 0;
  #listeners = [];

  /** @param {import("../state.js").Store} store */
  constructor(store) {
    this.#store = store;
    store.on(MOVES, () => this.#markMoved());
    store.on(SELECTS, () => this.#markSelected());
    for (const { name, follows } of PANES) {
      if (follows.length) store.on(follows, () => this.#markStale([name]));
    }
    store.on(["slider"], () => this.request());
  }

  /**
   * Sets the canvases.
   * @param {{canvas: HTMLCanvasElement, names: string[]}[]} slots  with one or two panes each
   * @param {{width: number, height: number, ratio: number}} size  of each canvas, in device pixels
   */
  show(slots, size) {
    const names = slots.flatMap((slot) => slot.names);
    for (const name of [...this.#pictures.keys()]) {
      if (!names.includes(name)) this.#pictures.delete(name);
    }
    this.#slots = slots.map((slot) => ({ ...slot, context: slot.canvas.getContext("2d") }));
    const { width, height, ratio } = this.#size;
    if (size.width !== width || size.height !== height || size.ratio !== ratio) {
      this.#size = size;
      this.#pictures.clear();
      this.#markMoved();
    }
    for (const { canvas } of slots) {
      if (canvas.width !== size.width) canvas.width = size.width;
      if (canvas.height !== size.height) canvas.height = size.height;
    }
    this.request();
  }

  /** Shows the raw photo in place of every pane, where there is a photo. */
  showRaw(isRaw) {
    this.#isRaw = isRaw;
    this.request();
  }

  /**
   * Draws the outline of a region in every pane.
   * @param {?{ranks: Uint8Array, rank: number}} region
   */
  outline(region) {
    this.#region = region;
    this.#outline = null;
    this.#markStale();
  }

  /** Calls a function after each frame. */
  onFrame(listener) {
    this.#listeners.push(listener);
  }

  /** Draws in the next frame. */
  request() {
    if (!this.#request) this.#request = requestAnimationFrame(() => this.draw());
  }

  /** Draws now what has changed. */
  draw() {
    cancelAnimationFrame(this.#request);
    this.#request = 0;
    const { state } = this.#store;
    if (state.scene === null || this.#size.width < 1 || this.#size.height < 1) return;
    this.#prepare(state);
    for (const slot of this.#slots) this.#put(slot, state);
    for (const listener of this.#listeners) listener();
  }

  /** Copies pictures to a canvas, unless it shows them already. */
  #put(slot, state) {
    const { width, height } = this.#size;
    const isRaw = this.#isRaw && state.scene.photo !== null;
    const names = isRaw ? [RAW] : slot.names;
    const divider = names.length > 1 ? Math.round(width * state.slider.at) : width;
    const left = this.#picture(names[0], 0, divider);
    const right = names.length > 1 ? this.#picture(names[1], divider, width) : null;
    const shown = `${divider} ${left.version} ${right?.version}`;
    if (slot.shown === shown) return;
    slot.shown = shown;
    slot.context.putImageData(left.image, 0, 0, 0, 0, divider, height);
    if (right) slot.context.putImageData(right.image, 0, 0, divider, 0, width - divider, height);
  }

  /** Updates what all pictures share. */
  #prepare(state) {
    const layers = layersOf(state.scene);
    if (this.#isMoved) {
      const { width, height, ratio } = this.#size;
      const pane = { width: width / ratio, height: height / ratio };
      this.#raster.update(this.#size, resolve(state.camera, layers.image, pane), layers.image);
      this.#frame = new Frame(layers, state, this.#raster);
    } else if (this.#isSelected) {
      this.#frame.select(state);
    }
    this.#frame.state = state;
    this.#isMoved = this.#isSelected = false;
  }

  /**
   * Returns a pane of which the columns from `from` until `to` are painted.
   * @returns {{image: ImageData, version: number}} the version changes with the pixels
   */
  #picture(name, from, to) {
    const { width, height } = this.#size;
    let picture = this.#pictures.get(name);
    if (!picture) {
      const image = new ImageData(width, height);
      const pixels = new Int32Array(image.data.buffer);
      picture = { image, pixels, isStale: true, version: 0, from: 0, to: 0 };
      this.#pictures.set(name, picture);
    }
    if (picture.isStale || to < picture.from || from > picture.to) {
      this.#paint(name, picture.pixels, from, to);
      Object.assign(picture, { isStale: false, version: ++this.#versions, from, to });
      return picture;
    }
    // A divider that moves adds a strip to one of its panes.
    if (from < picture.from) {
      this.#paint(name, picture.pixels, from, picture.from);
      Object.assign(picture, { version: ++this.#versions, from });
    }
    if (to > picture.to) {
      this.#paint(name, picture.pixels, picture.to, to);
      Object.assign(picture, { version: ++this.#versions, to });
    }
    return picture;
  }

  #paint(name, pixels, from, to) {
    if (name === RAW) {
      pixels.set(this.#frame.photo);
      return;
    }
    this.#raster.from = from;
    this.#raster.count = to - from;
    paneOf(name).paint(this.#frame, pixels);
    if (this.#region === null) return;
    const { ranks, rank } = this.#region;
    this.#outline ??= findOutline(this.#raster, ranks, rank);
    paintOutline(pixels, this.#outline);
  }

  #markMoved() {
    this.#isMoved = true;
    this.#outline = null;
    this.#markStale();
  }

  #markSelected() {
    this.#isSelected = true;
    this.#markStale();
  }

  #markStale(names = [...this.#pictures.keys()]) {
    for (const name of names) {
      const picture = this.#pictures.get(name);
      if (picture) picture.isStale = true;
    }
    this.request();
  }
}
