/** Saves a pane as a PNG of the image's size. */

import { create } from "../dom.js";
import { Frame } from "./frame.js";
import { layersOf } from "./layers.js";
import { paneOf } from "./panes.js";
import { Raster } from "./raster.js";

/**
 * Paints a pane with one pixel for each pixel of the image, as the state dims and mixes it.
 * @param {string} name
 * @param {Readonly<import("../types.js").State>} state
 * @returns {ImageData}
 */
export function wholePicture(name, state) {
  const layers = layersOf(state.scene);
  const raster = Raster.ofWholeImage(layers.image);
  const image = new ImageData(raster.width, raster.height);
  paneOf(name).paint(new Frame(layers, state, raster), new Int32Array(image.data.buffer));
  return image;
}

/** @returns {string} the name of a pane's file, after the prediction's or the image's */
export function fileNameOf(name, state) {
  const { scene, shown } = state;
  const stems = scene.predictions.map((prediction) =>
    prediction.name.replace(/^.*[/\\]/, "").replace(/\.[^.]+$/, ""),
  );
  const subject = {
    photo: () => "",
    truth: () => "",
    better: () => stems.join("-vs-"),
    other: () => stems[1 - shown],
  };
  const stem = subject[name]?.() ?? stems[shown] ?? "";
  const index = scene.numImages > 1 ? `${scene.imageIndex}` : "";
  const kind = name === "other" ? "prediction" : name;
  return `${[stem, index, kind].filter((part) => part !== "").join("-")}.png`;
}

/** Saves a pane. */
export async function download(name, state) {
  const picture = wholePicture(name, state);
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  canvas.getContext("2d").putImageData(picture, 0, 0);
  const url = URL.createObjectURL(await canvas.convertToBlob({ type: "image/png" }));
  create("a", { href: url, download: fileNameOf(name, state) }).click();
  // The browser has begun to read it by then.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
