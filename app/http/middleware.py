"""Around every request: its id, headers that all answers have, figures for `/metrics`, and the log.

Plain ASGI, since Starlette's `BaseHTTPMiddleware` costs a task and a stream per request. What no
route caught ends here: the traceback goes into the log under the request's id, the client gets the
id (`app.problems.internal`).
"""

import logging
import re
import time
from collections.abc import MutableMapping
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import problems
from .pool import Workers

_log = logging.getLogger("seg_loss_app")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._\-]{1,64}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Those with a row in the figures: a client must not be able to make up more of them."""
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Figures:
    """What `/metrics` shows, in a registry of its own: one service, one set of figures."""

    def __init__(self, workers: Workers) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "method", "status")
        self.requests = Counter(
            "seg_loss_requests", "Requests answered.", labels, registry=self.registry
        )
        self.seconds = Histogram(
            "seg_loss_request_seconds",
            "From the headers of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.received = Counter(
            "seg_loss_received_bytes", "Bytes of bodies received.", registry=self.registry
        )
        self.sent = Counter("seg_loss_sent_bytes", "Bytes of answers.", registry=self.registry)
        requests = Gauge(
            "seg_loss_requests_in_flight", "Requests let in and not done.", registry=self.registry
        )
        requests.set_function(lambda: workers.requests_in_flight)
        reserved = Gauge(
            "seg_loss_bytes_in_flight",
            "Memory reserved for bodies, maps and upsampling.",
            registry=self.registry,
        )
        reserved.set_function(lambda: workers.bytes_in_flight)


class Observation:
    """The outermost layer of the service that knows of requests."""

    def __init__(self, app: ASGIApp, figures: Figures) -> None:
        self._app = app
        self._figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        begun = time.perf_counter()
        status = 0

        async def receive_counted() -> Message:
            message = await receive()
            self._figures.received.inc(len(message.get("body", b"")))
            return message

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, request_id)
            self._figures.sent.inc(len(message.get("body", b"")))
            await send(message)

        try:
            await self._app(scope, receive_counted, send_counted)
        except Exception:
            _log.exception("request %s failed", request_id)
            if status:  # half an answer is out: only the connection can still tell
                raise
            await problems.internal(request_id)(scope, receive, send_counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._figures.requests.labels(route, method, status).inc()
            self._figures.seconds.labels(route).observe(time.perf_counter() - begun)


def _request_id(scope: Scope) -> str:
    """The client's own, if it is a plain word, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid4().hex


def _add_headers(message: MutableMapping[str, Any], request_id: str) -> None:
    message["headers"] = [
        *message.get("headers", []),
        (b"x-request-id", request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
    ]
