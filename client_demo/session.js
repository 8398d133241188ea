// The states a visit goes through, and the server's HTTP side. Knows nothing about the page's elements.
//
//   ready -> connecting -> live <-> degraded
//              |  ^          |
//              v  |          v
//             full          lost -> live, or connecting again when the server has forgotten the session
//
// Every state can go back to `ready` by `stop()`. Errors are events; they leave the state at `ready`.

import { Peer } from "./peer.js";

const POLL_MS = 2000; // how often a ticket is asked for

/** The server's root: this file lies one folder below it. */
export const ROOT = new URL("..", import.meta.url);

// A server that is open to the network asks for a key. It may come behind the `#` of the address, which is never sent
// to a server by itself, and it is forgotten with the tab.
const KEY = "avatarcast-key";
const given = new URLSearchParams(location.hash.slice(1)).get("key");
if (given) {
  sessionStorage.setItem(KEY, given);
  history.replaceState(null, "", location.pathname + location.search);
}

/** Remembers the access key for this tab. */
export function setAccessKey(key) { sessionStorage.setItem(KEY, key); }

/** A place in the queue in words: "2nd in line, about 40 s." */
export function placeInLine(position, etaS) {
  if (!position) return "Your turn, connecting.";
  const tail = position % 100 > 10 && position % 100 < 14 ? "th" : ["th", "st", "nd", "rd"][position % 10] ?? "th";
  const about = etaS < 90 ? `${Math.max(10, Math.round(etaS / 10) * 10)} s` : `${Math.round(etaS / 60)} min`;
  return `${position}${tail} in line, about ${about}.`;
}

/** What the server refused, from `application/problem+json`: a stable code and a sentence. */
export class ApiError extends Error {
  constructor(status, code, message, retryAfterS, body) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
    this.body = body;
  }
}

/**
 * One request to the server. `path` is relative to the server's root.
 * @returns {Promise<any>} the parsed answer, null for an empty one
 * @throws {ApiError} for every answer but 2xx; status 0 where the server was not reached
 */
export async function request(path, options = {}) {
  const answer = await send(path, options);
  return answer.json().catch(() => null);
}

/** The same for an answer that is plain text. */
export async function requestText(path, options = {}) {
  return (await send(path, options)).text();
}

/** The same for the answer itself. A body is sent as JSON, or as it is where its `type` is given. */
export async function send(path, { method = "GET", body, type, token, signal, keepalive, headers = {} } = {}) {
  headers = { ...headers };
  if (body !== undefined) headers["Content-Type"] = type ?? "application/json";
  const content = body === undefined || type ? body : JSON.stringify(body);
  const credential = token ?? sessionStorage.getItem(KEY);
  if (credential) headers.Authorization = `Bearer ${credential}`;
  let answer;
  try {
    answer = await fetch(new URL(path, ROOT), { method, headers, signal, keepalive, body: content });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The server cannot be reached. Check that it is running and that this device is online.");
  }
  if (answer.ok) return answer;
  const parsed = await answer.json().catch(() => null);
  const message = parsed?.detail ?? parsed?.title ?? `The server answered ${answer.status}.`;
  throw new ApiError(answer.status, parsed?.code ?? "internal", message, Number(answer.headers.get("Retry-After")) || 0, parsed);
}

/**
 * Events:
 *   `state`   detail: ready | connecting | live | degraded | lost | full
 *   `error`   detail: ApiError or Error, after which the state is `ready`
 *   `full`    detail: {message, retryS}; the session retries by itself after that time
 *   `queued`  detail: {position, etaS}; every place is taken and the session waits for its turn by itself
 *   `stream`  detail: MediaStream
 *   `event`   detail: an event of the server, see docs/protocol
 *   `opened`  detail: the answer to POST /v1/sessions
 *   `resumed` detail: "same" or "new" session, after a lost connection
 */
export class Session extends EventTarget {
  #wanted = null; // {avatar, image, prompt, mode}: what a new session is opened with
  #track = null;
  #peer = null;
  #info = null;
  #run = 0; // raised by every start and stop, so that a late answer of an older run does nothing
  #retry = 0;
  #ticket = null; // the address of our place in the queue
  #missed = 0; // polls that did not reach the server
  #ending = false; // the server has announced the session's end

  state = "ready";

  get peer() { return this.#peer; }
  get media() { return this.#info?.media ?? null; }
  get id() { return this.#info?.id ?? null; }

  /**
   * Opens a session and connects to it; retries by itself while the server is full.
   * @param {MediaStreamTrack} track the voice
   * @param {{avatar?: string, image?: string, prompt?: string, mode?: string}} wanted image: base64 of a picture file
   */
  async start(track, wanted) {
    this.#track = track;
    this.#wanted = { ...wanted };
    await this.#open(++this.#run, false);
  }

  /** Ends the session and frees its place on the server. */
  stop() {
    this.#end();
    this.#set("ready");
  }

  /** The page is going away: free the place with a request that outlives it. */
  leave() { this.#end(); }

  async replaceTrack(track) {
    this.#track = track;
    await this.#peer?.replaceTrack(track);
  }

  /**
   * Changes portrait or expression of the running session; takes effect at a block boundary.
   * @param {{prompt?: string, avatar?: string, image?: string}} change
   * @throws {ApiError}
   */
  async update(change) {
    if (this.#wanted && ("avatar" in change || "image" in change)) {
      delete this.#wanted.avatar;
      delete this.#wanted.image;
    }
    Object.assign(this.#wanted ?? {}, change);
    if (!this.#info) return null;
    return request(`v1/sessions/${this.#info.id}`, { method: "PATCH", token: this.#info.token, body: change });
  }

  /** Tries again now instead of waiting for the countdown. */
  retryNow() {
    if (this.state !== "full") return;
    clearTimeout(this.#retry);
    this.#open(this.#run, false);
  }

  #set(state) {
    if (this.state === state) return;
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: state }));
  }

  #tell(type, detail) { this.dispatchEvent(new CustomEvent(type, { detail })); }

  #end() {
    this.#run++;
    clearTimeout(this.#retry);
    if (this.#ticket) request(this.#ticket, { method: "DELETE", keepalive: true }).catch(() => {});
    this.#ticket = null;
    this.#missed = 0;
    this.#peer?.close();
    this.#peer = null;
    const info = this.#info;
    this.#info = null;
    if (info) request(`v1/sessions/${info.id}`, { method: "DELETE", token: info.token, keepalive: true }).catch(() => {});
  }

  #fail(error) {
    this.#end();
    this.#set("ready");
    this.#tell("error", error);
  }

  async #open(run, again, resume) {
    this.#ending = false;
    this.#set("connecting");
    try {
      const [info, ice] = await Promise.all([
        this.#openInTurn(run, { mode: "echo", ...this.#wanted, resume }),
        request("v1/ice").catch(() => ({ iceServers: [] })),
      ]);
      if (run !== this.#run) { // stopped meanwhile
        if (info) request(`v1/sessions/${info.id}`, { method: "DELETE", token: info.token }).catch(() => {});
        return;
      }
      this.#info = info;
      this.#tell("opened", info);
      await this.#connect(run, info, ice.iceServers ?? []);
      if (run === this.#run && again) this.#tell("resumed", "new");
    } catch (error) {
      if (run !== this.#run) return;
      if (error.code === "capacity") this.#full(run, error);
      else this.#fail(error);
    }
  }

  // While every place is taken the server gives out tickets; the page asks for its own until it is its turn.
  async #openInTurn(run, body) {
    let answer = await request("v1/sessions?queue=1", { method: "POST", body });
    while (answer.ticket) {
      const url = answer.url;
      if (run !== this.#run) {
        request(url, { method: "DELETE" }).catch(() => {});
        return null;
      }
      this.#ticket = url;
      this.#set("full");
      this.#tell("queued", { position: answer.position, etaS: answer.eta_s });
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      if (run !== this.#run) return null; // #end has given the ticket back
      answer = await this.#pollTicket(run, url, answer);
    }
    this.#ticket = null;
    if (run === this.#run) this.#set("connecting");
    return answer;
  }

  // One lost poll costs nothing: the ticket is kept for some seconds.
  async #pollTicket(run, url, last) {
    try {
      return await request(url);
    } catch (error) {
      if (error.code === "unreachable" && run === this.#run && ++this.#missed < 5) return last;
      throw error;
    } finally {
      if (run !== this.#run) request(url, { method: "DELETE" }).catch(() => {});
    }
  }

  #full(run, error) {
    const retryS = Math.max(1, error.retryAfterS || 5);
    this.#set("full");
    this.#tell("full", { message: error.message, retryS });
    this.#retry = setTimeout(() => { if (run === this.#run) this.#open(run, false); }, retryS * 1000);
  }

  async #connect(run, info, iceServers) {
    const { offer, events } = info.urls;
    const signalling = {
      exchange: (sdp, signal) => request(offer, { method: "POST", token: info.token, body: { sdp, type: "offer" }, signal }),
      trickle: (candidate) => request(offer, { method: "PATCH", token: info.token, body: { candidates: [candidate.toJSON()] } }),
    };
    const peer = new Peer({ signalling, events: new URL(events, ROOT).href, token: info.token, iceServers });
    this.#peer = peer;
    peer.addEventListener("stream", ({ detail }) => this.#tell("stream", detail));
    peer.addEventListener("message", ({ detail }) => this.#receive(detail));
    peer.addEventListener("status", ({ detail }) => { if (run === this.#run) this.#follow(run, detail); });
    await peer.connect(this.#track);
  }

  #follow(run, status) {
    if (this.#ending && status !== "live") {
      this.#info = null; // nothing is left to delete
      this.#fail(new Error("The server has ended the session. Start again whenever you like."));
      return;
    }
    if (status === "live") {
      if (this.state === "lost") this.#tell("resumed", "same");
      this.#set("live");
    }
    if (status === "lost") this.#set("lost");
    if (status === "gone") { // the server restarted or ended the session while we were away
      this.#peer.close();
      this.#peer = null;
      const { id, token, view_token } = this.#info;
      this.#info = null;
      this.#open(run, true, { id, token, view_token }); // under its old name, so that viewers find it again
    }
    if (status === "failed") this.#fail(this.#peer.lastError ?? new Error("The connection could not be made again."));
  }

  #receive(event) {
    if (event.type === "state" && (this.state === "live" || this.state === "degraded")) {
      if (event.state === "closing") this.#ending = true;
      else this.#set(event.state === "degraded" ? "degraded" : "live");
    }
    this.#tell("event", event);
  }
}
