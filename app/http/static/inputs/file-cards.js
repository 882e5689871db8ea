/**
 * The cards of the files: one for each role, and one for each file that waits for a role.
 *
 * @typedef {import("./files.js").Files} Files
 * @typedef {import("./sources.js").Role} Role
 * @typedef {import("./sources.js").Source} Source
 */

import { create } from "../dom.js";
import { ROLES } from "./sources.js";

const LABEL_FILES = ".png,.tif,.tiff,.bmp,.npy,.npz,.safetensors";
const ACCEPTED = {
  photo: "image/*,.safetensors",
  prediction: LABEL_FILES,
  truth: LABEL_FILES,
  second: LABEL_FILES,
  palette: ".json,.txt,.gpl",
};
/** The role whose card is only there if it has a file; the options have its file input. */
const OPTIONAL = "palette";
const HINTS = {
  photo: "JPEG or PNG",
  prediction: "logits .npy, .npz, .safetensors, or classes as PNG",
  truth: "classes as PNG, .npy, .safetensors",
  second: "to compare with the first; optional",
  palette: "colours and names of classes: JSON, text, or GIMP palette",
};

export class FileCards {
  element = create("ul", { className: "file-cards" });
  #actions;

  /**
   * @param {object} actions
   * @param {(files: File[], role: Role) => void} actions.choose
   * @param {(source: Source, role: Role) => void} actions.assign
   * @param {(source: Source) => void} actions.remove
   */
  constructor(actions) {
    this.#actions = actions;
  }

  /**
   * Shows the files.
   * @param {Files} files
   * @param {object} marks
   * @param {?Role} marks.invalid  the role of the file that an error is about
   * @param {?string} marks.errorId  the id of the element with the error
   * @param {Object<Role, string>} marks.notes  sentences about files, by role
   */
  show(files, { invalid, errorId, notes }) {
    const focused = document.activeElement?.dataset?.control;
    const roles = Object.keys(ROLES).filter((role) => role !== OPTIONAL || files.byRole[role]);
    const cards = roles.map((role) => {
      const source = files.byRole[role];
      const card = source === null ? this.#emptyCard(role) : this.#card(source, role, notes[role]);
      if (role === invalid) {
        card.classList.add("invalid");
        const control = card.querySelector("select, input");
        control.setAttribute("aria-invalid", "true");
        control.setAttribute("aria-describedby", errorId);
      }
      return card;
    });
    const waiting = files.unassigned.map((source, index) => this.#waitingCard(source, index));
    this.element.replaceChildren(...cards, ...waiting);
    // The focus stays where it was, though the elements are others.
    if (focused) this.element.querySelector(`[data-control="${focused}"]`)?.focus();
  }

  #emptyCard(role) {
    return create(
      "li",
      { className: "file-card empty", "data-role": role },
      create("h3", {}, ROLES[role]),
      this.chooser(role, "Choose a file"),
      create("p", { className: "hint" }, HINTS[role]),
    );
  }

  /**
   * Returns a file input for a role, as a label that looks like a button.
   * @param {Role} role
   * @param {string} text
   */
  chooser(role, text) {
    const input = create("input", {
      type: "file",
      accept: ACCEPTED[role],
      className: "visually-hidden",
      "data-control": `${role}-choose`,
      "aria-label": `${ROLES[role]}: ${text.toLowerCase()}`,
      onchange: () => this.#actions.choose([...input.files], role),
    });
    return create("label", { className: "choose" }, text, input);
  }

  #card(source, role, note) {
    return create(
      "li",
      { className: "file-card", "data-role": role },
      this.#header(source, role, role),
      create("p", { className: "file-name", title: source.name }, source.name),
      create("p", { className: "hint" }, source.description),
      ...(note ? [create("p", { className: "file-note" }, note)] : []),
      this.chooser(role, "Replace"),
    );
  }

  #waitingCard(source, index) {
    return create(
      "li",
      { className: "file-card waiting", "data-role": "none" },
      this.#header(source, null, `waiting-${index}`),
      create("p", { className: "file-name", title: source.name }, source.name),
      create("p", { className: "hint" }, source.description),
    );
  }

  /** Returns the role, as a choice, and the button that removes the file. */
  #header(source, role, key) {
    const title = source.isNetwork
      ? create("h3", {}, ROLES[role])
      : this.#roleSelect(source, role, key);
    return create("div", { className: "file-header" }, title, this.#removeButton(source, key));
  }

  #roleSelect(source, role, key) {
    const select = create("select", {
      "data-control": `${key}-role`,
      "aria-label": `${titleOf(source)} is the`,
      onchange: () => this.#actions.assign(source, select.value),
    });
    const choices = Object.entries(ROLES).map(([value, text]) => create("option", { value }, text));
    if (role === null) {
      choices.unshift(create("option", { value: "", disabled: true }, "Which input?"));
    }
    select.append(...choices);
    select.value = role ?? "";
    return select;
  }

  #removeButton(source, key) {
    return create(
      "button",
      {
        type: "button",
        className: "plain remove",
        "data-control": `${key}-remove`,
        "aria-label": `Remove ${titleOf(source)}`,
        title: "Remove",
        onclick: () => this.#actions.remove(source),
      },
      "×",
    );
  }
}

/** Returns the name of a file, and which of its tensors a source is. */
function titleOf({ name, tensorName }) {
  return tensorName === null ? name : `${tensorName} in ${name}`;
}
