"""Outputs against real receivers: nginx's RTMP module, FFmpeg listening for SRT and RTSP, and files cut off."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import av
import pytest

from server.config import OutputsConfig, Secrets
from server.errors import ApiError
from server.output_sinks import SinkError
from server.outputs import Output, check_addresses, read_target
from tests.unit.server.output_scene import Scene, offsets_ms, target_of
from tests.unit.server.running import fake_config, running

ROOT = Path(__file__).parents[3]
KEY = "k" * 24


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    yield made
    await made.close()


async def until(output: Output, state: str, within_s: float = 20) -> float:
    """Wait for a state; returns how long it took."""
    began_s = time.monotonic()
    end_s = began_s + within_s
    while output.state != state:
        assert time.monotonic() < end_s, output.as_json()
        await asyncio.sleep(0.05)
    return time.monotonic() - began_s


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[int]:
    """A real RTMP server with one application, `live`."""
    port = free_port()
    module = "/usr/lib/nginx/modules/ngx_rtmp_module.so"
    (folder / "nginx.conf").write_text(
        f"load_module {module};\ndaemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log;\n"
        "events {}\n"
        f"rtmp {{ server {{ listen 127.0.0.1:{port}; application live {{ live on; }} }} }}\n"
    )
    process = subprocess.Popen(["/usr/sbin/nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def check_media(path: Path, bound_ms: float = 40, *, live_s: float | None = None) -> None:
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"
        at_s = [float(packet.pts * packet.time_base) for packet in container.demux(video=0) if packet.pts is not None]
    late = sorted(at_s)[-50:]  # an RTSP receiver stamps its first picture before it knows the sender's clock
    fps = (len(late) - 1) / (late[-1] - late[0])
    assert 23 < fps < 26
    found = offsets_ms(str(path))
    assert found, "no flash with its beep arrived"
    begun = "" if live_s is None else f"live after {live_s:.2f} s, "
    print(f"{path.name}: {begun}{fps:.1f} fps, A/V offset, ms: {[round(value, 1) for value in found]}")
    assert max(abs(value) for value in found) <= bound_ms, found


async def test_rtmp_reaches_nginx_and_is_read_back(scene: Scene, tmp_path: Path) -> None:
    with nginx(tmp_path) as port:
        url = f"rtmp://127.0.0.1:{port}/live/secret-key"
        output = scene.output(target_of(url))
        live_s = await until(output, "live")
        got = tmp_path / "got_rtmp.mkv"
        command = ["ffmpeg", "-loglevel", "error", "-i", url, "-t", "4", "-c", "copy", str(got)]
        reader = await asyncio.create_subprocess_exec(*command)
        assert await asyncio.wait_for(reader.wait(), 30) == 0
        assert "secret" not in str(output.as_json())
        await output.close()
    assert output.state == "ended"
    check_media(got, live_s=live_s)


@pytest.mark.parametrize("scheme", ["srt", "rtsp"])
async def test_a_listening_ffmpeg_receives(scene: Scene, tmp_path: Path, scheme: str) -> None:
    port = free_port(socket.SOCK_DGRAM if scheme == "srt" else socket.SOCK_STREAM)
    url, got = f"{scheme}://127.0.0.1:{port}" + ("/x" if scheme == "rtsp" else ""), tmp_path / f"got_{scheme}.mkv"
    listen = ["-i", f"{url}?mode=listener"] if scheme == "srt" else ["-rtsp_flags", "listen", "-i", url]
    receiver = await asyncio.create_subprocess_exec(
        "ffmpeg", "-loglevel", "error", *listen, "-t", "4", "-c", "copy", str(got)
    )
    try:
        await asyncio.sleep(0.5)
        output = scene.output(target_of(url))
        live_s = await until(output, "live")
        assert await asyncio.wait_for(receiver.wait(), 30) == 0
        await output.close()
    finally:
        if receiver.returncode is None:
            receiver.kill()
            await receiver.wait()
    check_media(got, live_s=live_s)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
async def test_a_recording_whose_process_is_killed_plays(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.unit.server.output_scene", str(path), cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout
    assert (await asyncio.wait_for(process.stdout.readline(), 30)).startswith(b"live")
    await asyncio.sleep(5)
    process.kill()
    await process.wait()
    check_media(path)
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 75, "less than three of five seconds were kept"


@pytest.mark.parametrize("kind", ["refuses", "never answers"])
async def test_a_dead_target_is_retried_and_stalls_nobody(scene: Scene, kind: str) -> None:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    if kind == "never answers":
        listening.listen()
    viewer = scene.broadcast.watch()
    await viewer.next()
    output = scene.output(target_of(f"rtmp://127.0.0.1:{listening.getsockname()[1]}/live/x"))
    began_s, first = time.monotonic(), (await viewer.next()).index
    last, worst_s, before_s = first, 0.0, began_s
    while output.state != "retrying" or time.monotonic() - began_s < 3:
        last = (await asyncio.wait_for(viewer.next(), 1)).index
        worst_s, before_s = max(worst_s, time.monotonic() - before_s), time.monotonic()
        assert before_s - began_s < 20, output.as_json()
    took_s = time.monotonic() - began_s
    assert viewer.dropped == 0
    assert abs((last - first) / took_s - 25) < 1
    assert worst_s < 0.5, f"pictures paused for {worst_s:.2f} s"
    assert output.reason
    await output.close()
    assert output.state == "ended"
    viewer.close()
    listening.close()


CONFIG = OutputsConfig(allow=("live.example.org", "10.0.0.0/8", "localhost"), recordings="/tmp")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("rtmp://elsewhere.example.org/live/x", "forbidden"),
        ("rtmp://192.168.0.1/live/x", "forbidden"),
        ("rtmp://[::1]/live/x", "forbidden"),
        ("rtmp://169.254.169.254/live/x", "forbidden"),
        ("rtmp://live.example.org/live/x listen=1", "bad_request"),
        ("srt://10.0.0.1:9000?mode=listener", "bad_request"),
        ("srt://10.0.0.1", "bad_request"),
        ("http://live.example.org/", "bad_request"),
        ("whip://elsewhere.example.org/", "forbidden"),
        ("whips://192.168.0.1/whip", "forbidden"),
        ("file:../escape.mp4", "bad_request"),
        ("file:/etc/passwd", "bad_request"),
        ("file:..%2Fescape.mp4", "bad_request"),
        ("file:a.txt", "bad_request"),
        ("file:.hidden.mp4", "bad_request"),
    ],
)
def test_what_is_not_allowed_is_refused(url: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_target(url, CONFIG)
    assert caught.value.code == code


def test_listed_targets_are_taken_and_private_addresses_of_a_listed_name_refused() -> None:
    assert read_target("rtmp://10.1.2.3:1935/live/key", CONFIG).shown == "rtmp://10.1.2.3:1935"
    assert read_target("rtmps://LIVE.example.org/live/key", CONFIG).shown == "rtmps://live.example.org"
    with pytest.raises(SinkError, match="private range") as caught:
        check_addresses("localhost", CONFIG.allow)
    assert caught.value.lasting
    check_addresses("127.0.0.1", ("127.0.0.0/8",))


def test_recording_needs_a_folder_and_overwrites_nothing(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="Recording is off"):
        read_target("file:a.mp4", OutputsConfig())
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(ApiError, match="exists already"):
        read_target("file:a.mp4", OutputsConfig(recordings=str(tmp_path)))


async def test_outputs_over_http_need_the_admin_key(tmp_path: Path) -> None:
    config = fake_config(auth={"required": "always"}, outputs={"recordings": str(tmp_path), "max_per_session": 1})
    async with running(config, Secrets(api_key=KEY)) as server:
        admin = {"Authorization": f"Bearer {KEY}"}
        made = (await server.http.post("/v1/sessions", json={}, headers=admin)).json()
        place = f"/v1/sessions/{made['id']}/outputs"
        for token, status in ((made["token"], 403), (made["view_token"], 403), ("wrong", 401)):
            for method in ("POST", "GET"):
                answer = await server.http.request(
                    method, place, json={"url": "file:a.mp4"}, headers={"Authorization": f"Bearer {token}"}
                )
                assert answer.status_code == status
        answer = await server.http.post(place, json={"url": "file:a.mp4"}, headers=admin)
        assert answer.status_code == 201, answer.text
        one = f"{place}/{answer.json()['output']}"
        second = await server.http.post(place, json={"url": "file:b.mp4"}, headers=admin)
        assert (second.status_code, second.json()["code"]) == (503, "capacity")
        for _ in range(100):
            if (await server.http.get(one, headers=admin)).json()["state"] == "live":
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        assert (await server.http.get(place, headers=admin)).json()[0]["state"] == "live"
        assert (await server.http.delete(one, headers=admin)).status_code == 204
        assert (await server.http.get(one, headers=admin)).status_code == 404
        with av.open(str(tmp_path / "a.mp4")) as container:
            assert sum(1 for _ in container.decode(video=0)) >= 20
        # a session's end ends its outputs
        await server.http.post(place, json={"url": "file:c.mkv"}, headers=admin)
        await asyncio.sleep(1)
        assert (await server.http.delete(f"/v1/sessions/{made['id']}", headers=admin)).status_code == 204
        with av.open(str(tmp_path / "c.mkv")) as container:
            assert container.streams.audio
            assert sum(1 for _ in container.decode(video=0)) >= 5
