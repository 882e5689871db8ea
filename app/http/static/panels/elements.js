/** Elements that several panels are made of. */

import { create } from "../dom.js";

const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} tag
 * @param {Object<string, string | number>} attributes
 * @param {...(Node | string)} children
 * @returns {SVGElement}
 */
export function createSvg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/**
 * A section with a title.
 * @param {string} name  its class, and the beginning of the id of its title
 * @param {string} title
 * @param {...(Node | string)} children
 */
export function createPanel(name, title, ...children) {
  const id = `${name}-title`;
  const heading = create("h2", { id }, title);
  return create(
    "section",
    { className: `panel ${name}`, "aria-labelledby": id },
    heading,
    ...children,
  );
}

/**
 * Buttons of which one is pressed.
 * @param {string} label
 * @param {Object<string, string>} texts  the text of each value
 * @param {(value: string) => void} choose  called with the value of a button that is pressed
 * @returns {{element: HTMLElement, press: (value: string) => void}}
 */
export function createChoice(label, texts, choose) {
  const buttons = Object.entries(texts).map(([value, text]) => {
    const onclick = () => {
      press(value);
      choose(value);
    };
    return create("button", { type: "button", value, onclick }, text);
  });
  const press = (value) => {
    for (const button of buttons) button.setAttribute("aria-pressed", `${button.value === value}`);
  };
  const element = create(
    "div",
    { className: "choice", role: "group", "aria-label": label },
    ...buttons,
  );
  return { element, press };
}

/** A square in the colour of a class. */
export function createSwatch(scene, index) {
  const swatch = create("span", { className: "swatch" });
  const [red, green, blue] = scene.colours.subarray(3 * index, 3 * index + 3);
  swatch.style.backgroundColor = `rgb(${red}, ${green}, ${blue})`;
  return swatch;
}

/** Definitions: names and what each is. */
export function createFacts(rows) {
  const definitions = rows.flatMap(([name, ...contents]) => [
    create("dt", {}, name),
    create("dd", { className: "number" }, ...contents),
  ]);
  return create("dl", { className: "facts" }, ...definitions);
}
