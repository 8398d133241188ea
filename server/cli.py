"""The `avatarcast` program: one small function a command, which imports what it needs when it runs.

Exit codes: 0 done, 1 failed, 2 bad arguments or input (one sentence on stderr: field, value, remedy), 130 interrupted.
Options are spelt with `_`; hyphens work too.
"""

from __future__ import annotations

import os
import sys
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
    given = [_underscored(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
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
    from server.config import Secrets, load_config, with_address
    from server.machine import check_machine, inspect_machine

    loaded = with_address(load_config(config), host=host, port=port)
    if loaded.model.kind == "checkpoint" and not allow_slow:
        check_machine(inspect_machine())
    from server.serve import serve as run_server

    return run_server(loaded, Secrets.from_environment())


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
