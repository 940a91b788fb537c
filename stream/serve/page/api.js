// Calls of the service. The access key is asked for when the service wants one, and kept until the tab is closed.

import { useEffect, useState } from "./vendor/htm-preact.js";

const KEY = "stream.key";
const asking = { ask: null, now: null };

export const key = () => sessionStorage.getItem(KEY);
export const keep = (text) => sessionStorage.setItem(KEY, text);
export const forget = () => sessionStorage.removeItem(KEY);

// The function that asks a person for the key; it returns a promise of whether one was given.
export function whenKeyIsNeeded(ask) {
  asking.ask = ask;
}

// An answer of the service that is an error: `message` is its sentence.
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

// The response of a call; throws a Problem.
export async function open(path, { body, signal } = {}) {
  const used = key();
  const headers = used ? { Authorization: `Bearer ${used}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body === undefined ? "GET" : "POST", body: body && JSON.stringify(body), headers, signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(0, "the service does not answer: is it running?");
  }
  if (response.ok) return response;
  if (response.status === 401 && (await given(used))) return open(path, { body, signal });
  throw new Problem(response.status, await sentence(response));
}

// Several calls at once ask for the key once.
async function given(used) {
  if (key() && key() !== used) return true; // another call has asked in the meantime
  asking.now ??= asking.ask(Boolean(used)).finally(() => (asking.now = null));
  return asking.now;
}

async function sentence(response) {
  try {
    return (await response.json()).detail;
  } catch {
    return `the service has answered ${response.status} ${response.statusText}`;
  }
}

// The answer of a call as an object; throws a Problem.
export async function call(path, body, signal) {
  return (await open(path, { body, signal })).json();
}

export const pathOf = (chunkId) => `/chunks/${encodeURIComponent(chunkId)}`;

// What `load(signal)` returns, or its problem; loaded again when `wanted`, a text, changes. Nothing is loaded for "".
// While the next value is loaded, the last one stays.
export function useRemote(wanted, load) {
  const [state, setState] = useState({ wanted: "", value: null, problem: null });
  useEffect(() => {
    if (!wanted) return undefined;
    const stop = new AbortController();
    load(stop.signal).then(
      (value) => stop.signal.aborted || setState({ wanted, value, problem: null }),
      (problem) => stop.signal.aborted || setState({ wanted, value: null, problem }),
    );
    return () => stop.abort();
  }, [wanted]);
  return { ...state, loading: Boolean(wanted) && state.wanted !== wanted };
}
