/**
 * Files, options and requests: from what someone drops to the scene that the other parts show.
 *
 *     files, options -> requests -> answers -> scene, or a problem
 */

import { create } from "./dom.js";
import { fixesIn } from "./fixes.js";
import { Answers } from "./inputs/answers.js";
import { callsFor } from "./inputs/computation.js";
import { listenForDrops } from "./inputs/drop.js";
import { FileCards } from "./inputs/file-cards.js";
import { FilesBox } from "./inputs/files-box.js";
import { Files, isCase } from "./inputs/files.js";
import { OptionsForm } from "./inputs/options-form.js";
import { decodePhoto } from "./inputs/photo.js";
import { mayPass, roleOf, withUnreadable, wordsFor } from "./inputs/problems.js";
import { Service } from "./inputs/service.js";
import { networkSource, sourcesOf } from "./inputs/sources.js";
import { ERROR_ID, Status } from "./inputs/status.js";
import { Toolbar } from "./inputs/toolbar.js";
import { keepLink, parseHash } from "./link.js";
import { getBlob, RequestError } from "./requests.js";

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
  /** @type {?Promise<void>} settled when the service has said what it offers; null if it failed */
  #ready = null;
  #answers = new Answers(this.#service);
  #imageIndex = 0;
  #decoded = { source: null, imageIndex: 0, photo: Promise.resolve(null) };
  #running = new AbortController();

  #status;
  #box;
  #cards;
  #toolbar;
  #form;
  #options = create("details", { className: "options" }, create("summary", {}, "Options"));

  /** @type {?import("./inputs/sources.js").Role} the role of the file that an error is about */
  #invalidRole = null;
  /** The sources of the sample that was loaded last. */
  #sample = [];
  /** Sentences about files, by role. */
  #notes = {};
  /** The names of the files that a link is about. */
  #linkedNames = [];
  /** @type {?{width: number, height: number, numClasses: number}} those of the last scene */
  #former = null;

  constructor(inputs, status, store) {
    this.#store = store;
    this.#status = new Status(status);
    this.#cards = new FileCards({
      choose: (files, role) => this.#add(files, role),
      assign: (source, role) => this.#change(() => this.#files.assign(source, role)),
      remove: (source) => this.#change(() => this.#files.remove(source)),
    });
    this.#toolbar = new Toolbar({
      sample: () => this.#loadSample(),
      predict: () => this.#add([], null, [networkSource(this.#service.networkName)]),
      chooseImage: (imageIndex) => this.chooseImage(imageIndex),
    });
    this.#form = new OptionsForm((options) => store.set({ options }));
    this.#options.append(this.#form.element);
    const hint = "Drop a photo, a prediction and its truth anywhere on this page.";
    this.#box = new FilesBox(inputs.querySelector("details"));
    this.#box.append(create("p", { className: "drop-hint" }, hint), this.#cards.element);
    inputs.append(this.#toolbar.element, this.#options);
    listenForDrops((files) => this.#add(files, null));

    this.#followLink();
    keepLink(store, () => this.#fileNames());
    // Someone has pasted a link into the address bar: the browser does not reload the page.
    window.addEventListener("hashchange", () => this.#followLink());

    store.on(["options"], () => this.#run());
    store.on(["progress"], ({ progress }) => this.#status.showProgress(progress));
    store.on(["problem"], ({ problem }) => this.#showProblem(problem));
    store.on(["scene", "shown"], ({ scene, shown }) => this.#toolbar.show(scene, shown));
    store.on(["scene"], ({ scene }) => this.#box.showScene(scene));
    this.#ready = this.#loadService();
    this.#status.showNote(this.#nextStep());
    this.#render();
  }

  /** Takes what the link in the address says. */
  #followLink() {
    const { state, fileNames } = parseHash(location.hash);
    if (!fileNames.length && !Object.keys(state).length) return; // such as #main
    this.#linkedNames = fileNames;
    // A link leaves out what is at its default.
    const linked = { options: {}, camera: null, slider: null, shown: 0, ...state };
    const { scene } = this.#store.state;
    if (scene !== null) linked.shown = Math.min(linked.shown, scene.predictions.length - 1);
    if (this.#service.isLoaded) linked.options = this.#service.valid(linked.options);
    this.#store.set(linked);
  }

  async #loadService() {
    try {
      await this.#service.load();
    } catch (error) {
      this.#ready = null;
      this.#report(problemOf(error));
      return;
    }
    const options = this.#service.optionsOf("/v1/evaluate").filter(({ name }) => name !== "maps");
    this.#form.build(options, { palette: this.#cards.chooser("palette", "Own palette") });
    this.#toolbar.showNetwork(this.#service.networkName);
    const { options: chosen } = this.#store.state;
    const valid = this.#service.valid(chosen);
    if (Object.keys(valid).length < Object.keys(chosen).length) this.#store.set({ options: valid });
    this.#render();
  }

  /**
   * Adds files that someone has dropped or chosen.
   * @param {File[]} files
   * @param {?import("./inputs/sources.js").Role} role  null: the role follows from type and name
   * @param {import("./inputs/sources.js").Source[]} others  sources that are no files
   */
  async #add(files, role, others = []) {
    const group = [...others];
    for (const file of files) {
      try {
        group.push(...(await sourcesOf(file)));
      } catch {
        const detail = `${file.name} cannot be read: it is a folder, or was removed or changed.`;
        this.#report({ detail, fix: "Drop files, not folders." });
        return;
      }
    }
    const hasRole = role !== null && group.length === 1;
    if (hasRole) group[0].role = role;
    this.#change(() => {
      if (hasRole) this.#files.assign(group[0], role);
      else {
        // What is left of the sample has nothing to do with another case.
        if (isCase(group)) for (const source of this.#sample) this.#files.remove(source);
        this.#files.add(group);
      }
    });
    const { palette, ...options } = this.#store.state.options;
    if (palette !== undefined && group.some((source) => source.role === "palette")) {
      this.#store.set({ options }); // a request has one palette
    }
  }

  async #loadSample() {
    const store = this.#store;
    this.#running.abort();
    const running = new AbortController();
    this.#running = running;
    const cancel = () => {
      running.abort();
      store.set({ progress: null });
    };
    const progress = { phase: "Loading the sample", fraction: null, cancel };
    store.set({ problem: null, progress });
    try {
      const content = await getBlob("/v1/sample", running.signal);
      const group = await sourcesOf(new File([content], "sample.safetensors"));
      if (running.signal.aborted) return;
      this.#files = new Files();
      this.#sample = group;
      this.#change(() => this.#files.add(group));
      // Options for other files do not fit the sample.
      if (Object.keys(store.state.options).length) store.set({ options: {} });
    } catch (error) {
      if (error.name === "AbortError") return;
      this.#report(problemOf(error));
    } finally {
      if (this.#running === running) store.set({ progress: null });
    }
  }

  /** Changes the files, and computes what they need. */
  #change(change) {
    change();
    this.#imageIndex = 0;
    this.#run();
  }

  /** Computes the scene of the files and options. A request that still runs is cancelled. */
  async #run() {
    this.#running.abort();
    const running = new AbortController();
    this.#running = running;
    const { signal } = running;
    const store = this.#store;
    this.#invalidRole = null;
    this.#notes = {};
    store.set({ problem: null, progress: null });
    this.#status.showNote("");
    this.#render();
    this.#ready ??= this.#loadService();
    await this.#ready;
    if (signal.aborted) return;

    const { options } = store.state;
    const calls = callsFor(this.#files, options);
    if (!calls.length) {
      this.#forget();
      this.#status.showNote(this.#nextStep());
      return;
    }
    const cancel = () => {
      running.abort();
      const again = { text: "Compute", apply: () => this.#run() };
      this.#status.showNote("The request was cancelled.", [again]);
      store.set({ progress: null });
    };
    const onProgress = (phase, fraction) => store.set({ progress: { phase, fraction, cancel } });
    try {
      if (!this.#answers.areFor(calls, options)) {
        markOutdated(true);
        // Decoded during the request. An error is reported when the photo is shown.
        this.#photo(this.#imageIndex).catch(() => {});
        await this.#answers.request(calls, options, { signal, onProgress });
      }
      await this.#showImage(this.#imageIndex);
    } catch (error) {
      if (error.name === "AbortError") return;
      // Pictures of other files would be taken for those of the present ones.
      if (!this.#answers.haveInputs(calls)) this.#forget();
      this.#report(await withUnreadable(problemOf(error), this.#files), error.role);
    } finally {
      if (this.#running === running) store.set({ progress: null });
    }
  }

  #forget() {
    this.#answers.forget();
    markOutdated(false);
    this.#store.set({ scene: null });
  }

  /**
   * Shows an image of the batch that the answers are about.
   * @param {number} imageIndex
   */
  chooseImage(imageIndex) {
    this.#showImage(imageIndex);
  }

  async #showImage(imageIndex) {
    this.#imageIndex = imageIndex;
    const source = this.#files.byRole.photo;
    let photo = null;
    try {
      photo = await this.#photo(imageIndex);
    } catch (error) {
      this.#report(problemOf(error));
    }
    const isPresent = source === this.#files.byRole.photo && imageIndex === this.#imageIndex;
    const scene = isPresent ? this.#answers.scene(imageIndex, photo) : null;
    if (scene === null) return;
    this.#notes = notesOn(scene);
    const shown = Math.min(this.#store.state.shown, scene.predictions.length - 1);
    markOutdated(false);
    this.#store.set({ scene, shown, ...this.#resetBy(scene) });
    this.#render();
  }

  /** Returns the photo of an image of the batch. It is decoded once. */
  async #photo(imageIndex) {
    const source = this.#files.byRole.photo;
    if (source === null) return null;
    if (source !== this.#decoded.source || imageIndex !== this.#decoded.imageIndex) {
      this.#decoded = { source, imageIndex, photo: decodePhoto(source, imageIndex) };
    }
    return this.#decoded.photo;
  }

  /** Returns the members of the state that were about a scene of another size or other classes. */
  #resetBy({ width, height, numClasses }) {
    const former = this.#former ?? { width, height, numClasses };
    this.#former = { width, height, numClasses };
    const hasSize = former.width === width && former.height === height;
    return {
      ...(hasSize ? {} : { camera: null, hover: null }),
      ...(former.numClasses === numClasses ? {} : { isolated: null, highlighted: null, cell: null }),
    };
  }

  /**
   * Shows an error.
   * @param {import("./types.js").Problem} problem
   * @param {import("./inputs/sources.js").Role} [failed]  the prediction whose request has failed
   */
  #report(problem, failed = "prediction") {
    this.#invalidRole = roleOf(problem, failed);
    this.#store.set({ problem });
    this.#render();
  }

  #showProblem(problem) {
    const isAboutOption = this.#form.mark(problem?.where ?? null, problem?.detail ?? "");
    if (isAboutOption) this.#options.open = true;
    if (problem === null) {
      this.#status.showNote("");
      return;
    }
    const { subject, sentence } = wordsFor(problem, this.#invalidRole, this.#files);
    const { options } = this.#store.state;
    const ignored = options.ignore_index ?? this.#service.defaultOf("ignore_index");
    const remedies = fixesIn(problem.fix ?? "", this.#form.names, ignored).map(({ option, value }) => ({
      text: `Use ${option}=${value}`,
      apply: () => this.#store.set({ options: { ...options, [option]: value } }),
    }));
    if (!remedies.length && mayPass(problem) && this.#files.all.length) {
      remedies.push({ text: "Try again", apply: () => this.#run() });
    }
    this.#status.showError(subject, sentence, remedies);
  }

  #render() {
    const marks = { invalid: this.#invalidRole, errorId: ERROR_ID, notes: this.#notes };
    this.#cards.show(this.#files, marks);
    const needsAttention = this.#invalidRole !== null || Object.keys(this.#notes).length > 0;
    this.#box.showFiles(this.#files, needsAttention);
    this.#form.show(this.#store.state.options);
    this.#toolbar.showFiles(this.#files);
  }

  /** Returns a sentence about what is missing. */
  #nextStep() {
    const { photo, prediction, truth } = this.#files.byRole;
    const names = this.#linkedNames.join(", ");
    if (this.#files.unassigned.length) return "Choose which input each file is.";
    if (prediction?.isNetwork) return "Add a photo, which the network predicts.";
    if (prediction !== null) return "Add the truth, which a map of classes is compared with.";
    if (truth !== null) return "Add a prediction: logits, or a map of classes.";
    if (photo !== null) {
      const predict = this.#service.networkName === null ? "" : "Press Predict, or ";
      return predict ? `${predict}add a prediction and its truth.` : "Add a prediction and its truth.";
    }
    return names ? `This link is about ${names}: choose these files again.` : "";
  }

  /** Returns the names of the files, or of those that a link is about. */
  #fileNames() {
    const names = new Set(this.#files.all.map(({ name }) => name));
    return names.size ? [...names] : this.#linkedNames;
  }
}

/** Returns the problem in an error of a request; throws any other error. */
function problemOf(error) {
  if (!(error instanceof RequestError)) throw error;
  return error.problem;
}

/** Marks the pictures and panels as those of former files or options. */
function markOutdated(isOutdated) {
  document.body.classList.toggle("outdated", isOutdated);
}

function notesOn({ photo, width, height }) {
  if (photo === null || (photo.width === width && photo.height === height)) return {};
  const sizes = `${photo.width}×${photo.height} pixels, the maps have ${width}×${height}`;
  return { photo: `The photo has ${sizes}: it is shown scaled.` };
}
