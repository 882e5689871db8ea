/** How the service read each file: a wrong reading of labels is the most frequent mistake. */

import { create } from "../dom.js";
import { createFacts, createPanel, createSwatch } from "./elements.js";
import { counted, countText } from "./numbers.js";

const TITLES = { labels: "Labels", prediction: "Prediction", logits: "Logits", image: "Photo" };

export function mountReadings() {
  const body = create("div", { className: "readings" });
  const section = createPanel("read", "How the files were read", body);

  function show({ scene, prediction }) {
    const inputs = Object.entries(prediction?.answer.inputs ?? {});
    section.hidden = !inputs.length;
    body.replaceChildren(...inputs.map(([name, input]) => reading(scene, name, input)));
  }

  return { section, show };
}

function reading(scene, name, input) {
  const { values = [], values_left_out: leftOut = 0 } = input;
  const parts = [create("h3", {}, TITLES[name] ?? name), createFacts(factsOf(input))];
  if (values.length) parts.push(valuesTable(scene, input, leftOut));
  return create("div", { className: "reading" }, ...parts);
}

function factsOf({ file, mode, dtype, shape, layout, read_as, label_space, ignored_pixels }) {
  const size = shape ? shape.join(" × ") : null;
  const texts = [
    ["File", [file, mode && `mode ${mode}`, dtype, size].filter(Boolean).join(", ")],
    ["Layout", layout],
    ["Read as", [read_as, label_space && `label space ${label_space}`].filter(Boolean).join(", ")],
    [
      "Ignored",
      ignored_pixels === undefined || ignored_pixels === null
        ? null
        : counted(ignored_pixels, "pixel"),
    ],
  ];
  return texts.filter(([, text]) => text);
}

function valuesTable(scene, { values, read_as, label_space }, leftOut) {
  const isClass = read_as === "indices" && (label_space ?? "raw") === "raw";
  const rows = values.map(([value, count]) => {
    const shown = [Array.isArray(value) ? value.join(", ") : `${value}`];
    if (isClass && value >= 0 && value < scene.numClasses) {
      shown.push(" ", createSwatch(scene, value), ` ${scene.classNames[value]}`);
    }
    return create(
      "tr",
      {},
      create("th", { scope: "row" }, ...shown),
      create("td", {}, countText(count)),
    );
  });
  const head = ["Value in the file", "Pixels"].map((title) =>
    create("th", { scope: "col" }, title),
  );
  const table = create(
    "table",
    {},
    create("thead", {}, create("tr", {}, ...head)),
    create("tbody", {}, ...rows),
  );
  const attributes = {
    className: "scroller limited",
    tabIndex: 0,
    role: "region",
    "aria-label": "Values in the file",
  };
  const more = leftOut
    ? [create("p", { className: "muted" }, `${counted(leftOut, "further value")} not listed.`)]
    : [];
  const number = counted(values.length + leftOut, "value");
  return create(
    "details",
    {},
    create("summary", {}, `${number} in the file`),
    create("div", attributes, table),
    ...more,
  );
}
