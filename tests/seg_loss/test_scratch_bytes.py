"""`scratch_bytes`: an upper bound of the temporary memory of an upsampled loss on the CPU."""

import tracemalloc

import pytest
import torch

import seg_loss
from seg_loss import Bilinear


@pytest.mark.parametrize("function", ["loss_and_gradient", "evaluate"])
@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize(
    ("score_columns", "columns"), [(20_000, 20_000), (1, 20_000), (30, 20_000)]
)
def test_scratch_bytes_bound_the_memory_of_wide_scores_and_labels(
    function, rows, score_columns, columns
):
    scores, labels = torch.zeros(2, 5, rows, score_columns), torch.zeros(2, 1, columns).byte()
    call = getattr(seg_loss, function)
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
    if function == "loss_and_gradient":  # evaluate needs less, since it has no halo rows
        # Up to a megabyte of it is kept from the call before.
        assert reserved < 3 * (peak + (1 << 20))
