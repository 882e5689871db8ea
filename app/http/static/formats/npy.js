/**
 * Reads the header of a file of numpy.save, so that its elements can be sent without a copy.
 *
 * The service reads NPY files itself, and says what is wrong with one. This module only recognizes
 * those whose elements a safetensors file can hold as they are.
 *
 * @typedef {import("./safetensors.js").TensorBlob} TensorBlob
 */

const MAGIC = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59];
const MAX_HEADER_BYTES = 64 * 1024;
// The header that NumPy writes. Any other valid one is read by the service.
const HEADER = new RegExp(
  /^\{'descr': '([<|])([fiu])([1248])', 'fortran_order': False, /.source +
    /'shape': \(([0-9]+(?:, [0-9]+)*),?\), \} *\n$/.source,
);
/** The number type in any header, such as one of column-major numbers. */
const TYPE = /'descr': *'[<>|=]?([a-zA-Z])/;
const TYPE_BYTES = 256;
const KINDS = { f: "F", i: "I", u: "U" };

/**
 * Returns the tensor in an NPY file.
 * @param {Blob} file
 * @returns {Promise<?TensorBlob>}  null for any other file, and for one whose elements are not
 *   row-major and little-endian numbers, exactly as many as its shape says
 */
export async function readTensor(file) {
  const start = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  if (start.length < 12 || MAGIC.some((byte, index) => start[index] !== byte)) return null;
  const view = new DataView(start.buffer);
  const isFirstVersion = start[6] === 1;
  const length = isFirstVersion ? view.getUint16(8, true) : view.getUint32(8, true);
  if (length > MAX_HEADER_BYTES) return null;
  const begin = (isFirstVersion ? 10 : 12) + length;
  const header = HEADER.exec(await file.slice(begin - length, begin).text());
  if (header === null) return null;
  const [, order, kind, itemBytes, shape] = header;
  if ((order === "|") !== (itemBytes === "1") || (kind === "f" && itemBytes === "1")) return null;
  const sizes = shape.split(",").map(Number);
  const numBytes = sizes.reduce((product, size) => product * size, Number(itemBytes));
  if (numBytes !== file.size - begin) return null;
  return { dtype: `${KINDS[kind]}${8 * Number(itemBytes)}`, shape: sizes, blob: file.slice(begin) };
}

/**
 * Returns whether an NPY file has floating-point numbers, as the start of its header says.
 * @param {Blob} file
 * @returns {Promise<?boolean>}  null for any other file
 */
export async function hasFloats(file) {
  const bytes = new Uint8Array(await file.slice(0, TYPE_BYTES).arrayBuffer());
  if (MAGIC.some((byte, index) => bytes[index] !== byte)) return null;
  const type = TYPE.exec(String.fromCharCode(...bytes));
  return type === null ? null : type[1] === "f";
}
