"""The paths of the service. `OPERATIONS` has a row for each that takes a body; the rest are GETs.

One request: options, `Accept` and the announced body are judged by the headers; the body is read
(`app.body`); unpacking, decoding, the operation and encoding happen in a worker thread
(`app.workers`). FastAPI gives the routes and the document; it parses nothing.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .. import inputs, operations
from ..errors import ERROR_TYPES, NotFound, Unavailable
from ..images import palettes
from ..images.palettes import Palette
from ..inputs import Upload
from ..options import (
    EvaluateOptions,
    GradientOptions,
    LossOptions,
    VisualizeOptions,
    parse,
)
from ..settings import Settings
from . import body, problems, responses
from .middleware import Figures
from .pool import Workers
from .responses import Answer

Responses = dict[int | str, dict[str, Any]]

_SENT_BYTES = 1024 * 1024
"""The server waits for a slow client between two messages, not within one."""


@dataclass(eq=False)
class Service:
    """What the routes of one application share; `app.state.service`."""

    settings: Settings
    workers: Workers
    figures: Figures
    is_warm: bool = False
    is_draining: bool = False


@dataclass(frozen=True)
class Operation:
    """One `POST /v1/{name}`.

    Args:
        summary: for the API pages.
        options: what the query may say.
        run: the work, a function of `app.operations`.
        answers: the encoders by media type, the default first.
    """

    name: str
    summary: str
    options: type[LossOptions]
    run: Callable[[Upload, Any], Any]
    answers: Mapping[str, Callable[[Any], Answer]]


OPERATIONS = (
    Operation(
        "loss",
        "The loss, as numbers for the batch, each image and each class",
        LossOptions,
        operations.loss,
        responses.LOSS,
    ),
    Operation(
        "gradient",
        "The gradient of the loss in the logits",
        GradientOptions,
        operations.gradient,
        responses.GRADIENT,
    ),
    Operation(
        "evaluate",
        "The loss with confusion matrix, metrics, calibration and maps",
        EvaluateOptions,
        operations.evaluate,
        responses.EVALUATE,
    ),
    Operation(
        "visualize",
        "A picture of labels, prediction, error or loss",
        VisualizeOptions,
        operations.visualize,
        responses.VISUALIZE,
    ),
)


class Pieces(Response):
    """An answer sent piece by piece; `held` is given back when the last one is out.

    A client that reads more slowly than bodies may arrive is left with a part.
    """

    def __init__(
        self, answer: Answer, headers: Mapping[str, str], held: ExitStack, settings: Settings
    ) -> None:
        self._pieces = answer.pieces
        self._held = held
        length = sum(map(len, answer.pieces))
        super().__init__(
            headers={**answer.headers, **headers, "Content-Length": f"{length}"},
            media_type=answer.media_type,
        )
        allowed = length / settings.min_body_bytes_per_second
        self._timeout_seconds = settings.body_timeout_seconds + allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # uvicorn closes the connection of an answer that was not completed.
        with self._held, suppress(TimeoutError):
            await asyncio.wait_for(self._send(send), self._timeout_seconds)

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        for piece in self._pieces:
            for begin in range(0, len(piece), _SENT_BYTES):
                part = piece[begin : begin + _SENT_BYTES]
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def router() -> APIRouter:
    """All paths."""
    routes = APIRouter(redirect_slashes=False)
    for operation in OPERATIONS:
        routes.add_api_route(
            f"/v1/{operation.name}",
            _endpoint(operation),
            methods=["POST"],
            summary=operation.summary,
            operation_id=operation.name,
            response_class=Response,
            responses=_responses(operation),
            openapi_extra=_request(operation),
        )
    for path, endpoint, summary, documented in (
        ("/v1/palettes", _palettes, "The names of the palettes", _json_and(406)),
        ("/v1/palettes/{name}", _palette, "Colours and class names", _json_and(404, 406)),
        ("/livez", _livez, "Whether the process answers", _json_and()),
        ("/readyz", _readyz, "Whether requests should be sent here", _json_and(503)),
        ("/metrics", _metrics, "Figures for Prometheus", _TEXT),
    ):
        parameters = [_PALETTE_NAME] if "{name}" in path else []
        routes.add_api_route(
            path,
            endpoint,
            methods=["GET"],
            summary=summary,
            response_class=Response,
            responses=documented,
            openapi_extra={"parameters": parameters},
        )
    return routes


def _endpoint(operation: Operation) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        service: Service = request.app.state.service
        settings = service.settings
        options = parse(operation.options, request.query_params.multi_items())
        media_type = responses.choose(_accept(request), tuple(operation.answers))
        if isinstance(options, EvaluateOptions):
            responses.refuse_maps_in_json(options.maps, media_type)
        content_type = request.headers.get("content-type", "")
        is_json = inputs.media_type(content_type) == responses.JSON
        limit = settings.max_json_bytes if is_json else settings.max_body_bytes
        announced = body.announced(request.headers, min(limit, settings.max_body_bytes))
        with ExitStack() as held:
            place = held.enter_context(service.workers.place(announced.reserved_bytes))
            begun = perf_counter()
            packed = await body.read(request, announced, settings)
            has_read = perf_counter()

            def work() -> tuple[Answer, str]:
                times = [("read", has_read - begun)]
                content = packed
                if announced.coding is not None:
                    content = body.unpack(packed, announced.coding, announced.limit)
                started = perf_counter()
                times.append(("wait", started - has_read))
                upload = inputs.decode(content, content_type, options, settings)
                decoded = perf_counter()
                times.append(("decode", decoded - started))
                service.workers.enlarge(place, operations.working_bytes(upload, options))
                result = operation.run(upload, options)
                operations.refuse_non_finite(upload, options, result)
                computed = perf_counter()
                times.append(("compute", computed - decoded))
                answer = operation.answers[media_type](result)
                times.append(("encode", perf_counter() - computed))
                return answer, ", ".join(f"{name};dur={s * 1e3:.2f}" for name, s in times)

            answer, timing = await service.workers.run(work, place)
            headers = {"Server-Timing": timing, "Vary": "Accept"}
            return Pieces(answer, headers, held.pop_all(), settings)

    endpoint.__name__ = operation.name
    return endpoint


async def _palettes(request: Request) -> Response:
    rows = [_described(palette) for palette in palettes.PALETTES.values()]
    return _json(request, {"palettes": rows})


async def _palette(request: Request) -> Response:
    palette = palettes.PALETTES.get(request.path_params["name"])
    if palette is None:
        known = ", ".join(palettes.PALETTES)
        raise NotFound("palette", f"one of {known}", "an unknown name")
    colours = palette.colours.tolist()
    return _json(request, {**_described(palette), "colours": colours})


async def _livez(_: Request) -> Response:
    return _plain_json({"status": "live"})


async def _readyz(request: Request) -> Response:
    service: Service = request.app.state.service
    if service.is_draining or not service.is_warm:
        wait = service.settings.retry_after_seconds
        why = "The service is stopping." if service.is_draining else "The kernels are being loaded."
        raise Unavailable(why, wait)
    return _plain_json({"status": "ready"})


async def _metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    text = await asyncio.to_thread(generate_latest, service.figures.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _accept(request: Request) -> str | None:
    return ",".join(request.headers.getlist("accept")) or None


def _json(request: Request, value: object) -> Response:
    responses.choose(_accept(request), [responses.JSON])
    return _plain_json(value)


def _plain_json(value: object) -> Response:
    return Response(responses.json_bytes(value), media_type=responses.JSON)


def _described(palette: Palette) -> dict[str, object]:
    return {
        "name": palette.name,
        "class_names": list(palette.class_names),
        "ignore_index": palette.ignore_index,
        "background_index": palette.background_index,
    }


# The document. Binary bodies are media types without a schema, as OpenAPI 3.1 has them.

_PROBLEM = {"content": {problems.MEDIA_TYPE: {"schema": {"type": "object"}}}}
_TEXT: Responses = {200: {"description": "OK", "content": {"text/plain": {}}}}
_PALETTE_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_BODIES: Mapping[str, dict[str, Any]] = {
    "application/x-safetensors": {},
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {
                name: {"type": "string", "contentMediaType": "application/octet-stream"}
                for name in inputs.READERS
            },
        }
    },
    "application/json": {"schema": {"type": "object"}},
}


def _refusals() -> Responses:
    return {refusal.status: {"description": refusal.title, **_PROBLEM} for refusal in ERROR_TYPES}


def _json_and(*statuses: int) -> Responses:
    refusals = _refusals()
    success = {"description": "OK", "content": {responses.JSON: {"schema": {"type": "object"}}}}
    return {200: success, **{status: refusals[status] for status in statuses}}


def _responses(operation: Operation) -> Responses:
    refusals = _refusals()
    del refusals[NotFound.status]
    content: dict[str, Any] = {media_type: {} for media_type in operation.answers}
    return {200: {"description": operation.summary, "content": content}, **refusals}


def _request(operation: Operation) -> dict[str, Any]:
    schemas = operation.options.model_json_schema()["properties"]
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": f"{field.description} Expected: {field.title}.",
            "schema": _schema_of_text(schemas[name]),
        }
        for name, field in operation.options.model_fields.items()
    ]
    content = {media_type: _BODIES[media_type] for media_type in inputs.DECODERS}
    return {"parameters": parameters, "requestBody": {"required": True, "content": content}}


def _schema_of_text(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an option as it is written in a query: lists are texts there."""
    if schema.get("type") == "number":
        kept = ("type", "default", "minimum", "maximum", "exclusiveMinimum")
        return {name: schema[name] for name in kept if name in schema}
    default = schema.get("default")
    if isinstance(default, list):
        default = ",".join(map(str, default))
    return {"type": "string"} if not default else {"type": "string", "default": default}
