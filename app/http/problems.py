"""Every error as `application/problem+json` (RFC 9457).

    {"type": "urn:seg-loss:ill_posed", "title": "Ill-posed input", "status": 422,
     "detail": "labels: expected ..., got ....", "error": <the same>, "code": "ill_posed",
     "request_id": "...", "where": "labels", "expected": ..., "got": ..., "fix": ...}

`error` repeats `detail` for clients of the Open Inference Protocol, which show that member. Text of
the client is never repeated raw: it goes through `errors.safe_repr`. A status of 500 gives no
detail, only the id under which the traceback is logged.
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

from ..errors import (
    IllPosed,
    MethodNotAllowed,
    NotFound,
    RequestError,
    did_you_mean,
    safe_repr,
)

MEDIA_TYPE = "application/problem+json"


def install_handlers(app: FastAPI) -> None:
    """Makes the application answer each error that a route may raise with a problem document."""
    for error_type in (RequestError, InvalidInput, HTTPException, RequestValidationError):
        app.add_exception_handler(error_type, _handle)


def internal_error(request_id: str) -> Response:
    """Returns the response to a request that failed through a defect of the service."""
    detail = "An error of the service, not of the request."
    return _problem(500, "internal", "Internal error", detail, request_id)


def response_to(error: Exception, request_id: str) -> Response:
    """Returns the response to a request that has caused one of the errors with a handler."""
    if isinstance(error, RequestError):
        return _problem_of(error, request_id)
    if isinstance(error, InvalidInput):
        ill_posed = IllPosed(error.where, error.expected, error.got, error.fix)
        return _problem_of(ill_posed, request_id)
    if isinstance(error, HTTPException):
        status = HTTPStatus(error.status_code)
        code = status.phrase.lower().replace(" ", "_").replace("-", "_")
        detail = f"{status.description or status.phrase}."
        title = status.phrase.capitalize()
        return _problem(status, code, title, detail, request_id, headers=error.headers)
    # FastAPI's own validation, which no route uses. Its message would repeat the input.
    detail = "The request does not fit this path."
    return _problem(IllPosed.status, IllPosed.code, IllPosed.title, detail, request_id)


async def _handle(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = _routing_error(request, error)
    # `http.middleware` has set the id.
    return response_to(error, str(getattr(request.state, "request_id", "")))


def _routing_error(request: Request, error: HTTPException) -> Exception:
    """Returns the error for an unknown path or method; any other error as it is."""
    if error.status_code == NotFound.status:
        routes = {}
        for route in request.app.routes:
            methods = " or ".join(sorted(route.methods - {"HEAD"}))
            routes[route.path_format] = f"{methods} {route.path_format}"
        path, lines = request.scope["path"], [*routes.values()]
        fix = did_you_mean(path, routes)
        return NotFound("path", f"one of {', '.join(lines)}", safe_repr(path), fix, routes=lines)
    if error.status_code == MethodNotAllowed.status:
        allowed = sorted((error.headers or {}).get("Allow", "").split(", "))
        headers = {"Allow": ", ".join(allowed)}
        return MethodNotAllowed(
            "method", " or ".join(allowed), safe_repr(request.method), headers=headers
        )
    return error


def _problem_of(error: RequestError, request_id: str) -> Response:
    parts = {"where": error.where, "expected": error.expected, "got": error.got, "fix": error.fix}
    present = {name: text for name, text in parts.items() if text is not None}
    return _problem(
        error.status,
        error.code,
        error.title,
        error.detail,
        request_id,
        extensions={**present, **error.extensions},
        headers=error.headers,
    )


def _problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    request_id: str,
    *,
    extensions: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Returns a problem document; `extensions` are members beside those of RFC 9457."""
    members = {
        "type": f"urn:seg-loss:{code}",
        "title": title,
        "status": int(status),
        "detail": detail,
        "error": detail,
        "code": code,
        "request_id": request_id,
        **(extensions or {}),
    }
    text = json.dumps(members, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return Response(text, status_code=status, headers=dict(headers or {}), media_type=MEDIA_TYPE)
