// Lines over time on a canvas: a few values a second, no library.

const EDGE = 46; // room for the scale at the left
const FOOT = 20;

/**
 * Draws one line per series, the present at the right.
 * @param {HTMLCanvasElement} canvas
 * @param {{colour: number, points: {at: number, value: ?number}[]}[]} series `at` on performance.now()'s clock; null is a gap
 * @param {{spanMs: number, unit: string, least?: number, room: number, band?: number, bandText?: string}} options
 *   `least`: the scale's lowest value; without it the scale is even on both sides of 0. `room`: what it shows at least.
 *   `band`: values up to this, on both sides of 0, are shaded as good.
 */
export function drawSeries(canvas, series, { spanMs, unit, least, room, band = 0, bandText = "" }) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width) return;
  const ratio = Math.min(devicePixelRatio || 1, 2);
  Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  const style = getComputedStyle(canvas);
  const colour = (name) => style.getPropertyValue(name);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = `12px ${style.fontFamily}`;
  const now = performance.now();
  const values = series.flatMap(({ points }) => points.map(({ value }) => value)).filter(Number.isFinite);
  const top = rounded(Math.max(room, ...values.map((value) => Math.abs(value) * 1.1)));
  const low = least ?? -top;
  const x = (at) => EDGE + (1 - (now - at) / spanMs) * (width - EDGE - 4);
  const y = (value) => 6 + (top - value) / (top - low) * (height - FOOT - 12);

  if (band) {
    context.fillStyle = colour("--accent-soft");
    context.fillRect(EDGE, y(band), width - EDGE - 4, y(-band) - y(band));
  }
  drawScale(context, { low, top, unit, y, x, now, spanMs, width, height, ink: colour("--ink-soft"), line: colour("--line") });
  if (bandText) {
    context.textAlign = "left";
    context.textBaseline = "top";
    context.fillStyle = colour("--ink-soft");
    context.fillText(bandText, EDGE + 6, y(band) + 4);
  }
  context.lineWidth = 2;
  context.lineJoin = "round";
  for (const { colour: number, points } of series) {
    context.strokeStyle = context.fillStyle = colour(`--series-${number}`);
    context.beginPath();
    let drawing = false;
    for (const { at, value } of points) {
      if (Number.isFinite(value)) context[drawing ? "lineTo" : "moveTo"](x(at), y(value));
      drawing = Number.isFinite(value);
    }
    context.stroke();
    const last = points.at(-1);
    if (last && Number.isFinite(last.value)) {
      context.beginPath();
      context.arc(x(last.at), y(last.value), 3.5, 0, 7);
      context.fill();
    }
  }
  const latest = series.map(({ points }) => points.at(-1)?.value).filter(Number.isFinite);
  canvas.setAttribute("aria-label", latest.length ? `Now: ${latest.map((value) => `${Math.round(value)} ${unit}`).join(", ")}` : "No session is measured now");
}

function drawScale(context, { low, top, unit, y, x, now, spanMs, width, height, ink, line }) {
  context.lineWidth = 1;
  context.strokeStyle = line;
  context.fillStyle = ink;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const value of [low, (low + top) / 2, top]) {
    const at = Math.round(y(value)) + 0.5;
    context.beginPath();
    context.moveTo(EDGE, at);
    context.lineTo(width - 4, at);
    context.stroke();
    context.fillText(String(value).replace("-", "−"), EDGE - 6, at);
  }
  context.textBaseline = "bottom";
  context.fillText(`now (${unit})`, width - 4, height);
  context.textAlign = "left";
  context.fillText(`${Math.round(spanMs / 60_000)} min ago`, Math.max(EDGE, x(now - spanMs)), height);
}

// The next of 1, 2, 5 times a power of ten.
function rounded(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 10].map((step) => step * power).find((each) => each >= value - 1e-9);
}
