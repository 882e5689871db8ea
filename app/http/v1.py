"""The paths under `/v1`, and those for health and metrics.

`OPERATIONS` has a row for each POST path; `handle` answers them all. `RESOURCES` has a row for each
GET path, which answers HEAD too. A path with a slash at its end is the same path. FastAPI only
routes: it parses no body and no option. `openapi` describes the tables.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from time import perf_counter
from typing import Any

import torch
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from torch import Tensor

from seg_loss.upsampling import Upsampling

from .. import devices, inputs, operations, results
from ..errors import Malformed, NotFound, Unavailable, did_you_mean, safe_repr
from ..formats import json, safetensors
from ..formats.compression import decompress
from ..images.palettes import PALETTES
from ..inputs import Inputs
from ..options import (
    MODELS,
    EvaluateOptions,
    LossOptions,
    PredictOptions,
    VisualizeOptions,
    parse,
)
from ..results import GradientResult, Result
from ..settings import Settings
from . import body, openapi, responses
from .batching import Batcher
from .middleware import Metrics
from .pool import Reservation, Workers
from .responses import ChunkedResponse, Encoded
from .routing import PathRoute
from .sample import Sample
from .staging import StagingPool


@dataclass(eq=False)
class Service:
    """The state that the routes of one application share, as `app.state.service`.

    Attributes:
        settings: the settings.
        workers: admission control and the thread pool.
        metrics: the Prometheus metrics.
        device: the device that computes.
        staging: the pinned memory for copies to the device and back.
        batcher: the network for photos; None if there is none.
        sample: the file of `/v1/sample`.
        is_warm: whether the kernels are loaded.
        is_draining: whether the service is about to stop.
    """

    settings: Settings
    workers: Workers
    metrics: Metrics
    device: torch.device
    staging: StagingPool
    batcher: Batcher | None = None
    sample: Sample = field(default_factory=Sample)
    is_warm: bool = False
    is_draining: bool = False

    def announced(self, options: LossOptions) -> AbstractContextManager[None]:
        """Lets the queue of the network wait for a request that may have a photo."""
        takes_photos = isinstance(options, (EvaluateOptions, PredictOptions, VisualizeOptions))
        if self.batcher is None or not takes_photos:
            return nullcontext()
        return self.batcher.announced()


@dataclass(frozen=True)
class Operation:
    """One POST path.

    Attributes:
        name: the last part of the path.
        summary: what the API pages show.
        run: the computation, a function of `operations`.
        encoders: the media types of the response, the default first.
    """

    name: str
    summary: str
    run: Callable[[Inputs, Any], Any]
    encoders: Mapping[str, Callable[[Any], Encoded]]

    @property
    def options(self) -> type[LossOptions]:
        """The options that the query may hold."""
        return MODELS[self.name]


OPERATIONS = (
    Operation(
        "loss",
        "The loss of the batch, of each image and of each class",
        operations.loss,
        responses.LOSS_ENCODERS,
    ),
    Operation(
        "gradient",
        "The gradient of the loss in the logits",
        operations.gradient,
        responses.GRADIENT_ENCODERS,
    ),
    Operation(
        "evaluate",
        "The loss with confusion matrix, metrics, calibration and maps",
        operations.evaluate,
        responses.EVALUATE_ENCODERS,
    ),
    Operation(
        "visualize",
        "A picture of labels, prediction, error or loss",
        operations.visualize,
        responses.VISUALIZE_ENCODERS,
    ),
    Operation(
        "predict",
        "The class of each pixel as a label map, maps, or the number of pixels of each class",
        operations.predict,
        responses.PREDICT_ENCODERS,
    ),
)


async def handle(request: Request, operation: Operation) -> Response:
    """Answers one POST.

    The headers are checked first, so that many invalid requests are rejected before their body is
    sent. Then memory is reserved and the body is read. All else happens in a worker thread, so that
    the event loop can answer other requests. A photo waits for the network between two calls in
    worker threads, so that those of several requests can be computed together.

    Raises:
        RequestError: if the request is invalid, or the service too busy.
        seg_loss.InvalidInput: if no loss is defined for the inputs.
    """
    service: Service = request.app.state.service
    settings, workers = service.settings, service.workers

    options = parse(operation.options, request.query_params.multi_items())
    media_type = responses.choose_media_type(_accept(request), tuple(operation.encoders))
    if isinstance(options, EvaluateOptions):
        responses.check_can_hold_maps(media_type, options.maps)
    if isinstance(options, PredictOptions):
        # Every response contains the prediction.
        maps = [name for name in options.maps if name != "prediction"]
        responses.check_can_hold_maps(media_type, maps)
    content_type = request.headers.get("content-type", "")
    body_headers = body.parse_headers(request.headers, _max_body_bytes(content_type, settings))

    with ExitStack() as stack:
        reservation = stack.enter_context(workers.reserve(body_headers.length or 0))
        grow = partial(workers.grow, reservation)
        timings = _Timings()

        def begin() -> Inputs | Encoded:
            encoding, limit = body_headers.content_encoding, body_headers.limit
            decompressed = decompress(content, encoding, limit, grow)
            timings.end("wait")  # for a thread, and the decompression
            decoded = inputs.decode(decompressed, content_type, options, settings, grow)
            timings.end("decode")
            if service.batcher is not None and operations.needs_network(decoded, options):
                return decoded
            return finish(decoded)

        def finish(decoded: Inputs) -> Encoded:
            result = _compute(service, operation, decoded, options, reservation)
            timings.end("compute")
            encoded = operation.encoders[media_type](result)
            timings.end("encode")
            return encoded

        with service.announced(options):
            content = await body.read(request, body_headers, settings, grow)
            timings.end("read")
            deadline = workers.deadline()
            encoded = await workers.run(begin, reservation, deadline)
        if isinstance(encoded, Inputs):
            with_scores = partial(operations.with_scores, encoded, options)
            async with workers.until(deadline), _while_connected(request):
                scores = await _scores(service, encoded, options, grow)
            timings.end("network")
            encoded = await workers.run(lambda: finish(with_scores(*scores)), reservation, deadline)
        headers = {"Server-Timing": timings.header(), "Vary": "Accept"}
        # The response releases the reservation before its last bytes are sent.
        return ChunkedResponse(encoded, headers, stack.pop_all(), settings)


async def _scores(
    service: Service, decoded: Inputs, options: LossOptions, grow: inputs.Grow
) -> tuple[Tensor, Upsampling | None, tuple[str, ...]]:
    """Returns the network's scores of a photo, their upsampling, and the names of the classes.

    Raises:
        RequestError: if the photo is too large, or options do not fit it.
    """
    assert service.batcher is not None
    assert decoded.image is not None
    network = service.batcher.network
    operations.check_photo(decoded, options, service.settings, network.num_classes)
    grow(network.working_bytes(*decoded.image.shape[:2]))
    scores, upsampling = await service.batcher.scores(decoded.image)
    return scores, upsampling, network.class_names


@asynccontextmanager
async def _while_connected(request: Request) -> AsyncIterator[None]:
    """Ends the code within the context if the client disconnects.

    Args:
        request: the request, whose body has been read.

    Raises:
        Malformed: if the client disconnects. Its response is discarded.
    """
    try:
        async with asyncio.timeout(None) as end:
            watch = asyncio.create_task(_end_when_disconnected(request, end))
            try:
                yield
            finally:
                watch.cancel()
    except TimeoutError:
        got = "a closed one"
        raise Malformed("connection", "an open one until the response", got) from None


async def _end_when_disconnected(request: Request, end: asyncio.Timeout) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    end.reschedule(asyncio.get_running_loop().time())


def _compute(
    service: Service,
    operation: Operation,
    decoded: Inputs,
    options: LossOptions,
    reservation: Reservation,
) -> Result:
    """Computes an operation on the device of the service; returns the result on the CPU.

    Raises:
        TooLarge: if the tensors exceed the memory of the device or the limit of the service.
        Unavailable: if all requests together would exceed that limit.
        seg_loss.InvalidInput: if no loss is defined for the inputs.
    """
    devices.check_fits(service.device, operations.tensor_bytes(decoded, options))
    working_bytes = operations.working_bytes(decoded, options, service.device)
    service.workers.grow(reservation, working_bytes)
    with service.staging.borrow() as buffers:
        result = operation.run(decoded.copied(buffers.upload), options)
        operations.require_finite(decoded, options, result)
        # Nothing reads the logits any more, so that the gradient can take their memory.
        into = decoded.logits if isinstance(result, GradientResult) else None
        return results.copied(result, partial(buffers.download, into=into))


@dataclass(frozen=True)
class Resource:
    """One GET path.

    Attributes:
        path: the path.
        summary: what the API pages show.
        answer: the function that answers.
        content: the media types of the response, with their schemas.
        errors: the statuses of the errors that it may answer with, beside those of every path.
        parameters: the parameters in the path.
    """

    path: str
    summary: str
    answer: Callable[[Request], Any]
    content: Mapping[str, object]
    errors: tuple[int, ...] = ()
    parameters: tuple[Mapping[str, object], ...] = ()


def routes() -> list[BaseRoute]:
    """Returns the routes of all paths."""
    operations = (
        PathRoute(f"/v1/{operation.name}", _endpoint(operation), "POST") for operation in OPERATIONS
    )
    resources = (PathRoute(resource.path, resource.answer, "GET") for resource in RESOURCES)
    return [*operations, *resources]


@cache
def openapi_document() -> dict[str, Any]:
    """Returns the document at `/openapi.json`."""
    paths = {
        f"/v1/{operation.name}": {
            "post": openapi.operation(
                operation.name, operation.summary, operation.options, operation.encoders
            )
        }
        for operation in OPERATIONS
    }
    paths |= {
        resource.path: {
            "get": openapi.resource(
                "Resources" if resource.path.startswith("/v1") else "Service",
                resource.summary,
                resource.content,
                resource.errors,
                resource.parameters,
            )
        }
        for resource in RESOURCES
    }
    return openapi.document(paths)


def _endpoint(operation: Operation) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return await handle(request, operation)

    endpoint.__name__ = operation.name
    return endpoint


async def _palettes(request: Request) -> Response:
    return _negotiated_json(request, _palettes_json())


async def _palette(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in PALETTES:
        fix = did_you_mean(name, PALETTES)
        raise NotFound("palette", f"one of {', '.join(PALETTES)}", safe_repr(name), fix)
    return _negotiated_json(request, _palette_json(name))


async def _model(request: Request) -> Response:
    service: Service = request.app.state.service
    fields = None if service.batcher is None else service.batcher.network.fields()
    return _negotiated_json(request, results.json_bytes({"model": fields}))


async def _sample(request: Request) -> Response:
    responses.choose_media_type(_accept(request), [safetensors.MEDIA_TYPE])
    service: Service = request.app.state.service
    file = await service.sample.file(service.workers)
    headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
    if responses.has_copy(request.headers.getlist("if-none-match"), file.etag):
        return Response(status_code=304, headers=headers)
    encoded = Encoded(safetensors.MEDIA_TYPE, [memoryview(file.content)])
    return ChunkedResponse(encoded, headers, ExitStack(), service.settings)


async def _openapi(request: Request) -> Response:
    return _negotiated_json(request, _openapi_json())


@cache
def _palettes_json() -> bytes:
    return results.json_bytes({"palettes": [palette.fields() for palette in PALETTES.values()]})


@cache
def _palette_json(name: str) -> bytes:
    palette = PALETTES[name]
    return results.json_bytes({**palette.fields(), "colours": palette.colours.tolist()})


@cache
def _openapi_json() -> bytes:
    return results.json_bytes(openapi_document())


async def _livez(_: Request) -> Response:
    return _json(b'{"status": "live"}')


async def _readyz(request: Request) -> Response:
    service: Service = request.app.state.service
    if service.is_draining or not service.is_warm:
        reason = (
            "The service is stopping." if service.is_draining else "The kernels are being loaded."
        )
        raise Unavailable(reason, service.settings.retry_after_seconds)
    return _json(b'{"status": "ready"}')


async def _metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    text = await asyncio.to_thread(generate_latest, service.metrics.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _accept(request: Request) -> str | None:
    return ",".join(request.headers.getlist("accept")) or None


def _max_body_bytes(content_type: str, settings: Settings) -> int:
    if inputs.media_type(content_type) == json.MEDIA_TYPE:
        return min(settings.max_json_bytes, settings.max_body_bytes)
    return settings.max_body_bytes


def _negotiated_json(request: Request, content: bytes) -> Response:
    responses.choose_media_type(_accept(request), [json.MEDIA_TYPE])
    return _json(content)


def _json(content: bytes) -> Response:
    return Response(content, media_type=json.MEDIA_TYPE)


RESOURCES = (
    Resource(
        "/v1/palettes",
        "The names of the palettes",
        _palettes,
        openapi.json_content("Palettes"),
        (406,),
    ),
    Resource(
        "/v1/palettes/{name}",
        "Colours and class names",
        _palette,
        openapi.json_content("Palette"),
        (404, 406),
        (openapi.PALETTE_NAME,),
    ),
    Resource(
        "/v1/model",
        "The network that is served, or null",
        _model,
        openapi.json_content("Model"),
        (406,),
    ),
    Resource(
        "/v1/sample",
        "A street scene to try the service with: photo, labels and logits of 19 classes",
        _sample,
        {safetensors.MEDIA_TYPE: {}},
        (406, 503),
    ),
    Resource("/livez", "Whether the process answers", _livez, openapi.json_content("Status")),
    Resource(
        "/readyz",
        "Whether the service accepts requests",
        _readyz,
        openapi.json_content("Status"),
        (503,),
    ),
    Resource("/metrics", "Metrics for Prometheus", _metrics, openapi.PLAIN_TEXT),
    Resource("/openapi.json", "This document", _openapi, openapi.JSON_OBJECT, (406,)),
)


class _Timings:
    """The durations of the steps of a request, for the header `Server-Timing`."""

    def __init__(self) -> None:
        self._start = perf_counter()
        self._steps: list[str] = []

    def end(self, step: str) -> None:
        """Ends a step that began where the one before it ended."""
        now = perf_counter()
        self._steps.append(f"{step};dur={(now - self._start) * 1e3:.2f}")
        self._start = now

    def header(self) -> str:
        """Returns the value of the header, in milliseconds."""
        return ", ".join(self._steps)
