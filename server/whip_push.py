"""WHIP push (RFC 9725, the client's side): a session's one encode and its sound go to another server's WHIP endpoint.

The packets are those every viewer gets, so a push costs no encode. Everything runs on the event loop, as peers do; a
target that is slow, silent or gone loses packets of its own bounded queues and nothing else, and is tried again with
growing pauses. A bearer token stands before the host: `whips://TOKEN@HOST/PATH`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from urllib.parse import unquote, urljoin, urlsplit

import httpx
from aiortc import RTCBundlePolicy, RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription

from server.aiortc_adapters import close_quietly, on_keyframe_request
from server.output_report import OutputReport, retry_delay_s
from server.output_sinks import CONNECT_S, SinkError, Target
from server.peer import SILENCE_S, h264_codecs, opus_codecs, report_age_s
from server.tracks import AudioTrack, Broadcast, VideoTrack

log = logging.getLogger(__name__)

CHECK_S = 1.0
LASTING = (400, 401, 403, 405, 415, 422)
"""Answers that another attempt would not change."""
MAX_ANSWER_BYTES = 128 * 1024


class WhipOutput(OutputReport):
    """One WHIP push. Belongs to the event loop.

    Args:
        target: scheme `whip` or `whips`.
        broadcast: the session's outgoing media.
        keyframe: asks the session's encoder for a key frame.
        check: refuses hosts that may not be reached; raises `SinkError`, blocks.
        ice_servers: STUN and TURN.
    """

    def __init__(
        self,
        target: Target,
        broadcast: Broadcast,
        *,
        keyframe: Callable[[], None],
        check: Callable[[], None],
        ice_servers: list[RTCIceServer],
    ) -> None:
        super().__init__(target)
        self._broadcast, self._keyframe, self._check, self._ice = broadcast, keyframe, check, ice_servers
        self._url, self._headers = _address(target.url)
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"output {self.id}")

    async def close(self) -> None:
        """Leave the target and free everything."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self.active:
            self.state = "ended"

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._attempt()
                self.state = "ended"
                return
            except SinkError as error:
                failures = 1 if self.state == "live" else failures + 1
                self.reason = str(error)
                self.state = "failed" if error.lasting else "retrying"
                log.info("output %s to %s: %s", self.id, self._target.shown, error)
            except Exception:  # the boundary to aiortc
                log.exception("output %s failed", self.id)
                self.state, self.reason = "failed", "An error of this server; its log says more."
            if self.state == "failed":
                return
            await asyncio.sleep(retry_delay_s(failures))

    async def _attempt(self) -> None:
        """Connect and send until the session ends.

        Raises:
            SinkError: the target does not take the stream, or no longer.
        """
        self.attempts += 1
        await asyncio.to_thread(self._check)
        connection = RTCPeerConnection(RTCConfiguration(iceServers=self._ice, bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        audio, video = AudioTrack(self._broadcast), VideoTrack(self._broadcast)
        location = None
        async with httpx.AsyncClient(timeout=CONNECT_S, headers=self._headers) as http:
            try:
                connection.addTransceiver(audio, direction="sendonly").setCodecPreferences(opus_codecs())
                pictures = connection.addTransceiver(video, direction="sendonly")
                pictures.setCodecPreferences(h264_codecs())
                on_keyframe_request(pictures.sender, self._keyframe)
                changed = _state_changes(connection)
                await connection.setLocalDescription(await connection.createOffer())
                location = await self._offer(http, connection)
                await self._connected(connection, changed)
                self.state, self.reason = "live", None
                await self._watch(connection, pictures.sender, video)
            finally:
                self.dropped += video.dropped
                for track in (audio, video):
                    track.stop()
                await close_quietly(connection)
                if location is not None:
                    with contextlib.suppress(httpx.HTTPError):
                        await http.delete(location, timeout=2.0)

    async def _offer(self, http: httpx.AsyncClient, connection: RTCPeerConnection) -> str | None:
        """Post the offer, take the answer; returns the address of the connection, if the target named one here."""
        headers = {"Content-Type": "application/sdp"}
        try:
            answer = await http.post(self._url, content=connection.localDescription.sdp, headers=headers)
        except httpx.HTTPError as error:
            raise SinkError("The target does not answer.") from error
        if answer.status_code != 201 or len(answer.content) > MAX_ANSWER_BYTES:
            text = f"The target answered {answer.status_code} instead of 201."
            raise SinkError(text, lasting=answer.status_code in LASTING)
        location = urljoin(self._url, answer.headers.get("location", ""))
        try:
            await connection.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
        except Exception as error:  # the boundary to aiortc, which fails in many ways on malformed answers
            raise SinkError("The target's answer cannot be used.") from error
        same_host = urlsplit(location).netloc == urlsplit(self._url).netloc
        return location if same_host and location != self._url else None

    async def _connected(self, connection: RTCPeerConnection, changed: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                while connection.connectionState != "connected":
                    if connection.connectionState in ("failed", "closed"):
                        raise SinkError("The target cannot be reached by WebRTC.")
                    changed.clear()
                    await changed.wait()
        except TimeoutError as error:
            raise SinkError("The target did not accept the stream in time.") from error

    async def _watch(self, connection: RTCPeerConnection, sender: object, video: VideoTrack) -> None:
        """Return when the session ends; a target that fell silent is left."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while video.readyState == "live":
            await asyncio.sleep(CHECK_S)
            if connection.connectionState != "connected":
                raise SinkError("The connection has ended.")
            silent_s = min(await report_age_s(sender), loop.time() - began_s)
            if silent_s > SILENCE_S:
                raise SinkError("The target is silent.")


def _state_changes(connection: RTCPeerConnection) -> asyncio.Event:
    changed = asyncio.Event()
    connection.on("connectionstatechange", changed.set)
    return changed


def _address(url: str) -> tuple[str, dict[str, str]]:
    """The HTTP address and the headers behind a whip(s) one."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    plain = parts._replace(scheme="https" if parts.scheme == "whips" else "http", netloc=host).geturl()
    token = unquote(parts.username or "")
    return plain, {"Authorization": f"Bearer {token}"} if token else {}
