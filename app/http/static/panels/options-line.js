/** The options in force, in one line, and the button that takes the last change back. */

import { create } from "../dom.js";

/**
 * @param {HTMLElement} line  hidden while all options are the service's defaults
 * @param {import("../state.js").Store} store
 */
export function mountOptionsLine(line, store) {
  const earlier = []; // the options before each change
  const undo = create("button", { type: "button", onclick: takeBack }, "Undo");
  const texts = create("span", { className: "texts", tabIndex: -1 });
  let current = store.state.options;
  line.append(create("span", { className: "muted" }, "Options:"), texts, undo);

  function takeBack() {
    current = earlier.pop();
    store.set({ options: current });
    draw();
    if (undo.hidden) texts.focus(); // the focus must not be lost with the button
  }

  function draw() {
    const inForce = Object.entries(current);
    const codes = inForce.map(([option, value]) => create("code", {}, `${option}=${value}`));
    texts.replaceChildren(...(codes.length ? codes : ["the defaults"]));
    undo.hidden = !earlier.length;
    line.hidden = !codes.length && !earlier.length && document.activeElement !== texts;
  }

  store.on(["options"], ({ options }) => {
    if (options === current) return;
    earlier.push(current);
    current = options;
    draw();
  });
  draw();
}
