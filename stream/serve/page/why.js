// "Why not this chunk?": where a chunk comes in each leg, and why it is not found.

import { html } from "./vendor/htm-preact.js";
import { call, pathOf, useRemote } from "./api.js";
import { score } from "./format.js";
import { Terms } from "./hit.js";

export function WhyNot({ chunkId, request, go }) {
  const wanted = chunkId && JSON.stringify(request);
  const { value: why, problem } = useRemote(wanted && `${chunkId} ${wanted}`, (signal) =>
    call(`${pathOf(chunkId)}/why`, JSON.parse(wanted), signal),
  );
  const ask = (event) => {
    event.preventDefault();
    go({ why: event.target.elements.chunk.value.trim() });
  };
  return html`
    <section class="panel why" aria-label="Why not this chunk?">
      <h2>Why not this chunk?</h2>
      <form onSubmit=${ask}>
        <input name="chunk" value=${chunkId} placeholder="chunk_id" aria-label="chunk_id" autocomplete="off" spellcheck="false" />
        <button>Ask</button>
      </form>
      ${chunkId && problem && html`<p class="problem">${problem.message}</p>`}
      ${chunkId && why && html`<${Reasons} why=${why} />`}
    </section>`;
}

function Reasons({ why }) {
  return html`
    <div class="reasons" role="status">
      <ul>
        ${why.rank && html`<li>it is hit <b>${why.rank}</b>, with the score ${score(why.score)}</li>`}
        ${why.reasons.map((reason) => html`<li>${reason}</li>`)}
      </ul>
      ${Object.keys(why.legs).length > 0 && html`
        <table>
          <thead><tr><th scope="col">leg</th><th scope="col">rank</th><th scope="col">score</th></tr></thead>
          <tbody>
            ${Object.entries(why.legs).map(([leg, standing]) => html`
              <tr><th scope="row"><span class=${`dot ${leg}`}></span>${leg}</th><td>${standing.rank ?? "–"}</td>
                <td>${standing.score === null ? "–" : score(standing.score)}</td></tr>`)}
          </tbody>
        </table>
        <${Terms} terms=${why.terms} />`}
    </div>`;
}
