// Judgements: kept in this browser by query, measured, and written as TREC qrels.

import { useState } from "./vendor/htm-preact.js";

const PLACE = "stream.judgements";
export const DEPTH = 10;

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
