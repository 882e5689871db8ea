"""The GPU kernel of the softmax and of its gradient."""

import triton
import triton.language as tl

from seg_loss.gpu.math import (
    exp,
    float_from_bits,
    load,
    offsets_of,
    scale_logits,
    store,
)


@triton.jit
def softmax_kernel(
    logits,
    logits_strides,
    probabilities,
    probabilities_strides,
    grad_output,
    grad_output_strides,
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

    For `grad_output` g the gradient is p (g - sum_c g_c p_c) / temperature. The tensors are one
    image: the batch is among the pixels.
    """
    dtype: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    IS_HALF: tl.constexpr = logits.dtype.element_ty.primitive_bitwidth == 16
    K: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < pixels
    c = tl.arange(0, BLOCK_C)
    at = offsets_of(pixel, logits_strides, rows, columns, AXES)[None, :]
    to = offsets_of(pixel, probabilities_strides, rows, columns, AXES)[None, :]
    temperature = float_from_bits(inverse_temperature, dtype)
    blocks = ()
    m = tl.full((BLOCK_C, BLOCK_P), -float("inf"), dtype)
    s = tl.zeros((BLOCK_C, BLOCK_P), dtype)
    if IN_REGISTERS:
        for k in tl.static_range(K):
            x = load(logits, at, c + k * BLOCK_C, logits_strides[1], inside, C, -float("inf"))
            blocks += (scale_logits(x, temperature, dtype, HAS_TEMPERATURE),)
            m = tl.maximum(m, blocks[k])
    else:
        for k in range(K):
            x = load(logits, at, c + k * BLOCK_C, logits_strides[1], inside, C, -float("inf"))
            m = tl.maximum(m, scale_logits(x, temperature, dtype, HAS_TEMPERATURE))
    m = tl.max(m, axis=0)
    exponentials = ()
    if IN_REGISTERS:
        for k in tl.static_range(K):
            exponentials += (exp(blocks[k] - m[None, :], IS_HALF),)
            s += exponentials[k]
    else:
        for k in range(K):
            x = load(logits, at, c + k * BLOCK_C, logits_strides[1], inside, C, -float("inf"))
            s += exp(scale_logits(x, temperature, dtype, HAS_TEMPERATURE) - m[None, :], IS_HALF)
    s = tl.sum(s, axis=0)
    factor = 1 / s
    mean = tl.zeros((BLOCK_C, BLOCK_P), dtype)
    grad_outputs = ()
    by = at
    if grad_output is not None:
        by = offsets_of(pixel, grad_output_strides, rows, columns, AXES)[None, :]
        if IN_REGISTERS:
            for k in tl.static_range(K):
                g = load(grad_output, by, c + k * BLOCK_C, grad_output_strides[1], inside, C, 0)
                grad_outputs += (g.to(dtype),)
                mean += grad_outputs[k] * exponentials[k]
        else:
            for k in range(K):
                classes = c + k * BLOCK_C
                x = load(logits, at, classes, logits_strides[1], inside, C, -float("inf"))
                e = exp(scale_logits(x, temperature, dtype, HAS_TEMPERATURE) - m[None, :], IS_HALF)
                g = load(grad_output, by, classes, grad_output_strides[1], inside, C, 0)
                mean += g.to(dtype) * e
        if HAS_TEMPERATURE:
            factor *= temperature
    average = tl.sum(mean, axis=0) / s
    if IN_REGISTERS:
        for k in tl.static_range(K):
            p = exponentials[k] * factor[None, :]
            if grad_output is not None:
                p *= grad_outputs[k] - average[None, :]
            store(probabilities, to, c + k * BLOCK_C, probabilities_strides[1], inside, C, p)
    else:
        for k in range(K):
            classes = c + k * BLOCK_C
            x = load(logits, at, classes, logits_strides[1], inside, C, -float("inf"))
            e = exp(scale_logits(x, temperature, dtype, HAS_TEMPERATURE) - m[None, :], IS_HALF)
            p = e * factor[None, :]
            if grad_output is not None:
                g = load(grad_output, by, classes, grad_output_strides[1], inside, C, 0)
                p *= g.to(dtype) - average[None, :]
            store(probabilities, to, classes, probabilities_strides[1], inside, C, p)
