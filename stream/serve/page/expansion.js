// The terms to which SPLADE has expanded the query: a click leaves one out of the search, another click puts it back.

import { html, useRef } from "./vendor/htm-preact.js";
import { score } from "./format.js";

export function Expansion({ query, terms, without, change }) {
  const seen = useRef({ query: "", weights: new Map() }); // an answer has no weights of terms that were left out
  if (seen.current.query !== query) seen.current = { query, weights: new Map() };
  const { weights } = seen.current;
  Object.entries(terms).forEach(([term, weight]) => weights.set(term, weight));
  const shown = [...new Set([...Object.keys(terms), ...without])];
  if (!shown.length) return null;
  shown.sort((one, other) => (weights.get(other) ?? 0) - (weights.get(one) ?? 0));
  const heaviest = Math.max(...shown.map((term) => weights.get(term) ?? 0)) || 1;
  return html`
    <section class="expansion" aria-label="Expansion of the query">
      <span class="label" title="what SPLADE searches for; a click leaves a term out">expansion</span>
      ${shown.map((term) => {
        const out = without.includes(term);
        const weight = weights.get(term);
        const next = out ? without.filter((one) => one !== term) : [...without, term];
        return html`
          <button key=${term} class="chip" aria-pressed=${String(!out)} style=${{ "--weight": (weight ?? 0) / heaviest }}
            title=${out ? "put it back" : "leave it out"} onClick=${() => change(next)}>
            ${term}${weight !== undefined && html` <small>${score(weight)}</small>`}
          </button>`;
      })}
    </section>`;
}
