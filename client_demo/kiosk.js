// The kiosk: a portrait the size of the screen that anybody may walk up to. Touch, hold, talk; or hands-free.
//
//   attract -> (touch) -> session -> attract again by Finish, an error, or after a minute without a word
//
// Nobody's voice is sent before they hold the button: the track is switched off until then, which sends silence.
// Address: ?avatar=NAME keeps one portrait, ?mode=agent asks for a session whose answer is spoken, ?idle=SECONDS.

import { unsupportedReason } from "./peer.js";
import { ROOT, Session, placeInLine, request } from "./session.js";
import { SourceError, Sources } from "./sources.js";

const $ = (id) => document.getElementById(id);
const wanted = new URLSearchParams(location.search);
const IDLE_MS = 1000 * (Number(wanted.get("idle")) || 60);
const TURN_MS = 9000; // a portrait of the attract mode
const NOTICE_MS = 6000;
const CAPTIONS = {
  connecting: "One moment…",
  idle: "Hold the button and talk",
  free: "I am listening",
  listening: "Listening",
  thinking: "Thinking",
  speaking: "Speaking",
  degraded: "The picture is paused, it will be back soon",
  lost: "Connection lost, coming back…",
  full: "Waiting for a free place",
};

const session = new Session();
const sources = new Sources();
const video = $("avatar");
const still = $("still");

let avatars = [];
let turn = 0;
let turning = 0;
let track = null;
let held = false;
let activity = "idle"; // what the server says the avatar does
let visit = 0;
let busyAt = 0;
let noticeTimer = 0;

// ---- attract mode ------------------------------------------------------------------------------------------------

async function loadPortraits() {
  try {
    const all = await request("v1/avatars");
    const one = all.filter(({ id }) => id === wanted.get("avatar"));
    avatars = one.length ? one : all;
    showPortrait();
    attract();
  } catch (error) {
    showNotice("The avatar is not here right now", error.message, { again: loadPortraits });
  }
}

function showPortrait() {
  const chosen = avatars[turn];
  if (!chosen) return;
  const image = $("portrait");
  $("before").src = image.src || new URL(chosen.thumbnail, ROOT).href;
  image.classList.add("gone");
  image.onload = () => image.classList.remove("gone");
  image.src = new URL(chosen.thumbnail, ROOT).href;
}

function attract() {
  clearInterval(turning);
  if (avatars.length < 2) return;
  turning = setInterval(() => {
    if (document.hidden) return;
    turn = (turn + 1) % avatars.length;
    showPortrait();
  }, TURN_MS);
}

// ---- begin and finish --------------------------------------------------------------------------------------------

async function begin() {
  const run = ++visit;
  clearNotice();
  const reason = unsupportedReason();
  if (reason) { showNotice("This browser cannot show the avatar", reason); return; }
  clearInterval(turning);
  busyAt = performance.now();
  activity = "idle";
  show("connecting");
  try {
    track = await sources.microphone("");
    if (run !== visit) return;
    listen();
    const mode = wanted.get("mode");
    await session.start(track, { avatar: avatars[turn]?.id, ...(mode ? { mode } : {}) });
  } catch (error) {
    if (run === visit) fail(error);
  }
}

function finish() {
  visit++;
  clearNotice();
  session.stop();
  rest();
}

function rest() {
  held = false;
  setHandsFree(false);
  sources.release();
  track = null;
  video.srcObject = null;
  still.hidden = true;
  show("ready");
  attract();
}

function fail(error) {
  visit++;
  session.stop();
  rest();
  if (error.name === "AbortError") return;
  if (error instanceof SourceError) showNotice(error.title, error.message.replace(/,? (and start again, )?or choose a sound file instead\./, "."));
  else if (error.code === "unreachable") showNotice("The avatar is not here right now", error.message);
  else if (error.code === "unauthorized" || error.code === "forbidden") showNotice("This kiosk is not set up yet", "The server asks for a key: open this page with #key= and the key at the end of its address.");
  else showNotice(error.code ? "That did not work" : "The conversation has ended", error.message);
}

// ---- talking -----------------------------------------------------------------------------------------------------

const isFree = () => $("hands-free").getAttribute("aria-pressed") === "true";

function listen() {
  if (track) track.enabled = held || isFree();
}

function hold(on) {
  if (held === on || (on && session.state !== "live")) return;
  held = on;
  busyAt = performance.now();
  $("talk").setAttribute("aria-pressed", String(on));
  if (on && activity === "speaking" && !isFree()) session.peer?.send({ type: "interrupt" });
  listen();
  caption();
}

function setHandsFree(on) {
  $("hands-free").setAttribute("aria-pressed", String(on));
  busyAt = performance.now();
  listen();
  caption();
}

// ---- what is seen ------------------------------------------------------------------------------------------------

function show(state) {
  document.body.dataset.state = state;
  const running = state !== "ready";
  const focused = document.activeElement;
  $("begin").hidden = running;
  $("deck").hidden = !running;
  if (focused === $("begin") && running) $("deck").focus(); // and not a button that the space bar would press
  if ($("deck").contains(focused) && !running) $("begin").focus();
  $("talk").disabled = state !== "live";
  $("hands-free").disabled = state !== "live";
  if (state === "lost" || state === "full") held = false;
  listen();
  caption();
}

function caption() {
  const { state } = document.body.dataset;
  if (state === "ready") return;
  let now = state;
  if (state === "live") {
    now = activity;
    if (held && now !== "speaking") now = "listening";
    if (now === "idle" && isFree()) now = "free";
  }
  document.body.dataset.activity = now;
  const text = CAPTIONS[now] ?? CAPTIONS.idle;
  if ($("caption").textContent !== text) $("caption").textContent = text; // a live region repeats what is set again
  $("talk").querySelector(".text").textContent = held ? "Let go when done" : "Hold to talk";
}

function showStream(stream) {
  video.srcObject = stream;
  video.play().catch(() => {});
  const uncover = () => { if (video.srcObject === stream) { still.hidden = true; document.body.dataset.seen = "1"; } };
  video.requestVideoFrameCallback(uncover);
}

// The last picture stays while the connection is away.
function keepPicture() {
  if (!video.videoWidth) return;
  Object.assign(still, { width: video.videoWidth, height: video.videoHeight });
  still.getContext("2d").drawImage(video, 0, 0);
  still.hidden = false;
}

function showNotice(title, text, { again = null, tone = "bad", countdownS = 0, brief = false } = {}) {
  clearNotice();
  const box = $("error");
  box.dataset.tone = tone;
  box.append(Object.assign(document.createElement("strong"), { textContent: title }), text);
  if (countdownS) {
    const until = performance.now() + 1000 * countdownS;
    const count = Object.assign(document.createElement("span"), { ariaHidden: "true", className: "countdown" });
    const tick = () => { count.textContent = `Trying again in ${Math.max(0, Math.ceil((until - performance.now()) / 1000))} s.`; };
    tick();
    noticeTimer = setInterval(tick, 1000);
    box.append(count);
  }
  if (again) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "text-button", textContent: "Try now" });
    button.addEventListener("click", again);
    box.append(Object.assign(document.createElement("div"), { className: "actions" }));
    box.lastElementChild.append(button);
  }
  if (brief) noticeTimer = setTimeout(clearNotice, NOTICE_MS);
}

function clearNotice() {
  clearInterval(noticeTimer);
  clearTimeout(noticeTimer);
  $("error").replaceChildren();
}

// ---- events ------------------------------------------------------------------------------------------------------

function receive(event) {
  if (event.type === "state" || event.type === "speech_started" || event.type === "playback_started") busyAt = performance.now();
  if (event.type === "state" && event.state !== "closing") { activity = event.state; caption(); }
  if (event.type === "error") showNotice("A word from the server", event.message, { tone: "warn", brief: true });
  if (event.type === "closing") showNotice("The avatar is going away", `This conversation ends in ${Math.round(event.deadline_s)} s.`, { tone: "warn" });
}

session.addEventListener("state", ({ detail: state }) => {
  if (state === "ready") return; // rest() shows it
  if (state === "lost") keepPicture();
  if (state === "connecting") clearNotice();
  show(state);
});
session.addEventListener("stream", ({ detail }) => showStream(detail));
session.addEventListener("event", ({ detail }) => receive(detail));
session.addEventListener("error", ({ detail }) => fail(detail));
session.addEventListener("resumed", ({ detail }) => {
  showNotice("Back again", detail === "same" ? "Go on where you were." : "The server was started anew; say it once more.", { tone: "warn", brief: true });
});
session.addEventListener("queued", ({ detail }) => {
  const text = placeInLine(detail.position, detail.etaS);
  if ($("error").textContent.includes(text)) return; // a screen reader would read it out at every poll
  showNotice("The avatar is busy", `${text} It goes on by itself.`, { tone: "warn" });
});
session.addEventListener("full", ({ detail }) => {
  showNotice("The avatar is busy", "All places are taken. It goes on by itself as soon as one is free.", { tone: "warn", countdownS: detail.retryS, again: () => session.retryNow() });
});
sources.addEventListener("ended", () => fail(new SourceError("no_microphone", "The microphone is gone", "It was unplugged. Plug it in and touch to talk again.")));

setInterval(() => {
  const talking = held || activity === "speaking" || activity === "thinking";
  if (talking) busyAt = performance.now();
  if (document.body.dataset.state === "live" && performance.now() - busyAt > IDLE_MS) finish();
}, 1000);

$("begin").addEventListener("click", begin);
$("finish").addEventListener("click", finish);
$("hands-free").addEventListener("click", () => setHandsFree(!isFree()));
const talk = $("talk");
talk.addEventListener("pointerdown", (event) => { talk.setPointerCapture(event.pointerId); hold(true); });
for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) talk.addEventListener(type, () => hold(false));
talk.addEventListener("contextmenu", (event) => event.preventDefault()); // a long touch is no right click here
const holds = (event) => event.code === "Space" && (event.target === talk || !event.target.closest("button, input"));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.body.dataset.state !== "ready") finish();
  if (!holds(event) || document.body.dataset.state === "ready") return;
  event.preventDefault();
  if (!event.repeat) hold(true);
});
addEventListener("keyup", (event) => { if (event.code === "Space") hold(false); });
addEventListener("blur", () => hold(false));
addEventListener("pagehide", () => { session.leave(); sources.release(); });
addEventListener("pageshow", ({ persisted }) => { if (persisted) finish(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) session.peer?.send({ type: "keyframe" }); });

show("ready");
loadPortraits();
