// Prometheus's text format, as much of it as the server writes: names, labels, values.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/**
 * @param {string} text the page /metrics
 * @returns {{all(name: string): {labels: object, value: number}[], value(name: string, labels?: object): number}}
 *   `value` is 0 for what is not there, as a counter that has not counted yet
 */
export function parseMetrics(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push({ labels, value: Number(match[3]) });
  }
  const all = (name) => found.get(name) ?? [];
  const value = (name, labels = {}) => all(name).find((each) => Object.entries(labels).every(([key, wanted]) => each.labels[key] === wanted))?.value ?? 0;
  return { all, value };
}

/** What a histogram has gained between two pages: number of observations and their sum. */
export function difference(before, after, name, labels) {
  const gained = (suffix) => after.value(`${name}_${suffix}`, labels) - before.value(`${name}_${suffix}`, labels);
  return { count: gained("count"), sum: gained("sum") };
}
