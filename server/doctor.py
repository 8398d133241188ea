"""What stands between this machine and a working server, each with its remedy: `avatarcast doctor`.

Nothing is started or changed: checkpoints are checked from their headers by the loader's own check, ports are bound and
let go, servers for NAT traversal are resolved and asked for a sign of life. Torch and PyAV are imported only when their
turn comes, so a broken installation is a line of the table and no crash.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from server.config import ICE_CREDENTIAL_VARIABLE, Config, IceConfig, ModelSection, ServerConfig

STUN_PATIENCE_S = 2.0
ENCODERS = {"libx264": "pictures", "libopus": "sound of WebRTC", "aac": "sound of MP4 files"}
_COOKIE = bytes.fromhex("2112a442")


@dataclass(frozen=True, slots=True)
class Line:
    """One checked thing."""

    subject: str
    level: Literal["ok", "warn", "fail"]
    text: str
    """What was found; of a warning or failure with the remedy."""


def run_doctor(config: Config, *, as_json: bool) -> int:
    """Check everything, print one line each; 1 if something fails, else 0."""
    lines = list(examine(config))
    for line in lines:
        print(f"{line.level:4}  {line.subject}: {line.text}")
    failed = sum(line.level == "fail" for line in lines)
    if as_json:
        print(json.dumps({"ok": failed == 0, "lines": [asdict(line) for line in lines]}))
    return 1 if failed else 0


def examine(config: Config) -> Iterator[Line]:
    """All checks, in the order in which a start would meet them."""
    yield from check_torch()
    yield from check_checkpoint(config.model)
    yield check_port(config.server)
    yield from check_encoders()
    yield from check_ice(config.ice)


def check_torch() -> Iterator[Line]:
    """GPU, driver, NCCL and peer access, as far as torch was built for them."""
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        yield Line("torch", "fail", f"cannot be imported ({error}); install the project again")
        return
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for processors only"
        yield Line("gpu", "warn", f"torch {torch.__version__} ({built}) finds none; the tiny checkpoint needs none")
        return
    count = torch.cuda.device_count()
    for i in range(count):
        about = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        level = "warn" if free < 0.5 * total else "ok"
        remedy = "; end the other programs on it" if level == "warn" else ""
        text = f"{about.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, CUDA {torch.version.cuda}{remedy}"
        yield Line(f"gpu {i}", level, text)
    if count < 2:
        return
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        yield Line("nccl", "ok", ".".join(map(str, torch.cuda.nccl.version())))
    else:
        yield Line("nccl", "fail", "torch was built without it; install the CUDA build to use several GPUs")
    apart = [
        (a, b) for a in range(count) for b in range(count) if a != b and not torch.cuda.can_device_access_peer(a, b)
    ]
    if apart:
        text = f"GPUs {apart[0][0]} and {apart[0][1]} reach each other through the host only, which is slower"
        yield Line("peer access", "warn", f"{text}; use GPUs of one board or NVLink group")
    else:
        yield Line("peer access", "ok", f"all {count} GPUs reach each other")


def check_checkpoint(model: ModelSection) -> Iterator[Line]:
    """The files that the model's process would load."""
    if model.kind == "fake":
        yield Line("checkpoint", "ok", "the drawn figure needs no files")
        return
    try:
        from model.adapter_files import adapter_file
        from model.published import RANDOM
        from model.survey import survey
        from model.weights import checkpoint_path, read_metadata
    except Exception as error:  # see check_torch
        yield Line("checkpoint", "fail", f"cannot be checked ({error}); install the project again")
        return
    from model.errors import ModelError

    name = model.checkpoint
    try:
        if name.startswith(RANDOM):
            from model.published import forged_config

            forged_config(name.removeprefix(RANDOM))
            yield Line("checkpoint", "warn", f"{name} holds random weights; use it for measuring only")
        elif (path := checkpoint_path(name)).is_dir():
            adapter = adapter_file(model.lora, may_fetch=False) if model.lora else None
            findings, _ = survey(path, adapter)
            yield from (Line(finding.file, finding.level, finding.text) for finding in findings)
        else:
            config, _ = read_metadata(path)
            yield Line(str(path), "ok", f"{config.name}, {config.width}x{config.height}, {path.stat().st_size} bytes")
    except ModelError as error:
        yield Line("checkpoint", "fail", str(error))


def check_port(server: ServerConfig) -> Line:
    """Whether the address can be listened on now."""
    subject = f"port {server.port}"
    try:
        family = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((server.host, server.port))
    except OSError as error:
        return Line(subject, "fail", f"{server.host} cannot be used ({error}); choose another server.port or host")
    return Line(subject, "ok", f"free on {server.host}")


def check_encoders() -> Iterator[Line]:
    """The codecs that streams and files need."""
    try:
        import av
    except Exception as error:  # see check_torch
        yield Line("codecs", "fail", f"PyAV cannot be imported ({error}); install the project again")
        return
    for name, use in ENCODERS.items():
        try:
            av.Codec(name, "w")
        except Exception:  # PyAV's own class for it has changed between versions
            yield Line(
                f"codec {name}", "fail", f"missing in PyAV {av.__version__}, needed for {use}; install PyAV again"
            )
        else:
            yield Line(f"codec {name}", "ok", use)


def check_ice(ice: IceConfig) -> Iterator[Line]:
    """Whether the servers for NAT traversal have names that resolve, and answer where they can be asked by UDP."""
    if not ice.servers:
        yield Line("ice", "ok", "no STUN or TURN server; right for one machine or network, behind NAT name one")
    for server in ice.servers:
        for url in server.urls:
            yield _check_ice_url(url)
        needs = any(url.startswith("turn") for url in server.urls)
        if needs and not os.environ.get(ICE_CREDENTIAL_VARIABLE):
            yield Line("turn password", "fail", f"is missing; set {ICE_CREDENTIAL_VARIABLE}")


def _check_ice_url(url: str) -> Line:
    scheme, _, rest = url.partition(":")
    address, _, query = rest.partition("?")
    host, colon, number = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, number = address, "5349" if scheme.endswith("s") else "3478"
    if not number.isdecimal():
        return Line(url, "fail", f"{number!r} is no port; write it as {scheme}:host:3478")
    over_tcp = scheme.endswith("s") or "transport=tcp" in query
    kind = socket.SOCK_STREAM if over_tcp else socket.SOCK_DGRAM
    try:
        family, _, _, _, where = socket.getaddrinfo(host.strip("[]"), int(number), type=kind)[0]
    except OSError as error:
        return Line(url, "fail", f"{host} does not resolve ({error}); check ice.servers")
    try:
        with socket.socket(family, kind) as probe:
            probe.settimeout(STUN_PATIENCE_S)
            probe.connect(where)
            if not over_tcp:
                _bind(probe)
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else str(error)
        return Line(url, "fail", f"{reason}; check that the server runs and its port is open, or leave it out")
    return Line(url, "ok", "accepts connections" if over_tcp else "answers")


def _bind(probe: socket.socket) -> None:
    """One STUN binding request (RFC 8489, section 6); a TURN server answers it too."""
    number = secrets.token_bytes(12)
    probe.send(bytes([0, 1, 0, 0]) + _COOKIE + number)
    answer = probe.recv(1500)
    if answer[4:20] != _COOKIE + number:
        raise OSError("something else than STUN answers there")
