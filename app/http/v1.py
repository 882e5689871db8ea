"""The paths of the service. `OPERATIONS` has a row for each that takes a body; the rest are GETs.

One request: options, `Accept` and the announced body are judged by the headers; the body is read
(`app.body`); unpacking, decoding, the operation and encoding happen in a worker thread
(`app.workers`). FastAPI gives the routes and the document; it parses nothing.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from .. import inputs, operations
from ..errors import ERROR_TYPES, NotFound, Unavailable
from ..formats import json, multipart, safetensors
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
from ..results import json_bytes
from ..settings import Settings
from . import body, problems, responses
from .middleware import Figures
from .pool import Workers
from .responses import ChunkedResponse, Encoded

Responses = dict[int | str, dict[str, Any]]


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
        encoders: by media type, the default first.
    """

    name: str
    summary: str
    options: type[LossOptions]
    run: Callable[[Upload, Any], Any]
    encoders: Mapping[str, Callable[[Any], Encoded]]


OPERATIONS = (
    Operation(
        "loss",
        "The loss, as numbers for the batch, each image and each class",
        LossOptions,
        operations.loss,
        responses.LOSS_ENCODERS,
    ),
    Operation(
        "gradient",
        "The gradient of the loss in the logits",
        GradientOptions,
        operations.gradient,
        responses.GRADIENT_ENCODERS,
    ),
    Operation(
        "evaluate",
        "The loss with confusion matrix, metrics, calibration and maps",
        EvaluateOptions,
        operations.evaluate,
        responses.EVALUATE_ENCODERS,
    ),
    Operation(
        "visualize",
        "A picture of labels, prediction, error or loss",
        VisualizeOptions,
        operations.visualize,
        responses.VISUALIZE_ENCODERS,
    ),
)


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
        media_type = responses.choose_media_type(_accept(request), tuple(operation.encoders))
        if isinstance(options, EvaluateOptions):
            responses.check_can_hold_maps(media_type, options.maps)
        content_type = request.headers.get("content-type", "")
        is_json = inputs.media_type(content_type) == json.MEDIA_TYPE
        limit = settings.max_json_bytes if is_json else settings.max_body_bytes
        announced = body.announced(request.headers, min(limit, settings.max_body_bytes))
        with ExitStack() as held:
            place = held.enter_context(service.workers.place(announced.reserved_bytes))
            begun = perf_counter()
            packed = await body.read(request, announced, settings)
            has_read = perf_counter()

            def work() -> tuple[Encoded, str]:
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
                answer = operation.encoders[media_type](result)
                times.append(("encode", perf_counter() - computed))
                return answer, ", ".join(f"{name};dur={s * 1e3:.2f}" for name, s in times)

            answer, timing = await service.workers.run(work, place)
            headers = {"Server-Timing": timing, "Vary": "Accept"}
            return ChunkedResponse(answer, headers, held.pop_all(), settings)

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
    responses.choose_media_type(_accept(request), [json.MEDIA_TYPE])
    return _plain_json(value)


def _plain_json(value: object) -> Response:
    return Response(json_bytes(value), media_type=json.MEDIA_TYPE)


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
    safetensors.MEDIA_TYPE: {},
    multipart.MEDIA_TYPE: {
        "schema": {
            "type": "object",
            "properties": {
                name: {"type": "string", "contentMediaType": "application/octet-stream"}
                for name in inputs.READERS
            },
        }
    },
    json.MEDIA_TYPE: {"schema": {"type": "object"}},
}


def _refusals() -> Responses:
    return {refusal.status: {"description": refusal.title, **_PROBLEM} for refusal in ERROR_TYPES}


def _json_and(*statuses: int) -> Responses:
    refusals = _refusals()
    success = {"description": "OK", "content": {json.MEDIA_TYPE: {"schema": {"type": "object"}}}}
    return {200: success, **{status: refusals[status] for status in statuses}}


def _responses(operation: Operation) -> Responses:
    refusals = _refusals()
    del refusals[NotFound.status]
    content: dict[str, Any] = {media_type: {} for media_type in operation.encoders}
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
