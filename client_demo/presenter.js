// The presenter page: joins voice, session, picture and figures to the page's elements.

import { Figures } from "./figures.js";
import { unsupportedReason } from "./peer.js";
import { PortraitError, Portraits } from "./portraits.js";
import { Session, placeInLine, setAccessKey } from "./session.js";
import { SourceError, Sources, microphoneObstacle, microphones } from "./sources.js";

const $ = (id) => document.getElementById(id);
const video = $("avatar");
const still = $("still");
const frame = $("frame");
const session = new Session();
const sources = new Sources();
const portraits = new Portraits($("gallery"));
const figures = new Figures($("figures"), $("waterfall"), video);

const STATES = {
  ready: "Ready",
  asking: "Waiting for your voice",
  connecting: "Connecting",
  live: "Live",
  degraded: "Picture paused, back soon",
  lost: "Connection lost, resuming",
  full: "Server full",
};
const SUGGESTIONS = [
  ["Calm", "calm, neutral face"],
  ["Happy", "happy and lively, smiling"],
  ["Sad", "sad and quiet"],
  ["Surprised", "surprised, raised eyebrows"],
  ["Stern", "stern and serious"],
];

let visit = 0; // raised by every start and stop
let filePlayed = false;
let noticeTimer = 0;

// ---- state -------------------------------------------------------------------------------------------------------

function showState(state) {
  const running = state !== "ready";
  $("state").dataset.state = state;
  $("state").querySelector(".text").textContent = STATES[state];
  const focused = document.activeElement;
  $("start").hidden = running;
  $("stop").hidden = !running;
  if (focused === $("start") && running) $("stop").focus();
  if (focused === $("stop") && !running) $("start").focus();
  const seen = state === "live" || state === "degraded" || state === "lost";
  $("sound").hidden = $("fullscreen").hidden = !seen;
  if (state !== "live") showActivity("");
}

function showActivity(activity) {
  frame.dataset.activity = activity;
  $("activity").textContent = { speaking: "Speaking", listening: "Listening", thinking: "Thinking", idle: "Listening" }[activity] ?? "";
}

function showNotice(title, text, { tone = "bad", actions = [], countdownS = 0, closing = tone === "warn" && !countdownS } = {}) {
  clearInterval(noticeTimer);
  const box = $("error");
  box.dataset.tone = tone;
  delete box.dataset.line;
  box.replaceChildren(Object.assign(document.createElement("strong"), { textContent: title }), text);
  if (countdownS) {
    // Hidden from screen readers, or the alert would be read out again every second.
    const count = Object.assign(document.createElement("span"), { ariaHidden: "true", className: "countdown" });
    const until = performance.now() + countdownS * 1000;
    const tick = () => { count.textContent = `Trying again in ${Math.max(0, Math.ceil((until - performance.now()) / 1000))} s.`; };
    tick();
    noticeTimer = setInterval(tick, 1000);
    box.append(count);
  }
  const row = Object.assign(document.createElement("div"), { className: "actions" });
  const close = closing ? [["Close", clearNotice]] : [];
  for (const [label, run] of [...actions, ...close]) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "text-button", textContent: label });
    button.addEventListener("click", run);
    row.append(button);
  }
  if (row.childElementCount) box.append(row);
}

// Written anew only when something changed, or a screen reader would read it out at every poll.
function showPlaceInLine({ position, etaS }) {
  const text = placeInLine(position, etaS);
  if ($("error").dataset.line === text) return;
  showNotice("All places are taken right now", `${text} You are let in by yourself; just keep this page open.`, { tone: "warn", actions: [["Leave the line", stop]], closing: false });
  $("error").dataset.line = text;
}

function clearNotice() {
  clearInterval(noticeTimer);
  delete $("error").dataset.line;
  $("error").replaceChildren();
}

function showFailure(error) {
  if (error.name === "AbortError") return;
  if (error instanceof SourceError) showNotice(error.title, error.message);
  else if (error instanceof PortraitError) showNotice("This picture cannot be used", error.message);
  else if (error.code === "out_of_domain") explainDomain(error.message, error.body);
  else if (error.code === "unauthorized" || error.code === "forbidden") askKey(error.message);
  else if (error.code === "unreachable") showNotice("The server is not there", error.message);
  else if (error.code === "unsupported_media" || error.code === "too_large") showNotice("This picture cannot be used", error.message);
  else showNotice(error.code ? "That did not work" : "The connection has ended", error.message);
}

function askKey(message) {
  showNotice("This server asks for an access key", message, { tone: "warn" });
  const form = document.createElement("form");
  form.className = "prompt";
  const input = Object.assign(document.createElement("input"), { type: "password", ariaLabel: "Access key", autocomplete: "current-password", required: true });
  form.append(input, Object.assign(document.createElement("button"), { className: "text-button", textContent: "Use it" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setAccessKey(input.value);
    clearNotice();
    start();
  });
  $("error").querySelector(".actions").before(form);
  input.focus();
}

// A photograph is no mistake of the visitor; say what the model can do, and the measured reason.
function explainDomain(message, { psnr_db: psnr = Number(/([\d.]+) dB/.exec(message)?.[1]), min_psnr_db: least } = {}) {
  const needed = Number.isFinite(least) ? `, and ${least.toFixed(1)} dB are needed for a clear face` : "";
  const measured = Number.isFinite(psnr) ? `Measured on yours: it comes back with ${psnr.toFixed(1)} dB${needed}.` : message;
  showNotice("This picture is new territory for the built-in model", `The small model has learned drawn portraits, so others come out blurred. ${measured} A portrait from the gallery will look its best.`, { tone: "warn" });
}

// ---- start and stop ----------------------------------------------------------------------------------------------

const wantsFile = () => document.querySelector('input[name="source"]:checked').value === "file";

async function openSource() {
  if (!wantsFile()) return sources.microphone($("microphone").value);
  const file = $("file").files[0];
  if (!file) throw new SourceError("no_file", "No sound file chosen yet", "Choose a sound file under “Voice”, then start again.");
  return sources.file(file);
}

async function start() {
  const run = ++visit;
  clearNotice();
  const reason = unsupportedReason();
  if (reason) { showNotice("This browser cannot show the avatar", reason); return; }
  showState("asking");
  filePlayed = false;
  try {
    const track = await openSource();
    if (run !== visit) return;
    fillMicrophones();
    await session.start(track, { ...portraits.chosen?.wanted, prompt: $("prompt").value.trim() });
  } catch (error) {
    if (run !== visit) return;
    sources.release();
    showState("ready");
    showFailure(error);
  }
}

function stop() {
  visit++;
  session.stop();
  showState("ready");
  clearNotice();
  rest();
}

// Back to the portrait at rest.
function rest() {
  sources.release();
  figures.stop();
  video.srcObject = null;
  setSound(false);
  showPortrait();
  showReplay();
  $("prompt-note").textContent = "";
}

// ---- picture and sound -------------------------------------------------------------------------------------------

// The portrait stands in the frame at once, and after a loss the last picture, until a new one is really presented.
function showPortrait() {
  const { chosen } = portraits;
  if (!chosen) return;
  video.poster = chosen.url;
  const image = new Image();
  image.onload = () => { if (!video.srcObject) cover(image, image.naturalWidth, image.naturalHeight); };
  image.src = chosen.url;
}

function cover(image, width, height) {
  if (!width) return;
  const scale = Math.max(still.width / width, still.height / height);
  still.getContext("2d").drawImage(image, (still.width - width * scale) / 2, (still.height - height * scale) / 2, width * scale, height * scale);
  still.classList.remove("gone");
}

function shape({ width, height }) {
  frame.style.setProperty("--aspect", `${width} / ${height}`);
  still.height = Math.round(still.width * height / width);
  showPortrait();
}

function showStream(stream) {
  video.srcObject = stream;
  const uncover = () => { if (video.srcObject === stream) still.classList.add("gone"); };
  if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(uncover);
  else video.addEventListener("playing", uncover, { once: true });
  video.play().catch(() => { setSound(false); video.play().catch(() => {}); });
}

function setSound(on) {
  video.muted = !on;
  $("sound").toggleAttribute("data-on", on);
  $("sound").querySelector(".text").textContent = on ? "Mute" : "Hear it";
}

function toggleFullscreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else if (frame.requestFullscreen) frame.requestFullscreen();
  else video.webkitEnterFullscreen?.(); // iPhones show only the bare video full-screen
}

// ---- voice -------------------------------------------------------------------------------------------------------

async function fillMicrophones() {
  const select = $("microphone");
  const found = await microphones();
  const chosen = select.value;
  const options = found.map(({ deviceId, label }, index) => new Option(label || `Microphone ${index + 1}`, deviceId));
  select.replaceChildren(new Option("Default microphone", ""), ...options);
  select.value = found.some(({ deviceId }) => deviceId === chosen) ? chosen : "";
}

function showSource() {
  const file = wantsFile();
  $("file-pane").hidden = !file;
  $("microphone-pane").hidden = file;
  $("start").textContent = file ? "Start with this file" : "Start talking";
  $("hint").textContent = file
    ? "Sound starts off. Turn it on in the picture to hear your file spoken."
    : microphoneObstacle() || "Sound starts off. Put on headphones before you turn it on, or the microphone hears the avatar too.";
}

// Another microphone or file while the session runs goes onto the same connection.
async function changeSource() {
  showSource();
  if (session.state === "ready" || (wantsFile() && !$("file").files.length)) return;
  const run = visit;
  try {
    const track = await openSource();
    if (run !== visit) return;
    await session.replaceTrack(track);
    clearNotice();
    filePlayed = false;
    playFile();
  } catch (error) {
    showFailure(error);
  }
}

// A file begins when the connection stands, so that its first words are not lost.
function playFile() {
  if (sources.kind !== "file" || filePlayed || session.state !== "live") return;
  filePlayed = true;
  sources.play();
  showReplay();
}

function showReplay() {
  $("replay").hidden = !(sources.kind === "file" && filePlayed);
  if (sources.kind !== "file") $("file-time").textContent = "";
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

let beat = 0;
setInterval(() => {
  const level = sources.kind ? sources.level() : 0;
  $("meter").firstElementChild.style.transform = `scaleX(${level.toFixed(2)})`;
  if (++beat % 8) return;
  $("meter").setAttribute("aria-valuenow", String(Math.round(level * 100)));
  if (sources.kind === "file") $("file-time").textContent = `${clock(sources.filePosition)} of ${clock(sources.fileSeconds)}`;
}, 90);

// ---- portrait and expression -------------------------------------------------------------------------------------

async function changePortrait() {
  showPortrait();
  if (session.state === "ready") return;
  try {
    await session.update(portraits.chosen.wanted);
  } catch (error) {
    showFailure(error);
  }
}

async function upload(input) {
  const [file] = input.files;
  input.value = ""; // choosing the same file again must count as a change
  if (!file) return;
  try {
    clearNotice();
    await portraits.upload(file);
  } catch (error) {
    showFailure(error);
  }
}

async function applyPrompt() {
  const prompt = $("prompt").value.trim();
  for (const chip of $("suggestions").children) chip.setAttribute("aria-pressed", String(chip.value === prompt));
  if (session.state === "ready") {
    $("prompt-note").textContent = prompt ? "It will start with this expression." : "";
    return;
  }
  try {
    await session.update({ prompt });
    $("prompt-note").textContent = "Coming with one of the next pictures.";
  } catch (error) {
    showFailure(error);
  }
}

function fillSuggestions() {
  for (const [label, prompt] of SUGGESTIONS) {
    const chip = Object.assign(document.createElement("button"), { type: "button", textContent: label, value: prompt });
    chip.setAttribute("aria-pressed", "false");
    chip.addEventListener("click", () => {
      $("prompt").value = chip.getAttribute("aria-pressed") === "true" ? "" : prompt;
      applyPrompt();
    });
    $("suggestions").append(chip);
  }
}

// ---- events ------------------------------------------------------------------------------------------------------

function receive(event) {
  figures.receive(event);
  switch (event.type) {
    case "state":
      showActivity(event.state);
      break;
    case "prompt_applied":
      $("prompt-note").textContent = "The expression is in effect.";
      break;
    case "warning":
      if (event.code === "out_of_domain") explainDomain(event.message, event);
      else showNotice("A word from the server", event.message, { tone: "warn" });
      break;
    case "error":
      showFailure(event);
      break;
    case "closing":
      showNotice("The server is going down", `This session ends in ${Math.round(event.deadline_s)} s.`, { tone: "warn" });
      break;
  }
}

session.addEventListener("state", ({ detail: state }) => {
  showState(state);
  if (state === "lost" && video.videoWidth) cover(video, video.videoWidth, video.videoHeight);
  if (state === "connecting" || state === "ready") clearNotice();
  if (state === "live") playFile();
});
session.addEventListener("opened", ({ detail }) => {
  if (detail.media) shape(detail.media);
  figures.start(() => session.peer, detail.media?.latency_ms ?? 0);
});
session.addEventListener("resumed", ({ detail }) => {
  if (detail === "new") showNotice("Back again", "The server had ended the session while the connection was away, so a new one was started.", { tone: "warn" });
});
session.addEventListener("queued", ({ detail }) => showPlaceInLine(detail));
session.addEventListener("full", ({ detail }) => {
  showNotice("All places are taken right now", `${detail.message}`, { tone: "warn", countdownS: detail.retryS, actions: [["Try now", () => session.retryNow()]] });
});
session.addEventListener("error", ({ detail }) => { visit++; rest(); showFailure(detail); });
session.addEventListener("stream", ({ detail }) => showStream(detail));
session.addEventListener("event", ({ detail }) => receive(detail));
sources.addEventListener("ended", () => {
  if (sources.kind === "microphone") showNotice("The microphone is gone", "It was unplugged or taken by the system. Choose another one under “Voice”; the avatar stays connected.");
});
portraits.addEventListener("change", changePortrait);

$("start").addEventListener("click", start);
$("stop").addEventListener("click", stop);
$("sound").addEventListener("click", () => setSound(video.muted));
$("fullscreen").addEventListener("click", toggleFullscreen);
document.addEventListener("fullscreenchange", () => $("fullscreen").setAttribute("aria-label", document.fullscreenElement ? "Leave full screen" : "Full screen"));
$("microphone").addEventListener("change", changeSource);
$("file").addEventListener("change", changeSource);
for (const radio of document.querySelectorAll('input[name="source"]')) radio.addEventListener("change", changeSource);
$("replay").addEventListener("click", () => { sources.play(); });
$("portrait").addEventListener("change", ({ target }) => upload(target));
$("prompt-form").addEventListener("submit", (event) => { event.preventDefault(); applyPrompt(); });
navigator.mediaDevices?.addEventListener?.("devicechange", fillMicrophones);
addEventListener("pagehide", () => { session.leave(); sources.release(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) session.peer?.send({ type: "keyframe" }); });
addEventListener("pageshow", ({ persisted }) => { if (persisted) stop(); });

async function loadGallery() {
  try {
    await portraits.load();
  } catch (error) {
    showNotice("The portraits could not be loaded", error.message, { actions: [["Try again", () => { clearNotice(); loadGallery(); }]] });
  }
}

showState("ready");
showSource();
fillSuggestions();
fillMicrophones();
loadGallery();
