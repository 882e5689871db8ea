"""The loss of upsampled scores and its gradient: the definition, algebra, autograd, hostile input."""

# ruff: noqa: E501 - messages stay in one piece, to be found by a search

import itertools
import math
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import (
    FLOATS,
    LABEL_DTYPES,
    LAYOUTS,
    NORMALIZATIONS,
    OPTIONS,
    UPSAMPLED_CASES,
    UpsampledCase,
    assert_accurate,
    is_positive_zero,
    make_labels,
    make_logits,
    make_options,
    one_thread,
    same_bits,
    seed_of,
    upsample_by_torch,
    upsampled_torch,
    upsampled_truth,
    with_void,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import seg_loss
from seg_loss import Bilinear, Deconvolution, InvalidInput, reference
from seg_loss import _labels as label_check
from seg_loss.upsampling import axes

U8 = torch.uint8
ALIGNED = Bilinear(align_corners=True)
FCN_8S = Deconvolution(8, crop=31)
# Scores, size, upsampling: small, with odd planes, cells cut off and several bands.
WAYS = {
    "bilinear": ((2, 5, 7, 9), (27, 31), Bilinear()),
    "aligned": ((2, 5, 7, 9), (19, 25), ALIGNED),
    "equal": ((2, 5, 7, 9), (7, 9), Bilinear()),
    "down": ((2, 5, 7, 9), (4, 3), Bilinear()),
    "deconvolution": ((2, 5, 7, 9), (29, 39), FCN_8S),
    "odd kernel": ((2, 5, 7, 9), (20, 26), Deconvolution(3, 5, (1, 0))),
    "gaps": ((2, 5, 7, 9), (26, 33), Deconvolution(4, 3, (1, 2))),
}
WAY = pytest.mark.parametrize("way", WAYS)
SECOND_ORDER = (
    r"^seg_loss: expected a first derivative, got a request for a second one "
    r"\(create_graph=True, or backward through a gradient\)\. "
    r"Second derivatives are not supported\.$"
)


def made(way, dtype=torch.float32, *, ignored=0.2):
    shape, size, upsampling = WAYS[way]
    labels = make_labels((*shape[:2], *size), ignored=ignored)
    return make_logits(shape, dtype), labels, upsampling


def options_of(option, way):
    shape, size, _ = WAYS[way]
    return make_options(option, (*shape[:2], *size))


def refused(call, message):
    with pytest.raises(InvalidInput, match="^" + re.escape(message) + "$"):
        call()


def loss_of(scores, labels, upsampling, **options):
    return seg_loss.upsampled_cross_entropy(scores, labels, upsampling=upsampling, **options)


def both_of(scores, labels, upsampling, **options):
    return seg_loss.loss_and_gradient(scores, labels, upsampling=upsampling, **options)


@pytest.fixture(autouse=True)
def nothing_left_over():
    yield
    label_check._deferred.clear()


# -- the definition ----------------------------------------------------------------------------

# Every case in every dtype; layouts, label dtypes and options take turns: 9, 5 and 8 of them, with
# no common divisor, and a dtype meets them all in the end.
_turns = zip(
    itertools.cycle(LAYOUTS), itertools.cycle(LABEL_DTYPES), itertools.cycle(OPTIONS), strict=False
)
GRID = [
    pytest.param(case, dtype, *next(_turns), id=f"{case.name}-{str(dtype)[6:]}")
    for dtype in FLOATS
    for case in UPSAMPLED_CASES
]


def check_accuracy(case, scores, labels, options):
    loss, gradient = both_of(scores, labels, case.upsampling, **options)
    truth, true_gradient = upsampled_truth(scores, labels, upsampling=case.upsampling, **options)
    by_torch, torch_gradient = upsampled_torch(
        scores, labels, upsampling=case.upsampling, **options
    )
    assert loss.shape == ()
    assert loss.dtype == (torch.float64 if scores.dtype == torch.float64 else torch.float32)
    assert gradient.dtype == scores.dtype
    assert gradient.stride() == torch.empty_like(scores).stride()
    assert not loss.requires_grad
    assert not gradient.requires_grad
    # Of one class the truth is 1 - 1, and smoothing takes it from rounded parts.
    scale = 1.0 if case.shape[1] == 1 else None
    assert_accurate(f"loss ({case.reason})", loss, truth, by_torch)
    assert_accurate(
        f"gradient ({case.reason})", gradient, true_gradient, torch_gradient, scale=scale
    )
    assert same_bits(loss, loss_of(scores, labels, case.upsampling, **options))


@pytest.mark.parametrize(("case", "dtype", "layout", "label_dtype", "option"), GRID)
def test_loss_and_gradient_are_as_accurate_as_torchs_or_better(
    case, dtype, layout, label_dtype, option
):
    scores = LAYOUTS[layout](make_logits(case.shape, dtype))
    labels = make_labels(case.full_shape, label_dtype)
    options = with_void(make_options(option, case.full_shape), labels)
    check_accuracy(case, scores, labels, options)


@pytest.mark.parametrize(
    "case",
    [
        UpsampledCase((1, 21, 70, 70), (500, 500), FCN_8S, "FCN-8s"),
        UpsampledCase((1, 21, 63, 63), (500, 500), Bilinear(), "a net of stride 8"),
        UpsampledCase((1, 3, 1, 2), (900, 700), Bilinear(), "nodes of 300,000 pixels each"),
    ],
    ids=lambda case: case.reason,
)
def test_whole_pictures_are_as_accurate_as_torchs_or_better(case):
    check_accuracy(case, make_logits(case.shape), make_labels(case.full_shape), {})


@pytest.mark.parametrize("option", OPTIONS)
@WAY
def test_every_option_means_what_it_means_for_logits(way, option):
    case = UpsampledCase(*WAYS[way], way)
    for dtype in (torch.float32, torch.float64):
        scores, labels, _ = made(way, dtype)
        check_accuracy(case, scores, labels, options_of(option, way))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_each_normalization_counts_full_pixels_not_nodes(normalization, weighted):
    scores, labels, upsampling = made("bilinear")
    labels[1] = 255  # an image without a valid pixel
    weights = options_of("everything", "bilinear") if weighted else {}
    weights = {key: value for key, value in weights.items() if key.endswith("_weight")}
    options = {**weights, "normalization": normalization}
    got = both_of(scores, labels, upsampling, **options)
    truth = upsampled_truth(scores, labels, upsampling=upsampling, **options)
    by_torch = upsampled_torch(scores, labels, upsampling=upsampling, **options)
    assert_accurate("loss", got[0], truth[0], by_torch[0])
    assert_accurate("gradient", got[1], truth[1], by_torch[1])


def test_bilinear_without_aligned_corners_is_what_happens_unasked():
    scores, labels, _ = made("bilinear")
    plain = seg_loss.upsampled_cross_entropy(scores, labels)
    assert same_bits(plain, loss_of(scores, labels, Bilinear()))
    logits = torch.nn.functional.interpolate(scores, labels.shape[1:], mode="bilinear")
    other = seg_loss.spatial_cross_entropy(logits, labels)
    assert float(plain) == pytest.approx(float(other), rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_scores_are_read_as_they_lie(dtype, layout):
    scores, labels, upsampling = made("bilinear", dtype)
    laid = LAYOUTS[layout](scores)
    loss, gradient = both_of(laid, labels, upsampling)
    plain, same = both_of(laid.contiguous(), labels, upsampling)
    assert gradient.stride() == torch.empty_like(laid).stride()
    assert same_bits(loss, plain)
    assert same_bits(gradient, same)


@pytest.mark.parametrize("label_dtype", LABEL_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_and_pixel_weights_are_read_as_they_lie(layout, label_dtype):
    shape, size, upsampling = WAYS["bilinear"]
    scores, labels = make_logits(shape), make_labels((*shape[:2], *size), label_dtype)
    void = -1 if label_dtype == torch.int8 else 255
    laid = LAYOUTS[layout](labels[:, None])
    weight = LAYOUTS[layout](torch.rand(labels.shape)[:, None])
    got = both_of(scores, laid, upsampling, ignore_index=void, pixel_weight=weight[:, 0])
    plain = both_of(
        scores,
        laid[:, 0].contiguous(),
        upsampling,
        ignore_index=void,
        pixel_weight=weight.contiguous(),
    )
    assert same_bits(got[0], plain[0])
    assert same_bits(got[1], plain[1])


def test_labels_of_each_dtype_mean_the_same():
    shape, size, upsampling = WAYS["deconvolution"]
    scores = make_logits(shape)
    plain = both_of(scores, make_labels((*shape[:2], *size)), upsampling)
    for dtype in LABEL_DTYPES:
        labels = make_labels((*shape[:2], *size), dtype)
        got = both_of(scores, labels, upsampling, ignore_index=(255, -1))
        assert same_bits(got[0], plain[0])
        assert same_bits(got[1], plain[1])


def test_weights_may_be_of_another_dtype_than_the_scores():
    scores, labels, upsampling = made("aligned")
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        weight = torch.tensor([0.5, 2.0, 0.25, 1.0, 3.0])
        pixels = torch.full(labels.shape, 0.5)
        given = {"class_weight": weight.to(dtype), "pixel_weight": pixels.to(dtype)}
        plain = {"class_weight": weight, "pixel_weight": pixels}
        for a, b in zip(
            both_of(scores, labels, upsampling, **given),
            both_of(scores, labels, upsampling, **plain),
            strict=True,
        ):
            assert same_bits(a, b)


sizes = st.integers(1, 12)
targets = st.integers(0, 40)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 40), sizes, sizes),
    st.tuples(targets, targets),
    st.sampled_from([Bilinear(), ALIGNED]),
    st.sampled_from(FLOATS),
    st.floats(0, 1),
)
def test_any_sizes_give_what_the_definition_gives(shape, size, upsampling, dtype, ignored):
    scores = make_logits(shape, dtype)
    check_against_definition(scores, size, upsampling, ignored)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 40), sizes, sizes),
    st.integers(1, 9),
    st.sampled_from(FLOATS),
    st.floats(0, 1),
    st.data(),
)
def test_any_deconvolution_gives_what_the_definition_gives(shape, stride, dtype, ignored, data):
    kernel_size = data.draw(st.integers(1, 2 * stride))
    whole = [(nodes - 1) * stride + kernel_size for nodes in shape[2:]]
    crop = tuple(data.draw(st.integers(0, size)) for size in whole)
    size = tuple(data.draw(st.integers(0, n - c)) for n, c in zip(whole, crop, strict=True))
    upsampling = Deconvolution(stride, kernel_size, crop)
    check_against_definition(make_logits(shape, dtype), size, upsampling, ignored)


def check_against_definition(scores, size, upsampling, ignored):
    labels = make_labels((*scores.shape[:2], *size), ignored=ignored)
    loss, gradient = both_of(scores, labels, upsampling)
    truth, true_gradient = upsampled_truth(scores, labels, upsampling=upsampling)
    wide = scores.dtype == torch.float64
    assert float(loss) == pytest.approx(float(truth), rel=1e-13 if wide else 1e-6, abs=1e-7)
    # The gradient of a pixel is at most 1, and a node has a share of several.
    eps = torch.finfo(scores.dtype).eps
    assert torch.allclose(gradient.double(), true_gradient, rtol=2 * eps + 1e-5, atol=1e-6)
    assert is_positive_zero(gradient[~reads(labels, scores.shape, upsampling).expand_as(gradient)])
    assert float(both_of(scores.double(), labels, upsampling)[0]) == pytest.approx(
        float(truth), rel=1e-13, abs=1e-14
    )


@one_thread()
def reads(labels, shape, upsampling, valid=None):
    """Which scores [N, 1, h, w] some valid pixel reads: has in its sum with another weight than 0."""
    rows, columns = (
        torch.from_numpy(axis.matrix() != 0).double()
        for axis in axes(upsampling, shape[2:], labels.shape[1:])
    )
    valid = (labels != 255) if valid is None else valid
    return ((rows.T @ valid.double() @ columns) > 0)[:, None]


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["plain", "everything"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@WAY
def test_autograd_out_and_in_place_give_the_same_gradient_bit_by_bit(way, dtype, option):
    scores, labels, upsampling = made(way, dtype)
    options = options_of(option, way)
    loss, gradient = both_of(scores, labels, upsampling, **options)
    leaf = scores.clone().requires_grad_()
    same = loss_of(leaf, labels, upsampling, **options)
    same.backward()
    assert same.requires_grad
    assert same_bits(same.detach(), loss)
    assert same_bits(leaf.grad, gradient)
    out = torch.full_like(scores, math.nan)
    again, given = both_of(scores, labels, upsampling, **options, out=out)
    assert given is out
    assert same_bits(again, loss)
    assert same_bits(out, gradient)
    again, given = both_of(scores, labels, upsampling, **options, out=scores)
    assert given is scores
    assert same_bits(again, loss)
    assert same_bits(scores, gradient)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_out_equal_to_the_scores_overwrites_them_with_the_gradient(dtype, layout):
    # Several bands on several threads, each reading the node rows that its neighbours read too.
    shape = (2, 7, 70, 33)
    scores, labels = LAYOUTS[layout](make_logits(shape, dtype)), make_labels((2, 7, 280, 132))
    loss, gradient = both_of(scores, labels, Bilinear())
    again, out = both_of(scores, labels, Bilinear(), out=scores)
    assert out is scores
    assert torch.equal(loss, again)
    assert same_bits(scores, gradient)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
def test_out_may_lie_otherwise_than_the_scores_and_nothing_around_it_changes(layout):
    scores, labels, upsampling = made("bilinear")
    out = LAYOUTS[layout](torch.full(scores.shape, torch.nan))
    _, gradient = both_of(scores, labels, upsampling)
    _, given = both_of(scores, labels, upsampling, out=out)
    assert given is out
    assert same_bits(out, gradient)
    everything = torch.empty(0).set_(out.untyped_storage()) if layout != "between_bytes" else out
    assert int(everything.isfinite().sum()) == out.numel()


def test_out_of_the_wrong_kind_is_refused():
    scores, labels, upsampling = made("bilinear")
    refused(
        lambda: both_of(scores, labels, upsampling, out=torch.empty(2, 5, 27, 31)),
        "out: expected shape (2, 5, 7, 9) of the logits, got shape (2, 5, 27, 31).",
    )
    refused(
        lambda: both_of(scores, labels, upsampling, out=scores.half()),
        "out: expected float32 as the logits, got float16.",
    )
    refused(
        lambda: both_of(scores, labels, upsampling, out=scores.flip(0)[:1].expand(scores.shape)),
        "out: expected separate memory for each element, got an expanded tensor.",
    )


def test_gradients_too_large_for_the_caches_are_whole():
    # Large gradients lie in memory that is used again, where torch's poison does not reach.
    shape = (1, 21, 300, 401)
    scores, labels = make_logits(shape), make_labels((1, 21, 301, 402))
    loss, gradient = both_of(scores, labels, Bilinear())
    kept = gradient.clone()
    gradient.fill_(torch.nan)
    del gradient
    assert same_bits(both_of(scores, labels, Bilinear())[1], kept)
    assert float(loss) == pytest.approx(
        float(upsampled_truth(scores, labels, upsampling=Bilinear())[0]), rel=1e-6
    )


SCRIPT = """
import json, sys
import torch, seg_loss

def status(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) << 10

def autograd(scores, labels, upsampling):
    loss = seg_loss.upsampled_cross_entropy(scores.requires_grad_(), labels, upsampling=upsampling)
    loss.backward()

CALLS = {
    "evaluate": seg_loss.evaluate,
    "in place": lambda x, y, upsampling: seg_loss.loss_and_gradient(
        x, y, upsampling=upsampling, out=x),
    "gradient": seg_loss.loss_and_gradient,
    "autograd": autograd,
}
name, dtype = sys.argv[1:]
dtype = getattr(torch, dtype)
small = torch.zeros(1, 21, 32, 32, dtype=dtype)
upsampling = seg_loss.Bilinear()
# Compiled, threads started.
CALLS[name](small, torch.zeros(1, 256, 256, dtype=torch.uint8), upsampling=upsampling)
scores = torch.ones(1, 21, 128, 256, dtype=dtype)
labels = torch.zeros(1, 1024, 2048, dtype=torch.uint8)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = status("VmRSS")
CALLS[name](scores, labels, upsampling=upsampling)
print((status("VmHWM") - before) / (scores.nbytes * 64))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("call", "gradients"), [("evaluate", 0), ("in place", 0), ("gradient", 1), ("autograd", 3)]
)
def test_peak_memory_beyond_gradients_as_small_as_the_scores_is_far_below_the_logits(
    call, gradients
):
    # Autograd keeps a gradient, multiplies it, and rounds it to the scores' dtype.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, call, "float32"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    beyond = float(done.stdout) - gradients / 64
    assert beyond < 0.015, f"{call}: {beyond:.1%} of the logits"


# -- algebra -----------------------------------------------------------------------------------


@pytest.mark.parametrize("option", OPTIONS)
@WAY
def test_the_gradient_sums_to_zero_over_the_classes(way, option):
    scores, labels, upsampling = made(way, torch.float64)
    _, gradient = both_of(scores, labels, upsampling, **options_of(option, way))
    largest = float(gradient.abs().max())
    assert largest > 0
    assert float(gradient.sum(dim=1).abs().max()) <= 1e-14 * max(largest, 1.0)


@WAY
def test_the_gradient_is_that_of_the_logits_brought_back(way):
    # The transposed upsampling of the loss's own gradient: neither autograd nor `reference`'s loss.
    scores, labels, upsampling = made(way, torch.float64)
    logits = reference.upsample(scores, labels.shape[1:], upsampling)
    loss, full = seg_loss.loss_and_gradient(logits, labels)
    rows, columns = (
        torch.from_numpy(axis.matrix())
        for axis in axes(upsampling, scores.shape[2:], labels.shape[1:])
    )
    got, gradient = both_of(scores, labels, upsampling)
    assert float(got) == pytest.approx(float(loss), rel=1e-13)
    assert torch.allclose(gradient, rows.T @ full @ columns, rtol=1e-12, atol=1e-15)


@WAY
def test_one_valid_pixel_gives_to_its_nodes_by_their_weights(way):
    scores, labels, upsampling = made(way, torch.float64)
    scores, labels = scores[:1], labels[:1]
    size = labels.shape[1:]
    logits = reference.upsample(scores, size, upsampling)
    rows, columns = (axis.matrix() for axis in axes(upsampling, scores.shape[2:], size))
    places = torch.randint(0, labels.numel(), (12,), generator=seed_of(way)).tolist()
    for place in (0, size[1] - 1, labels.numel() - 1, *places):
        y, x = divmod(place, size[1])
        one = torch.full_like(labels, 255)
        one[0, y, x] = 3
        loss, gradient = both_of(scores, one, upsampling)
        p = logits[0, :, y, x].softmax(dim=0)
        p[3] -= 1
        weights = torch.from_numpy(rows[y][:, None] * columns[x])
        truth = p[:, None, None] * weights
        nll = -logits[0, :, y, x].log_softmax(dim=0)[3]
        assert float(loss) == pytest.approx(float(nll), rel=1e-13)
        assert torch.allclose(gradient[0], truth, rtol=1e-12, atol=1e-16)
        assert is_positive_zero(gradient[0][:, weights == 0])


@pytest.mark.parametrize("shift", [1.0, -1000.0, 2.0**20])
@WAY
def test_a_constant_added_to_all_classes_changes_nothing(way, shift):
    scores, labels, upsampling = made(way, torch.float64)
    plain, gradient = both_of(scores, labels, upsampling)
    moved, same_gradient = both_of(scores + shift, labels, upsampling)
    assert float(moved) == pytest.approx(float(plain), rel=1e-13 * max(abs(shift), 1))
    assert torch.allclose(gradient, same_gradient, rtol=0, atol=1e-15 * max(abs(shift), 1))


@WAY
def test_a_constant_of_its_own_for_each_node_changes_nothing(way):
    scores, labels, upsampling = made(way, torch.float64)
    shifts = 10 * torch.randn(2, 1, 7, 9, dtype=torch.float64)
    plain, gradient = both_of(scores, labels, upsampling)
    moved, same_gradient = both_of(scores + shifts, labels, upsampling)
    assert float(moved) == pytest.approx(float(plain), rel=1e-12)
    assert torch.allclose(gradient, same_gradient, rtol=0, atol=1e-14)


@WAY
def test_permuting_the_classes_with_the_labels_permutes_the_gradient(way):
    scores, labels, upsampling = made(way)
    order = torch.tensor([3, 0, 4, 2, 1])
    renamed = torch.cat([order.argsort(), torch.full((251,), 255)])
    plain, gradient = both_of(scores, labels, upsampling)
    other, permuted = both_of(scores[:, order], renamed[labels.long()], upsampling)
    assert float(other) == pytest.approx(float(plain), rel=1e-6)
    assert torch.allclose(permuted, gradient[:, order], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("axes", [(2,), (3,), (2, 3)], ids=["rows", "columns", "both"])
@pytest.mark.parametrize("way", ["bilinear", "aligned", "equal", "down"])
def test_a_mirrored_picture_has_a_mirrored_gradient(way, axes):
    scores, labels, upsampling = made(way, torch.float64)
    plain, gradient = both_of(scores, labels, upsampling)
    mirrored = labels.flip([axis - 1 for axis in axes])
    other, got = both_of(scores.flip(axes), mirrored, upsampling)
    assert float(other) == pytest.approx(float(plain), rel=1e-13)
    assert torch.allclose(got.flip(axes), gradient, rtol=1e-11, atol=1e-15)


@WAY
def test_rows_and_columns_may_change_places(way):
    scores, labels, upsampling = made(way, torch.float64)
    turned = upsampling
    if isinstance(upsampling, Deconvolution):
        turned = Deconvolution(upsampling.stride, upsampling.kernel_size, upsampling.crop[::-1])
    plain, gradient = both_of(scores, labels, upsampling)
    other, got = both_of(scores.mT, labels.mT, turned)
    assert float(other) == pytest.approx(float(plain), rel=1e-13)
    assert torch.allclose(got.mT, gradient, rtol=1e-11, atol=1e-15)


@WAY
def test_the_parts_of_a_batch_add_up(way):
    scores, labels, upsampling = made(way)
    whole, gradient = both_of(scores, labels, upsampling, normalization="none")
    parts = [
        both_of(scores[k : k + 1], labels[k : k + 1], upsampling, normalization="none")
        for k in range(2)
    ]
    assert float(whole) == pytest.approx(sum(float(loss) for loss, _ in parts), rel=1e-6)
    assert same_bits(gradient, torch.cat([part for _, part in parts]))


@WAY
def test_the_pixels_of_a_batch_add_up(way):
    # Valid pixels in two turns: ignored means not there.
    scores, labels, upsampling = made(way, torch.float64, ignored=0.0)
    first = torch.rand(labels.shape, generator=seed_of(way)) < 0.5
    whole = both_of(scores, labels, upsampling, normalization="none")
    turns = [
        both_of(scores, torch.where(part, labels, 255), upsampling, normalization="none")
        for part in (first, ~first)
    ]
    assert float(whole[0]) == pytest.approx(float(turns[0][0] + turns[1][0]), rel=1e-13)
    assert torch.allclose(whole[1], turns[0][1] + turns[1][1], rtol=1e-12, atol=1e-13)


def test_ignoring_each_class_in_turn_adds_up_to_one_less_than_the_classes():
    # Caffe's own test of ignore_label.
    scores, labels, upsampling = made("deconvolution", ignored=0.0)
    full, gradient = both_of(scores, labels, upsampling, normalization="none")
    turns = [
        both_of(scores, labels, upsampling, ignore_index=c, normalization="none") for c in range(5)
    ]
    assert sum(float(loss) for loss, _ in turns) == pytest.approx(4 * float(full), rel=1e-6)
    total = sum(part.double() for _, part in turns)
    assert torch.allclose(total, 4 * gradient.double(), rtol=1e-5, atol=1e-5)


# Four nodes share this many pixels evenly; FCN's borders, attenuated, give less than they have.
EVENLY = [(Bilinear(), 8, 16.0), (ALIGNED, 8, 16.0), (Deconvolution(4, crop=2), 8, 12.25),
          (Deconvolution(4), 12, 16.0)]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("num_classes", [2, 3, 21, 150, 1000])
@pytest.mark.parametrize(("upsampling", "size", "share"), EVENLY, ids=str)
def test_zero_scores_cost_ln_c_and_pull_by_one_minus_one_over_c(
    upsampling, size, share, num_classes, dtype
):
    scores = torch.zeros(1, num_classes, 2, 2, dtype=dtype)
    labels = torch.ones(1, size, size, dtype=torch.int16)
    loss, gradient = both_of(scores, labels, upsampling, normalization="none")
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    tolerance = 8 * torch.finfo(kind).eps
    assert float(loss) == pytest.approx(size * size * math.log(num_classes), rel=tolerance)
    rounding = 8 * torch.finfo(dtype).eps
    for c, part in ((0, 1 / num_classes), (1, 1 / num_classes - 1)):
        got = gradient[0, c].flatten().tolist()
        assert got == pytest.approx([part * share] * 4, rel=rounding)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@WAY
def test_one_class_costs_exactly_nothing(way, dtype):
    shape, size, upsampling = WAYS[way]
    scores = make_logits((2, 1, *shape[2:]), dtype, spread=100.0)
    labels = torch.zeros(2, *size, dtype=U8)
    loss, gradient = both_of(scores, labels, upsampling)
    assert float(loss) == 0
    assert not gradient.any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_score_that_is_the_same_everywhere_upsamples_to_itself(dtype):
    column = make_logits((2, 5, 1, 1), dtype)
    labels = make_labels((2, 5, 24, 40))
    logits = column.expand(2, 5, 24, 40)
    plain, full = seg_loss.loss_and_gradient(logits, labels)
    for upsampling in (Bilinear(), ALIGNED):
        loss, gradient = both_of(column.expand(2, 5, 3, 5), labels, upsampling)
        assert float(loss) == pytest.approx(float(plain), rel=1e-6)
        # What pixels give, nodes get: each row of weights sums to one.
        rounding = 16 * torch.finfo(dtype).eps
        assert torch.allclose(
            gradient.double().sum(dim=(2, 3)),
            full.double().sum(dim=(2, 3)),
            rtol=rounding,
            atol=rounding,
        )


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("upsampling", [Bilinear(), ALIGNED, Deconvolution(1, 1)], ids=str)
def test_equal_sizes_give_what_the_loss_of_logits_gives(upsampling, option):
    shape = (2, 21, 17, 23)
    labels, options = make_labels(shape), make_options(option, shape)
    for dtype in FLOATS:
        scores = make_logits(shape, dtype)
        loss, gradient = both_of(scores, labels, upsampling, **options)
        plain, same = seg_loss.loss_and_gradient(scores, labels, **options)
        wide = dtype == torch.float64
        assert float(loss) == pytest.approx(float(plain), rel=1e-14 if wide else 1e-6)
        rounding = 2 * torch.finfo(dtype).eps
        largest = float(same.abs().max())
        assert torch.allclose(gradient, same, rtol=rounding, atol=rounding * largest)
        ignored = options.get("ignore_index", 255)
        ignored = torch.tensor(ignored if isinstance(ignored, tuple) else [ignored])
        at_ignored = gradient.movedim(1, -1)[torch.isin(labels.long(), ignored)]
        assert is_positive_zero(at_ignored)


@pytest.mark.parametrize("option", ["plain", "everything"])
@pytest.mark.parametrize("upsampling", [Bilinear(), ALIGNED, FCN_8S], ids=str)
def test_results_are_bitwise_equal_between_runs_and_for_any_number_of_threads(upsampling, option):
    shape, size = (2, 7, 60, 47), (440, 338)
    full = (*shape[:2], *size)
    scores, labels, options = make_logits(shape), make_labels(full), make_options(option, full)
    once = both_of(scores, labels, upsampling, **options)
    for num_threads in (1, 1, 2, 3, 8):
        torch.set_num_threads(num_threads)
        loss, gradient = both_of(scores, labels, upsampling, **options)
        assert same_bits(loss, once[0])
        assert same_bits(gradient, once[1])


def test_calls_of_several_threads_at_once_do_not_meet():
    scores, labels, upsampling = made("deconvolution")
    alone = [both_of(scores + 0.1 * k * scores, labels, upsampling) for k in range(12)]

    def call(k):
        return both_of(scores + 0.1 * k * scores, labels, upsampling)

    with ThreadPoolExecutor(4) as pool:
        for got, plain in zip(pool.map(call, range(12)), alone, strict=True):
            assert same_bits(got[0], plain[0])
            assert same_bits(got[1], plain[1])


@pytest.mark.parametrize("option", ["plain", "everything"])
@WAY
def test_an_image_gives_the_same_bits_alone_and_in_a_batch(way, option):
    shape, size, upsampling = WAYS[way]
    full = (5, *shape[1:2], *size)
    scores, labels = make_logits((5, *shape[1:])), make_labels(full)
    options = {**make_options(option, full), "normalization": "none"}
    _, gradient = both_of(scores, labels, upsampling, **options)
    for k in range(5):
        one, alone = slice(k, k + 1), {**options}
        if "pixel_weight" in options:
            alone["pixel_weight"] = options["pixel_weight"][one]
        _, part = both_of(scores[one], labels[one], upsampling, **alone)
        assert same_bits(gradient[one], part)


# -- autograd ----------------------------------------------------------------------------------

SMALL = {
    "bilinear": ((2, 4, 3, 2), (7, 5), Bilinear()),
    "aligned": ((2, 4, 3, 2), (7, 5), ALIGNED),
    "down": ((1, 4, 5, 4), (3, 2), Bilinear()),
    "deconvolution": ((1, 4, 3, 3), (5, 4), Deconvolution(3, crop=(2, 3))),
}


def small(way, dtype=torch.float64):
    shape, size, upsampling = SMALL[way]
    scores = make_logits(shape, dtype).requires_grad_()
    return scores, make_labels((*shape[:2], *size)), upsampling


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("way", SMALL)
def test_the_loss_passes_gradcheck(way, option):
    scores, labels, upsampling = small(way)
    options = make_options(option, (*scores.shape[:2], *labels.shape[1:]))
    assert torch.autograd.gradcheck(lambda x: loss_of(x, labels, upsampling, **options), scores)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_every_normalization_passes_gradcheck(normalization):
    scores, labels, upsampling = small("bilinear")
    options = {"class_weight": torch.rand(4), "normalization": normalization}
    assert torch.autograd.gradcheck(lambda x: loss_of(x, labels, upsampling, **options), scores)


@pytest.mark.parametrize("factor", [2.5, -1.0, 0.0, 1e-30])
@pytest.mark.parametrize("way", SMALL)
def test_grad_output_multiplies_the_gradient(way, factor):
    scores, labels, upsampling = small(way, torch.float32)
    _, gradient = both_of(scores.detach(), labels, upsampling)
    (got,) = torch.autograd.grad(loss_of(scores, labels, upsampling), scores, torch.tensor(factor))
    assert torch.allclose(got, factor * gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_an_upstream_gradient_that_overflowed_does_not_reach_what_no_valid_pixel_reads(factor):
    scores, labels, upsampling = small("bilinear", torch.float32)
    labels[1] = 255
    (got,) = torch.autograd.grad(loss_of(scores, labels, upsampling), scores, torch.tensor(factor))
    assert not got[0].isfinite().any()
    assert same_bits(got[1], torch.zeros_like(got[1]))


def test_grad_output_may_be_expanded():
    scores, labels, upsampling = small("bilinear", torch.float32)
    upstream = torch.tensor([3.0]).expand(7)[2]
    (got,) = torch.autograd.grad(loss_of(scores, labels, upsampling), scores, upstream)
    _, gradient = both_of(scores.detach(), labels, upsampling)
    assert torch.allclose(got, 3 * gradient, rtol=1e-6, atol=0)
    total = loss_of(scores, labels, upsampling).expand(5).sum()
    (got,) = torch.autograd.grad(total, scores)
    assert torch.allclose(got, 5 * gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factor", [1.0, 3.0, 1 / 3, 1000.0])
@WAY
def test_half_precision_gradients_are_rounded_once_after_the_upstream_gradient(way, factor, dtype):
    scores, labels, upsampling = made(way, dtype)
    leaf = scores.clone().requires_grad_()
    (factor * loss_of(leaf, labels, upsampling, normalization="full")).backward()
    _, truth = upsampled_truth(scores, labels, upsampling=upsampling, normalization="full")
    truth *= float(torch.tensor(factor))
    # Half a step of the dtype, and what float32 may be off.
    step = (
        torch.maximum(truth.abs(), torch.tensor(torch.finfo(dtype).tiny)) * torch.finfo(dtype).eps
    )
    error = (leaf.grad.double() - truth).abs()
    assert bool((error <= 0.501 * step + 1e-6 * float(truth.abs().max())).all())


def test_a_scale_of_the_loss_reaches_float16_gradients_before_they_are_rounded():
    # What GradScaler does: without the scale these gradients are below float16's numbers.
    scores = torch.zeros(1, 2, 1, 1, dtype=torch.float16, requires_grad=True)
    labels = torch.full((1, 1000, 1000), 255, dtype=U8)
    labels[0, 500, 500] = 0
    loss = seg_loss.upsampled_cross_entropy(scores, labels, normalization="full")
    scale = 2.0**16
    (scale * loss).backward()
    exact = float(torch.tensor(0.5e-6 * scale, dtype=torch.float64).to(torch.float16))
    assert scores.grad.flatten().tolist() == [-exact, exact]


def test_small_gradients_survive_float16():
    # Divided by two million pixels the parts of a node would be 0 in float16; their sum is not.
    scores = torch.zeros(1, 2, 2, 2, dtype=torch.float16)
    labels = torch.zeros(1, 1000, 2000, dtype=U8)
    _, gradient = both_of(scores, labels, Bilinear())
    assert gradient[0, 0].flatten().tolist() == [-0.125] * 4
    assert gradient[0, 1].flatten().tolist() == [0.125] * 4


@pytest.mark.parametrize("way", SMALL)
def test_a_retained_graph_gives_the_same_gradient_again(way):
    scores, labels, upsampling = small(way, torch.float32)
    loss = loss_of(scores, labels, upsampling)
    loss.backward(retain_graph=True)
    first = scores.grad.clone()
    assert same_bits(first, both_of(scores.detach(), labels, upsampling)[1])
    loss.backward()
    assert same_bits(scores.grad, 2 * first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_a_gradient_given_away_is_not_written_again():
    scores, labels, upsampling = small("bilinear", torch.float32)
    loss = loss_of(scores, labels, upsampling)
    (first,) = torch.autograd.grad(loss, scores, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, scores, torch.tensor(2.0), retain_graph=True)
    assert same_bits(first, kept)
    first.fill_(7)
    second.fill_(7)
    (third,) = torch.autograd.grad(loss, scores)
    assert same_bits(third, kept)


def test_losses_of_one_tensor_add_their_gradients():
    scores, labels, upsampling = small("bilinear")
    both = loss_of(scores, labels, upsampling) + loss_of(scores, labels, ALIGNED)
    (got,) = torch.autograd.grad(both, scores)
    parts = [both_of(scores.detach(), labels, way)[1] for way in (upsampling, ALIGNED)]
    assert torch.equal(got, parts[0] + parts[1])


@pytest.mark.parametrize("way", SMALL)
def test_a_second_derivative_is_refused_clearly(way):
    scores, labels, upsampling = small(way)
    loss = loss_of(scores, labels, upsampling)
    (gradient,) = torch.autograd.grad(loss, scores, create_graph=True)
    assert same_bits(gradient.detach(), both_of(scores.detach(), labels, upsampling)[1])
    with pytest.raises(NotImplementedError, match=SECOND_ORDER):
        gradient.square().sum().backward()


def test_inputs_are_not_modified():
    scores, labels, upsampling = small("bilinear", torch.float32)
    class_weight, pixel_weight = torch.rand(4), torch.rand(2, 7, 5)
    tensors = (scores, labels, class_weight, pixel_weight)
    kept = [tensor.detach().clone() for tensor in tensors]
    versions = [tensor._version for tensor in tensors]
    options = {"class_weight": class_weight, "pixel_weight": pixel_weight, "label_smoothing": 0.1}
    loss_of(scores, labels, upsampling, **options).backward()
    both_of(scores.detach(), labels, upsampling, **options)
    seg_loss.evaluate(scores, labels, **options, upsampling=upsampling, maps=("nll",))
    for tensor, before, version in zip(tensors, kept, versions, strict=True):
        assert same_bits(tensor.detach(), before)
        assert tensor._version == version


def test_no_gradient_is_recorded_where_none_is_wanted():
    scores, labels, upsampling = small("bilinear", torch.float32)
    with torch.no_grad():
        loss = loss_of(scores, labels, upsampling)
        assert not loss.requires_grad
    with torch.inference_mode():
        assert same_bits(loss, loss_of(scores, labels, upsampling))
        both_of(scores, labels, upsampling)
    alone = loss_of(scores.detach(), labels, upsampling)
    assert not alone.requires_grad
    assert same_bits(loss, alone)


def test_overwriting_a_tensor_that_autograd_holds_is_noticed():
    leaf, labels, upsampling = small("bilinear", torch.float32)
    scores = leaf * 1
    square = scores.square()
    version = scores._version
    both_of(scores, labels, upsampling, out=scores)
    assert scores._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


def test_a_score_changed_between_forward_and_backward_is_noticed():
    leaf, labels, upsampling = small("bilinear", torch.float32)
    scores = leaf * 1
    loss = loss_of(scores, labels, upsampling)
    scores.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_that_ask_for_a_gradient_get_none_and_disturb_nothing(dtype):
    scores, labels, upsampling = small("bilinear")
    weight = torch.rand(4, dtype=dtype, requires_grad=True)
    pixels = torch.rand(2, 7, 5, dtype=dtype, requires_grad=True)
    options = {"class_weight": weight, "pixel_weight": pixels}
    loss_of(scores, labels, upsampling, **options).backward()
    assert same_bits(scores.grad, both_of(scores.detach(), labels, upsampling, **options)[1])
    assert weight.grad is None
    assert pixels.grad is None


def test_scores_of_any_layout_get_a_gradient_like_them():
    scores, labels, upsampling = made("bilinear")
    plain = both_of(scores, labels, upsampling)[1]
    for layout in LAYOUTS:
        if layout in ("expanded", "between_bytes"):
            continue
        leaf = LAYOUTS[layout](scores).requires_grad_()
        (got,) = torch.autograd.grad(loss_of(leaf, labels, upsampling), leaf)
        assert got.stride() == torch.empty_like(leaf).stride()
        assert same_bits(got, plain)


def operators(x, y, *, weighted):
    weights = (torch.rand(4), torch.rand(y.shape)) if weighted else (None, None)
    return (x, y, *weights, [255], 0.1, 2.0, "valid", "raise", [0], math.inf, True)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("differentiable", [True, False])
def test_torch_finds_nothing_wrong_with_the_operators(differentiable, dtype):
    scores, labels, _ = small("bilinear", dtype)
    scores = scores if differentiable else scores.detach()
    for x in (scores, scores.detach().to(memory_format=torch.channels_last)):
        x = x.detach().requires_grad_(differentiable)
        arguments = operators(x, labels, weighted=differentiable)
        opcheck(torch.ops.seg_loss.upsampled_cross_entropy, (*arguments, differentiable))
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    gradient, upstream = torch.randn(scores.shape, dtype=kind), torch.tensor(2.0, dtype=kind)
    opcheck(torch.ops.seg_loss.upsampled_gradient, (scores.detach(), gradient, upstream))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("way", ["bilinear", "deconvolution"])
@pytest.mark.parametrize("option", ["plain", "everything"])
def test_the_loss_compiles_into_a_full_graph_and_gives_the_same_bits(option, way):
    torch.compiler.reset()
    shape, size, upsampling = SMALL[way]
    options = make_options(option, (*shape[:2], *size))

    def step(x, y):
        return loss_of(x * 2, y, upsampling, **options)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for dtype in (torch.float32, torch.bfloat16):
        scores, labels, _ = small(way, dtype)
        loss = step(scores, labels)
        (gradient,) = torch.autograd.grad(loss, scores)
        again = compiled(scores, labels)
        (same,) = torch.autograd.grad(again, scores)
        assert same_bits(again.detach(), loss.detach())
        assert same_bits(same, gradient)


@pytest.mark.filterwarnings("default")
def test_the_module_compiles_with_sizes_that_change():
    torch.compiler.reset()
    module = seg_loss.UpsampledCrossEntropy(upsampling=Deconvolution(4, crop=1))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape, size in (((2, 4, 3, 5), (9, 17)), ((3, 4, 6, 7), (20, 21)), ((1, 5, 8, 2), (5, 3))):
        scores, labels = make_logits(shape).requires_grad_(), make_labels((*shape[:2], *size))
        (plain,) = torch.autograd.grad(module(scores, labels), scores)
        (got,) = torch.autograd.grad(compiled(scores, labels), scores)
        assert same_bits(got, plain)


@pytest.mark.filterwarnings("default")
def test_a_bad_label_is_still_refused_in_a_compiled_program():
    torch.compiler.reset()
    compiled = torch.compile(seg_loss.upsampled_cross_entropy, fullgraph=True, backend="aot_eager")
    scores, labels, _ = small("bilinear", torch.float32)
    labels[0, 1, 2] = 9
    with pytest.raises(InvalidInput, match=r"got 9 at \(0, 1, 2\)"):
        compiled(scores, labels)


def test_under_autocast_the_loss_of_bfloat16_scores_is_float32():
    layer = torch.nn.Conv2d(3, 5, 1)
    image, labels = torch.randn(2, 3, 7, 9), make_labels((2, 5, 27, 31))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = layer(image)
        loss = seg_loss.upsampled_cross_entropy(scores, labels)
    assert scores.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert torch.equal(loss, seg_loss.upsampled_cross_entropy(scores, labels))
    loss.backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.any()


def test_the_module_is_the_function_with_its_options_kept():
    scores, labels, upsampling = made("deconvolution")
    options = {"ignore_index": (255, 1), "label_smoothing": 0.1, "temperature": 2.0,
               "normalization": "batch", "check_labels": "ignore"}  # fmt: skip
    weight, pixels = torch.rand(5), torch.rand(labels.shape)
    labels[0, 0, 0] = 200
    module = seg_loss.UpsampledCrossEntropy(weight, upsampling=upsampling, **options)
    plain = loss_of(scores, labels, upsampling, class_weight=weight, pixel_weight=pixels, **options)
    assert same_bits(module(scores, labels, pixel_weight=pixels), plain)
    assert list(module.state_dict()) == ["class_weight"]
    assert isinstance(module, seg_loss.SpatialCrossEntropy)


# -- what unread scores hold -------------------------------------------------------------------


def only_on_nodes(labels, shape, upsampling, dims):
    """The labels, ignored wherever a pixel's row or column, or both, is not that of one node."""
    rows, columns = (
        torch.from_numpy((axis.matrix() == 1).any(axis=1)) if which in dims else torch.tensor(True)
        for which, axis in enumerate(axes(upsampling, shape[2:], labels.shape[1:]))
    )
    return torch.where(rows.unsqueeze(-1) & columns, labels, 255)


UNREAD = {
    **{f"{way}, few valid": (*WAYS[way], 0.4 if way == "down" else 0.97) for way in WAYS},
    "equal sizes": ((2, 5, 6, 7), (6, 7), Bilinear(), 0.6),
    "stride 3, at the centres": ((2, 5, 6, 7), (18, 21), Bilinear(), (0, 1)),
    "stride 3 aligned, at the nodes": ((2, 5, 6, 7), (16, 19), ALIGNED, (0, 1)),
    "stride 3 and 2, in rows of nodes": ((2, 5, 6, 7), (18, 14), Bilinear(), (0,)),
    "stride 2 and 3, in columns of nodes": ((2, 5, 6, 7), (12, 21), Bilinear(), (1,)),
    "odd kernel, at the nodes": ((2, 5, 6, 7), (17, 20), Deconvolution(3, 5), (0, 1)),
    "gaps, at the nodes": ((2, 5, 6, 7), (23, 27), Deconvolution(4, 3), (0, 1)),
    "down, no other reads": ((2, 5, 12, 13), (3, 4), Bilinear(), 0.0),
    "down aligned, no other reads": ((2, 5, 12, 13), (3, 4), ALIGNED, 0.0),
    "cropped away": ((2, 5, 6, 7), (5, 6), Deconvolution(8, crop=40), 0.0),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -3e38])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", UNREAD)
def test_what_no_valid_pixel_reads_reaches_neither_loss_nor_gradient(case, dtype, value):
    shape, size, upsampling, ignored = UNREAD[case]
    scores = make_logits(shape, dtype)
    labels = make_labels((*shape[:2], *size), ignored=ignored if isinstance(ignored, float) else 0)
    if isinstance(ignored, tuple):
        labels = only_on_nodes(labels, shape, upsampling, ignored)
        # Nodes that lie in a valid pixel's cell, on either side of it, and nobody reads.
        labels[0, : size[0] // 2, : size[1] // 2] = 255
        labels[1, size[0] // 2 :, size[1] // 2 :] = 255
    read = reads(labels, shape, upsampling)
    assert not read.all()
    assert read.any()
    for options in ({}, {"label_smoothing": 0.1, "temperature": 0.5}):
        plain = both_of(scores, labels, upsampling, **options)
        assert is_positive_zero(plain[1][~read.expand(shape)])
        for classes in (slice(None), slice(0, 1), slice(4, 5)):
            spoilt = scores.clone()
            spoilt[:, classes] = torch.where(read, scores[:, classes], value)
            got = both_of(spoilt, labels, upsampling, **options)
            assert math.isfinite(got[0])
            assert same_bits(got[0], plain[0])
            assert same_bits(got[1], plain[1])
    evaluation = seg_loss.evaluate(spoilt, labels, upsampling=upsampling)
    assert evaluation.non_finite_pixels == 0
    assert evaluation.loss == seg_loss.evaluate(scores, labels, upsampling=upsampling).loss


@pytest.mark.parametrize("factor", [1.0, -1.0])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_scores_of_ignored_pixels_alone_have_exactly_positive_zero_gradient(dtype, factor):
    scores, labels, upsampling = made("bilinear", dtype)
    labels[:, :13] = 255
    scores[:, :, :2] = math.nan
    leaf = scores.clone().requires_grad_()
    (factor * loss_of(leaf, labels, upsampling)).backward()
    read = reads(labels, scores.shape, upsampling).expand_as(scores)
    assert is_positive_zero(leaf.grad[~read])
    assert leaf.grad[read].all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@WAY
def test_nan_and_infinity_at_valid_pixels_are_not_hidden_and_stay_near(way, dtype, value):
    scores, labels, upsampling = made(way, dtype, ignored=0.0)
    spoilt = scores.clone()
    spoilt[1, 2, 3, 4] = value
    options = {"normalization": "none"}
    _, plain = both_of(scores, labels, upsampling, **options)
    loss, gradient = both_of(spoilt, labels, upsampling, **options)
    rows, columns = (
        torch.from_numpy(axis.matrix())
        for axis in axes(upsampling, scores.shape[2:], labels.shape[1:])
    )
    pixels = (rows[:, 3] != 0)[:, None] & (columns[:, 4] != 0)
    if not pixels.any():  # down: nobody reads it
        assert same_bits(gradient, plain)
        return
    assert math.isnan(loss)
    assert math.isnan(loss_of(spoilt, labels, upsampling))
    assert math.isnan(seg_loss.evaluate(spoilt, labels, upsampling=upsampling).loss)
    found = seg_loss.evaluate(spoilt, labels, upsampling=upsampling).non_finite_pixels
    assert found == int(pixels.sum())
    spoilt_nodes = ((rows != 0).double().T @ pixels.double() @ (columns != 0).double()) > 0
    assert gradient[1][:, spoilt_nodes].isnan().all()
    # No farther than the nodes around the cells of those pixels.
    far = torch.ones(7, 9, dtype=torch.bool)
    far[2:5, 3:6] = False
    assert same_bits(gradient[1][:, far], plain[1][:, far])
    assert same_bits(gradient[0], plain[0])


# -- infinite, huge and sure -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@WAY
def test_a_class_of_minus_infinity_everywhere_is_as_if_it_were_not_there(way, dtype):
    scores, labels, upsampling = made(way, dtype)
    labels[labels == 2] = 3
    scores[:, 2] = -math.inf
    gone = [0, 1, 3, 4]
    loss, gradient = both_of(scores, labels, upsampling)
    fewer = labels.clone()
    fewer[(labels > 2) & (labels != 255)] -= 1
    plain, others = both_of(scores[:, gone], fewer, upsampling)
    if way == "gaps":
        # Where no filter reaches, its logit is 0 like all others.
        truth = upsample_by_torch(scores.double(), labels.shape[1:], upsampling).nan_to_num(
            neginf=-1e9
        )
        assert float(loss) > float(plain)
        assert math.isfinite(loss)
        assert truth.isfinite().all()
        assert gradient.isfinite().all()
        return
    rounding = 2 * torch.finfo(dtype).eps
    assert float(loss) == pytest.approx(float(plain), rel=1e-6)
    assert is_positive_zero(gradient[:, 2].abs())
    assert torch.allclose(gradient[:, gone], others, rtol=rounding, atol=1e-7)
    evaluation = seg_loss.evaluate(
        scores, labels, upsampling=upsampling, maps=("prediction", "entropy")
    )
    assert evaluation.non_finite_pixels == 0
    assert not (evaluation.maps["prediction"] == 2).any()
    assert evaluation.maps["entropy"].isfinite().all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@WAY
def test_a_single_minus_infinity_takes_its_class_from_the_pixels_that_read_it(way, dtype):
    scores, labels, upsampling = made(way, dtype)
    scores[0, 2, 3, 4] = -math.inf
    rows, columns = (
        torch.from_numpy(axis.matrix() != 0)
        for axis in axes(upsampling, scores.shape[2:], labels.shape[1:])
    )
    readers = rows[:, 3][:, None] & columns[:, 4]
    labels[0][readers & (labels[0] == 2)] = 1
    loss, gradient = both_of(scores, labels, upsampling)
    # -1e4 has the same probability: 0, wherever its weight is not tiny.
    finite = torch.where(scores.isinf(), -3e4, scores.double())
    truth, true_gradient = upsampled_truth(finite, labels, upsampling=upsampling)
    assert float(loss) == pytest.approx(float(truth), rel=1e-6)
    rounding = 2 * torch.finfo(dtype).eps + 1e-6
    assert torch.allclose(gradient.double(), true_gradient, rtol=rounding, atol=1e-7)
    if readers.any():
        assert float(gradient[0, 2, 3, 4]) == 0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("upsampling", "size", "share"), EVENLY, ids=str)
def test_a_true_class_of_minus_infinity_costs_infinity_and_pulls_by_one(
    upsampling, size, share, dtype
):
    scores = torch.zeros(1, 3, 2, 2, dtype=dtype)
    scores[:, 1] = -math.inf
    labels = torch.ones(1, size, size, dtype=U8)
    loss, gradient = both_of(scores, labels, upsampling, normalization="none")
    assert float(loss) == math.inf
    rounding = 8 * torch.finfo(dtype).eps
    for c, pull in enumerate((0.5, -1.0, 0.5)):
        got = gradient[0, c].flatten().tolist()
        assert got == pytest.approx([pull * share] * 4, rel=rounding)


def test_nodes_of_minus_infinity_alone_are_nan():
    scores = torch.full((1, 3, 2, 2), -math.inf)
    loss, gradient = both_of(scores, torch.zeros(1, 8, 8, dtype=U8), Bilinear())
    assert math.isnan(loss)
    assert gradient.isnan().all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@WAY
def test_scores_of_ten_thousand_are_no_trouble(way, dtype):
    # Neighbouring nodes of +1e4 and -1e4: the logits of a cell cover all that lies between.
    shape, size, upsampling = WAYS[way]
    signs = torch.randint(0, 2, shape, generator=seed_of(way)) * 2 - 1
    scores = (signs * 1e4).to(dtype)
    labels = make_labels((*shape[:2], *size))
    for options in ({}, {"label_smoothing": 0.1}, {"temperature": 0.1}):
        got = both_of(scores, labels, upsampling, **options)
        truth = upsampled_truth(scores, labels, upsampling=upsampling, **options)
        by_torch = upsampled_torch(scores, labels, upsampling=upsampling, **options)
        largest = 1e4 / options.get("temperature", 1.0)
        assert_accurate("loss", got[0], truth[0], by_torch[0], scale=largest)
        # The truth itself is exp(x - log-sum-exp) in float64, off by an ulp of the logits.
        scale = largest * float(truth[1].abs().max()) if dtype == torch.float64 else None
        assert_accurate("gradient", got[1], truth[1], by_torch[1], scale=scale)


@pytest.mark.parametrize("upsampling", [Bilinear(), ALIGNED, Deconvolution(4, crop=2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_largest_floats_do_not_overflow_where_the_truth_is_finite(dtype, upsampling):
    # a + t (b - a) would: b - a is beyond the largest float.
    big = torch.finfo(dtype).max
    scores = torch.zeros(1, 2, 2, 2, dtype=dtype)
    scores[0, 0] = torch.tensor([[big, -big], [-big, big]], dtype=dtype)
    logits = reference.upsample(scores, (8, 8), upsampling)
    for place in range(64):
        labels = torch.full((64,), 255, dtype=U8)
        labels[place] = 0
        labels = labels.view(1, 8, 8)
        loss, gradient = both_of(scores, labels, upsampling)
        truth = max(0.0, -float(logits[0, 0].flatten()[place]))
        assert float(loss) == pytest.approx(truth, rel=1e-6)
        assert gradient.isfinite().all()
    found = seg_loss.evaluate(scores, labels, upsampling=upsampling)
    assert found.non_finite_pixels == 0


def test_logits_below_minus_88_alone_are_no_trouble():
    for base in (-100.0, -20000.0, -3e38):
        scores, labels = torch.full((1, 2, 2, 3), base), torch.ones(1, 9, 7, dtype=U8)
        loss, gradient = both_of(scores, labels, Bilinear(), normalization="none")
        # Of equal scores the logits need not be equal to the last bit.
        assert float(loss) == pytest.approx(63 * math.log(2), rel=1e-6)
        assert torch.allclose(gradient[:, 0], -gradient[:, 1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_classes", [2, 21])
@pytest.mark.parametrize("margin", [5.0, 16.0, 20.75, 40.0, 80.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sure_pixels_are_right_to_the_last_bits(dtype, margin, num_classes):
    # At 20.75 the loss is 1e-9: ln(1 + 1e-9) and 1 - p are both lost where they are rounded.
    scores = torch.zeros(1, num_classes, 2, 3, dtype=dtype)
    scores[:, 1] = margin
    labels = torch.ones(1, 4, 6, dtype=U8)
    loss, gradient = both_of(scores, labels, Bilinear(), normalization="none")
    t = (num_classes - 1) * math.exp(-margin)
    # The logit is a sum of four parts, off by an ulp or two of the margin.
    tolerance = (8 + num_classes / 8 + 3 * margin) * torch.finfo(dtype).eps
    assert float(loss) == pytest.approx(24 * math.log1p(t), rel=tolerance, abs=0)
    total = gradient.double().sum(dim=(2, 3))[0]
    assert float(total[1]) == pytest.approx(-24 * t / (1 + t), rel=tolerance, abs=0)
    assert float(total[0]) == pytest.approx(24 * math.exp(-margin) / (1 + t), rel=tolerance, abs=0)


# -- nothing valid -----------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_with_nothing_valid_the_loss_is_zero_and_attached_to_the_graph(
    dtype, weighted, normalization
):
    scores = torch.full((2, 5, 7, 9), math.nan, dtype=dtype).requires_grad_()
    labels = torch.full((2, 27, 31), 255, dtype=U8)
    weights = (
        {"class_weight": torch.rand(5), "pixel_weight": torch.rand(2, 27, 31)} if weighted else {}
    )
    for upsampling in (Bilinear(), ALIGNED, Deconvolution(4)):
        loss = loss_of(scores, labels, upsampling, **weights, normalization=normalization)
        assert loss.requires_grad
        (gradient,) = torch.autograd.grad(loss, scores)
        assert float(loss.detach()) == 0
        assert is_positive_zero(gradient)
        evaluation = seg_loss.evaluate(
            scores, labels, **weights, normalization=normalization, upsampling=upsampling
        )
        assert (evaluation.loss, evaluation.valid_pixels) == (0, 0)
        assert evaluation.ignored_pixels == 2 * 27 * 31
        assert evaluation.diagnosis.state == "nothing_valid"


def test_weights_of_zero_give_a_loss_of_zero():
    scores, labels, upsampling = made("bilinear")
    loss, gradient = both_of(
        scores, labels, upsampling, class_weight=torch.zeros(5), normalization="weight"
    )
    assert float(loss) == 0
    assert not gradient.any()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("shape", "size"),
    [((0, 5, 7, 9), (27, 31)), ((2, 5, 7, 9), (0, 31)), ((2, 5, 7, 9), (27, 0)),
     ((2, 5, 7, 9), (0, 0)), ((0, 5, 1, 1), (0, 0))],
    ids=str,
)  # fmt: skip
def test_an_empty_batch_and_empty_labels_cost_zero(shape, size, dtype, normalization):
    labels = torch.zeros(shape[0], *size, dtype=U8)
    for upsampling in (Bilinear(), ALIGNED, Deconvolution(4, crop=(1, 0) if size[0] < 4 else 0)):
        scores = torch.ones(shape, dtype=dtype, requires_grad=True)
        loss = loss_of(scores, labels, upsampling, normalization=normalization)
        loss.backward()
        assert float(loss.detach()) == 0
        assert scores.grad.shape == shape
        assert is_positive_zero(scores.grad)
        out = torch.full(shape, 7.0, dtype=dtype)
        again, given = both_of(
            scores.detach(), labels, upsampling, normalization=normalization, out=out
        )
        assert given is out
        assert float(again) == 0
        assert is_positive_zero(out)
        maps = ("prediction", "nll", "confidence", "entropy", "top_classes", "top_probabilities")
        found = seg_loss.evaluate(scores, labels, upsampling=upsampling, maps=maps)
        assert found.loss == 0
        assert found.maps["nll"].shape == labels.shape
        assert found.maps["top_classes"].shape == (shape[0], 3, *size)


# -- labels and weights ------------------------------------------------------------------------


def bad():
    scores, labels = make_logits((2, 5, 3, 4)), make_labels((2, 5, 7, 9))
    labels[0, 2, 3] = labels[1, 6, 8] = 77
    return scores, labels


BAD = "labels: expected 0...4 or 255 (ignored), got 77 at (0, 2, 3) and 1 more pixel."
CALLS = {
    "upsampled_cross_entropy": seg_loss.upsampled_cross_entropy,
    "loss_and_gradient": lambda x, y, **options: both_of(x, y, Bilinear(), **options),
    "evaluate": lambda x, y, **options: seg_loss.evaluate(x, y, upsampling=Bilinear(), **options),
    "UpsampledCrossEntropy": lambda x, y, **options: seg_loss.UpsampledCrossEntropy(**options)(
        x, y
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_label_is_named_at_once_with_its_place_among_the_labels(name):
    refused(lambda: CALLS[name](*bad()), BAD)
    refused(lambda: CALLS[name](*bad(), check_labels="raise"), BAD)
    seg_loss.check()


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_label_deferred_is_raised_by_check_or_by_the_next_call(name):
    CALLS[name](*bad(), check_labels="defer")
    refused(seg_loss.check, BAD)
    seg_loss.check()
    scores, labels = make_logits((2, 5, 3, 4)), make_labels((2, 5, 7, 9))
    for later in CALLS.values():
        CALLS[name](*bad(), check_labels="defer")
        refused(lambda later=later: later(scores, labels, check_labels="ignore"), BAD)
        later(scores, labels)


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_label_is_never_spoken_of_where_it_is_ignored(name):
    CALLS[name](*bad(), check_labels="ignore")
    seg_loss.check()


@pytest.mark.parametrize("how", ["defer", "ignore"])
def test_pixels_with_bad_labels_count_as_ignored(how):
    scores, labels = bad()
    loss, gradient = both_of(scores, labels, Bilinear(), check_labels=how)
    if how == "defer":
        refused(seg_loss.check, BAD)
    found = seg_loss.evaluate(scores, labels, upsampling=Bilinear(), check_labels="ignore")
    labels[labels == 77] = 255
    plain = both_of(scores, labels, Bilinear())
    assert same_bits(loss, plain[0])
    assert same_bits(gradient, plain[1])
    assert found.valid_pixels == int((labels != 255).sum())
    assert found.loss == seg_loss.evaluate(scores, labels, upsampling=Bilinear()).loss


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 2**32, 2**32 + 1, -(2**32), 256, 300])
def test_labels_beyond_32_bits_do_not_wrap_into_classes(value):
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, 1, 0] = value
    refused(
        lambda: seg_loss.upsampled_cross_entropy(torch.zeros(1, 3, 2, 2), labels),
        f"labels: expected 0...2 or 255 (ignored), got {value} at (0, 1, 0)."
        + (f" If {value} marks void pixels, add it to ignore_index." if value < 0 else ""),
    )


def test_a_bad_label_leaves_out_and_scores_as_they_were_and_the_next_call_works():
    scores, labels = bad()
    kept, out = scores.clone(), torch.full(scores.shape, 5.0)
    with pytest.raises(InvalidInput):
        both_of(scores, labels, Bilinear(), out=out)
    assert (out == 5).all()
    with pytest.raises(InvalidInput):
        both_of(scores, labels, Bilinear(), out=scores)
    assert same_bits(scores, kept)
    both_of(scores, torch.zeros_like(labels), Bilinear(), out=scores)


def test_bad_weights_are_refused():
    scores, labels = torch.zeros(2, 3, 2, 2), torch.zeros(2, 5, 5, dtype=U8)
    for wrong in (-1.0, math.nan, math.inf):
        weight = torch.tensor([1.0, wrong, 1.0])
        refused(
            lambda weight=weight: seg_loss.upsampled_cross_entropy(scores, labels, weight),
            f"class_weight: expected finite numbers that are not negative, got {wrong} for class 1.",
        )
        pixels = torch.ones(2, 5, 5)
        pixels[1, 0, 4] = pixels[1, 3, 1] = wrong
        refused(
            lambda pixels=pixels: seg_loss.upsampled_cross_entropy(
                scores, labels, pixel_weight=pixels
            ),
            "pixel_weight: expected finite numbers that are not negative, "
            f"got {wrong} at (1, 0, 4) and 1 more pixel.",
        )


def test_pixel_weight_of_ignored_pixels_is_not_read_even_if_nan():
    scores, labels, upsampling = made("bilinear")
    weight = torch.rand(labels.shape)
    spoilt = torch.where(labels == 255, torch.nan, weight)
    for normalization in NORMALIZATIONS:
        got, plain = (
            both_of(scores, labels, upsampling, pixel_weight=given, normalization=normalization)
            for given in (spoilt, weight)
        )
        assert same_bits(got[0], plain[0])
        assert same_bits(got[1], plain[1])


def test_several_ignore_labels_are_one_set_and_class_0_may_be_among_them():
    scores, labels, upsampling = made("aligned")
    merged = torch.where((labels == 0) | (labels == 4), 255, labels)
    for given_labels in ((255, 0, 4), [4, 0, 255], (0, 4, 0, 255, 1000, -7)):
        got = both_of(scores, labels, upsampling, ignore_index=given_labels)
        plain = both_of(scores, merged, upsampling)
        assert same_bits(got[0], plain[0])
        assert same_bits(got[1], plain[1])


# -- arguments ---------------------------------------------------------------------------------

X, Y = torch.zeros(2, 3, 2, 4), torch.zeros(2, 7, 9, dtype=U8)
UPSAMPLED = "expected [N, C, h, w] with h and w of at least 1, to be upsampled, got shape"
REFUSED = [
    ((None, Y, {}), "{}: expected a torch.Tensor, got NoneType."),
    ((X[0], Y, {}), f"{{}}: {UPSAMPLED} (3, 2, 4)."),
    ((X[..., 0, 0], Y, {}), f"{{}}: {UPSAMPLED} (2, 3)."),
    ((X[..., None], Y, {}), f"{{}}: {UPSAMPLED} (2, 3, 2, 4, 1)."),
    ((X[..., :0], Y, {}), f"{{}}: {UPSAMPLED} (2, 3, 2, 0)."),
    ((X[:, :, :0], Y, {}), f"{{}}: {UPSAMPLED} (2, 3, 0, 4)."),
    ((X[:0, :, :0], Y[:0], {}), f"{{}}: {UPSAMPLED} (0, 3, 0, 4)."),
    ((X[0, 0, 0], Y, {}), "{}: expected [N, C, *spatial], got shape (4,). Add the batch and class axes."),
    ((X.int(), Y, {}), "{}: expected float32, float16, bfloat16 or float64, got int32."),
    ((X[:, :0], Y, {}), "{}: expected at least one class, got shape (2, 0, 2, 4)."),
    ((X, None, {}), "labels: expected a torch.Tensor, got NoneType."),
    ((X, Y.float(), {}), "labels: expected uint8, int8, int16, int32 or int64, got float32. Class indices are integers."),
    ((X, Y[:1], {}), "labels: expected shape (2, 7, 9) to match {} (2, 3, 2, 4), got shape (1, 7, 9)."),
    ((X, Y[:, None].expand(2, 3, 7, 9), {}), "labels: expected shape (2, 7, 9) to match {} (2, 3, 2, 4), got shape (2, 3, 7, 9). One-hot? Take argmax over axis 1."),
    ((X, Y, {"class_weight": torch.ones(4)}), "class_weight: expected shape (3,), one per class, got shape (4,)."),
    ((X, Y, {"pixel_weight": Y}), "pixel_weight: expected float32, float16, bfloat16 or float64, got uint8."),
    ((X, Y, {"pixel_weight": X[:, 0]}), "pixel_weight: expected shape (2, 7, 9) to match the labels, got shape (2, 2, 4)."),
    ((X, Y, {"pixel_weight": torch.ones(2, 9, 7)}), "pixel_weight: expected shape (2, 7, 9) to match the labels, got shape (2, 9, 7). Height and width are exchanged."),
    ((X, Y, {"temperature": 0}), "temperature: expected a positive number, 1e-30...1e30, got 0."),
    ((X, Y, {"label_smoothing": 1.1}), "label_smoothing: expected a number from 0 to 1, got 1.1."),
    ((X, Y, {"normalization": "mean"}), "normalization: expected one of valid, full, batch, none, weight, got 'mean'."),
    ((X, Y, {"ignore_index": None}), "ignore_index: expected an int or several, got None."),
    ((X, Y, {"check_labels": "later"}), "check_labels: expected one of raise, defer, ignore, got 'later'."),
    ((X, Y, {"upsampling": "bilinear"}), "upsampling: expected Bilinear(...) or Deconvolution(...), got 'bilinear'."),
    ((X, Y, {"upsampling": 8}), "upsampling: expected Bilinear(...) or Deconvolution(...), got 8."),
    ((X, Y, {"upsampling": Bilinear}), "upsampling: expected Bilinear(...) or Deconvolution(...), got <class 'seg_loss.upsampling.Bilinear'>."),
    ((X, Y, {"upsampling": Deconvolution(2)}), "labels: expected at most 6 rows and 10 columns, what upsampling leaves, got 7 and 9."),
    ((X, Y, {"upsampling": Deconvolution(4, crop=(0, 12))}), "labels: expected at most 12 rows and 8 columns, what upsampling leaves, got 7 and 9."),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_wrong_arguments_are_named_with_what_was_expected(arguments, message):
    scores, labels, options = arguments
    options = {"upsampling": Bilinear(), **options}
    for where, call in (
        ("scores", seg_loss.upsampled_cross_entropy),
        ("logits", seg_loss.loss_and_gradient),
        ("logits", seg_loss.evaluate),
    ):
        refused(lambda call=call: call(scores, labels, **options), message.format(where))


def test_none_is_no_upsampling_of_the_loss_but_means_none_elsewhere():
    refused(
        lambda: seg_loss.upsampled_cross_entropy(X, Y, upsampling=None),
        "upsampling: expected Bilinear(...) or Deconvolution(...), got None.",
    )
    labels = torch.zeros(2, 2, 4, dtype=U8)
    plain = seg_loss.loss_and_gradient(X, labels)
    got = seg_loss.loss_and_gradient(X, labels, upsampling=None)
    assert same_bits(got[0], plain[0])
    assert same_bits(got[1], plain[1])
    for call in (seg_loss.loss_and_gradient, seg_loss.evaluate):
        refused(
            lambda call=call: call(X, Y, upsampling=None),
            "labels: expected shape (2, 2, 4) to match logits (2, 3, 2, 4), got shape (2, 7, 9). "
            "Scores of lower resolution? Use upsampling=bilinear; in Python, seg_loss.Bilinear().",
        )


def test_tensors_on_other_devices_are_refused():
    refused(
        lambda: seg_loss.upsampled_cross_entropy(X.to("meta"), Y),
        "scores: expected a tensor on the CPU or on a CUDA device, got one on meta. "
        "There are no kernels for other devices: call .cpu().",
    )
    refused(
        lambda: seg_loss.upsampled_cross_entropy(X, Y.to("meta")),
        "labels: expected a tensor on cpu, got one on meta.",
    )
    refused(
        lambda: seg_loss.upsampled_cross_entropy(X, Y, pixel_weight=torch.ones(2, 7, 9).to("meta")),
        "pixel_weight: expected a tensor on cpu, got one on meta.",
    )


def test_scores_as_large_as_the_labels_are_no_special_case():
    labels = torch.zeros(2, 1, 2, 4, dtype=torch.int32)
    loss = seg_loss.upsampled_cross_entropy(X, labels)
    assert float(loss) == pytest.approx(math.log(3), rel=1e-6)
