"""`scratch_bytes`: an upper bound of the temporary memory of an upsampled loss on the CPU."""

import tracemalloc

import pytest
import torch

import seg_loss
from seg_loss import Bilinear


def predict(scores, labels, upsampling):
    return seg_loss.predict(scores, size=labels.shape[1:], upsampling=upsampling)


def predict_with_confidence(scores, labels, upsampling):
    size = labels.shape[1:]
    return seg_loss.predict(scores, size=size, upsampling=upsampling, maps=("confidence",))


CALLS = seg_loss.loss_and_gradient, seg_loss.evaluate, predict, predict_with_confidence


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize(
    ("score_columns", "columns"), [(20_000, 20_000), (1, 20_000), (30, 20_000)]
)
def test_scratch_bytes_bound_the_memory_of_wide_scores_and_labels(
    call, rows, score_columns, columns
):
    scores, labels = torch.zeros(2, 5, rows, score_columns), torch.zeros(2, 1, columns).byte()
    # Compiles the kernel. Memory is kept for later calls of the same shape, so take another one.
    call(scores[:1], labels[:1], upsampling=Bilinear())
    tracemalloc.start()  # traces NumPy's memory, but not torch's, which holds the gradient
    try:
        call(scores, labels, upsampling=Bilinear())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    reserved = seg_loss.scratch_bytes(scores, (1, columns), upsampling=Bilinear())
    assert peak < 1.1 * reserved + (1 << 20)
    if call is seg_loss.loss_and_gradient:  # the others need less, since they have no halo rows
        # Up to a megabyte of it is kept from the call before.
        assert reserved < 3 * (peak + (1 << 20))
