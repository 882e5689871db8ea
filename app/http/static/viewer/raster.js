/**
 * Which pixel of the image each device pixel of a pane shows.
 *
 * All panes have the same size and camera, so that the table is made once for each of their changes.
 * Painting then takes one step for each device pixel of a pane, however large the image is.
 */

export class Raster {
  /** Offsets of pixels of the image, -1 outside it: one for each device pixel, row by row. */
  index = new Int32Array(0);
  width = 0;
  height = 0;
  /** The columns that are painted, from this one, and their number. */
  from = 0;
  count = 0;
  /** Device pixels for each CSS pixel. */
  ratio = 1;
  /** Device pixels for each pixel of the image. */
  scale = 1;
  /** The image coordinates of the left and top edge. */
  left = 0;
  top = 0;

  /**
   * @param {{width: number, height: number, ratio: number}} size  in device pixels
   * @param {import("../types.js").Camera} camera
   * @param {{width: number, height: number}} image
   */
  update(size, camera, image) {
    const { width, height, ratio } = size;
    const scale = camera.scale * ratio;
    Object.assign(this, { width, height, ratio, scale, from: 0, count: width });
    this.left = camera.x - width / 2 / scale;
    this.top = camera.y - height / 2 / scale;
    if (this.index.length !== width * height) this.index = new Int32Array(width * height);
    const columns = sources(width, this.left, scale, image.width);
    const index = this.index;
    const rows = sources(height, this.top, scale, image.height);
    for (let y = 0, i = 0; y < height; y++) {
      if (rows[y] < 0) {
        index.fill(-1, i, i + width);
        i += width;
        continue;
      }
      const offset = rows[y] * image.width;
      for (let x = 0; x < width; x++, i++) {
        const column = columns[x];
        index[i] = column < 0 ? -1 : offset + column;
      }
    }
  }

  /** Makes the table of a picture that shows each pixel of the image once. */
  static ofWholeImage(image) {
    const raster = new Raster();
    const camera = { scale: 1, x: image.width / 2, y: image.height / 2 };
    raster.update({ width: image.width, height: image.height, ratio: 1 }, camera, image);
    return raster;
  }
}

/** The nearest pixel of the image for each device pixel along one axis, -1 outside the image. */
function sources(length, start, scale, limit) {
  const table = new Int32Array(length);
  for (let i = 0; i < length; i++) {
    const source = Math.floor(start + (i + 0.5) / scale);
    table[i] = source >= 0 && source < limit ? source : -1;
  }
  return table;
}
