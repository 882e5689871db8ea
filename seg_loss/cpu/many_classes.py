"""The loss of more classes than the registers hold: three tiles at a time.

A tile is 128 pixels of all classes: eight cache lines of each plane, since single lines of that
many planes would be read and written at half the speed. While one tile is computed in scratch
memory, the next one is copied in and the gradient of the previous one is written out, class by
class, so that the memory is never idle:

    for c in classes:    e_c = exp((x_c - m) / T)     t += e_c            the tile
                         x_c into scratch memory      m = max(m, x_c)     the next tile
                         e_c * factor to the gradient                     the previous tile

Scratch memory holds the tiles as rows, as `tiles` describes it. A tile that is not whole, or not
adjacent in memory, is copied before and after.
"""

import math

import numpy as np
from numba import types

from seg_loss.cpu.compiler import inner, intrinsic
from seg_loss.cpu.cross_entropy import load_weights, log_of_sum, store_terms
from seg_loss.cpu.dtypes import emit_load, emit_prefetch, emit_store
from seg_loss.cpu.exponential import emit_exp, scaled_exp
from seg_loss.cpu.records import FLOAT32, ITEMSIZES, LANES
from seg_loss.cpu.records import MANY_CLASSES_TILE as TILE
from seg_loss.cpu.region import add_terms, make_region
from seg_loss.cpu.rows import (
    fill,
    load_classes,
    load_rows,
    make_transposes,
    store_rows,
    strip_offsets,
)
from seg_loss.cpu.simd import (
    FLOATS,
    address_of,
    any_lane,
    at,
    count_lanes,
    emit_maximum,
    is_nan,
    less,
    load,
    mask_and,
    min_int,
    pointer,
    splat,
    store,
    sum_of_lanes,
    where,
    widened,
)
from seg_loss.cpu.sums import SUM_BLOCK, emit_add_block
from seg_loss.cpu.target import target

ROW_STRIDE = TILE + LANES
_LOG2_E = math.log2(math.e)
# The strips of a tile that are computed side by side: their sums and maxima stay in registers.
_WIDTH = 8 if target().has_avx512 else 2
_BLOCK = _WIDTH * LANES
_PREFETCH_CLASSES = 4
_BYTES = 4 * LANES
_STRIPS = types.UniTuple(FLOATS, _WIDTH)


@intrinsic
def _same(typingctx, vector):
    """Returns a vector for each strip."""

    def codegen(context, builder, signature, args):
        return context.make_tuple(builder, _STRIPS, [args[0]] * _WIDTH)

    return _STRIPS(vector), codegen


@intrinsic
def _load_strips(typingctx, row):
    """Loads a vector for each strip from a row."""

    def codegen(context, builder, signature, args):
        first = builder.ptrtoint(args[0], ir_word(context))
        strips = [
            emit_load(builder, builder.add(first, first.type(k * _BYTES)), FLOAT32, LANES)
            for k in range(_WIDTH)
        ]
        return context.make_tuple(builder, _STRIPS, strips)

    return _STRIPS(row), codegen


@intrinsic
def _store_strips(typingctx, row, strips):
    """Stores the vector of each strip to a row."""

    def codegen(context, builder, signature, args):
        first = builder.ptrtoint(args[0], ir_word(context))
        for k in range(_WIDTH):
            address = builder.add(first, first.type(k * _BYTES))
            emit_store(builder, address, FLOAT32, builder.extract_value(args[1], k), False)
        return context.get_dummy_value()

    return types.void(row, strips), codegen


def ir_word(context):
    """Returns LLVM's type of an int64."""
    return context.get_value_type(types.int64)


@intrinsic
def _exp_step(typingctx, row, tops, scale, sums):
    """Replaces a row by its exponentials and returns the sums with them added."""

    def codegen(context, builder, signature, args):
        row, tops, scale, sums = args
        first = builder.ptrtoint(row, ir_word(context))
        totals = []
        for k in range(_WIDTH):
            address = builder.add(first, first.type(k * _BYTES))
            x = emit_load(builder, address, FLOAT32, LANES)
            e = emit_exp(builder, builder.fsub(x, builder.extract_value(tops, k)), scale)
            emit_store(builder, address, FLOAT32, e, False)
            totals.append(builder.fadd(builder.extract_value(sums, k), e))
        return context.make_tuple(builder, _STRIPS, totals)

    return _STRIPS(row, tops, scale, sums), codegen


@intrinsic
def _add_blocks(typingctx, high_row, low_row, totals):
    """Adds the sums of a block of classes to two rows, as `sums.add_block`."""

    def codegen(context, builder, signature, args):
        high_row, low_row, totals = args
        rows = [builder.ptrtoint(row, ir_word(context)) for row in (high_row, low_row)]
        for k in range(_WIDTH):
            places = [builder.add(row, row.type(k * _BYTES)) for row in rows]
            sums = [emit_load(builder, place, FLOAT32, LANES) for place in places]
            sums = emit_add_block(builder, *sums, builder.extract_value(totals, k))
            for place, value in zip(places, sums, strict=True):
                emit_store(builder, place, FLOAT32, value, False)
        return context.get_dummy_value()

    return types.void(high_row, low_row, totals), codegen


def make_many_classes(*, dtype_code, has_gradient, bypasses_caches, classes_adjacent):
    """Returns the kernel of float32, float16 or bfloat16 logits without label smoothing.

    The parameters are those of `cross_entropy.make_columns`.
    """
    size = ITEMSIZES[dtype_code]
    classes_in, classes_out = make_transposes(4)

    @intrinsic
    def copy_step(typingctx, source, prefetched, row, tops):
        """Copies a class to a row and returns the maxima with it."""

        def codegen(context, builder, signature, args):
            source, prefetched, row, tops = args
            first = builder.ptrtoint(row, ir_word(context))
            maxima = []
            for k in range(_WIDTH):
                here = first.type(k * LANES * size)
                emit_prefetch(builder, builder.add(prefetched, here))
                x = emit_load(builder, builder.add(source, here), dtype_code, LANES)
                address = builder.add(first, first.type(k * _BYTES))
                emit_store(builder, address, FLOAT32, x, False)
                maxima.append(emit_maximum(builder, x, builder.extract_value(tops, k)))
            return context.make_tuple(builder, _STRIPS, maxima)

        return _STRIPS(source, prefetched, row, tops), codegen

    @intrinsic
    def write_step(typingctx, row, factors, target):
        """Writes a row times the factors to the gradient of a class."""

        def codegen(context, builder, signature, args):
            row, factors, target = args
            first = builder.ptrtoint(row, ir_word(context))
            factors = builder.ptrtoint(factors, first.type)
            for k in range(_WIDTH):
                offset = first.type(k * _BYTES)
                e = emit_load(builder, builder.add(first, offset), FLOAT32, LANES)
                factor = emit_load(builder, builder.add(factors, offset), FLOAT32, LANES)
                address = builder.add(target, first.type(k * LANES * size))
                emit_store(builder, address, dtype_code, builder.fmul(e, factor), bypasses_caches)
            return context.get_dummy_value()

        return types.void(row, factors, target), codegen

    @inner(types.void)
    def copy_tile(job, image, first, n, rows, tops, offsets):
        """Copies a tile of `n` pixels of any layout to rows, and writes its maxima."""
        if classes_adjacent and n == TILE:
            for i in range(0, TILE, LANES):
                strip_offsets(job.logits, image, first + i, LANES, offsets)
                strip = address_of(at(rows, i))
                classes_in(job.logits, offsets, strip, 4 * ROW_STRIDE)
        else:
            load_rows(job.logits, image, first, n, rows, ROW_STRIDE)
        for b in range(0, TILE, _BLOCK):
            maxima = _load_strips(at(rows, b))
            for c in range(1, job.logits.num_classes):
                maxima = _maximum_step(at(rows, c * ROW_STRIDE + b), maxima)
            _store_strips(at(tops, b), maxima)

    @inner(types.void)
    def write_transposed(job, image, first, rows, factors, offsets):
        """Writes the gradient of a tile to pixels whose classes are adjacent."""
        for i in range(0, TILE, LANES):
            factor = load(factors, i)
            for c in range(job.logits.num_classes):
                store(rows, c * ROW_STRIDE + i, load(rows, c * ROW_STRIDE + i) * factor)
            strip_offsets(job.gradient, image, first + i, LANES, offsets)
            strip = address_of(at(rows, i))
            classes_out(strip, 4 * ROW_STRIDE, job.gradient, offsets)

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        num_classes = job.logits.num_classes
        classes = pointer(scratch + job.classes, np.int32)
        maps = pointer(scratch + job.factors, np.float32)
        weights, terms = maps, at(maps, ROW_STRIDE)
        sums, targets = at(maps, 2 * ROW_STRIDE), at(maps, 3 * ROW_STRIDE)
        factors, old_factors = at(maps, 4 * ROW_STRIDE), at(maps, 5 * ROW_STRIDE)
        tops, next_tops = at(maps, 6 * ROW_STRIDE), at(maps, 7 * ROW_STRIDE)
        sums_low = at(maps, 8 * ROW_STRIDE)
        rows = pointer(scratch + job.rows, np.float32)
        next_rows = at(rows, job.row_stride)
        old_rows = at(rows, 2 * job.row_stride)
        offsets = pointer(scratch + job.extra, np.int64)
        zero = splat(np.float32(0))
        minus_infinity = splat(np.float32(-np.inf))
        scale = splat(np.float32(job.inverse_temperature * _LOG2_E))
        inverse_temperature = splat(np.float32(job.inverse_temperature))
        grad_scale = job.grad_output * job.inverse_temperature / job.known_divisor
        gradient_scale = splat(np.float32(grad_scale))
        max_nll = splat(np.float32(job.max_nll))
        classes_end = splat(np.int32(num_classes))
        logits = job.logits.address + size * image * job.logits.image_stride
        gradient = job.gradient.address + size * image * job.gradient.image_stride
        logits_step = size * job.logits.class_stride
        gradient_step = size * job.gradient.class_stride
        prefetched = _PREFETCH_CLASSES * logits_step
        is_dense = job.is_dense != 0
        has_weights = job.pixel_weight.address != 0 or job.class_weight != 0
        total = widened(zero)
        fill(weights, TILE, 1.0)
        has_rows = has_old = False
        for start in range(first, last, TILE):
            n = min_int(TILE, last - start)
            if not has_rows:
                copy_tile(job, image, start, n, rows, tops, offsets)
            has_next = is_dense and start + 2 * TILE <= last
            load_classes(job, image, start, n, classes)
            if has_weights:
                load_weights(job, image, start, n, classes, weights)
            for i in range(n):
                y = classes[i]
                targets[i] = -np.inf
                if y < num_classes:
                    targets[i] = rows[y * ROW_STRIDE + i]
                    rows[y * ROW_STRIDE + i] = -np.inf
            fill(sums, TILE, 0.0)
            fill(sums_low, TILE, 0.0)
            for b in range(0, TILE, _BLOCK):
                maxima = _load_strips(at(tops, b))
                next_maxima = _same(minus_infinity)
                source = logits + (start + TILE + b) * size
                target_address = gradient + (start - TILE + b) * size
                row, next_row, old_row = at(rows, b), at(next_rows, b), at(old_rows, b)
                for block in range(0, num_classes, SUM_BLOCK):
                    totals = _same(zero)
                    for _ in range(block, min_int(block + SUM_BLOCK, num_classes)):
                        totals = _exp_step(row, maxima, scale, totals)
                        if has_next:
                            next_maxima = copy_step(
                                source, source + prefetched, next_row, next_maxima
                            )
                        if has_gradient and has_old:
                            write_step(old_row, at(old_factors, b), target_address)
                        row = at(row, ROW_STRIDE)
                        next_row = at(next_row, ROW_STRIDE)
                        old_row = at(old_row, ROW_STRIDE)
                        source += logits_step
                        target_address += gradient_step
                    _add_blocks(at(sums, b), at(sums_low, b), totals)
                if has_next:
                    _store_strips(at(next_tops, b), next_maxima)
            for i in range(0, n, LANES):
                t = load(sums, i) + load(sums_low, i)
                distance = load(targets, i) - load(tops, i)
                e_target = scaled_exp(distance, scale)
                s = t + e_target
                valid = less(load(classes, i), classes_end)
                distance = where(valid, distance, minus_infinity)
                is_non_finite = is_nan(s)
                if any_lane(is_non_finite):
                    # Ignored ones get the gradient 0: 0 times NaN would be NaN.
                    chunk.non_finite += count_lanes(mask_and(valid, is_non_finite))
                    for c in range(num_classes):
                        e = load(rows, c * ROW_STRIDE + i)
                        store(rows, c * ROW_STRIDE + i, where(is_non_finite, zero, e))
                scaled_distance = distance * inverse_temperature
                nll = log_of_sum(t, e_target, scaled_distance) - scaled_distance
                nll = where(less(max_nll, nll), max_nll, nll)
                weight = load(weights, i)
                term = where(valid, nll * weight, zero)
                total = total + widened(term)
                store(terms, i, term)
                store(factors, i, where(valid, weight * (gradient_scale / s), zero))
                store(targets, i, zero - t)
            for i in range(n):
                if classes[i] < num_classes:
                    rows[classes[i] * ROW_STRIDE + i] = targets[i]
            if job.terms.address:
                store_terms(job, image, start, n, terms)
            has_old = False
            if has_gradient:
                if is_dense and n == TILE:
                    has_old = True
                    rows, old_rows = old_rows, rows
                    factors, old_factors = old_factors, factors
                elif classes_adjacent and n == TILE:
                    write_transposed(job, image, start, rows, factors, offsets)
                else:
                    store_rows(job.gradient, image, start, n, rows, factors, ROW_STRIDE)
            if has_gradient and has_old and not has_next:
                target_address = gradient + start * size
                for c in range(num_classes):
                    for b in range(0, TILE, _BLOCK):
                        write_step(
                            at(old_rows, c * ROW_STRIDE + b),
                            at(old_factors, b),
                            target_address + c * gradient_step + b * size,
                        )
                has_old = False
            has_rows = has_next
            rows, next_rows = next_rows, rows
            tops, next_tops = next_tops, tops
        add_terms(chunk, sum_of_lanes(total))

    return make_region(process_chunk, np.float32, True)


@intrinsic
def _maximum_step(typingctx, row, tops):
    """Returns the maxima with those of a row."""

    def codegen(context, builder, signature, args):
        first = builder.ptrtoint(args[0], ir_word(context))
        maxima = []
        for k in range(_WIDTH):
            address = builder.add(first, first.type(k * _BYTES))
            x = emit_load(builder, address, FLOAT32, LANES)
            maxima.append(emit_maximum(builder, x, builder.extract_value(args[1], k)))
        return context.make_tuple(builder, _STRIPS, maxima)

    return _STRIPS(row, tops), codegen
