// When each step of a search began and how long it took; a leg that is missing, in red, with the reason.

import { html } from "./vendor/htm-preact.js";
import { milliseconds } from "./format.js";

const NAMES = {
  generation: "live generation",
  "encode splade": "encode: SPLADE",
  "encode dense": "encode: dense",
  "search bm25": "OpenSearch: bm25",
  "search splade": "OpenSearch: splade",
  "search bm25 and splade": "OpenSearch: both",
  "search dense": "Neo4j: dense",
};

export function Timings({ timings, degraded }) {
  const end = Math.max(...timings.map(({ start, took }) => start + took), 0.001);
  const steps = [...timings].sort((one, other) => one.start - other.start);
  const late = Object.entries(degraded);
  return html`
    <section class="panel timings" aria-label="Timings">
      <h2>Timings <small>${milliseconds(end)}</small></h2>
      <ol>
        ${steps.map(({ step, start, took }) => html`
          <li>
            <span class="step">${NAMES[step] ?? step}</span>
            <span class="track"><span class=${`bar ${legOf(step)} ${late.some(([leg]) => step.includes(leg)) ? "late" : ""}`}
              style=${{ marginLeft: `${(100 * start) / end}%`, width: `max(2px, ${(100 * took) / end}%)` }}></span></span>
            <span class="took">${milliseconds(took)}</span>
          </li>`)}
      </ol>
      ${late.map(([leg, sentence]) => html`<p class="problem degraded" data-leg=${leg}><b>${leg}</b> ${sentence}</p>`)}
    </section>`;
}

const legOf = (step) => ["bm25", "splade", "dense"].find((leg) => step.endsWith(leg)) ?? "";
