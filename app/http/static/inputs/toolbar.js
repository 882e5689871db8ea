/** The buttons below the files, and the choices of the prediction and the image that are shown. */

import { create } from "../dom.js";

const COPIED_MS = 2000;

export class Toolbar {
  #sample;
  #predict;
  #download;
  #link;
  #predictions;
  #images;
  #scene = null;
  #shown = 0;

  /**
   * @param {HTMLElement} element  filled with the controls
   * @param {object} actions
   * @param {() => void} actions.sample
   * @param {() => void} actions.predict
   * @param {(shown: number) => void} actions.choosePrediction
   * @param {(imageIndex: number) => void} actions.chooseImage
   * @param {() => string} actions.link  returns the address of what is shown
   */
  constructor(element, { sample, predict, choosePrediction, chooseImage, link }) {
    const button = (text, onclick) => create("button", { type: "button", onclick }, text);
    this.#sample = button("Sample", sample);
    this.#predict = button("Predict", predict);
    this.#predict.hidden = true;
    this.#download = button("Download JSON", () => this.#downloadJson());
    this.#link = button("Copy link", () => this.#copyLink(link()));
    this.#predictions = create("div", { className: "choice", role: "group", "aria-label": "Prediction shown" });
    this.#predictions.addEventListener("click", ({ target }) => {
      if (target.value) choosePrediction(Number(target.value));
    });
    this.#images = create("div", { className: "choice", role: "group", "aria-label": "Image of the batch" });
    this.#images.addEventListener("change", ({ target }) => chooseImage(Number(target.value)));
    element.append(this.#sample, this.#predict, this.#predictions, this.#images, this.#download, this.#link);
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
    const predictions = scene?.predictions ?? [];
    this.#predictions.hidden = predictions.length < 2;
    this.#predictions.replaceChildren(
      ...predictions.map(({ name }, index) =>
        create(
          "button",
          { type: "button", value: `${index}`, title: name, "aria-pressed": `${index === shown}` },
          `${"AB"[index]}: ${name}`,
        ),
      ),
    );
    const numImages = scene?.numImages ?? 1;
    this.#images.hidden = numImages < 2;
    if (numImages < 2) return;
    const select = create("select", { "aria-label": "Image of the batch" });
    for (let index = 0; index < numImages; index++) {
      select.append(create("option", { value: `${index}` }, `Image ${index} of ${numImages}`));
    }
    select.value = `${scene.imageIndex}`;
    this.#images.replaceChildren(select);
  }

  #downloadJson() {
    const { name, answer } = this.#scene.predictions[this.#shown];
    const blob = new Blob([JSON.stringify(answer, null, 1)], { type: "application/json" });
    const href = URL.createObjectURL(blob);
    create("a", { href, download: `${name.replace(/\.\w+$/, "")}.json` }).click();
    URL.revokeObjectURL(href);
  }

  async #copyLink(address) {
    let text = "Link copied";
    try {
      await navigator.clipboard.writeText(address);
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
