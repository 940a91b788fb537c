// The lists of hits: the fused one and, side by side with it, those of the legs.

import { html, useState } from "./vendor/htm-preact.js";
import { Hit } from "./hit.js";

// `lists` is [{name, hits, offset, problem}], the fused list first.
export function Lists({ lists, state, judged, on }) {
  const [marked, mark] = useState("");
  const ranks = ranked(lists[0].hits, state.group);
  const fused = new Map(lists[0].hits.map((hit, n) => [hit.chunk_id, ranks[n]]));
  const holder = lists.find((list) => list.hits.some((hit) => hit.chunk_id === state.hit));
  return html`
    <div class=${lists.length > 1 ? "lists beside" : "lists"}>
      ${lists.map((list, n) => html`
        <section class="list" key=${list.name} aria-label=${list.title}>
          ${lists.length > 1 && html`<h2 class="leg"><span class=${`dot ${list.name}`}></span>${list.title}</h2>`}
          ${list.problem && html`<p class="problem">${list.problem}</p>`}
          ${!list.problem && !list.hits.length && html`<p class="quiet">nothing found</p>`}
          <${List} list=${list} fused=${fused} state=${{ ...state, mode: list.mode }} judged=${judged} marked=${lists.length > 1 ? marked : ""}
            opened=${list === holder ? state.hit : ""} on=${{ ...on, mark, judge: n === 0 && on.judge }} />
        </section>`)}
    </div>`;
}

function List({ list, fused, state, judged, marked, opened, on }) {
  const best = Math.max(...list.hits.map((hit) => hit.score));
  const ranks = ranked(list.hits, state.group);
  return html`
    <ol class="hits">
      ${list.hits.map((hit, n) => html`
        ${state.group > 0 && hit.doc_id !== list.hits[n - 1]?.doc_id && html`<li class="document" key=${`d ${hit.doc_id}`}>${hit.doc_id}</li>`}
        <${Hit} key=${hit.chunk_id} hit=${hit} rank=${ranks[n]} fused=${fused.get(hit.chunk_id)} best=${best} state=${state} opened=${hit.chunk_id === opened}
          marked=${hit.chunk_id === marked} grade=${judged.get(hit.chunk_id)} on=${on} />`)}
    </ol>`;
}

// The rank of each hit; grouped, that of its document.
function ranked(hits, grouped) {
  let rank = 0;
  return hits.map((hit, n) => (grouped && hit.doc_id === hits[n - 1]?.doc_id ? rank : (rank += 1)));
}
