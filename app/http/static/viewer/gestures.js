/** Pointer and wheel on a pane: pan, zoom, and the pixel under the pointer. */

/** A pointer that moves less than this many CSS pixels has clicked, not dragged. */
const CLICK_PX = 4;

/** The factor of a double click. */
const DOUBLE_CLICK_FACTOR = 2;

/** The exponent of the zoom for each CSS pixel of a wheel. */
const WHEEL_RATE = 0.002;
const LINE_PX = 16;
const PAGE_PX = 400;

/**
 * @typedef {object} Actions  positions and distances are in CSS pixels of the pane
 * @property {(right: number, down: number) => void} pan
 * @property {(factor: number, left: number, top: number) => void} zoom
 * @property {(left: number, top: number) => void} point  the pointer is over a position
 * @property {() => void} leave  the pointer is over no pane
 */

/**
 * @param {HTMLElement} stage
 * @param {Actions} actions
 */
export function attachGestures(stage, actions) {
  /** Pointers that are down, with their last positions. */
  const pointers = new Map();
  let travelled = 0;

  const position = (event) => {
    const box = stage.getBoundingClientRect();
    return { left: event.clientX - box.left, top: event.clientY - box.top };
  };

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    // A pointer of a test, or one that is gone already, cannot be captured.
    try {
      stage.setPointerCapture(event.pointerId);
    } catch {
      return;
    }
    pointers.set(event.pointerId, position(event));
    travelled = 0;
    stage.classList.add("viewer-dragging");
  });

  stage.addEventListener("pointermove", (event) => {
    const here = position(event);
    const last = pointers.get(event.pointerId);
    if (!last) {
      if (event.pointerType !== "touch") actions.point(here.left, here.top);
      return;
    }
    const others = [...pointers].filter(([id]) => id !== event.pointerId);
    pointers.set(event.pointerId, here);
    if (others.length) {
      pinch(others[0][1], last, here);
      return;
    }
    travelled += Math.hypot(here.left - last.left, here.top - last.top);
    if (travelled < CLICK_PX) {
      // The drag begins where the pointer went down.
      pointers.set(event.pointerId, last);
      return;
    }
    actions.pan(here.left - last.left, here.top - last.top);
    if (event.pointerType !== "touch") actions.point(here.left, here.top);
  });

  /** One of two pointers has moved: their centre and their distance change. */
  function pinch(other, last, here) {
    const centre = (point) => ({
      left: (point.left + other.left) / 2,
      top: (point.top + other.top) / 2,
    });
    const distance = (point) => Math.hypot(point.left - other.left, point.top - other.top);
    const [from, to] = [centre(last), centre(here)];
    travelled = CLICK_PX;
    actions.pan(to.left - from.left, to.top - from.top);
    actions.zoom(distance(here) / Math.max(distance(last), 1), to.left, to.top);
  }

  const release = (event) => {
    const isTap = pointers.has(event.pointerId) && travelled < CLICK_PX;
    if (isTap && event.type === "pointerup" && event.pointerType === "touch") {
      const here = position(event);
      actions.point(here.left, here.top);
    }
    pointers.delete(event.pointerId);
    if (!pointers.size) stage.classList.remove("viewer-dragging");
  };
  stage.addEventListener("pointerup", release);
  stage.addEventListener("pointercancel", release);

  stage.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch") actions.leave();
  });

  stage.addEventListener("dblclick", (event) => {
    const { left, top } = position(event);
    actions.zoom(event.shiftKey ? 1 / DOUBLE_CLICK_FACTOR : DOUBLE_CLICK_FACTOR, left, top);
  });

  stage.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const unit = [1, LINE_PX, PAGE_PX][event.deltaMode];
      // The wheel event of a pinch on a touchpad has small steps and the control key.
      const rate = event.ctrlKey ? 5 * WHEEL_RATE : WHEEL_RATE;
      const { left, top } = position(event);
      actions.zoom(Math.exp(-event.deltaY * unit * rate), left, top);
      actions.point(left, top);
    },
    { passive: false },
  );
}
