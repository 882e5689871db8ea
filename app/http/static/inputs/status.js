/** Shows the progress of a request, and errors with their fixes. */

import { create } from "../dom.js";

export const ERROR_ID = "problem";

export class Status {
  #progress = create("div", { className: "progress", hidden: true });
  #phase = create("span", { className: "phase" });
  #bar = create("div", {
    className: "bar",
    role: "progressbar",
    "aria-label": "Progress of the request",
    "aria-valuemin": "0",
    "aria-valuemax": "100",
  });
  #fill = create("div", { className: "fill" });
  #cancel = create("button", { type: "button" }, "Cancel");
  #message = create("div", { className: "message", id: ERROR_ID, hidden: true });
  #cancelRequest = () => {};

  /** @param {HTMLElement} element  filled with the progress and the message */
  constructor(element) {
    this.#bar.append(this.#fill);
    this.#progress.append(this.#phase, this.#bar, this.#cancel);
    this.#cancel.addEventListener("click", () => this.#cancelRequest());
    element.append(this.#progress, this.#message);
  }

  /** @param {?import("../types.js").Progress} progress */
  showProgress(progress) {
    this.#progress.hidden = progress === null;
    if (progress === null) return;
    const { phase, fraction, cancel } = progress;
    this.#cancelRequest = cancel;
    // A live region is read aloud when its text changes, so that the text has no percentage.
    if (this.#phase.textContent !== `${phase}…`) this.#phase.textContent = `${phase}…`;
    this.#bar.classList.toggle("indeterminate", fraction === null);
    if (fraction === null) {
      this.#bar.removeAttribute("aria-valuenow");
      this.#fill.style.width = "";
    } else {
      this.#bar.setAttribute("aria-valuenow", `${Math.round(100 * fraction)}`);
      this.#fill.style.width = `${100 * fraction}%`;
    }
  }

  /**
   * Shows an error; none if the sentence is empty.
   * @param {string} subject  the file or option that the error is about; may be empty
   * @param {string} sentence
   * @param {{text: string, apply: () => void}[]} remedies  shown as buttons
   */
  showError(subject, sentence, remedies = []) {
    this.#show("error", subject, sentence, remedies);
  }

  /**
   * Shows a sentence that is no error; none if it is empty.
   * @param {string} sentence
   * @param {{text: string, apply: () => void}[]} remedies  shown as buttons
   */
  showNote(sentence, remedies = []) {
    this.#show("note", "", sentence, remedies);
  }

  #show(kind, subject, sentence, remedies) {
    this.#message.hidden = sentence === "";
    this.#message.classList.toggle("error", kind === "error");
    this.#message.replaceChildren(
      ...(subject ? [create("strong", {}, subject), " "] : []),
      create("span", {}, sentence),
      ...remedies.map(({ text, apply }) =>
        create("button", { type: "button", className: "fix", onclick: apply }, text),
      ),
    );
  }
}
