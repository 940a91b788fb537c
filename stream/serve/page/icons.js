// Drawn symbols; the words beside or in place of them are in the label of their button.

import { html } from "./vendor/htm-preact.js";

const drawn = (path) => html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><path d=${path} /></svg>`;

export const up = drawn("M2.5 7.5h2v6h-2zM4.5 7.5l3-5c1.2 0 1.7.8 1.5 2L8.6 6.500h4.2c.8 0 1.200.7 1 1.400l-1.200 4.600c-.2.6-.6 1-1.200 1H4.500");
export const down = drawn("M2.5 8.500h2v-6h-2zM4.500 8.500l3 5c1.200 0 1.700-.8 1.500-2L8.600 9.500h4.200c.8 0 1.200-.7 1-1.400l-1.200-4.600c-.2-.6-.6-1-1.200-1H4.500");
