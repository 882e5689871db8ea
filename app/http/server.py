"""uvicorn with the settings of the service: what `seg-loss serve` runs.

At the first signal to stop, `/readyz` answers 503 from then on, and the service serves for
`drain_seconds` more. A load balancer can use this time to send requests elsewhere before
connections are refused.
"""

import asyncio
from copy import deepcopy
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG

from ..settings import Settings
from .app import create_app
from .protocol import HttpProtocol
from .v1 import Service


class Server(uvicorn.Server):
    """A uvicorn server that drains before it stops."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._service: Service = app.state.service
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_config=_log_config(),
                log_level=settings.log_level,
                http=HttpProtocol,
                ws="none",
                lifespan="on",
                server_header=False,
                timeout_graceful_shutdown=settings.shutdown_timeout_seconds,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops after `drain_seconds`, or immediately at a second signal."""
        wait = self._service.settings.drain_seconds
        if self._service.is_draining or not wait:
            self._service.is_draining = True
            super().handle_exit(sig, frame)
            return
        self._service.is_draining = True
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(loop.call_later, wait, super().handle_exit, sig, frame)


def serve(settings: Settings) -> None:
    """Serves until a signal stops the process."""
    Server(create_app(settings), settings).run()


def _log_config() -> dict[str, Any]:
    """Returns uvicorn's configuration, with all lines on stderr and the service's logger added."""
    config = deepcopy(LOGGING_CONFIG)
    config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    config["loggers"]["seg_loss_app"] = {
        "handlers": ["default"],
        "level": "INFO",
        "propagate": False,
    }
    return config
