"""The GPU kernel of the softmax and of its gradient."""

import triton
import triton.language as tl

from seg_loss.gpu.cross_entropy import spatial_offsets
from seg_loss.gpu.math import BLOCKS_PER_SUM, LN_2, LOG2_E, float_from_bits

_LOG2_E_LOW = tl.constexpr(1.925963033500946e-08)  # the part of log2(e) that float32 drops


@triton.jit
def _exp(d, IS_HALF: tl.constexpr):
    """Returns e**d for d <= 0 or NaN.

    The hardware computes 2**x, and rounding d log2(e) costs |d| ulps. Half-precision logits have a
    larger error than that. For float32 the rounding error is added back.
    """
    if d.dtype == tl.float64:
        return tl.exp(d)
    elif IS_HALF:
        return tl.exp2(d * LOG2_E)
    else:
        d = tl.maximum(d, -200.0, propagate_nan=tl.PropagateNan.ALL)  # inf - inf below is NaN
        p = d * LOG2_E
        error = tl.fma(d, _LOG2_E_LOW, tl.fma(d, LOG2_E, -p))
        e = tl.exp2(p)
        return tl.fma(e, error * LN_2, e)


@triton.jit
def _scale_logits(x, inverse_temperature, dtype: tl.constexpr, HAS_TEMPERATURE: tl.constexpr):
    """Returns x / T, rounded.

    A plain product would be contracted with the subtraction of the maximum. The maximum minus
    itself would then be rounded on one side only, and would not be 0.
    """
    x = x.to(dtype)
    if HAS_TEMPERATURE:
        x = tl.fma(x, inverse_temperature, tl.zeros_like(x))
    return x


@triton.jit
def _load(source, at, classes, class_stride, inside, C: tl.constexpr, other):
    """Loads [classes, pixels] of a tensor; `other` beyond its classes and pixels."""
    mask = (classes < C)[:, None] & inside[None, :]
    return tl.load(source + classes.to(tl.int64)[:, None] * class_stride + at, mask, other)


@triton.jit
def _store(target, at, classes, class_stride, inside, C: tl.constexpr, values):
    """Stores [classes, pixels] of a tensor, rounded to its dtype."""
    mask = (classes < C)[:, None] & inside[None, :]
    offset = target + classes.to(tl.int64)[:, None] * class_stride + at
    tl.store(offset, values.to(target.dtype.element_ty), mask)


@triton.jit
def softmax_kernel(
    logits,
    probabilities,
    grad_output,
    weight,
    logits_image_stride,
    logits_class_stride,
    logits_slice_stride,
    logits_row_stride,
    logits_column_stride,
    probabilities_image_stride,
    probabilities_class_stride,
    probabilities_slice_stride,
    probabilities_row_stride,
    probabilities_column_stride,
    grad_image_stride,
    grad_class_stride,
    grad_slice_stride,
    grad_row_stride,
    grad_column_stride,
    pixels,
    rows,
    columns,
    inverse_temperature,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    AXES: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
):
    """Computes p = softmax(logits / temperature), or its gradient.

    For `grad_output` g and `weight` w, contiguous [pixels] or None, the gradient is
    w p (g - sum_c g_c p_c) / temperature. Where w is 0 it is 0, whatever the logits are.
    The tensors are one image: the batch is among the pixels.
    """
    dtype: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    IS_HALF: tl.constexpr = logits.dtype.element_ty.primitive_bitwidth == 16
    K: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < pixels
    c = tl.arange(0, BLOCK_C)
    strides = (logits_slice_stride, logits_row_stride, logits_column_stride)
    at = spatial_offsets(pixel, rows, columns, strides, AXES)[None, :]
    strides = (probabilities_slice_stride, probabilities_row_stride, probabilities_column_stride)
    to = spatial_offsets(pixel, rows, columns, strides, AXES)[None, :]
    inverse_temperature = float_from_bits(inverse_temperature, dtype)
    blocks = ()
    m = tl.full((BLOCK_C, BLOCK_P), -float("inf"), dtype)
    if IN_REGISTERS:
        for k in tl.static_range(K):
            x = _load(logits, at, c + k * BLOCK_C, logits_class_stride, inside, C, -float("inf"))
            blocks += (_scale_logits(x, inverse_temperature, dtype, HAS_TEMPERATURE),)
            m = tl.maximum(m, blocks[k])
    else:
        for k in range(K):
            x = _load(logits, at, c + k * BLOCK_C, logits_class_stride, inside, C, -float("inf"))
            m = tl.maximum(m, _scale_logits(x, inverse_temperature, dtype, HAS_TEMPERATURE))
    m = tl.max(m, axis=0)
    exponentials = ()
    s = tl.zeros((BLOCK_P,), dtype)
    if IN_REGISTERS:
        total = tl.zeros((BLOCK_C, BLOCK_P), dtype)
        for k in tl.static_range(K):
            exponentials += (_exp(blocks[k] - m[None, :], IS_HALF),)
            total += exponentials[k]
        s += tl.sum(total, axis=0)
    else:
        for first in range(0, K, BLOCKS_PER_SUM):
            total = tl.zeros((BLOCK_C, BLOCK_P), dtype)
            for k in range(first, tl.minimum(first + BLOCKS_PER_SUM, K)):
                classes = c + k * BLOCK_C
                x = _load(logits, at, classes, logits_class_stride, inside, C, -float("inf"))
                x = _scale_logits(x, inverse_temperature, dtype, HAS_TEMPERATURE)
                total += _exp(x - m[None, :], IS_HALF)
            s += tl.sum(total, axis=0)
    factor = 1 / s
    dot = tl.zeros((BLOCK_P,), dtype)
    grad_outputs = ()
    by = at
    if grad_output is not None:
        strides = (grad_slice_stride, grad_row_stride, grad_column_stride)
        by = spatial_offsets(pixel, rows, columns, strides, AXES)[None, :]
        if IN_REGISTERS:
            total = tl.zeros((BLOCK_C, BLOCK_P), dtype)
            for k in tl.static_range(K):
                g = _load(grad_output, by, c + k * BLOCK_C, grad_class_stride, inside, C, 0)
                grad_outputs += (g.to(dtype),)
                total += grad_outputs[k] * exponentials[k]
            dot += tl.sum(total, axis=0)
        else:
            for first in range(0, K, BLOCKS_PER_SUM):
                total = tl.zeros((BLOCK_C, BLOCK_P), dtype)
                for k in range(first, tl.minimum(first + BLOCKS_PER_SUM, K)):
                    classes = c + k * BLOCK_C
                    x = _load(logits, at, classes, logits_class_stride, inside, C, -float("inf"))
                    x = _scale_logits(x, inverse_temperature, dtype, HAS_TEMPERATURE)
                    g = _load(grad_output, by, classes, grad_class_stride, inside, C, 0)
                    total += g.to(dtype) * _exp(x - m[None, :], IS_HALF)
                dot += tl.sum(total, axis=0)
        if HAS_TEMPERATURE:
            factor *= inverse_temperature
    is_read = inside
    if weight is not None:
        w = tl.load(weight + pixel, inside, 0)
        factor *= w
        is_read = w != 0
    average = dot / s
    if IN_REGISTERS:
        for k in tl.static_range(K):
            p = exponentials[k] * factor[None, :]
            if grad_output is not None:
                p *= grad_outputs[k] - average[None, :]
            if weight is not None:
                p = tl.where(is_read[None, :], p, 0)
            _store(probabilities, to, c + k * BLOCK_C, probabilities_class_stride, inside, C, p)
    else:
        for k in range(K):
            classes = c + k * BLOCK_C
            x = _load(logits, at, classes, logits_class_stride, inside, C, -float("inf"))
            x = _scale_logits(x, inverse_temperature, dtype, HAS_TEMPERATURE)
            e = _exp(x - m[None, :], IS_HALF)
            p = e * factor[None, :]
            if grad_output is not None:
                g = _load(grad_output, by, classes, grad_class_stride, inside, C, 0)
                p *= g.to(dtype) - average[None, :]
            if weight is not None:
                p = tl.where(is_read[None, :], p, 0)
            _store(probabilities, to, classes, probabilities_class_stride, inside, C, p)
