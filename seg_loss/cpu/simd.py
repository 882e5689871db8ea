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
import operator

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import (
    lower_builtin,
    models,
    register_model,
    type_callable,
)

from seg_loss.cpu.compiler import intrinsic
from seg_loss.cpu.records import LANES
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
        super().__init__(manager, fe_type, llvm_vector(fe_type.element))


FLOATS, INTEGERS = VectorType(types.float32), VectorType(types.int32)
LLVM_ELEMENT = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: ir.IntType(32),
    types.int64: ir.IntType(64),
    types.boolean: ir.IntType(1),
}
BYTES = {types.float32: 4, types.float64: 8, types.int32: 4, types.int64: 8}


def llvm_vector(element):
    return ir.VectorType(LLVM_ELEMENT[element], LANES)


def constant(element, value):
    return ir.Constant(llvm_vector(element), [value] * LANES)


def _splat(builder, scalar):
    vector = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    vector = builder.insert_element(vector, scalar, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(vector, vector, mask)


def call_llvm(builder, name, args):
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
        return call_llvm(builder, "fma", [a, b, c])
    return builder.fadd(builder.fmul(a, b), c)


def emit_maximum(builder, a, b):
    """Emits the larger of each pair, `b` where either is NaN: one instruction on x86."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def emit_loop(builder, count, initial, body):
    """Emits a loop of at least one turn; `body(i, values)` returns the values of the next turn."""
    before = builder.block
    block, end = builder.append_basic_block("turn"), builder.append_basic_block("end")
    builder.branch(block)
    builder.position_at_end(block)
    i = builder.phi(count.type)
    i.add_incoming(count.type(0), before)
    values = []
    for value in initial:
        values.append(builder.phi(value.type))
        values[-1].add_incoming(value, before)
    results = body(i, values)
    following = builder.add(i, count.type(1))
    i.add_incoming(following, builder.block)
    for phi, result in zip(values, results, strict=True):
        phi.add_incoming(result, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), block, end)
    builder.position_at_end(end)
    return results


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
    """Slows a loop down in which a thread waits."""

    def codegen(context, builder, signature, args):
        if target().triple.startswith(("x86_64", "i")):
            nothing = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, nothing, name), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_processor(typingctx):
    """Lets another thread run, where the C library has a function for it."""

    def codegen(context, builder, signature, args):
        if "windows" not in target().triple:
            function = ir.FunctionType(ir.IntType(32), [])
            name = "sched_yield"
            builder.call(cgutils.get_or_insert_function(builder.module, function, name), [])
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


def vector_address(builder, array, index):
    element = array.type.pointee
    address = builder.gep(array, [index])
    return builder.bitcast(address, ir.VectorType(element, LANES).as_pointer())


@intrinsic
def load(typingctx, array, index):
    """Loads elements [index, index + LANES) of `array`; any alignment."""

    def codegen(context, builder, signature, args):
        value = builder.load(vector_address(builder, *args))
        value.align = BYTES[array.dtype]
        return value

    return VectorType(array.dtype)(array, types.int64), codegen


@intrinsic
def store(typingctx, array, index, vector):
    """Stores `vector` to elements [index, index + LANES) of `array`; any alignment."""

    def codegen(context, builder, signature, args):
        instruction = builder.store(args[2], vector_address(builder, *args[:2]))
        instruction.align = BYTES[array.dtype]
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), codegen


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
        dtype_code = LLVM_ELEMENT[array.dtype]
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
        return builder.trunc(args[0], llvm_vector(types.int32))

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
def min_int(typingctx, a, b):
    """Returns the smaller of two integers; Numba's own `min` takes long to compile."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.icmp_signed("<", *args), *args)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def ceiling(typingctx, a):
    """Returns the smallest integers that are not less than float32 lanes, as int32."""

    def codegen(context, builder, signature, args):
        return builder.fptosi(call_llvm(builder, "ceil", args), llvm_vector(types.int32))

    return INTEGERS(a), codegen


@intrinsic
def truncated(typingctx, a):
    """Returns float32 lanes as int32, rounded towards 0."""

    def codegen(context, builder, signature, args):
        return builder.fptosi(args[0], llvm_vector(types.int32))

    return INTEGERS(a), codegen


@intrinsic
def times(typingctx, a, factor):
    """Returns int32 lanes times a number."""

    def codegen(context, builder, signature, args):
        factor = builder.trunc(args[1], ir.IntType(32))
        return builder.mul(args[0], _splat(builder, factor))

    return INTEGERS(a, types.int64), codegen


@intrinsic
def count_lanes(typingctx, mask):
    """Returns the number of lanes of `mask` that are set."""

    def codegen(context, builder, signature, args):
        bits = builder.zext(builder.bitcast(args[0], ir.IntType(LANES)), ir.IntType(64))
        return builder.ctpop(bits)

    return types.int64(mask), codegen


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
        return builder.fpext(args[0], llvm_vector(types.float64))

    return VectorType(types.float64)(vector), codegen
