// Live figures: what this browser really presents (frame callbacks, getStats) beside what the server says about each
// block, and a waterfall that shows where a block's latency goes.

const POLL_MS = 1000;
const RATE_SPAN_MS = 2000;
const OFFSET_SAMPLES = 5;
const ROWS = 7;
const STAGES = ["listen", "queue", "audio", "dit", "vae", "hold"];
const SPOKEN = { listen: "listening", queue: "waiting", audio: "hearing", dit: "imagining", vae: "drawing", hold: "held ready" };

export class Figures {
  #video; #fields = new Map(); #waterfall;
  #peer = () => null;
  #timer = 0;
  #shown = []; // [time ms, presentedFrames] of the last frame callbacks
  #offsets = [];
  #previous = null; // last inbound video report
  #server = {};
  #latencyMs = 0;

  /**
   * @param {HTMLElement} root element with `[data-figure]` fields
   * @param {HTMLCanvasElement} canvas the waterfall
   * @param {HTMLVideoElement} video
   */
  constructor(root, canvas, video) {
    this.#video = video;
    for (const field of root.querySelectorAll("[data-figure]")) this.#fields.set(field.dataset.figure, field);
    this.#waterfall = new Waterfall(canvas);
    if (video.requestVideoFrameCallback) {
      const frame = (now, { presentedFrames }) => {
        this.#shown.push([now, presentedFrames]);
        while (now - this.#shown[0][0] > RATE_SPAN_MS) this.#shown.shift();
        video.requestVideoFrameCallback(frame);
      };
      video.requestVideoFrameCallback(frame);
    }
  }

  /** Starts polling the connection that `peer()` names at the time; `latencyMs` is what the server has announced. */
  start(peer, latencyMs) {
    this.#peer = peer;
    this.#waterfall.reset();
    this.#latencyMs = latencyMs;
    this.#previous = null;
    this.#offsets = [];
    this.#shown = [];
    this.#server = {};
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#poll(), POLL_MS);
  }

  stop() {
    clearInterval(this.#timer);
    for (const field of this.#fields.values()) this.#show(field, null);
  }

  /** Takes a server event; only `block` and `stats` matter here. */
  receive(event) {
    if (event.type === "block") this.#waterfall.add(event, this.#latencyMs);
    if (event.type === "stats") {
      this.#server = event;
      if (event.latency_ms > 0) this.#latencyMs = event.latency_ms;
      this.#put("block", event.block_ms_p50, "ms", Number.isFinite(event.block_ms_p95) ? `p95 ${Math.round(event.block_ms_p95)}` : "");
    }
  }

  async #poll() {
    const connection = this.#peer()?.connection;
    if (!connection) return;
    const inbound = {};
    let pair = null;
    for (const report of (await connection.getStats()).values()) {
      if (report.type === "inbound-rtp") inbound[report.kind] = report;
      if (report.type === "candidate-pair" && report.nominated && report.state === "succeeded") pair = report;
    }
    const { audio, video } = inbound;
    if (!video) return;
    this.#put("fps", this.#rate(video), "fps", "", 1);
    this.#put("freezes", video.freezeCount ?? 0);
    this.#put("jitter", Math.max(video.jitter ?? 0, audio?.jitter ?? 0) * 1000, "ms");
    this.#putOffset(audio, video);
    this.#putLatency(video, pair);
    this.#previous = video;
  }

  // Frames presented, where the browser counts them; frames decoded elsewhere.
  #rate(video) {
    if (this.#video.requestVideoFrameCallback) {
      const now = performance.now();
      const recent = this.#shown.filter(([time]) => now - time <= RATE_SPAN_MS);
      if (recent.length < 2) return 0;
      const [first, last] = [recent[0], recent.at(-1)];
      return (last[1] - first[1]) / Math.max(last[0] - first[0], now - last[0]) * 1000;
    }
    if (!this.#previous) return null;
    return (video.framesDecoded - this.#previous.framesDecoded) / (video.timestamp - this.#previous.timestamp) * 1000;
  }

  // Both timestamps are the sender's clock at what plays now; their difference is the lip sync error.
  #putOffset(audio, video) {
    if (!audio?.estimatedPlayoutTimestamp || !video.estimatedPlayoutTimestamp) return;
    this.#offsets.push(video.estimatedPlayoutTimestamp - audio.estimatedPlayoutTimestamp);
    if (this.#offsets.length > OFFSET_SAMPLES) this.#offsets.shift();
    const sorted = [...this.#offsets].sort((a, b) => a - b);
    this.#put("offset", sorted[sorted.length >> 1], "ms", "", 0, true);
  }

  // Microphone to lips: the server's part, the network there and back, and what this browser buffers.
  #putLatency(video, pair) {
    if (!Number.isFinite(this.#server.latency_ms)) return;
    const frames = video.jitterBufferEmittedCount - (this.#previous?.jitterBufferEmittedCount ?? 0);
    const buffered = frames > 0 ? (video.jitterBufferDelay - (this.#previous?.jitterBufferDelay ?? 0)) / frames * 1000 : 0;
    this.#put("latency", this.#server.latency_ms + (pair?.currentRoundTripTime ?? 0) * 1000 + buffered, "ms");
  }

  #put(name, value, unit = "", note = "", digits = 0, signed = false) {
    const field = this.#fields.get(name);
    if (field) this.#show(field, value, unit, note, digits, signed);
  }

  #show(field, value, unit = "", note = "", digits = 0, signed = false) {
    if (value === null || !Number.isFinite(value)) {
      field.textContent = "–";
      delete field.dataset.value;
      return;
    }
    const rounded = value.toFixed(digits).replace(/^-0$/, "0");
    const text = (signed && value >= 0.5 ? "+" : "") + rounded.replace("-", "−");
    field.dataset.value = String(value);
    field.replaceChildren(text);
    const rest = [unit, note].filter(Boolean).join(" · ");
    if (rest) field.append(" ", Object.assign(document.createElement("small"), { textContent: rest }));
  }
}

/** One row a block: from the first sample being heard to the first picture being shown. */
class Waterfall {
  #canvas; #blocks = [];
  #drawn = 0;

  constructor(canvas) {
    this.#canvas = canvas;
    new ResizeObserver(() => this.#schedule()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#schedule());
  }

  reset() {
    this.#blocks = [];
    this.#canvas.setAttribute("aria-label", "Latency of the last blocks: no block yet");
    this.#schedule();
  }

  add(event, latencyMs) {
    const row = waterfallRow(event, latencyMs);
    if (!row) return;
    this.#blocks.push(row);
    if (this.#blocks.length > ROWS) this.#blocks.shift();
    this.#schedule();
    if (event.index % 10 === 0) {
      const parts = row.spans.map(({ stage, ms }) => `${SPOKEN[stage]} ${Math.round(ms)}`).join(", ");
      this.#canvas.setAttribute("aria-label", `Latency of the last block in milliseconds: ${parts}; shown after ${Math.round(row.dueMs)}${row.late ? ", late" : ""}`);
    }
  }

  #schedule() {
    this.#drawn ||= requestAnimationFrame(() => { this.#drawn = 0; this.#draw(); });
  }

  #draw() {
    const canvas = this.#canvas;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width) return;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.font = `12px ${style.fontFamily}`;
    const axis = 20;
    const span = Math.ceil((Math.max(1000, ...this.#blocks.map((row) => row.endMs)) + 60) / 250) * 250;
    const x = (ms) => ms / span * (width - 36);
    if (this.#blocks.length) drawAxis(context, { span, x, height: height - axis, ink: colour("--ink-soft"), line: colour("--line") });
    if (!this.#blocks.length) {
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillStyle = colour("--ink-soft");
      context.fillText("One bar for every half second of speech", width / 2, (height - axis) / 2, width);
    }
    const pitch = (height - axis) / ROWS;
    this.#blocks.forEach((row, index) => {
      const top = index * pitch + 2;
      for (const { stage, fromMs, ms } of row.spans) {
        context.fillStyle = colour(`--stage-${stage}`);
        context.fillRect(x(fromMs), top, Math.max(x(ms), 0.5), pitch - 5);
      }
      context.fillStyle = colour(row.late ? "--bad" : "--stage-due");
      context.fillRect(x(row.dueMs) - 1, top - 1, row.late ? 4 : 2.5, pitch - 3);
    });
  }
}

/**
 * A block's spans in milliseconds since its first sample was heard.
 * @param {{index, window_closed_ms, queued_ms, audio_ms, dit_ms, vae_ms, arrived_ms, due_ms}} event moments on the
 *   session's clock: window closed, pictures arrived, first picture due; the others are durations
 * @param {number} latencyMs from a sample being heard to its picture being due
 * @returns {?{spans: {stage, fromMs, ms}[], dueMs: number, endMs: number, late: boolean}} null for an incomplete event
 */
export function waterfallRow(event, latencyMs) {
  const start = event.due_ms - latencyMs;
  const [closed, arrived, due] = [event.window_closed_ms, event.arrived_ms, event.due_ms].map((ms) => ms - start);
  if (!(latencyMs > 0) || ![closed, arrived, due].every(Number.isFinite)) return null;
  const durations = {
    listen: closed,
    queue: event.queued_ms ?? 0,
    audio: event.audio_ms ?? 0,
    dit: event.dit_ms ?? 0,
    vae: event.vae_ms ?? 0,
  };
  // What the stages do not explain (hand-over between processes) counts as waiting.
  const explained = STAGES.slice(1, -1).reduce((sum, stage) => sum + durations[stage], 0);
  durations.queue += Math.max(0, arrived - closed - explained);
  durations.hold = Math.max(0, due - arrived);
  const spans = [];
  let fromMs = 0;
  for (const stage of STAGES) {
    spans.push({ stage, fromMs, ms: durations[stage] });
    fromMs += durations[stage];
  }
  return { spans, dueMs: due, endMs: Math.max(due, arrived), late: arrived > due };
}

function drawAxis(context, { span, x, height, ink, line }) {
  context.lineWidth = 1;
  context.strokeStyle = line;
  context.fillStyle = ink;
  context.textBaseline = "bottom";
  for (let ms = 0; ms <= span; ms += 250) {
    const at = Math.round(x(ms)) + 0.5;
    context.beginPath();
    context.moveTo(at, 0);
    context.lineTo(at, height);
    context.stroke();
    context.textAlign = ms === 0 ? "left" : "center";
    if (ms % 500 === 0) context.fillText(ms === 0 ? "spoken" : `${ms / 1000} s`, at, height + 20);
  }
}
