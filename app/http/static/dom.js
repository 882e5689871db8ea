/** Creates elements. Text becomes text nodes, so that no text of a file or an answer is markup. */

/**
 * @param {string} tag
 * @param {Object<string, any>} properties  properties of the element; names with a hyphen, and
 *   `role`, are attributes, and those that begin with "on" listen to that event
 * @param {...(Node | string)} children
 */
export function create(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}
