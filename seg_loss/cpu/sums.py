"""Sums over many classes, whose error does not grow with their number.

A float32 sum of 32,000 classes, one after another, loses a digit. Here the classes of a block are
added one after another, and the blocks with compensation: `low` collects what each addition to
`high` rounds away. The sum of one block is the same, to the last bit, as without compensation.
"""

import llvmlite.ir as ir
from numba import types

from seg_loss.cpu.compiler import intrinsic

SUM_BLOCK = 64
"""Number of classes of a block."""


@intrinsic
def add_block(typingctx, high, low, value):
    """Returns high + low with the sum of a block added (Knuth's TwoSum); start with zeros.

    The sum itself is high + low. Infinity stays infinity, and NaN stays NaN.
    """

    def codegen(context, builder, signature, args):
        return context.make_tuple(builder, signature.return_type, emit_add_block(builder, *args))

    return types.UniTuple(high, 2)(high, low, value), codegen


def emit_add_block(builder, high, low, value):
    """Emits `add_block`."""
    total = builder.fadd(high, value)
    part = builder.fsub(total, high)
    error = builder.fsub(high, builder.fsub(total, part))
    error = builder.fadd(error, builder.fsub(value, part))
    # Infinity minus infinity is NaN.
    is_number = builder.fcmp_ordered("==", error, error)
    error = builder.select(is_number, error, ir.Constant(error.type, None))
    return [total, builder.fadd(low, error)]
