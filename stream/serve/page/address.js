// The address: everything that the page shows is in it, so that it can be sent, and the browser's history works.

import { useEffect, useState } from "./vendor/htm-preact.js";
import { written as number } from "./format.js";

export const DEFAULTS = {
  view: "search", // or "flow"
  q: "",
  mode: "hybrid",
  k: 10,
  weights: {}, // by leg; a leg that is missing has its default weight
  fusion: "min-max",
  without: [], // terms of the expansion
  filters: [], // in the short form of the command line; all must hold
  group: 0, // chunks of a document; 0: hits are not grouped
  deadline: 5, // seconds
  legs: false, // side by side
  pages: 1,
  hit: "", // the chunk_id of the opened hit
  why: "", // the chunk_id that "why not this chunk?" asks for
};

const NUMBERS = ["k", "group", "deadline", "pages"];
const LISTS = ["without", "filters"];
const NAMES = { filters: "filter" }; // in the address; other fields have their own name

// The fields of a query string; what is missing or no number has its default.
export function read(query) {
  const parameters = new URLSearchParams(query);
  const state = { ...DEFAULTS };
  for (const field of Object.keys(DEFAULTS)) {
    const name = NAMES[field] ?? field;
    if (!parameters.has(name)) continue;
    if (LISTS.includes(field)) state[field] = parameters.getAll(name);
    else if (NUMBERS.includes(field)) state[field] = Number(parameters.get(name)) || DEFAULTS[field];
    else if (field === "weights") state.weights = weights(parameters.getAll(name));
    else if (field === "legs") state.legs = true;
    else state[field] = parameters.get(name);
  }
  return state;
}

function weights(texts) {
  const pairs = texts.map((text) => text.split("=")).filter(([leg, weight]) => leg && Number(weight) >= 0);
  return Object.fromEntries(pairs.map(([leg, weight]) => [leg, Number(weight)]));
}

// The query string of a state, without what is the default.
export function write(state) {
  const parameters = new URLSearchParams();
  for (const [field, value] of Object.entries(state)) {
    const name = NAMES[field] ?? field;
    if (LISTS.includes(field)) value.forEach((one) => parameters.append(name, one));
    else if (field === "weights")
      Object.entries(value).forEach(([leg, weight]) => parameters.append(name, `${leg}=${number(weight)}`));
    else if (value !== DEFAULTS[field]) parameters.set(name, value === true ? "1" : value);
  }
  return parameters.size ? `?${parameters}` : "";
}

// The state, and two functions that change it: `go` shows something else of an answer, `ask` asks something else.
export function useAddress() {
  const [state, setState] = useState(() => read(location.search));
  useEffect(() => {
    const moved = () => setState(read(location.search));
    addEventListener("popstate", moved);
    return () => removeEventListener("popstate", moved);
  }, []);
  const go = (changes) => {
    const query = write({ ...read(location.search), ...changes });
    if (query !== location.search) history.pushState(null, "", query || location.pathname);
    setState(read(query));
  };
  const ask = (changes) => go({ pages: 1, hit: "", ...changes });
  return { state, go, ask };
}
