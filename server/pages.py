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
    """The portraits that ship with the project, as `index.json` lists them: `[{id, name, file}]`.

    Args:
        folder: the package's own by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(str(resources.files("client_demo.gallery")))
        index = self._folder / "index.json"
        listed = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else []
        self._portraits = {entry["id"]: entry for entry in listed if (self._folder / entry["file"]).is_file()}

    def entries(self) -> list[AvatarEntry]:
        """Every portrait, in order. All of them are inside the model's domain."""
        return [
            AvatarEntry(id=i, name=portrait["name"], thumbnail=f"gallery/{portrait['file']}", in_domain=True)
            for i, portrait in self._portraits.items()
        ]

    def default(self) -> str:
        """The portrait of a session that names none.

        Raises:
            ApiError: `not_found`, when the gallery is empty.
        """
        if not self._portraits:
            raise ApiError("not_found", "The gallery is empty; send a portrait as image.")
        return next(iter(self._portraits))

    def picture(self, avatar: str) -> bytes:
        """The file of one portrait.

        Raises:
            ApiError: `not_found`, with the names there are.
        """
        portrait = self._portraits.get(avatar)
        if portrait is None:
            known = ", ".join(self._portraits) or "none"
            raise ApiError("not_found", f"avatar {avatar[:60]!r} is not in the gallery; there are {known}.")
        return (self._folder / portrait["file"]).read_bytes()
