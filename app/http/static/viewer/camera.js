/**
 * The part of the image that a pane shows, and how gestures change it.
 *
 * Every pane has the same size, so that one camera serves all. Sizes and positions in a pane are in
 * CSS pixels, those in the image in its pixels.
 *
 * @typedef {import("../types.js").Camera} Camera
 * @typedef {{width: number, height: number}} Size
 */

/** The greatest enlargement, in CSS pixels for each pixel of the image. */
const MAX_SCALE = 64;

/** @returns {Camera} the camera that shows the whole image */
export function fit(image, pane) {
  const scale = Math.min(pane.width / image.width, pane.height / image.height);
  return { scale, x: image.width / 2, y: image.height / 2 };
}

/**
 * Returns the camera of the state within its bounds, which depend on the pane, or the one that shows the
 * whole image. A link may have any camera.
 * @returns {Camera}
 */
export function resolve(camera, image, pane) {
  return (camera && clamp(camera, image, pane)) ?? fit(image, pane);
}

/**
 * Keeps the camera within its bounds: its centre in the image, its scale between that of the whole
 * image and the greatest one.
 * @returns {?Camera} null if the whole image is shown
 */
export function clamp(camera, image, pane) {
  const whole = fit(image, pane);
  if (camera.scale <= whole.scale * 1.0001 && isCentred(camera, whole)) return null;
  const scale = Math.min(
    Math.max(camera.scale, whole.scale),
    Math.max(MAX_SCALE, whole.scale * 4),
  );
  const within = (value, size) => Math.min(Math.max(value, 0), size);
  return { scale, x: within(camera.x, image.width), y: within(camera.y, image.height) };
}

function isCentred(camera, whole) {
  const pixel = 1 / whole.scale;
  return Math.abs(camera.x - whole.x) <= pixel && Math.abs(camera.y - whole.y) <= pixel;
}

/** @returns {{x: number, y: number}} the image coordinates of a position in a pane */
export function toImage(camera, pane, left, top) {
  return {
    x: camera.x + (left - pane.width / 2) / camera.scale,
    y: camera.y + (top - pane.height / 2) / camera.scale,
  };
}

/** @returns {{left: number, top: number}} the position in a pane of image coordinates */
export function toPane(camera, pane, x, y) {
  return {
    left: pane.width / 2 + (x - camera.x) * camera.scale,
    top: pane.height / 2 + (y - camera.y) * camera.scale,
  };
}

/** @returns {?{x: number, y: number}} the pixel at a position in a pane; null outside the image */
export function pixelAt(camera, image, pane, left, top) {
  const position = toImage(camera, pane, left, top);
  const [x, y] = [Math.floor(position.x), Math.floor(position.y)];
  return x >= 0 && y >= 0 && x < image.width && y < image.height ? { x, y } : null;
}

/** @returns {?Camera} the camera after a drag by CSS pixels */
export function pan(camera, image, pane, right, down) {
  const moved = { ...camera, x: camera.x - right / camera.scale, y: camera.y - down / camera.scale };
  return clamp(moved, image, pane);
}

/**
 * Multiplies the scale, and keeps the point of the image that is at a position in the pane there.
 * @returns {?Camera}
 */
export function zoom(camera, image, pane, factor, left, top) {
  const whole = fit(image, pane);
  const largest = Math.max(MAX_SCALE, whole.scale * 4);
  const scale = Math.min(camera.scale * factor, largest);
  // Back at the whole image, its centre is the pane's.
  if (scale <= whole.scale * 1.0001) return null;
  const point = toImage(camera, pane, left, top);
  const moved = {
    scale,
    x: point.x - (left - pane.width / 2) / scale,
    y: point.y - (top - pane.height / 2) / scale,
  };
  return clamp(moved, image, pane);
}

/** @returns {?Camera} the camera that shows a box of the image with some of its surroundings */
export function around(box, image, pane) {
  const context = 24;
  const scale = Math.min(
    pane.width / (box.right - box.left + 2 * context),
    pane.height / (box.bottom - box.top + 2 * context),
    16,
  );
  const camera = { scale, x: (box.left + box.right) / 2, y: (box.top + box.bottom) / 2 };
  return clamp(camera, image, pane);
}
