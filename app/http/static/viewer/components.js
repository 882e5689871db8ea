/** Connected regions of pixels, and the worst of them. */

/**
 * @typedef {object} Region
 * @property {number} rank  from 1
 * @property {number} truth  the true class
 * @property {number} predicted  the predicted class
 * @property {number} pixels
 * @property {?number} nll  summed over its pixels, in nats; null without NLL
 * @property {number} share  of the summed NLL of the image, or of its wrong pixels without NLL
 * @property {number} left  with top, right and bottom: the box around it, right and bottom excluded
 * @property {number} top
 * @property {number} right
 * @property {number} bottom
 * @property {{x: number, y: number}} worst  its pixel of greatest NLL, the first one without NLL
 */

/**
 * Finds the worst regions of an image.
 *
 * Pixels belong to one region if they touch, by a side or a corner. Without `minNll` a region has wrong
 * pixels of one true and one predicted class; with it, any pixels of at least this NLL, and the classes
 * are those of most of its pixels.
 * @param {object} input
 * @param {Int32Array} input.truth  -1 where ignored
 * @param {Int32Array} input.predicted
 * @param {?Float32Array} input.nll
 * @param {number} input.width
 * @param {number} input.height
 * @param {?number} input.minNll
 * @param {number} input.limit  the number of regions that are returned
 * @returns {{regions: Region[], found: number, ranks: Uint8Array}} the worst first; the number of all
 *   regions; and for each pixel the rank of its region, 0 if it has none
 */
export function worstRegions(input) {
  const { truth, predicted, nll, width, height, minNll, limit } = input;
  const keys = keysOf(input);
  const { labels, count } = label(keys, width, height);
  const pixels = new Float64Array(count);
  const sums = new Float64Array(count);
  let total = 0;
  for (let i = 0; i < labels.length; i++) {
    const value = nll === null ? Number(truth[i] >= 0 && truth[i] !== predicted[i]) : nll[i];
    if (truth[i] >= 0) total += value;
    if (labels[i] < 0) continue;
    pixels[labels[i]]++;
    sums[labels[i]] += value;
  }
  const order = Array.from(sums.keys()).sort((a, b) => sums[b] - sums[a] || a - b);
  const worst = order.slice(0, limit);
  const rankOf = new Uint8Array(count);
  worst.forEach((region, i) => (rankOf[region] = i + 1));
  const ranks = new Uint8Array(labels.length);
  const boxes = worst.map(() => newBox());
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (labels[i] < 0) continue;
      const rank = rankOf[labels[i]];
      if (!rank) continue;
      ranks[i] = rank;
      extend(boxes[rank - 1], x, y, nll === null ? 0 : nll[i], truth[i], predicted[i]);
    }
  }
  const regions = worst.map((region, i) => ({
    rank: i + 1,
    ...classesOf(boxes[i].pairs),
    pixels: pixels[region],
    nll: nll === null ? null : sums[region],
    share: total > 0 && Number.isFinite(total) ? sums[region] / total : 0,
    left: boxes[i].left,
    top: boxes[i].top,
    right: boxes[i].right,
    bottom: boxes[i].bottom,
    worst: boxes[i].worst,
  }));
  return { regions, found: count, ranks };
}

/** Numbers of which equal ones belong together; -1 for pixels of no region. */
function keysOf({ truth, predicted, nll, minNll }) {
  const keys = new Int32Array(truth.length).fill(-1);
  if (minNll !== null) {
    for (let i = 0; i < keys.length; i++) {
      if (truth[i] >= 0 && nll[i] >= minNll) keys[i] = 0;
    }
    return keys;
  }
  let classes = 1;
  for (let i = 0; i < keys.length; i++) {
    if (truth[i] >= classes) classes = truth[i] + 1;
  }
  for (let i = 0; i < keys.length; i++) {
    if (truth[i] >= 0 && truth[i] !== predicted[i]) keys[i] = predicted[i] * classes + truth[i];
  }
  return keys;
}

/**
 * Labels connected pixels of equal keys: a first pass joins each pixel with its neighbours above and to
 * the left, a second one numbers the sets.
 * @returns {{labels: Int32Array, count: number}} -1 where the key is -1
 */
function label(keys, width, height) {
  const labels = new Int32Array(keys.length).fill(-1);
  // The parent of each provisional label.
  let parents = new Int32Array(1024);
  let used = 0;

  const find = (a) => {
    while (parents[a] !== a) {
      parents[a] = parents[parents[a]];
      a = parents[a];
    }
    return a;
  };

  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const key = keys[i];
      if (key < 0) continue;
      let mine = -1;
      const join = (j) => {
        if (keys[j] !== key) return;
        const root = find(labels[j]);
        if (mine < 0) mine = root;
        else if (root < mine) mine = parents[mine] = root;
        else parents[root] = mine;
      };
      if (x > 0) join(i - 1);
      if (y > 0) {
        if (x > 0) join(i - width - 1);
        join(i - width);
        if (x + 1 < width) join(i - width + 1);
      }
      if (mine < 0) {
        if (used === parents.length) {
          const larger = new Int32Array(2 * used);
          larger.set(parents);
          parents = larger;
        }
        mine = parents[used] = used++;
      }
      labels[i] = mine;
    }
  }

  const numbers = new Int32Array(used).fill(-1);
  let count = 0;
  for (let i = 0; i < labels.length; i++) {
    if (labels[i] < 0) continue;
    const root = find(labels[i]);
    if (numbers[root] < 0) numbers[root] = count++;
    labels[i] = numbers[root];
  }
  return { labels, count };
}

function newBox() {
  return {
    left: Infinity,
    top: Infinity,
    right: 0,
    bottom: 0,
    greatest: -1,
    worst: null,
    pairs: new Map(),
  };
}

function extend(box, x, y, nll, truth, predicted) {
  if (x < box.left) box.left = x;
  if (y < box.top) box.top = y;
  if (x >= box.right) box.right = x + 1;
  if (y >= box.bottom) box.bottom = y + 1;
  if (nll > box.greatest) {
    box.greatest = nll;
    box.worst = { x, y };
  }
  const pair = truth * 65536 + predicted;
  box.pairs.set(pair, (box.pairs.get(pair) ?? 0) + 1);
}

/** The most frequent pair of classes. */
function classesOf(pairs) {
  let best = null;
  for (const [pair, count] of pairs) {
    if (best === null || count > best.count) best = { pair, count };
  }
  return { truth: Math.floor(best.pair / 65536), predicted: best.pair % 65536 };
}
