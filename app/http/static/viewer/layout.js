/** The size of the panes, which is the same for all. */

const GAP_PX = 12;
const MIN_PANE_PX = 220;
const MIN_HEIGHT_PX = 120;

/** The height of a pane's title and legend. */
const SURROUNDINGS_PX = 68;

/** The part of the window's height that the panes may take. */
const WINDOW_SHARE = 0.9;
const PANE_SHARE = 0.72;

/**
 * Chooses the fewest columns with which all panes are in the window at once, or else as many columns as
 * fit.
 * @param {number} numPanes
 * @param {{width: number, height: number}} image
 * @param {number} width  for all panes
 * @param {number} windowHeight
 * @returns {{columns: number, width: number, height: number}} of a pane, in whole CSS pixels
 */
export function layoutOf(numPanes, image, width, windowHeight) {
  let layout = null;
  for (let columns = 1; columns <= Math.max(numPanes, 1); columns++) {
    const paneWidth = Math.floor((width - GAP_PX * (columns - 1)) / columns);
    if (columns > 1 && paneWidth < MIN_PANE_PX) break;
    const whole = Math.round((paneWidth * image.height) / image.width);
    const highest = Math.round(windowHeight * PANE_SHARE);
    const height = Math.min(Math.max(whole, MIN_HEIGHT_PX), highest);
    layout = { columns, width: Math.max(paneWidth, 1), height };
    const rows = Math.ceil(numPanes / columns);
    if (rows * (height + SURROUNDINGS_PX) <= windowHeight * WINDOW_SHARE) break;
  }
  return layout;
}

/** @returns {{width: number, height: number, ratio: number}} a pane in whole device pixels */
export function deviceSize({ width, height }, ratio) {
  return { width: Math.floor(width * ratio), height: Math.floor(height * ratio), ratio };
}
