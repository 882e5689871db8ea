/** The buttons below the files, and the choice of the image that is shown of a batch. */

import { create } from "../dom.js";

const COPIED_MS = 2000;
const REVOKE_MS = 10_000;

export class Toolbar {
  element = create("div", { className: "toolbar" });
  #sample;
  #predict;
  #download;
  #link;
  #images;
  #scene = null;
  #shown = 0;

  /**
   * @param {object} actions
   * @param {() => void} actions.sample
   * @param {() => void} actions.predict
   * @param {(imageIndex: number) => void} actions.chooseImage
   */
  constructor({ sample, predict, chooseImage }) {
    const button = (text, onclick) => create("button", { type: "button", onclick }, text);
    this.#sample = button("Sample", sample);
    this.#predict = button("Predict", predict);
    this.#predict.hidden = true;
    this.#download = button("Download JSON", () => this.#downloadJson());
    this.#link = button("Copy link", () => this.#copyLink());
    this.#images = create("select", { "aria-label": "Image of the batch" });
    this.#images.addEventListener("change", () => chooseImage(Number(this.#images.value)));
    const { element } = this;
    element.append(this.#sample, this.#predict, this.#images, this.#download, this.#link);
    this.show(null, 0);
  }

  /** @param {?string} name  of the network that the service has */
  showNetwork(name) {
    this.#predict.hidden = name === null;
    this.#predict.textContent = `Predict with ${name}`;
  }

  /** @param {import("./files.js").Files} files */
  showFiles({ byRole }) {
    this.#predict.disabled = byRole.photo === null;
    this.#predict.title = this.#predict.disabled ? "Choose a photo first" : "";
  }

  /**
   * @param {?import("../types.js").Scene} scene
   * @param {number} shown
   */
  show(scene, shown) {
    this.#scene = scene;
    this.#shown = shown;
    this.#download.hidden = scene === null;
    this.#link.hidden = scene === null;
    this.#sample.classList.toggle("primary", scene === null);
    const numImages = scene?.numImages ?? 1;
    this.#images.hidden = numImages < 2;
    if (this.#images.length !== numImages) {
      const indices = [...Array(numImages).keys()];
      const option = (value) => create("option", { value }, `Image ${value + 1} of ${numImages}`);
      this.#images.replaceChildren(...indices.map(option));
    }
    this.#images.value = `${scene?.imageIndex ?? 0}`;
  }

  #downloadJson() {
    const { name, answer } = this.#scene.predictions[this.#shown];
    const blob = new Blob([JSON.stringify(answer, null, 1)], { type: "application/json" });
    const href = URL.createObjectURL(blob);
    create("a", { href, download: `${name.replace(/\.\w+$/, "")}.json` }).click();
    // The browser has begun to read it by then.
    setTimeout(() => URL.revokeObjectURL(href), REVOKE_MS);
  }

  async #copyLink() {
    let text = "Link copied";
    try {
      await navigator.clipboard.writeText(location.href);
    } catch {
      // Without https or permission, the address bar still has the link.
      text = "Copy it from the address bar";
    }
    this.#link.textContent = text;
    setTimeout(() => {
      this.#link.textContent = "Copy link";
    }, COPIED_MS);
  }
}
