"""Computes the network's scores of several requests together.

Photos, and the tiles of larger ones, wait in one queue. Those of the same size are computed as one
batch in a worker thread, one batch at a time, so that the memory of the network does not depend on
the number of requests. Photos of different sizes are not padded to a common size: their scores
would depend on the batch.

A request has at most one batch of tiles in the queue, so that a large photo does not make others
wait for all of its tiles. If a batch fails, each of its tiles is computed alone, and only the
requests whose own tiles fail get the error. Tiles of requests that have ended are dropped.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice

from torch import Tensor

from seg_loss.upsampling import Upsampling

from ..network import Network, Photo, reason_of
from ..settings import Settings
from .pool import Workers

_log = logging.getLogger("seg_loss_app")

_Scores = tuple[Tensor, Upsampling | None]


@dataclass(eq=False)
class _Tile:
    """A photo or tile in the queue.

    Attributes:
        pixels: the pixels.
        arrival: the time of the event loop when it came.
        result: its scores; cancelled if the request has ended.
    """

    pixels: Photo
    arrival: float
    result: asyncio.Future[_Scores]


class Batcher:
    """The queue in front of a network.

    Args:
        network: the network.
        workers: the threads that compute.
        settings: how long a tile waits for others.
        observe: is called with the number of tiles of each batch.

    Attributes:
        network: the network.
    """

    def __init__(
        self,
        network: Network,
        workers: Workers,
        settings: Settings,
        observe: Callable[[float], None],
    ) -> None:
        self.network = network
        self._workers = workers
        self._wait_seconds = settings.batch_wait_seconds
        self._observe = observe
        self._queue: list[_Tile] = []
        self._num_announced = 0
        self._arrival = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Lets the queue wait for the photo of a request that is still read."""
        self._num_announced += 1
        try:
            yield
        finally:
            self._num_announced -= 1
            self._arrival.set()

    async def scores(self, photo: Photo) -> _Scores:
        """Returns the scores [1,C,h,w] of a photo, and their upsampling.

        Raises:
            IllPosed: if the network cannot process the photo.
            Unavailable: if the GPU has too little free memory.
        """
        mosaic = self.network.mosaic(photo)
        indices = iter(mosaic.indices)
        while index := next(indices, None):
            height, width = mosaic.tile(index).shape[:2]
            group = [index, *islice(indices, self.network.max_batch(height, width) - 1)]
            waiting = [self._put(mosaic.tile(index)) for index in group]
            try:
                for index, result in zip(group, waiting, strict=True):
                    # Adding takes a few milliseconds for the scores of a large tile.
                    await asyncio.to_thread(mosaic.add, index, *await result)
            finally:
                for result in waiting:
                    # asyncio reports errors that nobody has asked for.
                    if not result.cancel() and not result.cancelled():
                        result.exception()
        return mosaic.finish()

    async def close(self) -> None:
        """Cancels all that waits."""
        for tile in self._queue:
            tile.result.cancel()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def _put(self, pixels: Photo) -> asyncio.Future[_Scores]:
        loop = asyncio.get_running_loop()
        tile = _Tile(pixels, loop.time(), loop.create_future())
        self._queue.append(tile)
        self._arrival.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return tile.result

    async def _work(self) -> None:
        """Computes batches until the queue is empty."""
        while self._queue:
            await self._wait_for_others()
            batch = self._next_batch()
            try:
                if batch:
                    await self._compute(batch)
            finally:
                for tile in batch:
                    tile.result.cancel()  # has no effect unless `close` has ended the computation

    async def _wait_for_others(self) -> None:
        """Waits while requests are read whose photos may fit the batch, for some milliseconds."""
        deadline = self._queue[0].arrival + self._wait_seconds
        max_batch = self.network.max_batch(*self._queue[0].pixels.shape[:2])
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self._num_announced and len(self._queue) < max_batch:
                    self._arrival.clear()
                    await self._arrival.wait()

    def _next_batch(self) -> list[_Tile]:
        """Takes the oldest tile out of the queue, with others of the same size."""
        queue = [tile for tile in self._queue if not tile.result.done()]
        if not queue:
            self._queue = []
            return []
        shape = queue[0].pixels.shape
        alike = [tile for tile in queue if tile.pixels.shape == shape]
        batch = alike[: self.network.max_batch(*shape[:2])]
        self._queue = [tile for tile in queue if tile not in batch]
        return batch

    async def _compute(self, batch: list[_Tile]) -> None:
        self._observe(len(batch))
        function = partial(self.network.scores_of, [tile.pixels for tile in batch])
        try:
            scores, upsampling = await self._workers.run_without_limits(function)
        except Exception as error:
            if len(batch) > 1:
                for tile in batch:
                    await self._compute([tile])
            elif not batch[0].result.done():
                height, width = batch[0].pixels.shape[:2]
                _log.warning("No scores of a photo %d x %d: %s", height, width, reason_of(error))
                batch[0].result.set_exception(error)
            return
        for tile, tile_scores in zip(batch, scores, strict=True):
            if not tile.result.done():
                tile.result.set_result((tile_scores, upsampling))
