// The flow view: the picture of the README with what each part does now.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { follow } from "./events.js";
import { count, duration, rate } from "./format.js";
import { Letters } from "./letters.js";

const STUCK = 5; // seconds that the oldest record waits while nothing is committed
const KEPT = 60; // events, one a second, that the small curves show

// The curve of a stage's rate: [0, 100] × [0, 20], the newest at the right.
function Curve({ stage, history }) {
  const rates = history.map((event) => event.stages.find((one) => one.stage === stage)?.rate ?? 0);
  const most = Math.max(...rates, 1);
  const points = rates.map((one, n) => `${(100 * (KEPT - rates.length + n)) / (KEPT - 1)},${19 - (18 * one) / most}`);
  return html`
    <svg class="curve" viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">
      <polyline points=${points.join(" ")} />
    </svg>`;
}

export function Flow() {
  const [history, setHistory] = useState([]);
  const [lost, setLost] = useState(null);
  useEffect(() => {
    const stop = new AbortController();
    const seen = (event) => {
      setLost(null);
      setHistory((events) => [...events.slice(1 - KEPT), event]);
    };
    follow("/flow/events", stop.signal, seen, (sentence, final) => setLost({ sentence, final }));
    return () => stop.abort();
  }, []);
  const now = history.at(-1);
  const known = history.findLast((event) => event.stages.length); // an event has no stages while Kafka does not answer
  return html`
    <div class="flow">
      <p class=${`live ${lost ? "lost" : ""}`} role="status">${connection(lost, now)}</p>
      ${now?.error && html`<p class="problem">${now.error}</p>`}
      ${now && html`
        ${known && html`<${Picture} now=${known} history=${history} old=${known !== now} />`}
        <${Generations} generations=${now.generations} />
        ${known && html`<${Letters} stages=${known.stages} />`}`}
    </div>`;
}

function connection(lost, now) {
  if (lost) return lost.final ? lost.sentence : `${lost.sentence}; connecting again`;
  return now ? "live" : "connecting";
}

function Picture({ now, history, old }) {
  const moving = now.stages.map((stage) => stage.rate > 0);
  return html`
    <section class=${`picture ${old ? "old" : ""}`} aria-label=${old ? "The flow, as it was" : "The flow"}>
      <div class="end">producers</div>
      ${now.stages.map((stage, n) => html`
        <${Arrow} key=${`a${n}`} moving=${n ? moving[n - 1] : moving[0]} />
        <div class="topic" key=${`t${n}`}><b>${stage.topic}</b><span>${count(stage.total)} records</span></div>
        <${Arrow} key=${`b${n}`} moving=${moving[n]} />
        <${Stage} key=${stage.stage} stage=${stage} history=${history} />`)}
      <${Arrow} moving=${moving.at(-1)} />
      <div class="stores">
        ${Object.entries(now.stores).map(([name, chunks]) => html`
          <div class="store"><b>${name}</b><span>${chunks === null ? "–" : count(chunks)} chunks</span></div>`)}
      </div>
    </section>`;
}

const Arrow = ({ moving }) => html`<div class=${`arrow ${moving ? "moving" : ""}`} aria-hidden="true"></div>`;

function Stage({ stage, history }) {
  const stuck = stage.lag > 0 && !stage.rate && stage.age > STUCK;
  return html`
    <div class="column">
      <section class=${`stage ${stuck ? "stuck" : ""}`} data-stage=${stage.stage} aria-label=${stage.stage}>
        <h2>${stage.stage}</h2>
        <p class="rate"><b>${rate(stage.rate)}</b> records/s</p>
        <${Curve} stage=${stage.stage} history=${history} />
        <dl>
          <div><dt>lag</dt><dd class="lag">${count(stage.lag)}</dd></div>
          <div><dt>age</dt><dd class="age">${stage.age === null ? "–" : duration(stage.age)}</dd></div>
          <div><dt>done</dt><dd class="done">${count(stage.done)}</dd></div>
        </dl>
        <p class="still">${stuck ? "records wait, none is processed" : ""}</p>
      </section>
      <div class=${`letterbox ${stage.dead_letters ? "some" : ""}`} title="dead letters"><b>${count(stage.dead_letters)}</b> dead ${stage.dead_letters === 1 ? "letter" : "letters"}</div>
    </div>`;
}

// The live generation, and the one that a reindex fills.
function Generations({ generations }) {
  return html`
    <section class="panel generations" aria-label="Generations">
      <h2>Generations</h2>
      <ul>
        ${generations.map((one) => html`
          <li key=${one.number}>
            <b>${one.number}</b> <span class="quiet">${one.flow}</span>
            <span class=${one.live_in.length ? "is-live" : ""}>${standing(one)}</span>
            ${one.lag ? html`<span>lag ${count(one.lag)}</span>` : ""}
          </li>`)}
      </ul>
    </section>`;
}

function standing({ live_in: live, swapping }) {
  if (swapping) return live.length ? `becomes live: already in ${live.join(", ")}` : "becomes live now";
  return live.length ? `live in ${live.join(" and ")}` : "a reindex fills it";
}
