// Numbers and times as the page shows them.

export const count = (number) => number.toLocaleString("en");

export const score = (number) => (Math.abs(number) >= 100 ? number.toFixed(0) : number.toPrecision(3));

// Without the noise of binary fractions: 0.3, not 0.30000000000000004.
export const written = (number) => String(Number(number.toFixed(6)));

export function milliseconds(number) {
  if (number >= 1000) return `${(number / 1000).toFixed(2)} s`;
  return `${number < 10 ? number.toFixed(1) : Math.round(number)} ms`;
}

export function rate(number) {
  return number >= 10 || number === 0 ? count(Math.round(number)) : number.toFixed(1);
}

export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

// Nested objects as rows of [name, value], with a dot between the keys as in filters.
export function flattened(value, name = "") {
  if (value === null || value === undefined) return [];
  if (Array.isArray(value)) return value.flatMap((one) => flattened(one, name));
  if (typeof value !== "object") return [[name, value]];
  return Object.entries(value).flatMap(([key, inner]) => flattened(inner, name ? `${name}.${key}` : key));
}
