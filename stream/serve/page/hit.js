// One hit: its share from each leg, its rank in each, the best place of its text; opened, everything else.

import { html, useEffect, useRef } from "./vendor/htm-preact.js";
import { call, pathOf, useRemote } from "./api.js";
import { flattened, score } from "./format.js";
import { down, up } from "./icons.js";
import { legs, requestOf } from "./request.js";
import { equals } from "./syntax.js";

// `best` is the score of the best hit: its bar has the full width.
// `rank` is its place in its list, `fused` that in the fused list.
export function Hit({ hit, rank, fused, best, state, opened, marked, grade, on }) {
  const names = legs(state).filter((leg) => hit.legs[leg]);
  return html`
    <li class=${`hit ${opened ? "opened" : ""} ${marked ? "marked" : ""}`} data-chunk=${hit.chunk_id}
      onMouseEnter=${() => on.mark(hit.chunk_id)} onfocusin=${() => on.mark(hit.chunk_id)}>
      <div class="head">
        <span class="place" aria-hidden="true">${rank}</span>
        <h3>
          <button class="title" aria-expanded=${String(opened)} onClick=${() => on.open(opened ? "" : hit.chunk_id)}>
            ${breakable(hit.chunk_id)}
          </button>
        </h3>
        <span class="version" title="version">v${hit.version}</span>
        ${on.judge && html`<${Thumbs} chunkId=${hit.chunk_id} grade=${grade} judge=${on.judge} />`}
      </div>
      <${Shares} hit=${hit} names=${names} best=${best} />
      <${Ranks} hit=${hit} asked=${legs(state)} fused=${fused} />
      ${!opened && html`<p class="snippet">${highlighted(hit.snippet)}</p>`}
      ${opened && html`<${Opened} hit=${hit} state=${state} on=${on} />`}
    </li>`;
}

// The score as a bar with a part for each leg.
function Shares({ hit, names, best }) {
  const parts = names.map((leg) => `${leg} ${score(hit.legs[leg].contribution)}`);
  const width = (share) => `${Math.max(0, (100 * share) / (best || 1))}%`;
  return html`
    <div class="shares" role="img" aria-label=${`score ${score(hit.score)}: ${parts.join(", ")}`}
      title=${`score ${score(hit.score)}: ${parts.join(", ")}`}>
      ${names.map((leg) => html`<span class=${`share ${leg}`} style=${{ width: width(hit.legs[leg].contribution) }}></span>`)}
    </div>`;
}

// "bm25 2, splade –, dense 31 → 5"
function Ranks({ hit, asked, fused }) {
  return html`
    <p class="ranks">
      ${asked.map((leg, n) => {
        const part = hit.legs[leg];
        return html`${n ? ", " : ""}<span class=${part ? "" : "absent"} title=${part ? `score ${score(part.score)}` : `not among the hits of ${leg}`}><span class=${`dot ${leg}`}></span>${leg} ${part ? part.rank : "–"}</span>`;
      })}
      ${" → "}<b>${fused ?? "–"}</b><span class="score">${score(hit.score)}</span>
    </p>`;
}

function Thumbs({ chunkId, grade, judge }) {
  const thumb = (value, label, icon) => html`
    <button class="thumb" aria-pressed=${String(grade === value)} aria-label=${`${label}: ${chunkId}`} title=${label}
      onClick=${() => judge(chunkId, grade === value ? null : value)}>${icon}</button>`;
  return html`<span class="thumbs">${thumb(1, "relevant", up)}${thumb(0, "not relevant", down)}</span>`;
}

// A long ID breaks after its separators.
const breakable = (chunkId) => chunkId.split(/(?<=[.:_/#-])/).map((part, n) => (n ? html`<wbr />${part}` : part));

// The service counts code points; a JavaScript string counts UTF-16 units.
export function highlighted({ text, highlights }) {
  const points = Array.from(text);
  const pieces = [];
  let at = 0;
  for (const [start, end] of highlights) {
    pieces.push(points.slice(at, start).join(""), html`<mark>${points.slice(start, end).join("")}</mark>`);
    at = end;
  }
  return [...pieces, points.slice(at).join("")];
}

function Opened({ hit, state, on }) {
  const place = useRef(null);
  const chunk = useRemote(hit.chunk_id, (signal) => call(pathOf(hit.chunk_id), undefined, signal));
  const question = JSON.stringify(requestOf(state));
  const why = useRemote(question, (signal) => call(`${pathOf(hit.chunk_id)}/why`, JSON.parse(question), signal));
  useEffect(() => place.current.closest(".hit").scrollIntoView({ block: "nearest" }), []);
  const { provenance, position } = chunk.value ?? {};
  return html`
    <div class="inside" ref=${place}>
      <p class="text">${hit.text.trim()}</p>
      <h4>What it shares with the query</h4>
      ${why.value && html`<${Terms} terms=${why.value.terms} />`}
      ${why.problem && html`<p class="problem">${why.problem.message}</p>`}
      ${!why.value && !why.problem && html`<p class="quiet">…</p>`}
      <h4>Fields <small>a click adds a filter</small></h4>
      <${Fields} hit=${hit} on=${on} />
      <h4>Where it comes from</h4>
      <${Origin} rows=${[["chunk_id", hit.chunk_id], ["version", hit.version], ...flattened({ position }), ...flattened(provenance)]} />
      ${chunk.problem && html`<p class="problem">${chunk.problem.message}</p>`}
    </div>`;
}

// By leg, the words and terms with their parts of the raw score.
export function Terms({ terms }) {
  const shared = Object.entries(terms).filter(([, found]) => Object.keys(found).length);
  if (!shared.length) return html`<p class="quiet">no word and no term</p>`;
  return shared.map(
    ([leg, found]) => html`
      <p class="terms"><span class="leg"><span class=${`dot ${leg}`}></span>${leg}</span>
        ${Object.entries(found).map(([term, part]) => html`<span class="term">${term} <b>${score(part)}</b></span>`)}
      </p>`,
  );
}

function Fields({ hit, on }) {
  const rows = [["doc_id", hit.doc_id], ...flattened({ metadata: hit.metadata, facet_json: hit.facet_json })];
  return html`
    <dl class="fields">
      ${rows.map(([name, value]) => html`
        <div><dt>${name}</dt><dd><button class="value" onClick=${() => on.filter(equals(name, [value]))}>${String(value)}</button></dd></div>`)}
    </dl>`;
}

function Origin({ rows }) {
  return html`<dl class="fields">${rows.map(([name, value]) => html`<div><dt>${name}</dt><dd>${String(value)}</dd></div>`)}</dl>`;
}
