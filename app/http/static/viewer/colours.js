/**
 * Colours as the 32-bit pixels of a canvas, and their mixtures.
 *
 * A pixel is stored as red, green, blue, alpha. All browsers run on little-endian processors, so that
 * red is the lowest byte of an element of an Int32Array. Unsigned elements would not fit the integers
 * that engines compute with, and take twice the time.
 */

/** @returns {number} the opaque pixel of a colour */
export function pack(red, green, blue) {
  return 0xff000000 | (blue << 16) | (green << 8) | red;
}

/** @returns {[number, number, number]} red, green and blue of a pixel */
export function unpack(pixel) {
  return [pixel & 0xff, (pixel >>> 8) & 0xff, (pixel >>> 16) & 0xff];
}

/** @returns {string} the colour of a pixel in CSS */
export function css(pixel) {
  return `rgb(${unpack(pixel).join(" ")})`;
}

/**
 * Mixes two opaque pixels, rounding to the nearest.
 * @param {number} weight  of the second pixel, from 0 to 256
 */
export function mix(first, second, weight) {
  const rest = 256 - weight;
  const redBlue =
    (Math.imul(first & 0xff00ff, rest) + Math.imul(second & 0xff00ff, weight) + 0x800080) >>> 8;
  const green =
    (Math.imul((first >>> 8) & 0xff, rest) + Math.imul((second >>> 8) & 0xff, weight) + 0x80) >>> 8;
  return 0xff000000 | (redBlue & 0xff00ff) | (green << 8);
}

/** The levels of a pixel: what a choice points at is lit, the rest is dimmed. */
export const LIT = 0;
export const FAINT = 1;
export const DIMMED = 2;

const DIM_COLOUR = pack(128, 128, 128);

/** The weight of DIM_COLOUR in pixels of each level, of 256. */
const DIM_WEIGHTS = [0, 128, 208];

/** @returns {number} the pixel at a level */
export function dim(pixel, level) {
  return level === LIT ? pixel : mix(pixel, DIM_COLOUR, DIM_WEIGHTS[level]);
}

/**
 * Returns the pixels of a colour table at each level: entry 256 * level + index.
 * @param {Uint8Array} table  256 colours
 */
export function lookupTable(table) {
  const pixels = new Int32Array(3 * 256);
  for (let level = LIT; level <= DIMMED; level++) {
    for (let i = 0; i < 256; i++) {
      pixels[256 * level + i] = dim(pack(table[3 * i], table[3 * i + 1], table[3 * i + 2]), level);
    }
  }
  return pixels;
}

/**
 * Colours with a fixed meaning, those of app/images/style.py. The bright ones are of Okabe and Ito, which
 * colour-blind readers can tell apart.
 */
export const VERMILION = pack(213, 94, 0);
export const BLUISH_GREEN = pack(0, 158, 115);
export const BLUE = pack(0, 114, 178);
export const CORRECT = pack(217, 217, 217);

/** Ignored pixels are a checkerboard of these, with cells of CHECKER_PX CSS pixels. */
export const CHECKER_DARK = pack(96, 96, 96);
export const CHECKER_LIGHT = pack(144, 144, 144);
export const CHECKER_PX = 4;

/** From blue by way of light grey to vermilion. */
export const DIVERGING = (() => {
  const table = new Uint8Array(3 * 256);
  for (let i = 0; i < 256; i++) {
    const distance = Math.abs(i - 127.5) / 127.5;
    const end = i < 127.5 ? BLUE : VERMILION;
    table.set(unpack(mix(CORRECT, end, Math.round(256 * distance))), 3 * i);
  }
  return table;
})();
