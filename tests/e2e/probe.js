// Runs in the page before its own scripts: remembers its connections, and on demand records what is really presented.

window.probe = (() => {
  const connections = [];
  const offers = []; // performance.now() of each local description
  const Native = window.RTCPeerConnection;
  window.RTCPeerConnection = class extends Native {
    constructor(...args) {
      super(...args);
      connections.push(this);
    }
    setLocalDescription(...args) {
      offers.push(performance.now());
      return super.setLocalDescription(...args);
    }
  };

  const video = () => document.querySelector("video#avatar");
  const each = (take) => {
    const element = video();
    const frame = (now, meta) => { if (take(now, meta) !== false) element.requestVideoFrameCallback(frame); };
    element.requestVideoFrameCallback(frame);
  };

  let firstFrameMs = null;
  addEventListener("DOMContentLoaded", () => video() && each((now, meta) => {
    if (!connections.length) return true;
    firstFrameMs = meta.expectedDisplayTime;
    return false;
  }));

  const moreFrames = (count) => new Promise((resolve) => {
    let left = count;
    each(() => { if (--left > 0) return true; resolve(); return false; });
  });

  async function stats() {
    const connection = connections.at(-1);
    const inbound = {};
    for (const report of (await connection.getStats()).values()) if (report.type === "inbound-rtp") inbound[report.kind] = report;
    return inbound;
  }

  // With every presented picture: when, which, the mouth region in grey, and how loud the sound was around it.
  function record({ box, side }) {
    const stream = video().srcObject;
    const context = new AudioContext();
    const analyser = new AnalyserNode(context, { fftSize: 2048 });
    context.createMediaStreamSource(stream).connect(analyser);
    const sound = new Float32Array(2048);
    const heard = Math.round(context.sampleRate * 0.04);
    const canvas = new OffscreenCanvas(side, side);
    const brush = canvas.getContext("2d", { willReadFrequently: true });
    const rows = [];
    const offsets = [];
    let running = true;
    each((now, meta) => {
      if (!running) return false;
      const { videoWidth: width, videoHeight: height } = video();
      brush.drawImage(video(), box[0] * width, box[1] * height, (box[2] - box[0]) * width, (box[3] - box[1]) * height, 0, 0, side, side);
      const pixels = brush.getImageData(0, 0, side, side).data;
      let grey = "";
      for (let i = 0; i < pixels.length; i += 4) grey += String.fromCharCode((pixels[i] * 77 + pixels[i + 1] * 151 + pixels[i + 2] * 28) >> 8);
      analyser.getFloatTimeDomainData(sound);
      let power = 0;
      for (const sample of sound.subarray(sound.length - heard)) power += sample * sample;
      rows.push({ now, shown: meta.expectedDisplayTime, presented: meta.presentedFrames, media: meta.mediaTime, rms: Math.sqrt(power / heard), grey: btoa(grey) });
      return true;
    });
    const timer = setInterval(async () => {
      const { audio, video: picture } = await stats();
      if (audio?.estimatedPlayoutTimestamp && picture?.estimatedPlayoutTimestamp) {
        offsets.push({ now: performance.now(), ms: picture.estimatedPlayoutTimestamp - audio.estimatedPlayoutTimestamp });
      }
    }, 1000);
    return async () => {
      running = false;
      clearInterval(timer);
      context.close();
      return { rows, offsets, stats: await stats() };
    };
  }

  return { connections, offers, moreFrames, stats, record, firstFrameMs: () => firstFrameMs };
})();
