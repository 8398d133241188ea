"""Configuration files by name and by path, and what their mistakes say."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.config import Config, config_names, load_config
from server.errors import ConfigError


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_shipped_configurations_have_names() -> None:
    assert {"tiny", "fake"} <= set(config_names())
    assert load_config().server.host == "127.0.0.1"


def test_a_path_may_name_only_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "server: {port: 9000}\nstreaming: {vad: {mode: 3}}\n")
    config = load_config(path)
    assert config.server.port == 9000
    assert config.streaming.vad.mode == 3
    assert config.encode == Config().encode
    monkeypatch.chdir(tmp_path)
    assert load_config("mine.yaml") == config


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("server: {prot: 1}", ["server.prot", "did you mean server.port?"]),
        ("server: {port: 70000}", ["server: port is 70000", "0 to 65535"]),
        ("server: {cors_origins: ['*']}", ["server: cors_origins holds *"]),
        ("streaming: {vad: {mode: 9}}", ["streaming.vad: mode is 9"]),
        ("streming: {}", ["streming", "did you mean streaming?"]),
        ("model: {kind: fuke}", ["model.kind is 'fuke'", "did you mean fake"]),
        ("model: {size: big}", ["model: size is 'big'", "256x256"]),
        ("ice: {servers: [{urls: [http://x]}]}", ["ice.servers[0]: urls holds 'http://x'"]),
        ("ice: {servers: [{urls: ['turn:x']}]}", ["ice.servers[0]: username is missing"]),
        ("encode: {bitrate_kbps: 1}", ["encode: bitrate_kbps is 1"]),
        ("limits: {load: 3}", ["limits: load is 3"]),
        ("auth: {api_key: secret}", ["auth.api_key is not a known key"]),
        ("server: [", ["not valid YAML in line"]),
    ],
)
def test_a_mistake_names_file_key_and_remedy(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"configuration {path}: ")
    assert all(part in sentence for part in parts), sentence
    assert "\n" not in sentence


def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'tinny' is unknown; use one of .*fake, .*tiny, or a path"):
        load_config("tinny")
    with pytest.raises(ConfigError, match="cannot be read .No such file"):
        load_config(str(tmp_path / "gone.yaml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(f"{tmp_path}/")
    (tmp_path / "bin.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="not a text file"):
        load_config(str(tmp_path / "bin.yaml"))
