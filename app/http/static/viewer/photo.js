/** The photo as pixels, at its own size and at that of a pane. */

/** Behind transparent photos. */
const BACKGROUND = "#808080";

export class Photo {
  /** The pixels at full size. */
  pixels;
  #image;
  /** The photo, and its halves, quarters, ... as they are needed. */
  #levels;
  #canvas = new OffscreenCanvas(1, 1);

  /**
   * @param {ImageBitmap} bitmap
   * @param {{width: number, height: number}} image  the size of the labels, which the photo gets
   */
  constructor(bitmap, image) {
    this.#image = image;
    this.#levels = [draw(bitmap, image.width, image.height)];
    this.pixels = pixelsOf(this.#levels[0].getContext("2d"), image.width, image.height);
  }

  /**
   * Returns the photo as a raster shows it: the nearest pixels if it is enlarged, else smoothed.
   * @param {import("./raster.js").Raster} raster
   * @returns {Int32Array} one pixel for each of the raster
   */
  at(raster) {
    return raster.scale >= 1 ? this.#nearest(raster) : this.#smooth(raster);
  }

  #nearest(raster) {
    const { index } = raster;
    const pixels = this.pixels;
    const layer = new Int32Array(index.length);
    for (let i = 0; i < index.length; i++) {
      if (index[i] >= 0) layer[i] = pixels[index[i]];
    }
    return layer;
  }

  #smooth(raster) {
    const { width, height, scale } = raster;
    const canvas = this.#canvas;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
    const size = [this.#image.width * scale, this.#image.height * scale];
    context.drawImage(this.#levelFor(scale), -raster.left * scale, -raster.top * scale, ...size);
    return pixelsOf(context, width, height);
  }

  /** The smallest level that need not be enlarged: smoothing reads four pixels, whatever the scale. */
  #levelFor(scale) {
    const wanted = Math.max(0, Math.floor(-Math.log2(scale)));
    while (this.#levels.length <= wanted) {
      const last = this.#levels.at(-1);
      const half = (size) => Math.max(1, Math.round(size / 2));
      this.#levels.push(draw(last, half(last.width), half(last.height)));
    }
    return this.#levels[wanted];
  }
}

function draw(source, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  context.fillStyle = BACKGROUND;
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0, width, height);
  return canvas;
}

function pixelsOf(context, width, height) {
  return new Int32Array(context.getImageData(0, 0, width, height).data.buffer);
}
