"""The most probable class of upsampled scores, without interpolating most classes.

As in `interval_columns`, a strip is 16 neighbouring intervals of an interval row, a lane is an
interval, and the k-th target pixels of its intervals are the phase k. The four sources around an
interval are its corners.

An interpolated score is a sum of the corners' scores with weights that are not negative and are the
same for all classes. So class k is above class j in all pixels of an interval if it is so at all
corners. With the distance d of each score from the highest score of its corner,

    limit = max_k min_corners d_k        class j cannot win if  max_corners d_j < limit

The classes that can win in some interval of a strip are its candidates. Between objects there are a
few; within an object there is one, and no pixel is computed. The limit is lowered by more than all
rounding errors together, so that leaving out classes changes no prediction.
"""

import llvmlite.ir as ir
import numpy as np
from numba import types

from seg_loss.cpu.compiler import inner, intrinsic
from seg_loss.cpu.dtypes import emit_load
from seg_loss.cpu.records import FLOAT32, FLOAT64, INT16, LANES, PACKED_PIXELS, UINT8
from seg_loss.cpu.region import make_region
from seg_loss.cpu.simd import (
    LLVM_ELEMENT,
    address_of,
    any_lane,
    at,
    broadcast,
    constant,
    emit_fma,
    emit_loop,
    fma,
    is_nan,
    less,
    load,
    maximum,
    min_int,
    pointer,
    splat,
    store,
    times,
    where,
)
from seg_loss.cpu.upsampled import load_sources, weighted

# More than all rounding errors of two interpolated scores, as a share of the highest score, and as
# a number for scores so small that their errors are no share of them.
_ERRORS = 32
_LEAST_ERROR = 1e-36


# -- candidates ------------------------------------------------------------------------------------


@inner(types.boolean)
def _measure(num_classes, columns, stride, sources, distances, tops):
    """Writes the highest score of each source of a row, and each score's distance from it.

    The columns beside the row repeat its first and its last one. Returns whether a score is NaN.
    """
    found = splat(np.int32(0))
    for j in range(1, columns + 1, LANES):
        top = broadcast(sources, -np.inf)
        for c in range(num_classes):
            x = load(sources, c * stride + j)
            top = maximum(x, top)
            found = where(is_nan(x), splat(np.int32(1)), found)
        store(tops, j, top)
        for c in range(num_classes):
            store(distances, c * stride + j, load(sources, c * stride + j) - top)
    for c in range(num_classes):
        row = at(distances, c * stride)
        row[0] = row[1]
        row[columns + 1] = row[columns]
    tops[0] = tops[1]
    tops[columns + 1] = tops[columns]
    return any_lane(less(splat(np.int32(0)), found))


@inner(types.int64)
def _find_candidates(
    num_classes, stride, upper, lower, upper_tops, lower_tops, starts, error, highest, candidates
):
    """Writes the classes that can win in a strip, in ascending order; returns their number.

    Args:
        num_classes: C.
        stride: elements from a class to the next.
        upper, lower: the distances at the left corners of the first interval.
        upper_tops, lower_tops: the highest scores there.
        starts: the first target column of the first interval.
        error: the rounding errors, as a share of the highest score.
        highest: scratch memory [C, 16].
        candidates: the result.
    """
    limit = broadcast(upper, -np.inf)
    for c in range(num_classes):
        i = c * stride
        a, b = load(upper, i), load(upper, i + 1)
        d, e = load(lower, i), load(lower, i + 1)
        store(highest, c * LANES, maximum(maximum(a, b), maximum(d, e)))
        a, d = where(less(a, b), a, b), where(less(d, e), d, e)
        limit = maximum(where(less(a, d), a, d), limit)
    zero = broadcast(upper, 0.0)
    size = zero
    for side in range(2):
        top, other = load(upper_tops, side), load(lower_tops, side)
        size = maximum(maximum(top, zero - top), size)
        size = maximum(maximum(other, zero - other), size)
    limit = limit + broadcast(upper, error) * (limit - size) - broadcast(upper, _LEAST_ERROR)
    none, one = splat(np.int32(0)), splat(np.int32(1))
    has_pixel = where(less(load(starts, 0), load(starts, 1)), one, none)
    count = 0
    for c in range(num_classes):
        can_win = where(less(load(highest, c * LANES), limit), none, has_pixel)
        if any_lane(less(none, can_win)):
            candidates[count] = c
            count += 1
    return count


# -- pixels ----------------------------------------------------------------------------------------


@inner(types.void)
def _combine_rows(
    count, candidates, stride, upper, lower, upper_weight, lower_weight, skips_zero_weights, edges
):
    """Writes the scores left and right of the intervals, combined vertically, [candidates, 2, 16].

    The operations are those of `upsampled.interpolate_tile`, so that the results have its bits.
    """
    zero = broadcast(edges, 0.0)
    above, below = broadcast(edges, upper_weight), broadcast(edges, lower_weight)
    for k in range(count):
        i = candidates[k] * stride
        for side in range(2):
            up, low = load(upper, i + side), load(lower, i + side)
            if skips_zero_weights:
                value = weighted(above, up, zero, True) + weighted(below, low, zero, True)
            else:
                value = fma(above, up, below * low)
            store(edges, (2 * k + side) * LANES, value)


def _make_find_best(element, phases, skips_zero_weights):
    """Returns what finds the best class of each pixel of a group of `phases`."""
    dtype = getattr(types, element)
    code = FLOAT64 if element == "float64" else FLOAT32
    line = np.dtype(element).itemsize * LANES

    @intrinsic
    def find_best(typingctx, count, candidates, edges, left_weights, right_weights, classes):
        """Writes the first candidate with the highest score to vectors of int32.

        Args:
            count: number of candidates, at least 1.
            candidates: address of the candidates.
            edges: address of the result of `_combine_rows`.
            left_weights, right_weights: address of a vector of weights for each phase.
            classes: address of a vector of int32 for each phase.
        """

        def codegen(context, builder, signature, args):
            count, candidates, edges, left_weights, right_weights, classes = args
            integer = ir.IntType(32)
            zero = constant(dtype, 0.0)

            def vector(address, index):
                address = builder.add(address, address.type(line * index))
                return emit_load(builder, address, code, LANES, LLVM_ELEMENT[dtype])

            def product(weight, value):
                result = builder.fmul(weight, value)
                if skips_zero_weights:
                    is_zero = builder.fcmp_ordered("==", weight, zero)
                    result = builder.select(is_zero, zero, result)
                return result

            def of_candidate(i, values):
                pair = builder.add(edges, builder.mul(i, i.type(2 * line)))
                left, right = vector(pair, 0), vector(pair, 1)
                source = builder.add(candidates, builder.mul(i, i.type(4)))
                c = builder.load(builder.inttoptr(source, integer.as_pointer()))
                index = ir.Constant(ir.VectorType(integer, LANES), ir.Undefined)
                index = builder.insert_element(index, c, integer(0))
                index = builder.shuffle_vector(index, index, constant(types.int32, 0))
                tops, best = [], []
                for k in range(phases):
                    from_left, from_right = vector(left_weights, k), vector(right_weights, k)
                    x = product(from_right, right)
                    if skips_zero_weights:
                        x = builder.fadd(product(from_left, left), x)
                    else:
                        x = emit_fma(builder, from_left, left, x)
                    is_higher = builder.fcmp_ordered("<", values[k], x)
                    tops.append(builder.select(is_higher, x, values[k]))
                    best.append(builder.select(is_higher, index, values[phases + k]))
                return tops + best

            lowest, first = constant(dtype, -np.inf), constant(types.int32, 0)
            values = emit_loop(builder, count, [lowest] * phases + [first] * phases, of_candidate)
            for k, best in enumerate(values[phases:]):
                address = builder.add(classes, classes.type(4 * LANES * k))
                target = builder.inttoptr(address, best.type.as_pointer())
                builder.store(best, target).align = 4
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 6), codegen

    return find_best


# -- the map ---------------------------------------------------------------------------------------


@intrinsic
def _store_word(typingctx, address, word):
    """Stores an int32 at any address."""

    def codegen(context, builder, signature, args):
        address, word = args
        builder.store(word, builder.inttoptr(address, word.type.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(types.int64, types.int32), codegen


@inner(types.void)
def _fill_pixels(address, dtype_code, n, c):
    """Writes class `c` to `n` pixels."""
    if dtype_code == UINT8:
        target = pointer(address, np.uint8)
        for i in range(n):
            target[i] = np.uint8(c)
    elif dtype_code == INT16:
        wide_target = pointer(address, np.int16)
        for i in range(n):
            wide_target[i] = np.int16(c)
    else:
        widest_target = pointer(address, np.int32)
        for i in range(n):
            widest_target[i] = np.int32(c)


@inner(types.void)
def _write_pixels(address, dtype_code, starts, intervals, num_phases, classes, words, strip_pixels):
    """Writes the classes of a strip [phases, 16] in the order of its pixels.

    Pixels of uint8 are copied in words of `PACKED_PIXELS` phases. What a word holds behind the last
    pixel of its interval is overwritten by the next interval. Such words may end behind the strip,
    so that they go to `strip_pixels` first.
    """
    first = starts[0]
    if dtype_code == UINT8:
        num_words = -(-num_phases // PACKED_PIXELS)
        for k in range(num_words):
            phase = at(classes, k * PACKED_PIXELS * LANES)
            word = load(phase, 0) + times(load(phase, LANES), 1 << 8)
            word = word + times(load(phase, 2 * LANES), 1 << 16)
            store(words, k * LANES, word + times(load(phase, 3 * LANES), 1 << 24))
        base = address_of(strip_pixels)
        for j in range(intervals):
            offset = base + starts[j] - first
            for k in range(num_words):
                _store_word(offset + k * PACKED_PIXELS, words[k * LANES + j])
        target = pointer(address, np.uint8)
        for i in range(starts[intervals] - first):
            target[i] = strip_pixels[i]
    else:
        short_target, target_of_words = pointer(address, np.int16), pointer(address, np.int32)
        for j in range(intervals):
            offset = starts[j] - first
            for k in range(starts[j + 1] - starts[j]):
                c = classes[k * LANES + j]
                if dtype_code == INT16:
                    short_target[offset + k] = np.int16(c)
                else:
                    target_of_words[offset + k] = c


def make_prediction(*, element, phases, skips_zero_weights):
    """Returns the kernel of the prediction; a chunk is a block of interval rows.

    Args:
        element: dtype of the scores in scratch memory.
        phases: the phases of a group, whose highest scores are in registers.
        skips_zero_weights: whether some weight is 0.
    """
    find_best = _make_find_best(element, phases, skips_zero_weights)
    itemsize = np.dtype(element).itemsize
    error = _ERRORS * 0.5 * float(np.finfo(element).eps)
    element = getattr(np, element)
    line = itemsize * LANES

    @inner(types.void)
    def process_strip(job, scratch, image, interval_row, strip, upper, lower, count, candidates):
        grid = job.grid
        edges = pointer(scratch + grid.edges, element)
        classes = pointer(scratch + grid.pixel_classes, np.int32)
        words = at(classes, (grid.num_phases + PACKED_PIXELS) * LANES)
        strip_pixels = pointer(scratch + grid.strip_pixels, np.uint8)
        row_starts = pointer(grid.row_starts, np.int64)
        row_weights = pointer(grid.row_weights, np.float64)
        starts = at(pointer(grid.column_starts, np.int64), strip)
        intervals = min_int(LANES, grid.source_columns + 1 - strip)
        dtype_code = job.maps.prediction_dtype
        pixel_bytes = 1 if dtype_code == UINT8 else 2 if dtype_code == INT16 else 4
        left_weights = grid.column_weights + strip * grid.num_phases * itemsize
        right_weights = left_weights + grid.num_phases * grid.phase_stride * itemsize
        for y in range(row_starts[interval_row], row_starts[interval_row + 1]):
            pixel = image * job.pixels + y * grid.num_columns + starts[0]
            address = job.maps.prediction + pixel_bytes * pixel
            if count == 1:
                _fill_pixels(address, dtype_code, starts[intervals] - starts[0], candidates[0])
            else:
                _combine_rows(
                    count,
                    candidates,
                    grid.source_stride,
                    at(upper, strip),
                    at(lower, strip),
                    row_weights[y],
                    row_weights[grid.num_rows + y],
                    skips_zero_weights,
                    edges,
                )
                for first in range(0, grid.num_phases, phases):
                    find_best(
                        count,
                        address_of(candidates),
                        address_of(edges),
                        left_weights + first * line,
                        right_weights + first * line,
                        address_of(at(classes, first * LANES)),
                    )
                _write_pixels(
                    address,
                    dtype_code,
                    starts,
                    intervals,
                    grid.num_phases,
                    classes,
                    words,
                    strip_pixels,
                )

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        grid, scores = job.grid, job.logits
        num_classes, columns = scores.num_classes, grid.source_columns
        stride = grid.source_stride
        block = num_classes * stride
        upper = pointer(scratch + grid.sources, element)
        lower = at(upper, block)
        upper_distances = pointer(scratch + grid.distances, element)
        lower_distances = at(upper_distances, block)
        upper_tops = pointer(scratch + grid.tops, element)
        lower_tops = at(upper_tops, stride)
        highest = pointer(scratch + grid.highest, element)
        candidates = pointer(scratch + grid.candidates, np.int32)
        all_classes = at(candidates, num_classes)
        row_starts = pointer(grid.row_starts, np.int64)
        column_starts = pointer(grid.column_starts, np.int64)
        has_candidates = grid.has_candidates != 0
        for c in range(num_classes):
            all_classes[c] = c
        upper_has_nan = lower_has_nan = False
        load_sources(scores, image, first - 1, grid, upper)
        if has_candidates and first > 0:
            upper_has_nan = _measure(
                num_classes, columns, stride, upper, upper_distances, upper_tops
            )
        for interval_row in range(first, last):
            load_sources(scores, image, interval_row, grid, lower)
            lower_has_nan = False
            above, above_tops = upper_distances, upper_tops
            below, below_tops = lower_distances, lower_tops
            if has_candidates and interval_row < grid.source_rows:
                lower_has_nan = _measure(
                    num_classes, columns, stride, lower, lower_distances, lower_tops
                )
            # A source row that does not exist has the weight 0.
            if interval_row == 0:
                above, above_tops = below, below_tops
            if interval_row == grid.source_rows:
                below, below_tops = above, above_tops
            has_nan = upper_has_nan or lower_has_nan
            if row_starts[interval_row] < row_starts[interval_row + 1]:
                for strip in range(0, columns + 1, LANES):
                    end = strip + min_int(LANES, columns + 1 - strip)
                    if column_starts[strip] == column_starts[end]:
                        continue
                    count, classes = num_classes, all_classes
                    if has_candidates and not has_nan:
                        count, classes = (
                            _find_candidates(
                                num_classes,
                                stride,
                                at(above, strip),
                                at(below, strip),
                                at(above_tops, strip),
                                at(below_tops, strip),
                                at(column_starts, strip),
                                error,
                                highest,
                                candidates,
                            ),
                            candidates,
                        )
                    process_strip(
                        job, scratch, image, interval_row, strip, upper, lower, count, classes
                    )
            upper, lower = lower, upper
            upper_distances, lower_distances = lower_distances, upper_distances
            upper_tops, lower_tops = lower_tops, upper_tops
            upper_has_nan = lower_has_nan

    return make_region(process_chunk, element, False)
