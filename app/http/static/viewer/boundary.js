/** Pixels near a true boundary. */

/**
 * Marks the pixels within a distance of a pixel with another label.
 *
 * The distance is that of a chessboard: the greater one of rows and columns. Ignored pixels count as a
 * label of their own, because VOC draws a band of them along every boundary.
 *
 * In a square window, labels differ if they change along a row of it, or else along its middle column.
 * @param {Int32Array} labels
 * @param {number} distance  in pixels
 * @returns {Uint8Array} 1 near a boundary
 */
export function nearBoundary(labels, width, height, distance) {
  const alongRow = nearChangeAlongRow(labels, width, height, distance);
  const near = new Uint8Array(width * height);
  sweep(labels, alongRow, near, width, height, distance, 0, 1);
  sweep(labels, alongRow, near, width, height, distance, height - 1, -1);
  return near;
}

/** Marks pixels that have another label within the distance in their row. */
function nearChangeAlongRow(labels, width, height, distance) {
  const near = new Uint8Array(width * height);
  for (let y = 0, end = 0; y < height; y++) {
    const start = y * width;
    end = start + width;
    for (let i = start + 1; i < end; i++) {
      if (labels[i] === labels[i - 1]) continue;
      const last = Math.min(i + distance, end);
      for (let j = Math.max(i - distance, start); j < last; j++) near[j] = 1;
    }
  }
  return near;
}

/**
 * Marks pixels with a change at most `distance` rows before them, where rows are taken from `first` in
 * steps of `step`.
 */
function sweep(labels, alongRow, near, width, height, distance, first, step) {
  // The last row with a mark, and the last row whose label differs from the next, of each column.
  const marked = new Int32Array(width).fill(-distance - 1);
  const changed = new Int32Array(width).fill(-distance - 1);
  for (let rank = 0, y = first; rank < height; rank++, y += step) {
    const start = y * width;
    const before = start - step * width;
    for (let x = 0; x < width; x++) {
      if (alongRow[start + x]) marked[x] = rank;
      if (rank > 0 && labels[start + x] !== labels[before + x]) changed[x] = rank - 1;
      if (rank - marked[x] <= distance || rank - changed[x] <= distance) near[start + x] = 1;
    }
  }
}
