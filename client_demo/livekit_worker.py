"""An avatar for LiveKit Agents: joins a room, speaks what the agent streams, publishes picture and sound.

    avatarcast livekit-worker --url wss://rooms.example.org --room lobby --agent my-agent

The protocol is that of `livekit.agents.voice.avatar`: the agent's `DataStreamAudioOutput` sends sound on the byte
stream `lk.audio_stream` and calls `lk.clear_buffer`; the avatar answers each utterance with one
`lk.playback_finished`. That package's `DataStreamAudioReceiver` and `AvatarRunner` do the talking to LiveKit; here is
the generator between them and a session. Needs the extra `livekit`: pip install 'avatarcast[livekit]'.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from livekit import api, rtc
from livekit.agents.voice.avatar import (
    AudioSegmentEnd,
    AvatarOptions,
    AvatarRunner,
    DataStreamAudioReceiver,
    VideoGenerator,
)

from client_demo.avatar_line import Finished, Picture, Sound, mono
from client_demo.microphone import ClientError, InputError
from client_demo.remote_avatar import RemoteAvatar, RemoteConfig

TOKEN_VARIABLE = "LIVEKIT_TOKEN"
KEY_VARIABLE, SECRET_VARIABLE = "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"
SOUND_HZ = 48_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomConfig:
    """The room, and whom the avatar speaks for."""

    url: str
    """The LiveKit server."""
    room: str | None = None
    """Name of the room; not needed with a ready token."""
    agent: str | None = None
    """Identity of the agent's participant; None takes the first agent in the room."""
    identity: str = "avatarcast"
    """The avatar's own identity, the `destination_identity` of the agent's audio output."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("ws://", "wss://", "http://", "https://")):
            raise InputError(f"--url is {self.url!r}; it must begin with ws:// or wss://")


def room_token(config: RoomConfig, environment: Mapping[str, str] = os.environ) -> str:
    """The token to join with: a ready one, or one made from key and secret as LiveKit's own avatars have it.

    Raises:
        InputError: the environment has neither, or no room is named.
    """
    if ready := environment.get(TOKEN_VARIABLE):
        return ready
    key, secret = environment.get(KEY_VARIABLE), environment.get(SECRET_VARIABLE)
    if not key or not secret:
        raise InputError(f"there is no credential; set {TOKEN_VARIABLE}, or {KEY_VARIABLE} and {SECRET_VARIABLE}")
    if not config.room:
        raise InputError("--room is missing; name the room, or set a ready token in " + TOKEN_VARIABLE)
    token = api.AccessToken(key, secret).with_identity(config.identity).with_name(config.identity).with_kind("agent")
    if config.agent:
        token = token.with_attributes({"lk.publish_on_behalf": config.agent})
    return token.with_grants(api.VideoGrants(room_join=True, room=config.room)).to_jwt()


class SessionGenerator(VideoGenerator):
    """A session as the generator that an `AvatarRunner` drives.

    The runner counts one utterance at a time, so sound of the next one waits until the one before was reported.

    Args:
        avatar: an open session.
    """

    def __init__(self, avatar: RemoteAvatar) -> None:
        self._avatar = avatar
        self._segment: str | None = None  # the one that is being pushed
        self._rate_hz = 0
        self._heard_for: str | None = None  # the one that the runner has not been told the end of
        self._clears = 0
        self._free = asyncio.Event()
        self._free.set()

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Speak a piece of sound, or end the utterance."""
        if isinstance(frame, AudioSegmentEnd):
            self._segment = None
            await self._avatar.end()
            return
        clears = self._clears
        if self._segment is None or self._rate_hz != frame.sample_rate:
            await self._free.wait()
            if clears != self._clears:
                return
            self._free.clear()
            self._segment = self._heard_for = await self._avatar.begin(frame.sample_rate)
            self._rate_hz = frame.sample_rate
        await self._avatar.push(mono(bytes(frame.data), frame.num_channels))

    async def clear_buffer(self) -> None:
        """Stop at once. The runner itself reports the utterance as interrupted."""
        self._clears += 1
        self._segment = self._heard_for = None
        self._free.set()
        await self._avatar.interrupt()

    async def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        """Pictures all the time; sound, and an end, while an utterance is heard."""
        async for item in self._avatar:
            match item:
                case Picture(_, picture):
                    planes = picture.to_ndarray(format="yuv420p")
                    yield rtc.VideoFrame(picture.width, picture.height, rtc.VideoBufferType.I420, planes.tobytes())
                case Sound(_, sound, segment) if segment is not None and segment == self._heard_for:
                    yield rtc.AudioFrame(item.pcm(), SOUND_HZ, 1, sound.samples)
                case Finished(segment) if segment == self._heard_for:
                    yield AudioSegmentEnd()
                    if segment == self._heard_for:  # no clear came while the runner took the end
                        self._heard_for = None
                        self._segment = None if self._segment == segment else self._segment
                        self._free.set()


def runner_options(avatar: RemoteAvatar) -> AvatarOptions:
    """What the runner must know of the stream."""
    media = avatar.media
    return AvatarOptions(
        video_width=media["width"],
        video_height=media["height"],
        video_fps=media["fps"],
        audio_sample_rate=SOUND_HZ,
        audio_channels=1,
    )


async def serve_room(room: rtc.Room, remote: RemoteConfig, *, agent: str | None) -> None:
    """Be the avatar of a connected room until the session or the room ends.

    Args:
        room: connected.
        remote: the server; a session is opened for the room.
        agent: whom to speak for.

    Raises:
        ClientError: the session could not be had, or was lost.
    """
    left = asyncio.Event()
    room.on("disconnected", lambda *_: left.set())
    async with RemoteAvatar(remote) as avatar:
        receiver = DataStreamAudioReceiver(room, sender_identity=agent)
        generator = SessionGenerator(avatar)
        runner = AvatarRunner(room, audio_recv=receiver, video_gen=generator, options=runner_options(avatar))
        await runner.start()
        try:
            running = asyncio.ensure_future(runner.wait_for_complete())
            leaving = asyncio.ensure_future(left.wait())
            done, _ = await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if running in done:
                running.result()
        finally:
            for task in (running, leaving):
                task.cancel()
            await asyncio.gather(running, leaving, return_exceptions=True)
            await runner.aclose()


async def _work(config: RoomConfig, remote: RemoteConfig, token: str) -> None:
    room = rtc.Room()
    try:
        try:
            await room.connect(config.url, token)
        except rtc.ConnectError as error:
            raise ClientError(f"the room at {config.url} could not be joined: {error}") from error
        print(f"ready in room {room.name} as {room.local_participant.identity}", flush=True)
        await serve_room(room, remote, agent=config.agent)
    finally:
        await room.disconnect()


def run_worker(config: RoomConfig, remote: RemoteConfig) -> int:
    """Join the room and work until it or the session ends.

    Returns:
        Exit code: 0 when the room is over, 130 when stopped by SIGTERM.

    Raises:
        ClientError: the server or the room could not be had, or the session was lost.
    """
    token = room_token(config)

    async def work() -> int:
        task = asyncio.ensure_future(_work(config, remote, token))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            return 130
        return 0

    return asyncio.run(work())
