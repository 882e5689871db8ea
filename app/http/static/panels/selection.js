/** The line that says which pixels alone are lit, and lights all again. */

import { create } from "../dom.js";
import { counted } from "./numbers.js";

export function mountSelection(store) {
  const text = create("p", { role: "status" });
  const clear = create(
    "button",
    { type: "button", onclick: () => store.set({ isolated: null, cell: null }) },
    "Show all",
  );
  const section = create(
    "section",
    { className: "selection", "aria-label": "Selection", hidden: true },
    text,
    clear,
  );
  let confusion = null;

  function describe({ scene, isolated, cell }) {
    section.hidden = scene === null || (isolated === null && cell === null);
    if (section.hidden) return;
    const name = (index) => scene.classNames[index] ?? `class ${index}`;
    if (cell === null) {
      text.textContent = `Only ${name(isolated)} is lit.`;
      return;
    }
    // The matrix is that of the whole batch.
    const where = scene.numImages > 1 ? ` in ${scene.numImages} images` : "";
    const pixels = confusion
      ? ` (${counted(confusion.at(cell.truth, cell.predicted), "pixel")}${where})`
      : "";
    text.textContent =
      cell.truth === cell.predicted
        ? `Only ${name(cell.truth)}, predicted correctly, is lit${pixels}.`
        : `Only ${name(cell.truth)} predicted as ${name(cell.predicted)} is lit${pixels}.`;
  }

  store.on(["isolated", "cell"], describe);
  return {
    section,
    show(shown) {
      confusion = shown.confusion;
      describe(store.state);
    },
  };
}
