"""Where the gradient is written: autograd, `out`, in place, and memory that is used again."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import seg_loss
from seg_loss import Bilinear
from tests.support.cases import (
    FLOATS,
    LAYOUTS,
    OPTIONS,
    UPSAMPLINGS,
    Case,
    loss_and_gradient_of,
    loss_of,
    make_inputs,
    make_labels,
    make_logits,
    make_options,
    same_bits,
    true_loss_and_gradient,
)

PLAIN = Case((2, 21, 37, 53), "one tile and a remainder, odd planes")
CASES = {**UPSAMPLINGS, "plain": PLAIN}
# An expanded tensor has no memory of its own for each element.
OUT_LAYOUTS = [name for name in LAYOUTS if name != "expanded"]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_autograd_out_and_in_place_give_the_same_bits(case, dtype, option):
    scores, labels, upsampling = make_inputs(case, dtype)
    options = make_options(option, case.full_shape)
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling, **options)
    leaf = scores.clone().requires_grad_()
    same = loss_of(leaf, labels, upsampling, **options)
    same.backward()
    assert same.requires_grad
    assert same_bits(same.detach(), loss)
    assert same_bits(leaf.grad, gradient)
    for out in (torch.full_like(scores, math.nan), scores):
        same, result = loss_and_gradient_of(scores, labels, upsampling, **options, out=out)
        assert result is out
        assert same_bits(same, loss)
        assert same_bits(out, gradient)


@pytest.mark.parametrize("layout", OUT_LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        PLAIN,
        # Several row blocks on several threads, whose source rows the neighbouring blocks read too.
        Case((2, 7, 70, 33), "several row blocks", (280, 132), Bilinear()),
    ],
    ids=lambda case: case.name,
)
def test_out_may_be_the_scores_in_any_layout(case, dtype, layout):
    scores, labels, upsampling = make_inputs(case, dtype)
    scores = LAYOUTS[layout](scores)
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling)
    same, out = loss_and_gradient_of(scores, labels, upsampling, out=scores)
    assert out is scores
    assert torch.equal(loss, same)
    assert same_bits(scores, gradient)


@pytest.mark.parametrize("layout", OUT_LAYOUTS)
@pytest.mark.parametrize(
    "case", [Case((2, 3, 7, 9), "odd"), UPSAMPLINGS["bilinear"]], ids=lambda case: case.name
)
def test_out_may_have_other_strides_and_gaps_are_not_written(case, layout):
    scores, labels, upsampling = make_inputs(case)
    out = LAYOUTS[layout](torch.full(scores.shape, torch.nan))
    _, gradient = loss_and_gradient_of(scores, labels, upsampling)
    _, result = loss_and_gradient_of(scores, labels, upsampling, out=out)
    assert result is out
    assert same_bits(out, gradient)
    memory = torch.empty(0).set_(out.untyped_storage()) if layout != "between_bytes" else out
    assert int(memory.isfinite().sum()) == out.numel()


# -- large gradients ---------------------------------------------------------------------------


def test_gradients_larger_than_the_caches_are_complete():
    # Above 24 MB the gradient is written past the caches, in whole aligned vectors.
    shape = (1, 3, 1501, 1507)
    logits, labels = make_logits(shape), make_labels(shape)
    _, gradient = seg_loss.loss_and_gradient(logits, labels)
    rows = slice(700, 720)
    _, part = seg_loss.loss_and_gradient(logits[:, :, rows], labels[:, rows], normalization="none")
    valid = int((labels != 255).sum())
    assert not gradient.isnan().any()
    assert torch.allclose(gradient[:, :, rows] * valid, part, rtol=1e-6, atol=0)
    shifted = LAYOUTS["shifted"](torch.full(shape, torch.nan))
    seg_loss.loss_and_gradient(logits, labels, out=shifted)
    assert same_bits(shifted, gradient)


def test_large_gradients_may_be_unaligned_to_an_element():
    # Unaligned memory cannot be written past the caches. An error would end the process.
    script = """
import torch, seg_loss
shape = (1, 3, 1501, 1507)
logits = torch.randn(shape)
labels = torch.zeros(1, 1501, 1507, dtype=torch.uint8)
memory = bytearray(logits.nbytes + 1)
out = torch.frombuffer(memory, dtype=torch.float32, offset=1).view(shape)
seg_loss.loss_and_gradient(logits, labels, out=out)
assert torch.equal(out, seg_loss.loss_and_gradient(logits, labels)[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr or f"killed by signal {-done.returncode}"


@pytest.mark.parametrize(
    "case",
    [
        Case((1, 3, 1001, 1003), "larger than 4 MiB"),
        Case((1, 21, 300, 401), "larger than 4 MiB", (301, 402), Bilinear()),
    ],
    ids=lambda case: case.name,
)
def test_reused_memory_is_written_completely(case):
    # The memory of a dropped gradient may serve the next one; torch does not poison it.
    scores, labels, upsampling = make_inputs(case)
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling)
    expected = gradient.clone()
    gradient.fill_(torch.nan)
    del gradient
    assert same_bits(loss_and_gradient_of(scores, labels, upsampling)[1], expected)
    truth, _ = true_loss_and_gradient(scores, labels, upsampling=upsampling)
    assert float(loss) == pytest.approx(float(truth), rel=1e-6)


def test_reused_memory_of_a_softmax_is_written_completely():
    logits = make_logits((1, 3, 1001, 1003))
    expected = seg_loss.spatial_softmax(logits).clone()
    seg_loss.spatial_softmax(logits).fill_(torch.nan)
    assert same_bits(seg_loss.spatial_softmax(logits), expected)


def test_large_gradients_do_not_share_memory_while_a_view_exists():
    shape = (1, 2, 1000, 1000)
    labels = torch.zeros(1, 1000, 1000, dtype=torch.uint8)
    first = seg_loss.loss_and_gradient(torch.zeros(shape), labels, normalization="none")[1]
    second = seg_loss.loss_and_gradient(torch.zeros(shape), 1 - labels, normalization="none")[1]
    assert first[0, :, 0, 0].tolist() == [-0.5, 0.5]
    assert second[0, :, 0, 0].tolist() == [0.5, -0.5]
    view = first.numpy()[0, :, -1, -1]
    row = second[:, :1]
    del first, second
    for _ in range(3):
        seg_loss.loss_and_gradient(torch.full(shape, 9.0), labels, normalization="full")
    assert view.tolist() == [-0.5, 0.5]
    assert bool((row == 0.5).all())


def test_large_gradients_of_several_threads_do_not_share_memory():
    shape = (1, 2, 1000, 1000)
    labels = torch.zeros(1, 1000, 1000, dtype=torch.uint8)

    def gradient(number):
        logits = torch.zeros(shape)
        logits[:, 1] = number
        return seg_loss.loss_and_gradient(logits, labels, normalization="none")[1]

    with ThreadPoolExecutor(4) as pool:
        gradients = list(pool.map(gradient, range(12)))
    for number, got in enumerate(gradients):
        alone = seg_loss.loss_and_gradient(
            torch.tensor([[[[0.0]], [[float(number)]]]]), labels[:, :1, :1], normalization="none"
        )[1]
        assert bool((got == alone).all())


@pytest.mark.parametrize("name", ["plain", "deconvolution"])
def test_several_threads_may_call_at_once(name):
    scores, labels, upsampling = make_inputs(UPSAMPLINGS[name])

    def call(k):
        return loss_and_gradient_of(scores + 0.1 * k * scores, labels, upsampling)

    expected = [call(k) for k in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for got, alone in zip(pool.map(call, range(12)), expected, strict=True):
            assert same_bits(got[0], alone[0])
            assert same_bits(got[1], alone[1])


# -- half precision ----------------------------------------------------------------------------


def test_gradients_in_float16_are_rounded_once():
    # Divided by two million pixels p - y is subnormal in float16; it is rounded at the end only.
    logits = torch.zeros(1, 2, 1000, 2000, dtype=torch.float16)
    labels = torch.zeros(1, 1000, 2000, dtype=torch.uint8)
    _, gradient = seg_loss.loss_and_gradient(logits, labels)
    exact = torch.tensor([-0.25e-6, 0.25e-6], dtype=torch.float64).to(torch.float16)
    assert same_bits(gradient, exact[None, :, None, None].expand_as(gradient))


def test_gradients_in_float16_are_summed_before_they_are_rounded():
    # Divided by two million pixels each pixel's part is 0 in float16; the sum is not.
    scores = torch.zeros(1, 2, 2, 2, dtype=torch.float16)
    labels = torch.zeros(1, 1000, 2000, dtype=torch.uint8)
    _, gradient = loss_and_gradient_of(scores, labels, Bilinear())
    assert gradient[0, 0].flatten().tolist() == [-0.125] * 4
    assert gradient[0, 1].flatten().tolist() == [0.125] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_target_class_is_subtracted_before_rounding(dtype):
    # p = 1 - 6e-6 is 1 in half precision, and p - 1 of the rounded p would be 0.
    logits = torch.tensor([12.0, 0.0], dtype=dtype)[None, :, None, None]
    _, gradient = seg_loss.loss_and_gradient(logits, torch.zeros(1, 1, 1, dtype=torch.uint8))
    other = 1 / (1 + torch.tensor(12.0, dtype=torch.float64).exp())
    assert gradient.flatten().tolist() == [float((-other).to(dtype)), float(other.to(dtype))]
