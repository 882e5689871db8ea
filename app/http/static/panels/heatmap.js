/** Draws a confusion matrix on a canvas, and finds the cell at a point. */

/** @typedef {import("./confusion.js").Confusion} Confusion */

const MAX_CELL = 44;
const MIN_CELL = 2;
const MAX_LABELLED = 40;
const MIN_LABELLED_CELL = 9;
const MAX_LABEL_WIDTH = 118;
const MIN_TEXT_CELL = 30;
const FONT_SIZE = 11;
const TITLE_HEIGHT = 16;

/** How counts become colours, from 0 to 1. */
export const SCALES = {
  log: (confusion, truth, predicted) =>
    Math.log1p(confusion.at(truth, predicted)) /
    Math.log1p(Math.max(1, greatestConfusion(confusion))),
  share: (confusion, truth, predicted) => Math.sqrt(confusion.shareOfTruth(truth, predicted)),
};

const greatest = new WeakMap();

/** Returns the most pixels of a cell off the diagonal. */
export function greatestConfusion(confusion) {
  if (!greatest.has(confusion)) greatest.set(confusion, confusion.confusions()[0]?.count ?? 0);
  return greatest.get(confusion);
}

export class Heatmap {
  #canvas;
  #cells = document.createElement("canvas");
  #layout = null;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
  }

  /**
   * Draws all cells.
   * @param {object} content
   * @param {Confusion} content.confusion
   * @param {number[]} content.classes  the classes of the rows and of the columns
   * @param {string[]} content.names  the names of these classes
   * @param {keyof typeof SCALES} content.scale
   * @param {number} width  the room in CSS pixels
   */
  draw(content, width) {
    const { classes, names, confusion } = content;
    const context = this.#cells.getContext("2d");
    const font = `${FONT_SIZE}px ${getComputedStyle(this.#canvas).fontFamily}`;
    context.font = font;
    const longest = names.reduce(
      (most, name) => Math.max(most, context.measureText(name).width),
      0,
    );
    const labelWidth = Math.ceil(Math.min(MAX_LABEL_WIDTH, longest)) + 8;
    const cellBeside = (gutter) => Math.floor((width - gutter - TITLE_HEIGHT - 2) / classes.length);
    const isLabelled =
      classes.length <= MAX_LABELLED && cellBeside(labelWidth) >= MIN_LABELLED_CELL;
    const gutter = isLabelled ? labelWidth : 2;
    const cell = Math.max(MIN_CELL, Math.min(MAX_CELL, cellBeside(gutter)));
    const origin = gutter + TITLE_HEIGHT;
    const side = origin + cell * classes.length + 2;
    this.#layout = {
      ...content,
      cell,
      origin,
      gutter,
      side,
      font,
      isLabelled,
      ratio: window.devicePixelRatio || 1,
    };
    for (const canvas of [this.#canvas, this.#cells]) {
      canvas.width = canvas.height = Math.round(side * this.#layout.ratio);
    }
    this.#canvas.style.width = this.#canvas.style.height = `${side}px`;
    this.#drawCells(context, confusion);
    this.mark({});
  }

  /**
   * Outlines cells, without redrawing the others.
   * @param {object} marks  each with the positions of a row and a column
   * @param {?{row: number, column: number}} [marks.pointed]
   * @param {?{row: number, column: number}} [marks.chosen]
   */
  mark({ pointed = null, chosen = null }) {
    if (this.#layout === null) return;
    const { cell, origin, side, ratio, classes } = this.#layout;
    const colours = getComputedStyle(this.#canvas);
    const context = this.#canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    context.drawImage(this.#cells, 0, 0);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (pointed !== null) {
      context.fillStyle = colours.getPropertyValue("--matrix-cross");
      const end = origin + cell * classes.length;
      context.fillRect(origin, origin + pointed.row * cell, end - origin, cell);
      context.fillRect(origin + pointed.column * cell, origin, cell, end - origin);
      this.#drawName(context, pointed.row, true, colours.color);
      this.#drawName(context, pointed.column, false, colours.color);
    }
    for (const [place, width] of [
      [pointed, 1.5],
      [chosen, 2.5],
    ]) {
      if (place === null) continue;
      context.strokeStyle = colours.getPropertyValue(place === chosen ? "--accent" : "--text");
      context.lineWidth = width;
      const inset = Math.min(0.5, cell / 8);
      context.strokeRect(
        origin + place.column * cell - inset,
        origin + place.row * cell - inset,
        cell + 2 * inset - 1,
        cell + 2 * inset - 1,
      );
    }
    return side;
  }

  /**
   * Returns the row and the column at a point of the canvas in CSS pixels. Beside the cells one of
   * them is null; elsewhere both are.
   */
  placeAt(x, y) {
    if (this.#layout === null) return { row: null, column: null };
    const { cell, origin, classes } = this.#layout;
    const position = (offset) => {
      const index = Math.floor((offset - origin) / cell);
      return index >= 0 && index < classes.length ? index : null;
    };
    return { row: position(y), column: position(x) };
  }

  #drawCells(context, confusion) {
    const { cell, origin, ratio, classes, scale, font, isLabelled, side } = this.#layout;
    const colours = getComputedStyle(this.#canvas);
    const colour = (name) => rgb(context, colours.getPropertyValue(name));
    const low = colour("--matrix-low");
    const high = colour("--matrix-high");
    const diagonal = colour("--matrix-diagonal");
    const gap = cell >= 8 ? 1 : 0;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, side, side);
    context.font = font;
    context.textBaseline = "middle";
    classes.forEach((truth, row) => {
      classes.forEach((predicted, column) => {
        const share = Math.min(1, SCALES[scale](confusion, truth, predicted));
        const end = truth === predicted ? diagonal : high;
        const [red, green, blue] = low.map((value, index) =>
          Math.round(value + (end[index] - value) * share),
        );
        context.fillStyle = `rgb(${red}, ${green}, ${blue})`;
        const x = origin + column * cell;
        const y = origin + row * cell;
        context.fillRect(x, y, cell - gap, cell - gap);
        if (cell < MIN_TEXT_CELL || !confusion.at(truth, predicted)) return;
        context.fillStyle = red * 0.3 + green * 0.59 + blue * 0.11 > 140 ? "#000" : "#fff";
        context.textAlign = "center";
        const percent = 100 * confusion.shareOfTruth(truth, predicted);
        context.fillText(
          percent < 9.95 ? percent.toFixed(1) : percent.toFixed(0),
          x + cell / 2,
          y + cell / 2,
        );
      });
    });
    context.fillStyle = colours.getPropertyValue("--text-muted");
    context.textAlign = "left";
    context.fillText("predicted", origin, TITLE_HEIGHT / 2);
    context.save();
    context.translate(TITLE_HEIGHT / 2, origin);
    context.rotate(-Math.PI / 2);
    context.textAlign = "right";
    context.fillText("truth", 0, 0);
    context.restore();
    if (!isLabelled) return;
    classes.forEach((_, index) => {
      this.#drawName(context, index, true, colours.getPropertyValue("--text-muted"));
      this.#drawName(context, index, false, colours.getPropertyValue("--text-muted"));
    });
  }

  #drawName(context, index, isRow, colour) {
    const { cell, origin, gutter, font, names, isLabelled } = this.#layout;
    if (!isLabelled) return;
    context.save();
    context.font = font;
    context.textBaseline = "middle";
    context.fillStyle = colour;
    const centre = origin + (index + 0.5) * cell;
    if (isRow) context.translate(origin - 5, centre);
    else {
      context.translate(centre, origin - 5);
      context.rotate(-Math.PI / 2);
    }
    context.textAlign = isRow ? "right" : "left";
    context.fillText(names[index], 0, 0, gutter - 6);
    context.restore();
  }
}

/** Returns red, green and blue of a CSS colour. */
function rgb(context, colour) {
  context.fillStyle = colour.trim();
  const text = context.fillStyle; // the browser makes #rrggbb of it
  return [1, 3, 5].map((begin) => parseInt(text.slice(begin, begin + 2), 16));
}
