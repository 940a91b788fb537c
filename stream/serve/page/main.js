// The page: one of its two views, and the dialogs over it.

import { html, render, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { DEFAULTS, useAddress, write } from "./address.js";
import { keep, useRemote, whenKeyIsNeeded } from "./api.js";
import { Help, useKeys } from "./keys.js";
import { Search } from "./search.js";

function Page() {
  const { state, go, ask } = useAddress();
  const [asking, setAsking] = useState(null);
  const [helping, setHelping] = useState(false);
  useKeys({ go, showKeys: () => setHelping(true) });
  useEffect(() => whenKeyIsNeeded((refused) => new Promise((answer) => setAsking({ refused, answer }))), []);
  useEffect(() => {
    document.title = state.view === "flow" ? "stream: flow" : state.q ? `${state.q} – stream` : "stream: search";
  }, [state.view, state.q]);
  const { value: flow, problem } = useRemote(state.view === "flow" ? "flow" : "", () => import("./flow.js"));
  const answered = (given) => {
    asking.answer(given);
    setAsking(null);
  };
  return html`
    <header class="top">
      <h1>stream</h1>
      <nav aria-label="Views">
        <${Tab} view="search" state=${state} go=${go} />
        <${Tab} view="flow" state=${state} go=${go} />
      </nav>
      <button class="plain" aria-label="Keys" onClick=${() => setHelping(true)}>?</button>
    </header>
    <main>
      ${state.view !== "flow" && html`<${Search} state=${state} go=${go} ask=${ask} />`}
      ${state.view === "flow" && flow && html`<${flow.Flow} />`}
      ${state.view === "flow" && problem && html`<p class="problem">${problem.message}</p>`}
    </main>
    ${asking && html`<${AskKey} refused=${asking.refused} answered=${answered} />`}
    ${helping && html`<${Help} close=${() => setHelping(false)} />`}`;
}

function Tab({ view, state, go }) {
  const follow = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab or window
    event.preventDefault();
    go({ view });
  };
  const current = (state.view === "flow") === (view === "flow") ? "page" : undefined;
  const query = write({ ...state, view: view === "search" ? DEFAULTS.view : view });
  return html`<a href=${`/${query}`} aria-current=${current} onClick=${follow}>${view}</a>`;
}

function AskKey({ refused, answered }) {
  const dialog = useRef(null);
  useEffect(() => dialog.current.showModal(), []);
  const submit = (event) => {
    event.preventDefault();
    keep(event.target.elements.key.value.trim());
    answered(true);
  };
  return html`
    <dialog ref=${dialog} aria-labelledby="key-title" onCancel=${() => answered(false)}>
      <form onSubmit=${submit}>
        <h2 id="key-title">Access key</h2>
        <p>${refused ? "The service does not know this key." : "The service asks for a key."} It is kept until this tab is closed.</p>
        <input name="key" type="password" aria-label="Access key" autocomplete="off" required />
        <p class="buttons"><button>Use it</button></p>
      </form>
    </dialog>`;
}

render(html`<${Page} />`, document.body);
