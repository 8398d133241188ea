"""`avatarcast doctor`: every line has a level and, unless all is well, a remedy; a failure is exit code 1."""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from model.forge import LORA, forge
from server.config import ICE_CREDENTIAL_VARIABLE, Config, IceConfig, IceServer, ModelSection, ServerConfig
from server.doctor import check_checkpoint, check_encoders, check_ice, check_port, run_doctor


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_shipped_configuration_is_well(capsys: pytest.CaptureFixture[str], free_port: int) -> None:
    config = replace(Config(), server=ServerConfig(port=free_port))
    assert run_doctor(config, as_json=True) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert report["ok"] and len(report["lines"]) == len(lines)
    subjects = " ".join(line["subject"] for line in report["lines"])
    assert "tiny.safetensors" in subjects and "codec libx264" in subjects and f"port {free_port}" in subjects


def test_a_used_port_and_a_foreign_address_fail(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = replace(Config(), server=ServerConfig(port=taken.getsockname()[1]), model=ModelSection(kind="fake"))
        assert run_doctor(config, as_json=False) == 1
    assert "fail  port" in capsys.readouterr().out
    assert check_port(ServerConfig(host="192.0.2.1", port=8080)).level == "fail"


def test_released_folders_are_checked_file_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "mini"
    forge(folder, "mini")
    model = ModelSection(checkpoint=str(folder), lora=str(folder / LORA))
    lines = list(check_checkpoint(model))
    assert {line.level for line in lines} == {"ok"} and len(lines) == 7
    for path in (*folder.glob("*.pth"), folder / LORA):
        path.unlink()
    failed = [line.text for line in check_checkpoint(model) if line.level == "fail"]
    assert len(failed) >= 2 and all("is missing" in text for text in failed)


def test_other_checkpoints() -> None:
    assert next(iter(check_checkpoint(ModelSection(checkpoint="./none.safetensors")))).level == "fail"
    assert next(iter(check_checkpoint(ModelSection(checkpoint="random:mini")))).level == "warn"
    assert next(iter(check_checkpoint(ModelSection(checkpoint="random:huge")))).level == "fail"


def test_a_missing_encoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.doctor.ENCODERS", {"no_such_codec": "nothing"})
    (line,) = check_encoders()
    assert line.level == "fail" and "needed for nothing" in line.text


def ice(*urls: str) -> IceConfig:
    return IceConfig(servers=(IceServer(urls=urls, username="u"),))


def test_a_stun_server_that_answers_and_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.doctor.STUN_PATIENCE_S", 0.2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        url = f"stun:127.0.0.1:{server.getsockname()[1]}"
        assert next(iter(check_ice(ice(url)))).level == "fail"
        server.recv(100)

        def answer() -> None:
            request, peer = server.recvfrom(100)
            server.sendto(bytes([1, 1]) + request[2:], peer)

        thread = threading.Thread(target=answer)
        thread.start()
        (line,) = check_ice(ice(url))
        thread.join()
        assert (line.level, line.text) == ("ok", "answers")


def test_turn_needs_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ICE_CREDENTIAL_VARIABLE, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        lines = list(check_ice(ice(f"turn:127.0.0.1:{server.getsockname()[1]}?transport=tcp")))
    assert [line.level for line in lines] == ["ok", "fail"]
    assert ICE_CREDENTIAL_VARIABLE in lines[1].text
    assert next(iter(check_ice(ice("turn:127.0.0.1:none")))).level == "fail"
    assert next(iter(check_ice(IceConfig()))).level == "ok"
