/** The loss of each image of a batch. */

import { create } from "../dom.js";
import { createPanel } from "./elements.js";
import { countText, lossText } from "./numbers.js";

export function mountImages(_store, { chooseImage }) {
  const list = create("ol");
  const section = createPanel("images", "Loss of each image", list);

  function show({ scene, evaluation }) {
    const images = evaluation?.per_image ?? [];
    section.hidden = images.length < 2;
    if (section.hidden) return;
    const greatest = Math.max(...images.map(({ loss }) => loss ?? 0));
    const worstFirst = [...images.keys()].sort(
      (a, b) => (images[b].loss ?? 0) - (images[a].loss ?? 0),
    );
    list.replaceChildren(
      ...worstFirst.map((index) => {
        const { loss, valid_pixels } = images[index];
        const bar = create("span", { className: "bar", "aria-hidden": "true" });
        bar.style.setProperty("--share", greatest > 0 ? loss / greatest : 0);
        const attributes = {
          type: "button",
          className: "plain",
          "aria-current": `${index === scene.imageIndex}`,
          title: `${countText(valid_pixels)} valid pixels`,
          onclick: () => chooseImage(index),
        };
        const name = create("span", { className: "name" }, `Image ${index + 1}`);
        const value = create("span", { className: "number" }, lossText(loss));
        return create("li", {}, create("button", attributes, name, bar, value));
      }),
    );
  }

  return { section, show };
}
