/** What the panes are painted from: the arrays of a scene, and what follows from them. */

import { nearBoundary } from "./boundary.js";
import { pack } from "./colours.js";
import { percentile } from "./percentile.js";
import { Photo } from "./photo.js";

/** @type {WeakMap<import("../types.js").Scene, Layers>} */
const LAYERS = new WeakMap();

/** @returns {Layers} the layers of a scene, the same ones each time */
export function layersOf(scene) {
  if (!LAYERS.has(scene)) LAYERS.set(scene, new Layers(scene));
  return LAYERS.get(scene);
}

class Layers {
  #values = new Map();

  constructor(scene) {
    this.scene = scene;
    this.image = { width: scene.width, height: scene.height };
    this.numClasses = scene.numClasses;
    this.truth = scene.truth;
    this.lnC = Math.log(scene.numClasses);
    const { colours, ignoreColour } = scene;
    /** One for each class, and the ignored colour behind them. */
    this.colours = new Int32Array(scene.numClasses + 1);
    for (let k = 0; k < scene.numClasses; k++) {
      this.colours[k] = pack(colours[3 * k], colours[3 * k + 1], colours[3 * k + 2]);
    }
    this.colours[scene.numClasses] = pack(...ignoreColour);
  }

  /** @returns {?Photo} */
  get photo() {
    const { photo } = this.scene;
    return photo && this.#once("photo", () => new Photo(photo, this.image));
  }

  /**
   * Returns the classes of a prediction. Values that are no class, such as 255 in a label map, become
   * the number of classes.
   * @returns {?Int32Array}
   */
  classes(which) {
    const prediction = this.scene.predictions[which];
    if (!prediction) return null;
    return this.#once(`classes ${which}`, () => {
      const classes = Int32Array.from(prediction.classes);
      for (let i = 0; i < classes.length; i++) {
        if (classes[i] < 0 || classes[i] > this.numClasses) classes[i] = this.numClasses;
      }
      return classes;
    });
  }

  /** @returns {?Uint8Array} 1 at pixels within a distance of a true boundary */
  nearBoundary(distance) {
    if (!this.truth) return null;
    const { width, height } = this.image;
    return this.#once(`boundary ${distance}`, () =>
      nearBoundary(this.truth, width, height, distance),
    );
  }

  /** @returns {number} the NLL that has the last colour */
  nllTop(which, scale) {
    const nll = this.scene.predictions[which]?.nll;
    if (scale === "lnC" || !nll) return this.lnC;
    const top = this.#once(`nll ${which}`, () => percentile(nll, this.truth, 0.99));
    return top > 0 ? top : this.lnC;
  }

  /** @returns {boolean} whether two predictions have an NLL each */
  get comparesNll() {
    const { predictions } = this.scene;
    return predictions.length > 1 && predictions.every((prediction) => prediction.nll !== null);
  }

  /** @returns {number} the difference of two NLLs that has the last colour */
  differenceTop(scale) {
    if (!this.comparesNll) return 1;
    if (scale === "lnC") return this.lnC;
    const top = this.#once("difference", () => {
      const [first, second] = this.scene.predictions.map(({ nll }) => nll);
      const difference = Float32Array.from(first, (value, i) => Math.abs(value - second[i]) || 0);
      return percentile(difference, this.truth, 0.99);
    });
    return top > 0 ? top : this.lnC;
  }

  /** @returns {number} the number of pixels that are not ignored */
  get validPixels() {
    return this.#once("valid", () => {
      let count = 0;
      for (const label of this.truth ?? []) count += label >= 0;
      return count;
    });
  }

  /** Computes a value when it is first asked for. */
  #once(key, compute) {
    if (!this.#values.has(key)) this.#values.set(key, compute());
    return this.#values.get(key);
  }
}
