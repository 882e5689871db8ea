/**
 * The answers to the requests that the files and options need, and the scene that they make.
 *
 * @typedef {import("../evaluation.js").Answer} Answer
 * @typedef {import("../types.js").Scene} Scene
 * @typedef {import("./computation.js").Call} Call
 * @typedef {import("./service.js").Service} Service
 */

import { sceneOf } from "../evaluation.js";
import { compute } from "./computation.js";

export class Answers {
  #service;
  /** @type {Answer[]} */
  #answers = [];
  /** @type {Call[]} */
  #calls = [];
  /** @type {Object<string, string>} */
  #options = {};

  /** @param {Service} service */
  constructor(service) {
    this.#service = service;
  }

  /**
   * Sends requests and keeps their answers, unless the signal has aborted them.
   * @param {Call[]} calls
   * @param {Object<string, string>} options
   * @param {{signal: AbortSignal, onProgress: (phase: string, fraction: ?number) => void}} control
   */
  async request(calls, options, control) {
    const answers = await compute(calls, options, this.#service, control);
    control.signal.throwIfAborted();
    this.#answers = answers;
    this.#calls = calls;
    this.#options = options;
  }

  forget() {
    this.#answers = [];
  }

  /** Returns whether the answers are those to these requests: another photo needs no request. */
  areFor(calls, options) {
    return options === this.#options && this.haveInputs(calls);
  }

  /** Returns whether the answers are about the inputs of these requests, with any options. */
  haveInputs(calls) {
    const isSame = ({ path, inputs }, index) => {
      const former = this.#calls[index];
      const names = Object.keys(inputs);
      return (
        path === former.path &&
        names.length === Object.keys(former.inputs).length &&
        names.every((name) => former.inputs[name] === inputs[name])
      );
    };
    const isComplete = this.#answers.length > 0 && calls.length === this.#calls.length;
    return isComplete && calls.every(isSame);
  }

  /**
   * Returns the scene of one image.
   * @param {number} imageIndex
   * @param {?ImageBitmap} photo
   * @returns {?Scene}  null without answers
   */
  scene(imageIndex, photo) {
    if (!this.#answers.length) return null;
    const text = this.#options.ignore_index ?? this.#service.defaultOf("ignore_index");
    return sceneOf(this.#answers, { imageIndex, photo, ignored: integersIn(text) });
  }
}

/** Returns the integers in an option like "255" or "0,255"; none in "none". */
function integersIn(text) {
  return (text.match(/[+-]?\d+/g) ?? []).map(Number);
}
