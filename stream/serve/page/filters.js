// Filters: the values of the index as check boxes, and a form for everything else.

import { html, useState } from "./vendor/htm-preact.js";
import { call, useRemote } from "./api.js";
import { count } from "./format.js";
import { condition, equals } from "./syntax.js";

const OPERATORS = ["=", "!=", "<", "<=", ">", ">=", "exists", "missing"];
const FEW = 6; // values of a field that are shown at first
const OPEN = 1; // fields whose values are shown at first

export function Filters({ filters, ask }) {
  const { value: facets, problem } = useRemote("facets", (signal) => call("/facets", {}, signal));
  const fields = Object.entries(facets?.fields ?? {}).sort(([, one], [, other]) => use(other) - use(one));
  const change = (changed) => ask({ filters: changed });
  return html`
    <section class="panel filters" aria-label="Filters">
      <h2>Filters</h2>
      ${filters.map((filter) => html`
        <button key=${filter} class="chip" title="remove the filter" onClick=${() => change(filters.filter((one) => one !== filter))}>
          ${filter} <span aria-hidden="true">×</span><span class="unseen">: remove</span>
        </button>`)}
      <${Form} names=${fields.map(([name]) => name)} add=${(filter) => change([...new Set([...filters, filter])])} />
      ${fields.filter(([, values]) => values.length).map(([name, values], n) => html`
        <${Facet} key=${name} name=${name} values=${values} first=${n < OPEN} filters=${filters} change=${change} />`)}
      ${problem && html`<p class="quiet">${problem.message}</p>`}
    </section>`;
}

// The chunks that the boxes of a field can tell apart: a few values of many chunks are of more use than many of a few.
const use = (values) => (values.length > 1 ? values.reduce((sum, { count: chunks }) => sum + chunks, 0) : 0);

// The boxes of a field write one filter: one of the ticked values.
function Facet({ name, values, first, filters, change }) {
  const [all, setAll] = useState(false);
  const own = filters.find((filter) => chosen(name, filter).length);
  const ticked = own ? chosen(name, own) : [];
  const shown = all ? values : values.slice(0, FEW);
  const tick = (value, on) => {
    const kept = on ? [...ticked, value] : ticked.filter((one) => one !== value);
    const others = filters.filter((filter) => filter !== own);
    change(kept.length ? [...others, equals(name, kept)] : others);
  };
  return html`
    <details class="facet" open=${first}>
      <summary>${name}</summary>
      <div role="group" aria-label=${name}>
        ${shown.map(({ value, count: chunks }) => html`
          <label class="check" key=${JSON.stringify(value)}>
            <input type="checkbox" checked=${ticked.includes(value)} onChange=${(event) => tick(value, event.target.checked)} />
            <span class="name">${String(value)}</span> <small>${count(chunks)}</small>
          </label>`)}
        ${values.length > FEW && !all && html`<button class="plain" onClick=${() => setAll(true)}>${values.length - FEW} more</button>`}
      </div>
    </details>`;
}

// The values of a filter that asks whether this field has one of them.
function chosen(name, filter) {
  try {
    const { field, equal, in: several } = condition(filter);
    if (field !== name) return [];
    return several ?? (equal === undefined ? [] : [equal]);
  } catch {
    return [];
  }
}

function Form({ names, add }) {
  const [operator, setOperator] = useState("=");
  const [problem, setProblem] = useState("");
  const bare = operator === "exists" || operator === "missing";
  const submit = (event) => {
    event.preventDefault();
    const { field, value } = event.target.elements;
    const name = field.value.trim();
    const filter = bare ? `${operator === "missing" ? "!" : ""}${name}` : `${name}${operator}${value.value.trim()}`;
    try {
      condition(filter);
    } catch (error) {
      return setProblem(error.message);
    }
    setProblem("");
    event.target.reset();
    setOperator("=");
    return add(filter);
  };
  return html`
    <form class="condition" onSubmit=${submit}>
      <input name="field" list="fields" placeholder="metadata.lang" aria-label="field" autocomplete="off" spellcheck="false" required />
      <datalist id="fields">${names.map((name) => html`<option value=${name} />`)}</datalist>
      <select name="operator" aria-label="operator" onChange=${(event) => setOperator(event.target.value)}>
        ${OPERATORS.map((one) => html`<option value=${one} selected=${one === operator}>${one}</option>`)}
      </select>
      ${!bare && html`<input name="value" placeholder="en" aria-label="value" autocomplete="off" spellcheck="false" />`}
      <button>Add</button>
      ${problem && html`<p class="problem">${problem}</p>`}
    </form>`;
}
