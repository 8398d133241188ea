// The page for a browser source: one session's picture and sound, nothing else, for as long as the scene exists.
//
// Address: obs/ID, or obs/live for whichever session is the newest.
//   ?token=      the session's view token, where the server asks for credentials
//   ?alpha=1     the portrait without its plain background, on nothing
//   ?key=00ff00  the same on this colour, for a chroma key filter
// It is a plain viewer, by WHEP, and takes nothing from the speaker.
// It never gives up: a session or server that is gone leaves the page empty until it can be watched again.

import { Matte } from "./matte.js";
import { Peer } from "./peer.js";
import { ROOT, request } from "./session.js";
import { Whep } from "./whep.js";

const PAUSES_MS = [500, 1000, 2000, 4000];
const PLAIN_CHECK = 25; // pictures in a row without a plain background, then the whole picture is shown

const wanted = new URLSearchParams(location.search);
const token = wanted.get("token") ?? undefined;
const name = decodeURIComponent(location.pathname.split("/").pop());
const key = /^#?([0-9a-f]{6})$/i.exec(wanted.get("key") ?? "")?.[1];
const video = document.getElementById("avatar");
const canvas = document.getElementById("cut");
const matte = key || wanted.get("alpha") === "1" ? new Matte(canvas) : null;

let peer = null;
let place = null;
let unplain = 0;

if (key) document.documentElement.style.background = document.body.style.background = `#${key}`;
if (wanted.has("key") && !key) console.warn(`key is ${wanted.get("key")}; it must be six hexadecimal digits, for example 00ff00.`);

const wait = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

async function sessionId() {
  if (name !== "live") return name;
  const sessions = await request("v1/sessions");
  const newest = sessions.sort((a, b) => a.since.localeCompare(b.since)).at(-1);
  if (!newest) throw new Error("There is no session yet.");
  return newest.id;
}

// Watches until the session is over or the connection cannot be had again.
async function watch() {
  const id = await sessionId();
  const ice = await request("v1/ice", { token }).catch(() => ({ iceServers: [] }));
  const events = new URL(`v1/sessions/${encodeURIComponent(id)}/events`, ROOT).href;
  place = new Whep(new URL(`whep/${encodeURIComponent(id)}`, ROOT).href, token);
  peer = new Peer({ signalling: place, events, token, iceServers: ice.iceServers ?? [] });
  const over = new Promise((resolve) => {
    peer.addEventListener("status", ({ detail }) => {
      if (detail === "lost") hide();
      if (detail === "gone" || detail === "failed") resolve();
    });
    peer.addEventListener("message", ({ detail }) => { if (detail.type === "state" && detail.state === "closing") { place?.forget(); resolve(); } });
  });
  peer.addEventListener("stream", ({ detail }) => show(detail));
  try {
    await peer.connect(null);
    await over;
  } finally {
    leave();
    hide();
  }
}

function leave() {
  place?.leave(); // first: the server is told before the connection breaks off
  peer?.close();
  place = peer = null;
}

async function run() {
  for (let failures = 0; ; failures++) {
    const begun = performance.now();
    try {
      await watch();
    } catch (error) {
      if (failures === 0) console.info(`Not on air: ${error.message}`);
    }
    if (performance.now() - begun > 10_000) failures = 0; // it did play
    await wait(PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)]);
  }
}

function show(stream) {
  video.srcObject = stream;
  video.muted = false;
  // A browser source may play sound at once; a plain browser may not, and then starts silent until the page is touched.
  video.play().catch(() => { video.muted = true; return video.play(); }).catch(() => {});
  unplain = 0;
  video.requestVideoFrameCallback(() => {
    if (video.srcObject !== stream) return;
    document.body.dataset.state = "live";
    if (matte) cut(stream);
  });
}

function hide() {
  delete document.body.dataset.state;
  video.srcObject = null;
  canvas.hidden = true;
}

function cut(stream) {
  if (video.srcObject !== stream) return;
  if (matte.draw(video)) {
    unplain = 0;
    canvas.hidden = false;
    document.body.dataset.cut = "1";
  } else if (++unplain >= PLAIN_CHECK) {
    console.warn("The portrait's background is not plain and the checkpoint gives no matte, so the whole picture is shown.");
    canvas.hidden = true;
    delete document.body.dataset.cut;
    return;
  }
  video.requestVideoFrameCallback(() => cut(stream));
}

// A scene that appears wants a picture at once, not at the next regular key frame.
const refresh = () => peer?.send({ type: "keyframe" });
addEventListener("obsSourceVisibleChanged", ({ detail }) => { if (detail?.visible) refresh(); });
addEventListener("obsSourceActiveChanged", ({ detail }) => { if (detail?.active) refresh(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
addEventListener("pointerdown", () => { video.muted = false; });
addEventListener("pagehide", leave);

run();
