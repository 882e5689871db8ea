/** Keyboard shortcuts of the viewer. */

import { PANES } from "./panes.js";

/**
 * @typedef {object} Binding
 * @property {string[]} keys  as KeyboardEvent.key names them
 * @property {string} does
 * @property {(actions: object) => void} run
 */

/** @type {Binding[]} */
const BINDINGS = [
  ...PANES.map(({ name, title }, i) => ({
    keys: [`${i + 1}`, ...({ error: ["e"], nll: ["l"] }[name] ?? [])],
    does: `Show or hide: ${title}`,
    run: (actions) => actions.togglePane(name),
  })),
  {
    keys: ["f"],
    does: "Show the pane under the pointer alone, or all again",
    run: (actions) => actions.toggleAlone(),
  },
  { keys: ["+", "="], does: "Enlarge", run: (actions) => actions.zoomBy(1.5) },
  { keys: ["-", "_"], does: "Reduce", run: (actions) => actions.zoomBy(1 / 1.5) },
  { keys: ["0"], does: "Show the whole image", run: (actions) => actions.fit() },
  { keys: ["["], does: "Classes less opaque", run: (actions) => actions.fade(-0.1) },
  { keys: ["]"], does: "Classes more opaque", run: (actions) => actions.fade(0.1) },
  {
    keys: ["s"],
    does: "Two panes over each other, or all side by side",
    run: (actions) => actions.toggleSlider(),
  },
  { keys: [","], does: "Divider to the left", run: (actions) => actions.moveDivider(-0.05) },
  { keys: ["."], does: "Divider to the right", run: (actions) => actions.moveDivider(0.05) },
  {
    keys: ["k"],
    does: "Colour errors by kind, or all alike",
    run: (actions) => actions.toggleErrorColours(),
  },
  { keys: ["n"], does: "Next worst region", run: (actions) => actions.stepRegion(1) },
  { keys: ["p"], does: "Previous worst region", run: (actions) => actions.stepRegion(-1) },
  { keys: ["x"], does: "The other of two predictions", run: (actions) => actions.swap() },
  {
    keys: ["Escape"],
    does: "Leave the cursor; light all pixels again",
    run: (actions) => actions.escape(),
  },
];

/** Keys that a pane handles while it has the focus, or that are held. */
const OTHERS = [
  { keys: ["Space"], does: "While held: the photo alone" },
  { keys: ["Arrows"], does: "In a pane: move the image" },
  { keys: ["Enter"], does: "In a pane: a cursor, which arrows move (Shift: by 10 pixels)" },
];

/** The shortcuts, for a help sheet. */
export const SHORTCUTS = [...BINDINGS, ...OTHERS].map(({ keys, does }) => ({ keys, does }));

/** Elements in which keys are text, or choose from a list by its first letter. */
const TYPING =
  "textarea, select, [contenteditable], input:not([type=range], [type=checkbox], [type=radio], " +
  "[type=button], [type=file])";

/** Elements that the space bar presses. */
const PRESSED_BY_SPACE = "button, summary, a, select, input:not([type=range]), [role=button], textarea";

/**
 * Listens for shortcuts while the viewer is shown.
 * @param {HTMLElement} viewer
 * @param {object} actions
 */
export function attachKeys(viewer, actions) {
  const isApart = (event) =>
    viewer.hidden || event.defaultPrevented || document.querySelector("dialog[open]") !== null;

  document.addEventListener("keydown", (event) => {
    if (isApart(event) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " ") {
      if (event.target.closest?.(PRESSED_BY_SPACE)) return;
      event.preventDefault();
      actions.showRaw(true);
      return;
    }
    if (event.target.closest?.(TYPING)) return;
    const binding = BINDINGS.find(({ keys }) => keys.includes(event.key));
    if (!binding) return;
    event.preventDefault();
    binding.run(actions);
  });
  document.addEventListener("keyup", (event) => {
    if (event.key === " ") actions.showRaw(false);
  });
  window.addEventListener("blur", () => actions.showRaw(false));
}
