/**
 * Painting: loops over the device pixels of a pane, which look up a colour for each.
 *
 * Each function takes a raster, the levels of its pixels, and the pixels to be written. Pixels outside
 * the image become transparent. Only the columns from `raster.from` are painted, `raster.count` of them.
 *
 * @typedef {import("./raster.js").Raster} Raster
 */

import {
  BLUE,
  BLUISH_GREEN,
  CHECKER_DARK,
  CHECKER_LIGHT,
  CHECKER_PX,
  CORRECT,
  DIMMED,
  LIT,
  VERMILION,
  dim,
  mix,
  pack,
} from "./colours.js";

/** Colours of the error pane. */
export const ERROR = {
  correct: CORRECT,
  wrong: VERMILION,
  boundary: VERMILION,
  hit: BLUISH_GREEN,
  missed: VERMILION,
  falseAlarm: BLUE,
};

/** @returns {Int32Array} a pixel at each level */
function atLevels(pixel) {
  return Int32Array.from([LIT, 1, DIMMED], (level) => dim(pixel, level));
}

const DARK = atLevels(CHECKER_DARK);
const LIGHT = atLevels(CHECKER_LIGHT);

/** The checkerboard at a device pixel, which stays where it is when the image moves. */
function checkerAt(i, width, cell) {
  const x = i % width;
  const y = (i - x) / width;
  return ((x / cell) ^ (y / cell)) & 1;
}

function checkerCell(raster) {
  return Math.max(1, Math.round(CHECKER_PX * raster.ratio));
}

/** @param {Int32Array} photo  a pixel for each of the raster */
export function paintPhoto(raster, levels, out, photo) {
  const { index, width, from, count } = raster;
  for (let start = from; start < index.length; start += width) {
    for (let i = start; i < start + count; i++) {
      const level = levels[i];
      out[i] = index[i] < 0 ? 0 : level === LIT ? photo[i] : dim(photo[i], level);
    }
  }
}

/**
 * Paints classes, over the photo if there is one.
 * @param {object} source
 * @param {Int32Array} source.classes  -1 where ignored
 * @param {Int32Array} source.colours
 * @param {Uint8Array} source.classLevels
 * @param {?Int32Array} source.photo
 * @param {number} source.opacity  of the classes over the photo
 */
export function paintClasses(raster, levels, out, source) {
  const { classes, colours, classLevels, photo } = source;
  const { index, width, from, count } = raster;
  const weight = photo === null ? 256 : Math.round(256 * source.opacity);
  const cell = checkerCell(raster);
  const ignoredLevel = classLevels.includes(LIT) ? Math.max(...classLevels) : LIT;
  for (let start = from; start < index.length; start += width) {
    for (let i = start; i < start + count; i++) {
      const offset = index[i];
      if (offset < 0) {
        out[i] = 0;
        continue;
      }
      const k = classes[offset];
      let level = levels[i];
      let pixel;
      if (k < 0) {
        if (ignoredLevel > level) level = ignoredLevel;
        pixel = checkerAt(i, width, cell) ? CHECKER_DARK : CHECKER_LIGHT;
      } else {
        if (classLevels[k] > level) level = classLevels[k];
        pixel = colours[k];
      }
      if (weight < 256) pixel = mix(photo[i], pixel, weight);
      out[i] = level === LIT ? pixel : dim(pixel, level);
    }
  }
}

/**
 * Paints values in the colours of a table.
 * @param {object} source
 * @param {Float32Array} source.values
 * @param {number} source.top  the value of the last colour; the first one is that of 0
 * @param {Int32Array} source.table  256 colours at each level
 * @param {?Int32Array} source.truth  to find ignored pixels
 */
export function paintValues(raster, levels, out, source) {
  const { values, top, table, truth } = source;
  const { index, width, from, count } = raster;
  const factor = 255 / top;
  const cell = checkerCell(raster);
  for (let start = from; start < index.length; start += width) {
    for (let i = start; i < start + count; i++) {
      const offset = index[i];
      if (offset < 0) {
        out[i] = 0;
      } else if (truth !== null && truth[offset] < 0) {
        out[i] = (checkerAt(i, width, cell) ? DARK : LIGHT)[levels[i]];
      } else {
        const value = values[offset];
        // With one class, ln C is 0, and so is every NLL.
        const colour = value >= top && value > 0 ? 255 : value > 0 ? (value * factor + 0.5) | 0 : 0;
        out[i] = table[(levels[i] << 8) | colour];
      }
    }
  }
}

/**
 * Paints where two predictions differ: the first colours of the table where the first one is better.
 * @param {object} source
 * @param {[Float32Array, Float32Array]} source.nll
 * @param {number} source.top  the difference of the last colour
 */
export function paintDifference(raster, levels, out, source) {
  const [first, second] = source.nll;
  const { top, table, truth } = source;
  const { index, width, from, count } = raster;
  const factor = 127.5 / top;
  const cell = checkerCell(raster);
  for (let start = from; start < index.length; start += width) {
    for (let i = start; i < start + count; i++) {
      const offset = index[i];
      if (offset < 0) {
        out[i] = 0;
      } else if (truth[offset] < 0) {
        out[i] = (checkerAt(i, width, cell) ? DARK : LIGHT)[levels[i]];
      } else {
        // Two infinite NLLs have no difference.
        const difference = first[offset] - second[offset] || 0;
        const colour = Math.min(Math.max(127.5 + difference * factor, 0), 255);
        out[i] = table[(levels[i] << 8) | (colour + 0.5)];
      }
    }
  }
}

/** Paints which of two predictions is right, in the first and the last colour of the table. */
export function paintBetter(raster, levels, out, source) {
  const { truth, classes, table } = source;
  const [first, second] = classes;
  const { index, width, from, count } = raster;
  const cell = checkerCell(raster);
  const colours = [0, 128, 255];
  for (let start = from; start < index.length; start += width) {
    for (let i = start; i < start + count; i++) {
      const offset = index[i];
      if (offset < 0) {
        out[i] = 0;
      } else if (truth[offset] < 0) {
        out[i] = (checkerAt(i, width, cell) ? DARK : LIGHT)[levels[i]];
      } else {
        const label = truth[offset];
        const better = (second[offset] === label) - (first[offset] === label);
        out[i] = table[(levels[i] << 8) | colours[better + 1]];
      }
    }
  }
}

/**
 * Paints right and wrong pixels.
 * @param {object} source
 * @param {Int32Array} source.truth
 * @param {Int32Array} source.classes
 * @param {?number} source.isolated  a class whose hits, misses and false alarms are told apart
 * @param {?Uint8Array} source.boundary  with it, errors near a boundary are distinguished from confusion, which
 *   has the colour of the predicted class
 * @param {Int32Array} source.colours  of the classes
 */
export function paintError(raster, levels, out, source) {
  const { truth, classes, isolated, boundary, colours } = source;
  const { index, width, from, count } = raster;
  const cell = checkerCell(raster);
  const chosen = isolated ?? -1;
  for (let start = from; start < index.length; start += width) {
    for (let i = start; i < start + count; i++) {
      const offset = index[i];
      if (offset < 0) {
        out[i] = 0;
        continue;
      }
      const label = truth[offset];
      const k = classes[offset];
      let pixel = ERROR.correct;
      if (label < 0) {
        pixel = checkerAt(i, width, cell) ? CHECKER_DARK : CHECKER_LIGHT;
      } else if (chosen >= 0) {
        if (label === chosen) pixel = k === chosen ? ERROR.hit : ERROR.missed;
        else if (k === chosen) pixel = ERROR.falseAlarm;
      } else if (label !== k) {
        if (boundary === null) pixel = ERROR.wrong;
        else pixel = boundary[offset] ? ERROR.boundary : colours[k];
      }
      const level = levels[i];
      out[i] = level === LIT ? pixel : dim(pixel, level);
    }
  }
}

const BLACK = pack(0, 0, 0);
const WHITE = pack(255, 255, 255);

/** The distances from a region, in device pixels, of the white and the black line around it. */
const WHITE_LINE = 2;
const BLACK_LINE = 3;

/**
 * Finds the lines around a region on a raster. They keep a distance, so that a thin region stays
 * visible, and holes of single pixels get no line.
 * @param {Uint8Array} ranks  the rank of the region of each pixel of the image
 * @returns {{white: Int32Array, black: Int32Array}} indices of device pixels
 */
export function findOutline(raster, ranks, rank) {
  const { index, width } = raster;
  const distances = new Uint8Array(index.length).fill(BLACK_LINE + 1);
  for (let i = 0; i < index.length; i++) {
    if (index[i] >= 0 && ranks[index[i]] === rank) distances[i] = 0;
  }
  sweepDistances(distances, width, 1);
  sweepDistances(distances, width, -1);
  const white = [];
  const black = [];
  for (let i = 0; i < index.length; i++) {
    if (distances[i] === WHITE_LINE) white.push(i);
    else if (distances[i] === BLACK_LINE) black.push(i);
  }
  return { white: Int32Array.from(white), black: Int32Array.from(black) };
}

/** Half of a distance transform on a chessboard: forwards with step 1, backwards with -1. */
function sweepDistances(distances, width, step) {
  const { length } = distances;
  const height = length / width;
  for (let rowRank = 0; rowRank < height; rowRank++) {
    const start = step > 0 ? rowRank * width : length - 1 - rowRank * width;
    for (let columnRank = 0; columnRank < width; columnRank++) {
      const i = start + step * columnRank;
      let least = distances[i];
      if (least === 0) continue;
      const before = i - step;
      const above = i - step * width;
      if (columnRank > 0 && distances[before] < least) least = distances[before] + 1;
      if (rowRank > 0) {
        if (distances[above] < least) least = distances[above] + 1;
        if (columnRank > 0 && distances[above - step] < least) least = distances[above - step] + 1;
        if (columnRank + 1 < width && distances[above + step] < least) {
          least = distances[above + step] + 1;
        }
      }
      distances[i] = least;
    }
  }
}

/** Paints an outline that shows on every colour: white, and black around it. */
export function paintOutline(out, { white, black }) {
  for (const i of white) out[i] = WHITE;
  for (const i of black) out[i] = BLACK;
}
