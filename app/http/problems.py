"""Every error as `application/problem+json` (RFC 9457), and the table of what may be raised.

    {"type": "urn:seg-loss:ill_posed", "title": "Ill-posed input", "status": 422,
     "detail": "labels: expected ..., got ....", "error": <the same>, "code": "ill_posed",
     "request_id": "...", "where": "labels", "expected": ..., "got": ..., "fix": ...}

`error` repeats `detail` for clients of the Open Inference Protocol, which show that member. What a
client sent is never repeated, and an error of ours says nothing but the id to look for in the log.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from seg_loss import InvalidInput

from ..errors import IllPosed, RequestError

MEDIA_TYPE = "application/problem+json"


def install(app: FastAPI) -> None:
    """Answer everything that routes raise with a problem document."""
    for error in (RequestError, InvalidInput, HTTPException, RequestValidationError):
        app.add_exception_handler(error, _answer)


def internal(request_id: str) -> Response:
    """What a client hears of an error of ours."""
    return _document(
        500,
        "internal",
        "Internal error",
        "An error of the service, not of the request.",
        request_id,
    )


def request_id_of(request: Request) -> str:
    """The id that `app.observation` gave to the request."""
    return str(getattr(request.state, "request_id", ""))


def refused(error: RequestError, request_id: str) -> Response:
    """The document of a refusal."""
    parts = {"where": error.where, "expected": error.expected, "got": error.got, "fix": error.fix}
    given = {name: text for name, text in parts.items() if text is not None}
    return _document(
        error.status,
        error.code,
        error.title,
        error.detail,
        request_id,
        members={**given, **error.extensions},
        headers=error.headers,
    )


async def _answer(request: Request, error: Exception) -> Response:
    request_id = request_id_of(request)
    if isinstance(error, RequestError):
        return refused(error, request_id)
    if isinstance(error, InvalidInput):
        return refused(IllPosed(error.where, error.expected, error.got, error.fix), request_id)
    if isinstance(error, HTTPException):
        status = HTTPStatus(error.status_code)
        code = status.phrase.lower().replace(" ", "_").replace("-", "_")
        return _document(
            status,
            code,
            status.phrase.capitalize(),
            f"{status.description or status.phrase}.",
            request_id,
            headers=error.headers or {},
        )
    # Of FastAPI's own validation, which no route here uses; its messages would echo the input.
    detail = "The request does not fit this path."
    return _document(IllPosed.status, IllPosed.code, IllPosed.title, detail, request_id)


def _document(
    status: int,
    code: str,
    title: str,
    detail: str,
    request_id: str,
    *,
    members: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    content = {
        "type": f"urn:seg-loss:{code}",
        "title": title,
        "status": int(status),
        "detail": detail,
        "error": detail,
        "code": code,
        "request_id": request_id,
        **(members or {}),
    }
    text = json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return Response(text, status_code=status, headers=dict(headers or {}), media_type=MEDIA_TYPE)
