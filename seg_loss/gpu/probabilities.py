"""Launches the softmax and its gradient."""

import torch
from torch import Tensor

from seg_loss._inputs import loss_dtype
from seg_loss.gpu import softmax as softmax_kernels
from seg_loss.gpu import tiling
from seg_loss.gpu.arguments import bits_of, compiler_options, plans, tile_tensors
from seg_loss.gpu.plan import Launch, current_stream, layout, on_device


def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature) along `axis`, like `logits` in dtype and strides."""
    return _softmax(logits, axis, temperature, None, None)


def softmax_gradient(
    grad_output: Tensor, logits: Tensor, weight: Tensor | None, axis: int, temperature: float
) -> Tensor:
    """Returns weight * p (g - sum_c g_c p_c) / temperature for g = grad_output."""
    if weight is not None:
        weight = weight.to(loss_dtype(logits)).contiguous()
    return _softmax(logits, axis, temperature, grad_output.to(logits.dtype), weight)


def _softmax(
    logits: Tensor,
    axis: int,
    temperature: float,
    grad_output: Tensor | None,
    weight: Tensor | None,
) -> Tensor:
    out = torch.empty_like(logits)
    if not out.numel():
        return out
    tensors = [logits, out, *([] if grad_output is None else [grad_output])]
    by_axis = [tensor.movedim(axis, 0).unsqueeze(0) for tensor in tensors]
    used = by_axis
    if tile_tensors(*by_axis) is None:
        used = [tensor.contiguous() for tensor in by_axis]
    with on_device(logits):
        key = "softmax", logits.device, temperature, layout(weight), *map(layout, used)
        launch: Launch = plans.get(key, lambda: _plan_softmax(used, temperature))
        grad_output = used[2] if len(used) > 2 else None
        launch(current_stream(logits), used[0], used[1], grad_output, weight)
        if used[1] is not by_axis[1]:
            by_axis[1].copy_(used[1])
    return out


def _plan_softmax(tensors: list[Tensor], temperature: float) -> Launch:
    tiles = tile_tensors(*tensors)
    assert tiles is not None
    above: tuple[int, ...] = (0,) * 5
    if len(tensors) > 2:
        above = tiles.strides[2]
        tiles = tiles.within(tiling.SOFTMAX_GRADIENT_REGISTERS, tensors[0].dtype.itemsize)
    scalars = (
        *tiles.strides[0],
        *tiles.strides[1],
        *above,
        tiles.pixels,
        tiles.rows,
        tiles.columns,
        bits_of(1 / temperature),
    )
    return Launch(
        softmax_kernels.softmax_kernel,
        tiles.tiles,
        scalars,
        C=tiles.num_classes,
        BLOCK_C=tiles.shape.classes,
        BLOCK_P=tiles.shape.pixels,
        IN_REGISTERS=tiles.num_classes <= tiling.MAX_CLASSES_IN_REGISTERS,
        AXES=tiles.axes,
        HAS_TEMPERATURE=temperature != 1,
        **compiler_options(tiles.shape, tensors[0]),
    )
