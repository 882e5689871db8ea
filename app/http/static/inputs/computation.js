/**
 * The requests that the chosen files need, and their answers.
 *
 * @typedef {import("../evaluation.js").Answer} Answer
 * @typedef {import("./files.js").Files} Files
 * @typedef {import("./service.js").Service} Service
 * @typedef {import("./sources.js").Role} Role
 * @typedef {import("./sources.js").Source} Source
 *
 * @typedef {object} Call  one request
 * @property {Role} role  the prediction that it is about
 * @property {string} path
 * @property {string[]} maps
 * @property {Object<string, Source>} inputs
 */

import { answerOf, checkComparable, numClassesOf } from "../evaluation.js";
import { bodyOf, post, RequestError } from "../requests.js";
import { hasScores } from "./sources.js";

const SCORE_MAPS = [
  "labels",
  "prediction",
  "nll",
  "confidence",
  "entropy",
  "top_classes",
  "top_probabilities",
];
const LABEL_MAPS = ["labels", "nll"];
const CLASS_MAPS = ["labels", "prediction"];

/**
 * Returns the requests for these files; none if there is nothing to compute yet.
 * @param {Files} files
 * @param {Object<string, string>} options
 * @returns {Call[]}
 */
export function callsFor({ byRole }, options) {
  return ["prediction", "second"]
    .filter((role) => byRole[role] !== null)
    .map((role) => callFor(role, byRole[role], byRole, options))
    .filter((call) => call !== null);
}

/**
 * Sends the requests one after the other.
 * @param {Call[]} calls
 * @param {Object<string, string>} options
 * @param {Service} service
 * @param {object} control
 * @param {AbortSignal} control.signal
 * @param {(phase: string, fraction: ?number) => void} control.onProgress
 * @returns {Promise<Answer[]>}
 * @throws {RequestError} with the role of the prediction whose request has failed
 */
export async function compute(calls, options, service, { signal, onProgress }) {
  const answers = [];
  const send = async (call, callOptions) => {
    const { role, path, maps, inputs } = call;
    // Without labels, /v1/predict has neither labels nor their NLL.
    const available = maps.filter((map) => inputs.labels || !LABEL_MAPS.includes(map));
    const query = { ...queryOf(path, callOptions, service), maps: available.join(",") };
    const ordinal = calls.length > 1 ? ` (${calls.indexOf(call) + 1} of ${calls.length})` : "";
    const report = (phase, fraction) => onProgress(phase + ordinal, fraction);
    try {
      const { name } = inputs.logits ?? inputs.prediction ?? inputs.image;
      const answer = await post(path, query, bodyOf(inputs), { signal, onProgress: report });
      return answerOf(answer, name);
    } catch (error) {
      if (error instanceof RequestError) error.role = role;
      throw error;
    }
  };
  for (const call of calls) answers.push(await send(call, options));
  // By default a map of classes has as many as occur in it. Beside another prediction, it has those.
  const numClasses = Math.max(...answers.map(numClassesOf));
  for (const [index, call] of calls.entries()) {
    const isFree = call.inputs.prediction !== undefined && options.num_classes === undefined;
    if (!isFree || numClassesOf(answers[index]) === numClasses) continue;
    answers[index] = await send(call, { ...options, num_classes: `${numClasses}` });
  }
  checkComparable(answers);
  return answers;
}

/** @returns {?Call} */
function callFor(role, prediction, { truth, photo, palette }, options) {
  const others = {
    ...(palette === null ? {} : { palette }),
    ...(truth === null ? {} : { labels: truth }),
  };
  if (prediction.isNetwork) {
    if (photo === null) return null;
    const path = truth === null ? "/v1/predict" : "/v1/evaluate";
    return { role, path, maps: SCORE_MAPS, inputs: { ...others, image: photo } };
  }
  if (truth !== null) {
    const isScores = hasScores(prediction);
    const inputs = { ...others, [isScores ? "logits" : "prediction"]: prediction };
    return { role, path: "/v1/evaluate", maps: isScores ? SCORE_MAPS : CLASS_MAPS, inputs };
  }
  if (!hasScores(prediction)) return null;
  // Scores of lower resolution become as large as the photo.
  const isUpsampled = (options.upsampling ?? "none") !== "none" && photo !== null;
  const inputs = { ...others, logits: prediction, ...(isUpsampled ? { image: photo } : {}) };
  return { role, path: "/v1/predict", maps: SCORE_MAPS, inputs };
}

/** Returns the options that a path has; all of them while the service has not named them. */
function queryOf(path, options, service) {
  const known = service.optionsOf(path).map(({ name }) => name);
  const names = Object.keys(options).filter((name) => !known.length || known.includes(name));
  return Object.fromEntries(names.map((name) => [name, options[name]]));
}
