"""The web page at `/`, the API pages at `/docs`, and their files under `/static`.

Both are plain HTML, CSS and ES modules, served as they are. Starlette's `StaticFiles` finds a file,
within the folder alone, and compares its ETag. This module adds what it leaves open:

- the ETag is a hash of the content. Starlette's has the time of the file, which a package or an
  image may set to the same for all versions;
- the media type comes from `MEDIA_TYPES`, since the tables of the system differ;
- a Content-Security-Policy allows no script, style or request of another origin, and nothing
  inline. It comes with every file, because a worker has the policy of its own script;
- an unknown file is a problem document, as any other error is;
- a file is sent as a whole, within the time that a response may take.

A request for a file takes no place among the requests that are computed.
"""

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path, PurePath

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Receive, Scope, Send

from ..errors import NotFound, safe_repr
from .routing import PathRoute

DIRECTORY = Path(__file__).parent / "static"

MEDIA_TYPES: Mapping[str, str] = {
    "": "text/plain",  # LICENSE
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".md": "text/plain",
    ".mjs": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".wasm": "application/wasm",
    ".woff2": "font/woff2",
}
"""The media types of files, by the suffix of their name."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A copy is compared by its ETag at each use: the files of a page belong to one version.
    "Cache-Control": "no-cache",
}


def routes() -> list[BaseRoute]:
    """Returns the routes of the pages and their files."""
    return [
        PathRoute("/", _page, "GET"),
        PathRoute("/docs", _docs, "GET"),
        PathRoute("/static/{path:path}", _file, "GET"),
    ]


class _File(FileResponse):
    """A file as a whole: clients slower than the minimum rate get a truncated response."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A part of a file would need errors of its own.
        headers = [header for header in scope["headers"] if header[0] != b"range"]
        whole: Scope = {**scope, "headers": headers}
        settings = scope["app"].state.service.settings
        timeout_seconds = settings.transfer_seconds(int(self.headers["Content-Length"]))
        # `http.protocol` resets the connection of a response that was not completed.
        with suppress(TimeoutError):
            await asyncio.wait_for(super().__call__(whole, receive, send), timeout_seconds)


class _Files(StaticFiles):
    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        suffix = PurePath(full_path).suffix.lower()
        media_type = MEDIA_TYPES.get(suffix, "application/octet-stream")
        etag = _etag(os.fspath(full_path), stat_result.st_mtime_ns, stat_result.st_size)
        headers = {**HEADERS, "Accept-Ranges": "none", "ETag": etag}
        response = _File(full_path, status_code, headers, media_type, stat_result=stat_result)
        del response.headers["Last-Modified"]
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            copy = NotModifiedResponse(response.headers)
            copy.headers.update(HEADERS)  # they replace those of the copy
            return copy
        return response


@lru_cache(maxsize=1024)
def _etag(path: str, mtime_ns: int, num_bytes: int) -> str:
    """Returns the ETag of a file, which is read again when its time or its size changes."""
    return f'"{sha256(Path(path).read_bytes()).hexdigest()[:32]}"'


_FILES = _Files(directory=DIRECTORY)


async def _page(request: Request) -> Response:
    return await _FILES.get_response("index.html", request.scope)


async def _docs(request: Request) -> Response:
    return await _FILES.get_response("docs/index.html", request.scope)


async def _file(request: Request) -> Response:
    path = request.path_params["path"]
    with suppress(HTTPException, OSError, ValueError):
        normal_path = os.path.normpath(os.path.join(*path.split("/")))
        return await _FILES.get_response(normal_path, request.scope)
    raise NotFound("path", "the name of a file of the page", safe_repr(request.scope["path"]))
