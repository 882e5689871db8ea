"""Launches the kernel of `predict`: one pass over the scores, which writes the maps.

It needs no memory beside the maps, and the host does not wait for the device.
"""

from typing import Any

import triton.language as tl
from torch import Tensor

from seg_loss.constants import PREDICTION_MAPS
from seg_loss.gpu import predict as predict_kernels
from seg_loss.gpu import tiling
from seg_loss.gpu.arguments import (
    bits_of,
    compiler_options,
    grid_tables,
    plans,
    tile_logits,
    tile_upsampled,
)
from seg_loss.gpu.plan import Launch, current_stream, layout, on_device
from seg_loss.upsampling import Axes


def predict(scores: Tensor, axes: Axes | None, temperature: float, maps: dict[str, Tensor]) -> None:
    """Fills the maps [N, *spatial] of the scores [N, C, *spatial], or of upsampled scores."""
    if axes is None and tile_logits(scores, None, merges=False) is None:
        scores = scores.contiguous()
    written = [maps.get(name) for name in PREDICTION_MAPS]
    key = "predict", scores.device, layout(scores), axes, temperature, *map(layout, written)
    with on_device(scores):
        launch: Launch = plans.get(key, lambda: _plan(scores, axes, temperature, written))
        tables = (None,) * 4 if axes is None else grid_tables(scores, axes)
        launch(current_stream(scores), scores, *written, *tables)


def _plan(
    scores: Tensor, axes: Axes | None, temperature: float, written: list[Tensor | None]
) -> Launch:
    if axes is None:
        tiles = tile_logits(scores, None, merges=False)
        assert tiles is not None
    else:
        tiles = tile_upsampled(scores, axes)
    num_classes = scores.shape[1]
    if written[-1] is not None:
        tiles = tiles.within(tiling.MAPS_REGISTERS, scores.dtype.itemsize)
    shape = tiles.shape
    is_prediction = all(values is None for values in written[1:])
    options: dict[str, Any] = {
        "C": num_classes,
        "BLOCK_C": shape.classes,
        "BLOCK_P": shape.pixels,
        "AXES": tiles.axes,
        **compiler_options(shape, scores),
    }
    kernel = predict_kernels.predict_by_blocks_kernel
    is_large = num_classes > tiling.MAX_CLASSES_IN_REGISTERS
    if not (is_large or (is_prediction and axes is not None)):
        kernel = predict_kernels.predict_kernel
        options["HAS_ALL"] = tiles.pixels % shape.pixels == 0
        options["INDEX"] = tl.int64 if tiles.is_wide else tl.int32
    scalars = (
        tiles.pixels,
        tiles.tiles,
        tiles.rows,
        tiles.columns,
        *tiles.strides[0],
        bits_of(1 / temperature),
    )
    return Launch(kernel, tiles.num_images * tiles.tiles, scalars, **options)
