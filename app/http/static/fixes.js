/** Finds the options that a sentence of the service advises, such as "Use label_space=ade_zero." */

/** @typedef {{option: string, value: string}} Fix */

/** What the library says of a value that several data sets ignore. */
const VOID = /If (-?\d+) marks void pixels, add it to ignore_index\./;
const PAIR = /(?<![\w'/\\,=])([a-z][a-z_]{0,39})=([\w.,-]*\w)/g;

/**
 * Returns the options with their values that a sentence names as option=value, each once.
 * @param {string} sentence
 * @param {Iterable<string>} optionNames  the names of options that exist
 * @param {string} [ignored]  the ignore_index in force, to which a value may be added
 * @returns {Fix[]}
 */
export function fixesIn(sentence, optionNames, ignored = "none") {
  const names = new Set(optionNames);
  const fixes = new Map();
  for (const [text, option, value] of sentence.matchAll(PAIR)) {
    if (names.has(option)) fixes.set(text, { option, value });
  }
  const [, added] = VOID.exec(sentence) ?? [];
  if (added !== undefined && names.has("ignore_index")) {
    const value = ignored === "none" ? added : `${ignored},${added}`;
    fixes.set("ignore_index", { option: "ignore_index", value });
  }
  return [...fixes.values()];
}
