"""The web page at `/` and its files under `/static`.

The page is plain HTML, CSS and ES modules, served as they are. Its Content-Security-Policy allows
no script, style or request of another origin, and nothing inline.
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

DIRECTORY = Path(__file__).parent / "static"

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


def routes() -> list[BaseRoute]:
    """Returns the routes of the page and its files."""
    return [Route("/", _page), Mount("/static", StaticFiles(directory=DIRECTORY))]


async def _page(_: Request) -> Response:
    headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Cache-Control": "no-cache"}
    return FileResponse(DIRECTORY / "index.html", headers=headers)
