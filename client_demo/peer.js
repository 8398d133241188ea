// One connection from this page to one session: WebRTC for picture and sound, a data channel `events` for messages.
//
// The connection heals itself. It is taken for lost when ICE fails, when it stays `disconnected`, or when pings go
// unanswered (a peer that dies silently is otherwise noticed only after half a minute). Then a new offer goes to the
// same session, again and again with growing pauses, until it works, the session is gone, or the time is over.
// Messages come by the events WebSocket where the data channel does not open.

const PING_MS = 2000;
const SILENCE_MS = 6500; // three pings without an answer
const DISCONNECTED_MS = 3000; // ICE often recovers by itself within this
const GATHER_MS = 600; // candidates found later are sent by PATCH
const CONNECT_MS = 8000;
const CHANNEL_MS = 3000; // then the WebSocket takes the messages
const PAUSES_MS = [0, 500, 1000, 2000, 4000];
const GIVE_UP_MS = 120000;

/** Whether this browser can receive the stream at all: a sentence saying what to do, or "" if all is well. */
export function unsupportedReason() {
  if (!("RTCPeerConnection" in window)) return "This browser has no WebRTC. Open the page in a current Chrome, Edge, Firefox or Safari.";
  const codecs = RTCRtpReceiver.getCapabilities?.("video")?.codecs;
  if (codecs && !codecs.some(isH264)) return "This browser cannot show H.264 video. Install its H.264 support, or use Chrome, Edge or Safari.";
  return "";
}

const isH264 = (codec) => codec.mimeType.toLowerCase() === "video/h264";

const wait = (ms, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, ms);
  signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
});

/**
 * Events: `stream` (detail: MediaStream, on every new connection), `message` (detail: the server's event),
 * `status` (detail: connecting | live | lost | gone | failed).
 * `gone`: the session no longer exists, open a new one. `failed`: given up; detail of the cause is in `lastError`.
 */
export class Peer extends EventTarget {
  #signalling; #events; #token; #iceServers;
  #track; #pc = null; #sender = null; #channel = null; #socket = null;
  #since = 0; #alive = 0; #ticked = 0; #timer = 0; #grace = 0;
  #life = new AbortController();
  #wake = new AbortController();
  #redialling = false;

  status = "new";
  lastError = null;
  roundTripMs = null;
  pinged = 0;

  /**
   * @param {object} options
   * @param {{exchange: (sdp: string, signal: AbortSignal) => Promise<RTCSessionDescriptionInit>,
   *          trickle: (candidate: RTCIceCandidate, sdp: string) => Promise<void>}} options.signalling
   *        brings the offer to the session and throws an error with `status`
   * @param {string} options.events address of the events WebSocket
   * @param {string} options.token the session's control or view token
   * @param {RTCIceServer[]} options.iceServers
   */
  constructor({ signalling, events, token, iceServers }) {
    super();
    this.#signalling = signalling;
    this.#events = events;
    this.#token = token;
    this.#iceServers = iceServers;
    // A network that comes back is worth an attempt at once.
    addEventListener("online", () => this.#wake.abort(), { signal: this.#life.signal });
  }

  get connection() { return this.#pc; }

  /** Connects with this microphone track (or none); resolves when media flow, throws what the server answered. */
  async connect(track) {
    this.#track = track;
    this.#set("connecting");
    await this.#dial();
  }

  /** Puts another microphone on the live connection, without a new offer. */
  async replaceTrack(track) {
    this.#track = track;
    await this.#sender?.replaceTrack(track);
  }

  /** Sends one message to the session; false if there is no way to right now. */
  send(message) {
    const text = JSON.stringify(message);
    if (this.#channel?.readyState === "open") this.#channel.send(text);
    else if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(text);
    else return false;
    return true;
  }

  close() {
    this.#life.abort();
    this.#wake.abort();
    this.#hangUp();
  }

  #set(status) {
    if (this.status === status || this.#life.signal.aborted) return;
    this.status = status;
    this.dispatchEvent(new CustomEvent("status", { detail: status }));
  }

  #hangUp() {
    clearInterval(this.#timer);
    clearTimeout(this.#grace);
    this.#socket?.close();
    this.#socket = null;
    this.#channel = null;
    const pc = this.#pc;
    this.#pc = null;
    if (!pc) return;
    pc.onconnectionstatechange = pc.ontrack = pc.onicecandidate = null;
    pc.close();
  }

  async #dial() {
    this.#hangUp();
    const pc = new RTCPeerConnection({ iceServers: this.#iceServers, bundlePolicy: "max-bundle" });
    this.#pc = pc;
    const stream = new MediaStream();
    pc.ontrack = ({ track }) => {
      stream.addTrack(track);
      if (stream.getTracks().length === 2) this.dispatchEvent(new CustomEvent("stream", { detail: stream }));
    };
    this.#sender = pc.addTransceiver(this.#track ?? "audio", { direction: "sendrecv" }).sender;
    const video = pc.addTransceiver("video", { direction: "recvonly" });
    preferH264(video);
    this.#openChannel(pc);

    const connected = this.#connected(pc);
    connected.catch(() => {}); // awaited below, unless the offer fails first
    await pc.setLocalDescription();
    await gathered(pc, GATHER_MS);
    if (this.#pc !== pc) throw new Error("The connection was closed.");
    const sent = pc.localDescription.sdp;
    const answer = await this.#signalling.exchange(sent, this.#life.signal);
    if (this.#pc !== pc) throw new Error("The connection was closed.");
    this.#sendLateCandidates(pc, sent);
    await pc.setRemoteDescription(answer);
    await connected;
    if (this.#pc !== pc) throw new Error("The connection was closed.");
    this.#watch(pc);
    this.#set("live");
  }

  #connected(pc) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error("The server was reached, but no media path to it was found. A firewall may block UDP.")), CONNECT_MS);
      this.#life.signal.addEventListener("abort", () => { clearTimeout(timer); reject(new Error("The connection was closed.")); }, { once: true });
      pc.onconnectionstatechange = () => {
        if (pc.connectionState === "connected") { clearTimeout(timer); resolve(); }
        if (pc.connectionState === "failed") { clearTimeout(timer); reject(new Error("No media path to the server was found. A firewall may block UDP.")); }
      };
    });
  }

  #sendLateCandidates(pc, sent) {
    const late = (candidate) => this.#signalling.trickle(candidate, sent).catch(() => {});
    pc.onicecandidate = ({ candidate }) => { if (candidate?.candidate) late(candidate); };
    const known = pc.localDescription.sdp;
    if (known === sent) return;
    for (const line of known.split("\r\n")) {
      if (line.startsWith("a=candidate") && !sent.includes(line)) late(new RTCIceCandidate({ candidate: line.slice(2), sdpMid: "0", sdpMLineIndex: 0 }));
    }
  }

  #openChannel(pc) {
    const channel = pc.createDataChannel("events");
    channel.onopen = () => {
      this.#channel = channel;
      this.#socket?.close();
      this.#socket = null;
    };
    channel.onmessage = ({ data }) => this.#receive(data);
    channel.onclose = () => {
      if (this.#channel !== channel) return;
      this.#channel = null;
      if (this.#pc === pc) this.#lose(); // the server hung up: no need to wait for pings to fail
    };
  }

  #openSocket() {
    if (this.#socket || this.#channel || this.#life.signal.aborted) return;
    const url = new URL(this.#events);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("token", this.#token);
    const socket = new WebSocket(url);
    this.#socket = socket;
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = () => { if (this.#socket === socket) this.#socket = null; };
  }

  #receive(data) {
    let message;
    try { message = JSON.parse(data); } catch { return; }
    this.#alive = performance.now();
    if (message.type === "pong") {
      if (this.pinged) this.roundTripMs = performance.now() - this.pinged;
      this.pinged = 0;
      return;
    }
    this.dispatchEvent(new CustomEvent("message", { detail: message }));
  }

  #watch(pc) {
    this.#since = this.#alive = this.#ticked = performance.now();
    pc.onconnectionstatechange = () => {
      clearTimeout(this.#grace);
      if (pc.connectionState === "failed") this.#lose();
      if (pc.connectionState === "disconnected") this.#grace = setTimeout(() => this.#lose(), DISCONNECTED_MS);
    };
    this.#timer = setInterval(() => this.#beat(), PING_MS);
    this.#beat();
  }

  #beat() {
    const now = performance.now();
    const slept = now - this.#ticked > 2 * PING_MS; // a sleeping laptop or a throttled tab, not a dead server
    this.#ticked = now;
    if (slept) this.#alive = now;
    if (now - this.#alive > SILENCE_MS) { this.#lose(); return; }
    if (this.send({ type: "ping" })) this.pinged = now;
    else if (now - this.#since > CHANNEL_MS) this.#openSocket();
  }

  async #lose() {
    if (this.#redialling || this.#life.signal.aborted) return;
    this.#redialling = true;
    this.#hangUp();
    this.#set("lost");
    const since = performance.now();
    for (let attempt = 0; ; attempt++) {
      this.#wake = new AbortController();
      await wait(PAUSES_MS[Math.min(attempt, PAUSES_MS.length - 1)], this.#wake.signal);
      if (this.#life.signal.aborted) return;
      try {
        await this.#dial();
        break;
      } catch (error) {
        this.lastError = error;
        this.#hangUp();
        if (this.#life.signal.aborted) return;
        if (error.status === 404 || error.status === 410 || error.status === 401) { this.#redialling = false; this.#set("gone"); return; }
        if (performance.now() - since > GIVE_UP_MS) { this.#redialling = false; this.#set("failed"); return; }
      }
    }
    this.#redialling = false;
  }
}

function preferH264(transceiver) {
  const codecs = RTCRtpReceiver.getCapabilities?.("video")?.codecs;
  if (!codecs || !transceiver.setCodecPreferences) return;
  const wanted = codecs.filter(isH264);
  transceiver.setCodecPreferences([...wanted, ...codecs.filter((codec) => /\/rtx$/i.test(codec.mimeType))]);
}

function gathered(pc, limitMs) {
  return new Promise((resolve) => {
    const done = () => { clearTimeout(timer); pc.removeEventListener("icegatheringstatechange", check); resolve(); };
    const check = () => { if (pc.iceGatheringState === "complete") done(); };
    const timer = setTimeout(done, limitMs);
    pc.addEventListener("icegatheringstatechange", check);
    check();
  });
}
