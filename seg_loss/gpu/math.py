"""Device functions that the GPU kernels share: arithmetic, and loads and stores of tiles.

The user's options are float64 numbers, which Triton cannot take as scalar arguments: their bits are
passed as an int64.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
_LOG2_E_LOW = tl.constexpr(1.925963033500946e-08)  # the part of it that float32 drops
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def float_from_bits(bits, dtype: tl.constexpr):
    """Returns a float64 option, passed as the bits of an int64, in `dtype`."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(dtype)


@triton.jit
def exp(d, IS_HALF: tl.constexpr):
    """Returns e**d for d <= 0 or NaN.

    The hardware computes 2**x, and rounding d log2(e) costs |d| ulps. Half-precision logits have a
    larger error than that. For float32 the rounding error is added back.
    """
    if d.dtype == tl.float64:
        return tl.exp(d)
    elif IS_HALF:
        return tl.exp2(d * _LOG2_E)
    else:
        d = tl.maximum(d, -200.0, propagate_nan=tl.PropagateNan.ALL)  # inf - inf below is NaN
        p = d * _LOG2_E
        error = tl.fma(d, _LOG2_E_LOW, tl.fma(d, _LOG2_E, -p))
        e = tl.exp2(p)
        return tl.fma(e, error * _LN_2, e)


@triton.jit
def _log1p(z):
    """Returns ln(1 + z) for z >= 0 or NaN, by Kahan's correction for the rounding of 1 + z."""
    u = 1 + z
    is_tiny = u == 1
    return tl.where(is_tiny, z, tl.log(u) * (z / tl.where(is_tiny, 1, u - 1)))


@triton.jit
def weighted(weight, x):
    """Returns weight * x, and 0 for a weight of 0, where 0 * infinity would be NaN."""
    return tl.where(weight != 0, weight * x, 0)


@triton.jit
def scale_logits(x, temperature, dtype: tl.constexpr, HAS_TEMPERATURE: tl.constexpr):
    """Returns x / T, rounded.

    A plain product would be contracted with the subtraction of the maximum. The maximum minus
    itself would then be rounded on one side only, and would not be 0.
    """
    x = x.to(dtype)
    if HAS_TEMPERATURE:
        x = tl.fma(x, temperature, tl.zeros_like(x))
    return x


@triton.jit
def nll_of(target_distance, t, s, limit):
    """Returns ln s and the nll, at most `limit`, for the target distance x_y - m, t and s."""
    log_s = _log1p(tl.where(target_distance == 0, t, s - 1))
    nll = log_s - target_distance
    return log_s, tl.where(nll > limit, limit, nll)


@triton.jit
def load_classes(labels, offset, inside, ignored, C: tl.constexpr):
    """Loads labels as classes: C where ignored or outside the tile, C + 1 where invalid."""
    label = tl.load(labels + offset, mask=inside, other=0).to(tl.int64)
    y = tl.where((label >= 0) & (label < C), label, C + 1)
    for k in tl.static_range(len(ignored)):
        y = tl.where(label == ignored[k], C, y)
    return tl.where(inside, y, C).to(tl.int32)


@triton.jit
def load_weights(class_weight, pixel_weight, offset, y, C: tl.constexpr, dtype: tl.constexpr):
    """Returns the pixel weight, and the class weight of the target class, of each pixel."""
    of_pixel = tl.full(y.shape, 1, dtype)
    of_class = tl.full(y.shape, 1, dtype)
    if pixel_weight is not None:
        of_pixel = tl.load(pixel_weight + offset, y < C, 0).to(dtype)
    if class_weight is not None:
        of_class = tl.load(class_weight + y, y < C, 0).to(dtype)
    return of_pixel, of_class


@triton.jit
def sum_class_weights(class_weight, C: tl.constexpr, BLOCK_C: tl.constexpr, dtype: tl.constexpr):
    """Returns the sum of the weights of all classes."""
    if class_weight is None:
        return tl.full((), C, dtype)
    else:
        c = tl.arange(0, BLOCK_C)
        total = tl.zeros((), dtype)
        for first in range(0, C, BLOCK_C):
            weight = tl.load(class_weight + first + c, first + c < C, 0)
            total += tl.sum(weight.to(dtype), axis=0)
        return total


@triton.jit
def offsets_of(pixel, strides, rows, columns, AXES: tl.constexpr):
    """Returns the offsets of pixels; strides are those of image, class, slice, row and column."""
    if AXES == 1:
        return pixel * strides[4]
    elif AXES == 2:
        return (pixel // columns) * strides[3] + (pixel % columns) * strides[4]
    else:
        row = pixel // columns
        return (
            (row // rows) * strides[2] + (row % rows) * strides[3] + (pixel % columns) * strides[4]
        )


@triton.jit
def load(source, at, classes, class_stride, inside, C: tl.constexpr, other):
    """Loads [classes, pixels] of a tensor; `other` beyond its classes and pixels."""
    mask = (classes < C)[:, None] & inside[None, :]
    return tl.load(source + classes.to(tl.int64)[:, None] * class_stride + at, mask, other)


@triton.jit
def store(target, at, classes, class_stride, inside, C: tl.constexpr, values):
    """Stores [classes, pixels] of a tensor, rounded to its dtype."""
    mask = (classes < C)[:, None] & inside[None, :]
    offset = target + classes.to(tl.int64)[:, None] * class_stride + at
    tl.store(offset, values.to(target.dtype.element_ty), mask)
