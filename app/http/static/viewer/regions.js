/** The list of the worst regions: choosing one brings the panes there. */

import { create } from "../dom.js";
import { layersOf } from "./layers.js";
import { digits, nameOf, percent } from "./pixel.js";
import { swatch } from "./tooltip.js";

const LIMIT = 20;

export class Regions {
  #store;
  #actions;
  #worker = null;
  #id = 0;
  #ranks = null;
  #regions = [];
  #chosen = -1;
  #kind = create(
    "select",
    { onchange: () => this.#find() },
    create("option", { value: "wrong" }, "wrong pixels of one confusion"),
    create("option", { value: "nll" }, "pixels of high NLL"),
  );
  #summary = create("p", { className: "viewer-regions-summary", role: "status" });
  #list = create("ol", { className: "viewer-regions-list" });

  /**
   * @param {import("../state.js").Store} store
   * @param {object} actions
   * @param {(region: import("./components.js").Region) => void} actions.visit
   * @param {(region: ?{ranks: Uint8Array, rank: number}) => void} actions.outline
   */
  constructor(store, actions) {
    this.#store = store;
    this.#actions = actions;
    this.element = create(
      "section",
      { className: "viewer-regions", "aria-labelledby": "viewer-regions-title" },
      create(
        "div",
        { className: "viewer-regions-head" },
        create("h3", { id: "viewer-regions-title" }, "Worst regions"),
        create("label", { className: "viewer-field" }, "Regions of ", this.#kind),
        create("button", { type: "button", onclick: () => this.step(-1) }, "Previous"),
        create("button", { type: "button", onclick: () => this.step(1) }, "Next"),
      ),
      this.#summary,
      this.#list,
    );
    store.on(["scene", "shown"], () => this.#find());
    store.on(["minNll"], () => {
      if (this.#kind.value === "nll") this.#find();
    });
  }

  /** Chooses the next region, or with -1 the previous one. */
  step(by) {
    const { length } = this.#regions;
    if (!length) return;
    const none = by > 0 ? -1 : length;
    const from = this.#chosen < 0 ? none : this.#chosen;
    this.choose((from + by + length) % length);
  }

  /** Chooses the region at an index of the list; -1 for none. */
  choose(index) {
    this.#chosen = index;
    [...this.#list.children].forEach((row, i) => {
      const button = row.firstElementChild;
      if (i === index) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    });
    if (index < 0) {
      this.#actions.outline(null);
      return;
    }
    const region = this.#regions[index];
    this.#reveal(this.#list.children[index]);
    this.#actions.outline({ ranks: this.#ranks, rank: region.rank });
    this.#actions.visit(region);
  }

  /** Scrolls the list, but not the page, whose panes are looked at. */
  #reveal(row) {
    const list = this.#list;
    const top = row.offsetTop;
    const bottom = top + row.offsetHeight;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
  }

  #find() {
    const { scene, shown, minNll } = this.#store.state;
    const id = ++this.#id;
    this.#show([], null);
    const prediction = scene?.predictions[shown];
    this.element.hidden = !scene?.truth || !prediction;
    if (this.element.hidden) return;
    const { nll } = prediction;
    this.#kind.lastElementChild.disabled = nll === null;
    if (nll === null) this.#kind.value = "wrong";
    const { width, height, truth } = scene;
    const layers = layersOf(scene);
    const predicted = layers.classes(shown);
    const threshold = minNll > 0 ? minNll : layers.lnC;
    const input = {
      truth,
      predicted,
      nll,
      width,
      height,
      minNll: this.#kind.value === "nll" ? threshold : null,
      limit: LIMIT,
    };
    this.#summary.textContent = "Looking for regions ...";
    this.#worker ??= this.#start();
    this.#worker.postMessage({ id, input });
  }

  #start() {
    const worker = new Worker(new URL("./regions-worker.js", import.meta.url), { type: "module" });
    worker.addEventListener("message", ({ data }) => {
      // An answer about an earlier scene comes too late.
      if (data.id !== this.#id) return;
      this.#ranks = data.ranks;
      this.#show(data.regions, data.found);
    });
    worker.addEventListener("error", () => {
      this.#summary.textContent = "The regions could not be computed.";
    });
    return worker;
  }

  #show(regions, found) {
    this.#regions = regions;
    if (this.#chosen >= 0) this.choose(-1);
    this.#list.replaceChildren(...regions.map((region, i) => this.#row(region, i)));
    if (found === null) return;
    const isByNll = regions.some((region) => region.nll !== null);
    const order = isByNll ? "by summed NLL" : "by their number of pixels";
    if (!found) this.#summary.textContent = "There is none.";
    else if (found === 1) this.#summary.textContent = "One region.";
    else if (found > LIMIT) {
      const all = found.toLocaleString("en");
      this.#summary.textContent = `The worst ${LIMIT} of ${all} regions, ${order}.`;
    } else this.#summary.textContent = `${found} regions, ${order}.`;
  }

  #row(region, index) {
    const { scene } = this.#store.state;
    const { colours } = layersOf(scene);
    const named = (k) => [
      swatch(colours[k]),
      create("span", { className: "viewer-region-class" }, nameOf(scene, k)),
    ];
    const pixels = `${region.pixels.toLocaleString("en")} px`;
    const facts =
      region.nll === null
        ? `${pixels} · ${percent(region.share)} of the errors`
        : `${pixels} · ${digits(region.nll)} nats · ${percent(region.share)} of the loss`;
    return create(
      "li",
      {},
      create(
        "button",
        { type: "button", className: "viewer-region", onclick: () => this.choose(index) },
        create("span", { className: "viewer-region-rank", "aria-hidden": "true" }, `${index + 1}`),
        create(
          "span",
          { className: "viewer-region-classes" },
          ...named(region.truth),
          create("span", { "aria-hidden": "true" }, "→"),
          create("span", { className: "visually-hidden" }, " predicted as "),
          ...named(region.predicted),
        ),
        create("span", { className: "viewer-region-facts" }, facts),
      ),
    );
  }
}
