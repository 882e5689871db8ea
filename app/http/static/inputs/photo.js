/** Decodes photos. The browser draws them; the service gets them only where a network computes. */

import { RequestError } from "../requests.js";

/**
 * Returns a photo upright, as its EXIF orientation says.
 * @param {import("./sources.js").Source} source  a picture, or uint8 [N,H,W,3], [H,W,3] or [3,H,W]
 * @param {number} imageIndex  the index of the image in a batch
 * @returns {Promise<?ImageBitmap>}  null if the batch of photos has no such image
 * @throws {RequestError} if it cannot be decoded
 */
export async function decodePhoto({ name, blob, tensor }, imageIndex) {
  if (tensor !== null) return bitmapOfTensor(tensor, blob, imageIndex);
  if (imageIndex > 0) return null;
  try {
    return await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    throw photoError(`${name} is no picture that this browser decodes.`, "Use JPEG or PNG.");
  }
}

async function bitmapOfTensor({ dtype, shape }, blob, imageIndex) {
  const [channels] = shape;
  const isPlanar = shape.length === 3 && channels === 3 && shape[2] !== 3;
  const [height, width] = isPlanar ? shape.slice(1) : shape.slice(-3, -1);
  const numImages = shape.length === 4 ? shape[0] : 1;
  const hasChannels = isPlanar || (shape.length <= 4 && shape.at(-1) === 3);
  if (dtype !== "U8" || !hasChannels || !(height * width)) {
    const got = `${dtype} (${shape.join(", ")})`;
    throw photoError(`image: expected a photo, uint8 [H,W,3], got ${got}.`);
  }
  if (imageIndex >= numImages) return null;
  const numPixels = height * width;
  const part = blob.slice(imageIndex * 3 * numPixels, (imageIndex + 1) * 3 * numPixels);
  const samples = new Uint8Array(await part.arrayBuffer());
  const pixels = new Uint8ClampedArray(4 * numPixels).fill(255);
  const [pixelStride, channelStride] = isPlanar ? [1, numPixels] : [3, 1];
  for (let pixel = 0; pixel < numPixels; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      pixels[4 * pixel + channel] = samples[pixel * pixelStride + channel * channelStride];
    }
  }
  return createImageBitmap(new ImageData(pixels, width, height));
}

function photoError(detail, fix = "") {
  return new RequestError({ where: "image", detail, fix });
}
