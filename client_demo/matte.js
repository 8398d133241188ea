// Cuts a portrait out of a plain background, picture by picture.
//
// The stream carries no matte. Where the background is plain, its colour stands along the picture's edge; everything
// of about that colour that hangs together with the edge is background. The rule is applied to a small copy of the
// picture, and its mask, drawn at full size a little blurred, gives the soft edge. Eyes and teeth of the background's
// colour stay, because no background leads to them.

const SIDE = 256; // of the small copy; the soft edge is one of its pixels wide
const UNLIKE = 44; // largest channel difference from the edge's colour that is still background
const STEP = 16; // and from the neighbour, so that a slow gradient is followed but an outline stops it
const PLAIN_SHARE = 0.85; // of the edge that must be of one colour
const LEVEL = 0.55; // how far down the edge is looked at: below may be shoulders

/** Composes pictures with their background taken away. */
export class Matte {
  #canvas; #brush;
  #small = surface();
  #mask = surface();
  #kept = new ImageData(SIDE, SIDE);
  #outside = new Uint8Array(SIDE * SIDE);
  #queue = new Int32Array(SIDE * SIDE);

  /** @param {HTMLCanvasElement} canvas where the cut-out pictures appear */
  constructor(canvas) {
    this.#canvas = canvas;
    this.#brush = canvas.getContext("2d");
  }

  /**
   * Draws one picture.
   * @param {HTMLVideoElement} video
   * @returns {boolean} false if its background is not plain; then nothing is drawn
   */
  draw(video) {
    const { videoWidth: width, videoHeight: height } = video;
    this.#small.drawImage(video, 0, 0, SIDE, SIDE);
    const pixels = this.#small.getImageData(0, 0, SIDE, SIDE).data;
    const colour = edgeColour(pixels);
    if (!colour) return false;
    this.#flood(pixels, colour);
    this.#cut();
    if (this.#canvas.width !== width || this.#canvas.height !== height) Object.assign(this.#canvas, { width, height });
    this.#brush.globalCompositeOperation = "copy";
    this.#brush.drawImage(video, 0, 0, width, height);
    this.#brush.globalCompositeOperation = "destination-in";
    this.#brush.filter = `blur(${1.1 * width / SIDE}px)`;
    this.#brush.drawImage(this.#mask.canvas, 0, 0, width, height);
    this.#brush.filter = "none";
    return true;
  }

  // Marks what is background, from the edge inwards.
  #flood(pixels, colour) {
    const outside = this.#outside.fill(0);
    const queue = this.#queue;
    let filled = 0;
    const visit = (at, from) => {
      if (outside[at] || unlike(pixels, at, colour) > UNLIKE) return;
      if (from >= 0 && unlike(pixels, at, pixels.subarray(4 * from, 4 * from + 3)) > STEP) return;
      outside[at] = 1;
      queue[filled++] = at;
    };
    for (const at of edge()) visit(at, -1);
    for (let next = 0; next < filled; next++) {
      const at = queue[next];
      const x = at % SIDE;
      if (x > 0) visit(at - 1, at);
      if (x < SIDE - 1) visit(at + 1, at);
      if (at >= SIDE) visit(at - SIDE, at);
      if (at < SIDE * (SIDE - 1)) visit(at + SIDE, at);
    }
  }

  // The mask keeps what is not background, less two pixels of outline, where both colours mix and the blur reaches.
  #cut() {
    const outside = this.#outside;
    const kept = this.#kept.data;
    const around = [1, 2, SIDE, 2 * SIDE];
    for (let at = 0; at < outside.length; at++) {
      const near = outside[at] || around.some((far) => outside[at - far] || outside[at + far]);
      kept[4 * at + 3] = near ? 0 : 255;
    }
    this.#mask.putImageData(this.#kept, 0, 0);
  }
}

function surface() {
  return new OffscreenCanvas(SIDE, SIDE).getContext("2d", { willReadFrequently: true });
}

// Indices along the top and the upper part of both sides.
function* edge() {
  for (let x = 0; x < SIDE; x++) yield x;
  for (let y = 1; y < SIDE * LEVEL; y++) {
    yield y * SIDE;
    yield y * SIDE + SIDE - 1;
  }
}

function unlike(pixels, at, [r, g, b]) {
  return Math.max(Math.abs(pixels[4 * at] - r), Math.abs(pixels[4 * at + 1] - g), Math.abs(pixels[4 * at + 2] - b));
}

// The edge's median colour, or null where too little of the edge is like it.
function edgeColour(pixels) {
  const places = [...edge()];
  const colour = [0, 1, 2].map((channel) => places.map((at) => pixels[4 * at + channel]).sort((a, b) => a - b)[places.length >> 1]);
  const alike = places.filter((at) => unlike(pixels, at, colour) <= UNLIKE).length;
  return alike >= PLAIN_SHARE * places.length ? colour : null;
}
