/** Finds the options that a sentence of the service advises, such as "Use label_space=ade_zero." */

/** @typedef {{option: string, value: string}} Fix */

const PAIR = /(?<![\w'/\\,=])([a-z][a-z_]{0,39})=([\w.,-]*\w)/g;

/**
 * Returns the options with their values that a sentence names as option=value, each once.
 * @param {string} sentence
 * @param {Iterable<string>} optionNames  the names of options that exist
 * @returns {Fix[]}
 */
export function fixesIn(sentence, optionNames) {
  const names = new Set(optionNames);
  const fixes = new Map();
  for (const [text, option, value] of sentence.matchAll(PAIR)) {
    if (names.has(option)) fixes.set(text, { option, value });
  }
  return [...fixes.values()];
}
