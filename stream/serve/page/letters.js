// Dead letters: how many for which reason, the newest ones, and a look inside.

import { html, useState } from "./vendor/htm-preact.js";
import { call, useRemote } from "./api.js";
import { count } from "./format.js";

const SHOWN = 20;

export function Letters({ stages }) {
  const [stage, setStage] = useState("");
  const counts = stages.map((one) => one.dead_letters);
  const total = counts.reduce((sum, one) => sum + one, 0);
  const query = new URLSearchParams({ limit: SHOWN, ...(stage && { stage }) });
  // Read again when there are more of them.
  const { value, problem } = useRemote(`${query} ${counts}`, (signal) => call(`/flow/dead-letters?${query}`, undefined, signal));
  return html`
    <section class="panel letters" aria-label="Dead letters">
      <h2>Dead letters <small>${count(total)}</small></h2>
      <div class="choice" role="group" aria-label="stage">
        ${["", ...stages.map((one) => one.stage)].map((name) => html`
          <button aria-pressed=${String(name === stage)} onClick=${() => setStage(name)}>${name || "all"}</button>`)}
      </div>
      ${problem && html`<p class="problem">${problem.message}</p>`}
      ${value && html`<${Reasons} reasons=${value.reasons} stage=${stage} />`}
      ${value && !value.letters.length && html`<p class="quiet">none</p>`}
      ${value?.letters.map((letter) => html`<${Letter} key=${letter.place} letter=${letter} />`)}
    </section>`;
}

function Reasons({ reasons, stage }) {
  const rows = Object.entries(reasons)
    .filter(([name]) => !stage || name === stage)
    .flatMap(([name, counted]) => Object.entries(counted).map(([reason, number]) => ({ name, reason, number })))
    .sort((one, other) => other.number - one.number);
  if (!rows.length) return null;
  return html`
    <table class="reasons">
      <thead><tr><th scope="col">stage</th><th scope="col">reason</th><th scope="col">letters</th></tr></thead>
      <tbody>${rows.map(({ name, reason, number }) => html`<tr><td>${name}</td><td>${reason}</td><td>${count(number)}</td></tr>`)}</tbody>
    </table>`;
}

function Letter({ letter }) {
  const rows = [
    ["place", letter.place],
    ["from", `${letter.topic}, partition ${letter.partition}, offset ${letter.offset}`],
    ["key", letter.key],
    ["bytes", letter.size === null ? null : count(letter.size)],
  ];
  return html`
    <details class="letter">
      <summary><time>${at(letter.at)}</time> <b>${letter.stage}</b> <span>${letter.reason}</span>${letter.redriven ? html` <small>redriven</small>` : ""}</summary>
      <p>${letter.detail}</p>
      <dl class="fields">
        ${rows.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
      </dl>
      <pre tabindex="0" aria-label="value">${letter.value ?? "the value is no text"}</pre>
    </details>`;
}

// Local time without the noise of milliseconds.
function at(time) {
  const date = new Date(time);
  return Number.isNaN(date.valueOf()) ? String(time) : date.toLocaleString("sv");
}
