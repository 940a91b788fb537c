// What the judgements say about the shown answer, and the judgements as files.

import { html } from "./vendor/htm-preact.js";
import { save } from "./copies.js";
import { DEPTH, files, ndcg } from "./judgements.js";

export function Judgements({ all, judged, chunkIds }) {
  const measured = ndcg(chunkIds, judged);
  const first = chunkIds.slice(0, DEPTH);
  const known = first.filter((chunkId) => judged.has(chunkId)).length;
  const { queries, qrels } = files(all);
  return html`
    <section class="panel judgements" aria-label="Judgements">
      <h2>nDCG@10 <output>${measured === null ? "–" : measured.toFixed(3)}</output></h2>
      <p class="quiet">${known} of the first ${first.length} are judged; thumbs on the hits judge them</p>
      ${all.size > 0 && html`
        <p class="buttons">
          <button onClick=${() => save("qrels.txt", qrels)}>qrels.txt</button>
          <button onClick=${() => save("queries.tsv", queries)}>queries.tsv</button>
          <span class="quiet">${all.size} ${all.size === 1 ? "query" : "queries"}</span>
        </p>
        <details><summary>TREC qrels</summary><pre class="qrels" tabindex="0">${qrels}</pre></details>`}
    </section>`;
}
