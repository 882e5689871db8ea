/** The confusion matrix of an answer: rows are the truth, columns the prediction. */

/** @typedef {{truth: number, predicted: number, count: number}} Entry */

export class Confusion {
  #counts = new Map();

  /** @param {number[][] | {num_classes: number, triplets: number[][]}} json  up to 256 classes rows */
  constructor(json) {
    this.numClasses = Array.isArray(json) ? json.length : json.num_classes;
    /** @type {Float64Array}  the valid pixels of each true class */
    this.truthPixels = new Float64Array(this.numClasses);
    /** @type {Float64Array}  the valid pixels that each class is predicted for */
    this.predictedPixels = new Float64Array(this.numClasses);
    if (Array.isArray(json)) {
      json.forEach((row, truth) =>
        row.forEach((count, predicted) => this.#add(truth, predicted, count)),
      );
    } else {
      for (const [truth, predicted, count] of json.triplets) this.#add(truth, predicted, count);
    }
  }

  /** @returns {number}  the pixels of one cell */
  at(truth, predicted) {
    return this.#counts.get(truth * this.numClasses + predicted) ?? 0;
  }

  /** @returns {number}  the share of the pixels of the true class; 0 if there are none */
  shareOfTruth(truth, predicted) {
    const pixels = this.truthPixels[truth];
    return pixels ? this.at(truth, predicted) / pixels : 0;
  }

  /** @returns {Entry[]}  the cells off the diagonal with pixels, the most frequent first */
  confusions() {
    const entries = [];
    for (const [key, count] of this.#counts) {
      const truth = Math.floor(key / this.numClasses);
      const predicted = key % this.numClasses;
      if (truth !== predicted) entries.push({ truth, predicted, count });
    }
    return entries.sort((a, b) => b.count - a.count);
  }

  /** @returns {number[]}  the classes in the truth or in the prediction */
  presentClasses() {
    return [...this.truthPixels.keys()].filter(
      (index) => this.truthPixels[index] || this.predictedPixels[index],
    );
  }

  #add(truth, predicted, count) {
    if (!count) return;
    this.#counts.set(truth * this.numClasses + predicted, count);
    this.truthPixels[truth] += count;
    this.predictedPixels[predicted] += count;
  }
}
