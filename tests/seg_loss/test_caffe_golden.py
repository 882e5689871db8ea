"""`compat.caffe` against results of Caffe itself, see `golden/README.md`."""

import functools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import seg_loss
from seg_loss.compat.caffe import Softmax, SoftmaxWithLoss

GOLDEN = Path(__file__).parent / "golden"


@functools.cache
def family(name):
    cases = json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
    arrays = np.load(GOLDEN / f"{name}.npz")
    cases_by_name = {}
    for case in cases:
        keys = [key for key in arrays.files if key.startswith(case["name"] + "/")]
        cases_by_name[case["name"]] = case | {
            key.rpartition("/")[2]: torch.from_numpy(arrays[key]) for key in keys
        }
    return cases_by_name


def names(*families):
    return [pytest.param(name, case, id=case) for name in families for case in family(name)]


def assert_close_if_finite(got, caffe, tolerance):
    assert torch.equal(got.isnan(), caffe.isnan())
    assert float((got - caffe).nan_to_num(0.0).abs().max()) <= tolerance


def test_every_case_is_included():
    assert [len(family(name)) for name in ("softmax", "softmax_loss", "softmax_loss_grid",
                                           "softmax_loss_two_tops")] == [13, 43, 60, 3]  # fmt: skip


@pytest.mark.parametrize(("name", "case"), names("softmax"))
def test_softmax_equals_caffes(name, case):
    golden = family(name)[case]
    x = golden["x"].clone().requires_grad_()
    axis = {"axis": golden["params"]["axis"]} if golden["params"]["axis_given"] else {}
    y = Softmax(**axis)(x)
    y.backward(golden["dy"])
    assert_close_if_finite(y.detach(), golden["y"], 1e-6)
    assert_close_if_finite(x.grad, golden["dx"], 1e-6 * max(1.0, float(golden["dy"].abs().max())))


@pytest.mark.parametrize(("name", "case"), names("softmax_loss", "softmax_loss_grid"))
def test_softmax_with_loss_equals_caffes(name, case):
    golden = family(name)[case]
    params = golden["params"]
    given = {"ignore_label", "normalization", "normalize", "loss_weight"}
    options = {key: params[key] for key in given if params[key] is not None}
    if params["axis_given"]:
        options["axis"] = params["axis"]
    check_loss(golden, options, params["loss_weight"])


@pytest.mark.parametrize(("name", "case"), names("softmax_loss_two_tops"))
def test_softmax_with_loss_equals_caffes_with_two_tops(name, case):
    # The weight of the second top changes the net's loss only; its probabilities are Softmax's.
    golden = family(name)[case]
    weight = golden["params"]["loss_weight"][0]
    options = {"loss_weight": weight}
    if golden["params"]["loss_param"]:
        options |= {"ignore_label": 255, "normalize": False}
    check_loss(golden, options, weight)


def check_loss(golden, options, loss_weight):
    weight = 1.0 if loss_weight is None else loss_weight
    x = golden["x"].clone().requires_grad_()
    layer = SoftmaxWithLoss(**options)
    loss = layer(x, golden["label"])
    loss.backward()
    truth = golden.get("loss_float64")
    if truth is None:  # NaN among the valid logits
        assert math.isnan(golden["loss"])
        assert math.isnan(loss.detach())
    else:
        assert float(loss.detach()) == pytest.approx(weight * truth, rel=1e-6, abs=1e-12)
        # Caffe's running sum in float32 has an error of up to 2e-5.
        assert float(golden["loss"]) == pytest.approx(truth, rel=2e-5, abs=1e-6)
    assert_close_if_finite(x.grad, golden["dx"], 1e-6 * abs(weight))
    if "prob" in golden:
        assert_close_if_finite(Softmax(layer.axis)(golden["x"]), golden["prob"], 1e-6)
    assert torch.equal(x.detach().nan_to_num(), golden["x"].nan_to_num())


# -- rules without a golden case ---------------------------------------------------------------


def test_normalize_matters_only_without_a_normalization():
    for normalization, normalize, effective in (
        (None, None, "VALID"),
        (None, True, "VALID"),
        (None, False, "BATCH_SIZE"),
        ("VALID", False, "VALID"),
        ("FULL", True, "FULL"),
        ("NONE", False, "NONE"),
    ):
        layer = SoftmaxWithLoss(normalization=normalization, normalize=normalize)
        assert layer.normalization == effective


def test_the_loss_but_not_the_gradient_is_limited_to_87_3365():
    x = torch.tensor([[0.0, 1000.0], [0.0, 90.0], [0.0, 87.0]], requires_grad=True)
    losses = [float(SoftmaxWithLoss()(x[k : k + 1], torch.zeros(1)).detach()) for k in range(3)]
    bound = -math.log(1.17549435e-38)
    assert losses == [float(torch.tensor(bound))] * 2 + [87.0]
    SoftmaxWithLoss(normalization="NONE")(x, torch.zeros(3)).backward()
    assert x.grad.tolist() == [[-1.0, 1.0]] * 3


def test_the_bound_does_not_hide_nan():
    x = torch.tensor([[math.nan, 0.0]])
    assert math.isnan(SoftmaxWithLoss()(x, torch.zeros(1)))


def test_fcns_options_sum_over_the_pixels_of_an_image():
    x, label = torch.zeros(1, 21, 4, 5), torch.zeros(1, 1, 4, 5)
    label[0, 0, 0] = 255
    loss = SoftmaxWithLoss(ignore_label=255, normalize=False)(x, label)
    assert float(loss) == pytest.approx(15 * math.log(21), rel=1e-6)


def test_float_labels_are_truncated_toward_zero():
    x = torch.randn(6, 3)
    truncated = SoftmaxWithLoss(ignore_label=255)(
        x, torch.tensor([0.9, 1.5, 2.99, -0.9, 255.7, 0.0])
    )
    whole = SoftmaxWithLoss(ignore_label=255)(x, torch.tensor([0, 1, 2, 0, 255, 0]))
    assert torch.equal(truncated, whole)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: SoftmaxWithLoss(normalization="valid"),
            "normalization: expected one of FULL, VALID, BATCH_SIZE, NONE, got 'valid'.",
        ),
        (
            lambda: SoftmaxWithLoss()(torch.zeros(2, 3, 4), torch.zeros(2, 3)),
            "label: expected 8 entries, the first axis 2, got shape (2, 3).",
        ),
        (
            lambda: SoftmaxWithLoss(axis=0)(torch.zeros(3, 4), torch.zeros(4)),
            "label: expected 4 entries, the first axis 3, got shape (4,).",
        ),
        (
            lambda: SoftmaxWithLoss(axis=2)(torch.zeros(3, 4), torch.zeros(3)),
            "axis: expected an axis of the 2 that x has, got 2.",
        ),
        (
            # Caffe reads and writes outside its arrays here.
            lambda: SoftmaxWithLoss()(torch.zeros(2, 3), torch.tensor([0.0, 3.0])),
            "label: expected 0...2, got 3 at (1, 0). If 3 marks void pixels, pass ignore_label=3.",
        ),
        (
            lambda: SoftmaxWithLoss()(torch.zeros(2, 3), torch.tensor([math.nan, 0.0])),
            (
                f"label: expected 0...2, got {-(2**63)} at (0, 0). "
                f"If {-(2**63)} marks void pixels, add it to ignore_label."
            ),
        ),
    ],
    ids=["normalization", "count", "first axis", "axis", "invalid label", "NaN label"],
)
def test_wrong_calls_raise(call, message):
    with pytest.raises(seg_loss.InvalidInput, match="^" + re.escape(message) + "$"):
        call()
