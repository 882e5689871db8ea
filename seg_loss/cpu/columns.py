"""Columns: 16 pixels of all classes, read once, computed in registers, and written once.

`make_column` returns the two halves of the work on a column, of which the registers between are the
exponentials:

    column_in     reads x_c of every class, and returns
                      m = max_c x_c     u_c = (x_c - m) / (T ln 2)     e_c = 2**u_c
                      the sum t of the e_c of all classes but the target, and u of the target
    column_out    writes e_c * factor for every class, and `target` to the target class

The target class is kept out of the sum t. This makes nll and gradient accurate to the last bits
where the prediction is sure, because neither ln(1 + tiny) nor p - 1 is computed. The label is
compared with each class, so that it is never an index.

With AVX-512 all classes of a column fit the 32 registers up to `MAX_CLASSES`, and the loops over
the classes are unrolled. On other processors the exponentials lie in the first-level cache.
"""

import math

import numpy as np
from numba import types

from seg_loss.cpu.compiler import inner, intrinsic
from seg_loss.cpu.records import LANES
from seg_loss.cpu.simd import (
    FLOATS,
    constant,
    emit_exp2,
    emit_exponent,
    emit_load,
    emit_maximum,
    emit_store,
    equal,
    exp2,
    exponent,
    load,
    load_as,
    maximum,
    splat,
    store,
    store_as,
    where,
)


def make_column(num_classes, dtype_code, bypasses_caches):
    """Returns `column_in` and `column_out`.

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
            x = []
            for _ in range(num_classes):
                x.append(emit_load(builder, address, dtype_code, LANES))
                address = builder.add(address, step)
            # Two chains, so that an instruction need not wait for the one before it.
            tops = x[:2]
            for c in range(2, num_classes):
                tops[c % 2] = emit_maximum(builder, x[c], tops[c % 2])
            top = emit_maximum(builder, *tops) if num_classes > 1 else tops[0]
            shift = builder.fmul(top, scale)
            u_target = constant(float32, -math.inf)
            sums = [constant(float32, 0.0)] * 2
            e = []
            for c in range(num_classes):
                u = emit_exponent(builder, x[c], top, scale, shift)
                is_target = builder.icmp_signed("==", y, constant(int32, c))
                u_target = builder.select(is_target, u, u_target)
                e.append(builder.select(is_target, constant(float32, 0.0), emit_exp2(builder, u)))
                sums[c % 2] = builder.fadd(sums[c % 2], e[c])
            values = [
                builder.fadd(*sums), u_target, context.make_tuple(builder, exponentials, e),
            ]  # fmt: skip
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

    return column_in, column_out


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
        shift = top * scale
        zero = splat(np.float32(0))
        u_target = splat(np.float32(-np.inf))
        t = zero
        for c in range(num_classes):
            u = exponent(load(scratch, c * LANES), top, scale, shift)
            is_target = equal(y, splat(np.int32(c)))
            u_target = where(is_target, u, u_target)
            e = where(is_target, zero, exp2(u))
            store(scratch, c * LANES, e)
            t = t + e
        return t, u_target, scratch

    @inner(types.void)
    def column_out(target, step, num_classes, y, e, factor, target_value):
        for c in range(num_classes):
            is_target = equal(y, splat(np.int32(c)))
            value = where(is_target, target_value, load(e, c * LANES) * factor)
            store_as(dtype_code, bypasses_caches, target, value)
            target += step

    return column_in, column_out
