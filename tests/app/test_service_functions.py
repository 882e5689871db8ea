"""`require_finite` and `scratch_bytes`, the functions of `seg_loss` that only a service calls."""

import tracemalloc

import pytest
import torch

import seg_loss
from seg_loss import Bilinear, Deconvolution, InvalidInput
from seg_loss.upsampling import axes

SPECIAL_VALUES = [float("nan"), float("inf"), float("-inf"), 0.0]


@pytest.mark.parametrize(
    "upsampling",
    [
        Bilinear(),
        Bilinear(align_corners=True),  # 7 x 9 from 3 x 3: some pixels coincide with scores
        Deconvolution(3),
        Deconvolution(4, kernel_size=2),  # some pixels read no score
        Deconvolution(4, kernel_size=7, crop=(2, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(12))
def test_require_finite_raises_if_a_valid_pixel_has_no_softmax(upsampling, seed):
    random = torch.Generator().manual_seed(seed)
    uniform = torch.rand(1, 3, 3, 3, generator=random)
    pick = torch.randint(0, 4, (1, 3, 3, 3), generator=random)
    only_minus_inf = seed % 3 == 0  # so that all classes of some pixels are -inf
    pick = pick.clamp(min=2) if only_minus_inf else pick
    values = torch.tensor(SPECIAL_VALUES)[pick]
    scores = torch.where(uniform < (0.7 if only_minus_inf else 0.12), values, uniform)
    labels = torch.randint(0, 3, (1, 7, 9), generator=random, dtype=torch.uint8)
    labels[torch.rand(1, 7, 9, generator=random) < 0.6] = 255
    rows, columns = (axis.matrix() for axis in axes(upsampling, (3, 3), (7, 9)))
    without_softmax = []
    for y, x in (labels[0] != 255).nonzero().tolist():
        read = [(i, j) for i in rows[y].nonzero()[0] for j in columns[x].nonzero()[0]]
        logits = sum(
            (rows[y, i] * columns[x, j] * scores[0, :, i, j].double() for i, j in read),
            start=torch.zeros(3).double(),
        )
        if logits.softmax(0).isnan().any():
            without_softmax.append((y, x))
    evaluation = seg_loss.evaluate(scores, labels, upsampling=upsampling)
    assert evaluation.non_finite_pixels == len(without_softmax)
    if not without_softmax:
        seg_loss.require_finite(scores, labels, upsampling=upsampling)
        return
    with pytest.raises(InvalidInput) as error:
        seg_loss.require_finite(scores, labels, upsampling=upsampling)
    y, x = without_softmax[0]
    got = error.value.got
    assert f"(0, {y}, {x})" in got
    others = len(without_softmax) - 1
    assert (f" and {others} more pixel" if others else "") in got
    if "read by" in got:
        value, index = got.split(", read by")[0].split(" at ")
        assert str(float(scores[tuple(map(int, index.strip("()").split(", ")))])) == value


def test_require_finite_checks_the_upsampling_and_the_sizes():
    scores, labels = torch.zeros(1, 2, 2, 2), torch.zeros(1, 9, 9).byte()
    with pytest.raises(InvalidInput, match="upsampling: expected Bilinear"):
        seg_loss.require_finite(scores, labels, upsampling="bilinear")
    with pytest.raises(InvalidInput, match="labels: expected at most 6 rows"):
        seg_loss.require_finite(scores, labels, upsampling=Deconvolution(2))


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
    call(scores, labels, upsampling=Bilinear())  # fills the caches
    tracemalloc.start()  # traces NumPy's memory, but not torch's, which holds the gradient
    try:
        call(scores, labels, upsampling=Bilinear())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    reserved = seg_loss.scratch_bytes(scores, (1, columns), upsampling=Bilinear())
    assert peak < 1.1 * reserved + (1 << 20)
    if function == "loss_and_gradient":  # evaluate needs less, since it has no halo rows
        assert reserved < 3 * peak + (1 << 20)
