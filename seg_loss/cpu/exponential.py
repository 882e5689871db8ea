"""The exponential and the logarithm, for vectors of 16 lanes."""

import math

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.core import cgutils

from seg_loss.cpu.compiler import inner, inner_by_element, intrinsic
from seg_loss.cpu.simd import (
    call_llvm,
    constant,
    emit_fma,
    emit_maximum,
    fma,
    llvm_vector,
    splat,
)
from seg_loss.cpu.target import target


@intrinsic
def _split_exponent(typingctx, value):
    """Returns positive normal float32 as (n, m): value = m * 2**n, m in [sqrt(1/2), sqrt(2))."""

    def codegen(context, builder, signature, args):
        # Adding 1 - sqrt(1/2) carries into the exponent exactly where m >= sqrt(2).
        bits = builder.bitcast(args[0], llvm_vector(types.int32))
        raised = builder.add(bits, constant(types.int32, 0x3F800000 - 0x3F3504F3))
        n = builder.ashr(raised, constant(types.int32, 23))
        n = builder.sub(n, constant(types.int32, 127))
        mantissa = builder.sub(bits, builder.shl(n, constant(types.int32, 23)))
        pair = [builder.sitofp(n, args[0].type), builder.bitcast(mantissa, args[0].type)]
        return context.make_tuple(builder, signature.return_type, pair)

    return types.UniTuple(value, 2)(value), codegen


def _libm(name):
    @intrinsic
    def operation(typingctx, value):
        def codegen(context, builder, signature, args):
            return call_llvm(builder, name, args)

        return value(value), codegen

    return operation


@intrinsic
def scaled_exp(typingctx, distance, scale):
    """Returns exp(distance / T) in every lane of float32, for `scale` = log2(e) / T.

    `distance` is not positive, or NaN.
    """

    def codegen(context, builder, signature, args):
        return emit_exp(builder, *args)

    return distance(distance, scale), codegen


def emit_exp(builder, distance, scale):
    """Emits 2**(distance scale) = 2**n p(f), where n is rounded to nearest and f is exact.

    The relative error is 6e-8 everywhere above 2**-126, and the result for 0 is 1. A product that
    were rounded before n is taken off it would cost the last digits of small results.
    """
    least = builder.fdiv(constant(types.float32, -160.0 if target().has_avx512 else -127.0), scale)
    distance = emit_maximum(builder, least, distance)
    if target().has_avx512:
        n = _call_avx512(builder, "rndscale", builder.fmul(distance, scale), 0x08)
        f = emit_fma(builder, distance, scale, builder.fneg(n))
        return _call_avx512(builder, "scalef", _emit_polynomial(builder, f, _EXP2), n)
    # Adding a large number rounds to an integer, and leaves it in the low bits, biased as an
    # exponent. The exponent 0 stands for 0.
    rounding = constant(types.float32, float(_ROUNDING))
    shifted = emit_fma(builder, distance, scale, rounding)
    n = builder.fsub(shifted, rounding)
    f = emit_fma(builder, distance, scale, builder.fneg(n))
    bits = builder.bitcast(shifted, llvm_vector(types.int32))
    power = builder.bitcast(builder.shl(bits, constant(types.int32, 23)), distance.type)
    return builder.fmul(_emit_polynomial(builder, f, _EXP2), power)


@intrinsic
def exp2(typingctx, u):
    """Returns 2**u in every lane of float32, for u at most a little above 0, or NaN."""

    def codegen(context, builder, signature, args):
        return emit_exp2(builder, args[0])

    return u(u), codegen


def emit_exp2(builder, u):
    """Emits 2**u, as `emit_exp`; u is already rounded, so that less work is enough."""
    if target().has_avx512:
        f = _call_avx512(builder, "reduce", u, 0x09)  # u - floor(u)
        power = _emit_polynomial(builder, f, _EXP2_OF_FLOOR)
        return _call_avx512(builder, "scalef", power, u)
    return emit_exp(builder, u, constant(types.float32, 1.0))


def _emit_polynomial(builder, f, coefficients):
    """Emits a polynomial, the coefficient of the highest power first."""
    total = constant(types.float32, coefficients[0])
    for coefficient in coefficients[1:]:
        total = emit_fma(builder, total, f, constant(types.float32, coefficient))
    return total


def _call_avx512(builder, name, *args):
    """Calls an instruction on 16 float32 lanes without a mask; a number is an immediate."""
    vector, integer = args[0].type, ir.IntType(32)
    operands = [ir.Constant(integer, a) if isinstance(a, int) else a for a in args]
    operands += [
        ir.Constant(vector, ir.Undefined),
        ir.Constant(ir.IntType(16), -1),
        ir.Constant(integer, 4),  # the current rounding direction
    ]
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(vector, [operand.type for operand in operands]),
        f"llvm.x86.avx512.mask.{name}.ps.512",
    )
    return builder.call(function, operands)


_libm_exp = _libm("exp")
_libm_log = _libm("log")

_f32 = np.float32
_LOG2_E = _f32(math.log2(math.e))
_ROUNDING = _f32(1.5 * 2**23 + 127)  # adding it rounds to an integer and biases it for the exponent
# 2**f, the coefficient of the highest power first: minimax in relative error, 2e-9 before rounding
# on [-1/2, 1/2], and 6e-8 on [0, 1).
_EXP2 = 1.53533606e-4, 1.33988749e-3, 9.61843737e-3, 0.0555033247, 0.240226479, 0.693147203, 1.0
_EXP2_OF_FLOOR = (
    2.17022549e-4, 1.24396873e-3, 9.67884064e-3, 0.0554833412, 0.24022983, 0.693147004, 1.0,
)  # fmt: skip


# ln(1 + f) = f - f**2/2 + f**3 (L0 + L1 f + ...) on [sqrt(1/2) - 1, sqrt(2) - 1]; 6e-9.
_L0 = _f32(0.33333332)
_L1 = _f32(-0.25000821)
_L2 = _f32(0.20001227)
_L3 = _f32(-0.16623357)
_L4 = _f32(0.1420176)
_L5 = _f32(-0.13160189)
_L6 = _f32(0.12761562)
_L7 = _f32(-0.0763446)
_LN2_HIGH = _f32(0.693359375)  # few bits, so that n times it is exact
_LN2_LOW = _f32(-2.12194440e-4)


def _exp_float32(x):
    return scaled_exp(x, splat(_LOG2_E))


def _exp_float64(x):
    return _libm_exp(x)


@inner(lambda w: w)
def log_float32(w):
    """Returns ln w in every lane of positive normal float32, accurate to the last bits."""
    # Cephes' scheme: ln(m 2**n) = n ln 2 + f - f**2/2 + f**3 P(f), f = m - 1.
    one = splat(_f32(1))
    n, m = _split_exponent(w)
    f = m - one
    p = fma(splat(_L7), f, splat(_L6))
    p = fma(p, f, splat(_L5))
    p = fma(p, f, splat(_L4))
    p = fma(p, f, splat(_L3))
    p = fma(p, f, splat(_L2))
    p = fma(p, f, splat(_L1))
    p = fma(p, f, splat(_L0))
    square = f * f
    p = fma(p * f, square, n * splat(_LN2_LOW))
    p = fma(square, splat(_f32(-0.5)), p)
    return fma(n, splat(_LN2_HIGH), f + p)


def _log1p_float32(x):
    one = splat(_f32(1))
    w = one + x
    # Add the rounding error of 1 + x times the slope of ln; for tiny x this is x itself.
    return log_float32(w) + (x - (w - one)) / w


def _log1p_float64(x):
    one = splat(1.0)
    w = one + x
    return _libm_log(w) + (x - (w - one)) / w


def exp(x):
    """Returns e**x in every lane, for x <= 0 or NaN; 0 below ln FLT_MIN in float32.

    In float32 the relative error is at most 1 ulp near 0 and grows by 1.3e-8 |x|.
    """
    raise NotImplementedError


def log1p(x):
    """Returns ln(1 + x) in every lane, for x >= 0 or NaN, accurate to the last bits also near 0."""
    raise NotImplementedError


inner_by_element(exp, {types.float32: _exp_float32, types.float64: _exp_float64})
inner_by_element(log1p, {types.float32: _log1p_float32, types.float64: _log1p_float64})
