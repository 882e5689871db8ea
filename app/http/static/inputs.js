/** Files, options and requests. */

export function mountInputs({ header, inputs, status }, store) {}
