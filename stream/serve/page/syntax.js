// The short form of filters, as on the command line: `metadata.lang=en` for {"field": "metadata.lang", "equal": "en"}.
// stream/cli/filters.py describes it; a test compares the two.

const OPERATOR = /!=|<=|>=|=|<|>/;
const RANGES = { "<": "lt", "<=": "lte", ">": "gt", ">=": "gte" };
const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;

// The JSON form of a filter that requires all of these; undefined without any.
export function all(texts) {
  const conditions = texts.map(condition);
  return conditions.length > 1 ? { all: conditions } : conditions[0];
}

// The JSON form of one filter. Throws an Error with a sentence.
export function condition(text) {
  text = text.trim();
  if (text.startsWith("{")) return json(text, "a filter that begins with { must be JSON");
  const found = OPERATOR.exec(text);
  if (!found) {
    const missing = text.startsWith("!");
    return { field: field(missing ? text.slice(1) : text, text), exists: !missing };
  }
  const name = field(text.slice(0, found.index), text);
  const wanted = value(text.slice(found.index + found[0].length).trim(), text);
  if (RANGES[found[0]]) return { field: name, [RANGES[found[0]]]: wanted };
  const same = { field: name, [Array.isArray(wanted) ? "in" : "equal"]: wanted };
  return found[0] === "!=" ? { not: same } : same;
}

function field(name, text) {
  name = name.trim();
  if (!name) throw new Error(`the filter ${text} names no field: write FIELD=VALUE, such as metadata.lang=en`);
  if (name.startsWith("!")) throw new Error(`the filter ${text} begins with !, which stands before a field alone`);
  return name;
}

function value(text, whole) {
  if (/^["[]/.test(text)) return json(text, 'a value that begins with " or [ must be JSON');
  if (!text || /^[=<>]/.test(text)) throw new Error(`the filter ${whole} has no value after its operator`);
  if (text === "true" || text === "false") return text === "true";
  return NUMBER.test(text) ? Number(text) : text;
}

function json(text, rule) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${rule}; ${text} is not: ${error.message}`);
  }
}

// The short form of "the field has one of these values". Text that would be read as something else is in double quotes.
export function equals(name, values) {
  if (/[=<>!]/.test(name)) return JSON.stringify({ field: name, in: values });
  if (values.length !== 1) return `${name}=${JSON.stringify(values)}`;
  const [one] = values;
  const plain = typeof one !== "string" || isPlain(one);
  return `${name}=${plain ? String(one) : JSON.stringify(one)}`;
}

function isPlain(text) {
  return text === text.trim() && !/^(|true|false|[=<>"[].*)$/s.test(text) && !NUMBER.test(text);
}
