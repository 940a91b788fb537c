// The keyboard: every key that the page knows, and the dialog that shows them.

import { html, useEffect, useRef } from "./vendor/htm-preact.js";
import { forget, key } from "./api.js";

const KEYS = [
  ["/", "to the search box"],
  ["j or ↓, k or ↑", "next hit, previous hit"],
  ["h or ←, l or →", "the list to the left, to the right"],
  ["Enter", "search; open a hit or close it"],
  ["+, -", "the hit is relevant, not relevant"],
  ["Esc", "close"],
  ["s, f", "search, flow"],
  ["?", "these keys"],
];

const titles = (list) => [...list.querySelectorAll(".title")];

// The hit `down` places further and `right` lists beside gets the focus.
function move(down, right) {
  const lists = [...document.querySelectorAll(".list")].filter((list) => titles(list).length);
  const focused = document.activeElement.closest(".hit")?.querySelector(".title");
  const here = lists.findIndex((list) => titles(list).includes(focused));
  const list = lists[here < 0 ? 0 : (here + right + lists.length) % lists.length];
  if (!list) return;
  const at = here < 0 ? -1 : titles(lists[here]).indexOf(focused);
  titles(list).at(Math.min(Math.max(at + down, 0), titles(list).length - 1)).focus();
}

const thumb = (n) => document.activeElement.closest(".hit")?.querySelectorAll(".thumb")[n]?.click();

export function useKeys({ go, showKeys }) {
  useEffect(() => {
    const actions = {
      "/": () => document.querySelector("#query")?.focus(),
      j: () => move(1, 0),
      ArrowDown: () => move(1, 0),
      k: () => move(-1, 0),
      ArrowUp: () => move(-1, 0),
      l: () => move(0, 1),
      ArrowRight: () => move(0, 1),
      h: () => move(0, -1),
      ArrowLeft: () => move(0, -1),
      "+": () => thumb(0),
      "-": () => thumb(1),
      s: () => go({ view: "search" }),
      f: () => go({ view: "flow" }),
      "?": showKeys,
      Escape: () => go({ hit: "" }),
    };
    const pressed = (event) => {
      const { target } = event;
      if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
      const writes = target.matches("input, select, textarea");
      if (writes && event.key === "Escape") return target.blur();
      if (writes && !(target.id === "query" && event.key === "ArrowDown")) return;
      if (!actions[event.key]) return;
      event.preventDefault();
      actions[event.key]();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}

export function Help({ close }) {
  const dialog = useRef(null);
  useEffect(() => dialog.current.showModal(), []);
  return html`
    <dialog ref=${dialog} aria-labelledby="help" onClose=${close}>
      <h2 id="help">Keys</h2>
      <dl class="keys">${KEYS.map(([keys, what]) => html`<div><dt>${keys}</dt><dd>${what}</dd></div>`)}</dl>
      <p class="buttons">
        <button onClick=${() => dialog.current.close()}>Close</button>
        ${key() && html`<button onClick=${() => { forget(); location.reload(); }}>Forget the access key</button>`}
      </p>
    </dialog>`;
}
