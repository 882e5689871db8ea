"""`create_app` assembles the service: settings, workers, routes, error handlers and middleware.

`seg-loss serve` runs it with uvicorn, in `http.server`. A request enters in `http.middleware` and
is answered in `http.v1`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import perf_counter

import torch
from fastapi import FastAPI

import seg_loss
from seg_loss.constants import MAPS

from .. import devices, network
from ..settings import PREFIX, Settings
from . import pages, problems, v1
from .batching import Batcher
from .middleware import Metrics, ObservabilityMiddleware
from .pool import Workers
from .sample import NUM_CLASSES, SIZE
from .staging import StagingPool
from .v1 import Service

_log = logging.getLogger("seg_loss_app")
_SETTINGS = (f"{PREFIX}MODEL", f"{PREFIX}NETWORK")
_MAX_PAGE_CLASSES = 256
"""Of more classes a few pixels are evaluated: the memory of a GPU may be small."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Returns a new service; two of them in one process share nothing but the kernels.

    Raises:
        seg_loss.InvalidInput: if the settings name a device that cannot be used, or a checkpoint
            that cannot be served.
    """
    settings = settings or Settings()
    choice = devices.choose(settings.device, f"{PREFIX}DEVICE")
    device = choice.device
    workers = Workers(settings)
    metrics = Metrics(workers, device)
    staging = StagingPool(device, settings.workers)
    batcher = None
    if settings.model != "none":
        served = network.load(settings.model, settings.factory, device, settings, _SETTINGS)
        batcher = Batcher(served, workers, settings, metrics.batch_photos.observe)
    service = Service(settings, workers, metrics, device, staging, batcher)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        model = devices.model(device)
        _log.info("Computing on %s.", f"{device} ({model})" if model else device)
        if choice.warning:
            _log.warning("%s", choice.warning)
        if batcher is not None:
            name, num_classes = batcher.network.name, batcher.network.num_classes
            _log.info("Serving %s with %d classes from %s.", name, num_classes, settings.model)
        # Compiling can take seconds. Meanwhile /livez must be answered.
        warm_up = asyncio.create_task(_warm_up(service))
        try:
            yield
        finally:
            warm_up.cancel()
            with suppress(asyncio.CancelledError):
                await warm_up
            if batcher is not None:
                await batcher.close()
            workers.close()

    app = FastAPI(
        title="seg-loss",
        summary="The pixel-wise softmax loss of semantic segmentation",
        version=seg_loss.__version__,
        lifespan=lifespan,
        routes=[*v1.routes(), *pages.routes()],
        openapi_url=None,  # `v1` has a route of its own
        docs_url=None,  # FastAPI's pages load scripts from other sites
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.openapi = v1.openapi_document  # type: ignore[method-assign]
    app.add_middleware(ObservabilityMiddleware, metrics=service.metrics)
    problems.install_handlers(app)
    return app


async def _warm_up(service: Service) -> None:
    _log.info("Loading the kernels. The first time on a machine, they are compiled.")
    start = perf_counter()
    counts = _warm_class_counts(service)
    is_cpu = service.device.type == "cpu"
    calls: list[Callable[[], object]] = [
        partial(seg_loss.warm_up, service.device, num_classes=num_classes) for num_classes in counts
    ]
    # A person waits for the answers to a page: on the CPU its kernels follow the first number. The
    # first of them are those of the sample.
    of_pages = [
        partial(_evaluate_as_pages_do, service.device, num_classes)
        for num_classes in sorted(counts, key=lambda count: count != NUM_CLASSES)
    ]
    end = min(1, len(calls)) if is_cpu else len(calls)
    calls[end:end] = of_pages
    try:
        for call in calls:
            if service.is_warm:
                # In a thread of its own, so that no request waits for it: a photo, which is passed
                # to the workers three times, would wait for three numbers of classes.
                await asyncio.to_thread(call)
            else:
                await service.workers.run_without_limits(call)
            # A kernel for the CPU compiles in a second or two, so that the first request for
            # another number of classes may wait for it. One for a GPU takes longer.
            if is_cpu and not service.is_warm:
                _become_ready(service, start)
    except Exception:
        service.is_warm = False
        _log.exception("Loading the kernels failed. /readyz will answer 503 from now on.")
    else:
        if not service.is_warm:
            _become_ready(service, start)


def _evaluate_as_pages_do(device: torch.device, num_classes: int) -> None:
    """Evaluates logits with all maps, as the page at `/` asks for them.

    The page sends its sample in float16; files are in float16 or float32.
    """
    size = (8, 8) if device.type == "cpu" or num_classes > _MAX_PAGE_CLASSES else SIZE
    labels = torch.zeros((1, *size), dtype=torch.uint8, device=device)
    for dtype in (torch.float16, torch.float32):
        logits = torch.zeros((1, num_classes, *size), dtype=dtype, device=device)
        seg_loss.evaluate(logits, labels, maps=MAPS)


def _warm_class_counts(service: Service) -> tuple[int, ...]:
    counts = service.settings.warm_class_counts
    if service.batcher is None or not counts:
        return counts
    return tuple(dict.fromkeys((service.batcher.network.num_classes, *counts)))


def _become_ready(service: Service, start: float) -> None:
    service.is_warm = True
    _log.info("Ready. Loading the kernels took %.1f s.", perf_counter() - start)
