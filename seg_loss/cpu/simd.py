"""Short vectors for Numba kernels: `LANES` pixels side by side, held in registers.

Numba leaves vectorisation to LLVM, which fails on loops with several arrays, and it has no
vectorised exp. This module makes a vector a Numba type: `load` it from memory, compute with
`+ - * /`, `fma`, `maximum`, `where`, and `store` it. LLVM splits or joins the lanes to the width of
the processor, so the same code runs on AVX2, AVX-512 and NEON. Every lane goes through the same
operations in the same order wherever a tile begins or ends.

Only kernels import this module. Memory is named by its address. Memory whose dtype is known only at
run time is read by `load_row` and `load_integers`, so that one compiled kernel serves every dtype.
"""

import functools
import math
import operator

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import (
    intrinsic,
    lower_builtin,
    models,
    register_model,
    type_callable,
)

from seg_loss.cpu.compiler import inner, inner_by_element
from seg_loss.cpu.records import BFLOAT16, DTYPES, FLOAT16, FLOAT32, FLOAT64, ITEMSIZES, LANES
from seg_loss.cpu.target import target


class VectorType(types.Type):
    """`LANES` elements of one scalar type: a float, an integer, or a boolean for masks."""

    def __init__(self, element):
        self.element = element
        super().__init__(name=f"Vector({element})")


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    """A vector is an LLVM vector."""

    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, _llvm_vector(fe_type.element))


FLOATS = VectorType(types.float32)
_LLVM_ELEMENT = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: ir.IntType(32),
    types.int64: ir.IntType(64),
    types.boolean: ir.IntType(1),
}
_BYTES = {types.float32: 4, types.float64: 8, types.int32: 4, types.int64: 8}


def _llvm_vector(element):
    return ir.VectorType(_LLVM_ELEMENT[element], LANES)


def constant(element, value):
    return ir.Constant(_llvm_vector(element), [value] * LANES)


def _splat(builder, scalar):
    vector = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    vector = builder.insert_element(vector, scalar, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(vector, vector, mask)


def _call_llvm(builder, name, args):
    """Calls LLVM's elementwise operation, such as `llvm.fma.v8f32`, on vectors of one type."""
    dtype_code = args[0].type
    suffix = {ir.FloatType(): "f32", ir.DoubleType(): "f64"}[dtype_code.element]
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(dtype_code, [dtype_code] * len(args)),
        f"llvm.{name}.v{LANES}{suffix}",
    )
    return builder.call(function, args)


def emit_fma(builder, a, b, c):
    """Emits a * b + c. Without an instruction for it LLVM would call a function for each lane."""
    if target().has_fma:
        return _call_llvm(builder, "fma", [a, b, c])
    return builder.fadd(builder.fmul(a, b), c)


def emit_maximum(builder, a, b):
    """Emits the larger of each pair, `b` where either is NaN: one instruction on x86."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


# -- memory ----------------------------------------------------------------------------------------


@intrinsic
def record_at(typingctx, address, dtype):
    """Returns the record of a structured dtype at an address."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return dtype.dtype(types.int64, dtype), codegen


@intrinsic
def fetch_add(typingctx, address, value):
    """Adds to an int64 that threads share, and returns what it was before."""

    def codegen(context, builder, signature, args):
        shared = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", shared, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def load_shared(typingctx, address):
    """Returns an int64 that another thread may change."""

    def codegen(context, builder, signature, args):
        shared = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(shared, "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def pause(typingctx):
    """Tells the processor that this thread waits in a loop."""

    def codegen(context, builder, signature, args):
        if target().triple.startswith(("x86_64", "i")):
            nothing = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, nothing, name), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def pointer(typingctx, address, dtype):
    """Returns the address as a pointer to elements of `dtype`."""
    element = dtype.dtype

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(element)(types.int64, dtype), codegen


@intrinsic
def memory(typingctx, array):
    """Returns the pointer to the first element of a NumPy array."""

    def codegen(context, builder, signature, args):
        return context.make_array(array)(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def address_of(typingctx, array):
    """Returns the address that a pointer holds."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(array), codegen


@intrinsic
def at(typingctx, array, index):
    """Returns the pointer to element `index` of `array`."""

    def codegen(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return array(array, types.int64), codegen


def _vector_address(builder, array, index):
    element = array.type.pointee
    address = builder.gep(array, [index])
    return builder.bitcast(address, ir.VectorType(element, LANES).as_pointer())


@intrinsic
def load(typingctx, array, index):
    """Loads elements [index, index + LANES) of `array`; any alignment."""

    def codegen(context, builder, signature, args):
        value = builder.load(_vector_address(builder, *args))
        value.align = _BYTES[array.dtype]
        return value

    return VectorType(array.dtype)(array, types.int64), codegen


@intrinsic
def store(typingctx, array, index, vector):
    """Stores `vector` to elements [index, index + LANES) of `array`; any alignment."""

    def codegen(context, builder, signature, args):
        instruction = builder.store(args[2], _vector_address(builder, *args[:2]))
        instruction.align = _BYTES[array.dtype]
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), codegen


# -- memory of any dtype ---------------------------------------------------------------------------


def _by_dtype(builder, dtype_code, emit):
    """Emits a branch for each dtype code k, in which `emit[k]()` emits code.

    Returns the value of the branch taken, if `emit` returns values.
    """
    end = builder.append_basic_block("end")
    values = []
    for k, body in emit.items():
        match = builder.append_basic_block(DTYPES[k])
        other = builder.append_basic_block("other")
        is_k = builder.icmp_signed("==", dtype_code, ir.Constant(dtype_code.type, k))
        builder.cbranch(is_k, match, other)
        builder.position_at_end(match)
        values.append((body(), builder.block))
        builder.branch(end)
        builder.position_at_end(other)
    # The caller passes no other code.
    builder.unreachable()
    builder.position_at_end(end)
    if values[0][0] is None:
        return None
    phi = builder.phi(values[0][0].type)
    for value, block in values:
        phi.add_incoming(value, block)
    return phi


def _load_raw(builder, address, element, lanes, align):
    value = builder.load(builder.inttoptr(address, ir.VectorType(element, lanes).as_pointer()))
    value.align = align
    return value


def _dtype_codes_for(element):
    """Returns the codes of the dtypes that rows of `element` are loaded from and stored to."""
    return (FLOAT64,) if element == ir.DoubleType() else (FLOAT32, FLOAT16, BFLOAT16)


_FLOAT = ir.FloatType()


def emit_load(builder, address, dtype_code, lanes, element=_FLOAT):
    """Loads lanes of float32 or float64 from memory of a known dtype; exact."""
    target = ir.VectorType(element, lanes)
    if dtype_code in (FLOAT32, FLOAT64):
        return _load_raw(builder, address, element, lanes, ITEMSIZES[dtype_code])
    bits = _load_raw(builder, address, ir.IntType(16), lanes, 2)
    if dtype_code == FLOAT16:
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), lanes)), target)
    # bfloat16 is the upper half of float32.
    word = ir.VectorType(ir.IntType(32), lanes)
    sixteen = ir.Constant(word, [16] * lanes)
    return builder.bitcast(builder.shl(builder.zext(bits, word), sixteen), target)


def emit_store(builder, address, dtype_code, value, streamed):
    """The reverse of `emit_load`; rounds to nearest even and keeps NaN."""
    lanes = value.type.count
    short = ir.VectorType(ir.IntType(16), lanes)
    if dtype_code == FLOAT16:
        half = builder.fptrunc(value, ir.VectorType(ir.HalfType(), lanes))
        value = builder.bitcast(half, short)
    elif dtype_code == BFLOAT16:
        word = ir.VectorType(ir.IntType(32), lanes)

        def constant(number):
            return ir.Constant(word, [number] * lanes)

        bits = builder.bitcast(value, word)
        odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
        rounded = builder.add(bits, builder.add(odd, constant(0x7FFF)))
        # Rounding could carry the payload of a NaN into the exponent or the sign.
        quiet = builder.or_(bits, constant(0x400000))
        bits = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
        value = builder.trunc(builder.lshr(bits, constant(16)), short)
    instruction = builder.store(value, builder.inttoptr(address, value.type.as_pointer()))
    instruction.align = ITEMSIZES[dtype_code] * (lanes if streamed else 1)
    if streamed:
        one = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        instruction.set_metadata("nontemporal", one)


@intrinsic
def load_row(typingctx, row, address, dtype_code, factor, n):
    """Loads elements [0, n) of memory, times `factor`, to `row`; n is a multiple of LANES.

    Rows of float32 accept float32, float16 and bfloat16; rows of float64 accept float64. The dtype
    is compared once per row and not in each turn of the loop.
    """

    def codegen(context, builder, signature, args):
        row_, address_, kind_, factor_, n_ = args
        element = _LLVM_ELEMENT[row.dtype]

        def copy_from(source_dtype):
            with cgutils.for_range_slice(builder, n_.type(0), n_, n_.type(LANES)) as (i, _):
                position = builder.add(address_, builder.mul(i, i.type(ITEMSIZES[source_dtype])))
                value = emit_load(builder, position, source_dtype, LANES, element)
                target = builder.store(
                    builder.fmul(value, factor_), _vector_address(builder, row_, i)
                )
                target.align = _BYTES[row.dtype]

        _by_dtype(
            builder, kind_, {k: functools.partial(copy_from, k) for k in _dtype_codes_for(element)}
        )
        return context.get_dummy_value()

    arguments = (row, types.int64, types.int64, VectorType(row.dtype), types.int64)
    return types.void(*arguments), codegen


@intrinsic
def store_row(typingctx, address, dtype_code, streamed, row, factors, start, end):
    """Stores elements [start, end) of `row`, times those of `factors`, to memory: whole vectors.

    If `streamed`, the stores bypass the caches, so that memory is not read first. Element `start`
    must then lie at a multiple of a vector's size.
    """

    def codegen(context, builder, signature, args):
        address_, kind_, streamed_, row_, factors_, start_, end_ = args
        element = _LLVM_ELEMENT[row.dtype]

        def write_loop(target_dtype, is_streamed):
            with cgutils.for_range_slice(builder, start_, end_, end_.type(LANES)) as (i, _):
                values = []
                for source in (row_, factors_):
                    values.append(builder.load(_vector_address(builder, source, i)))
                    values[-1].align = _BYTES[row.dtype]
                position = builder.add(address_, builder.mul(i, i.type(ITEMSIZES[target_dtype])))
                value = builder.fmul(*values)
                emit_store(builder, position, target_dtype, value, is_streamed)

        def copy_to(target_dtype):
            streams = builder.icmp_signed("!=", streamed_, streamed_.type(0))
            with builder.if_else(streams) as (then, otherwise):
                with then:
                    write_loop(target_dtype, True)
                with otherwise:
                    write_loop(target_dtype, False)

        _by_dtype(
            builder, kind_, {k: functools.partial(copy_to, k) for k in _dtype_codes_for(element)}
        )
        return context.get_dummy_value()

    word = types.int64
    return types.void(word, word, word, row, row, word, word), codegen


@intrinsic(prefer_literal=True)
def load_as(typingctx, dtype_code, address):
    """Loads a vector of float32 from memory of a dtype known when the kernel is compiled."""
    code = dtype_code.literal_value

    def codegen(context, builder, signature, args):
        return emit_load(builder, args[1], code, LANES)

    return FLOATS(dtype_code, types.int64), codegen


@intrinsic(prefer_literal=True)
def store_as(typingctx, dtype_code, streamed, address, vector):
    """Stores a vector of float32 to memory of such a dtype; `streamed` as in `store_row`."""
    code, is_streamed = dtype_code.literal_value, streamed.literal_value

    def codegen(context, builder, signature, args):
        emit_store(builder, args[2], code, args[3], is_streamed)
        return context.get_dummy_value()

    return types.void(dtype_code, streamed, types.int64, vector), codegen


@intrinsic
def load_float(typingctx, rows, address, dtype_code):
    """Loads one element of memory as an element of `rows`."""

    def codegen(context, builder, signature, args):
        element = _LLVM_ELEMENT[rows.dtype]
        first = ir.Constant(ir.IntType(32), 0)

        def load_from(source_dtype):
            value = emit_load(builder, args[1], source_dtype, 1, element)
            return builder.extract_element(value, first)

        dtype_codes = {k: functools.partial(load_from, k) for k in _dtype_codes_for(element)}
        return _by_dtype(builder, args[2], dtype_codes)

    return rows.dtype(rows, types.int64, types.int64), codegen


@intrinsic
def store_float(typingctx, address, dtype_code, scalar):
    """Stores one element to memory."""

    def codegen(context, builder, signature, args):
        one = ir.Constant(ir.VectorType(args[2].type, 1), ir.Undefined)
        one = builder.insert_element(one, args[2], ir.Constant(ir.IntType(32), 0))

        def store_to(target_dtype):
            emit_store(builder, args[0], target_dtype, one, False)

        dtype_codes = {k: functools.partial(store_to, k) for k in _dtype_codes_for(args[2].type)}
        _by_dtype(builder, args[1], dtype_codes)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, scalar), codegen


def _emit_load_integers(builder, address, dtype_code, lanes):
    wide = ir.VectorType(ir.IntType(64), lanes)

    def read(bits, extend):
        value = _load_raw(builder, address, ir.IntType(bits), lanes, bits // 8)
        return value if bits == 64 else extend(value, wide)

    emit = {
        4: lambda: read(8, builder.zext),
        5: lambda: read(8, builder.sext),
        6: lambda: read(16, builder.sext),
        7: lambda: read(32, builder.sext),
        8: lambda: read(64, builder.sext),
    }
    return _by_dtype(builder, dtype_code, emit)


@intrinsic
def load_integers(typingctx, address, dtype_code):
    """Loads a vector of int64 from integer memory."""

    def codegen(context, builder, signature, args):
        return _emit_load_integers(builder, *args, LANES)

    return VectorType(types.int64)(types.int64, types.int64), codegen


@intrinsic
def load_integer(typingctx, address, dtype_code):
    """Loads one int64 from integer memory."""

    def codegen(context, builder, signature, args):
        value = _emit_load_integers(builder, *args, 1)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return types.int64(types.int64, types.int64), codegen


# -- arithmetic ------------------------------------------------------------------------------------


@intrinsic
def splat(typingctx, scalar):
    """Returns a vector with the same scalar in every lane."""

    def codegen(context, builder, signature, args):
        return _splat(builder, args[0])

    return VectorType(scalar)(scalar), codegen


@intrinsic
def broadcast(typingctx, array, value):
    """Returns a vector of the type that `array` points to, `value` (float64) in every lane."""

    def codegen(context, builder, signature, args):
        dtype_code = _LLVM_ELEMENT[array.dtype]
        value = args[1] if dtype_code == args[1].type else builder.fptrunc(args[1], dtype_code)
        return _splat(builder, value)

    return VectorType(array.dtype)(array, types.float64), codegen


def _operator(symbol, emit, arity):
    """Defines the operator `symbol` between vectors of one type."""

    @type_callable(symbol)
    def typing(context):
        def typer(*args):
            if len(args) == arity and isinstance(args[0], VectorType) and len(set(args)) == 1:
                return args[0]
            return None

        return typer

    @lower_builtin(symbol, *[VectorType] * arity)
    def lowering(context, builder, signature, args):
        return emit(builder, *args)


def _emit_sum(builder, a, b):
    is_integer = isinstance(a.type.element, ir.IntType)
    return builder.add(a, b) if is_integer else builder.fadd(a, b)


_operator(operator.add, _emit_sum, 2)
_operator(operator.sub, lambda builder, a, b: builder.fsub(a, b), 2)
_operator(operator.mul, lambda builder, a, b: builder.fmul(a, b), 2)
_operator(operator.truediv, lambda builder, a, b: builder.fdiv(a, b), 2)
_operator(operator.neg, lambda builder, a: builder.fneg(a), 1)


@intrinsic
def mask_and(typingctx, a, b):
    """Returns the lanes set in both masks."""

    def codegen(context, builder, signature, args):
        return builder.and_(*args)

    return a(a, b), codegen


def _comparison(symbol):
    @intrinsic
    def operation(typingctx, a, b):
        def codegen(context, builder, signature, args):
            if isinstance(a.element, types.Integer):
                return builder.icmp_signed(symbol, *args)
            return builder.fcmp_ordered(symbol, *args)

        return VectorType(types.boolean)(a, b), codegen

    return operation


less = _comparison("<")  # false where either is NaN
equal = _comparison("==")


@intrinsic
def in_range(typingctx, a, num_classes):
    """Returns the lanes of integers with 0 <= a < num_classes, by one unsigned comparison."""

    def codegen(context, builder, signature, args):
        return builder.icmp_unsigned("<", args[0], _splat(builder, args[1]))

    return VectorType(types.boolean)(a, a.element), codegen


@intrinsic
def narrowed(typingctx, a):
    """Returns int64 lanes as int32; the upper halves are dropped."""

    def codegen(context, builder, signature, args):
        return builder.trunc(args[0], _llvm_vector(types.int32))

    return VectorType(types.int32)(a), codegen


@intrinsic
def sum_of_integers(typingctx, vector):
    """Returns the sum of int32 lanes as int64."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        lanes = [
            builder.sext(builder.extract_element(args[0], ir.Constant(ir.IntType(32), j)), word)
            for j in range(LANES)
        ]
        return functools.reduce(builder.add, lanes)

    return types.int64(vector), codegen


@intrinsic
def sum_of_lanes(typingctx, vector):
    """Returns the sum of float64 lanes, added in their order."""

    def codegen(context, builder, signature, args):
        lanes = [
            builder.extract_element(args[0], ir.Constant(ir.IntType(32), j)) for j in range(LANES)
        ]
        return functools.reduce(builder.fadd, lanes)

    return types.float64(vector), codegen


@intrinsic
def is_infinite_or_nan(typingctx, a):
    """Returns the lanes that are not finite; a is not negative."""

    def codegen(context, builder, signature, args):
        return builder.fcmp_unordered("ueq", args[0], constant(a.element, math.inf))

    return VectorType(types.boolean)(a), codegen


@intrinsic
def is_nan(typingctx, a):
    """Returns the lanes that hold NaN."""

    def codegen(context, builder, signature, args):
        return builder.fcmp_unordered("uno", args[0], args[0])

    return VectorType(types.boolean)(a), codegen


@intrinsic
def where(typingctx, mask, a, b):
    """Returns `a` in the lanes where `mask` is set, and `b` in the others."""

    def codegen(context, builder, signature, args):
        return builder.select(*args)

    return a(mask, a, b), codegen


@intrinsic
def maximum(typingctx, a, b):
    """Returns the larger of each pair, and `b` where either is NaN (one instruction on x86)."""

    def codegen(context, builder, signature, args):
        return emit_maximum(builder, *args)

    return a(a, b), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """Returns a * b + c, rounded once where the processor has such an instruction."""

    def codegen(context, builder, signature, args):
        return emit_fma(builder, *args)

    return a(a, b, c), codegen


@intrinsic
def two_sum(typingctx, a, b):
    """Returns a + b and its rounding error (Knuth)."""

    def codegen(context, builder, signature, args):
        a, b = args
        total = builder.fadd(a, b)
        added = builder.fsub(total, a)
        error = builder.fadd(builder.fsub(a, builder.fsub(total, added)), builder.fsub(b, added))
        return context.make_tuple(builder, signature.return_type, [total, error])

    return types.UniTuple(a, 2)(a, b), codegen


@intrinsic
def min_int(typingctx, a, b):
    """Returns the smaller of two integers; Numba's own `min` takes long to compile."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.icmp_signed("<", *args), *args)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def any_lane(typingctx, mask):
    """Returns whether any lane of `mask` is set."""

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask), codegen


@intrinsic
def lane(typingctx, vector, index):
    """Returns one element."""

    def codegen(context, builder, signature, args):
        return builder.extract_element(args[0], args[1])

    return vector.element(vector, types.int64), codegen


@intrinsic
def widened(typingctx, vector):
    """Returns float32 or float64 lanes as float64."""

    def codegen(context, builder, signature, args):
        if vector.element == types.float64:
            return args[0]
        return builder.fpext(args[0], _llvm_vector(types.float64))

    return VectorType(types.float64)(vector), codegen


# -- the exponential and the logarithm -------------------------------------------------------------


@intrinsic
def _power_of_two(typingctx, shifted):
    """Returns 2**n, where the low bits of `shifted` hold n + 127, float32's own exponent.

    It is 0 for n = -127.
    """

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], _llvm_vector(types.int32))
        bits = builder.shl(bits, constant(types.int32, 23))
        return builder.bitcast(bits, args[0].type)

    return shifted(shifted), codegen


@intrinsic
def _split_exponent(typingctx, value):
    """Returns positive normal float32 as (n, m): value = m * 2**n, m in [sqrt(1/2), sqrt(2))."""

    def codegen(context, builder, signature, args):
        # Adding 1 - sqrt(1/2) carries into the exponent exactly where m >= sqrt(2).
        bits = builder.bitcast(args[0], _llvm_vector(types.int32))
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
            return _call_llvm(builder, name, args)

        return value(value), codegen

    return operation


def emit_exponent(builder, x, top, scale, shift):
    """Emits (x - top) * scale, where `shift` is top * scale.

    An fma has the accuracy of a difference first; without one the difference must come first.
    """
    if target().has_fma:
        return emit_fma(builder, x, scale, builder.fneg(shift))
    return builder.fmul(builder.fsub(x, top), scale)


@intrinsic
def exponent(typingctx, x, top, scale, shift):
    """Returns (x - top) * scale; see `emit_exponent`."""

    def codegen(context, builder, signature, args):
        return emit_exponent(builder, *args)

    return x(x, top, scale, shift), codegen


@intrinsic
def exp2(typingctx, u):
    """Returns 2**u in every lane of float32, for u at most a little above 0, or NaN."""

    def codegen(context, builder, signature, args):
        return emit_exp2(builder, args[0])

    return u(u), codegen


def emit_exp2(builder, u):
    """Emits 2**u for float32 lanes; the relative error is 6e-8, and 2**0 is 1.

    2**u = 2**n p(f) with u = n + f. AVX-512 has instructions for f = u - floor(u) and for the
    multiplication by 2**n. Elsewhere n is rounded to nearest, by adding a large number, and 0 is
    returned below 2**-126.
    """
    if target().has_avx512:
        f = _call_avx512(builder, "reduce", u, ir.Constant(ir.IntType(32), 0x09))
        return _call_avx512(builder, "scalef", _emit_polynomial(builder, _EXP2_OF_FLOOR, f), u)
    float32 = types.float32
    u = emit_maximum(builder, constant(float32, -127.0), u)
    shifted = builder.fadd(u, constant(float32, float(_ROUNDING)))
    f = builder.fsub(u, builder.fsub(shifted, constant(float32, float(_ROUNDING))))
    bits = builder.bitcast(shifted, _llvm_vector(types.int32))
    power = builder.bitcast(builder.shl(bits, constant(types.int32, 23)), u.type)
    return builder.fmul(_emit_polynomial(builder, _EXP2, f), power)


def _emit_polynomial(builder, coefficients, x):
    """Emits a polynomial, the coefficient of the highest power first."""
    total = constant(types.float32, coefficients[0])
    for coefficient in coefficients[1:]:
        total = emit_fma(builder, total, x, constant(types.float32, coefficient))
    return total


def _call_avx512(builder, name, *args):
    """Calls an instruction on 16 float32 lanes, without a mask."""
    vector, integer = args[0].type, ir.IntType(32)
    args = (
        *args,
        ir.Constant(vector, ir.Undefined),
        ir.Constant(ir.IntType(16), -1),
        ir.Constant(integer, 4),
    )  # 4: the current rounding direction
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(vector, [argument.type for argument in args]),
        f"llvm.x86.avx512.mask.{name}.ps.512",
    )
    return builder.call(function, args)


# 2**f: minimax in relative error, with a constant of 1. On [0, 1) and on [-1/2, 1/2].
_EXP2_OF_FLOOR = (
    0.000217022549, 0.00124396873, 0.00967884064, 0.0554833412, 0.24022983, 0.693147004, 1.0,
)  # fmt: skip
_EXP2 = (
    0.000153533606, 0.00133988749, 0.00961843737, 0.0555033247, 0.240226479, 0.693147203, 1.0,
)  # fmt: skip

_libm_exp = _libm("exp")
_libm_log = _libm("log")

_f32 = np.float32
_LOG2_E = _f32(math.log2(math.e))
_ROUNDING = _f32(1.5 * 2**23 + 127)  # adding it rounds to an integer and biases it for the exponent
_LEAST = _f32(-88.02)  # rounds to 2**-127, below the normal range of float32: exp is 0
# 2**f = 1 + f * (E1 + E2 f + ...) on [-1/2, 1/2]: minimax in relative error, 2e-9 before rounding.
_E1 = _f32(6.93147203e-01)
_E2 = _f32(2.40226479e-01)
_E3 = _f32(5.55033247e-02)
_E4 = _f32(9.61843737e-03)
_E5 = _f32(1.33988749e-03)
_E6 = _f32(1.53533606e-04)


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
    # x = n ln 2 + f ln 2 with |f| <= 1/2. The clamp keeps n >= -127 and lets NaN through.
    x = maximum(splat(_LEAST), x)
    shifted = fma(x, splat(_LOG2_E), splat(_ROUNDING))
    n = shifted - splat(_ROUNDING)
    f = fma(x, splat(_LOG2_E), -n)
    p = fma(splat(_E6), f, splat(_E5))
    p = fma(p, f, splat(_E4))
    p = fma(p, f, splat(_E3))
    p = fma(p, f, splat(_E2))
    p = fma(p, f, splat(_E1))
    p = fma(p, f, splat(_f32(1)))
    return p * _power_of_two(shifted)


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
