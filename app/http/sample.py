"""The scene of `images.sample` as one safetensors file, for `GET /v1/sample`.

It is made when it is first asked for, and kept: 5.6 MB.
"""

import asyncio
import json
from dataclasses import dataclass
from hashlib import sha256

import torch

from ..formats import safetensors
from ..images.sample import draw_sample
from ..images.street import PALETTE
from .pool import Workers

SIZE = 256, 512
"""The height and width of the scene."""
NUM_CLASSES = len(PALETTE.class_names)


@dataclass(frozen=True, eq=False)
class SampleFile:
    """A file, and the tag with which a client asks whether its copy is the same.

    Attributes:
        content: the bytes.
        etag: the value of the header `ETag`.
    """

    content: bytes
    etag: str


class Sample:
    """The sample of one service."""

    def __init__(self) -> None:
        self._file: SampleFile | None = None
        self._lock = asyncio.Lock()

    async def file(self, workers: Workers) -> SampleFile:
        """Returns the file, which a worker thread makes if there is none.

        Requests that come meanwhile wait for the same file.
        """
        async with self._lock:
            if self._file is None:
                self._file = await workers.run_without_limits(_make_file)
            return self._file


def _make_file() -> SampleFile:
    scene = draw_sample(*SIZE)
    tensors = {
        "image": torch.from_numpy(scene.photo),
        "labels": torch.from_numpy(scene.labels)[None],
        # Half as many bytes as float32.
        "logits": torch.from_numpy(scene.logits)[None].half(),
    }
    metadata = {
        "palette": PALETTE.name,
        "class_names": json.dumps(PALETTE.class_names),
        "ignore_index": f"{PALETTE.ignore_index}",
    }
    content = b"".join(safetensors.encode(tensors, metadata))
    return SampleFile(content, f'"{sha256(content).hexdigest()[:32]}"')
