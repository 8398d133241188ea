// The operator's view: what the server does now and how it went in the last minutes. It only asks what anybody with
// the admin key can ask, once a second: /v1/sessions, /v1/capacity, /metrics.

import { drawSeries } from "./chart.js";
import { difference, parseMetrics } from "./prometheus.js";
import { ROOT, request, requestText, setAccessKey } from "./session.js";

const PERIOD_MS = 1000;
const KEPT_MS = 300_000;
const RECENT = 15; // polls: bars show the blocks of the last seconds, not since the server began
const STAGES = { queue: "waiting", audio: "hearing", dit: "imagining", vae: "drawing", encode: "encoding" };
const COLOURS = 5;

const $ = (id) => document.getElementById(id);
const history = new Map(); // session id -> {colour, points: [{at, latency, drift}]}
let snapshots = []; // the last metrics, each with the time `at` which it was asked for
let refusedAt = new Map(); // code -> when it was last seen to grow
let nextColour = 0;
let lastSeen = 0;
let locked = false;

async function poll() {
  if (locked || document.hidden) return;
  try {
    const [sessions, capacity, text] = await Promise.all([request("v1/sessions"), request("v1/capacity"), requestText("metrics")]);
    lastSeen = performance.now();
    clearNotice();
    setState("live", capacity.sessions ? "Serving" : "Ready");
    remember(sessions);
    keep({ ...parseMetrics(text), at: lastSeen });
    show(sessions, capacity);
  } catch (error) {
    if (error.status === 401 || error.status === 403) askKey(error.message);
    else {
      setState("lost", "No answer");
      const silent = lastSeen ? ` Last answer ${Math.round((performance.now() - lastSeen) / 1000)} s ago.` : "";
      notice("The server does not answer", `${error.message}${silent}`, "warn");
    }
  }
}

function remember(sessions) {
  const now = performance.now();
  for (const { id, stats, state } of sessions) {
    if (!history.has(id)) history.set(id, { colour: nextColour++ % COLOURS, points: [] });
    const measured = stats.latency_ms > 0 && state !== "degraded";
    history.get(id).points.push({ at: now, latency: measured ? stats.latency_ms : null, drift: measured ? stats.av_drift_ms : null });
  }
  for (const [id, { points }] of history) {
    while (points.length && now - points[0].at > KEPT_MS) points.shift();
    if (!points.length) history.delete(id);
  }
}

function keep(metrics) {
  const previous = snapshots.at(-1);
  if (previous && metrics.value("avatarcast_blocks_total") < previous.value("avatarcast_blocks_total")) snapshots = []; // restarted
  for (const { labels, value } of metrics.all("avatarcast_rejected_total")) {
    const before = previous?.value("avatarcast_rejected_total", { code: labels.code }) ?? 0;
    if (previous && value > before) refusedAt.set(labels.code, Date.now());
  }
  snapshots.push(metrics);
  if (snapshots.length > RECENT) snapshots.shift();
}

// ---- what is shown -----------------------------------------------------------------------------------------------

function show(sessions, capacity) {
  const measured = sessions.filter(({ stats }) => stats.latency_ms > 0);
  const worst = (field) => measured.map(({ stats }) => stats[field]).sort((a, b) => Math.abs(b) - Math.abs(a))[0];
  put("sessions", String(capacity.sessions), `of ${capacity.max_sessions}`, capacity.sessions >= capacity.max_sessions ? "warn" : "");
  put("load", capacity.rtf_p95 ? capacity.rtf_p95.toFixed(2) : "–", capacity.rtf_p95 ? "× real time" : "", capacity.rtf_p95 > 0.9 ? "bad" : "");
  put("latency", measured.length ? Math.round(worst("latency_ms")) : "–", measured.length ? "ms" : "");
  put("drift", measured.length ? signed(worst("av_drift_ms")) : "–", measured.length ? "ms" : "", Math.abs(worst("av_drift_ms")) > 40 ? "bad" : "");
  showRefusals();
  showBlocks();
  showSessions(sessions);
  const series = (field) => [...history.values()].map(({ colour, points }) => ({ colour, points: points.map((point) => ({ at: point.at, value: point[field] })) }));
  drawSeries($("latency-chart"), series("latency"), { spanMs: KEPT_MS, unit: "ms", least: 0, room: 400 });
  drawSeries($("drift-chart"), series("drift"), { spanMs: KEPT_MS, unit: "ms", room: 50, band: 40, bandText: "±40 ms is in step" });
}

function showBlocks() {
  const [first, last] = [snapshots[0], snapshots.at(-1)];
  const rows = [];
  let from = 0;
  for (const [stage, text] of Object.entries(STAGES)) {
    const [name, labels] = stage === "queue" ? ["avatarcast_queue_seconds", {}] : ["avatarcast_block_seconds", { stage }];
    const { count, sum } = difference(first, last, name, labels);
    const mean = count > 0 ? 1000 * sum / count : null;
    rows.push({ text, stage, from, ms: mean });
    from += mean ?? 0;
  }
  const known = rows.some(({ ms }) => ms !== null);
  const span = Math.max(from, 1);
  $("blocks").replaceChildren(...(known ? rows.map(({ text, stage, from: at, ms }) => bar(text, ms === null ? "–" : `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`, at / span, (ms ?? 0) / span, stage)) : []));
  const blocks = last.value("avatarcast_blocks_total") - first.value("avatarcast_blocks_total");
  const misses = last.value("avatarcast_deadline_misses_total");
  const underruns = last.value("avatarcast_underruns_total");
  $("blocks-note").textContent = known
    ? `${Math.round(from)} ms in all, mean of the last ${Math.round((last.at - first.at) / 1000)} s (${blocks} blocks). Since the start: ${misses} late blocks, ${underruns} pictures missing.`
    : "No block in the last seconds.";
}

function showRefusals() {
  const metrics = snapshots.at(-1);
  const rows = metrics.all("avatarcast_rejected_total").filter(({ value }) => value > 0).sort((a, b) => b.value - a.value);
  const total = rows.reduce((sum, { value }) => sum + value, 0);
  const fresh = [...refusedAt.values()].some((at) => Date.now() - at < 10_000);
  put("refused", String(total), "", fresh ? "warn" : "");
  $("refusals").replaceChildren(...rows.slice(0, 6).map(({ labels, value }) => bar(labels.code.replaceAll("_", " "), String(value), 0, value / rows[0].value, "refused")));
  const latest = [...refusedAt].sort((a, b) => b[1] - a[1])[0];
  if (!total) $("refusals-note").textContent = "Nothing was refused.";
  else if (latest) $("refusals-note").textContent = `Latest: ${latest[0].replaceAll("_", " ")}, at ${new Date(latest[1]).toLocaleTimeString()}.`;
  else $("refusals-note").textContent = "All of it before this page was opened.";
}

function bar(text, value, from, share, stage) {
  const row = document.createElement("div");
  row.dataset.stage = stage;
  const track = document.createElement("span");
  track.className = "track";
  const fill = document.createElement("span");
  Object.assign(fill.style, { left: `${100 * from}%`, width: `max(2px, ${100 * share}%)` });
  track.append(fill);
  row.append(Object.assign(document.createElement("span"), { textContent: text }), track, Object.assign(document.createElement("b"), { textContent: value }));
  return row;
}

function showSessions(sessions) {
  $("list").replaceChildren(...sessions.map(({ id, state, mode, avatar, since, viewers, stats }) => {
    const item = document.createElement("li");
    const part = (className, textContent) => Object.assign(document.createElement("span"), { className, textContent });
    const who = part("who", avatar ?? "own portrait");
    who.dataset.colour = history.get(id)?.colour ?? 0;
    const figures = stats.latency_ms > 0 ? `${Math.round(stats.latency_ms)} ms · ${stats.fps.toFixed(0)} fps · block ${Math.round(stats.block_ms_p95)} ms` : "starting";
    const activity = part("activity", state);
    activity.dataset.state = state;
    item.append(who, activity, part("figures-line", figures), part("small", `${mode}, ${viewers} connected, ${duration(since)}, ${id.slice(0, 6)}…`));
    return item;
  }));
  $("list-note").hidden = sessions.length > 0;
}

const signed = (value) => (value > 0.5 ? "+" : "") + String(Math.round(value)).replace(/^-0$/, "0").replace("-", "−");

function duration(since) {
  const seconds = Math.max(0, Math.round((Date.now() - Date.parse(since)) / 1000));
  return seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min`;
}

function put(id, value, unit = "", tone = "") {
  const field = $(id);
  field.dataset.tone = tone;
  field.replaceChildren(String(value));
  if (unit) field.append(" ", Object.assign(document.createElement("small"), { textContent: unit }));
}

function setState(state, text) {
  const box = $("state");
  box.dataset.state = state;
  if (box.querySelector(".text").textContent !== text) box.querySelector(".text").textContent = text;
}

function notice(title, text, tone) {
  $("error").dataset.tone = tone;
  $("error").replaceChildren(Object.assign(document.createElement("strong"), { textContent: title }), text);
}

function clearNotice() { $("error").replaceChildren(); }

function askKey(message) {
  locked = true; // or a form would be replaced while somebody writes in it
  setState("lost", "Locked");
  notice("This server asks for its admin key", message, "warn");
  const form = Object.assign(document.createElement("form"), { className: "prompt" });
  const input = Object.assign(document.createElement("input"), { type: "password", ariaLabel: "Admin key", autocomplete: "current-password", required: true });
  form.append(input, Object.assign(document.createElement("button"), { className: "text-button", textContent: "Use it" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setAccessKey(input.value);
    clearNotice();
    locked = false;
    poll();
  });
  $("error").append(form);
  input.focus();
}

document.title = `avatarcast dashboard, ${ROOT.host}`;
setInterval(poll, PERIOD_MS);
document.addEventListener("visibilitychange", poll);
poll();
