"""Memory of any dtype: loads and stores of vectors of 16 elements, converted to float32 or int64.

The dtype is known when a kernel is compiled (`load_as`, `store_as`), or only when it runs
(`load_row`, `load_integers` and the like): one kernel then serves every dtype.
"""

import functools

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils

from seg_loss.cpu.compiler import intrinsic
from seg_loss.cpu.records import (
    BFLOAT16,
    DTYPES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    ITEMSIZES,
    LANES,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
)
from seg_loss.cpu.simd import (
    BYTES,
    FLOATS,
    LLVM_ELEMENT,
    VectorType,
    vector_address,
)
from seg_loss.cpu.target import target


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
    if dtype_code == FLOAT16 and not _has_half():
        return _emit_widen_half(builder, bits)
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
    if dtype_code == FLOAT16 and not _has_half():
        value = _emit_narrow_to_half(builder, value)
    elif dtype_code == FLOAT16:
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


@intrinsic(prefer_literal=True)
def transpose_in(typingctx, size, source, offsets, target, target_step):
    """Copies LANES elements of each of LANES pixels to LANES vectors, one for each element.

    The elements of a pixel are adjacent, `offsets` elements of `size` bytes behind `source`. The
    vectors lie `target_step` bytes apart.
    """
    num_bytes = size.literal_value
    element = ir.IntType(8 * num_bytes)

    def codegen(context, builder, signature, args):
        _, source, offsets, target, step = args
        pixels = []
        for i in range(LANES):
            offset = builder.load(builder.gep(offsets, [step.type(i)]))
            address = builder.add(source, builder.mul(offset, step.type(num_bytes)))
            pixels.append(_load_raw(builder, address, element, LANES, num_bytes))
        for vector in _emit_transpose(builder, pixels):
            pointer = builder.inttoptr(target, vector.type.as_pointer())
            builder.store(vector, pointer).align = num_bytes
            target = builder.add(target, step)
        return context.get_dummy_value()

    word = types.int64
    return types.void(size, word, types.CPointer(types.int64), word, word), codegen


@intrinsic(prefer_literal=True)
def transpose_out(typingctx, size, source, source_step, target, offsets):
    """Copies LANES vectors to LANES elements of each of LANES pixels; see `transpose_in`."""
    num_bytes = size.literal_value
    element = ir.IntType(8 * num_bytes)

    def codegen(context, builder, signature, args):
        _, source, step, target, offsets = args
        vectors = []
        for _ in range(LANES):
            vectors.append(_load_raw(builder, source, element, LANES, num_bytes))
            source = builder.add(source, step)
        for i, pixel in enumerate(_emit_transpose(builder, vectors)):
            offset = builder.load(builder.gep(offsets, [step.type(i)]))
            address = builder.add(target, builder.mul(offset, step.type(num_bytes)))
            pointer = builder.inttoptr(address, pixel.type.as_pointer())
            builder.store(pixel, pointer).align = num_bytes
        return context.get_dummy_value()

    word = types.int64
    return types.void(size, word, word, word, types.CPointer(types.int64)), codegen


def _emit_transpose(builder, rows):
    """Emits the columns of LANES vectors; each step interleaves the first half with the second."""
    half = LANES // 2
    index = ir.VectorType(ir.IntType(32), LANES)
    masks = [
        ir.Constant(index, [lane for k in range(start, start + half) for lane in (k, LANES + k)])
        for start in (0, half)
    ]
    for _ in range(LANES.bit_length() - 1):
        rows = [
            builder.shuffle_vector(rows[i], rows[half + i], mask)
            for i in range(half)
            for mask in masks
        ]
    return rows


def emit_prefetch(builder, address):
    """Asks for the cache line of an address, which need not be valid."""
    byte = ir.IntType(8).as_pointer()
    integer = ir.IntType(32)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte] + [integer] * 3), "llvm.prefetch.p0"
    )
    # To read, into all caches, as data.
    arguments = [ir.Constant(integer, value) for value in (0, 3, 1)]
    builder.call(function, [builder.inttoptr(address, byte), *arguments])


# LLVM calls functions that this process may lack where the processor does not convert float16.


def _has_half():
    return target().has_half


def _emit_widen_half(builder, bits):
    """Emits float16 bits as float32, exactly, by integers.

    The bits of the magnitude are shifted to those of float32, and the bias of the exponent is
    adapted. A subnormal number gets the exponent of 2**-14, which is then subtracted.
    """
    constant = functools.partial(_integer_constant, bits.type.count)
    word = ir.VectorType(ir.IntType(32), bits.type.count)
    single = ir.VectorType(_FLOAT, bits.type.count)
    wide = builder.zext(bits, word)
    magnitude = builder.shl(builder.and_(wide, constant(0x7FFF)), constant(13))
    exponent = builder.and_(magnitude, constant(0x7C00 << 13))
    is_finite = builder.icmp_unsigned("!=", exponent, constant(0x7C00 << 13))
    bias = builder.select(is_finite, constant((127 - 15) << 23), constant((255 - 31) << 23))
    normal = builder.add(magnitude, bias)
    smallest = constant((127 - 14) << 23)
    subnormal = builder.fsub(
        builder.bitcast(builder.add(magnitude, smallest), single),
        builder.bitcast(smallest, single),
    )
    is_subnormal = builder.icmp_unsigned("==", exponent, constant(0))
    result = builder.select(is_subnormal, builder.bitcast(subnormal, word), normal)
    sign = builder.shl(builder.and_(wide, constant(0x8000)), constant(16))
    return builder.bitcast(builder.or_(result, sign), single)


def _emit_narrow_to_half(builder, value):
    """Emits the float16 bits of float32, rounded to nearest even; NaN stays NaN.

    A sum with 1/2 rounds numbers below 2**-14 to multiples of 2**-24, the subnormal numbers.
    """
    lanes = value.type.count
    constant = functools.partial(_integer_constant, lanes)
    bits = builder.bitcast(value, ir.VectorType(ir.IntType(32), lanes))
    sign = builder.and_(bits, constant(0x80000000))
    magnitude = builder.xor(bits, sign)
    odd = builder.and_(builder.lshr(magnitude, constant(13)), constant(1))
    rounded = builder.add(builder.add(magnitude, constant(0xFFF)), odd)
    normal = builder.lshr(builder.sub(rounded, constant((127 - 15) << 23)), constant(13))
    half = constant(0x3F000000)
    total = builder.fadd(builder.bitcast(magnitude, value.type), builder.bitcast(half, value.type))
    subnormal = builder.sub(builder.bitcast(total, bits.type), half)
    is_small = builder.icmp_unsigned("<", magnitude, constant((127 - 14) << 23))
    result = builder.select(is_small, subnormal, normal)
    is_large = builder.icmp_unsigned(">=", magnitude, constant((127 + 16) << 23))
    result = builder.select(is_large, constant(0x7C00), result)
    is_nan = builder.icmp_unsigned(">", magnitude, constant(0x7F800000))
    result = builder.select(is_nan, constant(0x7E00), result)
    result = builder.or_(result, builder.lshr(sign, constant(16)))
    return builder.trunc(result, ir.VectorType(ir.IntType(16), lanes))


def _integer_constant(lanes, number):
    return ir.Constant(ir.VectorType(ir.IntType(32), lanes), [number] * lanes)


@intrinsic
def load_row(typingctx, row, address, dtype_code, n):
    """Loads elements [0, n) of memory to `row`; n is a multiple of LANES.

    Rows of float32 accept float32, float16 and bfloat16; rows of float64 accept float64. The dtype
    is compared once per row and not in each turn of the loop.
    """

    def codegen(context, builder, signature, args):
        row_, address_, kind_, n_ = args
        element = LLVM_ELEMENT[row.dtype]

        def copy_from(source_dtype):
            with cgutils.for_range_slice(builder, n_.type(0), n_, n_.type(LANES)) as (i, _):
                position = builder.add(address_, builder.mul(i, i.type(ITEMSIZES[source_dtype])))
                value = emit_load(builder, position, source_dtype, LANES, element)
                target = builder.store(value, vector_address(builder, row_, i))
                target.align = BYTES[row.dtype]

        _by_dtype(
            builder, kind_, {k: functools.partial(copy_from, k) for k in _dtype_codes_for(element)}
        )
        return context.get_dummy_value()

    return types.void(row, types.int64, types.int64, types.int64), codegen


@intrinsic
def store_row(typingctx, address, dtype_code, streamed, row, factors, start, end):
    """Stores elements [start, end) of `row`, times those of `factors`, to memory: whole vectors.

    If `streamed`, the stores bypass the caches, so that memory is not read first. Element `start`
    must then lie at a multiple of a vector's size.
    """

    def codegen(context, builder, signature, args):
        address_, kind_, streamed_, row_, factors_, start_, end_ = args
        element = LLVM_ELEMENT[row.dtype]

        def write_loop(target_dtype, is_streamed):
            with cgutils.for_range_slice(builder, start_, end_, end_.type(LANES)) as (i, _):
                values = []
                for source in (row_, factors_):
                    values.append(builder.load(vector_address(builder, source, i)))
                    values[-1].align = BYTES[row.dtype]
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
        element = LLVM_ELEMENT[rows.dtype]
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
        UINT8: lambda: read(8, builder.zext),
        INT8: lambda: read(8, builder.sext),
        INT16: lambda: read(16, builder.sext),
        INT32: lambda: read(32, builder.sext),
        INT64: lambda: read(64, builder.sext),
        UINT16: lambda: read(16, builder.zext),
        UINT32: lambda: read(32, builder.zext),
        UINT64: lambda: read(64, builder.zext),
    }
    return _by_dtype(builder, dtype_code, emit)


@intrinsic
def load_integers(typingctx, address, dtype_code):
    """Loads a vector of int64 from integer memory; uint64 as int64 of the same bits."""

    def codegen(context, builder, signature, args):
        return _emit_load_integers(builder, *args, LANES)

    return VectorType(types.int64)(types.int64, types.int64), codegen


@intrinsic
def load_integer(typingctx, address, dtype_code):
    """Loads one int64 from integer memory, as `load_integers` does."""

    def codegen(context, builder, signature, args):
        value = _emit_load_integers(builder, *args, 1)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return types.int64(types.int64, types.int64), codegen
