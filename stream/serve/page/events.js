// Server-sent events, read with fetch: the browser's own EventSource cannot send an access key.

import { open } from "./api.js";

const SILENCE = 10_000; // ms without an event after which the connection counts as lost; events come each second
const FIRST_PAUSE = 500; // ms before another try, doubled up to the longest
const LONGEST_PAUSE = 8_000;
const FINAL = [401, 403, 404]; // another try would give the same

// Calls `seen(data)` for each event until `signal` is aborted, and `lost(sentence, final)` when the connection is lost.
export async function follow(path, signal, seen, lost) {
  let pause = FIRST_PAUSE;
  while (!signal.aborted) {
    const connection = new AbortController();
    const stop = () => connection.abort();
    signal.addEventListener("abort", stop);
    let timer = setTimeout(stop, SILENCE);
    try {
      const response = await open(path, { signal: connection.signal });
      for await (const data of events(response.body)) {
        clearTimeout(timer);
        timer = setTimeout(stop, SILENCE);
        pause = FIRST_PAUSE;
        seen(JSON.parse(data));
      }
      if (!signal.aborted) lost("the service has closed the connection", false);
    } catch (error) {
      if (signal.aborted) return;
      const final = FINAL.includes(error.status);
      lost(error.name === "AbortError" ? "the service is silent" : error.message, final);
      if (final) return;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
    }
    await new Promise((done) => setTimeout(done, pause));
    pause = Math.min(2 * pause, LONGEST_PAUSE);
  }
}

// The data of each event (https://html.spec.whatwg.org/multipage/server-sent-events.html); names and IDs are not used.
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r\n|\n|\r/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (!line && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}
