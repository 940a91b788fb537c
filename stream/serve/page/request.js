// What is asked of the service, from what is in the address.

import { all } from "./syntax.js";
import { DEFAULTS } from "./address.js";

// As in stream/search/request.py; a test compares them.
export const LEGS = {
  bm25: ["bm25"],
  splade: ["splade"],
  dense: ["dense"],
  lexical: ["bm25", "splade"],
  hybrid: ["bm25", "splade", "dense"],
};
export const WEIGHTS = { hybrid: { splade: 0.5, dense: 1.5 } };

export const legs = (state) => LEGS[state.mode] ?? [];

export const weight = (state, leg) => state.weights[leg] ?? WEIGHTS[state.mode]?.[leg] ?? 1;

// The weights that were chosen, of the legs that they mix.
export function weightsOf(state) {
  const mixed = legs(state).length > 1 ? legs(state) : [];
  return Object.fromEntries(Object.entries(state.weights).filter(([leg]) => mixed.includes(leg)));
}

// The body of POST /search, without what is the default. Throws an Error with a sentence for a filter that is wrong.
export function requestOf(state) {
  const request = { query: state.q };
  for (const field of ["mode", "k", "fusion", "deadline"])
    if (state[field] !== DEFAULTS[field]) request[field] = state[field];
  const filter = all(state.filters);
  if (filter) request.filter = filter;
  const weights = weightsOf(state);
  if (Object.keys(weights).length) request.weights = weights;
  if (state.without.length) request.without_terms = state.without;
  if (state.group) request.group = { size: state.group };
  return request;
}

// The same question to each leg of the mode alone.
export function requestsOfLegs(state) {
  const { weights, fusion, ...request } = requestOf(state);
  return legs(state).map((leg) => ({ ...request, mode: leg }));
}
