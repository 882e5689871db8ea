"""The service: `create_app` puts settings, workers, routes and problems together.

`seg-loss serve` runs it with uvicorn (`app.server`). The way of a request begins in `app.routes`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

import seg_loss
from seg_loss._version import __version__

from ..settings import Settings
from . import problems, v1
from .middleware import Figures, Observation
from .pool import Workers
from .v1 import Service

_log = logging.getLogger("seg_loss_app")


def create_app(settings: Settings | None = None) -> FastAPI:
    """A service of its own: two in one process share nothing but the kernels."""
    settings = settings or Settings()
    workers = Workers(settings)
    service = Service(settings, workers, Figures(workers))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Beside the first answers of /livez, not before them: compiling takes seconds when cold.
        warming = asyncio.create_task(_warm_up(service))
        try:
            yield
        finally:
            warming.cancel()
            with suppress(asyncio.CancelledError):
                await warming
            workers.close()

    app = FastAPI(
        title="seg-loss",
        summary="The pixel-wise softmax loss of semantic segmentation",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(v1.router())
    app.add_middleware(Observation, figures=service.figures)
    problems.install(app)
    return app


async def _warm_up(service: Service) -> None:
    _log.info("Loading the kernels; on a machine that never did, this takes a while.")
    try:
        await service.workers.run_at_start(seg_loss.warm_up)
    except Exception:
        _log.exception("The kernels could not be loaded: /readyz will go on to say no.")
    else:
        service.is_warm = True
        _log.info("Ready.")
