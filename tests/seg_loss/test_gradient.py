"""The gradient against the definition in float64, by `loss_and_gradient` and by autograd."""

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import (
    CASES,
    FLOATS,
    LABEL_DTYPES,
    LAYOUTS,
    OPTIONS,
    assert_accurate,
    is_positive_zero,
    make_labels,
    make_logits,
    make_options,
    same_bits,
    torch_loss_and_gradient,
    with_void,
)

import seg_loss
from seg_loss import reference

_turns = itertools.cycle(
    (label_dtype, option) for label_dtype in LABEL_DTYPES for option in OPTIONS
)
GRID = [
    pytest.param(case, dtype, layout, *next(_turns), id=f"{case.name}-{str(dtype)[6:]}-{layout}")
    for case in CASES
    for dtype in FLOATS
    for layout in LAYOUTS
]


@pytest.mark.parametrize(("case", "dtype", "layout", "label_dtype", "option"), GRID)
def test_gradient_is_as_accurate_as_torchs_or_better(case, dtype, layout, label_dtype, option):
    logits = LAYOUTS[layout](make_logits(case.shape, dtype))
    labels = make_labels(case.shape, label_dtype)
    options = with_void(make_options(option, case.shape), labels)
    loss, gradient = seg_loss.loss_and_gradient(logits, labels, **options)
    _, truth = reference.loss_and_gradient(logits, labels, **options)
    _, by_torch = torch_loss_and_gradient(logits, labels, **options)
    assert gradient.dtype == dtype
    assert gradient.stride() == torch.empty_like(logits).stride()
    assert not loss.requires_grad
    assert not gradient.requires_grad
    # Of one class the truth is 1 - 1, and smoothing takes it from rounded parts.
    scale = 1.0 if case.shape[1] == 1 else None
    assert_accurate(f"gradient ({case.reason})", gradient, truth, by_torch, scale=scale)
    assert torch.equal(loss, seg_loss.spatial_cross_entropy(logits, labels, **options))

    values = options["ignore_index"]
    values = (values,) if isinstance(values, int) else values
    ignored = torch.isin(labels.long(), torch.tensor(values))
    assert is_positive_zero(gradient.movedim(1, -1)[ignored])


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_autograd_gives_the_same_gradient_bit_by_bit(dtype, option):
    shape = (2, 21, 37, 53)
    logits, labels = make_logits(shape, dtype).requires_grad_(), make_labels(shape)
    options = with_void(make_options(option, shape), labels)
    loss = seg_loss.spatial_cross_entropy(logits, labels, **options)
    loss.backward()
    one_loss, gradient = seg_loss.loss_and_gradient(logits, labels, **options)
    assert torch.equal(loss, one_loss)
    assert same_bits(logits.grad, gradient)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_out_equal_to_the_logits_overwrites_them_with_the_gradient(dtype, layout):
    shape = (2, 21, 37, 53)
    logits, labels = LAYOUTS[layout](make_logits(shape, dtype)), make_labels(shape)
    loss, gradient = seg_loss.loss_and_gradient(logits, labels)
    again, out = seg_loss.loss_and_gradient(logits, labels, out=logits)
    assert out is logits
    assert torch.equal(loss, again)
    assert same_bits(logits, gradient)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
def test_out_may_lie_otherwise_than_the_logits_and_nothing_around_it_changes(layout):
    shape = (2, 3, 7, 9)
    logits, labels = make_logits(shape), make_labels(shape)
    out = LAYOUTS[layout](torch.full(shape, torch.nan))
    _, gradient = seg_loss.loss_and_gradient(logits, labels)
    _, given = seg_loss.loss_and_gradient(logits, labels, out=out)
    assert given is out
    assert same_bits(out, gradient)
    everything = torch.empty(0).set_(out.untyped_storage()) if layout != "between_bytes" else out
    assert int(everything.isfinite().sum()) == out.numel()


def test_gradients_too_large_for_the_caches_are_whole():
    # Beyond 24 MB the gradient is written past the caches, in whole aligned vectors.
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


def test_large_gradients_into_memory_between_bytes_do_not_crash():
    # What is never aligned cannot be written past the caches. In a process, which would die.
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


def test_small_gradients_survive_float16():
    # Divided by two million pixels p - y is subnormal in float16; rounded once, at the end.
    logits = torch.zeros(1, 2, 1000, 2000, dtype=torch.float16)
    labels = torch.zeros(1, 1000, 2000, dtype=torch.uint8)
    _, gradient = seg_loss.loss_and_gradient(logits, labels)
    assert same_bits(gradient, torch.tensor([-0.25e-6, 0.25e-6], dtype=torch.float64)
                     .to(torch.float16)[None, :, None, None].expand_as(gradient))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_true_class_is_subtracted_before_rounding(dtype):
    # p = 1 - 6e-6 is 1 in half precision: p - 1 taken there would be 0.
    logits = torch.tensor([12.0, 0.0], dtype=dtype)[None, :, None, None]
    _, gradient = seg_loss.loss_and_gradient(logits, torch.zeros(1, 1, 1, dtype=torch.uint8))
    other = 1 / (1 + torch.tensor(12.0, dtype=torch.float64).exp())
    assert gradient.flatten().tolist() == [float((-other).to(dtype)), float(other.to(dtype))]


def test_two_large_gradients_do_not_share_memory_and_a_view_keeps_its_own():
    shape = (1, 2, 1000, 1000)
    labels = torch.zeros(1, 1000, 1000, dtype=torch.uint8)
    first = seg_loss.loss_and_gradient(torch.zeros(shape), labels, normalization="none")[1]
    second = seg_loss.loss_and_gradient(torch.zeros(shape), 1 - labels, normalization="none")[1]
    assert first[0, :, 0, 0].tolist() == [-0.5, 0.5]
    assert second[0, :, 0, 0].tolist() == [0.5, -0.5]
    kept = first.numpy()[0, :, -1, -1]
    row = second[:, :1]
    del first, second
    for _ in range(3):
        seg_loss.loss_and_gradient(torch.full(shape, 9.0), labels, normalization="full")
    assert kept.tolist() == [-0.5, 0.5]
    assert bool((row == 0.5).all())


def test_memory_used_again_is_written_whole():
    # The memory of a dropped gradient may serve the next one; torch's poison does not reach it.
    shape = (1, 3, 1001, 1003)
    logits, labels = make_logits(shape), make_labels(shape)
    fresh = seg_loss.loss_and_gradient(logits, labels)[1].clone()
    seg_loss.loss_and_gradient(logits, labels)[1].fill_(torch.nan)
    assert same_bits(seg_loss.loss_and_gradient(logits, labels)[1], fresh)
    softmax = seg_loss.spatial_softmax(logits).clone()
    seg_loss.spatial_softmax(logits).fill_(torch.nan)
    assert same_bits(seg_loss.spatial_softmax(logits), softmax)


def test_gradients_of_several_threads_at_once_are_their_own():
    shape = (1, 2, 1000, 1000)
    labels = torch.zeros(1, 1000, 1000, dtype=torch.uint8)

    def gradient(number):
        logits = torch.zeros(shape)
        logits[:, 1] = number
        return seg_loss.loss_and_gradient(logits, labels, normalization="none")[1]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(gradient, range(12)))
    for number, got in enumerate(found):
        alone = seg_loss.loss_and_gradient(
            torch.tensor([[[[0.0]], [[float(number)]]]]), labels[:, :1, :1], normalization="none"
        )[1]
        assert bool((got == alone).all())
