// The parts that show an answer. They are loaded when the search box can be used already.

export { Copies } from "./copies.js";
export { Expansion } from "./expansion.js";
export { Lists } from "./hits.js";
export { Judgements } from "./measures.js";
export { Timings } from "./timings.js";
export { WhyNot } from "./why.js";
