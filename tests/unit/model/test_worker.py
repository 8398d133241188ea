"""The model's process from inside: what is done first, what is dropped, what is reported."""

import numpy as np
import pytest

from model.control import (
    Close,
    Done,
    Interrupt,
    Open,
    Opened,
    Refused,
    Release,
    Skipped,
    Step,
    Unchanged,
    Update,
    Updated,
)
from model.desk import Desk
from model.errors import CheckpointError, LinkError, PortraitError, UnknownSessionError, UnwantedError
from model.fake import FakeConfig, FakeModel
from model.interface import BlockRequest, BlockResult, SessionSpec, SessionUpdate
from model.worker import BrokenError, Worker, load, sentence

PORTRAIT = np.full((64, 64, 3), 128, np.uint8)
WINDOW = np.zeros(FakeConfig().window.samples, np.float32)


class Shelf:
    """A store of three slots."""

    def __init__(self) -> None:
        self.blocks: dict[int, np.ndarray] = {}

    def write(self, frames: np.ndarray) -> int | None:
        slot = next((slot for slot in range(3) if slot not in self.blocks), None)
        if slot is not None:
            self.blocks[slot] = frames
        return slot

    def release(self, slot: int) -> None:
        del self.blocks[slot]


class Bench:
    """A worker with a clock moved by hand."""

    def __init__(self, model=None) -> None:
        self.now = 100.0
        self.reports: list = []
        self.shelf = Shelf()
        self.model = model or FakeModel(FakeConfig(width=64, height=64))
        self.worker = Worker(self.model, store=self.shelf, report=self.reports.append, now=lambda: self.now)

    def put(self, *commands) -> None:
        for command in commands:
            self.worker.put(command)

    def run(self) -> list:
        """Do what can be done now; returns the reports since the last run."""
        while (job := self.worker.take()) is not None:
            self.worker.perform(job)
        reports = list(self.reports)
        self.reports.clear()
        return reports

    def opened(self, *names: str) -> "Bench":
        self.put(*(Open(SessionSpec(session=name, image=PORTRAIT)) for name in names))
        self.run()
        return self


def step(session: str, block: int, deadline_s: float = 0.0, epoch: int = 0) -> Step:
    return Step(BlockRequest(session=session, block=block, epoch=epoch, window=WINDOW, deadline_s=deadline_s))


def outcome(reports: list) -> list[tuple]:
    return [(r.session, r.block, "done" if isinstance(r, Done) else r.reason) for r in reports if hasattr(r, "block")]


def test_the_most_urgent_block_comes_first():
    bench = Bench().opened("a", "b")
    bench.put(step("a", 5, 102.0), step("b", 9, 101.0), step("a", 6, 102.5))
    assert outcome(bench.run()) == [("b", 9, "done"), ("a", 5, "done"), ("a", 6, "done")]


def test_done_says_where_and_when():
    bench = Bench().opened("a")
    bench.put(step("a", 4, 200.0))
    (done,) = bench.run()
    assert (done.slot, done.epoch, done.started_s, done.finished_s) == (0, 0, 100.0, 100.0)
    assert set(done.stage_s) == {"audio", "dit", "vae"}
    assert bench.shelf.blocks[0].shape == (12, 64, 64, 3)


def test_a_block_past_its_deadline_is_not_computed():
    bench = Bench().opened("a")
    bench.put(step("a", 0, 99.9), step("a", 1, 100.5))
    assert outcome(bench.run()) == [("a", 0, "deadline"), ("a", 1, "done")]


def test_an_interrupt_drops_older_blocks_only():
    bench = Bench().opened("a", "b")
    bench.put(step("a", 0, 101), step("b", 0, 101), Interrupt("a", 1), step("a", 1, 101.5), step("a", 2, 102, epoch=1))
    assert outcome(bench.run()) == [("a", 0, "stale"), ("a", 1, "stale"), ("b", 0, "done"), ("a", 2, "done")]


def test_a_newer_epoch_alone_makes_older_blocks_stale():
    bench = Bench().opened("a")
    bench.put(step("a", 0, 101), step("a", 1, 102, epoch=2))
    assert outcome(bench.run()) == [("a", 0, "stale"), ("a", 1, "done")]


def test_an_interrupt_during_a_block_drops_its_result():
    class Interrupted(FakeModel):
        def step(self, request: BlockRequest) -> BlockResult:
            bench.put(Interrupt("a", 1))
            return super().step(request)

    bench = Bench(Interrupted(FakeConfig(width=64, height=64))).opened("a")
    bench.put(step("a", 0, 101))
    assert outcome(bench.run()) == [("a", 0, "stale")] and not bench.shelf.blocks


def test_commands_that_came_during_a_block_count_before_its_result():
    arrived: list = []

    class Slow(FakeModel):
        def step(self, request: BlockRequest) -> BlockResult:
            arrived.append(Interrupt("a", 1))
            return super().step(request)

    bench = Bench(Slow(FakeConfig(width=64, height=64))).opened("a")
    bench.worker._arrived = lambda: [arrived.pop() for _ in list(arrived)]
    bench.put(step("a", 0, 101))
    assert outcome(bench.run()) == [("a", 0, "stale")]


def test_closing_drops_what_waits_and_forgets_the_session():
    bench = Bench().opened("a", "b")
    bench.put(step("a", 0, 101), step("b", 0, 101), Close("a"), step("a", 1, 102))
    assert outcome(bench.run()) == [("a", 0, "stale"), ("a", 1, "stale"), ("b", 0, "done")]
    with pytest.raises(UnknownSessionError):
        bench.model.update(SessionUpdate(session="a", block=0))
    bench.put(Open(SessionSpec(session="c", image=PORTRAIT)), Close("c"))
    assert not any(isinstance(report, Opened) for report in bench.run())


def test_updates_go_before_blocks():
    bench = Bench().opened("a")
    bench.put(step("a", 3, 101), Update(SessionUpdate(session="a", block=3, prompt="happy")))
    updated, done = bench.run()
    assert isinstance(updated, Updated) and updated.info.block == 3
    assert done.applied == ("prompt",)


def test_a_change_that_cannot_be_made_is_told_before_its_block():
    class Picky(FakeModel):
        def update(self, update):
            raise PortraitError("the portrait has no face;\nsend one with a face")

    bench = Bench(Picky(FakeConfig(width=64, height=64))).opened("a")
    bench.put(Update(SessionUpdate(session="a", block=3, image=PORTRAIT)), step("a", 3, 101))
    refused, done = bench.run()
    assert refused == Unchanged("a", 3, ("image",), "the portrait has no face; send one with a face")
    assert isinstance(done, Done)


def test_a_refused_portrait_spares_the_others():
    class Picky(FakeModel):
        def open(self, spec):
            if spec.session == "bad":
                raise PortraitError("the portrait has no face;\nsend one with a face")
            return super().open(spec)

    bench = Bench(Picky(FakeConfig(width=64, height=64))).opened("a")
    bench.put(Open(SessionSpec(session="bad", image=PORTRAIT)), step("a", 0, 101))
    reports = bench.run() + (setattr(bench, "now", 103.0) or bench.run())
    assert outcome(reports) == [("a", 0, "done")]
    assert Refused("bad", "the portrait has no face; send one with a face") in reports


def test_opening_waits_for_the_moment_after_a_block():
    bench = Bench().opened("a")
    bench.put(step("a", 0, 101))
    bench.run()
    bench.now += 0.3
    bench.put(Open(SessionSpec(session="b", image=PORTRAIT)))
    assert bench.run() == [] and 0.6 < bench.worker.desk.wait_s(bench.now) <= 0.71
    bench.now += 0.18
    bench.put(step("a", 1, 102))
    done, opened = bench.run()
    assert isinstance(done, Done) and isinstance(opened, Opened)


def test_opening_comes_at_once_when_nobody_else_works_and_in_the_end_anyway():
    bench = Bench().opened("a")
    bench.put(step("a", 0, 101))
    bench.run()
    bench.now += 1.5
    bench.put(Open(SessionSpec(session="b", image=PORTRAIT)))
    assert isinstance(bench.run()[0], Opened)
    bench.put(step("a", 1, 103), Open(SessionSpec(session="c", image=PORTRAIT)))
    assert isinstance(bench.run()[1], Opened)


def test_failed_blocks_are_told_and_three_in_a_row_end_the_process():
    class Failing(FakeModel):
        def step(self, request):
            if request.block in (0, 2, 3, 4):
                raise ValueError("mat1 and mat2\ncannot be multiplied")
            return super().step(request)

    bench = Bench(Failing(FakeConfig(width=64, height=64))).opened("a")
    bench.put(step("a", 0, 101), step("a", 1, 102))
    failed, _ = bench.run()
    assert failed == Skipped(
        session="a", block=0, epoch=0, reason="failed", message="ValueError: mat1 and mat2 cannot be multiplied"
    )
    bench.put(*(step("a", block, 103) for block in (2, 3, 4)))
    with pytest.raises(BrokenError, match="3 blocks in a row"):
        bench.run()


class Deep(FakeModel):
    """A model that works on two blocks at once; `broken` names the calls that fail, and with what."""

    depth = 2

    def __init__(self, **broken: Exception) -> None:
        super().__init__(FakeConfig(width=64, height=64))
        self.broken, self.under_way = broken, []

    @property
    def num_under_way(self) -> int:
        return len(self.under_way)

    @property
    def oldest_s(self) -> float | None:
        return 0.0 if self.under_way else None

    def _do(self, name: str):
        if name in self.broken:
            raise self.broken[name]

    def open(self, spec):
        self._do("open")
        return super().open(spec)

    def update(self, update):
        self._do("update")
        super().update(update)

    def submit(self, request):
        self._do("submit")
        self.under_way.append(request)

    def advance(self, limit_s: float):
        self._do("advance")
        return self.step(self.under_way.pop(0)) if self.under_way else None


def test_blocks_that_overlap_are_handed_out_as_they_finish():
    bench = Bench(Deep()).opened("a")
    bench.put(step("a", 0), step("a", 1), step("a", 2))
    assert bench.run() == [] and bench.worker.busy_since_s is not None
    bench.worker.advance(0.0)
    assert outcome(bench.run()) == [("a", 0, "done")] and bench.model.num_under_way == 2


@pytest.mark.parametrize("call", ["open", "update", "submit", "advance"])
@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), LinkError("rank 1 of the plan has ended")])
def test_processes_that_are_out_of_step_are_started_again(call: str, error: Exception):
    bench = Bench(Deep()).opened("a")
    bench.model.broken[call] = error
    bench.put(Open(SessionSpec(session="b", image=PORTRAIT)), Update(SessionUpdate(session="a", block=1, prompt="b")))
    bench.put(step("a", 0))
    bench.now += 10
    with pytest.raises(BrokenError, match=str(error)):
        bench.run()
        bench.worker.advance(0.0)


def test_a_refusal_keeps_overlapping_blocks_going():
    bench = Bench(Deep()).opened("a")
    bench.model.broken = {"submit": UnknownSessionError("session a is not open"), "open": PortraitError("too dark")}
    bench.put(Open(SessionSpec(session="b", image=PORTRAIT)), step("a", 0))
    bench.now += 10
    assert {type(report) for report in bench.run()} == {Refused, Skipped}


def test_without_a_free_slot_the_block_is_lost_not_the_stream():
    bench = Bench().opened("a")
    bench.put(*(step("a", block, 101 + block) for block in range(4)))
    assert [kind for *_, kind in outcome(bench.run())] == ["done", "done", "done", "no_slot"]
    bench.put(Release(1), step("a", 5, 110))
    (done,) = bench.run()
    assert done.slot == 1


def test_blocks_without_a_deadline_are_never_late():
    desk = Desk([].append)
    desk.put(Open(SessionSpec(session="a", image=PORTRAIT)), 0.0)
    assert isinstance(desk.take(1e9), Open)
    desk.put(step("a", 0), 1e9)
    assert desk.take(2e9).request.block == 0 and desk.take(3e9) is None and desk.wait_s(3e9) is None


def test_loading_by_kind():
    model = load({"kind": "fake", "width": 128, "height": 64, "threads": 2})
    assert model.info.geometry.width == 128
    with pytest.raises(CheckpointError, match="'magic'"):
        load({"kind": "magic"})


def test_sentences():
    assert sentence(CheckpointError("tiny.safetensors is\n missing")) == "tiny.safetensors is missing"
    assert sentence(KeyError("x")) == "KeyError: 'x'"
    assert sentence(MemoryError()) == "MemoryError"


class Parted:
    """A model that asks between two parts whether it shall go on, and hears of an interrupt there."""

    def __init__(self, bench_put) -> None:
        self.inner = FakeModel(FakeConfig(width=64, height=64))
        self.info, self.open, self.close = self.inner.info, self.inner.open, self.inner.close
        self.is_wanted = lambda request: True
        self.put, self.interrupts = bench_put, []

    def step(self, request: BlockRequest) -> BlockResult:
        while self.interrupts:
            self.put(self.interrupts.pop())
        if not self.is_wanted(request):
            raise UnwantedError(("prompt",))
        return self.inner.step(request)


def test_an_interrupt_ends_the_block_under_way_and_its_change_is_confirmed_by_the_next() -> None:
    bench = Bench(Parted(lambda command: bench.put(command))).opened("a")
    bench.model.interrupts.append(Interrupt("a", 1))
    bench.put(step("a", 0))
    assert [(type(r), r.reason) for r in bench.run()] == [(Skipped, "stale")]
    bench.put(step("a", 1, epoch=1))
    (done,) = bench.run()
    assert isinstance(done, Done) and done.applied == ("prompt",)
    bench.put(step("a", 2, epoch=1))
    (done,) = bench.run()
    assert done.applied == ()
