// The search view: the question, the hits, and what the answer says about itself.

import { html, useEffect, useReducer, useRef, useState } from "./vendor/htm-preact.js";
import { call, Problem, useRemote } from "./api.js";
import { Filters } from "./filters.js";
import { count, milliseconds } from "./format.js";
import { useJudgements } from "./judgements.js";
import { legs, requestOf, requestsOfLegs } from "./request.js";
import { Settings } from "./settings.js";

const WIDE = "(min-width: 60rem)";

export function Search({ state, go, ask }) {
  const { request, wrong } = asked(state);
  const [tries, again] = useReducer((n) => n + 1, 0);
  const { answer, beside, loading, problem } = useAnswers(state, request, tries);
  const { all, judged, judge } = useJudgements(state.q);
  const wide = useWide();
  const { value: parts, problem: missing } = useRemote("parts", () => import("./answer.js"));
  const shown = parts && answer;
  const failed = wrong ?? problem?.message ?? missing?.message;
  const on = {
    open: (hit) => go({ hit }),
    filter: (filter) => ask({ filters: [...new Set([...state.filters, filter])] }),
    judge,
  };
  return html`
    <${Question} q=${state.q} ask=${ask} again=${again} />
    ${shown && html`
      <${parts.Expansion} query=${state.q} terms=${answer.expansion} without=${state.without} change=${(without) => ask({ without })} />`}
    <div class=${`search ${state.legs && legs(state).length > 1 ? "wide" : ""}`}>
      <details class="ask" open=${wide}>
        <summary>Settings and filters</summary>
        <${Settings} state=${state} ask=${ask} go=${go} />
        <${Filters} filters=${state.filters} ask=${ask} />
      </details>
      <div class="found" aria-busy=${String(loading)}>
        <p class="status" role="status">${failed ? "" : said(state, answer, loading)}</p>
        ${failed && html`<p class="problem">${failed}</p>`}
        ${!state.q && html`<${Welcome} />`}
        ${shown && !failed && html`
          <${parts.Lists} lists=${lists(state, answer, beside)} state=${state} judged=${judged} on=${on} />
          ${answer.cursor && html`<button class="more" onClick=${() => go({ pages: state.pages + 1 })}>more</button>`}`}
      </div>
      ${shown && html`
        <aside class="answer" aria-label="About the answer">
          <${parts.Timings} timings=${answer.timings} degraded=${answer.degraded} />
          <${parts.Judgements} all=${all} judged=${judged} chunkIds=${answer.hits.map((hit) => hit.chunk_id)} />
          <${parts.WhyNot} chunkId=${state.why} request=${request} go=${go} />
          ${request && html`<${parts.Copies} state=${state} request=${request} />`}
        </aside>`}
    </div>`;
}

function useWide() {
  const [wide, setWide] = useState(() => matchMedia(WIDE).matches);
  useEffect(() => {
    const query = matchMedia(WIDE);
    const changed = () => setWide(query.matches);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, []);
  return wide;
}

// The request, or what is wrong with it.
function asked(state) {
  if (!state.q.trim()) return {};
  try {
    return { request: requestOf(state) };
  } catch (error) {
    return { wrong: error.message };
  }
}

// The answer with all pages that were asked for, and those of the legs alone.
function useAnswers(state, request, tries) {
  const question = request ? JSON.stringify([request, state.legs, tries]) : "";
  const kept = useRef({ question: "", pages: [] });
  const { value, problem, loading } = useRemote(question && `${state.pages} ${question}`, async (signal) => {
    const known = kept.current.question === question ? kept.current : null;
    const pages = known ? known.pages.slice(0, state.pages) : [];
    let beside = known?.beside;
    if (!pages.length) [pages[0], beside] = await first(state, request, signal);
    while (pages.length < state.pages && pages.at(-1).cursor)
      pages.push(await call("/search", { ...request, cursor: pages.at(-1).cursor }, signal));
    kept.current = { question, pages, beside };
    return { answer: joined(pages), beside };
  });
  return { ...(question ? value : null), problem: question ? problem : null, loading };
}

// The first page, and what each leg alone finds if that is shown.
async function first(state, request, signal) {
  if (!state.legs || legs(state).length < 2) return [await call("/search", request, signal), []];
  const requests = [request, ...requestsOfLegs(state)];
  const [fused, ...alone] = (await call("/search/batch", { requests }, signal)).answers;
  if (fused.problem) throw new Problem(fused.problem.status, fused.problem.detail);
  return [fused.answer, alone];
}

const joined = (pages) => ({ ...pages[0], hits: pages.flatMap((page) => page.hits), cursor: pages.at(-1).cursor });

function lists(state, answer, beside) {
  const fused = { name: "fused", title: "fused", mode: state.mode, hits: answer.hits };
  const alone = (beside ?? []).map((one, n) => {
    const leg = legs(state)[n];
    return { name: leg, title: leg, mode: leg, hits: one.answer?.hits ?? [], problem: one.problem?.detail };
  });
  return [fused, ...alone];
}

function said(state, answer, loading) {
  if (!state.q) return "";
  if (!answer) return loading ? "searching" : "";
  const what = state.group ? "documents" : "hits";
  const shown = state.group ? new Set(answer.hits.map((hit) => hit.doc_id)).size : answer.hits.length;
  const end = Math.max(...answer.timings.map(({ start, took }) => start + took));
  return `${count(shown)} of ${count(answer.reachable)} ${what} · generation ${answer.generation} · ${milliseconds(end)}`;
}

function Question({ q, ask, again }) {
  const box = useRef(null);
  useEffect(() => {
    box.current.value = q;
  }, [q]);
  useEffect(() => {
    if (!q && matchMedia(WIDE).matches) box.current.focus();
  }, []);
  const submit = (event) => {
    event.preventDefault();
    const text = box.current.value.trim();
    if (text === q) again();
    else ask({ q: text, without: [] });
  };
  return html`
    <form class="question" role="search" onSubmit=${submit}>
      <input id="query" ref=${box} type="search" placeholder="Search" aria-label="Search" autocomplete="off" spellcheck="false"
        enterkeyhint="search" maxlength="131072" />
      <kbd aria-hidden="true">/</kbd>
    </form>`;
}

const Welcome = () => html`
  <div class="welcome">
    <p>Type a question and press Enter. Words, learned terms and vectors are searched at the same time, and every hit shows what each of them has found.</p>
    <p class="quiet"><kbd>/</kbd> to the box, <kbd>j</kbd> <kbd>k</kbd> from hit to hit, <kbd>Enter</kbd> opens, <kbd>?</kbd> shows all keys.</p>
  </div>`;
