/**
 * Reads and writes safetensors files without copies of their elements.
 *
 *     offset  size  content
 *     0       8     header length, unsigned, little-endian
 *     8       ...   header: a JSON object of {dtype, shape, data_offsets} by name
 *     ...     ...   the elements of all tensors, little-endian and row-major
 *
 * @typedef {object} TensorBlob  a tensor whose elements are in a part of a file
 * @property {string} dtype  such as "F16"
 * @property {number[]} shape
 * @property {Blob} blob
 *
 * @typedef {object} Tensor  a tensor in memory
 * @property {string} dtype
 * @property {number[]} shape
 * @property {ArrayBufferView & ArrayLike<any>} data  the bits of F16 and BF16 are a Uint16Array
 */

export const MEDIA_TYPE = "application/x-safetensors";

const MAX_HEADER_BYTES = 100_000_000;
const ARRAYS = {
  U8: Uint8Array,
  I8: Int8Array,
  U16: Uint16Array,
  I16: Int16Array,
  U32: Uint32Array,
  I32: Int32Array,
  U64: BigUint64Array,
  I64: BigInt64Array,
  F16: Uint16Array,
  BF16: Uint16Array,
  F32: Float32Array,
  F64: Float64Array,
};

/**
 * Returns a file of these tensors, in their order.
 * @param {Object<string, TensorBlob>} tensors
 */
export function encode(tensors) {
  const header = {};
  let end = 0;
  for (const [name, { dtype, shape, blob }] of Object.entries(tensors)) {
    header[name] = { dtype, shape, data_offsets: [end, end + blob.size] };
    end += blob.size;
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  // Spaces put the first element at a multiple of 64 bytes, which no reader has to copy.
  const start = new Uint8Array(Math.ceil((8 + text.length) / 64) * 64).fill(0x20);
  new DataView(start.buffer).setBigUint64(0, BigInt(start.length - 8), true);
  start.set(text, 8);
  const blobs = Object.values(tensors).map(({ blob }) => blob);
  return new Blob([start, ...blobs], { type: MEDIA_TYPE });
}

/**
 * Returns the tensors of a file by name, as parts of it.
 * @param {Blob} file
 * @returns {Promise<?Object<string, TensorBlob>>}  null if it is no valid safetensors file
 */
export async function readTensors(file) {
  const start = await file.slice(0, 8).arrayBuffer();
  if (start.byteLength < 8) return null;
  const length = headerLength(start);
  if (length > Math.min(MAX_HEADER_BYTES, file.size - 8)) return null;
  const header = parseHeader(await file.slice(8, 8 + length).text());
  if (header === null) return null;
  const begin = 8 + length;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(header.entries)) {
    if (begin + offsets[1] > file.size) return null;
    const blob = file.slice(begin + offsets[0], begin + offsets[1]);
    tensors[name] = { dtype, shape, blob };
  }
  return tensors;
}

/**
 * Returns the tensors and the metadata of a file in memory. Tensors are views of the buffer, or
 * copies where their elements are misaligned.
 * @param {ArrayBuffer} buffer
 * @returns {{tensors: Object<string, Tensor>, metadata: Object<string, string>}}
 */
export function decode(buffer) {
  const invalid = new RangeError("The answer is no valid safetensors file.");
  if (buffer.byteLength < 8) throw invalid;
  const length = headerLength(buffer);
  if (length > buffer.byteLength - 8) throw invalid;
  const header = parseHeader(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  if (header === null) throw invalid;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(header.entries)) {
    const begin = 8 + length + offsets[0];
    const numBytes = offsets[1] - offsets[0];
    if (begin + numBytes > buffer.byteLength) throw invalid;
    const { BYTES_PER_ELEMENT: itemBytes } = ARRAYS[dtype];
    const isAligned = begin % itemBytes === 0;
    const data = isAligned
      ? new ARRAYS[dtype](buffer, begin, numBytes / itemBytes)
      : new ARRAYS[dtype](buffer.slice(begin, begin + numBytes));
    tensors[name] = { dtype, shape, data };
  }
  return { tensors, metadata: header.metadata };
}

/** @param {ArrayBuffer} start */
function headerLength(start) {
  return Number(new DataView(start).getBigUint64(0, true));
}

/** Returns the checked entries and the metadata; null if one is invalid. */
function parseHeader(text) {
  let header;
  try {
    header = JSON.parse(text);
  } catch {
    return null;
  }
  if (header === null || typeof header !== "object" || Array.isArray(header)) return null;
  const { __metadata__: metadata = {}, ...entries } = header;
  return Object.values(entries).every(isEntry) ? { entries, metadata } : null;
}

function isEntry(entry) {
  const { dtype, shape, data_offsets: offsets } = entry ?? {};
  if (!Object.hasOwn(ARRAYS, dtype) || !areSizes(shape) || !areSizes(offsets)) return false;
  const numElements = shape.reduce((product, size) => product * size, 1);
  const numBytes = numElements * ARRAYS[dtype].BYTES_PER_ELEMENT;
  return offsets.length === 2 && offsets[1] - offsets[0] === numBytes;
}

function areSizes(value) {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);
}
