/** What the panes share while they are painted. */

import { classLevels, computeLevels, selectionOf } from "./levels.js";

export class Frame {
  #photo = null;

  /**
   * @param {import("./layers.js").Layers} layers
   * @param {Readonly<import("../types.js").State>} state
   * @param {import("./raster.js").Raster} raster
   */
  constructor(layers, state, raster) {
    this.layers = layers;
    this.state = state;
    this.raster = raster;
    this.select(state);
  }

  /** Computes which pixels are dimmed. */
  select(state) {
    this.state = state;
    const selection = selectionOf(this.layers, state);
    const { index } = this.raster;
    /** The levels of panes that show classes, which dim by classLevels besides. */
    this.common ??= new Uint8Array(index.length);
    /** The levels of the other panes. */
    this.levels = computeLevels(selection, index, this.common);
    this.classLevels = classLevels(selection, this.layers.numClasses);
  }

  /** @returns {Int32Array} the photo as the raster shows it */
  get photo() {
    this.#photo ??= this.layers.photo.at(this.raster);
    return this.#photo;
  }
}
