"""The model's process from outside: a real one is spawned, fed, killed."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from model.frame_ring import RingReader, RingWriter
from model.interface import BlockRequest, SessionSpec
from model.launch import Beat, Done, Failed, Open, Opened, Ready, Release, Step, Stop, WorkerProcess

PORTRAIT = np.full((64, 64, 3), 128, np.uint8)
SPEC = {"kind": "fake", "width": 64, "height": 64, "slots": 2, "threads": 1}


class Line:
    """A process with its reports in a queue."""

    def __init__(self, **spec: object) -> None:
        self.reports: queue.Queue = queue.Queue()
        self.exited: queue.Queue = queue.Queue()
        self.process = WorkerProcess(
            {**SPEC, **spec}, on_report=self.reports.put, on_exit=lambda: self.exited.put(time.monotonic())
        )
        self.process.start()

    def expect(self, kind: type, timeout_s: float = 20.0):
        while True:
            report = self.reports.get(timeout=timeout_s)
            if isinstance(report, kind):
                return report
            assert isinstance(report, Beat), report

    def end(self) -> None:
        self.process.kill()
        self.exited.get(timeout=10)
        self.process.dispose()


@pytest.fixture
def line():
    lines = []

    def make(**spec: object) -> Line:
        lines.append(Line(**spec))
        return lines[-1]

    before = shared_memory()
    threads = threading.active_count()
    yield make
    for each in lines:
        if each.process._processes[0]._closed is False:
            each.end()
    assert shared_memory() == before, "shared memory is left behind"
    assert threading.active_count() == threads


def shared_memory() -> set[str]:
    root = Path("/dev/shm")
    return {path.name for path in root.glob("avatarcast_*")} if root.exists() else set()


def step(block: int) -> Step:
    window = np.zeros(38_400, np.float32)
    return Step(BlockRequest(session="a", block=block, epoch=0, window=window, deadline_s=time.monotonic() + 60))


def test_a_session_from_start_to_stop(line):
    one = line()
    ready = one.expect(Ready)
    assert ready.info.name == "fake" and ready.info.geometry.width == 64
    released = []
    ring = RingReader(ready.ring, released.append)
    one.process.send(Open(SessionSpec(session="a", image=PORTRAIT)))
    assert one.expect(Opened).info.portrait.shape == (64, 64, 3)
    for block in range(5):
        one.process.send(step(block))
        done = one.expect(Done)
        frames, release = ring.read(done.slot)
        assert frames.shape == (12, 64, 64, 3) and frames[0, 0, 0].tolist() == [128] * 3
        assert done.finished_s >= done.started_s
        release()
        release()
        assert released == [done.slot]
        one.process.send(Release(released.pop()))
    one.process.send(Stop())
    one.exited.get(timeout=10)
    assert "status 0" in one.process.cause_of_death()
    one.process.dispose()
    ring.retire()


def test_a_killed_process_is_known_at_once_and_its_pictures_stay(line):
    one = line()
    ready = one.expect(Ready)
    ring = RingReader(ready.ring, lambda slot: None)
    one.process.send(Open(SessionSpec(session="a", image=PORTRAIT)))
    one.expect(Opened)
    one.process.send(step(0))
    frames, release = ring.read(one.expect(Done).slot)
    killed = time.monotonic()
    os.kill(one.process.pid, signal.SIGKILL)
    assert one.exited.get(timeout=5) - killed < 1.0
    assert "SIGKILL" in one.process.cause_of_death()
    one.process.send(step(1))
    one.process.dispose()
    ring.retire()
    assert frames[0, 0, 0].tolist() == [128] * 3
    copy = frames.copy()
    release()
    assert (frames == copy).all(), "a view that is still held stays readable"


def test_a_load_error_comes_through_word_for_word(line):
    one = line(load_error="checkpoint x.safetensors is missing; run make weights")
    failed = one.expect(Failed)
    assert failed == Failed("checkpoint x.safetensors is missing; run make weights", is_final=True)
    one.exited.get(timeout=5)
    one.process.dispose()


def test_signs_of_life_tell_how_long_a_job_takes(line):
    one = line(hang_block=0)
    one.expect(Ready)
    one.process.send(Open(SessionSpec(session="a", image=PORTRAIT)))
    one.expect(Opened)
    one.process.send(step(0))
    busy = [one.expect(Beat).busy_s for _ in range(5)]
    assert busy[-1] > 0.8 and busy == sorted(busy)


def test_sigint_does_not_reach_the_model(line):
    one = line()
    one.expect(Ready)
    os.kill(one.process.pid, signal.SIGINT)
    one.process.send(Open(SessionSpec(session="a", image=PORTRAIT)))
    one.expect(Opened)


def test_the_model_does_not_outlive_the_server():
    code = f"""
import sys, time, os
from model.launch import WorkerProcess, Ready
def tell(report):
    if isinstance(report, Ready):
        print(process.pid, flush=True)
process = WorkerProcess({SPEC!r}, on_report=tell, on_exit=lambda: None)
if __name__ == "__main__":
    process.start()
    time.sleep(60)
"""
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(server.stdout.readline())
    assert psutil.pid_exists(pid)
    server.kill()
    server.wait()
    server.stdout.close()
    end = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_the_fake_and_the_launcher_import_no_torch():
    code = "import sys, model.launch, model.worker, model.fake, model.portrait; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_ring_hands_out_each_slot_once():
    writer = RingWriter(2, (1, 2, 2, 3))
    reader = RingReader(writer.address, writer.release)
    assert writer.address.num_bytes == 24
    slots = [writer.write(np.full((1, 2, 2, 3), value, np.uint8)) for value in (1, 2, 3)]
    assert sorted(slots[:2]) == [0, 1] and slots[2] is None
    frames, release = reader.read(slots[0])
    assert (frames == 1).all() and not frames.flags.writeable
    release()
    assert writer.write(np.full((1, 2, 2, 3), 9, np.uint8)) == slots[0] and (frames == 9).all()
    with pytest.raises(AssertionError):
        writer.release(5) or writer.release(5)
    reader.retire()
    del frames
    writer.close()
