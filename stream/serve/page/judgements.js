// Thumbs as judgements: kept in this browser by query, measured at once, and written as TREC qrels.

import { html, useState } from "./vendor/htm-preact.js";
import { save } from "./copies.js";

const PLACE = "stream.judgements";
const DEPTH = 10;

// By query, the grade of each judged chunk: 1 is relevant, 0 is not.
export function readAll() {
  try {
    return new Map(JSON.parse(localStorage.getItem(PLACE) ?? "[]").map(([query, grades]) => [query, new Map(grades)]));
  } catch {
    return new Map();
  }
}

// The judgements of a query, and a function that changes one of them; a grade of null removes it.
export function useJudgements(query) {
  const [all, setAll] = useState(readAll);
  const judge = (chunkId, grade) => {
    const changed = readAll(); // another tab may have judged too
    const grades = changed.get(query) ?? new Map();
    if (grade === null) grades.delete(chunkId);
    else grades.set(chunkId, grade);
    if (grades.size) changed.set(query, grades);
    else changed.delete(query);
    localStorage.setItem(PLACE, JSON.stringify([...changed].map(([text, kept]) => [text, [...kept]])));
    setAll(changed);
  };
  return { all, judged: all.get(query) ?? new Map(), judge };
}

// nDCG@10 (Järvelin and Kekäläinen, TOIS 2002) of chunk IDs, the best first; null if nothing is judged as relevant.
// A chunk that is not judged counts as not relevant, as in trec_eval.
export function ndcg(chunkIds, judged) {
  const ideal = gain([...judged.values()].sort((one, other) => other - one));
  return ideal ? gain(chunkIds.map((chunkId) => judged.get(chunkId) ?? 0)) / ideal : null;
}

const gain = (grades) => grades.slice(0, DEPTH).reduce((sum, grade, n) => sum + grade / Math.log2(n + 2), 0);

// Two files that `stream eval --queries … --qrels …` reads. The formats have no quotes: an ID with white space is left out.
export function files(all) {
  const queries = [...all.keys()].map((query, n) => `q${n + 1}\t${query.replace(/\s+/g, " ").trim()}\n`);
  const qrels = [...all.values()].flatMap((grades, n) =>
    [...grades].filter(([chunkId]) => !/\s/.test(chunkId)).map(([chunkId, grade]) => `q${n + 1} 0 ${chunkId} ${grade}\n`),
  );
  return { queries: queries.join(""), qrels: qrels.join("") };
}

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
