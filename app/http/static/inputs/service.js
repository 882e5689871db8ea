/**
 * What the service offers: its options, and the network that it serves.
 *
 * @typedef {object} Option
 * @property {string} name
 * @property {string} description
 * @property {object} schema  the JSON schema of the query parameter
 */

import { getJson } from "../requests.js";

export class Service {
  /** @type {Object<string, Option[]>} */
  #options = {};
  /** @type {?string} the name of the network for photos */
  networkName = null;

  /**
   * Asks the service. The page works without an answer, with fewer controls.
   * @throws {import("../requests.js").RequestError}
   */
  async load() {
    const [document, { model }] = await Promise.all([
      getJson("/openapi.json"),
      getJson("/v1/model"),
    ]);
    for (const path of ["/v1/evaluate", "/v1/predict"]) {
      this.#options[path] = document.paths[path].post.parameters;
    }
    this.networkName = model?.network ?? null;
  }

  /** Whether the service has said what it offers. */
  get isLoaded() {
    return this.optionsOf("/v1/evaluate").length > 0;
  }

  /**
   * Returns the options of a path.
   * @param {string} path  /v1/evaluate or /v1/predict
   * @returns {Option[]}
   */
  optionsOf(path) {
    return this.#options[path] ?? [];
  }

  /**
   * Returns the options that exist and, where an option is a choice, have one of its values. The
   * maps are none: the page chooses them.
   * @param {Object<string, string>} options
   */
  valid(options) {
    const entries = Object.entries(options).filter(([name, value]) => {
      const option = this.optionsOf("/v1/evaluate").find((entry) => entry.name === name);
      if (name === "maps") return false;
      return option?.schema.enum?.includes(value) ?? option !== undefined;
    });
    return Object.fromEntries(entries);
  }

  /**
   * Returns the default of an option of /v1/evaluate; "" if it has none.
   * @param {string} name
   */
  defaultOf(name) {
    const option = this.optionsOf("/v1/evaluate").find((entry) => entry.name === name);
    return String(option?.schema.default ?? "");
  }
}
