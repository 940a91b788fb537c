// How a search is done: mode, weights, fusion, groups, deadline.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { written } from "./format.js";
import { LEGS, legs, weight } from "./request.js";

export function Settings({ state, ask, go }) {
  const several = legs(state).length > 1;
  const weigh = (leg) => (value) => ask({ weights: { ...state.weights, [leg]: value } });
  return html`
    <section class="panel settings" aria-label="Settings">
      <${Choice} label="mode" options=${Object.keys(LEGS).reverse()} chosen=${state.mode} choose=${(mode) => ask({ mode })} />
      ${several && html`
        ${state.mode !== "lexical" && html`
          <${Choice} label="fusion" options=${["min-max", "rrf"]} chosen=${state.fusion} choose=${(fusion) => ask({ fusion })} />`}
        <fieldset class="weights">
          <legend>weights</legend>
          ${legs(state).map((leg) => html`
            <${Slider} key=${leg} label=${leg} leg=${leg} value=${weight(state, leg)} least=${0} most=${4} step=${0.1} change=${weigh(leg)} />`)}
          ${Object.keys(state.weights).length > 0 && html`
            <button class="plain" onClick=${() => ask({ weights: {} })}>default weights</button>`}
        </fieldset>
        <label class="check"><input type="checkbox" checked=${state.legs} onChange=${(event) => go({ legs: event.target.checked })} />
          legs side by side</label>`}
      <${Slider} label="hits" value=${state.k} least=${1} most=${100} step=${1} change=${(k) => ask({ k })} />
      <${Slider} label="deadline" unit=" s" value=${state.deadline} least=${0.1} most=${10} step=${0.1} change=${(deadline) => ask({ deadline })} />
      <label class="check"><input type="checkbox" checked=${state.group > 0} onChange=${(event) => ask({ group: event.target.checked ? 3 : 0 })} />
        group by document</label>
      ${state.group > 0 && html`
        <${Slider} label="chunks of each" value=${state.group} least=${1} most=${10} step=${1} change=${(group) => ask({ group })} />`}
    </section>`;
}

function Choice({ label, options, chosen, choose }) {
  return html`
    <div class="choice" role="group" aria-label=${label}>
      ${options.map((option) => html`
        <button aria-pressed=${String(option === chosen)} onClick=${() => choose(option)}>${option}</button>`)}
    </div>`;
}

// Shows its number while it moves, and asks once it is let go.
function Slider({ label, leg, unit = "", value, least, most, step, change }) {
  const [shown, setShown] = useState(value);
  useEffect(() => setShown(value), [value]);
  return html`
    <label class="slider">
      <span>${leg && html`<span class=${`dot ${leg}`}></span>`}${label}</span>
      <input type="range" name=${label} min=${least} max=${Math.max(most, value)} step=${step} value=${shown}
        onInput=${(event) => setShown(Number(event.target.value))} onChange=${(event) => change(Number(event.target.value))} />
      <output>${written(shown)}${unit}</output>
    </label>`;
}
