// The shown request as something to paste: curl, the command line, Python.

import { html, useState } from "./vendor/htm-preact.js";
import { key } from "./api.js";
import { DEFAULTS } from "./address.js";
import { written } from "./format.js";
import { weightsOf } from "./request.js";

// A word for a POSIX shell.
export const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

export function curl(request) {
  const lines = [`curl -sS ${quoted(`${location.origin}/search`)}`, "-H 'Content-Type: application/json'"];
  if (key()) lines.push('-H "Authorization: Bearer $STREAM_KEY"');
  return [...lines, `--data-raw ${quoted(JSON.stringify(request))}`].join(" \\\n  ");
}

export function commandLine(state) {
  const options = [];
  const add = (name, value) => options.push(value.startsWith("-") ? quoted(`${name}=${value}`) : `${name} ${quoted(value)}`);
  if (state.mode !== DEFAULTS.mode) add("--mode", state.mode);
  if (state.k !== DEFAULTS.k) add("--limit", String(state.k));
  state.filters.forEach((filter) => add("--filter", filter));
  Object.entries(weightsOf(state)).forEach(([leg, weight]) => add("--weight", `${leg}=${written(weight)}`));
  if (state.fusion !== DEFAULTS.fusion) add("--fusion", state.fusion);
  state.without.forEach((term) => add("--without", term));
  if (state.group) options.push("--group", `--group-size ${state.group}`);
  if (state.deadline !== DEFAULTS.deadline) add("--deadline", written(state.deadline));
  return ["stream search", ...options, "--", quoted(state.q)].join(" ");
}

export function python(request) {
  const lines = ["import httpx", "", "answer = httpx.post(", `    ${JSON.stringify(`${location.origin}/search`)},`];
  if (key()) {
    lines.unshift("import os", "");
    lines.push('    headers={"Authorization": f"Bearer {os.environ[\'STREAM_KEY\']}"},');
  }
  return [
    ...lines,
    `    json=${literal(request)},`,
    `    timeout=${written((request.deadline ?? DEFAULTS.deadline) + 5)},`,
    ").raise_for_status().json()",
    'for hit in answer["hits"]:',
    '    print(hit["chunk_id"], hit["score"])',
  ].join("\n");
}

// JSON's text is a literal of Python's too, but for these.
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, inner]) => `${JSON.stringify(name)}: ${literal(inner)}`).join(", ")}}`;
}

export function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

export function Copies({ state, request }) {
  const [way, setWay] = useState("curl");
  const [copied, setCopied] = useState("");
  const texts = { curl: curl(request), CLI: commandLine(state), Python: python(request) };
  const text = texts[way];
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setCopied(text);
    } catch {
      getSelection().selectAllChildren(document.querySelector(".copies pre")); // only https pages have a clipboard
    }
  };
  return html`
    <section class="panel copies" aria-label="Copy as">
      <h2>Copy as</h2>
      <div class="choice" role="group" aria-label="Copy as">
        ${Object.keys(texts).map((name) => html`
          <button aria-pressed=${String(way === name)} onClick=${() => setWay(name)}>${name}</button>`)}
        <button class="copy" onClick=${copy}>${copied === text ? "copied" : "copy"}</button>
      </div>
      <pre tabindex="0" aria-label=${`the request as ${way}`}>${text}</pre>
    </section>`;
}
