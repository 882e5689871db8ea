/** Numbers as text. A missing number is a dash. */

export const MISSING = "–";

const COUNTS = new Intl.NumberFormat("en");
const isMissing = (value) => value === null || value === undefined || Number.isNaN(value);

/** 119876 is "119,876". */
export function countText(value) {
  return isMissing(value) ? MISSING : COUNTS.format(value);
}

/** 0.6724 is "67.2 %". Only 0 and 1 themselves are "0 %" and "100 %" without digits behind the point. */
export function percentText(share) {
  return isMissing(share) ? MISSING : `${percentDigits(share)} %`;
}

/** 0.6724 is "67.2", for columns whose head has the sign. */
export function percentDigits(share) {
  if (isMissing(share)) return MISSING;
  if (share > 0 && share < 0.0005) return "< 0.1";
  if (share < 1 && share >= 0.9995) return "> 99.9";
  return (100 * share).toFixed(1);
}

/** A loss in nats, with four significant digits. */
export function lossText(value) {
  if (isMissing(value)) return MISSING;
  if (value === 0) return "0";
  return Math.abs(value) >= 1000
    ? COUNTS.format(Number(value.toPrecision(6)))
    : value.toPrecision(4);
}

/** A mean NLL in nats, with three digits behind the point, for columns. */
export function nllText(value) {
  if (isMissing(value)) return MISSING;
  return value > 0 && value < 0.0005 ? "< 0.001" : value.toFixed(3);
}

/** A difference with its sign; digits are those behind the point. */
export function differenceText(value, digits) {
  if (isMissing(value)) return MISSING;
  const text = Math.abs(value).toFixed(digits);
  if (Number(text) === 0) return text;
  return `${value < 0 ? "−" : "+"}${text}`;
}

/** 1 and "pixel" are "1 pixel"; 2 and "pixel" are "2 pixels". */
export function counted(value, noun, plural = `${noun}s`) {
  return `${countText(value)} ${value === 1 ? noun : plural}`;
}
