/**
 * The form of the options, built from the query parameters that /openapi.json describes.
 *
 * @typedef {import("./service.js").Option} Option
 */

import { create } from "../dom.js";

export class OptionsForm {
  element = create("div", { className: "option-fields" });
  #onChange;
  /**
   * @type {Map<string, {control: HTMLInputElement | HTMLSelectElement, error: HTMLElement,
   *   initial: string}>}
   */
  #fields = new Map();

  /**
   * @param {(options: Object<string, string>) => void} onChange  called with the options that
   *   differ from the defaults
   */
  constructor(onChange) {
    this.#onChange = onChange;
  }

  /**
   * @param {Option[]} options
   * @param {Object<string, HTMLElement>} additions  a further control for an option, by its name
   */
  build(options, additions) {
    this.#fields.clear();
    const fields = options.map((option) => this.#field(option));
    for (const [index, { name }] of options.entries()) {
      if (Object.hasOwn(additions, name)) fields[index].append(additions[name]);
    }
    this.element.replaceChildren(...fields);
  }

  /** The names of the options that have a field. */
  get names() {
    return [...this.#fields.keys()];
  }

  /**
   * Shows the values of options.
   * @param {Object<string, string>} options
   */
  show(options) {
    for (const [name, { control, initial }] of this.#fields) {
      const value = options[name] ?? initial;
      if (control.value !== value) control.value = value;
      control.closest(".option").classList.toggle("changed", value !== initial);
    }
  }

  /**
   * Shows an error in the field of the option that it is about.
   * @param {?string} name  null if it is about none
   * @param {string} sentence
   * @returns {boolean}  whether there is such an option
   */
  mark(name, sentence) {
    for (const [key, { control, error }] of this.#fields) {
      const isInvalid = key === name;
      error.textContent = isInvalid ? sentence : "";
      if (isInvalid) control.setAttribute("aria-invalid", "true");
      else control.removeAttribute("aria-invalid");
    }
    return this.#fields.has(name);
  }

  #field({ name, description, schema }) {
    const id = `option-${name}`;
    const initial = schema.default === undefined ? "" : String(schema.default);
    const control = schema.enum
      ? choiceOf(schema, initial)
      : create("input", { type: "text", inputMode: isNumber(schema) ? "decimal" : "text" });
    control.id = id;
    control.name = name;
    control.value = initial;
    const error = create("p", { className: "option-error", id: `${id}-error` });
    control.setAttribute("aria-describedby", `${id}-error ${id}-hint`);
    control.addEventListener("change", () => this.#onChange(this.#changed()));
    this.#fields.set(name, { control, error, initial });
    return create(
      "div",
      { className: "option" },
      create("label", { htmlFor: id }, titleOf(name)),
      control,
      error,
      create("p", { className: "hint", id: `${id}-hint` }, hintOf(description, schema)),
    );
  }

  #changed() {
    const values = [...this.#fields].map(([name, { control, initial }]) => [
      name,
      control.value.trim(),
      initial,
    ]);
    const changed = values.filter(([, value, initial]) => value !== "" && value !== initial);
    return Object.fromEntries(changed.map(([name, value]) => [name, value]));
  }
}

function choiceOf(schema, initial) {
  const select = create("select");
  if (initial === "") select.append(create("option", { value: "" }, "automatic"));
  select.append(...schema.enum.map((value) => create("option", { value }, value)));
  return select;
}

function isNumber({ type }) {
  return type === "number" || type === "integer";
}

/** Returns "Label space" for label_space, and "Number of classes" for num_classes. */
function titleOf(name) {
  const words = name.replace(/^num_/, "number_of_").replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
}

/** Returns a description without the list of choices, which the field itself shows. */
function hintOf(description = "", schema) {
  return schema.enum ? description.replace(/ Expected: [^]*$/, "") : description;
}
