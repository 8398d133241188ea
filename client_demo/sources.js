// Where the voice comes from: a microphone, or a sound file that is played as if it were one.
//
// Both end in one MediaStreamTrack, so everything behind this file (connection, server, model) treats them alike.

const PROCESSING = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };

/** An error the page can show as it is: a title and what to do. */
export class SourceError extends Error {
  constructor(code, title, remedy) {
    super(remedy);
    this.code = code;
    this.title = title;
  }
}

/** Why no microphone can be had here, or "" where one can be asked for. */
export function microphoneObstacle() {
  if (navigator.mediaDevices?.getUserMedia) return "";
  return window.isSecureContext
    ? "This browser gives pages no microphone. Choose a sound file instead."
    : "This page was not opened over HTTPS, so the browser keeps the microphone closed. Open it through https:// or on localhost, or choose a sound file instead.";
}

/** Events: `ended` (a file has been played, or a microphone was unplugged). */
export class Sources extends EventTarget {
  #context = null;
  #analyser = null;
  #tap = null;
  #samples = null;
  #stream = null;
  #decoded = null;
  #player = null;
  #output = null;

  kind = "";
  startedAt = 0;

  /** Seconds the chosen file lasts, 0 for none. */
  get fileSeconds() { return this.#decoded?.buffer.duration ?? 0; }
  get filePosition() { return this.#player ? Math.min(this.#context.currentTime - this.startedAt, this.fileSeconds) : 0; }

  /**
   * Opens a microphone.
   * @param {string} deviceId "" for the default one
   * @returns {Promise<MediaStreamTrack>}
   * @throws {SourceError} no_https, refused, no_microphone, busy
   */
  async microphone(deviceId) {
    const obstacle = microphoneObstacle();
    if (obstacle) throw new SourceError(window.isSecureContext ? "no_microphone" : "no_https", "The microphone is out of reach", obstacle);
    const stream = await ask(deviceId);
    this.#use(stream, "microphone");
    const [track] = stream.getAudioTracks();
    track.addEventListener("ended", () => { if (this.#stream === stream) this.dispatchEvent(new Event("ended")); });
    return track;
  }

  /**
   * Decodes a sound file; `play` starts it.
   * @param {File} file
   * @returns {Promise<MediaStreamTrack>} silent until `play`
   * @throws {SourceError} bad_file
   */
  async file(file) {
    const context = this.#audio();
    if (this.#decoded?.file !== file) {
      let buffer;
      try {
        buffer = await context.decodeAudioData(await file.arrayBuffer());
      } catch {
        throw new SourceError("bad_file", "That is not a sound this browser can read", `“${file.name}” could not be decoded. Choose a WAV, MP3, OGG, FLAC or M4A file.`);
      }
      this.#decoded = { file, buffer };
    }
    this.#output = context.createMediaStreamDestination();
    this.#output.channelCount = 1;
    this.#use(this.#output.stream, "file");
    return this.#output.stream.getAudioTracks()[0];
  }

  /** Plays the chosen file from its start into the track that `file` returned. */
  play() {
    if (this.kind !== "file" || !this.#decoded) return;
    this.#halt();
    const player = this.#context.createBufferSource();
    player.buffer = this.#decoded.buffer;
    player.connect(this.#output);
    player.onended = () => {
      if (this.#player !== player) return;
      this.#player = null;
      this.dispatchEvent(new Event("ended"));
    };
    player.start();
    this.startedAt = this.#context.currentTime;
    this.#player = player;
  }

  /** Loudness now, 0 (below -60 dB) to 1 (full scale). */
  level() {
    if (!this.#analyser || !this.#stream) return 0;
    this.#analyser.getFloatTimeDomainData(this.#samples);
    let sum = 0;
    for (const sample of this.#samples) sum += sample * sample;
    const db = 10 * Math.log10(sum / this.#samples.length + 1e-12);
    return Math.min(1, Math.max(0, (db + 60) / 60));
  }

  /** Lets go of the microphone or file; the browser's recording sign goes out. */
  release() {
    this.#halt();
    this.#tap?.disconnect();
    this.#tap = null;
    if (this.kind === "microphone") for (const track of this.#stream.getTracks()) track.stop();
    this.#stream = null;
    this.kind = "";
    this.#context?.suspend();
  }

  #audio() {
    this.#context ??= new AudioContext({ latencyHint: "interactive" });
    this.#context.resume();
    return this.#context;
  }

  #halt() {
    const player = this.#player;
    this.#player = null;
    player?.stop();
  }

  #use(stream, kind) {
    const old = this.#stream;
    if (old && this.kind === "microphone") for (const track of old.getTracks()) track.stop();
    if (kind !== "file") this.#halt();
    this.#stream = stream;
    this.kind = kind;
    const context = this.#audio();
    this.#analyser ??= Object.assign(context.createAnalyser(), { fftSize: 1024 });
    this.#samples ??= new Float32Array(this.#analyser.fftSize);
    this.#tap?.disconnect();
    this.#tap = context.createMediaStreamSource(stream);
    this.#tap.connect(this.#analyser);
  }
}

/** The microphones the browser admits to; their names are empty until permission was given. */
export async function microphones() {
  const devices = await navigator.mediaDevices?.enumerateDevices?.() ?? [];
  return devices.filter((device) => device.kind === "audioinput" && device.deviceId && device.deviceId !== "default");
}

async function ask(deviceId) {
  const audio = deviceId ? { ...PROCESSING, deviceId: { exact: deviceId } } : PROCESSING;
  try {
    return await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    if (error.name === "OverconstrainedError" && deviceId) return ask("");
    if (error.name === "NotAllowedError" || error.name === "SecurityError") {
      throw new SourceError("refused", "The microphone was not allowed", "Allow it in the browser's address bar and start again, or choose a sound file instead.");
    }
    if (error.name === "NotFoundError" || error.name === "OverconstrainedError") {
      throw new SourceError("no_microphone", "No microphone was found", "Plug one in and start again, or choose a sound file instead.");
    }
    throw new SourceError("busy", "The microphone could not be opened", "Another program may be using it. Close that program and start again, or choose a sound file instead.");
  }
}
