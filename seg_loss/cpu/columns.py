"""Columns: 16 pixels of all classes, read once, computed in registers, and written once.

`make_column` returns the parts of the work on a column. The registers between them are the
exponentials:

    column_in     reads x_c of every class, and returns  d_c = x_c - max_c x_c  of the target class,
                  the exponentials  e_c = exp(d_c / T),  0 in place of the target class, and
                  their sum t
    column_clear  replaces the exponentials by 0 in some lanes
    column_out    writes e_c * factor for every class, and `target` to the target class

The target class is kept out of the sum t. This makes nll and gradient accurate to the last bits
where the prediction is sure, because neither ln(1 + tiny) nor p - 1 is computed. A difference comes
first, so that a constant added to all logits changes no bit. The label is compared with each class,
so that it is never an index.

With AVX-512 all classes of a column fit the 32 registers up to `MAX_COLUMN_CLASSES`, and the loops
over the classes are unrolled. On other processors the exponentials lie in the first-level cache.
"""

import math

import numpy as np
from numba import types

from seg_loss.cpu.compiler import inner, intrinsic
from seg_loss.cpu.dtypes import emit_load, emit_prefetch, emit_store, load_as, store_as
from seg_loss.cpu.exponential import emit_exp, scaled_exp
from seg_loss.cpu.records import LANES
from seg_loss.cpu.simd import (
    FLOATS,
    INTEGERS,
    constant,
    emit_fma,
    emit_maximum,
    equal,
    fma,
    less,
    load,
    maximum,
    splat,
    store,
    where,
)

# How far ahead a class is asked for: eight cache lines take about as long as memory does.
_PREFETCH_BYTES = 8 * 64


def make_column(num_classes, dtype_code, bypasses_caches):
    """Returns `column_in`, `column_out` and `column_clear`.

    Args:
        num_classes: the classes if they are known and fit the registers; None for any number.
        dtype_code: the dtype of the logits and of the gradient in memory.
        bypasses_caches: whether the gradient lies at whole cache lines, and is written past the
            caches.
    """
    if num_classes is None:
        return _make_loops(dtype_code, bypasses_caches)
    return _make_unrolled(num_classes, dtype_code, bypasses_caches)


def _make_unrolled(num_classes, dtype_code, bypasses_caches):
    exponentials = types.UniTuple(FLOATS, num_classes)
    float32, int32 = types.float32, types.int32

    @intrinsic
    def column_in(typingctx, source, step, _, y, scale, scratch):
        def codegen(context, builder, signature, args):
            address, step, _, y, scale, _ = args
            x = _emit_column(builder, address, step, num_classes, dtype_code)
            top = _emit_top(builder, x)
            target_distance = constant(float32, -math.inf)
            sums = [constant(float32, 0.0)] * 2
            e = []
            for c in range(num_classes):
                distance = builder.fsub(x[c], top)
                is_target = builder.icmp_signed("==", y, constant(int32, c))
                target_distance = builder.select(is_target, distance, target_distance)
                value = emit_exp(builder, distance, scale)
                e.append(builder.select(is_target, constant(float32, 0.0), value))
                sums[c % 2] = builder.fadd(sums[c % 2], e[c])
            values = [
                builder.fadd(*sums),
                target_distance,
                context.make_tuple(builder, exponentials, e),
            ]
            return context.make_tuple(builder, signature.return_type, values)

        result = types.Tuple((FLOATS, FLOATS, exponentials))
        return result(source, step, _, y, scale, scratch), codegen

    @intrinsic
    def column_out(typingctx, target, step, _, y, e, factor, target_value):
        def codegen(context, builder, signature, args):
            address, step, _, y, e, factor, target_value = args
            for c in range(num_classes):
                is_target = builder.icmp_signed("==", y, constant(int32, c))
                value = builder.fmul(builder.extract_value(e, c), factor)
                value = builder.select(is_target, target_value, value)
                emit_store(builder, address, dtype_code, value, bypasses_caches)
                address = builder.add(address, step)
            return context.get_dummy_value()

        return types.void(target, step, _, y, e, factor, target_value), codegen

    @intrinsic
    def column_clear(typingctx, e, _, mask):
        def codegen(context, builder, signature, args):
            e, _, mask = args
            zero = constant(float32, 0.0)
            cleared = [
                builder.select(mask, zero, builder.extract_value(e, c)) for c in range(num_classes)
            ]
            return context.make_tuple(builder, exponentials, cleared)

        return exponentials(e, _, mask), codegen

    return column_in, column_out, column_clear


def _emit_column(builder, address, step, num_classes, dtype_code):
    """Emits the loads of a column."""
    x = []
    for _ in range(num_classes):
        x.append(emit_load(builder, address, dtype_code, LANES))
        # The processor follows fewer streams than there are classes.
        emit_prefetch(builder, builder.add(address, address.type(_PREFETCH_BYTES)))
        address = builder.add(address, step)
    return x


def _emit_top(builder, x):
    """Emits the maximum, in two chains, so that an instruction need not wait for the last one."""
    tops = x[:2]
    for c in range(2, len(x)):
        tops[c % 2] = emit_maximum(builder, x[c], tops[c % 2])
    return emit_maximum(builder, *tops) if len(x) > 1 else tops[0]


def _make_loops(dtype_code, bypasses_caches):
    @inner(lambda *args: types.Tuple((FLOATS, FLOATS, args[-1])))
    def column_in(source, step, num_classes, y, scale, scratch):
        top = load_as(dtype_code, source)
        address = source
        for c in range(num_classes):
            x = load_as(dtype_code, address)
            store(scratch, c * LANES, x)
            top = maximum(x, top)
            address += step
        zero = splat(np.float32(0))
        target_distance = splat(np.float32(-np.inf))
        t = zero
        for c in range(num_classes):
            distance = load(scratch, c * LANES) - top
            is_target = equal(y, splat(np.int32(c)))
            target_distance = where(is_target, distance, target_distance)
            e = where(is_target, zero, scaled_exp(distance, scale))
            store(scratch, c * LANES, e)
            t = t + e
        return t, target_distance, scratch

    @inner(types.void)
    def column_out(target, step, num_classes, y, e, factor, target_value):
        for c in range(num_classes):
            is_target = equal(y, splat(np.int32(c)))
            value = where(is_target, target_value, load(e, c * LANES) * factor)
            store_as(dtype_code, bypasses_caches, target, value)
            target += step

    @inner(lambda *args: args[0])
    def column_clear(e, num_classes, mask):
        for c in range(num_classes):
            store(e, c * LANES, where(mask, splat(np.float32(0)), load(e, c * LANES)))
        return e

    return column_in, column_out, column_clear


def make_prediction(num_classes, dtype_code):
    """Returns `column_in` without exponentials; it returns t, d, max_c x_c and its first class."""
    if num_classes is None:
        return _make_prediction_loop(dtype_code)
    float32, int32 = types.float32, types.int32

    @intrinsic
    def prediction_in(typingctx, source, step, _, y, scale, scratch):
        def codegen(context, builder, signature, args):
            address, step, _, y, scale, _ = args
            x = _emit_column(builder, address, step, num_classes, dtype_code)
            # Classes of NaN are no maximum, also the first ones.
            lowest = constant(float32, -math.inf)
            top = _emit_top(builder, [lowest, lowest, *x])
            best = constant(int32, 0)
            for c in reversed(range(num_classes)):
                is_top = builder.fcmp_ordered("==", x[c], top)
                best = builder.select(is_top, constant(int32, c), best)
            target_distance = lowest
            sums = [constant(float32, 0.0)] * 2
            for c in range(num_classes):
                distance = builder.fsub(x[c], top)
                is_target = builder.icmp_signed("==", y, constant(int32, c))
                target_distance = builder.select(is_target, distance, target_distance)
                e = emit_exp(builder, distance, scale)
                e = builder.select(is_target, constant(float32, 0.0), e)
                sums[c % 2] = builder.fadd(sums[c % 2], e)
            values = [builder.fadd(*sums), target_distance, top, best]
            return context.make_tuple(builder, signature.return_type, values)

        result = types.Tuple((FLOATS, FLOATS, FLOATS, INTEGERS))
        return result(source, step, _, y, scale, scratch), codegen

    return prediction_in


def _make_prediction_loop(dtype_code):
    @inner(types.Tuple((FLOATS, FLOATS, FLOATS, INTEGERS)))
    def prediction_in(source, step, num_classes, y, scale, scratch):
        top = splat(np.float32(-np.inf))
        best = splat(np.int32(0))
        for c in range(num_classes):
            x = load_as(dtype_code, source)
            store(scratch, c * LANES, x)
            is_higher = less(top, x)
            top = where(is_higher, x, top)
            best = where(is_higher, splat(np.int32(c)), best)
            source += step
        zero = splat(np.float32(0))
        target_distance = splat(np.float32(-np.inf))
        t = zero
        for c in range(num_classes):
            distance = load(scratch, c * LANES) - top
            is_target = equal(y, splat(np.int32(c)))
            target_distance = where(is_target, distance, target_distance)
            t = t + where(is_target, zero, scaled_exp(distance, scale))
        return t, target_distance, top, best

    return prediction_in


def make_gradient_of_softmax(num_classes, dtype_code, bypasses_caches):
    """Returns `gradient_in` and `gradient_out`, for the gradient of the softmax.

    They take the exponentials of `column_in`, and g of every class from memory:

        gradient_in     sum_c g_c e_c
        gradient_out    writes e_c (g_c - mean) * factor for every class, and 0 where `is_zero`
    """
    if num_classes is None:
        return _make_gradient_loops(dtype_code, bypasses_caches)
    float32 = types.float32

    @intrinsic
    def gradient_in(typingctx, grad_output, step, _, e):
        def codegen(context, builder, signature, args):
            address, step, _, e = args
            sums = [constant(float32, 0.0)] * 2
            for c, g in enumerate(_emit_column(builder, address, step, num_classes, dtype_code)):
                sums[c % 2] = emit_fma(builder, g, builder.extract_value(e, c), sums[c % 2])
            return builder.fadd(*sums)

        return FLOATS(grad_output, step, _, e), codegen

    @intrinsic
    def gradient_out(
        typingctx, grad_output, step, target, target_step, _, e, mean, factor, is_zero
    ):
        def codegen(context, builder, signature, args):
            address, step, target, target_step, _, e, mean, factor, is_zero = args
            zero = constant(float32, 0.0)
            for c in range(num_classes):
                g = emit_load(builder, address, dtype_code, LANES)
                value = builder.fmul(builder.fsub(g, mean), factor)
                value = builder.fmul(builder.extract_value(e, c), value)
                value = builder.select(is_zero, zero, value)
                emit_store(builder, target, dtype_code, value, bypasses_caches)
                address = builder.add(address, step)
                target = builder.add(target, target_step)
            return context.get_dummy_value()

        arguments = grad_output, step, target, target_step, _, e, mean, factor, is_zero
        return types.void(*arguments), codegen

    return gradient_in, gradient_out


def _make_gradient_loops(dtype_code, bypasses_caches):
    @inner(FLOATS)
    def gradient_in(grad_output, step, num_classes, e):
        dot = splat(np.float32(0))
        for c in range(num_classes):
            dot = fma(load_as(dtype_code, grad_output), load(e, c * LANES), dot)
            grad_output += step
        return dot

    @inner(types.void)
    def gradient_out(grad_output, step, target, target_step, num_classes, e, mean, factor, is_zero):
        zero = splat(np.float32(0))
        for c in range(num_classes):
            value = load(e, c * LANES) * ((load_as(dtype_code, grad_output) - mean) * factor)
            store_as(dtype_code, bypasses_caches, target, where(is_zero, zero, value))
            grad_output += step
            target += target_step

    return gradient_in, gradient_out
