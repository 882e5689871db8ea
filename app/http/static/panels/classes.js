/** The table of classes: point at a row to highlight its class, press it to isolate it. */

import { create } from "../dom.js";
import { classResults, evaluationOf, meanNll } from "./answers.js";
import { COLUMNS, OF_ONE, OF_TWO, WITHOUT_TRUTH } from "./class-columns.js";
import { Confusion } from "./confusion.js";
import { createPanel, createSwatch } from "./elements.js";
import { counted } from "./numbers.js";

/** More rows than these take the browser too long to lay out with each change. */
const MAX_ROWS = 200;

export function mountClasses(store) {
  const note = create("p", { className: "muted" });
  const headRow = create("tr");
  const present = create("tbody");
  const absent = create("tbody", { id: "absent-classes", hidden: true });
  const foot = create("tfoot");
  const table = create(
    "table",
    { "aria-labelledby": "classes-title" },
    create("thead", {}, headRow),
    present,
    absent,
    foot,
  );
  const fold = create("button", {
    type: "button",
    className: "fold",
    "aria-controls": absent.id,
    "aria-expanded": "false",
    onclick: () => unfold(absent.hidden),
  });
  const more = create("button", {
    type: "button",
    className: "fold",
    hidden: true,
    onclick: () => {
      numShown = Infinity;
      sort();
      present.rows[MAX_ROWS].querySelector("button").focus(); // this button is gone
    },
  });
  const scroller = create("div", { className: "scroller" }, table);
  const section = createPanel("classes", "Classes", note, scroller, more, fold);

  /** @type {Map<number, {row: HTMLElement, result: object}>} */
  const rows = new Map();
  const sorting = { column: "class", order: 1 };
  let numAbsent = 0;
  let numShown = MAX_ROWS;
  let marked = { highlighted: null, isolated: null };

  // One listener for all rows, of which there may be thousands.
  const classAt = ({ target }) => {
    const index = target.closest?.("tr")?.dataset.class;
    return index === undefined ? null : Number(index);
  };
  const highlight = (event) => store.set({ highlighted: classAt(event) });
  const leave = () => store.set({ highlighted: null });
  for (const body of [present, absent]) {
    body.addEventListener("mouseover", highlight);
    body.addEventListener("mouseleave", leave);
    body.addEventListener("focusin", highlight);
    body.addEventListener("focusout", leave);
    body.addEventListener("click", (event) => {
      const index = classAt(event);
      store.set({ isolated: store.state.isolated === index ? null : index, cell: null });
    });
  }

  function show({ scene, prediction, evaluation, confusion }) {
    const columns = columnsOf(scene, evaluation);
    const results = resultsOf(scene, prediction, confusion, columns);
    if (!columns.includes(sorting.column)) Object.assign(sorting, { column: "class", order: 1 });
    headRow.replaceChildren(...columns.map((name) => headCell(name, scene)));
    rows.clear();
    marked = { highlighted: null, isolated: null };
    for (const result of results) {
      rows.set(result.index, { result, row: bodyRow(scene, result, columns) });
    }
    numAbsent = results.filter((result) => result.isAbsent).length;
    foot.replaceChildren(...(evaluation ? [meanRow(scene, evaluation, columns)] : []));
    note.textContent = noteOf(scene, evaluation, prediction);
    note.hidden = !note.textContent;
    fold.hidden = numAbsent === 0;
    unfold(!absent.hidden);
    sort();
    mark(store.state);
  }

  function columnsOf(scene, evaluation) {
    if (evaluation === null) return WITHOUT_TRUTH;
    const names = scene.predictions.length > 1 ? OF_TWO : OF_ONE;
    const hasNll = scene.predictions.some(
      ({ answer }) => (evaluationOf(answer)?.loss ?? null) !== null,
    );
    return hasNll ? names : names.filter((name) => name !== "nll");
  }

  function headCell(name, scene) {
    const { title, hint, first } = COLUMNS[name];
    const sortBy = () => {
      const order = sorting.column === name ? -sorting.order : first;
      Object.assign(sorting, { column: name, order });
      sort();
    };
    const titled = name === "iu" && scene.predictions.length > 1 ? "IU A" : title;
    const button = create(
      "button",
      { type: "button", className: "plain", title: hint, onclick: sortBy },
      titled,
    );
    return create("th", { scope: "col", "data-column": name }, button);
  }

  function bodyRow(scene, result, columns) {
    const { index } = result;
    const button = create(
      "button",
      { type: "button", className: "plain name", "aria-pressed": "false" },
      scene.classNames[index] ?? `class ${index}`,
    );
    const number = create("span", { className: "muted number index" }, `${index}`);
    const head = create("div", {}, createSwatch(scene, index), number, button);
    const cells = columns.slice(1).map((name) => {
      const value = COLUMNS[name].value(result);
      const cell = create(
        "td",
        { "data-column": name, "data-value": value ?? "" },
        COLUMNS[name].text(value),
      );
      if (name === "change" && value) cell.classList.add(value > 0 ? "better" : "worse");
      return cell;
    });
    const name = create("th", { scope: "row" }, head);
    return create("tr", { "data-class": `${index}` }, name, ...cells);
  }

  function unfold(isOpen) {
    absent.hidden = !isOpen || numAbsent === 0;
    fold.setAttribute("aria-expanded", `${!absent.hidden}`);
    fold.textContent = `${absent.hidden ? "Show" : "Hide"} ${counted(numAbsent, "absent class", "absent classes")}`;
  }

  function sort() {
    const { value } = COLUMNS[sorting.column];
    const sorted = [...rows.values()].sort((a, b) =>
      compare(value(a.result), value(b.result), sorting.order),
    );
    const rowsOf = (isAbsent) =>
      sorted.filter(({ result }) => result.isAbsent === isAbsent).map(({ row }) => row);
    const shown = rowsOf(false);
    more.hidden = shown.length <= numShown;
    more.textContent = `Show ${counted(shown.length - numShown, "more class", "more classes")}`;
    present.replaceChildren(...shown.slice(0, numShown));
    absent.replaceChildren(...rowsOf(true));
    for (const cell of headRow.cells) {
      const isSorted = cell.dataset.column === sorting.column;
      if (isSorted) cell.setAttribute("aria-sort", sorting.order > 0 ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    }
  }

  function mark({ highlighted, isolated }) {
    for (const index of new Set([...Object.values(marked), highlighted, isolated])) {
      const row = rows.get(index)?.row;
      row?.classList.toggle("highlighted", index === highlighted);
      row?.classList.toggle("isolated", index === isolated);
      row?.querySelector("button").setAttribute("aria-pressed", `${index === isolated}`);
    }
    marked = { highlighted, isolated };
  }

  store.on(["highlighted", "isolated"], mark);
  return { section, show };
}

function resultsOf(scene, prediction, confusion, columns) {
  const results = classResults(scene, prediction, confusion);
  for (const result of results) {
    result.isAbsent = result.pixels === 0 && !confusion?.predictedPixels[result.index];
  }
  if (!columns.includes("change")) return results;
  const [a, b] = scene.predictions.map(({ answer }) => evaluationOf(answer)?.metrics.iu ?? []);
  const predictedByOther = scene.predictions
    .filter((other) => other !== prediction)
    .map(({ answer }) => evaluationOf(answer))
    .filter((evaluation) => evaluation?.confusion)
    .map((evaluation) => new Confusion(evaluation.confusion).predictedPixels);
  for (const result of results) {
    result.iu = a[result.index] ?? null;
    result.otherIu = b[result.index] ?? null;
    result.change =
      result.iu === null || result.otherIu === null ? null : result.otherIu - result.iu;
    if (predictedByOther.some((pixels) => pixels[result.index])) result.isAbsent = false;
  }
  return results;
}

function meanRow(scene, evaluation, columns) {
  const { metrics, valid_pixels } = evaluation;
  const means = {
    pixels: valid_pixels,
    iu: metrics.mean_iu,
    accuracy: metrics.mean_accuracy,
    nll: meanNll(evaluation),
  };
  if (columns.includes("change")) {
    const [a, b] = scene.predictions.map(
      ({ answer }) => evaluationOf(answer)?.metrics.mean_iu ?? null,
    );
    Object.assign(means, { iu: a, otherIu: b, change: a === null || b === null ? null : b - a });
  }
  const cells = columns.slice(1).map((name) => {
    const text = means[name] === undefined ? "" : COLUMNS[name].text(means[name]);
    return create("td", { "data-column": name, "data-value": means[name] ?? "" }, text);
  });
  const title = `Mean of ${counted(metrics.num_classes_averaged, "class", "classes")}`;
  return create("tr", {}, create("th", { scope: "row" }, title), ...cells);
}

function noteOf(scene, evaluation, prediction) {
  if (evaluation === null) return prediction ? "Pixels are those of the prediction." : "";
  if (scene.predictions.length < 2) return "";
  return `A is ${scene.predictions[0].name}, B is ${scene.predictions[1].name}. Accuracy and NLL are those of the prediction shown.`;
}

function compare(a, b, order) {
  if (a === null || b === null) return Number(a === null) - Number(b === null);
  return order * (a - b);
}
