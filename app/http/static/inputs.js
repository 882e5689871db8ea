/**
 * Files, options and requests: from what someone drops to the scene that the other parts show.
 *
 *     files, options -> computation (requests) -> answers -> scene, or a problem
 */

import { create } from "./dom.js";
import { sceneOf } from "./evaluation.js";
import { fixesIn } from "./fixes.js";
import { callsFor, compute } from "./inputs/computation.js";
import { listenForDrops } from "./inputs/drop.js";
import { FileCards } from "./inputs/file-cards.js";
import { Files } from "./inputs/files.js";
import { FilesBox } from "./inputs/files-box.js";
import { OptionsForm } from "./inputs/options-form.js";
import { decodePhoto } from "./inputs/photo.js";
import { Service } from "./inputs/service.js";
import { ROLES, sourcesOf } from "./inputs/sources.js";
import { ERROR_ID, Status } from "./inputs/status.js";
import { Toolbar } from "./inputs/toolbar.js";
import { hashOf, LINKED, parseHash } from "./link.js";
import { getBlob, RequestError } from "./requests.js";

/** The role of the file that an error about an input of a request is about. */
const ROLE_OF_INPUT = {
  labels: "truth",
  logits: "prediction",
  prediction: "prediction",
  second: "second",
  image: "photo",
  palette: "palette",
};
const LINK_DELAY_MS = 300;

/**
 * @param {{header: HTMLElement, inputs: HTMLElement, status: HTMLElement}} elements
 * @param {import("./state.js").Store} store
 * @returns {{chooseImage: (index: number) => void}}  shows an image of the batch
 */
export function mountInputs({ inputs, status }, store) {
  const mounted = new Inputs(inputs, status, store);
  return { chooseImage: (index) => mounted.chooseImage(index) };
}

class Inputs {
  #store;
  #files = new Files();
  #service = new Service();
  #ready;
  #status;
  #cards;
  #form;
  #options;
  #toolbar;
  #box;
  /** @type {import("./evaluation.js").Answer[]} */
  #answers = [];
  #answered = { calls: [], options: {} };
  #imageIndex = 0;
  #running = new AbortController();
  /** @type {?string} */
  #invalidRole = null;
  #notes = {};
  /** @type {?{width: number, height: number, numClasses: number}} */
  #former = null;
  #linkedNames = [];

  constructor(inputs, status, store) {
    this.#store = store;
    this.#status = new Status(status);
    const cards = create("ul", { className: "file-cards" });
    const fields = create("div", { className: "option-fields" });
    this.#options = create(
      "details",
      { className: "options" },
      create("summary", {}, "Options"),
      fields,
    );
    const bar = create("div", { className: "toolbar" });
    this.#box = new FilesBox(inputs.querySelector("details"));
    this.#box.append(
      create("p", { className: "drop-hint" }, "Drop a photo, a prediction and its truth anywhere on this page."),
      cards,
    );
    inputs.append(bar, this.#options);
    this.#cards = new FileCards(cards, {
      choose: (files, role) => this.#add(files, role),
      assign: (source, role) => this.#change(() => this.#files.assign(source, role)),
      remove: (source) => this.#change(() => this.#files.remove(source)),
    });
    this.#form = new OptionsForm(fields, (options) => store.set({ options }));
    this.#toolbar = new Toolbar(bar, {
      sample: () => this.#loadSample(),
      predict: () => this.#change(() => this.#files.add([this.#networkSource()])),
      chooseImage: (imageIndex) => this.chooseImage(imageIndex),
      link: () => location.href,
    });
    listenForDrops((files) => this.#add(files, null));
    this.#restoreLink();
    store.on(["options"], () => this.#run());
    store.on(["progress"], ({ progress }) => this.#status.showProgress(progress));
    store.on(["problem"], ({ problem }) => this.#showProblem(problem));
    store.on(["scene", "shown"], ({ scene, shown }) => this.#toolbar.show(scene, shown));
    store.on(["scene"], ({ scene }) => this.#box.showScene(scene));
    this.#linkWhenChanged();
    this.#ready = this.#loadService();
    this.#status.showNote(this.#nextStep());
    this.#render();
  }

  /** Shows an image of the batch. */
  chooseImage(imageIndex) {
    this.#showImage(imageIndex);
  }

  async #loadService() {
    try {
      await this.#service.load();
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      this.#store.set({ problem: error.problem });
      return;
    }
    const options = this.#service.optionsOf("/v1/evaluate").filter(({ name }) => name !== "maps");
    this.#form.build(options, { palette: this.#cards.chooser("palette", "Own palette") });
    this.#toolbar.showNetwork(this.#service.networkName);
    const valid = this.#service.valid(this.#store.state.options);
    if (Object.keys(valid).length < Object.keys(this.#store.state.options).length) {
      this.#store.set({ options: valid });
    }
    this.#form.show(this.#store.state.options);
    this.#render();
  }

  /**
   * Adds files that someone has dropped or chosen.
   * @param {File[]} files
   * @param {?import("./inputs/sources.js").Role} role  null: their types and names tell
   */
  async #add(files, role) {
    const group = [];
    for (const file of files) {
      try {
        group.push(...(await sourcesOf(file)));
      } catch {
        const detail = `${file.name} cannot be read: it is a folder, or was removed or changed.`;
        this.#report({ detail, fix: "Drop files, not folders." });
        return;
      }
    }
    if (role !== null && group.length === 1) group[0].role = role;
    const { palette, ...options } = this.#store.state.options;
    if (palette !== undefined && group.some((source) => source.role === "palette")) {
      this.#store.set({ options }); // a request has one palette
    }
    this.#change(() => {
      if (role === "second" && group.length === 1) this.#files.byRole.second = group[0];
      else this.#files.add(group);
    });
  }

  async #loadSample() {
    try {
      const blob = await getBlob("/v1/sample");
      this.#files = new Files();
      await this.#add([new File([blob], "sample.safetensors")], null);
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      this.#report(error.problem);
    }
  }

  #networkSource() {
    return {
      name: this.#service.networkName,
      blob: new Blob(),
      tensor: null,
      isPicture: false,
      isNetwork: true,
      description: "the network that this service has",
      role: "prediction",
    };
  }

  /** Changes the files, and computes what they need. */
  #change(change) {
    change();
    this.#imageIndex = 0;
    this.#run();
  }

  /** Computes the scene of the files and options; a request that still runs is cancelled. */
  async #run() {
    this.#running.abort();
    const running = new AbortController();
    this.#running = running;
    const store = this.#store;
    this.#invalidRole = null;
    this.#notes = {};
    store.set({ problem: null, progress: null });
    this.#status.showNote("");
    this.#render();
    await this.#ready;
    if (running.signal.aborted) return;
    const { options } = store.state;
    const calls = callsFor(this.#files, options);
    if (this.#areAnswered(calls, options)) {
      await this.#showImage(this.#imageIndex);
      return;
    }
    if (!calls.length) {
      this.#answers = [];
      store.set({ scene: null });
      this.#status.showNote(this.#nextStep());
      return;
    }
    const cancel = () => {
      running.abort();
      this.#status.showNote("The request was cancelled.");
      store.set({ progress: null });
    };
    const onProgress = (phase, fraction) => store.set({ progress: { phase, fraction, cancel } });
    try {
      const { signal } = running;
      const answers = await compute(calls, options, this.#service, { signal, onProgress });
      if (signal.aborted) return;
      this.#answers = answers;
      this.#answered = { calls, options };
      await this.#showImage(this.#imageIndex);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof RequestError)) throw error;
      // Pictures of other files or options would be taken for those of the present ones.
      this.#answers = [];
      store.set({ scene: null });
      this.#report(await this.#explained(error.problem), error.role);
    } finally {
      if (this.#running === running) store.set({ progress: null });
    }
  }

  /** Returns whether the answers are those to these requests: another photo needs no request. */
  #areAnswered(calls, options) {
    const isSame = (call, index) => {
      const former = this.#answered.calls[index];
      const inputs = Object.entries(call.inputs);
      return (
        call.path === former.path &&
        inputs.length === Object.keys(former.inputs).length &&
        inputs.every(([name, source]) => former.inputs[name] === source)
      );
    };
    return (
      this.#answers.length > 0 &&
      options === this.#answered.options &&
      calls.length === this.#answered.calls.length &&
      calls.every(isSame)
    );
  }

  /** Shows an image of the batch that the answers are about. */
  async #showImage(imageIndex) {
    const answers = this.#answers;
    this.#imageIndex = imageIndex;
    let photo = null;
    this.#notes = {};
    if (this.#files.byRole.photo !== null) {
      try {
        photo = await decodePhoto(this.#files.byRole.photo, imageIndex);
      } catch (error) {
        if (!(error instanceof RequestError)) throw error;
        this.#report(error.problem);
      }
    }
    if (answers !== this.#answers || imageIndex !== this.#imageIndex) return;
    const { options } = this.#store.state;
    const scene = sceneOf(answers, {
      imageIndex: Math.min(imageIndex, answers[0].maps.prediction.shape[0] - 1),
      photo,
      ignored: ignoredIn(options.ignore_index ?? this.#service.defaultOf("ignore_index")),
    });
    this.#notes = notesOn(scene);
    const shown = Math.min(this.#store.state.shown, scene.predictions.length - 1);
    this.#store.set({ scene, shown, ...this.#outdated(scene) });
    this.#render();
  }

  /** Returns the members of the state that are about a scene of another size or other classes. */
  #outdated({ width, height, numClasses }) {
    const former = this.#former;
    this.#former = { width, height, numClasses };
    const isOf = (name) => former === null || former[name] === this.#former[name];
    return {
      ...(isOf("width") && isOf("height") ? {} : { camera: null, hover: null }),
      ...(isOf("numClasses") ? {} : { isolated: null, highlighted: null, cell: null }),
    };
  }

  /** Returns a problem with the connection as one with a file, if a file cannot be read any more. */
  async #explained(problem) {
    if (problem.status !== undefined) return problem;
    for (const { blob, name } of this.#files.all) {
      try {
        await blob.slice(0, 1).arrayBuffer();
      } catch {
        return {
          detail: `${name} cannot be read any more: it was changed or removed.`,
          fix: "Choose it again.",
        };
      }
    }
    return problem;
  }

  /**
   * Shows an error.
   * @param {import("./types.js").Problem} problem
   * @param {import("./inputs/sources.js").Role} [role]  the prediction whose request has failed
   */
  #report(problem, role = "prediction") {
    const input = /^[a-z_]*/.exec(problem.where ?? "")[0];
    const invalid = Object.hasOwn(ROLE_OF_INPUT, input) ? ROLE_OF_INPUT[input] : null;
    this.#invalidRole = invalid === "prediction" ? role : invalid;
    this.#store.set({ problem });
    this.#render();
  }

  #showProblem(problem) {
    if (problem === null) {
      this.#status.showError("", "");
      this.#form.mark(null, ERROR_ID);
      return;
    }
    const source = this.#files.byRole[this.#invalidRole];
    const subject = source ? `${ROLES[this.#invalidRole]}, ${source.name}:` : "";
    if (this.#form.mark(problem.where ?? null, ERROR_ID)) this.#options.open = true;
    const { options } = this.#store.state;
    const sentence = sentenceOf(problem, subject);
    const remedies = fixesIn(problem.fix ?? "", this.#form.names).map(({ option, value }) => ({
      text: `Use ${option}=${value}`,
      apply: () => this.#store.set({ options: { ...options, [option]: value } }),
    }));
    const mayPass = problem.status === undefined || problem.status === 503 || problem.status === 429;
    if (!remedies.length && mayPass && this.#files.all.length) {
      remedies.push({ text: "Try again", apply: () => this.#run() });
    }
    this.#status.showError(subject, sentence, remedies);
  }

  #render() {
    const marks = { invalid: this.#invalidRole, errorId: ERROR_ID, notes: this.#notes };
    this.#cards.show(this.#files, marks);
    this.#box.showFiles(this.#files);
    this.#form.show(this.#store.state.options);
    this.#toolbar.showFiles(this.#files);
  }

  /** Returns a sentence about what is missing. */
  #nextStep() {
    const { photo, prediction, truth } = this.#files.byRole;
    if (this.#files.unassigned.length) return "Choose which input each file is.";
    if (prediction !== null && truth === null) return "Add the truth: a map of classes is compared with it.";
    if (truth !== null) return "Add a prediction: logits, or a map of classes.";
    if (photo !== null) return "Add a prediction and its truth.";
    if (this.#linkedNames.length) return `This link is about ${this.#linkedNames.join(", ")}: choose these files again.`;
    return "";
  }

  #restoreLink() {
    const { state, fileNames } = parseHash(location.hash);
    this.#linkedNames = fileNames;
    this.#store.set(state);
  }

  #linkWhenChanged() {
    let timer = null;
    this.#store.on([...LINKED, "scene"], () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        const names = this.#files.all.map(({ name }) => name);
        history.replaceState(null, "", hashOf(this.#store.state, names.length ? names : this.#linkedNames));
      }, LINK_DELAY_MS);
    });
  }
}

/** Returns the values in an option like "255" or "0,255"; none in "none". */
function ignoredIn(text) {
  return text.split(",").map(Number).filter(Number.isInteger);
}

function notesOn({ photo, width, height, numImages, imageIndex }) {
  if (photo === null || (photo.width === width && photo.height === height)) return {};
  const sizes = `${photo.width} x ${photo.height}, the maps ${width} x ${height}`;
  return { photo: `The photo has ${sizes} pixels: it is shown scaled.` };
}

/** Returns the detail with the fix, which most details end with, and without `where` if told. */
function sentenceOf({ detail, fix, where }, subject) {
  const isTold = subject !== "" && detail.startsWith(`${where}: `);
  const sentence = isTold ? detail.slice(where.length + 2) : detail;
  return fix && !sentence.includes(fix) ? `${sentence} ${fix}` : sentence;
}
