"""The program as a user starts it: ready line, port in use, bad configuration, signals, exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import websockets
import yaml
from websockets.sync.client import connect

from server.config import ServerConfig
from server.errors import StartError
from server.serve import bind
from tests.unit.server.running import FAKE, merged

ROOT = Path(__file__).parents[3]


class Program:
    """`avatarcast …` in a process of its own."""

    def __init__(self, *arguments: str, folder: Path, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ready(self) -> str:
        """The address of the ready line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.match(r"ready (http://127\.0\.0\.1:\d+)$", line.strip())
        assert found, line + (self.process.stderr.read() if self.process.stderr else "")
        return found[1]

    def leave(self, timeout_s: float = 20) -> tuple[int, str, str]:
        """Exit code, and what was printed."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err

    def kill(self) -> None:
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A foreign directory with a configuration in it: commands work from anywhere."""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(merged(FAKE, {"server": {"log_level": "info", "drain_s": 5.0}})))
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Iterator:
    programs: list[Program] = []

    def start(*arguments: str, env: dict[str, str] | None = None) -> Program:
        programs.append(Program(*arguments, folder=folder, env=env))
        return programs[-1]

    yield start
    for program in programs:
        program.kill()


def test_it_gets_ready_and_leaves_with_zero_on_sigterm(run) -> None:
    program = run("serve", "--config", "mine.yaml")
    url = program.ready()
    assert httpx.get(f"{url}/readyz").json() == {"ready": True}
    assert "avatar" in httpx.get(url).text
    children = psutil.Process(program.process.pid).children(recursive=True)
    assert children, "the model runs in a process of its own"
    program.process.send_signal(signal.SIGTERM)
    code, _, err = program.leave()
    assert code == 0, err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=3)
    assert not alive


def test_the_server_process_never_loads_torch(run) -> None:
    program = run("serve", "--config", "mine.yaml")
    url = program.ready()
    httpx.post(f"{url}/v1/sessions", json={}).raise_for_status()
    maps = Path(f"/proc/{program.process.pid}/maps")
    if maps.exists():
        assert "libtorch" not in maps.read_text()
    assert psutil.Process(program.process.pid).memory_info().rss < 300e6


def test_a_port_in_use_is_one_sentence(run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, err = run("serve", "--config", "mine.yaml", "--port", str(port)).leave()
    assert code == 2
    assert not out
    assert err.strip() == (
        f"avatarcast: 127.0.0.1:{port} is in use by another program; stop it, or choose another port with --port"
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["serve", "--config", "nothing"], "'nothing' is unknown"),
        (["serve", "--config", "gone.yaml"], "cannot be read"),
        (["serve", "--config", "broken.yaml"], "did you mean server.port?"),
        (["serve", "--config", "mine.yaml", "--port", "99999"], "port is 99999"),
        (["serve", "--config", "mine.yaml", "--port", "many"], "'--port'"),
        (["serve", "--config", "mine.yaml", "--prot", "1"], "--prot"),
        (["serve", "--config", "mine.yaml", "--host", "0.0.0.0"], "AVATARCAST_API_KEY"),
        (["serve", "--config", "mine.yaml", "--host", "203.0.113.9"], "AVATARCAST_API_KEY"),
        (["serve", "--config", "missing.yaml"], "does not exist; check model.checkpoint"),
        (["serve", "--config", "wrong.yaml"], "is broken"),
        (["sing"], "sing"),
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_two(run, folder: Path, arguments: list[str], part: str) -> None:
    (folder / "broken.yaml").write_text("server: {prot: 1}\n")
    (folder / "missing.yaml").write_text("model: {checkpoint: ./none.safetensors}\n")
    (folder / "wrong.yaml").write_text("model: {checkpoint: ./mine.safetensors}\n")
    (folder / "mine.safetensors").write_bytes(b"this is no checkpoint at all" * 10)
    if "missing.yaml" in arguments or "wrong.yaml" in arguments:
        arguments = [*arguments, "--allow_slow"]
    code, out, err = run(*arguments).leave()
    assert code == 2, err
    assert part in err
    assert err.startswith("avatarcast: ")
    assert len(err.strip().splitlines()) == 1
    assert not out


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(StartError, match="name an address of this machine"):
        bind(ServerConfig(host="203.0.113.9", port=0))
    with pytest.raises(StartError, match="cannot be found"):
        bind(ServerConfig(host="no-such-host.invalid", port=0))


def test_with_a_key_it_serves_beyond_loopback(run) -> None:
    key = "an admin key of enough length"
    program = run("serve", "--config", "mine.yaml", "--host", "0.0.0.0", env={"AVATARCAST_API_KEY": key})
    line = program.process.stdout.readline()
    port = re.match(r"ready http://0\.0\.0\.0:(\d+)$", line.strip())[1]  # type: ignore[index]
    assert httpx.post(f"http://127.0.0.1:{port}/v1/sessions", json={}).status_code == 401
    bearer = {"Authorization": f"Bearer {key}"}
    assert httpx.post(f"http://127.0.0.1:{port}/v1/sessions", json={}, headers=bearer).status_code == 201
    program.process.send_signal(signal.SIGTERM)
    code, _, err = program.leave()
    assert code == 0
    assert key not in err


def test_sigterm_drains(run) -> None:
    """Not ready, new sessions refused, the live one told how long it has, exit 0 when it is over."""
    program = run("serve", "--config", "mine.yaml")
    url = program.ready()
    session = httpx.post(f"{url}/v1/sessions", json={}).json()
    with connect(f"ws{url[4:]}/{session['urls']['events']}") as socket_:
        assert json.loads(socket_.recv())["type"] == "hello"
        program.process.send_signal(signal.SIGTERM)
        asked_s = time.monotonic()
        while (message := json.loads(socket_.recv(timeout=3)))["type"] != "closing":
            assert time.monotonic() - asked_s < 3
        assert message["deadline_s"] == 5.0
        ready = httpx.get(f"{url}/readyz")
        assert ready.status_code == 503
        refused = httpx.post(f"{url}/v1/sessions", json={})
        assert (refused.status_code, refused.json()["code"]) == (503, "capacity")
        assert int(refused.headers["retry-after"]) > 0
        assert httpx.delete(f"{url}/v1/sessions/{session['id']}").status_code == 204
        code, _, err = program.leave(4)
    assert code == 0, err
    assert time.monotonic() - asked_s < 5, "it leaves as soon as the last session has ended"


def test_a_signal_to_the_whole_group_drains_too(run) -> None:
    """As supervisors and shells send it: the model's process must outlive the drain."""
    program = run("serve", "--config", "mine.yaml")
    url = program.ready()
    session = httpx.post(f"{url}/v1/sessions", json={}).json()
    os.killpg(program.process.pid, signal.SIGTERM)
    time.sleep(1.0)
    state = httpx.get(f"{url}/v1/sessions/{session['id']}").json()["state"]
    assert state == "idle"
    assert httpx.get(f"{url}/healthz").json()["engine"]["restarts"] == 0
    httpx.delete(f"{url}/v1/sessions/{session['id']}")
    code, _, err = program.leave(4)
    assert code == 0, err


def test_the_deadline_ends_what_does_not_leave(run) -> None:
    program = run("serve", "--config", "mine.yaml")
    url = program.ready()
    session = httpx.post(f"{url}/v1/sessions", json={}).json()
    with connect(f"ws{url[4:]}/{session['urls']['events']}") as socket_:
        program.process.send_signal(signal.SIGTERM)
        asked_s = time.monotonic()
        with pytest.raises(websockets.ConnectionClosed):
            while True:
                socket_.recv(timeout=10)
        code, _, err = program.leave(10)
    assert code == 0, err
    assert 4 < time.monotonic() - asked_s < 9


def test_ctrl_c_is_quick_and_twice_is_quicker(run) -> None:
    program = run("serve", "--config", "mine.yaml")
    url = program.ready()
    httpx.post(f"{url}/v1/sessions", json={}).raise_for_status()
    asked_s = time.monotonic()
    program.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    program.process.send_signal(signal.SIGINT)
    code, _, err = program.leave(8)
    assert code == 130, err
    assert "Traceback" not in err
    assert time.monotonic() - asked_s < 3


def test_an_engine_that_cannot_start_ends_the_server_with_its_reason(run, folder: Path) -> None:
    broken = merged(FAKE, {"model": {"fake": {"load_error": "the weights are upside down; turn them"}}})
    (folder / "bad.yaml").write_text(yaml.safe_dump(broken))
    code, out, err = run("serve", "--config", "bad.yaml").leave()
    assert code == 2
    assert not out
    assert err.strip().splitlines()[-1] == "avatarcast: the weights are upside down; turn them"


def test_help_is_quick_and_names_every_command(run) -> None:
    began = time.monotonic()
    code, out, _ = run("--help").leave()
    assert code == 0
    assert time.monotonic() - began < 3
    for command in ("serve", "generate", "bench", "train", "portrait"):
        assert command in out


async def test_the_loop_keeps_its_pace_while_blocks_are_made() -> None:
    """The server's own figure for loop lag is there and small while a session runs."""
    from tests.unit.server.caller import calling
    from tests.unit.server.running import running

    async with running() as server:
        session = await server.open()
        async with calling(server, session) as caller:
            await caller.pictures(50)
        await asyncio.sleep(0)
        assert 0 <= server.hub.lag.p99_s() < 0.1
        assert "avatarcast_event_loop_lag_seconds_count" in (await server.http.get("/metrics")).text
