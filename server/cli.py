"""The `avatarcast` program: one small function a command, which imports what it needs when it runs.

Exit codes: 0 done, 1 failed, 2 bad arguments or input (one sentence on stderr: field, value, remedy), 130 interrupted.
Options are spelt with `_`; hyphens work too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="avatarcast",
    help="A streaming real-time avatar server: live audio in, a portrait that speaks it out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")

ConfigOption = Annotated[str, typer.Option("--config", help="Name of a shipped configuration, or a path.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on the last line.")]
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] not in (["train"], ["portrait"]):  # these read their own options
        given = [_underscored(argument) for argument in given]
    sys.exit(_run(given))


def _underscored(argument: str) -> str:
    """`--base-seed=7` as `--base_seed=7`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _run(arguments: list[str]) -> int:
    usage_error = typer.BadParameter.__base__
    assert usage_error is not None
    try:
        code = app(args=arguments, prog_name="avatarcast", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except usage_error as error:
        return _fail(error.format_message(), 2)  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        code = _code_of(error)
        if code is None:
            raise
        return _fail(str(error), code)


def _fail(sentence: str, code: int) -> int:
    print(f"avatarcast: {sentence}", file=sys.stderr)
    return code


def _code_of(error: Exception) -> int | None:
    """Exit code of errors whose text is the one sentence; None for those that are our own mistakes."""
    from model.errors import ModelError
    from server.errors import ServerError
    from streaming.errors import EngineError, StreamingError

    if isinstance(error, EngineError):
        return 1
    return 2 if isinstance(error, ModelError | ServerError | StreamingError) else None


@app.command()
def serve(
    config: ConfigOption = "tiny",
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="TCP port; 0 takes a free one.")] = None,
    allow_slow: Annotated[bool, typer.Option("--allow_slow", help="Start on a machine that is too slow.")] = False,
) -> int:
    """Serve live sessions; prints `ready http://HOST:PORT` when one can start."""
    from server.machine import calm_numpy, check_machine, inspect_machine

    calm_numpy()
    from server.config import Secrets, load_config, with_address

    loaded = with_address(load_config(config), host=host, port=port)
    if loaded.model.kind == "checkpoint" and not allow_slow:
        check_machine(inspect_machine())
    from server.serve import serve as run_server

    return run_server(loaded, Secrets.from_environment())


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def generate(
    context: typer.Context,
    image: Annotated[Path, typer.Option("--image", help="Portrait: PNG, JPEG or WebP.")],
    audio: Annotated[Path, typer.Option("--audio", help="Any file with sound; a.wav+b.wav for two speakers.")],
    prompt: Annotated[str, typer.Option("--prompt", help="Expression and manner.")] = "",
    out: Annotated[Path | None, typer.Option("--out", "--save_file", help="The MP4; output.mp4 without.")] = None,
    save_dir: Annotated[Path | None, typer.Option("--save_dir", help="Folder for --output_name; made.")] = None,
    output_name: Annotated[str | None, typer.Option("--output_name", help="Name, with or without .mp4.")] = None,
    config: ConfigOption = "tiny",
    base_seed: Annotated[int, typer.Option("--base_seed", help="Seed of noise and idle motion.")] = 0,
    size: Annotated[str | None, typer.Option("--size", help="256x256, or an area as 704*384.")] = None,
    ckpt_dir: Annotated[str | None, typer.Option("--ckpt_dir", help="Released folder, or random:mini.")] = None,
    lora: Annotated[str | None, typer.Option("--lora_path_dmd", help="Adapter for a released folder.")] = None,
    num_clip: Annotated[int | None, typer.Option("--num_clip", help="Most clips; without: the whole sound.")] = None,
    infer_frames: Annotated[int, typer.Option("--infer_frames", help="Pictures a clip, whole blocks.")] = 48,
    as_json: JsonOption = False,
) -> int:
    """Make an MP4 of a portrait that speaks a sound file; the original's other flags are read too."""
    from server.config import load_config
    from server.generate import FilmWish, film_path, run_generate
    from server.original_flags import read_original_flags

    flags = read_original_flags(context.args, [p.name for p in context.command.params if p.name])
    for notice in flags.notices:
        print(notice, file=sys.stderr)
    where = {"ckpt_dir": ckpt_dir, "lora": lora}
    where |= {"num_clip": num_clip, "infer_frames": infer_frames, **flags.wish}
    film = film_path(out, save_dir, output_name)
    wish = FilmWish(image=image, audio=audio, out=film, prompt=prompt, base_seed=base_seed, size=size, **where)
    return run_generate(load_config(config), wish, as_json=as_json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def batch(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="MANIFEST|DIR", help="CSV, JSON or YAML file, or a folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the films; made.")] = Path("films"),
    resume: Annotated[bool, typer.Option("--resume", help="Skip films that are finished.")] = False,
    config: ConfigOption = "tiny",
    size: Annotated[str | None, typer.Option("--size", help="As in generate.")] = None,
    ckpt_dir: Annotated[str | None, typer.Option("--ckpt_dir", help="As in generate.")] = None,
    lora: Annotated[str | None, typer.Option("--lora_path_dmd", help="As in generate.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Make many films with one loaded model; a failed one does not stop the rest. Flags of generate are read too."""
    from server.batch import run_batch
    from server.config import load_config
    from server.errors import ConfigError
    from server.manifest import read_jobs
    from server.original_flags import read_original_flags

    if str(source).startswith("--"):
        raise ConfigError(f"{source} stands where the manifest is expected; write the manifest or folder first")
    flags = read_original_flags(context.args, [p.name for p in context.command.params if p.name])
    jobs, notices = read_jobs(source, out)
    for notice in (*flags.notices, *notices):
        print(notice, file=sys.stderr)
    common = {"size": size, "ckpt_dir": ckpt_dir, "lora": lora, **flags.wish}
    return run_batch(load_config(config), jobs, common, resume=resume, as_json=as_json)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="PORTRAIT|AUDIO…", help="Portraits and sound files.")],
    as_json: JsonOption = False,
) -> int:
    """Judge portraits and sounds: each figure with its threshold and remedy; exit code 1 if one fails."""
    from server.check import run_check

    return run_check(files, as_json=as_json)


@app.command()
def studio(
    server_port: Annotated[int, typer.Option("--server_port", help="TCP port; 0 takes a free one.")] = 7860,
    server_name: Annotated[str, typer.Option("--server_name", help="Address to listen on.")] = "127.0.0.1",
    config: ConfigOption = "tiny",
) -> int:
    """A page for offline work in the browser (extra `studio`)."""
    from server.config import Secrets, load_config
    from server.studio import run_studio

    loaded, secrets = load_config(config), Secrets.from_environment()
    return run_studio(loaded, host=server_name, port=server_port, key=secrets.api_key)


@app.command()
def plan(
    gpus: Annotated[str | None, typer.Option("--gpus", help="Cards as 4x24GB; auto: this machine's.")] = None,
    size: Annotated[str | None, typer.Option("--size", help="Picture size, for example 704x384.")] = None,
    config: Annotated[str | None, typer.Option("--config", help="Whose model and plan; without: the 14B's.")] = None,
    chart: Annotated[Path | None, typer.Option("--chart", help="PNG of every device's memory.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Which plan fits which cards: memory of every device, speed, why others miss; exit code 1 if none fits."""
    from server.config import load_config
    from server.planning import published_config, run_plan

    loaded = published_config() if config is None else load_config(config)
    return run_plan(loaded, gpus=gpus, size=size, chart=chart, as_json=as_json)


@app.command()
def say(
    text: Annotated[str, typer.Argument(help="What is to be said.")],
    session: Annotated[str, typer.Option("--session", help="The session's id.")],
    server: Annotated[str, typer.Option("--server", help="Root of the server.")] = "http://127.0.0.1:8080",
    voice: Annotated[str | None, typer.Option("--voice", help="A voice of the server's synthesis.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Have a session speak a text; a token comes from AVATARCAST_TOKEN or AVATARCAST_API_KEY."""
    from server.say import run_say

    return run_say(text, server=server, session=session, voice=voice, as_json=as_json)


@app.command("livekit-worker")
def livekit_worker(
    url: Annotated[str, typer.Option("--url", envvar="LIVEKIT_URL", help="The LiveKit server.")],
    room: Annotated[str | None, typer.Option("--room", help="The room; a ready LIVEKIT_TOKEN needs none.")] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="The agent's identity; the first one without.")] = None,
    identity: Annotated[str, typer.Option("--identity", help="The avatar's own identity.")] = "avatarcast",
    server: Annotated[str, typer.Option("--server", help="Root of the avatarcast server.")] = "http://127.0.0.1:8080",
    avatar: Annotated[str | None, typer.Option("--avatar", help="Portrait of the gallery.")] = None,
    image: Annotated[Path | None, typer.Option("--image", help="Picture file to use instead.")] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="Expression.")] = "",
) -> int:
    """Be the avatar of a LiveKit agent; LIVEKIT_API_KEY and LIVEKIT_API_SECRET, or LIVEKIT_TOKEN, let it in."""
    from server.livekit import run_livekit_worker

    where = {"url": url, "room": room, "agent": agent, "identity": identity, "server": server}
    return run_livekit_worker(**where, avatar=avatar, image=image, prompt=prompt)


@app.command()
def doctor(config: ConfigOption = "tiny", as_json: JsonOption = False) -> int:
    """Check GPU, checkpoint files, port, codecs and ICE servers; exit code 1 if something is wrong."""
    from server.config import load_config
    from server.doctor import run_doctor

    return run_doctor(load_config(config), as_json=as_json)


@bench.command("live")
def bench_live(
    config: ConfigOption = "tiny",
    seconds: Annotated[float, typer.Option("--seconds", help="Measured time, after a warm-up.")] = 30.0,
    audio: Annotated[Path | None, typer.Option("--audio", help="Voice to feed in; a synthetic one without.")] = None,
    as_json: JsonOption = False,
) -> int:
    """One real session on the real clock: block time, latency, processor time, memory."""
    from server.machine import calm_numpy

    calm_numpy()
    from server.bench import LiveBench, run_live
    from server.config import load_config

    return run_live(load_config(config), LiveBench(seconds=seconds, audio=audio), as_json=as_json)


@bench.command("sessions")
def bench_sessions(
    config: ConfigOption = "tiny",
    seconds: Annotated[float, typer.Option("--seconds", help="Measured time of each level, after a warm-up.")] = 15.0,
    most: Annotated[int, typer.Option("--most", help="Sessions at which it ends.")] = 8,
    as_json: JsonOption = False,
) -> int:
    """One session more at a time until a picture comes late: how many one engine serves."""
    from server.machine import calm_numpy

    calm_numpy()
    from server.bench_sessions import SessionsBench, run_sessions
    from server.config import load_config

    return run_sessions(load_config(config), SessionsBench(seconds=seconds, most=most), as_json=as_json)


@bench.command("encode")
def bench_encode(
    config: ConfigOption = "tiny",
    pictures: Annotated[int, typer.Option("--pictures", help="Measured pictures of each size and preset.")] = 100,
    as_json: JsonOption = False,
) -> int:
    """The video encoder by size and preset: processor time a picture, bitrate, size of key frames."""
    from server.bench_encode import EncodeBench, run_encode
    from server.config import load_config

    return run_encode(load_config(config), EncodeBench(pictures=pictures), as_json=as_json)


@bench.command("dit")
def bench_dit(
    size: Annotated[str, typer.Option("--size", help="Picture size, multiples of 16.")] = "704x384",
    dtype: Annotated[str, typer.Option("--dtype", help="Linear layers in fp8 or bf16.")] = "fp8",
    kv: Annotated[str, typer.Option("--kv", help="Remembered keys and values in bf16 or fp8.")] = "bf16",
    blocks: Annotated[int, typer.Option("--blocks", help="Measured blocks, after the rings are full.")] = 10,
    layers: Annotated[int, typer.Option("--layers", help="Of the 40 transformer layers.")] = 40,
    quality: Annotated[bool, typer.Option("--quality", help="Compare with the plain transformer.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="List the longest kernels.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Neither fused nor compiled.")] = False,
    pipeline: Annotated[bool, typer.Option("--pipeline", help="Whole blocks too, decoded, to the host.")] = False,
    as_json: JsonOption = False,
) -> int:
    """The 14B transformer with random weights: time of a pass, share of the device's ceiling, memory."""
    from model.bench_dit import DiTBench, run_bench
    from model.bench_timing import size_of

    width, height = size_of(size)
    bench = DiTBench(
        width=width,
        height=height,
        dtype=dtype,
        kv=kv,
        blocks=blocks,
        layers=layers,
        quality=quality,
        profile=profile,
        plain=plain,
        pipeline=pipeline,
    )
    return run_bench(bench, as_json=as_json)


@bench.command("vae")
def bench_vae(
    size: Annotated[str, typer.Option("--size", help="Picture size, multiples of 16.")] = "704x384",
    dtype: Annotated[str, typer.Option("--dtype", help="bf16 or fp32.")] = "bf16",
    blocks: Annotated[int, typer.Option("--blocks", help="Measured blocks of three latents.")] = 20,
    quality: Annotated[bool, typer.Option("--quality", help="Compare with float32.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="List the longest kernels.")] = False,
    as_json: JsonOption = False,
) -> int:
    """The published video decoder with random weights: time of a block, share of the ceiling, memory."""
    from model.bench_timing import size_of
    from model.bench_vae import VAEBench, run_bench

    width, height = size_of(size)
    bench = VAEBench(width=width, height=height, dtype=dtype, blocks=blocks, quality=quality, profile=profile)
    return run_bench(bench, as_json=as_json)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def train(context: typer.Context) -> int:
    """Make the tiny checkpoint, stage by stage (`avatarcast train --help`)."""
    from model.training.cli import main as run_stage

    return run_stage(context.args)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def portrait(context: typer.Context) -> int:
    """Draw a portrait inside the tiny checkpoint's domain (`avatarcast portrait --help`)."""
    from model.training.portrait import main as draw

    return draw(context.args)


if __name__ == "__main__":
    main()
