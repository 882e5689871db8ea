"""`predict` of every backend against float64, over dtypes, layouts, upsamplings and values."""

import pytest
import torch

import seg_loss
from seg_loss import Bilinear
from seg_loss.constants import PREDICTION_MAPS
from tests.support.backends import DEFAULT_SHAPE, IS_SMALL, MANY_CLASSES
from tests.support.cases import (
    FLOATS,
    LAYOUTS,
    UPSAMPLINGS,
    Case,
    evaluation_of,
    make_logits,
    one_thread,
    true_logits,
)

CASES = {
    **UPSAMPLINGS,
    "tiles": Case(DEFAULT_SHAPE, "several tiles and a remainder"),
    "many classes": Case(MANY_CLASSES, "blocks of classes"),
    "many classes, up": Case((1, 150, 2, 3), "blocks of classes", (5, 9), Bilinear()),
    "very many classes": Case((1, 4500, 1, 2), "not in the registers of a GPU"),
    "very many classes, up": Case((1, 4500, 1, 2), "not in registers", (1, 3), Bilinear()),
    "one class": Case((2, 1, 3, 4), "fewer than the top classes"),
    "two classes": Case((2, 2, 3, 4), "fewer than the top classes", (5, 9), Bilinear()),
    "rows": Case((7, 33), "no spatial axis"),
    "volume": Case((2, 4, 3, 2, 5), "three spatial axes"),
}
EACH_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
FEW = pytest.mark.parametrize(
    "case", [CASES[name] for name in ("plain", "bilinear")], ids=["plain", "bilinear"]
)


def predict_case(backend, case, scores, maps=PREDICTION_MAPS, **options):
    """Returns the maps of a case, on the CPU."""
    got = seg_loss.predict(
        backend.place(scores), size=case.size, upsampling=case.upsampling, maps=maps, **options
    )
    assert list(got) == list(maps)
    return {name: values.cpu() for name, values in got.items()}


@one_thread()
def logits_of(case, scores):
    labels = torch.empty(case.shape[0], *case.full_shape[2:])
    return true_logits(scores, labels, case.upsampling)


def check(backend, case, scores, temperature=1.0):
    got = predict_case(backend, case, scores, temperature=temperature)
    alone = predict_case(backend, case, scores, ("prediction",))["prediction"]
    assert torch.equal(alone, got["prediction"]), "a kernel of its own finds other classes"
    logits = logits_of(case, scores)
    p = (logits / temperature).softmax(1)
    num_classes = case.shape[1]
    depth = min(3, num_classes)
    index = torch.uint8 if num_classes <= 256 else torch.int16
    shape = (case.shape[0], *case.full_shape[2:])
    top_shape = (shape[0], depth, *shape[1:])
    eps = torch.finfo(torch.float64 if scores.dtype == torch.float64 else torch.float32).eps
    best, order = logits.topk(depth, dim=1)
    for name in ("prediction", "top_classes"):
        assert got[name].dtype == index
    for name in ("confidence", "entropy", "top_probabilities"):
        assert got[name].dtype == torch.float32
    assert got["prediction"].shape == got["confidence"].shape == got["entropy"].shape == shape
    assert got["top_classes"].shape == got["top_probabilities"].shape == top_shape
    # Where the best two differ by more than rounding errors, there is one answer.
    if depth > 1:
        is_sure = best[:, 0] - best[:, 1] > 4 * eps * logits.abs().amax(1)
        assert torch.equal(got["prediction"].long()[is_sure], order[:, 0][is_sure])
    top = got["top_classes"].long()
    assert torch.equal(top[:, 0], got["prediction"].long())
    torch.testing.assert_close(
        got["top_probabilities"].double(), p.gather(1, top), rtol=2e-5, atol=1e-7
    )
    torch.testing.assert_close(p.gather(1, top), p.topk(depth, 1).values, rtol=2e-5, atol=1e-7)
    assert not (top[:, :, None] == top[:, None]).sum(2).gt(1).any(), "a class occurs twice"
    torch.testing.assert_close(got["confidence"], got["top_probabilities"][:, 0])
    entropy = -(p * (logits / temperature).log_softmax(1)).sum(1)
    torch.testing.assert_close(got["entropy"].double(), entropy, rtol=1e-5, atol=2e-6)


@EACH_CASE
def test_maps_are_those_of_float64(backend, case):
    check(backend, case, make_logits(case.shape), temperature=1.7)


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
@FEW
def test_maps_of_every_dtype(backend, case, dtype):
    check(backend, case, make_logits(case.shape, dtype))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "between_bytes"])
@FEW
def test_maps_of_every_layout(backend, case, layout):
    check(backend, case, LAYOUTS[layout](make_logits(case.shape)))


def test_maps_of_axes_that_cannot_be_merged(backend):
    scores = make_logits((2, 3, 4, 4, 4, 4))[:, :, ::2, :3, ::2, :3]
    case = Case(tuple(scores.shape), "four axes")
    check(backend, case, scores)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38, -3e38])
@FEW
def test_values_without_a_softmax_are_those_of_evaluate(backend, case, value):
    scores = make_logits(case.shape)
    scores[0, 2, :2, :3] = value
    scores[1, :, 2, 2] = value
    got = predict_case(backend, case, scores)
    alone = predict_case(backend, case, scores, ("prediction",))["prediction"]
    assert torch.equal(alone, got["prediction"])
    # The predicted classes as labels: then evaluate, too, keeps them out of the sum.
    place, labels = backend.place, got["prediction"]
    maps = evaluation_of(place(scores), place(labels), case.upsampling, maps=PREDICTION_MAPS).maps
    for name in PREDICTION_MAPS:
        torch.testing.assert_close(
            got[name], maps[name].cpu(), rtol=1e-6, atol=1e-7, equal_nan=True, msg=name
        )
    assert got["confidence"].isnan().any() == (value in (torch.inf, -torch.inf) or value != value)


@FEW
def test_equal_scores_are_the_first_class(backend, case):
    scores = torch.ones(case.shape)
    scores[:, 0] = 0
    got = predict_case(backend, case, scores)
    assert got["prediction"].eq(1).all()
    assert got["top_classes"].movedim(1, -1).reshape(-1, 3).eq(torch.tensor([1, 2, 3])).all()


@pytest.mark.skipif(IS_SMALL, reason="the interpreter is slow, and the CPU has tests of its own")
def test_large_scores_on_a_device(cuda):
    case = Case((1, 19, 128, 256), "Cityscapes", (1024, 2048), Bilinear())
    check(cuda, case, make_logits(case.shape))
