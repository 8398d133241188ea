"""`avatarcast studio`: a page for offline work, where a portrait and a sound become a film without a command line.

Gradio draws the page; it comes with the extra `studio` and is imported here only when the command runs. Films go the
way of `avatarcast generate`, one at a time over one loaded model, and what `avatarcast check` would say stands beside
the inputs as soon as they are there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from model.errors import ModelError
from server.check import check_file
from server.config import Config, with_address
from server.errors import ConfigError, ServerError, StartError
from server.generate import FilmWish, LoadedModel, make_film
from streaming.errors import StreamingError
from streaming.offline import FilmReport

USER = "avatarcast"
PATIENCE_S = 60.0
"""Longest time that Ctrl-C waits for the block under way."""
CSS = """
.gradio-container {max-width: 1080px !important; margin: 0 auto !important}
#film video {background: #111}
footer {display: none !important}
"""
FONTS = ("ui-sans-serif", "system-ui", "sans-serif")  # none is fetched


def run_studio(config: Config, *, host: str, port: int, key: str | None) -> int:
    """Serve the page until Ctrl-C.

    Args:
        config: of all films.
        host: address to listen on; away from loopback the page asks for user `avatarcast` and the key.
        port: TCP port; 0 takes a free one.
        key: the admin key.

    Returns:
        Exit code 130: only Ctrl-C ends it.

    Raises:
        ConfigError: a port that is none, or no key for an address that others reach.
        StartError: gradio is not installed, or the address cannot be had.
    """
    if not 0 <= port < 65_536:
        raise ConfigError(f"--server_port is {port}; it must be 0 to 65535")
    is_private = with_address(config, host=host, port=None).server.is_loopback
    if not is_private and not key:
        raise ConfigError(f"--server_name is {host}, which others reach; set AVATARCAST_API_KEY, the page's password")
    gradio = import_gradio()
    with tempfile.TemporaryDirectory(prefix="avatarcast-studio-") as folder:
        studio = Studio(config, Path(folder))
        page = build_page(gradio, studio)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port or None,
                auth=None if is_private else (USER, str(key)),
                prevent_thread_lock=True,
                quiet=True,
                theme=gradio.themes.Soft(primary_hue="teal", font=FONTS, font_mono=("ui-monospace", "monospace")),
                css=CSS,
            )
        except OSError as error:
            raise StartError(f"--server_port is {port} on {host}, which cannot be had; choose another port") from error
        print(f"ready {url.rstrip('/')}", flush=True)
        try:
            threading.Event().wait()
        finally:
            studio.end()
            page.close(verbose=False)
    return 130


def import_gradio() -> Any:
    """Gradio, kept from calling home.

    Raises:
        StartError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise StartError("the studio needs gradio, which is missing; pip install 'avatarcast[studio]'") from error
    return gradio


class Studio:
    """What the page does.

    Args:
        config: of all films.
        folder: where films are written; only the newest is kept.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._loaded = LoadedModel(config)
        self._folder = folder
        self._should_stop = threading.Event()
        self._at_work = threading.Lock()

    def end(self) -> None:
        """Stop, and wait until no thread is inside the model any more; leaving it there aborts the process."""
        self.stop()
        self._at_work.acquire(timeout=PATIENCE_S)

    def stop(self) -> None:
        """End the film under way after its block; it stays playable."""
        self._should_stop.set()

    def make(
        self, image: str | None, audio: str | None, prompt: str, seed: float, show: Callable[[float, str], None]
    ) -> tuple[str | None, str]:
        """Make a film.

        Args:
            image, audio: files, or None where nothing was chosen.
            prompt: expression and manner.
            seed: whole number.
            show: takes progress, 0 to 1, and a word on it.

        Returns:
            The film's path, and what is to be said: figures, notices, or the one sentence of what is wrong.
        """
        if not image or not audio:
            return None, f"Choose a {'portrait' if not image else 'sound'} first."
        self._should_stop.clear()
        notices: list[str] = []
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            wish = FilmWish(
                image=Path(image),
                audio=Path(audio),
                out=self._folder / f"{Path(audio).stem}.mp4",
                prompt=prompt,
                base_seed=int(seed or 0),
            )
            show(0.0, "Loading")
            with self._at_work:
                report = make_film(
                    self._loaded,
                    wish,
                    tell=notices.append,
                    on_progress=lambda p: show(p.frames / max(1, p.num_frames or 1), f"{p.fps:.0f} pictures a second"),
                    should_stop=self._should_stop.is_set,
                )
        except (ServerError, ModelError, StreamingError) as error:
            return None, f"**{str(error).replace('--', '')}**"
        notices = [line for line in notices if not line.startswith("loading ")]
        return (str(report.path) if report.frames else None), "\n\n".join([_figures(report), *notices])


def _figures(report: FilmReport) -> str:
    state = "Stopped" if report.interrupted else "Done"
    speed = report.frames / max(report.wall_s, 1e-9)
    size = f"{report.width}x{report.height}"
    return f"{state}: {report.seconds:.1f} s at {size}, made with {speed:.0f} pictures a second."


def verdict(path: str | None) -> str:
    """What `check` finds to improve in a file, as Markdown."""
    if not path:
        return ""
    try:
        _, findings = check_file(Path(path))
    except ServerError as error:
        return f"**{error}**"
    bad = [f for f in findings if f.level != "ok"]
    told = [f"- **{f.subject}**: {f.text}{f' ({f.threshold})' if f.threshold else ''}; {f.remedy}" for f in bad]
    return "\n".join(told) or f"Good: all {len(findings)} figures are as they should be."


@contextlib.contextmanager
def gallery() -> Iterator[list[str]]:
    """Files of the portraits that ship with the project."""
    with resources.as_file(resources.files("client_demo.gallery")) as folder:
        yield [str(path) for path in sorted(folder.glob("*.png"))]


def build_page(gradio: Any, studio: Studio) -> Any:
    """The page: inputs on the left, the film on the right."""
    with gradio.Blocks(title="avatarcast studio", analytics_enabled=False) as page:
        gradio.Markdown("# avatarcast studio\nA portrait and a sound become a film, lips in step.")
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=5):
                image = gradio.Image(
                    label="Portrait", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=300,
                    elem_id="portrait",
                )  # fmt: skip
                with gallery() as portraits:
                    gradio.Examples(portraits, image, label="Portraits to begin with", examples_per_page=12)
                about_image = gradio.Markdown(elem_id="about-portrait")
                audio = gradio.Audio(
                    label="Sound",
                    type="filepath",
                    sources=["upload", "microphone"],
                    buttons=["download"],
                    elem_id="sound",
                )
                about_audio = gradio.Markdown(elem_id="about-sound")
            with gradio.Column(scale=5):
                film = gradio.Video(label="Film", interactive=False, height=360, elem_id="film")
                prompt = gradio.Textbox(label="Prompt", placeholder="a happy person, smiling", elem_id="prompt")
                with gradio.Accordion("More", open=False):
                    seed = gradio.Number(0, label="Seed of noise and idle motion", precision=0, minimum=0)
                with gradio.Row():
                    start = gradio.Button("Make the film", variant="primary", elem_id="start")
                    stop = gradio.Button("Stop", elem_id="stop")
                said = gradio.Markdown(elem_id="state")

        def make(image: str, audio: str, prompt: str, seed: float, progress: Any = gradio.Progress()) -> Any:  # noqa: B008
            return studio.make(image, audio, prompt, seed, lambda share, word: progress(share, desc=word))

        image.change(verdict, image, about_image, show_progress="hidden", api_name=False)
        audio.change(verdict, audio, about_audio, show_progress="hidden", api_name=False)
        start.click(make, [image, audio, prompt, seed], [film, said], concurrency_limit=1, show_progress_on=film)
        stop.click(studio.stop, queue=False, api_name=False)
    return page
