/** Elements, made without HTML text: data of others is text and never markup. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} tag
 * @param {Object<string, *>} [attributes]  null, undefined and false leave an attribute out; a
 *   function under "onclick" listens to "click"
 * @param {...(Node | string | null)} children
 * @returns {HTMLElement}
 */
export function create(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function createSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * A section of the page with a title.
 * @param {string} name  its class, and the beginning of the id of its title
 * @param {string} title
 * @param {...(Node | string | null)} children
 */
export function createPanel(name, title, ...children) {
  const id = `${name}-title`;
  const heading = create("h2", { id }, title);
  return create("section", { class: `panel ${name}`, "aria-labelledby": id }, heading, ...children);
}

/**
 * Buttons of which one is pressed.
 * @param {string} label
 * @param {Map<string, string>} texts  the text of each value
 * @param {(value: string) => void} choose
 * @returns {{element: HTMLElement, press: (value: string) => void}}
 */
export function createChoice(label, texts, choose) {
  const buttons = new Map();
  for (const [value, text] of texts) {
    buttons.set(value, create("button", { type: "button", onclick: () => choose(value) }, text));
  }
  return {
    element: create("div", { class: "choice", role: "group", "aria-label": label }, ...buttons.values()),
    press(value) {
      for (const [name, button] of buttons) button.setAttribute("aria-pressed", name === value);
    },
  };
}

/** A square in the colour of a class. */
export function createSwatch(scene, index) {
  const swatch = create("span", { class: "swatch" });
  const [red, green, blue] = scene.colours.subarray(3 * index, 3 * index + 3);
  swatch.style.backgroundColor = `rgb(${red}, ${green}, ${blue})`;
  return swatch;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
