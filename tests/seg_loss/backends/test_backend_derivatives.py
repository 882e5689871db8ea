"""The second derivative of every backend against float64, over dtypes, layouts and options."""

import pytest
import torch

from seg_loss import Bilinear, reference
from tests.support.backends import IS_SMALL
from tests.support.cases import (
    FLOATS,
    LAYOUTS,
    OPTIONS,
    Case,
    assert_accurate,
    is_positive_zero,
    loss_of,
    make_inputs,
    make_logits,
    make_options,
    torch_loss,
    true_logits,
)

LOGITS = Case((2, 5, 9, 11) if IS_SMALL else (2, 21, 37, 53), "several tiles and a remainder")
SCORES = Case((2, 5, 3, 4), "upsampled", (7, 9), Bilinear())
MANY_CLASSES = Case((2, 150, 3, 5), "tiles of the CPU")
VERY_MANY_CLASSES = Case((1, 4500, 1, 3), "not in the registers of a GPU")
ROWS = Case((7, 33), "no spatial axis")
VOLUME = Case((2, 4, 3, 2, 5), "three spatial axes")


def product(loss, scores, v):
    """Returns the second derivative of a loss along v."""
    x = scores.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    return torch.autograd.grad(gradient, x, v)[0]


def check(backend, case, dtype=torch.float32, option="everything", layout="contiguous"):
    scores, labels, upsampling = make_inputs(case, dtype)
    scores, v = LAYOUTS[layout](scores), make_logits(case.shape[::-1], dtype).reshape(case.shape)
    options = make_options(option, case.full_shape)
    here, y = backend.place_options(options), backend.place(labels)
    got = product(
        lambda x: loss_of(x, y, upsampling, **here), backend.place(scores), backend.place(v)
    )
    truth = product(
        lambda x: reference.spatial_cross_entropy(
            true_logits(x, labels, upsampling), labels, **options
        ),
        scores.double(),
        v.double(),
    )
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    by_torch = product(
        lambda x: torch_loss(x, labels, upsampling=upsampling, **options),
        scores.to(wide),
        v.to(wide),
    )
    assert got.dtype == dtype
    assert_accurate("second derivative", got.cpu(), truth, by_torch.to(dtype))
    if upsampling is None:
        values = options.get("ignore_index", 255)
        values = (values,) if isinstance(values, int) else values
        ignored = sum((labels == value) for value in values if value >= 0).bool()
        assert is_positive_zero(got.cpu().movedim(1, -1)[ignored])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", [LOGITS, SCORES], ids=lambda case: case.name)
def test_second_derivatives_in_every_dtype(backend, case, dtype):
    check(backend, case, dtype)


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "everything"])
@pytest.mark.parametrize("case", [LOGITS, SCORES], ids=lambda case: case.name)
def test_second_derivatives_with_every_option(backend, case, option):
    check(backend, case, option=option)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "shifted"])
def test_second_derivatives_in_other_layouts(backend, layout):
    check(backend, LOGITS, layout=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "case", [MANY_CLASSES, VERY_MANY_CLASSES, ROWS, VOLUME], ids=lambda case: case.name
)
def test_second_derivatives_of_other_shapes(backend, case, dtype):
    check(backend, case, dtype)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("case", [LOGITS, MANY_CLASSES], ids=lambda case: case.name)
def test_no_number_of_an_ignored_pixel_reaches_the_product(backend, case, value):
    scores, labels, _ = make_inputs(case)
    v = make_logits(case.shape[::-1]).reshape(case.shape).clone()
    ignored = labels == 255
    scores.movedim(1, -1)[ignored] = value
    v.movedim(1, -1)[ignored] = value
    y = backend.place(labels)
    got = product(lambda x: loss_of(x, y, None), backend.place(scores), backend.place(v)).cpu()
    assert is_positive_zero(got.movedim(1, -1)[ignored])
    assert got.isfinite().all()
