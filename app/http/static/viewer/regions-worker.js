/** Finds the worst regions away from the page's thread. */

import { worstRegions } from "./components.js";

self.addEventListener("message", ({ data: { id, input } }) => {
  const found = worstRegions(input);
  self.postMessage({ id, ...found }, [found.ranks.buffer]);
});
