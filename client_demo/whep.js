// The signalling of a plain viewer: WHEP, one POST and the address of what it made.

import { send } from "./session.js";

/** One viewer's place; what `Peer` asks of its `signalling`. */
export class Whep {
  #url; #token;
  #resource = null;
  #tag = "";

  /**
   * @param {string} url the session's WHEP address
   * @param {string} token the view token, or undefined on an open server
   */
  constructor(url, token) {
    this.#url = url;
    this.#token = token;
  }

  /** Posts an offer and returns the answer; a place taken before is given back. */
  async exchange(sdp, signal) {
    this.leave();
    const answer = await send(this.#url, { method: "POST", type: "application/sdp", body: sdp, token: this.#token, signal });
    this.#resource = new URL(answer.headers.get("Location"), answer.url);
    this.#tag = answer.headers.get("ETag");
    return { type: "answer", sdp: await answer.text() };
  }

  /** Sends a candidate that was found after the offer. */
  async trickle(candidate, offered) {
    if (!this.#resource) return;
    const line = (name) => offered.match(new RegExp(`^a=${name}:.*$`, "m"))[0].trim();
    const body = [line("ice-ufrag"), line("ice-pwd"), "m=audio 9 UDP/TLS/RTP/SAVPF 0", "a=mid:0", `a=${candidate.candidate}`, ""].join("\r\n");
    await send(this.#resource, { method: "PATCH", type: "application/trickle-ice-sdpfrag", body, token: this.#token, headers: { "If-Match": this.#tag } });
  }

  /** The session is over, and the place with it. */
  forget() {
    this.#resource = null;
  }

  /** Gives the place back, also while the page goes away. */
  leave() {
    const resource = this.#resource;
    this.#resource = null;
    if (resource) send(resource, { method: "DELETE", token: this.#token, keepalive: true }).catch(() => {});
  }
}
