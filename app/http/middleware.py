"""Observability: request ids, metrics for `/metrics`, the error log, and common headers.

It is plain ASGI, since Starlette's `BaseHTTPMiddleware` costs a task and a stream per request.
Exceptions that no handler of `problems` covers end here: the traceback is logged under the id of
the request, and the client gets a problem document with the same id.
"""

import logging
import re
import time
from collections.abc import MutableMapping
from typing import Any
from uuid import uuid4

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import devices
from . import problems
from .pool import Workers

_log = logging.getLogger("seg_loss_app")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._\-]{1,64}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Methods with a label value of their own. Any other is "other": clients cannot add time series."""
_SECONDS_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The Prometheus metrics of one service, in a registry that no other service shares."""

    def __init__(self, workers: Workers, device: torch.device) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "method", "status")
        self.requests = Counter(
            "seg_loss_requests", "Requests answered.", labels, registry=self.registry
        )
        self.seconds = Histogram(
            "seg_loss_request_seconds",
            "Time from the headers of a request to the end of its response.",
            ("route",),
            buckets=_SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.received = Counter(
            "seg_loss_received_bytes", "Bytes of request bodies.", registry=self.registry
        )
        self.sent = Counter(
            "seg_loss_sent_bytes", "Bytes of response bodies.", registry=self.registry
        )
        requests = Gauge(
            "seg_loss_requests_in_flight",
            "Requests admitted and not finished.",
            registry=self.registry,
        )
        requests.set_function(lambda: workers.requests_in_flight)
        reserved = Gauge(
            "seg_loss_bytes_in_flight",
            "Memory reserved for bodies, pictures, upsampling and results.",
            registry=self.registry,
        )
        reserved.set_function(lambda: workers.bytes_in_flight)
        self.batch_photos = Histogram(
            "seg_loss_network_batch_photos",
            "Photos and tiles that the network has computed at a time.",
            buckets=_BATCH_BUCKETS,
            registry=self.registry,
        )
        used = Info("seg_loss_device", "The device that computes.", registry=self.registry)
        used.info({"device": f"{device}", "model": devices.model(device)})


class ObservabilityMiddleware:
    """ASGI middleware that observes each HTTP request; it wraps all other layers of the service."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        start = time.perf_counter()
        status = 0

        async def counting_receive() -> Message:
            message = await receive()
            self._metrics.received.inc(len(message.get("body", b"")))
            return message

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, request_id)
            self._metrics.sent.inc(len(message.get("body", b"")))
            await send(message)

        # `http.protocol` reports bytes that are no HTTP as a request with an error.
        error = scope["state"].get("protocol_error")
        app = self._app if error is None else problems.response_to(error, request_id)
        try:
            await app(scope, counting_receive, counting_send)
        except Exception:
            _log.exception("request %s failed", request_id)
            if status:  # the response has begun, so only closing the connection shows the failure
                raise
            await problems.internal_error(request_id)(scope, receive, counting_send)
        finally:
            route = getattr(scope.get("route"), "path_format", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(route, method, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)


def _request_id(scope: Scope) -> str:
    """Returns the `X-Request-ID` of the client if it is a plain word, else a new id."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid4().hex


def _add_headers(message: MutableMapping[str, Any], request_id: str) -> None:
    headers = [
        *message.get("headers", []),
        (b"x-request-id", request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
    ]
    if all(name != b"cache-control" for name, _ in headers):  # a file has one of its own
        headers.append((b"cache-control", b"no-store"))
    message["headers"] = headers
