"""One rank of a plan at work: it performs the leader's orders on its own steps, layers, tokens, or pictures.

A `Stage` is the one denoising loop (`model.denoiser`) with neighbours: `RankRelay` takes latents and hidden states from
the ranks before and gives them to those behind. The rank that decodes does so beside the rest, on a stream of its own,
and a thread reports what is finished.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.audio_tokens import AudioCondition
from model.denoiser import BlockRun, Denoiser, StreamState
from model.errors import ModelError
from model.links import Arrival, Pace, Ways
from model.mesh import Role
from model.orders import Answer, Begin, First, Forget, Hurry, LookAt, Order, Prompt, Seen, Shown, Start
from model.pictures import HostPictures
from model.scheduler import Item
from model.screen import Screen, ScreenState
from model.vae import Still


class RankRelay:
    """Neighbours of one rank; see `model.relay.Relay`.

    Latents come back in the order in which their items were begun, and are wanted in the order in which the items that
    follow are chosen. So each receive is posted when the item behind it is performed, and kept under its name.

    Args:
        role: whose neighbours.
        ways: to them.
        latent_shape: of a block: [1, in_dim, F, h, w].
        num_steps: of a block, the remembering pass included.
    """

    def __init__(self, role: Role, ways: Ways, latent_shape: tuple[int, ...], num_steps: int) -> None:
        self.first_step, self.last_step = role.steps.start, role.steps.stop - 1
        self.enters, self.leaves = role.is_first_layer, role.is_last_layer
        self.item: Item | None = None
        """What is being performed."""
        self._in, self._out = ways.incoming, ways.outgoing
        self._latent_shape, self._num_steps = latent_shape, num_steps
        self._goes_round = role.hidden_to is not None or role.hidden_from is not None
        self._returns: dict[Item, Arrival] = {}

    def expect_return(self, item: Item) -> bool:
        """Post the receive of latents that an item performed here will send back, if it will."""
        if not self._goes_round or "latents" not in self._in or item.step + 1 == self._num_steps:
            return False
        self._returns[item] = self._in["latents"].post(self._latent_shape, torch.float32)
        return True

    def is_back(self, item: Item) -> bool:
        """Whether those latents have come, or were already taken."""
        return item not in self._returns or self._returns[item].is_here()

    def take_latents(self, step: int, x: Tensor) -> Tensor:
        if "latents" not in self._in or (step == 0 if self._goes_round else step != self.first_step):
            return x
        way = self._in["latents"]
        if not self._goes_round:
            return way.take(way.post(self._latent_shape, torch.float32))
        return way.take(self._returns.pop(replace(self.item, step=step - 1)))

    def give_latents(self, step: int, x: Tensor) -> None:
        is_due = step + 1 < self._num_steps if self._goes_round else step == self.last_step
        if "latents" in self._out and is_due:
            self._out["latents"].send(x.float())

    def take_hidden(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        way = self._in["hidden"]
        return way.take(way.post(shape, like.dtype))

    def give_hidden(self, x: Tensor) -> None:
        self._out["hidden"].send(x)


@dataclass(slots=True)
class _Block:
    """A block under way on this rank."""

    begin: Begin
    run: BlockRun | None
    """Where layers are held."""
    screen: ScreenState | None
    """Where it will be decoded."""


@dataclass(slots=True)
class _Finished:
    """Latents or pictures that a device may still be working on."""

    begin: Begin
    ready: torch.cuda.Event | None
    """Of the latents."""
    first: HostPictures | None
    """The first latent frame, where the leader wants it."""
    pictures: HostPictures
    kept: HostPictures
    """The latents, for a stream that must go on after a restart."""
    latents_s: float


class Stage:
    """The share of one rank.

    Args:
        role: which.
        ways: to its neighbours; those of a rank without neighbours are empty.
        device: where it computes.
        latent_shape: of a block: [1, in_dim, F, h, w].
        num_steps, num_sigmas: items of a block, and those whose result is latents.
        relay: to its neighbours.
        denoiser: where it holds layers; made with `relay`.
        screen: where it decodes.
        answer: takes what it reports; called from a thread of its own too.
    """

    def __init__(
        self,
        role: Role,
        ways: Ways,
        device: torch.device,
        *,
        latent_shape: tuple[int, ...],
        num_steps: int,
        num_sigmas: int,
        relay: RankRelay,
        denoiser: Denoiser | None,
        screen: Screen | None,
        answer: Callable[[Answer], None],
    ) -> None:
        self.role, self.ways, self.device, self.relay, self.denoiser = role, ways, device, relay, denoiser
        self._latent_shape, self._screen, self._answer = latent_shape, screen, answer
        self._num_steps, self._num_sigmas = num_steps, num_sigmas
        self._streams: dict[int, StreamState] = {}
        self._hears: dict[int, tuple[Tensor | None, AudioCondition | None]] = {}
        self._runs: dict[tuple[int, int], _Block] = {}
        self._portraits: dict[int, Still] = {}
        self._screens: dict[int, ScreenState] = {}
        self._pace = Pace(device, ways.limit)
        is_beside = device.type == "cuda" and role.decodes and role.transforms
        self._decoding = torch.cuda.Stream(device) if is_beside else None
        self._finished: queue.SimpleQueue[_Finished | None] = queue.SimpleQueue()
        self._reporter: threading.Thread | None = None
        if role.decodes:
            self._reporter = threading.Thread(target=self._report, name="reporter", daemon=True)
            self._reporter.start()

    def close(self) -> None:
        """End the reporting thread once it has reported everything."""
        if self._reporter is not None:
            self._finished.put(None)
            self._reporter.join()

    @torch.inference_mode()
    def perform(self, order: Order) -> None:
        """Do this rank's share of an order.

        Raises:
            LinkError: a neighbour does not answer.
        """
        match order:
            case Item():
                self._item(order)
            case Begin():
                self._begin(order)
            case Start():
                self._start(order)
            case Prompt():
                if self.denoiser is not None:
                    self.denoiser.recondition(self._streams[order.stream], text=self._text(order.context))
            case LookAt():
                if self.role.decodes:
                    self._look_at(order)
            case Forget():
                self._streams.pop(order.stream, None)  # blocks under way hold theirs, and are finished
                self._screens.pop(order.stream, None)
                self._hears.pop(order.stream, None)
                for portrait in order.portraits:
                    self._portraits.pop(portrait, None)
            case Hurry(limit_s):
                self.ways.limit.seconds = limit_s

    # Streams.

    def _start(self, order: Start) -> None:
        if self.denoiser is not None:
            weights = None if order.weights is None else self._tensor(order.weights)
            self._hears[order.stream] = weights, None
            past = None if order.past is None else self._tensor(order.past)
            negative = None if order.negative is None else self._text(order.negative)
            self._streams[order.stream] = self.denoiser.start(
                self._text(order.context), self._tensor(order.reference), past, negative
            )
        if self.role.decodes:
            still = self._portraits.pop(order.portrait)
            self._screens[order.stream] = ScreenState(still.state)

    def _text(self, context: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        return self.denoiser.dit.text_kv(self._tensor(context))

    def _tensor(self, value: np.ndarray) -> Tensor:
        """An array on the device, without waiting for what the device does."""
        tensor = torch.from_numpy(value)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _begin(self, order: Begin) -> None:
        run = None
        if self.denoiser is not None:
            dit, stream = self.denoiser.dit, self._streams[order.stream]
            if order.sink is not None:
                self.denoiser.recondition(stream, reference=self._tensor(order.sink))
            noise, columns = self._tensor(order.noise), self._tensor(order.columns)
            track = None if order.pose is None else self._tensor(order.pose)
            pose = dit.pose(track, noise.shape[2], *noise.shape[3:])
            weights, silence = self._hears.setdefault(order.stream, (None, None))
            if self.denoiser.guidance is not None and silence is None:
                silence = dit.audio_condition(torch.zeros_like(columns), weights)
                self._hears[order.stream] = weights, silence
            sound = dit.audio_condition(columns, weights)
            run = self.denoiser.begin(stream, order.block, noise, sound, pose, order.distance, silence)
        self._runs[order.stream, order.block] = _Block(order, run, self._screens.get(order.stream))

    # Items.

    def _item(self, item: Item) -> None:
        block = self._runs[item.stream, item.block]
        run = block.run
        role, is_finished = self.role, item.step + 1 == self._num_sigmas
        if run is not None and item.step in role.steps:
            self._pace.wait()
            self.relay.item = item
            self.denoiser.step(run, item.step)
            self.relay.expect_return(item)
            self._pace.mark()
            if is_finished and role.is_last_layer:
                if role.pictures_to is not None:
                    self.ways.outgoing["pictures"].send(run.x.float())
                if role.decodes:
                    self._show(block, run.x)
        elif run is None and is_finished:
            self._pace.wait()
            self._show(block, self._take_latents())
            self._pace.mark()
        if item.step + 1 == self._num_steps:
            del self._runs[item.stream, item.block]

    def _take_latents(self) -> Tensor:
        way = self.ways.incoming["pictures"]
        return way.take(way.post(self._latent_shape, torch.float32))

    def _show(self, block: _Block, latents: Tensor) -> None:
        """Queue a block's decoding."""
        begin = block.begin
        if self._decoding is not None:
            self._decoding.wait_stream(torch.cuda.current_stream())
            latents.record_stream(self._decoding)
        with torch.cuda.stream(self._decoding):
            ready, first = None, None
            if begin.keeps_first:
                first = HostPictures(latents[:, :, :1].clone())
            if self.device.type == "cuda":
                ready = torch.cuda.Event()
                ready.record()
            latents_s = time.monotonic()
            pictures = self._screen.show(latents, block.screen)
            kept = HostPictures(latents[0].to(torch.float16))
        self._finished.put(_Finished(begin, ready, first, pictures, kept, latents_s))

    def _report(self) -> None:
        """The reporting thread: waits for the device, then tells."""
        while (done := self._finished.get()) is not None:
            if done.ready is not None:
                done.ready.synchronize()
                done.latents_s = time.monotonic()
            if done.first is not None:
                self._answer(First(stream=done.begin.stream, latent=done.first.wait()))
            frames = done.pictures.wait()
            self._answer(
                Shown(
                    stream=done.begin.stream,
                    block=done.begin.block,
                    frames=frames,
                    latents=done.kept.wait(),
                    latents_s=done.latents_s,
                    pictures_s=time.monotonic(),
                )
            )

    def _look_at(self, order: LookAt) -> None:
        if self._decoding is not None:
            self._decoding.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._decoding):
                still, psnr_db = self._screen.look_at(order.picture, self.device, order.past)
                arrays = [x.float().cpu().numpy() for x in (still.reference, still.past)]
        except ModelError as error:
            nothing = np.zeros(0, np.float32)
            self._answer(
                Seen(portrait=order.portrait, reference=nothing, past=nothing, psnr_db=0.0, problem=str(error))
            )
            return
        self._portraits[order.portrait] = still
        self._answer(Seen(portrait=order.portrait, reference=arrays[0], past=arrays[1], psnr_db=psnr_db))
