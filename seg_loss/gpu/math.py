"""Device functions that the GPU kernels share: arithmetic of one element or one pixel.

Exponentials of float32 have the base 2, because the hardware computes 2**p. The exponent of a logit
x is p = x * scale - m * scale for the maximum m of the pixel and scale = log2(e) / temperature: one
fused multiply-add. The product with m is rounded, which multiplies all exponentials of a pixel by
the same factor near 1. That factor cancels in a probability, and in the nll if all its terms have
it.

Some functions are single PTX instructions. Triton's own forms take several, to handle subnormal
numbers, or keep a predicate per class alive from one loop to the next, which spills registers.
Triton's interpreter cannot execute PTX, so that each has a second form.

Options are float64 numbers, which Triton cannot take as scalar arguments: their bits are passed as
an int64.
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# Blocks of classes that are added one after another. The error of a sum grows with the number of
# its terms, so the sums of more blocks are added in a second stage.
BLOCKS_PER_SUM = tl.constexpr(16)
# Above these exponents, by dtype, two different logits of a pixel are so far apart that one of the
# exponentials is negligible, and the rounding of the maximum's exponent may exceed the range of the
# exponentials.
_HUGE = tl.constexpr(2.0**30)
_HUGE_DOUBLE = tl.constexpr(2.0**60)


@triton.jit
def float_from_bits(bits, dtype: tl.constexpr):
    """Returns a float64 option, passed as the bits of an int64, in `dtype`."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(dtype)


@triton.jit
def as_int(labels):
    """Returns labels as int32, or as int64 where they need not fit; uint64 keeps its bits.

    C may exceed what the labels' dtype holds.
    """
    if labels.dtype == tl.int64:
        return labels
    elif labels.dtype == tl.uint32 or labels.dtype == tl.uint64:
        return labels.to(tl.int64)
    else:
        return labels.to(tl.int32)


@triton.jit
def exponential(p):
    """Returns 2**p for float32, to 2 ulp and 0 below 2**-126; e**p for float64."""
    if p.dtype == tl.float64:
        return tl.exp(p)
    elif INTERPRETED:
        return tl.exp2(p)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [p], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def reciprocal(x):
    """Returns 1 / x, for float32 to 1 ulp."""
    if x.dtype == tl.float64 or INTERPRETED:
        return 1 / x
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def log(u):
    """Returns ln u for u >= 2**-126, infinity or NaN; for float32 to 1 ulp.

    For float32: u = 2**n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), and a polynomial in f, as in
    Cephes' logf.
    """
    if u.dtype == tl.float64:
        return tl.log(u)
    else:
        bits = u.to(tl.int32, bitcast=True)
        n = ((bits + (0x3F800000 - 0x3F3504F3)) >> 23) - 127
        f = (bits - (n << 23)).to(tl.float32, bitcast=True) - 1
        p = tl.fma(f, -0.0763446, 0.12761562)
        p = tl.fma(p, f, -0.13160189)
        p = tl.fma(p, f, 0.1420176)
        p = tl.fma(p, f, -0.16623357)
        p = tl.fma(p, f, 0.20001227)
        p = tl.fma(p, f, -0.25000821)
        p = tl.fma(p, f, 0.33333332)
        square = f * f
        n = n.to(tl.float32)
        p = tl.fma(p * f, square, n * -2.12194440e-4)
        p = tl.fma(square, -0.5, p)
        return tl.where(u < float("inf"), tl.fma(n, 0.693359375, f + p), u)


@triton.jit
def widen(x):
    """Returns logits of 16 or 32 bits as float32; float64 as it is."""
    if x.dtype == tl.float64:
        return x
    elif x.dtype == tl.bfloat16 and not INTERPRETED:
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;",
            "=r,=r,r",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )
    else:
        return x.to(tl.float32)


@triton.jit
def maximum(a, b):
    """Returns the larger of two logits, or the one that is not NaN; as bfloat16 or widened."""
    if a.dtype == tl.bfloat16 and not INTERPRETED:
        return tl.inline_asm_elementwise(
            "max.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    else:
        return tl.maximum(widen(a), widen(b))


@triton.jit
def add_other_class(t, e, c, y):
    """Returns t + e if c is another class than the target y and y is not negative; else t."""
    if t.dtype == tl.float64 or INTERPRETED:
        return tl.where((c != y) & (y >= 0), t + e, t)
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .pred is_valid, is_other;
            setp.ge.s32 is_valid, $4, 0;
            setp.ne.and.s32 is_other, $3, $4, is_valid;
            mov.b32 $0, $1;
            @is_other add.f32 $0, $1, $2;
            }""",
            "=&f,f,f,r,r",
            [t, e, c, y],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def add_and_find_target(t, target_exponent, e, p, c, y):
    """Returns `add_other_class(t, e, c, y)`, and p if c is the target, else `target_exponent`."""
    if t.dtype == tl.float64 or INTERPRETED:
        t = tl.where((c != y) & (y >= 0), t + e, t)
        return t, tl.where(c == y, p, target_exponent)
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .pred is_valid, is_other, is_target;
            setp.ge.s32 is_valid, $7, 0;
            setp.ne.and.s32 is_other, $6, $7, is_valid;
            setp.eq.s32 is_target, $6, $7;
            mov.b32 $0, $2;
            mov.b32 $1, $3;
            @is_other add.f32 $0, $2, $4;
            @is_target mov.b32 $1, $5;
            }""",
            "=&f,=&f,f,f,f,f,r,r",
            [t, target_exponent, e, p, c, y],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )


@triton.jit
def add_where_equal(total, value, a, b):
    """Returns total + value in float64 where a == b, else total."""
    if INTERPRETED:
        return tl.where(a == b, total + value, total)
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .pred is_equal;
            setp.eq.s32 is_equal, $3, $4;
            mov.b64 $0, $1;
            @is_equal add.f64 $0, $1, $2;
            }""",
            "=&d,d,d,r,r",
            [total, value, a, b],
            dtype=tl.float64,
            is_pure=True,
            pack=1,
        )


@triton.jit
def select_unless_target(e, other, c, y):
    """Returns e, or `other` if c is the target y or y is negative."""
    if e.dtype == tl.float64 or INTERPRETED:
        return tl.where((c == y) | (y < 0), other, e)
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .pred is_invalid, is_target;
            setp.lt.s32 is_invalid, $4, 0;
            setp.eq.or.s32 is_target, $3, $4, is_invalid;
            selp.b32 $0, $2, $1, is_target;
            }""",
            "=f,f,f,r,r",
            [e, other, c, y],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def exponent_scale(inverse_temperature, dtype: tl.constexpr):
    """Returns the factor of a logit before `exponential`, from the bits of a float64."""
    scale = float_from_bits(inverse_temperature, tl.float64)
    if dtype == tl.float64:
        return scale
    else:
        return (scale * LOG2_E).to(tl.float32)


@triton.jit
def _power_of_two_below(x):
    """Returns the largest power of two that is at most x."""
    if x.dtype == tl.float64:
        return (x.to(tl.int64, bitcast=True) & 0x7FF0000000000000).to(tl.float64, bitcast=True)
    else:
        return (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def exponent_of_maximum(m, scale):
    """Returns scale, exponent and unit of pixels with maximum m.

    The exponent of a logit x is x * scale - exponent; times unit, it is in nats. Where it is huge,
    the scale becomes a power of two, whose products are exact and overflow no earlier than a logit.
    """
    unit: tl.constexpr = 1.0 if m.dtype == tl.float64 else LN_2
    huge: tl.constexpr = _HUGE_DOUBLE if m.dtype == tl.float64 else _HUGE
    exponent = m * scale
    is_huge = tl.abs(exponent) > huge
    power = _power_of_two_below(scale)
    return (
        tl.where(is_huge, power, scale),
        tl.where(is_huge, m * power, exponent),
        tl.where(is_huge, unit * (scale / power), unit),
    )


@triton.jit
def wait_for_previous_kernel():
    """Waits until the kernel before this one in the stream has finished.

    Only for kernels with the option `launch_pdl`, on sm_90 and later: they start before that.
    """
    if not INTERPRETED:
        tl.inline_asm_elementwise(
            "griddepcontrol.wait; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def let_next_kernel_start():
    """Lets a kernel with the option `launch_pdl` start, once all programs have called this."""
    if not INTERPRETED:
        tl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; mov.u32 $0, 0;",
            "=r",
            [],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
