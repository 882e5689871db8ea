/**
 * The link to what is shown: options, zoom and panes in the hash of the address, but no files.
 *
 *     #o.label_space=ade_zero&zoom=2,100.5,60&panes=photo,error&opacity=0.5&file=gt.png
 *
 * A link may come from anyone: each value is checked, and invalid ones are ignored.
 *
 * @typedef {import("./types.js").State} State
 */

import { PANES } from "./viewer/panes.js";

const PANE_NAMES = PANES.map(({ name }) => name);
const NUMBER = /^\d{1,7}(\.\d{1,6})?$/;
const OPTION_NAME = /^[a-z][a-z_]{0,39}$/;
const OPTION_VALUE = /^[\w.,+ -]{1,200}$/;
const MAX_CHARACTERS = 4000;
const MAX_FILES = 4;
const MAX_NAME_CHARACTERS = 120;

/** The members of the state that a link restores. */
const LINKED = [
  "options",
  "camera",
  "panes",
  "opacity",
  "minNll",
  "maxConfidence",
  "errorColours",
  "borderPx",
  "nllScale",
  "slider",
  "shown",
];
const ERROR_COLOURS = ["plain", "kinds"];
const NLL_SCALES = ["lnC", "auto"];
const MAX_BORDER_PX = 100;
const DELAY_MS = 300;

/**
 * Keeps the hash of the address up to date. A browser limits how often it may change.
 * @param {import("./state.js").Store} store
 * @param {() => string[]} fileNames  returns the names of the files that the link is about
 */
export function keepLink(store, fileNames) {
  let timer = null;
  store.on([...LINKED, "scene"], () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      history.replaceState(null, "", hashOf(store.state, fileNames()));
    }, DELAY_MS);
  });
}

/**
 * Returns the hash for a state.
 * @param {Readonly<State>} state
 * @param {string[]} fileNames
 */
export function hashOf(state, fileNames) {
  const { options, camera, panes, opacity, minNll, maxConfidence, slider, shown } = state;
  const { errorColours, borderPx, nllScale } = state;
  const entries = Object.entries(options).map(([name, value]) => [`o.${name}`, value]);
  if (camera !== null) entries.push(["zoom", [camera.scale, camera.x, camera.y].map(rounded)]);
  entries.push(["panes", panes], ["opacity", rounded(opacity)]);
  entries.push(["nll", rounded(minNll)], ["confidence", rounded(maxConfidence)]);
  entries.push(["errors", errorColours], ["border", borderPx], ["scale", nllScale]);
  if (slider !== null) entries.push(["slider", [slider.left, slider.right, rounded(slider.at)]]);
  if (shown === 1) entries.push(["shown", "1"]);
  for (const name of fileNames) entries.push(["file", name.slice(0, MAX_NAME_CHARACTERS)]);
  const texts = entries.map(([name, value]) => [name, String(value)]);
  return `#${new URLSearchParams(texts)}`.replaceAll("%2C", ",");
}

/**
 * Returns the valid members of the state in a hash, and the names of files that it is about.
 * @param {string} hash
 * @returns {{state: Partial<State>, fileNames: string[]}}
 */
export function parseHash(hash) {
  const parameters = new URLSearchParams(hash.slice(1, MAX_CHARACTERS));
  const state = {};
  const put = (name, value) => {
    if (value !== null) state[name] = value;
  };
  put("options", optionsIn(parameters));
  put("camera", cameraIn(parameters.get("zoom")));
  put("panes", panesIn(parameters.get("panes")));
  put("opacity", numberIn(parameters.get("opacity"), 1));
  put("minNll", numberIn(parameters.get("nll"), 1000));
  put("maxConfidence", numberIn(parameters.get("confidence"), 1));
  put("errorColours", choiceIn(parameters.get("errors"), ERROR_COLOURS));
  put("borderPx", numberIn(parameters.get("border"), MAX_BORDER_PX));
  put("nllScale", choiceIn(parameters.get("scale"), NLL_SCALES));
  put("slider", sliderIn(parameters.get("slider")));
  put("shown", parameters.get("shown") === "1" ? 1 : null);
  const names = parameters.getAll("file").slice(0, MAX_FILES);
  const fileNames = names.map((name) => name.slice(0, MAX_NAME_CHARACTERS)).filter(Boolean);
  return { state, fileNames };
}

function optionsIn(parameters) {
  const options = {};
  for (const [key, value] of parameters) {
    const name = key.slice(2);
    if (key.startsWith("o.") && OPTION_NAME.test(name) && OPTION_VALUE.test(value)) {
      options[name] = value;
    }
  }
  return Object.keys(options).length ? options : null;
}

function cameraIn(text) {
  const numbers = text?.split(",") ?? [];
  if (numbers.length !== 3 || !numbers.every((number) => NUMBER.test(number))) return null;
  const [scale, x, y] = numbers.map(Number);
  return scale > 0 && scale <= 1000 ? { scale, x, y } : null;
}

function panesIn(text) {
  const panes = [...new Set(text?.split(","))].filter((pane) => PANE_NAMES.includes(pane));
  return panes.length ? panes : null;
}

function sliderIn(text) {
  const [left, right, position] = text?.split(",") ?? [];
  const at = numberIn(position, 1);
  if (!PANE_NAMES.includes(left) || !PANE_NAMES.includes(right) || at === null) return null;
  return { left, right, at };
}

function choiceIn(text, choices) {
  return choices.includes(text) ? text : null;
}

function numberIn(text, max) {
  return NUMBER.test(text ?? "") && Number(text) <= max ? Number(text) : null;
}

function rounded(number) {
  return Number(number.toFixed(4));
}
