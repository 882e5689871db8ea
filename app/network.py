"""A network that computes the scores of photos: from a checkpoint, in tiles.

    photo -> tiles -> preprocessing -> network -> scores of the tiles -> scores of the photo

The network may have scores of lower resolution. They are put together as they are, so that the
upsampled scores, C times as large as the photo, are never stored: `operations` hands the scores and
their upsampling to `seg_loss`.

A photo that is larger than a tile is cut into tiles that overlap. Each begins at a multiple of
`ALIGNMENT` pixels and of the network's stride, so that the scores of a tile lie where those of the
whole photo would. Of an overlap, the outer quarters are cut off; between them, the scores of one
tile fade into those of the next. Where the network reads less than a quarter of the overlap to each
side of a pixel, its scores are those of the whole photo. Otherwise they differ, without a seam.

Nothing in a checkpoint is unpickled, and no name in it is imported.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seg_loss import Deconvolution, InvalidInput
from seg_loss.upsampling import Upsampling

from . import devices
from .errors import IllPosed
from .models_import import import_models
from .preprocessing import PREPROCESSINGS, Preprocessing
from .settings import Settings, counted_pixels

Photo = npt.NDArray[np.uint8]
"""uint8 [H,W,3], RGB."""

ALIGNMENT = 32
"""Tiles begin at multiples of this number of pixels, the factor by which VGG16 and the usual
backbones reduce a photo."""

_PROBE_PIXELS = 64
"""Height and width of the photo with which a network is tried when it is loaded."""


class ScoreModule(Protocol):
    """The network of `models.checkpoints.load_network`."""

    def scores(self, image: Tensor) -> tuple[Tensor, Upsampling | None]:
        """Returns scores [N,C,h,w] of photos [N,3,H,W], and what makes them as large."""


@dataclass(frozen=True)
class Span:
    """The pixels of a tile along one axis.

    Attributes:
        begin, end: the first pixel, and the one behind the last.
        fade_in: the first and last position between which the tile replaces the one before it;
            None for the first tile.
        fade_out: the same for the tile behind it; None for the last tile.
    """

    begin: int
    end: int
    fade_in: tuple[float, float] | None
    fade_out: tuple[float, float] | None


def spans_of(length: int, side: int, overlap: int, alignment: int) -> tuple[Span, ...]:
    """Returns the spans of the tiles along an axis.

    Args:
        length: the number of pixels of the photo.
        side: the number of pixels of a tile. The last tile may have fewer.
        overlap: the least number of pixels that two tiles share.
        alignment: each tile begins at a multiple of it.
    """
    step = max(alignment, (side - overlap) // alignment * alignment)
    side = max(side, step + overlap)
    begins = [0]
    while begins[-1] + side < length:
        begins.append(begins[-1] + step)
    # Ramps must not meet, however much the tiles overlap. Without an overlap, they lie between the
    # last pixel of a tile and the first of the next.
    half = max(0.25, min((side - step) / 4, step / 2))
    middles = [begin + (side - step) / 2 - 0.5 for begin in begins[1:]]
    fades = [(middle - half, middle + half) for middle in middles]
    return tuple(
        Span(begin, min(begin + side, length), fade_in, fade_out)
        for begin, fade_in, fade_out in zip(begins, [None, *fades], [*fades, None], strict=True)
    )


class Network:
    """A network on a device, with the preprocessing of its photos.

    Attributes:
        name: the name of the network, as the checkpoint has it.
        preprocessing: the name of the preprocessing.
        num_classes: C.
        class_names: the names of the classes; none if the checkpoint has none.
        device: where it computes.
        stride: the number of pixels from one score to the next.
    """

    def __init__(
        self,
        module: ScoreModule,
        device: torch.device,
        settings: Settings,
        *,
        name: str,
        num_classes: int,
        preprocessing: str,
        class_names: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.preprocessing = preprocessing
        self.num_classes = num_classes
        self.class_names = tuple(class_names)
        self.device = device
        self._module = module
        self._preprocessing: Preprocessing = PREPROCESSINGS[preprocessing]
        self._settings = settings
        probe = np.zeros((_PROBE_PIXELS, _PROBE_PIXELS, 3), dtype=np.uint8)
        (scores,), upsampling = self.scores_of([probe])
        if bool((scores.isnan() | scores.isposinf()).any()):
            fix = "The network has diverged, or the file is damaged."
            raise InvalidInput(name, "finite scores of a black photo", "NaN or infinity", fix)
        num_rows = scores.shape[1]
        self.stride = max(1, round(_PROBE_PIXELS / num_rows))
        if isinstance(upsampling, Deconvolution):
            self.stride = upsampling.stride
        self._num_more_rows = max(0, num_rows - _PROBE_PIXELS // self.stride)

    def fields(self) -> dict[str, object]:
        """Returns what clients may know as JSON fields."""
        settings = self._settings
        return {
            "network": self.name,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing,
            "max_photo_pixels": settings.max_photo_pixels,
            "tile_side_pixels": settings.tile_side_pixels,
            "tile_overlap_pixels": settings.tile_overlap_pixels,
        }

    def mosaic(self, photo: Photo) -> "Mosaic":
        """Returns the tiles of a photo, to be filled with their scores."""
        return Mosaic(photo, self)

    def spans(self, length: int) -> tuple[Span, ...]:
        """Returns the spans of the tiles along an axis of this many pixels."""
        settings = self._settings
        alignment = math.lcm(ALIGNMENT, self.stride)
        return spans_of(length, settings.tile_side_pixels, settings.tile_overlap_pixels, alignment)

    def max_batch(self, height: int, width: int) -> int:
        """Returns how many tiles of this size are computed at a time."""
        return max(1, self._settings.max_batch_pixels // counted_pixels(height, width))

    def working_bytes(self, height: int, width: int) -> int:
        """Returns the bytes of the scores of a photo, and of those of its tiles."""
        rows, columns = (
            math.ceil(length / self.stride) + self._num_more_rows for length in (height, width)
        )
        return 2 * 4 * self.num_classes * rows * columns

    def scores_of(self, photos: Sequence[Photo]) -> tuple[list[Tensor], Upsampling | None]:
        """Returns the scores [C,h,w] of photos of equal size, float32 on the CPU.

        Raises:
            IllPosed: if the network cannot process photos of this size.
        """
        height, width = photos[0].shape[:2]
        images = torch.stack([self._preprocessing.to_input(photo) for photo in photos])
        try:
            with torch.no_grad():
                scores, upsampling = self._module.scores(images.to(self.device))
        except Exception as error:
            # A network of the user may raise anything: timm's raise AssertionError for a size.
            if isinstance(error, (InvalidInput, MemoryError)) or _is_out_of_memory(error):
                raise
            expected = f"a size that the network {self.name} can process"
            raise IllPosed("image", expected, f"{height} x {width}") from error
        expected_shape = (len(photos), self.num_classes)
        if scores.ndim != 4 or tuple(scores.shape[:2]) != expected_shape:
            expected = f"scores [{len(photos)},{self.num_classes},h,w]"
            raise InvalidInput(self.name, expected, f"shape {tuple(scores.shape)}")
        if upsampling is None and scores.shape[2:] != (height, width):
            expected = f"scores of {height} x {width}, or an upsampling to that size"
            raise InvalidInput(self.name, expected, f"{scores.shape[2]} x {scores.shape[3]}")
        return list(scores.float().cpu()), upsampling

    def scores(self, photo: Photo) -> tuple[Tensor, Upsampling | None]:
        """Returns the scores [1,C,h,w] of a photo, and their upsampling.

        Raises:
            IllPosed: if the network cannot process the photo, or its tiles.
        """
        mosaic = self.mosaic(photo)
        for index in mosaic.indices:
            (scores,), upsampling = self.scores_of([mosaic.tile(index)])
            mosaic.add(index, scores, upsampling)
        return mosaic.finish()


class Mosaic:
    """The scores of a photo, put together from those of its tiles.

    Attributes:
        indices: the tiles, in the order in which their scores must be added.
    """

    def __init__(self, photo: Photo, network: Network) -> None:
        self._photo = photo
        self._network = network
        height, width = photo.shape[:2]
        self._spans = network.spans(height), network.spans(width)
        rows, columns = (len(spans) for spans in self._spans)
        # The last tile comes first: it says how many scores there are along each axis.
        self.indices = tuple(
            (row, column) for row in reversed(range(rows)) for column in reversed(range(columns))
        )
        self._total: Tensor | None = None
        self._upsampling: Upsampling | None = None

    def tile(self, index: tuple[int, int]) -> Photo:
        """Returns the pixels of a tile, a view of the photo."""
        rows, columns = self._of(index)
        return self._photo[rows.begin : rows.end, columns.begin : columns.end]

    def add(self, index: tuple[int, int], scores: Tensor, upsampling: Upsampling | None) -> None:
        """Adds the scores [C,h,w] of a tile.

        Raises:
            IllPosed: if they do not fit those of the tiles before it.
        """
        if len(self.indices) == 1:
            self._total, self._upsampling = scores, upsampling
            return
        stride = self._network.stride
        offsets = [span.begin // stride for span in self._of(index)]
        ends = [offset + count for offset, count in zip(offsets, scores.shape[1:], strict=True)]
        if self._total is None:
            self._total = scores.new_zeros(len(scores), *ends)
            self._upsampling = upsampling
        weights = []
        for axis, span in enumerate(self._of(index)):
            size = self._total.shape[axis + 1]
            positions = self._positions(axis, span.begin, scores.shape[axis + 1])
            if span.fade_out is None:
                reaches = ends[axis] == size
            else:
                reaches = float(positions[-1]) + stride >= span.fade_out[1]
            if not reaches or ends[axis] > size or upsampling != self._upsampling:
                raise self._no_tiles_error()
            weights.append(_weights(span, positions))
        rows, columns = (_support(axis_weights) for axis_weights in weights)
        target = self._total[
            :,
            offsets[0] + rows.start : offsets[0] + rows.stop,
            offsets[1] + columns.start : offsets[1] + columns.stop,
        ]
        weight = weights[0][rows, None] * weights[1][columns]
        target += scores[:, rows, columns] * weight

    def finish(self) -> tuple[Tensor, Upsampling | None]:
        """Returns the scores [1,C,h,w] of the photo, and their upsampling, after all tiles."""
        assert self._total is not None
        return self._total[None], self._upsampling

    def _of(self, index: tuple[int, int]) -> tuple[Span, Span]:
        return self._spans[0][index[0]], self._spans[1][index[1]]

    def _positions(self, axis: int, begin: int, count: int) -> Tensor:
        """Returns the position in the photo of each score of a tile that begins at a pixel."""
        stride = self._network.stride
        first = (stride - 1) / 2
        upsampling = self._upsampling
        if isinstance(upsampling, Deconvolution):
            assert upsampling.kernel_size is not None
            assert isinstance(upsampling.crop, tuple)
            first = (upsampling.kernel_size - 1) / 2 - upsampling.crop[axis]
        return begin + first + stride * torch.arange(count, dtype=torch.float32)

    def _no_tiles_error(self) -> IllPosed:
        side = max(span.end - span.begin for spans in self._spans for span in spans)
        height, width = self._photo.shape[:2]
        expected = f"at most {side} x {side}, since scores of {self._network.name} fit no tiles"
        return IllPosed("image", expected, f"{height} x {width}", "Send a smaller photo.")


def load(
    path: str,
    factory: str | None,
    device: torch.device,
    settings: Settings,
    where: tuple[str, str],
) -> Network:
    """Returns the network of a checkpoint on a device, after a first computation.

    Args:
        path: a .safetensors or .caffemodel file.
        factory: the "package.module:callable" that makes the network; None if `models` has it.
        device: where it computes.
        settings: the sizes of tiles and batches.
        where: the flags or settings that hold path and factory, for messages.

    Raises:
        seg_loss.InvalidInput: if the file cannot be read, or its network cannot compute.
    """
    try:
        module, spec = import_models("checkpoints").load_network(Path(path), network=factory)
        return Network(
            module.to(device),
            device,
            settings,
            name=spec.network,
            num_classes=spec.num_classes,
            preprocessing=spec.preprocessing,
            class_names=spec.class_names,
        )
    except InvalidInput as error:
        fix = error.fix.replace("network=", f"{where[1]}=") if error.fix else ""
        raise InvalidInput(f"{where[0]}: {error.where}", error.expected, error.got, fix) from error
    except OSError as error:
        got = f"{path}: {error.strerror or error}"
        raise InvalidInput(where[0], "a checkpoint that can be read", got) from error
    except Exception as error:
        # A network of the user may raise anything.
        side = _PROBE_PIXELS
        expected = f"a network that computes a photo of {side} x {side}"
        raise InvalidInput(where[0], expected, reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """Returns type and first line of an error, or of the one that a network has raised."""
    cause = error.__cause__ or error
    text = f"{type(cause).__name__}: {cause}"
    return text.partition("\n")[0].rstrip(".: ")


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and devices.is_out_of_memory(error)


def _weights(span: Span, positions: Tensor) -> Tensor:
    """Returns the weight of the scores at these positions of a photo, from 0 to 1."""
    weights = torch.ones_like(positions)
    if span.fade_in is not None:
        begin, end = span.fade_in
        weights *= ((positions - begin) / (end - begin)).clamp(0, 1)
    if span.fade_out is not None:
        begin, end = span.fade_out
        weights *= 1 - ((positions - begin) / (end - begin)).clamp(0, 1)
    return weights


def _support(weights: Tensor) -> slice:
    """Returns the indices at which weights are not 0, which are adjacent."""
    indices = weights.nonzero().flatten().tolist()
    return slice(indices[0], indices[-1] + 1) if indices else slice(0, 0)
