/**
 * Returns a percentile of values that are not negative, as NumPy's default method computes it.
 *
 * The bits of such floats are in the order of the floats: the upper and then the lower halves of the
 * bits are counted, which finds the exact value without sorting.
 * @param {Float32Array} values
 * @param {?Int32Array} labels  values with a negative label are left out
 * @param {number} fraction  from 0 to 1
 * @returns {number} 0 if there is no value
 */
export function percentile(values, labels, fraction) {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const upper = new Uint32Array(1 << 16);
  let count = 0;
  for (let i = 0; i < bits.length; i++) {
    if (labels !== null && labels[i] < 0) continue;
    upper[bits[i] >>> 16]++;
    count++;
  }
  if (!count) return 0;
  const position = fraction * (count - 1);
  const rank = Math.floor(position);
  const low = valueOfRank(bits, labels, upper, rank);
  const high = rank + 1 < count ? valueOfRank(bits, labels, upper, rank + 1) : low;
  return high === low ? low : low + (high - low) * (position - rank);
}

function valueOfRank(bits, labels, upper, rank) {
  let half = 0;
  while (rank >= upper[half]) rank -= upper[half++];
  const lower = new Uint32Array(1 << 16);
  for (let i = 0; i < bits.length; i++) {
    if (bits[i] >>> 16 !== half || (labels !== null && labels[i] < 0)) continue;
    lower[bits[i] & 0xffff]++;
  }
  let rest = 0;
  while (rank >= lower[rest]) rank -= lower[rest++];
  return new Float32Array(Uint32Array.of((half << 16) | rest).buffer)[0];
}
