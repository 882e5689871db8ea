/** The columns of the table of classes. */

import { countText, differenceText, nllText, percentDigits } from "./numbers.js";

/**
 * @typedef {object} Column
 * @property {string} name
 * @property {string} title
 * @property {string} hint  what the column holds, in words
 * @property {(row: object) => ?number} value  what rows are sorted by; null comes last
 * @property {(value: ?number) => string} text
 * @property {number} first  the order of the first press: 1 ascending, -1 descending
 */

/** @type {Object<string, Column>} */
export const COLUMNS = {
  class: {
    name: "class",
    title: "Class",
    hint: "index and name",
    value: (row) => row.index,
    first: 1,
  },
  pixels: {
    name: "pixels",
    title: "Pixels",
    hint: "valid pixels of the class",
    value: (row) => row.pixels,
    text: countText,
    first: -1,
  },
  share: {
    name: "share",
    title: "Share",
    hint: "share of all valid pixels, in percent",
    value: (row) => row.share,
    text: percentDigits,
    first: -1,
  },
  iu: {
    name: "iu",
    title: "IU",
    hint: "intersection over union, in percent",
    value: (row) => row.iu,
    text: percentDigits,
    first: 1,
  },
  otherIu: {
    name: "otherIu",
    title: "IU B",
    hint: "intersection over union of prediction B, in percent",
    value: (row) => row.otherIu,
    text: percentDigits,
    first: 1,
  },
  change: {
    name: "change",
    title: "B − A",
    hint: "the IU of B minus that of A, in percentage points",
    value: (row) => row.change,
    text: (value) => differenceText(value === null ? null : 100 * value, 1),
    first: 1,
  },
  accuracy: {
    name: "accuracy",
    title: "Acc.",
    hint: "accuracy: the share of its pixels that are predicted correctly, in percent",
    value: (row) => row.accuracy,
    text: percentDigits,
    first: 1,
  },
  nll: {
    name: "nll",
    title: "NLL",
    hint: "mean negative log-likelihood of its pixels, in nats",
    value: (row) => row.nll,
    text: nllText,
    first: -1,
  },
};

export const WITHOUT_TRUTH = ["class", "pixels", "share"];
export const OF_ONE = ["class", "pixels", "share", "iu", "accuracy", "nll"];
export const OF_TWO = ["class", "pixels", "iu", "otherIu", "change", "accuracy", "nll"];
