/** Starts the parts of the page: each takes the elements that it fills, and the state. */

import { mountInputs } from "./inputs.js";
import { mountOptionsLine } from "./panels/options-line.js";
import { mountPanels } from "./panels/panels.js";
import { Store } from "./state.js";
import { mountViewer } from "./viewer/viewer.js";

const store = new Store();
const element = (id) => document.getElementById(id);

const { chooseImage } = mountInputs(
  { header: element("header"), inputs: element("inputs"), status: element("status") },
  store,
);
mountViewer(element("viewer"), store);
mountPanels({ header: element("header"), panels: element("panels") }, store, { chooseImage });
mountOptionsLine(element("options-line"), store);

store.on(["scene"], ({ scene }) => {
  element("viewer").hidden = scene === null;
  element("panels").hidden = scene === null;
  document.body.classList.toggle("has-scene", scene !== null);
});

// The tests read and change the state through this name.
window.segLoss = { store };
