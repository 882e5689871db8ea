/**
 * Requests to the service: their bodies, their progress, and their errors in words.
 *
 * @typedef {import("./types.js").Problem} Problem
 * @typedef {import("./inputs/sources.js").Source} Source
 */

import { encode, MEDIA_TYPE } from "./formats/safetensors.js";

/** An error that a `Problem` describes. */
export class RequestError extends Error {
  /** @param {Problem} problem */
  constructor(problem) {
    super(problem.detail);
    this.problem = problem;
  }
}

/**
 * Returns the body with these inputs: a safetensors file if all are tensors, else a form of files.
 * No element is copied.
 * @param {Object<string, Source>} sources  by the name of the input, in the order of the body
 * @returns {Blob | FormData}
 */
export function bodyOf(sources) {
  const entries = Object.entries(sources);
  if (entries.every(([, { tensor }]) => tensor !== null)) {
    return encode(Object.fromEntries(entries.map(([name, source]) => [name, tensorBlob(source)])));
  }
  const form = new FormData();
  for (const [name, source] of entries) {
    const file = source.tensor === null ? source.blob : encode({ [name]: tensorBlob(source) });
    form.append(name, file, source.name);
  }
  return form;
}

/**
 * Posts a body and returns the answer, a safetensors file.
 * @param {string} path  such as "/v1/evaluate"
 * @param {Object<string, string>} query
 * @param {Blob | FormData} body
 * @param {object} options
 * @param {AbortSignal} options.signal
 * @param {(phase: string, fraction: ?number) => void} options.onProgress
 * @returns {Promise<ArrayBuffer>}
 * @throws {RequestError}
 * @throws {DOMException} an AbortError if the signal has aborted the request
 */
export function post(path, query, body, { signal, onProgress }) {
  // XMLHttpRequest, since fetch does not report the progress of an upload.
  const request = new XMLHttpRequest();
  return new Promise((resolve, reject) => {
    const fractionOf = ({ loaded, total, lengthComputable }) =>
      lengthComputable && total > 0 ? loaded / total : null;
    request.open("POST", `${path}?${new URLSearchParams(query)}`);
    request.responseType = "arraybuffer";
    request.setRequestHeader("Accept", MEDIA_TYPE);
    request.upload.onprogress = (event) => onProgress("Sending", fractionOf(event));
    request.upload.onload = () => onProgress("Computing", null);
    request.onprogress = (event) => onProgress("Receiving", fractionOf(event));
    request.onload = () => {
      if (request.status === 200) resolve(request.response);
      else reject(new RequestError(problemOf(request)));
    };
    request.onerror = () => reject(new RequestError(CONNECTION_PROBLEM));
    request.onabort = () => reject(new DOMException("The request was cancelled.", "AbortError"));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    if (signal.aborted) {
      reject(new DOMException("The request was cancelled.", "AbortError"));
      return;
    }
    onProgress("Sending", 0);
    request.send(body);
  });
}

/**
 * Returns the JSON object at a path.
 * @param {string} path
 * @returns {Promise<any>}
 * @throws {RequestError}
 */
export async function getJson(path) {
  const text = await get(path, "application/json", (response) => response.text());
  try {
    return JSON.parse(text);
  } catch {
    throw new RequestError({ detail: "The answer of the service is damaged.", fix: "Try again." });
  }
}

/**
 * Returns the file at a path.
 * @param {string} path
 * @param {AbortSignal} signal
 * @returns {Promise<Blob>}
 * @throws {RequestError}
 * @throws {DOMException} an AbortError if the signal has aborted the request
 */
export async function getBlob(path, signal) {
  return get(path, "*/*", (response) => response.blob(), signal);
}

/** Returns what a function reads of the answer, which may break off. */
async function get(path, accept, read, signal = null) {
  try {
    const response = await fetch(path, { headers: { Accept: accept }, signal });
    if (!response.ok) throw new RequestError(statusProblem(response.status));
    return await read(response);
  } catch (error) {
    if (error instanceof RequestError || error.name === "AbortError") throw error;
    throw new RequestError(CONNECTION_PROBLEM);
  }
}

/** @type {Problem} */
const CONNECTION_PROBLEM = {
  detail: "The service did not answer: the connection failed or was closed.",
  fix: "Check that seg-loss serve is running, then try again.",
};

function tensorBlob({ tensor, blob }) {
  return { ...tensor, blob };
}

/** Returns the problem in an answer, with the members that are texts. */
function problemOf(request) {
  const status = request.status;
  let document;
  try {
    document = JSON.parse(new TextDecoder().decode(request.response));
  } catch {
    return statusProblem(status);
  }
  if (typeof document?.detail !== "string") return statusProblem(status);
  if (status === 413 && document.where === "body") return sizeProblem(document.limit, status);
  const problem = { detail: document.detail, status };
  for (const name of ["where", "expected", "got", "fix"]) {
    if (typeof document[name] === "string") problem[name] = document[name];
  }
  const seconds = request.getResponseHeader("Retry-After");
  if (seconds !== null && /^\d{1,5}$/.test(seconds)) {
    problem.fix = `Try again in ${seconds} ${seconds === "1" ? "second" : "seconds"}.`;
  }
  return problem;
}

function sizeProblem(limit, status) {
  const most = Number.isFinite(limit) ? `${limit / 1e6} MB` : "what the service allows";
  return {
    detail: `The files have more than ${most} together.`,
    fix: "Use float16 or a part of the image, or serve with a larger SEG_LOSS_MAX_BODY_BYTES.",
    status,
  };
}

function statusProblem(status) {
  const detail = `The service answered with the HTTP status ${status} and no explanation.`;
  return { detail, status };
}
