"""One YAML file becomes one frozen `Config`: the server's sections here, those of `streaming` and `model` from there.

Each part is handed its own section, never the root. Secrets come from the environment only:
`AVATARCAST_API_KEY` (admin key), `AVATARCAST_ICE_CREDENTIAL` (password of the TURN servers in `ice.servers`),
`AVATARCAST_SPEECH_KEY` (bearer of `speech.url`) and `AVATARCAST_AGENT_KEY` (bearer of `agent.url`).
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Literal

from model.config import RunConfig
from model.fake import FakeConfig
from model.parallel import ParallelConfig, Plan
from server.agent import AgentConfig
from server.errors import ConfigError
from server.loader import build, parse_yaml
from server.speech import SpeechConfig
from streaming.config import StreamingConfig

API_KEY_VARIABLE = "AVATARCAST_API_KEY"
ICE_CREDENTIAL_VARIABLE = "AVATARCAST_ICE_CREDENTIAL"
SPEECH_KEY_VARIABLE = "AVATARCAST_SPEECH_KEY"
AGENT_KEY_VARIABLE = "AVATARCAST_AGENT_KEY"


def _check(name: str, value: float, low: float, high: float, unit: str = "") -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be {low} to {high}{' ' + unit if unit else ''}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the server listens and how it leaves."""

    host: str = "127.0.0.1"
    """Address to listen on; anything but a loopback address needs an admin key."""
    port: int = 8080
    """TCP port of HTTP and WebSocket; 0 takes any free one."""
    cors_origins: tuple[str, ...] = ()
    """Origins of other sites whose pages may call this server, for example https://example.org."""
    drain_s: float = 10.0
    """Seconds that live sessions get after SIGTERM."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is written."""

    def __post_init__(self) -> None:
        _check("port", self.port, 0, 65535)
        _check("drain_s", self.drain_s, 0, 3600, "seconds")
        if not self.host:
            raise ValueError("host is empty; write 127.0.0.1 for this machine only, 0.0.0.0 for every address")
        if "*" in self.cors_origins:
            raise ValueError("cors_origins holds *; name the origins one by one, for example https://example.org")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    """Who may do what. The admin key itself is a secret and comes from the environment."""

    required: Literal["auto", "always"] = "auto"
    """auto: no credentials on a loopback address; always: also there."""
    token_ttl_s: float = 43_200.0
    """Life of a session's control and view tokens."""

    def __post_init__(self) -> None:
        _check("token_ttl_s", self.token_ttl_s, 60, 604_800, "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class IceServer:
    """One STUN or TURN server, for the server's own connections and for its clients."""

    urls: tuple[str, ...]
    """For example [stun:stun.example.org:3478] or [turn:turn.example.org:3478?transport=udp]."""
    username: str | None = None
    """User name at a TURN server; its password is AVATARCAST_ICE_CREDENTIAL."""

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("urls is empty; name at least one, for example stun:stun.example.org:3478")
        for url in self.urls:
            if not url.startswith(("stun:", "stuns:", "turn:", "turns:")):
                raise ValueError(f"urls holds {url!r}; it must begin with stun:, turn: or turns:")
        if self.username is None and any(url.startswith("turn") for url in self.urls):
            raise ValueError(f"username is missing; a TURN server needs one, and {ICE_CREDENTIAL_VARIABLE}")


@dataclass(frozen=True, slots=True, kw_only=True)
class IceConfig:
    """How browser and server find a way to each other."""

    servers: tuple[IceServer, ...] = ()
    """Empty on one machine or one network; behind NAT name a STUN and a TURN server."""
    answer_timeout_s: float = 8.0
    """Longest time an offer may take to be answered, gathering included."""

    def __post_init__(self) -> None:
        _check("answer_timeout_s", self.answer_timeout_s, 1, 60, "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeConfig:
    """The session's one H264 encoder; its packets go to every viewer."""

    bitrate_kbps: int = 2500
    """Target; 2500 for up to 512x512, 4000 for 720p. A blurry picture nearly always means too little."""
    min_bitrate_kbps: int = 400
    """The rate follows the slowest viewer's reports of loss down to this; never above `bitrate_kbps`."""
    gop_s: float = 2.0
    """Seconds between key frames when nobody asks for one."""
    vbv_s: float = 1.0
    """Seconds of bitrate that the rate buffer holds."""
    profile: Literal["baseline", "main", "high"] = "baseline"
    """H264 profile of the pictures. Every receiver takes baseline, and it is what answers promise."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium"] = "veryfast"
    """x264 preset; slower ones cost CPU for little."""
    threads: int = 1
    """x264 threads a session."""
    send_delay_ms: int = 20
    """Time reserved for encoding: pictures and sound both leave this long after their presentation time."""

    def __post_init__(self) -> None:
        _check("bitrate_kbps", self.bitrate_kbps, 100, 50_000)
        _check("min_bitrate_kbps", self.min_bitrate_kbps, 50, 50_000)
        _check("gop_s", self.gop_s, 0.2, 10, "seconds")
        _check("vbv_s", self.vbv_s, 0.1, 5, "seconds")
        _check("threads", self.threads, 1, 16)
        _check("send_delay_ms", self.send_delay_ms, 0, 200)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection(RunConfig):
    """Which model the engine process loads, and how; `model.config.RunConfig` explains the other keys."""

    kind: Literal["checkpoint", "fake"] = "checkpoint"
    """checkpoint: the avatar model; fake: a drawn figure that needs no torch, for trying a deployment and for tests."""
    fake: FakeConfig = field(default_factory=FakeConfig)
    """What the drawn figure looks like and how slow it is; of no effect with `kind: checkpoint`."""

    def launch_spec(self, log_level: str, plan: Plan | None = None) -> dict[str, object]:
        """The plain values that the model's process is started with.

        Args:
            log_level: of the process.
            plan: how the model is laid over devices; None: one process, as the model's section says.
        """
        part = self.fake if self.kind == "fake" else RunConfig
        names = [entry.name for entry in fields(part)]
        source = self.fake if self.kind == "fake" else self
        values = {name: getattr(source, name) for name in names}
        laid_out = {} if plan is None else {"plan": asdict(plan)}
        return {"kind": self.kind, "threads": self.threads, "log_level": log_level, **values, **laid_out}


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """What one client may take and when a session is over."""

    max_sessions: int = 0
    """Most sessions at once; 0 lets the measured block time decide."""
    load: float = 0.9
    """Share of real time that all sessions' blocks together may need; more is refused."""
    max_viewers: int = 16
    """Most viewers of one session besides its speaker; they share one encode."""
    idle_s: float = 60.0
    """A session without speaker and viewer ends after this time."""
    max_waiting: int = 32
    """Most tickets of clients that wait for a place; 0: no queue."""
    ticket_s: float = 15.0
    """A ticket that nobody polls or listens at is forgotten after this time."""
    sessions_per_minute: int = 60
    """New sessions a minute from one address."""
    requests_per_minute: int = 600
    """POST, PATCH and DELETE requests a minute from one address, or from all that show the admin key together."""
    changes_per_minute: int = 120
    """Changes of one session a minute: portrait, prompt, ICE candidates."""
    failed_logins_per_minute: int = 30
    """Wrong credentials a minute from one address; then it is refused whatever it shows."""
    messages_per_second: int = 200
    """WebSocket and data-channel messages a second from one client; pushed sound is not counted."""
    push_buffer_s: float = 60.0
    """Pushed speech that may wait to be spoken; its source is told to pause at 80 %, to resume at 50 %."""

    def __post_init__(self) -> None:
        _check("max_sessions", self.max_sessions, 0, 10_000)
        _check("load", self.load, 0.1, 1.0)
        _check("max_viewers", self.max_viewers, 0, 1000)
        _check("idle_s", self.idle_s, 1, 86_400, "seconds")
        _check("max_waiting", self.max_waiting, 0, 10_000)
        _check("ticket_s", self.ticket_s, 2, 600, "seconds")
        for name in ("sessions_per_minute", "requests_per_minute", "changes_per_minute", "failed_logins_per_minute"):
            _check(name, getattr(self, name), 1, 1_000_000)
        _check("messages_per_second", self.messages_per_second, 1, 100_000)
        _check("push_buffer_s", self.push_buffer_s, 2, 600, "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputsConfig:
    """Where sessions may be pushed to or recorded."""

    allow: tuple[str, ...] = ()
    """Hosts that outputs may reach: names, addresses or networks; private addresses only where listed as such."""
    recordings: str = ""
    """Folder of recordings; empty: no recording."""
    max_per_session: int = 4
    """Most outputs of one session at once."""

    def __post_init__(self) -> None:
        _check("max_per_session", self.max_per_session, 0, 100)
        if any("://" in entry or not entry.strip() or "*" in entry for entry in self.allow):
            raise ValueError("allow holds an entry that is no host; write names or networks, for example 10.0.0.0/8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything one deployment is told. Sections go to the parts they are named for."""

    server: ServerConfig = field(default_factory=ServerConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    ice: IceConfig = field(default_factory=IceConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    streaming: StreamingConfig = field(default_factory=StreamingConfig)
    model: ModelSection = field(default_factory=ModelSection)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    speech: SpeechConfig = field(default_factory=SpeechConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    outputs: OutputsConfig = field(default_factory=OutputsConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What only the environment carries. Never logged, never part of a config file."""

    api_key: str | None = field(default=None, repr=False)
    ice_credential: str | None = field(default=None, repr=False)
    speech_key: str | None = field(default=None, repr=False)
    agent_key: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Secrets:
        """Read the secrets.

        Raises:
            ConfigError: a key is too short to be one.
        """
        key = environment.get(API_KEY_VARIABLE) or None
        if key is not None and len(key) < 16:
            raise ConfigError(
                f"{API_KEY_VARIABLE} has {len(key)} characters; use at least 16, e.g. openssl rand -hex 24"
            )
        return cls(
            api_key=key,
            ice_credential=environment.get(ICE_CREDENTIAL_VARIABLE) or None,
            speech_key=environment.get(SPEECH_KEY_VARIABLE) or None,
            agent_key=environment.get(AGENT_KEY_VARIABLE) or None,
        )


def config_names() -> list[str]:
    """Names of the configurations that ship with the project."""
    return sorted(
        p.name.removesuffix(".yaml") for p in resources.files("configs").iterdir() if p.name.endswith(".yaml")
    )


def load_config(name_or_path: str = "tiny") -> Config:
    """Read a shipped configuration by name, or a file by path.

    Raises:
        ConfigError: one sentence with the file, the full path of the key, and the remedy.
    """
    text = _read(name_or_path)
    try:
        return build(Config, parse_yaml(text))
    except ConfigError as error:
        raise ConfigError(f"configuration {name_or_path}: {error}") from error


def with_address(config: Config, *, host: str | None, port: int | None) -> Config:
    """The configuration with what the command line says about the address.

    Raises:
        ConfigError: the port is none.
    """
    changes = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    try:
        return replace(config, server=replace(config.server, **changes))
    except ValueError as error:
        raise ConfigError(f"--{error}") from error


def _read(name_or_path: str) -> str:
    if name_or_path in config_names():
        return resources.files("configs").joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8")
    looks_like_path = name_or_path.endswith((".yaml", ".yml")) or os.sep in name_or_path
    if not looks_like_path:
        raise ConfigError(
            f"configuration {name_or_path!r} is unknown; use one of {', '.join(config_names())}, or a path"
        )
    try:
        return Path(name_or_path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"configuration {name_or_path} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration {name_or_path} is not a text file; it must be YAML in UTF-8") from error
