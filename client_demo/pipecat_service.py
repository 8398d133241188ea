"""An avatar for Pipecat: a video service that stands between speech synthesis and the transport's output.

    avatar = AvatarcastVideoService(RemoteConfig(server="http://127.0.0.1:8080", avatar="mei"))
    Pipeline([transport.input(), stt, llm, tts, avatar, transport.output()])

It takes the `TTSAudioRawFrame`s away and gives pictures with the sound they were made for, in step. The server paces
both, so the output transport should be live (`video_out_is_live=True`) and have the stream's size. An interruption
silences the avatar at once. Needs the extra `pipecat`: pip install 'avatarcast[pipecat]'.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    CancelFrame,
    EndFrame,
    Frame,
    InterruptionFrame,
    OutputImageRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.services.ai_service import AIService
from pipecat.services.settings import ServiceSettings

from client_demo.avatar_line import Finished, Picture, Sound, mono
from client_demo.microphone import ClientError
from client_demo.remote_avatar import RemoteAvatar, RemoteConfig

END_WAIT_S = 40.0
"""A pipeline that ends waits this long for the speech that is under way."""


@dataclass
class AvatarcastVideoSettings(ServiceSettings):
    """There is nothing to set while it runs."""


class AvatarcastVideoService(AIService):
    """One session of an avatarcast server as a Pipecat video service.

    Args:
        config: the server and the session.
        **kwargs: for Pipecat's `AIService`.
    """

    Settings = AvatarcastVideoSettings
    _settings: Settings

    def __init__(self, config: RemoteConfig, **kwargs: object) -> None:
        super().__init__(settings=AvatarcastVideoSettings(model=None), **kwargs)
        self._avatar = RemoteAvatar(config)
        self._reading: asyncio.Task[None] | None = None
        self._rate_hz = 0  # of the utterance that is open; 0 between two
        self._unheard: set[str] = set()
        self._all_heard = asyncio.Event()
        self._all_heard.set()

    def can_generate_metrics(self) -> bool:
        """Time to the first sound of the avatar is measured."""
        return True

    async def start(self, frame: StartFrame) -> None:
        """Open the session; a server that cannot be had is an error frame, and the pipeline runs without pictures."""
        await super().start(frame)
        try:
            await self._avatar.__aenter__()
        except ClientError as error:
            await self.push_error(error_msg=f"No avatar: {error}", exception=error)
            return
        self._reading = self.create_task(self._read())

    async def stop(self, frame: EndFrame) -> None:
        """Let what was said be heard, then leave."""
        await super().stop(frame)
        if self._reading is not None:
            await self._end_utterance()
            try:
                await asyncio.wait_for(self._all_heard.wait(), END_WAIT_S)
            except TimeoutError:
                await self.push_error(error_msg=f"The avatar was still speaking after {END_WAIT_S:.0f} s.")
        await self._leave()

    async def cancel(self, frame: CancelFrame) -> None:
        """Leave at once."""
        await super().cancel(frame)
        await self._leave()

    async def cleanup(self) -> None:
        """Leave, whatever happened before."""
        await super().cleanup()
        await self._leave()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Speech goes to the avatar, everything else goes on."""
        await super().process_frame(frame, direction)
        if self._reading is None:
            await self.push_frame(frame, direction)
            return
        try:
            if isinstance(frame, TTSAudioRawFrame):
                await self._speak(frame)
                return
            await self._follow(frame)
        except ClientError as error:
            await self.push_error(error_msg=f"The avatar has left: {error}", exception=error)
        await self.push_frame(frame, direction)

    async def _follow(self, frame: Frame) -> None:
        match frame:
            case TTSStartedFrame():
                await self.start_ttfb_metrics()
            case TTSStoppedFrame():
                await self._end_utterance()
            case InterruptionFrame():
                self._rate_hz = 0
                await self._avatar.interrupt()
            case UserStartedSpeakingFrame():
                await self._avatar.show("listening")
            case UserStoppedSpeakingFrame():
                await self._avatar.show("thinking")
            case BotStartedSpeakingFrame():
                await self.stop_ttfb_metrics()

    async def _speak(self, frame: TTSAudioRawFrame) -> None:
        if self._rate_hz != frame.sample_rate:
            self._unheard.add(await self._avatar.begin(frame.sample_rate))
            self._all_heard.clear()
            self._rate_hz = frame.sample_rate
        await self._avatar.push(mono(frame.audio, frame.num_channels))

    async def _end_utterance(self) -> None:
        self._rate_hz = 0
        await self._avatar.end()

    async def _read(self) -> None:
        try:
            async for item in self._avatar:
                await self._pass_on(item)
        except ClientError as error:
            await self.push_error(error_msg=f"The avatar has left: {error}", exception=error)
        finally:
            self._all_heard.set()

    async def _pass_on(self, item: Picture | Sound | Finished) -> None:
        match item:
            case Picture(_, picture):
                pixels = picture.to_ndarray(format="rgb24")
                shown = OutputImageRawFrame(pixels.tobytes(), (picture.width, picture.height), "RGB")
                await self.push_frame(shown)
            case Sound(_, sound, segment) if segment is not None:
                heard = TTSAudioRawFrame(audio=item.pcm(), sample_rate=sound.sample_rate, num_channels=1)
                await self.push_frame(heard)
            case Finished(segment):
                self._unheard.discard(segment)
                if not self._unheard:
                    self._all_heard.set()

    async def _leave(self) -> None:
        if self._reading is not None:
            reading, self._reading = self._reading, None
            await self.cancel_task(reading)
            await self._avatar.close()
