/** The box around the cards of files. It closes when there is a scene, which needs the room. */

import { create } from "../dom.js";

export class FilesBox {
  #details;
  #summary;
  #names = create("span", { className: "file-names" });
  #hasScene = false;

  /** @param {HTMLDetailsElement} details  with a summary */
  constructor(details) {
    this.#details = details;
    this.#summary = details.querySelector("summary");
    this.#summary.append(this.#names);
  }

  /** @param {...Node} children */
  append(...children) {
    this.#details.append(...children);
  }

  /**
   * Names the files, and opens the box if a card needs attention.
   * @param {import("./files.js").Files} files
   * @param {boolean} needsAttention  whether an error or a note is about one of them
   */
  showFiles(files, needsAttention) {
    this.#names.textContent = [...new Set(files.all.map(({ name }) => name))].join(", ");
    if (files.unassigned.length || needsAttention) this.#details.open = true;
  }

  /** @param {?import("../types.js").Scene} scene */
  showScene(scene) {
    const hasScene = scene !== null;
    if (hasScene === this.#hasScene) return;
    this.#hasScene = hasScene;
    // The focus must not be in what is closed.
    if (hasScene && this.#details.contains(document.activeElement)) this.#summary.focus();
    this.#details.open = !hasScene;
  }
}
