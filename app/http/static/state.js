/** The state of the page: one object that parts read, change and listen to. */

/** @typedef {import("./types.js").State} State */

/** @type {State} */
const INITIAL = {
  scene: null,
  shown: 0,
  options: {},
  problem: null,
  progress: null,
  camera: null,
  panes: ["photo", "truth", "prediction", "error", "nll", "confidence", "better"],
  opacity: 0.5,
  minNll: 0,
  maxConfidence: 1,
  errorColours: "plain",
  borderPx: 3,
  nllScale: "lnC",
  slider: null,
  hover: null,
  highlighted: null,
  isolated: null,
  cell: null,
};

export class Store {
  #state = { ...INITIAL };
  #listeners = [];

  /** @returns {Readonly<State>} */
  get state() {
    return this.#state;
  }

  /**
   * Changes some members. Listeners of members that differ are called once, before it returns.
   * @param {Partial<State>} changes
   */
  set(changes) {
    const changed = Object.keys(changes).filter((name) => this.#state[name] !== changes[name]);
    if (!changed.length) return;
    this.#state = { ...this.#state, ...changes };
    for (const { names, listener } of [...this.#listeners]) {
      if (names.some((name) => changed.includes(name))) listener(this.#state);
    }
  }

  /**
   * Calls a function whenever one of these members has changed.
   * @param {(keyof State)[]} names
   * @param {(state: Readonly<State>) => void} listener
   */
  on(names, listener) {
    this.#listeners.push({ names, listener });
  }
}
