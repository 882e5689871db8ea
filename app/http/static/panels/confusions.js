/** The confusion matrix as a heat map, and its most frequent confusions as a list. */

import { create } from "../dom.js";
import { createChoice, createPanel, createSwatch } from "./elements.js";
import { greatestConfusion, Heatmap } from "./heatmap.js";
import { counted, countText, percentText } from "./numbers.js";

const MAX_MATRIX_CLASSES = 256;
const NUM_LISTED = 10;
const HINT = "Point at a cell, or use the arrow keys. A click, or Enter, lights its pixels.";
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export function mountConfusions(store) {
  const matrix = createMatrix(store);
  const list = create("ol", { className: "frequent" });
  const note = create("p", { className: "muted" });
  const section = createPanel(
    "confusions",
    "Confusions",
    note,
    matrix.element,
    create("h3", {}, "Most frequent, truth → prediction"),
    list,
  );
  /** @type {?import("./panels.js").Shown} */
  let current = null;

  function show(shown) {
    current = shown;
    const { scene, confusion } = shown;
    section.hidden = confusion === null;
    if (confusion === null) return;
    const hasMatrix = confusion.numClasses <= MAX_MATRIX_CLASSES;
    matrix.element.hidden = !hasMatrix;
    if (hasMatrix) matrix.show(shown);
    const entries = confusion.confusions();
    list.replaceChildren(
      ...entries.slice(0, NUM_LISTED).map((entry) => item(scene, confusion, entry)),
    );
    const wrong = entries.reduce((sum, { count }) => sum + count, 0);
    note.textContent = wrong
      ? `${counted(wrong, "pixel")} in ${counted(entries.length, "cell")} off the diagonal.`
      : "No pixel is wrong.";
    mark(store.state);
  }

  function item(scene, confusion, { truth, predicted, count }) {
    const share = percentText(confusion.shareOfTruth(truth, predicted));
    const button = create(
      "button",
      {
        type: "button",
        className: "plain",
        "data-truth": `${truth}`,
        "data-predicted": `${predicted}`,
        onclick: () => toggleCell(store, truth, predicted),
      },
      create(
        "span",
        { className: "pair" },
        createSwatch(scene, truth),
        scene.classNames[truth],
        create("span", { className: "muted", "aria-hidden": "true" }, "→"),
        create("span", { className: "visually-hidden" }, " predicted as "),
        createSwatch(scene, predicted),
        scene.classNames[predicted],
      ),
      create("span", { className: "number muted" }, `${countText(count)} · ${share}`),
    );
    button.title = `${counted(count, "pixel")}, ${share} of ${scene.classNames[truth]}`;
    return create("li", {}, button);
  }

  function mark({ cell }) {
    if (current?.confusion) matrix.mark();
    for (const button of list.querySelectorAll("button")) {
      const { truth, predicted } = button.dataset;
      const isPressed =
        cell !== null && cell.truth === Number(truth) && cell.predicted === Number(predicted);
      button.setAttribute("aria-pressed", `${isPressed}`);
    }
  }

  store.on(["cell"], mark);
  return { section, show };
}

function toggleCell(store, truth, predicted) {
  const { cell } = store.state;
  const isChosen = cell !== null && cell.truth === truth && cell.predicted === predicted;
  store.set({ cell: isChosen ? null : { truth, predicted }, isolated: null });
}

/** The canvas, its controls, and the line about the cell that the pointer or the keyboard is at. */
function createMatrix(store) {
  const canvas = create("canvas");
  const line = create("p", { className: "cell-line number" }, HINT);
  const spoken = create("p", { className: "visually-hidden", role: "status" });
  const board = create(
    "div",
    {
      className: "board",
      tabIndex: 0,
      role: "application",
      "aria-roledescription": "heat map",
      "aria-label": "Confusion matrix, rows are the truth",
      "aria-describedby": "matrix-line",
    },
    canvas,
  );
  line.id = "matrix-line";
  const legendEnd = create("span", { className: "number" });
  const bar = create("span", { className: "ramp" });
  const diagonal = create("span", { className: "diagonal" });
  const legend = create("p", { className: "legend muted" }, "0", bar, legendEnd, diagonal, "right");
  const scales = createChoice(
    "Colours",
    { log: "Pixels (log)", share: "Share of row" },
    (value) => {
      scale = value;
      draw();
    },
  );
  const all = create("input", { type: "checkbox", onchange: () => draw() });
  const allLabel = create("label", {}, all, " with absent classes");
  const controls = create("div", { className: "controls" }, scales.element, allLabel);
  const element = create("div", { className: "matrix" }, controls, board, line, legend, spoken);
  const heatmap = new Heatmap(canvas);

  let current = null;
  let scale = "log";
  let classes = [];
  let pointed = null; // {row, column}
  let width = 0;
  scales.press(scale);

  function show(shown) {
    current = shown;
    pointed = null;
    line.textContent = HINT;
    draw();
  }

  function draw() {
    if (current?.confusion == null || width === 0) return;
    const { scene, confusion } = current;
    const present = confusion.presentClasses();
    allLabel.hidden = present.length === confusion.numClasses;
    classes = all.checked || !present.length ? [...Array(confusion.numClasses).keys()] : present;
    if (pointed !== null && Math.max(pointed.row, pointed.column) >= classes.length) pointed = null;
    const names = classes.map((index) => scene.classNames[index]);
    heatmap.draw({ confusion, classes, names, scale }, width);
    legendEnd.textContent =
      scale === "log" ? counted(greatestConfusion(confusion), "pixel") : "100 % of the row";
    mark();
  }

  function mark() {
    const { cell } = store.state;
    const row = cell === null ? -1 : classes.indexOf(cell.truth);
    const column = cell === null ? -1 : classes.indexOf(cell.predicted);
    heatmap.mark({ pointed, chosen: row < 0 || column < 0 ? null : { row, column } });
  }

  function point(place) {
    pointed = place;
    line.textContent = place === null ? HINT : describe(place);
    mark();
  }

  function describe({ row, column }) {
    const { scene, confusion } = current;
    const [truth, predicted] = [classes[row], classes[column]];
    const [trueName, predictedName] = [scene.classNames[truth], scene.classNames[predicted]];
    const count = confusion.at(truth, predicted);
    const share = count
      ? `, ${percentText(confusion.shareOfTruth(truth, predicted))} of ${trueName}`
      : "";
    const pair =
      truth === predicted
        ? `${trueName}, predicted correctly`
        : `${trueName} predicted as ${predictedName}`;
    return `${pair}: ${counted(count, "pixel")}${share}`;
  }

  function placeOf(event) {
    const { left, top } = canvas.getBoundingClientRect();
    return heatmap.placeAt(event.clientX - left, event.clientY - top);
  }

  function highlight(index) {
    if (store.state.highlighted !== index) store.set({ highlighted: index });
  }

  canvas.addEventListener("pointermove", (event) => {
    const { row, column } = placeOf(event);
    const isCell = row !== null && column !== null;
    point(isCell ? { row, column } : null);
    highlight(isCell ? null : (classes[row ?? column] ?? null));
  });
  canvas.addEventListener("pointerleave", () => {
    point(null);
    highlight(null);
  });
  canvas.addEventListener("click", (event) => {
    const { row, column } = placeOf(event);
    if (row !== null && column !== null) toggleCell(store, classes[row], classes[column]);
    else if (row !== null || column !== null) toggleClass(classes[row ?? column]);
  });
  board.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { row, column } = pointed ?? firstPlace();
    if (event.key in STEPS) {
      const [down, right] = pointed === null ? [0, 0] : STEPS[event.key];
      moveTo(row + down, column + right);
    } else if (event.key === "Home") moveTo(row, 0);
    else if (event.key === "End") moveTo(row, classes.length - 1);
    else if (event.key === "Enter" || event.key === " ")
      toggleCell(store, classes[row], classes[column]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  board.addEventListener("blur", () => point(null));

  function toggleClass(index) {
    store.set({ isolated: store.state.isolated === index ? null : index, cell: null });
  }

  function firstPlace() {
    const { cell } = store.state;
    const place = cell && {
      row: classes.indexOf(cell.truth),
      column: classes.indexOf(cell.predicted),
    };
    return place && place.row >= 0 && place.column >= 0 ? place : { row: 0, column: 0 };
  }

  function moveTo(row, column) {
    const within = (index) => Math.max(0, Math.min(classes.length - 1, index));
    point({ row: within(row), column: within(column) });
    spoken.textContent = line.textContent;
  }

  new ResizeObserver(() => {
    const available = element.clientWidth;
    if (available === width || available === 0) return;
    width = available;
    draw();
  }).observe(element);
  document.addEventListener("themechange", draw);

  return { element, show, mark };
}
