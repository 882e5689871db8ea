"""`upsampling`: the weights of one axis, and which sizes are allowed. No kernel is involved."""

# ruff: noqa: E501 - messages stay in one piece, so that a search finds them

import copy
import dataclasses
import functools
import pickle
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from hypothesis import given, settings
from hypothesis import strategies as st

import seg_loss
from seg_loss import Bilinear, Deconvolution, InvalidInput, reference
from seg_loss.constants import FCN_CROPS
from seg_loss.upsampling import axes, check_size, check_upsampling, decode, encode
from tests.support.cases import make_logits, surgery_filter

# Sources and targets of an axis, and what could go wrong with them.
SIZES = {
    (1, 1): "one target of one source",
    (1, 5): "one source: every target is outside the sources",
    (2, 1): "one target: the corners cannot both coincide",
    (5, 1): "one target of many sources",
    (2, 2): "equal: each target reads one source",
    (7, 7): "equal and odd",
    (3, 6): "twice",
    (3, 9): "odd ratio: centres coincide",
    (5, 20): "stride 4",
    (3, 24): "stride 8",
    (2, 32): "stride 16",
    (2, 64): "stride 32",
    (3, 17): "just above stride 16, corners aligned",
    (4, 10): "no integer ratio",
    (7, 11): "no integer ratio, both odd",
    (16, 500): "FCN-32s without its padding",
    (6, 3): "down by half",
    (10, 4): "down, no integer ratio",
    (11, 7): "down, both odd",
    (100, 3): "down: most sources are not read",
    (5, 4): "down by less than one interval",
    (4, 5): "up by less than one interval",
}
# Stride, kernel size, sources, crop, targets.
DECONVOLUTIONS = {
    (2, 4, 6, 0, 14): "FCN's smallest, not cropped",
    (2, 4, 6, 1, 12): "centred: exactly twice",
    (8, 16, 6, 31, 20): "FCN-8s",
    (16, 32, 5, 27, 60): "FCN-16s",
    (32, 64, 6, 19, 141): "FCN-32s",
    (3, 6, 4, 2, 13): "odd stride",
    (2, 3, 5, 0, 11): "odd kernel: a single centre",
    (4, 7, 3, 1, 14): "odd kernel, one less than twice the stride",
    (3, 5, 1, 0, 5): "one source",
    (4, 4, 5, 0, 20): "kernel of one stride: no target reads two sources",
    (4, 3, 5, 0, 19): "kernel below the stride: gaps of zero",
    (5, 1, 4, 0, 16): "a kernel of one pixel",
    (1, 1, 7, 0, 7): "the identity",
    (1, 2, 7, 0, 8): "stride 1: means of two",
    (8, 16, 6, 55, 1): "the last pixel alone",
    (8, 16, 6, 56, 0): "cropped away entirely",
    (2, 4, 6, 5, 3): "fewer targets than the crop leaves",
}


def assert_raises(call, message):
    with pytest.raises(InvalidInput, match="^" + re.escape(message) + "$"):
        call()


def bilinear_axis(num_sources, num_targets, align_corners):
    axis, same = axes(Bilinear(align_corners), [num_sources] * 2, [num_targets] * 2)
    assert np.array_equal(axis.matrix(), same.matrix())
    return axis


def deconvolution_axis(stride, kernel_size, num_sources, crop, num_targets):
    upsampling = Deconvolution(stride, kernel_size, crop)
    return axes(upsampling, [num_sources] * 2, [num_targets] * 2)[0]


def check_axis(axis, num_sources, num_targets):
    """Checks the properties of an axis that the kernels rely on."""
    assert (axis.num_sources, axis.num_targets) == (num_sources, num_targets)
    assert axis.intervals.dtype == axis.starts.dtype == np.int32
    assert axis.weights.dtype == np.float64
    assert axis.intervals.shape == (num_targets,)
    assert axis.weights.shape == (2, num_targets)
    assert axis.weights.flags.c_contiguous
    assert (np.diff(axis.intervals) >= 0).all()
    assert ((axis.intervals >= 0) & (axis.intervals <= num_sources)).all()
    # Sources that do not exist have the weight +0, and no weight is negative.
    assert not axis.weights[0][axis.intervals == 0].any()
    assert not axis.weights[1][axis.intervals == num_sources].any()
    assert not np.signbit(axis.weights).any()
    assert (axis.weights.sum(axis=0) <= 1).all()

    targets = [np.flatnonzero(axis.intervals == interval) for interval in range(num_sources + 1)]
    assert axis.starts.shape == (num_sources + 2,)
    for interval, expected in enumerate(targets):
        assert list(range(axis.starts[interval], axis.starts[interval + 1])) == list(expected)
    assert axis.starts[0] == 0
    assert axis.starts[-1] == num_targets
    assert axis.max_targets == max(map(len, targets))
    assert isinstance(axis.max_targets, int)

    matrix = np.zeros((num_targets, num_sources))
    has_zero_weights = False
    for target, interval in enumerate(axis.intervals):
        for source, weight in ((interval - 1, axis.weights[0]), (interval, axis.weights[1])):
            if 0 <= source < num_sources:
                matrix[target, source] += weight[target]
                has_zero_weights |= bool(weight[target] == 0)
    assert np.array_equal(axis.matrix(), matrix)
    assert axis.has_zero_weights is has_zero_weights


# -- bilinear ----------------------------------------------------------------------------------


def by_interpolate(num_sources, num_targets, align_corners):
    """Returns [targets, sources]: each source alone, upsampled by `F.interpolate`."""
    sources = torch.eye(num_sources, dtype=torch.float64)[None, :, :, None]
    size = (num_targets, 1)
    full = F.interpolate(sources, size, mode="bilinear", align_corners=align_corners)
    return full[0, :, :, 0].T.numpy()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_bilinear_axis_equals_interpolate(size, align_corners):
    axis = bilinear_axis(*size, align_corners)
    check_axis(axis, *size)
    # torch rounds where a target is among the sources, a number of at most num_sources.
    tolerance = 4 * np.finfo(np.float64).eps * size[0]
    assert abs(axis.matrix() - by_interpolate(*size, align_corners)).max() <= tolerance
    assert (axis.weights.sum(axis=0) == 1).all()


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 100), st.integers(1, 250), st.booleans())
def test_bilinear_axes_of_any_size_equal_interpolate(num_sources, num_targets, align_corners):
    axis = bilinear_axis(num_sources, num_targets, align_corners)
    check_axis(axis, num_sources, num_targets)
    tolerance = 4 * np.finfo(np.float64).eps * num_sources
    got = abs(axis.matrix() - by_interpolate(num_sources, num_targets, align_corners))
    assert got.max() <= tolerance
    assert (axis.weights.sum(axis=0) == 1).all()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bilinear_weights_are_fractions_rounded_once(size, align_corners):
    num_sources, num_targets = size
    axis = bilinear_axis(*size, align_corners)
    for p in range(num_targets):
        if align_corners:
            position = Fraction(p * (num_sources - 1), max(num_targets - 1, 1))
        else:
            position = Fraction(2 * p + 1, 2) * Fraction(num_sources, num_targets) - Fraction(1, 2)
        position = min(max(position, Fraction(0)), Fraction(num_sources - 1))
        whole = position // 1
        part = float(position - whole)
        row = np.zeros(num_sources)
        row[whole] = 1 - part
        if part:
            row[whole + 1] = part
        assert np.array_equal(axis.matrix()[p], row)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7, 500])
def test_equal_sizes_are_the_identity(size, align_corners):
    axis = bilinear_axis(size, size, align_corners)
    assert np.array_equal(axis.matrix(), np.eye(size))
    assert axis.has_zero_weights == (size > 2)  # the first and the last lie in the outer intervals


def test_bilinear_axes_with_weights_of_zero():
    # At targets that coincide with a source: with aligned corners, and for odd ratios.
    for sources, targets, align_corners, expected in (
        (4, 16, False, False),
        (4, 12, False, True),
        (4, 16, True, True),
        (4, 13, True, True),
        (1, 8, False, False),
        (1, 8, True, False),
        (16, 500, False, False),
        (500, 16, False, False),
        (500, 20, False, True),
        (7, 14, False, False),
    ):
        assert bilinear_axis(sources, targets, align_corners).has_zero_weights is expected


def test_targets_outside_the_sources_read_one_source():
    axis = bilinear_axis(3, 24, False)
    assert axis.matrix()[:4].tolist() == [[1.0, 0.0, 0.0]] * 4
    assert axis.matrix()[-4:].tolist() == [[0.0, 0.0, 1.0]] * 4
    assert axis.intervals.tolist() == [0] * 4 + [1] * 8 + [2] * 8 + [3] * 4
    assert axis.starts.tolist() == [0, 4, 12, 20, 24]
    assert axis.max_targets == 8


def test_an_interval_may_have_no_targets():
    axis = bilinear_axis(9, 3, True)
    assert axis.intervals.tolist() == [0, 5, 9]
    assert axis.starts.tolist() == [0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3]


def test_an_axis_may_have_no_targets():
    for axis in (bilinear_axis(3, 0, False), bilinear_axis(3, 0, True),
                 deconvolution_axis(8, 16, 3, 0, 0)):  # fmt: skip
        check_axis(axis, 3, 0)
        assert axis.max_targets == 0
        assert axis.has_zero_weights is False
        assert axis.matrix().shape == (0, 3)


def test_large_sizes_do_not_overflow():
    # 2 * targets * sources does not fit 32 bits.
    axis, _ = axes(Bilinear(), (70_000, 1), (140_000, 1))
    assert axis.weights[:, -1].tolist() == [1.0, 0.0]
    assert axis.weights[:, -2].tolist() == [0.25, 0.75]
    assert axis.weights[:, 1].tolist() == [0.75, 0.25]
    assert (np.diff(axis.starts)[1:-1] == 2).all()


# -- deconvolution -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", DECONVOLUTIONS, ids=str)
def test_a_deconvolution_axis_equals_conv_transpose_and_crop(case):
    stride, kernel_size, num_sources, crop, num_targets = case
    axis = deconvolution_axis(*case)
    check_axis(axis, num_sources, num_targets)
    sources = torch.eye(num_sources, dtype=torch.float64)[:, None]
    full = F.conv_transpose1d(sources, surgery_filter(kernel_size)[None, None], stride=stride)
    cropped = full[:, 0, crop : crop + num_targets].T
    assert cropped.shape == (num_targets, num_sources)
    assert np.array_equal(axis.matrix(), cropped.numpy())


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_any_deconvolution_axis_equals_conv_transpose_and_crop(stride, num_sources, data):
    kernel_size = data.draw(st.integers(1, 2 * stride))
    whole = (num_sources - 1) * stride + kernel_size
    crop = data.draw(st.integers(0, whole))
    num_targets = data.draw(st.integers(0, whole - crop))
    axis = deconvolution_axis(stride, kernel_size, num_sources, crop, num_targets)
    check_axis(axis, num_sources, num_targets)
    sources = torch.eye(num_sources, dtype=torch.float64)[:, None]
    full = F.conv_transpose1d(sources, surgery_filter(kernel_size)[None, None], stride=stride)
    assert np.array_equal(axis.matrix(), full[:, 0, crop : crop + num_targets].T.numpy())


@pytest.mark.parametrize("stride", [1, 2, 3, 8, 16, 32])
def test_deconvolution_weights_sum_to_one_except_at_the_borders(stride):
    axis = deconvolution_axis(stride, 2 * stride, 5, 0, 6 * stride)
    sums = axis.matrix().sum(axis=1)
    assert np.allclose(sums[stride:-stride], 1, rtol=1e-15, atol=0)
    assert (sums[:stride] < 1).all()
    assert (sums[-stride:] < 1).all()
    assert np.array_equal(sums[:stride], sums[: -stride - 1 : -1])


def test_rows_and_columns_may_have_different_crops():
    rows, columns = axes(Deconvolution(2, crop=(3, 4)), (6, 7), (10, 11))
    assert np.array_equal(rows.matrix(), deconvolution_axis(2, 4, 6, 3, 10).matrix())
    assert np.array_equal(columns.matrix(), deconvolution_axis(2, 4, 7, 4, 11).matrix())


@pytest.mark.parametrize("upsampling", [Bilinear(), Bilinear(align_corners=True)], ids=str)
def test_rows_and_columns_may_have_different_sizes(upsampling):
    rows, columns = axes(upsampling, (3, 5), (12, 7))
    assert np.array_equal(rows.matrix(), bilinear_axis(3, 12, upsampling.align_corners).matrix())
    assert np.array_equal(columns.matrix(), bilinear_axis(5, 7, upsampling.align_corners).matrix())


def test_deconvolution_axes_with_weights_of_zero():
    # A filter shorter than two strides does not reach every target beside its source.
    for case, expected in (
        ((8, 16, 6, 0, 56), False),
        ((8, 16, 6, 31, 20), False),
        ((8, 15, 6, 0, 55), True),
        ((2, 3, 5, 0, 11), True),
        ((4, 3, 5, 0, 19), True),
        ((1, 1, 7, 0, 7), True),
        ((1, 2, 7, 0, 8), False),
        ((3, 5, 1, 0, 5), False),
    ):
        assert deconvolution_axis(*case).has_zero_weights is expected, case


# -- the definition ----------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sizes", [((3, 5), (24, 40)), ((4, 3), (7, 2)), ((1, 6), (9, 6))], ids=str)
def test_the_reference_equals_interpolate(sizes, align_corners):
    small, large = sizes
    scores = make_logits((2, 4, *small), torch.float64).requires_grad_()
    got = reference.upsample(scores, large, Bilinear(align_corners))
    truth = F.interpolate(scores, large, mode="bilinear", align_corners=align_corners)
    assert torch.allclose(got, truth, rtol=0, atol=1e-13)
    grad_output = torch.randn(truth.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(got, scores, grad_output)
    (true_gradient,) = torch.autograd.grad(truth, scores, grad_output)
    assert torch.allclose(gradient, true_gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("upsampling", "small", "large"),
    [
        (Deconvolution(8, crop=31), (6, 7), (20, 30)),
        (Deconvolution(32, crop=19), (6, 7), (141, 187)),
        (Deconvolution(2, crop=(3, 4)), (6, 7), (10, 11)),
        (Deconvolution(3, 5, 1), (4, 2), (12, 6)),
        (Deconvolution(4, 3), (4, 2), (15, 7)),
    ],
    ids=str,
)
def test_the_reference_equals_conv_transpose_and_crop(upsampling, small, large):
    scores = make_logits((2, 4, *small), torch.float64)
    axis = surgery_filter(upsampling.kernel_size)
    weight = torch.outer(axis, axis)[None, None].expand(4, 1, -1, -1)
    full = F.conv_transpose2d(scores, weight, stride=upsampling.stride, groups=4)
    down, right = upsampling.crop
    truth = full[:, :, down : down + large[0], right : right + large[1]]
    assert torch.allclose(reference.upsample(scores, large, upsampling), truth, rtol=0, atol=1e-13)


# -- FCN's sizes -------------------------------------------------------------------------------


def fcn_layers():
    """Returns VGG16's layers that change a size, and the layer of FCN that doubles it."""
    layer = {"in_channels": 1, "out_channels": 1, "device": "meta"}
    blocks = []
    for pad, num_convolutions in ((100, 2), (1, 2), (1, 3), (1, 3), (1, 3)):
        pads = [pad] + [1] * (num_convolutions - 1)
        blocks += [torch.nn.Conv1d(kernel_size=3, padding=pad, **layer) for pad in pads]
        blocks += [torch.nn.MaxPool1d(2, 2, ceil_mode=True)]
    score_fr = torch.nn.Sequential(*blocks, torch.nn.Conv1d(kernel_size=7, **layer))
    twice = torch.nn.ConvTranspose1d(kernel_size=4, stride=2, **layer)
    return score_fr, twice


def test_of_fcn_finds_the_net_of_every_image_size_up_to_700():
    score_fr, twice = fcn_layers()
    for size in range(1, 701):
        last = score_fr(torch.empty(1, 1, size, device="meta"))
        for stride in (32, 16, 8):
            upsampling = Deconvolution.of_fcn((last.shape[2],) * 2, (size, size))
            assert upsampling == Deconvolution(stride, 2 * stride, FCN_CROPS[stride]), size
            check_size(upsampling, last.shape[2:] * 2, (size, size))
            last = twice(last)


def test_of_fcn_finds_the_three_nets_of_500_pixels():
    for stride, size, crop in ((8, 70, 31), (16, 34, 27), (32, 16, 19)):
        upsampling = Deconvolution.of_fcn((size, size), (500, 500))
        assert upsampling == Deconvolution(stride, crop=crop)
        assert upsampling.kernel_size == 2 * stride
    # Different height and width: many images of PASCAL VOC are 375 x 500.
    assert Deconvolution.of_fcn((54, 70), (375, 500)) == Deconvolution(8, crop=31)
    scores, labels = torch.empty(1, 21, 54, 70), torch.empty(1, 375, 500)
    assert Deconvolution.of_fcn(scores.shape[2:], labels.shape[1:]).stride == 8


def test_sizes_near_a_net_get_the_smallest_stride_that_fits():
    for scores, labels, stride in (
        ((10, 10), (49, 49), 8),
        ((5, 5), (60, 60), 16),
        ((2, 2), (70, 70), 32),
        ((6, 7), (141, 187), 32),
        ((70, 71), (500, 500), 8),
    ):
        upsampling = Deconvolution.of_fcn(scores, labels)
        assert upsampling == Deconvolution(stride, crop=FCN_CROPS[stride]), scores
        check_size(upsampling, scores, labels)


def test_scores_of_other_nets_raise():
    # DeepLab has stride 8 too, but FCN's crop would use only the upper left part of its scores.
    for scores, labels in (
        ((65, 65), (513, 513)),
        ((128, 128), (512, 512)),
        ((100, 100), (100, 100)),
        ((70, 34), (500, 500)),
    ):
        with pytest.raises(InvalidInput, match="FCN-8s', 16s' or 32s'"):
            Deconvolution.of_fcn(scores, labels)


def test_scores_too_small_for_any_fcn_raise_with_sizes_that_fit():
    assert_raises(
        lambda: Deconvolution.of_fcn((10, 16), (375, 500)),
        "logits: expected height and width (54, 70) or (26, 34) or (12, 16), FCN-8s', 16s' or 32s' "
        "for labels (375, 500), got (10, 16). "
        "For other sizes use upsampling=bilinear, or Deconvolution in Python.",
    )


# -- errors ------------------------------------------------------------------------------------

WRONG_ARGUMENTS = [
    (lambda: Bilinear(1), "align_corners: expected True or False, got 1."),
    (lambda: Bilinear(None), "align_corners: expected True or False, got None."),
    (lambda: Bilinear("no"), "align_corners: expected True or False, got 'no'."),
    (lambda: Deconvolution(0), "stride: expected an integer from 1 to 1073741824, got 0."),
    (lambda: Deconvolution(-8), "stride: expected an integer from 1 to 1073741824, got -8."),
    (lambda: Deconvolution(8.0), "stride: expected an integer from 1 to 1073741824, got 8.0."),
    (lambda: Deconvolution("8"), "stride: expected an integer from 1 to 1073741824, got '8'."),
    (lambda: Deconvolution(True), "stride: expected an integer from 1 to 1073741824, got True."),
    (lambda: Deconvolution(None), "stride: expected an integer from 1 to 1073741824, got None."),
    (lambda: Deconvolution((8, 8)), "stride: expected an integer from 1 to 1073741824, got (8, 8)."),
    (lambda: Deconvolution(8, 0), "kernel_size: expected an integer from 1 to 2 * stride = 16, got 0."),
    (lambda: Deconvolution(8, 17), "kernel_size: expected an integer from 1 to 2 * stride = 16, got 17."),
    (lambda: Deconvolution(8, 16.0), "kernel_size: expected an integer from 1 to 2 * stride = 16, got 16.0."),
    (lambda: Deconvolution(1, True), "kernel_size: expected an integer from 1 to 2 * stride = 2, got True."),
    (lambda: Deconvolution(8, crop=-1), "crop: expected an integer from 0 to 1073741824, or two, of rows and columns, got -1."),
    (lambda: Deconvolution(8, crop=1.5), "crop: expected an integer from 0 to 1073741824, or two, of rows and columns, got 1.5."),
    (lambda: Deconvolution(8, crop=True), "crop: expected an integer from 0 to 1073741824, or two, of rows and columns, got True."),
    (lambda: Deconvolution(8, crop=None), "crop: expected an integer from 0 to 1073741824, or two, of rows and columns, got None."),
    (lambda: Deconvolution(8, crop=(1,)), "crop: expected an integer from 0 to 1073741824, or two, of rows and columns, got (1,)."),
    (lambda: Deconvolution(8, crop=(1, 2, 3)), "crop: expected an integer from 0 to 1073741824, or two, of rows and columns, got (1, 2, 3)."),
    (lambda: Deconvolution(8, crop=(1, -2)), "crop: expected an integer from 0 to 1073741824, or two, of rows and columns, got (1, -2)."),
    (lambda: Deconvolution(8, crop="31"), "crop: expected an integer from 0 to 1073741824, or two, of rows and columns, got '31'."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"), WRONG_ARGUMENTS, ids=[message for _, message in WRONG_ARGUMENTS]
)
def test_wrong_arguments_are_named_with_what_was_expected(make, message):
    assert_raises(make, message)


def upsample_by_reference(upsampling, small, large):
    return reference.upsample(torch.empty(2, 3, *small), large, upsampling)


def test_labels_larger_than_what_the_crop_leaves_raise():
    for upsampling, small, large, left in (
        (Deconvolution(8, crop=31), (6, 7), (26, 33), "25 rows and 33"),
        (Deconvolution(8, crop=31), (6, 7), (25, 34), "25 rows and 33"),
        (Deconvolution(2, 3, (4, 40)), (6, 7), (9, 1), "9 rows and 0"),
        (Deconvolution(4, 3), (6, 7), (24, 27), "23 rows and 27"),
    ):
        message = f"labels: expected at most {left} columns, what upsampling leaves, got "
        message += f"{large[0]} and {large[1]}."
        for call in (check_size, axes, upsample_by_reference):
            assert_raises(functools.partial(call, upsampling, small, large), message)
    check_size(Deconvolution(8, crop=31), (6, 7), (25, 33))
    check_size(Deconvolution(4, 3), (6, 7), (23, 27))


@pytest.mark.parametrize("wrong", ["bilinear", 8, (8, 16, 31), True, Bilinear, {"stride": 8}])
def test_anything_but_an_upsampling_raises(wrong):
    assert_raises(
        lambda: check_upsampling(wrong),
        f"upsampling: expected Bilinear(...) or Deconvolution(...), got {wrong!r}.",
    )


# -- as values ---------------------------------------------------------------------------------


def test_defaults_are_twice_the_stride_and_no_crop():
    assert Bilinear() == Bilinear(align_corners=False)
    assert Deconvolution(8) == Deconvolution(stride=8, kernel_size=16, crop=0)
    assert Deconvolution(8, crop=31) == Deconvolution(8, 16, (31, 31))
    assert Deconvolution(8, crop=31).crop == (31, 31)
    assert repr(Bilinear()) == "Bilinear(align_corners=False)"
    assert repr(Deconvolution(8, crop=31)) == (
        "Deconvolution(stride=8, kernel_size=16, crop=(31, 31))"
    )


VALUES = [Bilinear(), Bilinear(align_corners=True), Deconvolution(8), Deconvolution(8, crop=31),
          Deconvolution(8, 15), Deconvolution(8, crop=(1, 2)), Deconvolution(8, crop=(2, 1)),
          Deconvolution(16)]  # fmt: skip


def test_upsamplings_are_frozen_hashable_and_distinct():
    assert len(set(VALUES)) == len(VALUES)
    for value in VALUES:
        twin = eval(repr(value), {"Bilinear": Bilinear, "Deconvolution": Deconvolution})
        for same in (twin, copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
            assert same == value
            assert hash(same) == hash(value)
        field = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, getattr(value, field))


@pytest.mark.parametrize("upsampling", VALUES, ids=str)
def test_the_encoding_for_operators_can_be_decoded(upsampling):
    encoding = encode(upsampling)
    assert all(type(number) is int for number in encoding)
    assert decode(encoding) == upsampling


def test_no_upsampling_has_an_empty_encoding():
    assert encode(None) == []
    assert decode([]) is None


def test_encodings_of_different_upsamplings_differ():
    assert len({tuple(encode(value)) for value in VALUES}) == len(VALUES)


def test_the_module_shows_its_upsampling():
    assert repr(seg_loss.UpsampledCrossEntropy()) == (
        "UpsampledCrossEntropy(upsampling=Bilinear(align_corners=False), ignore_index=255, "
        "label_smoothing=0.0, temperature=1.0, normalization='valid', check_labels='raise')"
    )
    assert "upsampling=Deconvolution(stride=8, kernel_size=16, crop=(31, 31))" in repr(
        seg_loss.UpsampledCrossEntropy(upsampling=Deconvolution(8, crop=31))
    )


def test_numpy_integers_are_accepted():
    upsampling = Deconvolution(np.int64(4), np.uint8(7), (np.int32(1), 2))
    assert upsampling == Deconvolution(4, 7, (1, 2))
    assert [type(number) for number in encode(upsampling)] == [int] * 4
    assert Deconvolution(np.uint8(200)).kernel_size == 400
