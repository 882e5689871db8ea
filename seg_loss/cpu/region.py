"""What every kernel does around its chunks: threads take them, labels come first, sums come last.

`make_region` turns a function that processes a chunk into an entry point that any number of threads
may call at once with the address of one `JOB`. Each takes chunk after chunk until none is left:

    1. chunks of labels are checked and counted; the thread that ends the last one computes the
       divisor
    2. all threads wait for it
    3. chunks are processed; the thread that ends the last one adds up the sums

Partial sums are kept by chunk and added in the order of the chunks, so a result does not depend on
the number of threads.
"""

import numpy as np
from numba import types

from seg_loss._divisor import counted_divisor
from seg_loss.cpu.compiler import inner
from seg_loss.cpu.records import CHUNK, IMAGE, JOB, KNOWN, LANES, WEIGHT
from seg_loss.cpu.rows import fill, load_classes, load_rows
from seg_loss.cpu.simd import (
    fetch_add,
    less,
    load,
    load_shared,
    min_int,
    pause,
    pointer,
    record_at,
    splat,
    sum_of_integers,
    where,
    yield_processor,
)

_CHUNK_BYTES, _IMAGE_BYTES = CHUNK.itemsize, IMAGE.itemsize


def _offset(field):
    return JOB.fields[field][1]


_NEXT_THREAD, _NEXT_CHUNK, _CHUNKS_DONE = map(_offset, ("next_thread", "next_chunk", "chunks_done"))
_NEXT_LABEL_CHUNK, _LABEL_CHUNKS_DONE = map(_offset, ("next_label_chunk", "label_chunks_done"))
# Some microseconds, in which a running thread ends its chunk.
_TURNS_BEFORE_YIELD = 1000
_divisor = inner(types.float64)(counted_divisor)


@inner(types.void)
def _check_label_chunk(job, element, scratch, image, first, last, chunk):
    """Counts the labels of pixels [first, last), and sums and checks the weights.

    A weight is invalid if it is negative, infinite or NaN.
    """
    num_classes = job.logits.num_classes
    classes = pointer(scratch + job.classes, np.int32)
    weights = pointer(scratch + job.rows, element)
    class_weight = pointer(job.class_weight, np.float64)
    one, zero = splat(np.int32(1)), splat(np.int32(0))
    valid = invalid = zero
    chunk.weight = 0.0
    chunk.invalid_labels = chunk.first_invalid_label = 0
    chunk.invalid_weights = chunk.first_invalid_weight = 0
    fill(weights, min_int(job.tile, last - first), 1.0)
    for start in range(first, last, job.tile):
        n = min_int(job.tile, last - start)
        load_classes(job, image, start, n, classes)
        before = sum_of_integers(invalid)
        for i in range(0, n, LANES):
            y = load(classes, i)
            valid = valid + where(less(y, splat(np.int32(num_classes))), one, zero)
            invalid = invalid + where(less(splat(np.int32(num_classes)), y), one, zero)
        if before == 0 and sum_of_integers(invalid) > 0:
            i = 0
            while classes[i] <= num_classes:
                i += 1
            chunk.first_invalid_label = start + i
        if job.is_weighted:
            if job.pixel_weight.address:
                load_rows(job.pixel_weight, image, start, n, weights, job.row_stride)
            for i in range(n):
                if classes[i] < num_classes:
                    weight = np.float64(weights[i])
                    if not 0 <= weight < np.inf:
                        if chunk.invalid_weights == 0:
                            chunk.first_invalid_weight = start + i
                        chunk.invalid_weights += 1
                    if job.class_weight:
                        weight *= class_weight[classes[i]]
                    chunk.weight += weight
    chunk.valid = sum_of_integers(valid)
    chunk.invalid_labels = sum_of_integers(invalid)


@inner(types.void)
def _count_labels(job):
    """Adds up what the label check has counted and computes the divisor."""
    num_valid = num_invalid = 0
    weight_sum = 0.0
    for image in range(job.num_images):
        weight = 0.0
        valid = 0
        for k in range(job.label_chunks_per_image):
            at_chunk = image * job.label_chunks_per_image + k
            chunk = record_at(job.chunks + at_chunk * _CHUNK_BYTES, CHUNK)
            valid += chunk.valid
            weight += chunk.weight
            num_invalid += chunk.invalid_labels + chunk.invalid_weights
        sums = record_at(job.images + image * _IMAGE_BYTES, IMAGE)
        sums.valid = valid
        sums.weight = weight
        num_valid += valid
        weight_sum += weight
    job.num_valid, job.num_invalid, job.weight_sum = num_valid, num_invalid, weight_sum
    if job.divisor_source != KNOWN:
        total = weight_sum if job.divisor_source == WEIGHT else np.float64(num_valid)
        job.known_divisor = _divisor(total, job.has_floor != 0)


@inner(types.void)
def add_terms(chunk, value):
    """Adds to the loss of a chunk, and the rounding error to its compensation (Knuth)."""
    total = chunk.loss + value
    added = total - chunk.loss
    chunk.compensation += (chunk.loss - (total - added)) + (value - added)
    chunk.loss = total


@inner(types.void)
def _add_sums(job, element):
    """Adds up the terms of each image and of all, and writes the results."""
    total = 0.0
    for image in range(job.num_images):
        loss = 0.0
        for k in range(job.chunks_per_image):
            at_chunk = image * job.chunks_per_image + k
            chunk = record_at(job.chunks + at_chunk * _CHUNK_BYTES, CHUNK)
            loss += chunk.loss
            if chunk.compensation - chunk.compensation == 0:  # an infinite sum has none
                loss += chunk.compensation
        record_at(job.images + image * _IMAGE_BYTES, IMAGE).loss = loss
        total += loss
    if job.loss:
        pointer(job.loss, element)[0] = total / job.known_divisor
    if job.divisor:
        divisor = pointer(job.divisor, np.float64)
        divisor[0] = job.known_divisor
        divisor[1] = job.inverse_temperature / job.known_divisor


@inner(types.void)
def _finish_nothing(job, scratch):
    """Follows the last chunk of kernels that need nothing."""


def make_region(process_chunk, element, has_labels, finish=_finish_nothing):
    """Returns the entry point of a kernel.

    Args:
        process_chunk: a compiled function (job, scratch, image, first, last, chunk).
        element: the dtype of the loss and of rows.
        has_labels: whether there are labels to check, and a loss.
        finish: a compiled function (job, scratch), called when all chunks are done.
    """

    def entry(address):
        job = record_at(address, JOB)
        scratch = job.scratch + fetch_add(address + _NEXT_THREAD, 1) * job.scratch_bytes
        if has_labels and job.checks_labels:
            num_chunks = job.num_images * job.label_chunks_per_image
            while True:
                k = fetch_add(address + _NEXT_LABEL_CHUNK, 1)
                if k >= num_chunks:
                    break
                image = k // job.label_chunks_per_image
                first = (k - image * job.label_chunks_per_image) * job.label_chunk_pixels
                last = min_int(first + job.label_chunk_pixels, job.pixels)
                chunk = record_at(job.chunks + k * _CHUNK_BYTES, CHUNK)
                _check_label_chunk(job, element, scratch, image, first, last, chunk)
                if fetch_add(address + _LABEL_CHUNKS_DONE, 1) == num_chunks - 1:
                    _count_labels(job)
                    fetch_add(address + _LABEL_CHUNKS_DONE, 1)
            turns = 0
            while load_shared(address + _LABEL_CHUNKS_DONE) <= num_chunks:
                turns += 1
                # The thread with the last chunk may need the processor that this one occupies.
                if turns % _TURNS_BEFORE_YIELD == 0:
                    yield_processor()
                pause()
            if job.num_invalid and job.stops_if_invalid:
                return
        num_chunks = job.num_images * job.chunks_per_image
        while True:
            k = fetch_add(address + _NEXT_CHUNK, 1)
            if k >= num_chunks:
                break
            image = k // job.chunks_per_image
            first = (k - image * job.chunks_per_image) * job.chunk_units
            last = min_int(first + job.chunk_units, job.image_units)
            chunk = record_at(job.chunks + k * _CHUNK_BYTES, CHUNK)
            chunk.loss = chunk.compensation = 0.0
            chunk.non_finite = chunk.saturated = 0
            process_chunk(job, scratch, image, first, last, chunk)
            is_last = fetch_add(address + _CHUNKS_DONE, 1) == num_chunks - 1
            if has_labels and is_last:
                _add_sums(job, element)
            if is_last:
                finish(job, scratch)

    return entry
