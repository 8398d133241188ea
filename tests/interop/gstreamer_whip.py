"""A WHIP client made of GStreamer's webrtcbin, run by the system's Python: `gstreamer_whip.py URL WAV`.

Its certificate is RSA and it offers with the roles open, which is what makes it worth testing. It pushes the file as
Opus, prints `connected` when the media flow, and ends with DELETE on standard input's end.
"""

from __future__ import annotations

import sys
import threading
import urllib.request
from urllib.parse import urljoin

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstWebRTC", "1.0")
gi.require_version("GstSdp", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC  # noqa: E402

URL, WAV = sys.argv[1:]
Gst.init(None)
pipeline = Gst.parse_launch(
    f"webrtcbin name=peer bundle-policy=max-bundle filesrc location={WAV} ! wavparse ! audioconvert ! audioresample"
    " ! audio/x-raw,rate=48000,channels=2 ! identity sync=true ! opusenc ! rtpopuspay pt=111"
    " ! application/x-rtp,media=audio,encoding-name=OPUS,payload=111 ! peer."
)
peer = pipeline.get_by_name("peer")
loop = GLib.MainLoop()
location = ""


def on_negotiation_needed(element: Gst.Element) -> None:
    element.emit("create-offer", None, Gst.Promise.new_with_change_func(on_offer, None))


def on_offer(promise: Gst.Promise, data: object) -> None:
    promise.wait()
    reply = promise.get_reply()  # kept: the offer lives in it
    offer = reply.get_value("offer")
    peer.emit("set-local-description", offer, Gst.Promise.new())


def on_gathered(element: Gst.Element, parameter: object) -> None:
    if element.get_property("ice-gathering-state") == GstWebRTC.WebRTCICEGatheringState.COMPLETE:
        threading.Thread(target=post, daemon=True).start()


def post() -> None:
    global location
    text = peer.get_property("local-description").sdp.as_text()
    request = urllib.request.Request(URL, text.encode(), {"Content-Type": "application/sdp"}, method="POST")
    with urllib.request.urlopen(request) as answer:
        location = urljoin(URL, answer.headers["Location"])
        _, message = GstSdp.SDPMessage.new_from_text(answer.read().decode())
    description = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, message)
    peer.emit("set-remote-description", description, Gst.Promise.new())


def on_state(element: Gst.Element, parameter: object) -> None:
    state = element.get_property("connection-state").value_nick
    print(state, flush=True)


def end_with_input() -> None:
    sys.stdin.read()
    if location:
        with urllib.request.urlopen(urllib.request.Request(location, method="DELETE")) as answer:
            print("deleted", answer.status, flush=True)
    loop.quit()


peer.connect("on-negotiation-needed", on_negotiation_needed)
peer.connect("notify::ice-gathering-state", on_gathered)
peer.connect("notify::connection-state", on_state)
pipeline.set_state(Gst.State.PLAYING)
threading.Thread(target=end_with_input, daemon=True).start()
loop.run()
pipeline.set_state(Gst.State.NULL)
