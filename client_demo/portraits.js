// The gallery, and a picture of the visitor's own.

import { ROOT, request } from "./session.js";

const LONGEST_PX = 1024; // more would only be thrown away: the server fits every portrait to the stream's size
const OWN = "own";

/** A picture that cannot be used; the message says what to choose instead. */
export class PortraitError extends Error {}

/** Events: `change`, when another portrait is chosen. */
export class Portraits extends EventTarget {
  #box; #pictures = new Map(); // value -> {url, wanted: what the server is told}
  #value = "";

  /** @param {HTMLElement} box the gallery's element; it is filled with radio buttons */
  constructor(box) {
    super();
    this.#box = box;
    box.addEventListener("change", ({ target }) => this.#choose(target.value));
  }

  /** The chosen portrait: `url` to show, `wanted` for the server; null while the gallery is empty. */
  get chosen() { return this.#pictures.get(this.#value) ?? null; }

  /** Loads the gallery; throws what `request` throws. */
  async load() {
    const avatars = await request("v1/avatars");
    for (const { id, name, thumbnail } of avatars) {
      if (!this.#pictures.has(id)) this.#add(id, name, new URL(thumbnail, ROOT).href, { avatar: id });
    }
    if (!this.#value && avatars.length) this.select(avatars[0].id);
  }

  select(value) {
    const input = [...this.#box.querySelectorAll("input")].find((each) => each.value === value);
    if (!input) return;
    input.checked = true;
    this.#choose(value);
  }

  /**
   * Takes a picture file as one more portrait and selects it.
   * @param {File} file
   * @throws {PortraitError} if the browser cannot read it
   */
  async upload(file) {
    const blob = await prepare(file);
    const [url, image] = [URL.createObjectURL(blob), await base64(blob)];
    const old = this.#pictures.get(OWN);
    if (old) {
      URL.revokeObjectURL(old.url);
      this.#box.querySelector(`input[value="${OWN}"]`).closest("label").remove();
    }
    this.#add(OWN, "Your picture", url, { image }, true);
    this.select(OWN);
  }

  #choose(value) {
    this.#value = value;
    this.dispatchEvent(new Event("change"));
  }

  #add(value, name, url, wanted, first = false) {
    this.#pictures.set(value, { url, wanted, name });
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "avatar", value });
    const image = Object.assign(document.createElement("img"), { src: url, alt: name, title: name, width: 96, height: 96, decoding: "async" });
    label.append(input, image);
    if (first) this.#box.prepend(label);
    else this.#box.append(label);
  }
}

// Phone photographs are larger than the server takes and may be stored turned; a canvas settles both.
async function prepare(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new PortraitError(`“${file.name}” is not a picture this browser can read. Choose a PNG, JPEG or WebP file.`);
  }
  const { width, height } = bitmap;
  if (Math.min(width, height) < 64) {
    bitmap.close();
    throw new PortraitError(`“${file.name}” is only ${width} × ${height} pixels. Choose a picture of at least 64 × 64, better 256 × 256.`);
  }
  const scale = Math.min(1, LONGEST_PX / Math.max(width, height));
  if (scale === 1 && file.type === "image/png") {
    bitmap.close();
    return file;
  }
  const canvas = Object.assign(document.createElement("canvas"), { width: Math.round(width * scale), height: Math.round(height * scale) });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

async function base64(blob) {
  const reader = new FileReader();
  return new Promise((resolve, reject) => {
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new PortraitError("The picture could not be read. Choose it again."));
    reader.readAsDataURL(blob);
  });
}
