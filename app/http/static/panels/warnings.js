/** Warnings about the files, each with its fix, and the options in force. */

import { create } from "../dom.js";
import { createPanel } from "./elements.js";
import { createFixes } from "./fix-buttons.js";

export function mountWarnings(store) {
  const list = create("ul");
  const options = create("div", {
    className: "options",
    role: "group",
    "aria-label": "Options in force",
  });
  const section = createPanel("warnings", "Warnings", list, options);
  const heading = section.querySelector("h2");
  const earlier = []; // the options before each change, which can be taken back
  let current = store.state.options;
  let sentences = [];

  function undo() {
    const previous = earlier.pop();
    current = previous;
    store.set({ options: previous });
    draw();
    const next = options.querySelector("button");
    (next ?? heading).focus();
  }

  function draw() {
    list.replaceChildren(
      ...sentences.map((sentence) =>
        create("li", {}, create("p", {}, sentence), createFixes(sentence, store)),
      ),
    );
    list.hidden = !sentences.length;
    const inForce = Object.entries(current);
    const texts = inForce.map(([option, value]) => create("code", {}, `${option}=${value}`));
    options.replaceChildren(
      create("span", { className: "muted" }, "Options:"),
      ...(texts.length ? texts : ["the defaults"]),
    );
    if (earlier.length) options.append(create("button", { type: "button", onclick: undo }, "Undo"));
    options.hidden = !texts.length && !earlier.length;
    heading.textContent = sentences.length ? "Warnings" : "Options";
    section.classList.toggle("has-warnings", sentences.length > 0);
    section.hidden = list.hidden && options.hidden;
  }

  heading.tabIndex = -1;
  store.on(["options"], (state) => {
    if (state.options === current) return;
    earlier.push(current);
    current = state.options;
    draw();
  });

  return {
    section,
    show({ scene }) {
      sentences = [...new Set(scene.predictions.flatMap(({ answer }) => answer.warnings ?? []))];
      draw();
    },
  };
}
