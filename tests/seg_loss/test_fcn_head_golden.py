"""The loss of upsampled scores against Caffe's own Deconvolution, Crop and SoftmaxWithLoss.

The numbers are in `golden`, see its README.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

import seg_loss
from seg_loss import Deconvolution, reference

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "fcn_head"


@functools.cache
def cases():
    arrays = np.load(GOLDEN / "fcn_head.npz")
    cases_by_name = {}
    for case in json.loads((GOLDEN / "fcn_head.json").read_text())["cases"]:
        keys = [key for key in arrays.files if key.startswith(case["name"] + "/")]
        cases_by_name[case["name"]] = case | {
            key.rpartition("/")[2]: torch.from_numpy(arrays[key]) for key in keys
        }
    return cases_by_name


def names(*needed, without=()):
    """Returns the cases that have some arrays and lack others."""
    return [
        name
        for name, case in cases().items()
        if all(key in case for key in needed) and not any(key in case for key in without)
    ]


HEADS = names("score_fr", without=("score_pool4",))
CHAINS = names("score_fr", "score_pool4")


def layer_of(golden):
    params = golden["params"]
    crop = params["offset"]
    return Deconvolution(
        params["stride"], params["kernel"], tuple(crop) if isinstance(crop, list) else crop
    )


def assert_close(got, caffe, tolerance=1e-6):
    """Allows errors of this share of the largest entry, which Caffe's float32 sums have."""
    assert got.shape == caffe.shape
    assert float((got - caffe).abs().max()) <= tolerance * max(float(caffe.abs().max()), 1e-30)


def test_every_case_is_included():
    assert (len(HEADS), len(CHAINS), len(names("score"))) == (10, 3, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradient_equal_those_of_caffes_three_layers(name, dtype):
    golden = cases()[name]
    weight = golden["params"]["loss_weight"]
    options = {"upsampling": layer_of(golden), "normalization": golden["params"]["normalization"]}
    scores = golden["score_fr"].to(dtype, copy=True).requires_grad_()
    loss = seg_loss.upsampled_cross_entropy(scores, golden["label"], **options)
    (weight * loss).backward()
    assert float(loss.detach()) == pytest.approx(golden["loss_float64"], rel=1e-6, abs=1e-12)
    # Caffe adds the pixels one by one in float32.
    assert float(loss.detach()) == pytest.approx(float(golden["loss"]), rel=2e-6, abs=1e-12)
    assert_close(scores.grad, golden["d_score_fr"])
    evaluation = seg_loss.evaluate(scores, golden["label"], **options)
    assert evaluation.loss == pytest.approx(golden["loss_float64"], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", names("score"))
def test_the_definition_upsamples_as_caffe(name):
    golden = cases()[name]
    size = tuple(golden["label"].shape[2:])
    assert_close(reference.upsample(golden["score_fr"], size, layer_of(golden)), golden["score"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/golden is not on this machine")
@pytest.mark.parametrize("name", ["fcn32s_dense_surgery", "chain_fcn8s"])
def test_the_definition_upsamples_large_maps_as_caffe(name):
    golden = cases()[name]
    arrays = np.load(SHARED / f"{name}.npz")
    last = golden.get("fuse_pool3", golden["score_fr"])
    score = torch.from_numpy(arrays["score"])
    assert_close(reference.upsample(last, tuple(score.shape[2:]), layer_of(golden)), score)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/golden is not on this machine")
def test_caffes_filter_equals_ours():
    # A score of 1 becomes the filter itself, if nothing is cropped.
    for path in sorted(SHARED.glob("*.npz")):
        arrays = np.load(path)
        if "weight" in arrays.files:
            weight = torch.from_numpy(arrays["weight"])[0, 0]
            kernel_size = len(weight)
            one = torch.ones(1, 1, 1, 1)
            upsampling = Deconvolution(kernel_size // 2, kernel_size)
            got = reference.upsample(one, tuple(weight.shape), upsampling)[0, 0]
            assert_close(got, weight, 1e-7)


def twice(x):
    """Applies FCN's inner deconvolution: kernel 4, stride 2, fixed."""
    axis = torch.tensor([0.25, 0.75, 0.75, 0.25], dtype=x.dtype)
    weight = torch.outer(axis, axis).expand(x.shape[1], 1, -1, -1)
    return F.conv_transpose2d(x, weight, stride=2, groups=x.shape[1])


def cropped(x, offset, like):
    return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_the_gradients_of_a_whole_fcn_8s_head_equal_caffes(name, dtype):
    golden = cases()[name]
    inputs = ("score_fr", "score_pool4", "score_pool3")
    leaves = [golden[key].to(dtype, copy=True).requires_grad_() for key in inputs]
    score_fr, score_pool4, score_pool3 = leaves
    up = twice(score_fr)
    up = twice(up + cropped(score_pool4, 5, up))
    scores = up + cropped(score_pool3, 9, up)
    assert_close(scores.detach(), golden["fuse_pool3"])
    labels = golden["label"]
    upsampling = Deconvolution.of_fcn(tuple(scores.shape[2:]), tuple(labels.shape[2:]))
    assert upsampling == layer_of(golden) == Deconvolution(8, crop=31)
    loss = seg_loss.upsampled_cross_entropy(
        scores, labels, upsampling=upsampling, normalization="batch"
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(golden["loss"]), rel=2e-6)
    assert f"d_{inputs[0]}" in golden
    for key, leaf in zip(inputs, leaves, strict=True):
        if f"d_{key}" in golden:
            assert_close(leaf.grad, golden[f"d_{key}"])


def test_of_fcn_finds_the_net_by_its_sizes():
    for name, stride in (("fcn32s_thin", 32), ("fcn8s_thin", 8), ("fcn8s_atonce_thin", 8)):
        golden = cases()[name]
        scores = golden["score_fr" if stride == 32 else "fuse_pool3"]
        upsampling = Deconvolution.of_fcn(tuple(scores.shape[2:]), tuple(golden["label"].shape[2:]))
        assert upsampling == layer_of(golden)
        assert upsampling.stride == stride


def test_without_valid_pixels_the_gradient_is_zero_as_in_caffe():
    golden = cases()["k4_s2_all255"]
    loss, gradient = seg_loss.loss_and_gradient(
        golden["score_fr"], golden["label"], normalization="batch", upsampling=layer_of(golden)
    )
    assert float(loss) == float(golden["loss"]) == 0
    assert torch.equal(gradient, golden["d_score_fr"])
