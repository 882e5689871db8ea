/** Reads the header of a PNG file, which distinguishes a photo from a map of classes. */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const MODES = { 0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA" };

/**
 * @param {Blob} file
 * @returns {Promise<?{width: number, height: number, bits: number, mode: string}>}  the mode is
 *   "palette", "grey", "grey with alpha", "RGB" or "RGBA"; null for any other file
 */
export async function readHeader(file) {
  const start = new Uint8Array(await file.slice(0, 26).arrayBuffer());
  if (start.length < 26 || SIGNATURE.some((byte, index) => start[index] !== byte)) return null;
  const view = new DataView(start.buffer);
  const mode = MODES[start[25]];
  if (mode === undefined) return null;
  return { width: view.getUint32(16), height: view.getUint32(20), bits: start[24], mode };
}
