"""The demo pages, their scripts and pictures, and the gallery of portraits: files of the package `client_demo`."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from starlette.responses import FileResponse

from server.errors import ApiError
from server.schemas import AvatarEntry

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; style-src 'self' 'unsafe-inline';"
        " connect-src 'self' ws: wss:; worker-src 'self' blob:; object-src 'none'; base-uri 'none'"
    ),
}


class Pages:
    """Serves files of one folder by name; never another suffix, never another folder.

    Args:
        folder: where pages and scripts lie; the package's own by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(str(resources.files("client_demo")))

    def file(self, name: str, *, under: str = "") -> FileResponse:
        """One file.

        Raises:
            ApiError: `not_found`.
        """
        path = self._folder / under / name
        known = _TYPES.get(path.suffix)
        if known is None or Path(name).name != name or not path.is_file():
            raise ApiError("not_found", f"There is no page or file {name[:80]!r}.")
        return FileResponse(path, media_type=known, headers=_HEADERS)


class Gallery:
    """The portraits that ship with the project: PNG files, with names in `gallery.json` (`{id: name}` or a list of
    `{id, name}`) where it lies beside them.

    Args:
        folder: the package's own by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(str(resources.files("client_demo.gallery")))
        self._names = self._read_names()

    @property
    def folder(self) -> Path:
        """Where the pictures lie."""
        return self._folder

    def entries(self) -> list[AvatarEntry]:
        """Every portrait, in the gallery file's order, then by name. All of them are inside the model's domain."""
        order = {name: place for place, name in enumerate(self._names)}
        ids = sorted((path.stem for path in self._folder.glob("*.png")), key=lambda i: (order.get(i, len(order)), i))
        return [
            AvatarEntry(
                id=i,
                name=self._names.get(i) or i.replace("_", " ").title(),
                thumbnail=f"gallery/{i}.png",
                in_domain=True,
            )
            for i in ids
        ]

    def default(self) -> str:
        """The portrait of a session that names none.

        Raises:
            ApiError: `not_found`, when the gallery is empty.
        """
        entries = self.entries()
        if not entries:
            raise ApiError("not_found", "The gallery is empty; send a portrait as image.")
        return entries[0].id

    def picture(self, avatar: str) -> bytes:
        """The file of one portrait.

        Raises:
            ApiError: `not_found`, with the names there are.
        """
        ids = [entry.id for entry in self.entries()]
        if avatar not in ids:
            raise ApiError("not_found", f"avatar {avatar[:60]!r} is not in the gallery; there are {', '.join(ids)}.")
        return (self._folder / f"{avatar}.png").read_bytes()

    def _read_names(self) -> dict[str, str]:
        path = self._folder / "gallery.json"
        if not path.is_file():
            return {}
        data = json.loads(path.read_text(encoding="utf-8"))
        entries = data.items() if isinstance(data, dict) else ((e["id"], e.get("name")) for e in data)
        return {key: name if isinstance(name, str) else "" for key, name in entries}
