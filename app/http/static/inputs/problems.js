/**
 * Says what an error is about, and what can be done.
 *
 * @typedef {import("../types.js").Problem} Problem
 * @typedef {import("./files.js").Files} Files
 * @typedef {import("./sources.js").Role} Role
 */

import { ROLES } from "./sources.js";

/** The role of the file that an error about an input of a request is about. */
const ROLE_OF_INPUT = {
  labels: "truth",
  logits: "prediction",
  prediction: "prediction",
  second: "second",
  image: "photo",
  palette: "palette",
};

/**
 * Returns the role of the file that an error is about; null if it is about none.
 * @param {Problem} problem
 * @param {Role} failed  the prediction whose request has failed
 * @returns {?Role}
 */
export function roleOf({ where = "" }, failed) {
  const [input] = /^[a-z_]*/.exec(where);
  const role = Object.hasOwn(ROLE_OF_INPUT, input) ? ROLE_OF_INPUT[input] : null;
  return role === "prediction" ? failed : role;
}

/**
 * Returns what an error is about, such as "Truth, gt.png:", and the sentence about it.
 * @param {Problem} problem
 * @param {?Role} role
 * @param {Files} files
 * @returns {{subject: string, sentence: string}}
 */
export function wordsFor({ detail, fix, where }, role, files) {
  const source = files.byRole[role] ?? null;
  const subject = source === null ? "" : `${ROLES[role]}, ${source.name}:`;
  // The subject says where, and most details end with the fix.
  const told = [`${where}: `, `${ROLES[role]}: `].find((text) => detail.startsWith(text)) ?? "";
  const sentence = subject === "" ? detail : detail.slice(told.length);
  return { subject, sentence: fix && !sentence.includes(fix) ? `${sentence} ${fix}` : sentence };
}

/** Returns whether the same request may succeed later. */
export function mayPass({ status, where }) {
  // What the page itself finds wrong with a file stays wrong.
  return status === undefined ? where === undefined : status === 429 || status === 503;
}

/**
 * Returns a problem with the connection as one with a file, if a file cannot be read any more.
 * @param {Problem} problem
 * @param {Files} files
 * @returns {Promise<Problem>}
 */
export async function withUnreadable(problem, files) {
  if (problem.status !== undefined) return problem;
  for (const { blob, name } of files.all) {
    try {
      await blob.slice(0, 1).arrayBuffer();
    } catch {
      const detail = `${name} cannot be read any more: it was changed or removed.`;
      return { detail, fix: "Choose it again." };
    }
  }
  return problem;
}
