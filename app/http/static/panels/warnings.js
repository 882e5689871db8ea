/** Warnings about the files, each with its fix. */

import { create } from "../dom.js";
import { createPanel } from "./elements.js";
import { createFixes } from "./fix-buttons.js";

export function mountWarnings(store) {
  const list = create("ul");
  const section = createPanel("warnings", "Warnings", list);

  function show({ scene }) {
    const sentences = new Set(scene.predictions.flatMap(({ answer }) => answer.warnings ?? []));
    const items = [...sentences].map((sentence) =>
      create("li", {}, create("p", {}, sentence), createFixes(sentence, store)),
    );
    list.replaceChildren(...items);
    section.hidden = !items.length;
  }

  return { section, show };
}
