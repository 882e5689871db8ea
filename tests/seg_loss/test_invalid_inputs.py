"""Invalid labels, weights and arguments raise errors that say where, what was expected, and how to fix."""

# ruff: noqa: E501 - messages stay in one piece, so that a search finds them

import math
import pickle
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import seg_loss
from seg_loss import Bilinear, Deconvolution, InvalidInput, metrics
from seg_loss.compat import torch as compat_torch
from seg_loss.constants import MAPS
from tests.support.cases import (
    ALL_LABEL_DTYPES,
    LAYOUTS,
    UPSAMPLINGS,
    Case,
    is_positive_zero,
    loss_and_gradient_of,
    loss_of,
    make_inputs,
    make_labels,
    make_logits,
    same_bits,
)

U8 = torch.uint8


def assert_raises(call, message):
    with pytest.raises(InvalidInput, match="^" + re.escape(message) + "$") as raised:
        call()
    error = raised.value
    assert error.__context__ is None or error.__suppress_context__, (
        "the traceback shows another error before this one"
    )


# -- labels ------------------------------------------------------------------------------------


def test_an_invalid_label_is_named_with_its_index():
    labels = torch.zeros(1, 3, 4, dtype=U8)
    labels[0, 1, 2] = 7
    logits = torch.zeros(1, 3, 3, 4)
    message = "labels: expected 0...2 or 255 (ignored), got 7 at (0, 1, 2)."
    for call in (
        lambda: seg_loss.spatial_cross_entropy(logits, labels),
        lambda: seg_loss.loss_and_gradient(logits, labels),
        lambda: seg_loss.pixel_nll(logits, labels),
        lambda: seg_loss.evaluate(logits, labels),
    ):
        assert_raises(call, message)


def test_invalid_labels_are_counted_and_the_first_is_named():
    labels = torch.zeros(2, 3, 4, dtype=torch.int64)
    labels[1, 2, 3] = -5
    labels[1, 0, 1] = 3
    assert_raises(
        lambda: seg_loss.spatial_cross_entropy(torch.zeros(2, 3, 3, 4), labels),
        "labels: expected 0...2 or 255 (ignored), got 3 at (1, 0, 1) and 1 more pixel. "
        "If 3 marks void pixels, pass ignore_index=3.",
    )
    labels[1, 0, 0] = -1
    assert_raises(
        lambda: seg_loss.spatial_cross_entropy(
            torch.zeros(2, 3, 3, 4), labels, ignore_index=(255, 9)
        ),
        "labels: expected 0...2 or 255, 9 (ignored), got -1 at (1, 0, 0) and 2 more pixels. "
        "If -1 marks void pixels, add it to ignore_index.",
    )


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 2**32, 2**32 + 1, -(2**32), 256, 300])
@pytest.mark.parametrize(
    "case",
    [Case((1, 3, 2, 2), "plain"), Case((1, 3, 2, 2), "bilinear", (4, 4), Bilinear())],
    ids=lambda case: case.reason,
)
def test_labels_above_32_bits_do_not_wrap_into_classes(case, value):
    labels = torch.zeros(1, *case.full_shape[2:], dtype=torch.int64)
    labels[0, 1, 0] = value
    assert_raises(
        lambda: loss_of(torch.zeros(case.shape), labels, case.upsampling),
        f"labels: expected 0...2 or 255 (ignored), got {value} at (0, 1, 0)."
        + (f" If {value} marks void pixels, add it to ignore_index." if value < 0 else ""),
    )


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
def test_the_first_invalid_label_of_a_large_batch_is_found(layout):
    labels = torch.zeros(3, 1, 301, 299, dtype=torch.int16)
    for n, h, w in ((1, 200, 298), (1, 201, 0), (2, 0, 0), (2, 300, 298)):
        labels[n, 0, h, w] = 21 if n == 1 else -1
    strided = LAYOUTS[layout](labels)[:, 0]
    logits = torch.zeros(3, 21, 1, 1).expand(3, 21, 301, 299)
    assert_raises(
        lambda: seg_loss.spatial_cross_entropy(logits, strided),
        "labels: expected 0...20 or 255 (ignored), got 21 at (1, 200, 298) and 3 more pixels. "
        "If 21 marks void pixels, pass ignore_index=21.",
    )


def test_invalid_labels_of_rows_and_volumes_have_an_index():
    assert_raises(
        lambda: seg_loss.spatial_cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, 5])),
        "labels: expected 0...1 or 255 (ignored), got 5 at (2,).",
    )
    labels = torch.zeros(1, 2, 3, 4, dtype=torch.int32)
    labels[0, 1, 2, 3] = 9
    assert_raises(
        lambda: seg_loss.spatial_cross_entropy(torch.zeros(1, 2, 2, 3, 4), labels),
        "labels: expected 0...1 or 255 (ignored), got 9 at (0, 1, 2, 3).",
    )


IDS = "Cityscapes ids? Map them to the 19 train ids."
ADE = "ADE20K, where 0 marks void pixels? Subtract 1 and ignore 255."
COCO = "Ids of COCO-Stuff? Map them to the 171 classes."
MASK = "A mask of 0 and 255? Divide it by 255."


@pytest.mark.parametrize(
    ("num_classes", "label", "fix"),
    [
        (19, 31, IDS),
        (19, 19, f"{IDS} If 19 marks void pixels, pass ignore_index=19."),
        (19, 34, ""),
        (150, 150, f"{ADE} If 150 marks void pixels, pass ignore_index=150."),
        (150, 151, ""),
        (171, 171, f"{COCO} If 171 marks void pixels, pass ignore_index=171."),
        (171, 181, COCO),
        (2, 255, f"{MASK} If 255 marks void pixels, add it to ignore_index."),
        (3, 255, "If 255 marks void pixels, add it to ignore_index."),
        (3, 32767, "If 32767 marks void pixels, add it to ignore_index."),
        (3, 65535, "If 65535 marks void pixels, add it to ignore_index."),
        (3, 65534, ""),
    ],
)
def test_labels_of_another_label_space_are_recognised(num_classes, label, fix):
    labels = torch.full((1, 1, 1), label, dtype=U8 if label < 256 else torch.uint16)
    with pytest.raises(InvalidInput) as error:
        seg_loss.spatial_cross_entropy(torch.zeros(1, num_classes, 1, 1), labels, ignore_index=254)
    assert error.value.fix == fix


@pytest.mark.parametrize(
    "case",
    [Case((1, 3, 2, 2), "plain"), Case((2, 5, 3, 4), "bilinear", (7, 9), Bilinear())],
    ids=lambda case: case.reason,
)
def test_an_invalid_label_changes_neither_out_nor_scores(case):
    scores, labels, upsampling = make_inputs(case)
    labels[0, 0, 0] = 77
    before, out = scores.clone(), torch.full(scores.shape, 5.0)
    with pytest.raises(InvalidInput):
        loss_and_gradient_of(scores, labels, upsampling, out=out)
    assert (out == 5).all()
    with pytest.raises(InvalidInput):
        loss_and_gradient_of(scores, labels, upsampling, out=scores)
    assert same_bits(scores, before)
    # The next call works.
    loss_and_gradient_of(scores, torch.zeros_like(labels), upsampling, out=scores)
    loss = loss_of(torch.zeros(case.shape), torch.zeros_like(labels), upsampling)
    assert float(loss) == pytest.approx(math.log(case.shape[1]))


# -- ignored labels ----------------------------------------------------------------------------


def test_an_ignored_label_outside_the_dtype_matches_no_pixel():
    # Cast to uint8, -1 would be 255 and 256 would be 0; cast to int8, 255 would be -1.
    logits = torch.zeros(1, 3, 1, 2)
    for ignored, value, dtype in (
        (-1, 255, U8),
        (256, 255, U8),
        (255, -1, torch.int8),
        (2**16 - 1, -1, torch.int16),
        (2**32 - 1, -1, torch.int32),
        (2**64 - 1, -1, torch.int64),
        (2**70, -1, torch.int64),
    ):
        labels = torch.tensor([[[0, value]]], dtype=dtype)
        assert_raises(
            lambda labels=labels, ignored=ignored: seg_loss.spatial_cross_entropy(
                logits, labels, ignore_index=ignored
            ),
            f"labels: expected 0...2, got {value} at (0, 0, 1). "
            f"If {value} marks void pixels, add it to ignore_index.",
        )
        valid = torch.zeros(1, 1, 2, dtype=dtype)
        assert seg_loss.evaluate(logits, valid, ignore_index=ignored).valid_pixels == 2


def test_255_is_ignored_even_if_it_is_a_class():
    logits, labels = make_logits((1, 300, 2, 3)), torch.tensor([[[0, 255, 299], [255, 254, 256]]])
    evaluation = seg_loss.evaluate(logits, labels)
    assert evaluation.ignored_pixels == 2
    assert evaluation.per_class[255].pixels == 0
    evaluation = seg_loss.evaluate(logits, labels, ignore_index=())
    assert evaluation.per_class[255].pixels == 2
    _, gradient = seg_loss.loss_and_gradient(logits, labels)
    assert is_positive_zero(gradient[0, :, 0, 1])


def test_class_0_can_be_ignored():
    logits, labels = make_logits((2, 5, 9, 11)), make_labels((2, 5, 9, 11))
    evaluation = seg_loss.evaluate(logits, labels, ignore_index=(0, 255))
    assert evaluation.per_class[0].pixels == 0
    assert evaluation.valid_pixels == int(((labels != 0) & (labels != 255)).sum())


@pytest.mark.parametrize("dtype", ALL_LABEL_DTYPES, ids=str)
def test_the_extreme_values_of_each_label_dtype_can_be_ignored(dtype):
    limits = torch.iinfo(dtype)
    labels = torch.tensor([[[0, limits.max, limits.min, 1]]], dtype=dtype)
    logits = torch.zeros(1, 2, 1, 4)
    ignored = (limits.max, limits.min) if limits.min else (limits.max,)
    evaluation = seg_loss.evaluate(logits, labels, ignore_index=ignored)
    assert evaluation.valid_pixels == (2 if limits.min else 3)


# -- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "case",
    [Case((2, 3, 2, 2), "plain"), Case((2, 3, 2, 2), "bilinear", (5, 5), Bilinear())],
    ids=lambda case: case.reason,
)
def test_invalid_weights_raise(case, value):
    scores, labels = torch.zeros(case.shape), torch.zeros(2, *case.full_shape[2:], dtype=U8)
    weight = torch.tensor([1.0, value, 1.0])
    assert_raises(
        lambda: loss_of(scores, labels, case.upsampling, class_weight=weight),
        f"class_weight: expected finite numbers that are not negative, got {value} for class 1.",
    )
    pixels = torch.ones(labels.shape)
    last = labels.shape[2] - 1
    pixels[1, 0, last] = pixels[1, 1, 1] = value
    assert_raises(
        lambda: loss_of(scores, labels, case.upsampling, pixel_weight=pixels),
        "pixel_weight: expected finite numbers that are not negative, "
        f"got {value} at (1, 0, {last}) and 1 more pixel.",
    )


# -- arguments ---------------------------------------------------------------------------------

LOGITS, LABELS = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=U8)
NESTED = torch.nested.nested_tensor([LOGITS[0], LOGITS[1]], layout=torch.jagged)
WRONG_ARGUMENTS = [
    ((None, LABELS, {}), "logits: expected a torch.Tensor, got NoneType."),
    ((LOGITS.numpy(), LABELS, {}), "logits: expected a torch.Tensor, got ndarray."),
    ((LOGITS[0, 0, 0], LABELS, {}), "logits: expected [N, C, *spatial], got shape (5,). Add the batch and class axes."),
    ((LOGITS.to_sparse(), LABELS, {}), "logits: expected a dense tensor, got the layout torch.sparse_coo. Call .to_dense()."),
    ((LOGITS, LABELS.to_sparse(), {}), "labels: expected a dense tensor, got the layout torch.sparse_coo. Call .to_dense()."),
    ((NESTED, LABELS, {}), "logits: expected a dense tensor, got a nested tensor. Pad it."),
    ((LOGITS, LABELS, {"class_weight": torch.ones(3).to_sparse()}), "class_weight: expected a dense tensor, got the layout torch.sparse_coo. Call .to_dense()."),
    ((LOGITS, LABELS, {"pixel_weight": torch.ones(2, 4, 5).to_mkldnn()}), "pixel_weight: expected a dense tensor, got the layout torch._mkldnn. Call .to_dense()."),
    ((LOGITS.int(), LABELS, {}), "logits: expected float32, float16, bfloat16 or float64, got int32."),
    ((LOGITS.to(torch.complex64), LABELS, {}), "logits: expected float32, float16, bfloat16 or float64, got complex64."),
    ((LOGITS[:, :0], LABELS, {}), "logits: expected at least one class, got shape (2, 0, 4, 5)."),
    ((LOGITS, None, {}), "labels: expected a torch.Tensor, got NoneType."),
    ((LOGITS, LABELS.float(), {}), "labels: expected uint8, int8, int16, int32, int64, uint16, uint32 or uint64, got float32. Class indices are integers."),
    ((LOGITS, LABELS.bool(), {}), "labels: expected uint8, int8, int16, int32, int64, uint16, uint32 or uint64, got bool."),
    ((LOGITS, LABELS[:1], {}), "labels: expected shape (2, 4, 5) to match logits (2, 3, 4, 5), got shape (1, 4, 5)."),
    ((LOGITS, LABELS.mT, {}), "labels: expected shape (2, 4, 5) to match logits (2, 3, 4, 5), got shape (2, 5, 4). Height and width are exchanged."),
    ((LOGITS, LOGITS.int(), {}), "labels: expected shape (2, 4, 5) to match logits (2, 3, 4, 5), got shape (2, 3, 4, 5). One-hot? Take argmax over axis 1."),
    ((LOGITS[:1], LABELS[0], {}), "labels: expected shape (1, 4, 5) to match logits (1, 3, 4, 5), got shape (4, 5). Add the batch axis: [None]."),
    ((LOGITS.movedim(1, -1), LABELS, {}), "labels: expected shape (2, 5, 3) to match logits (2, 4, 5, 3), got shape (2, 4, 5). Classes on the last axis? Pass logits.movedim(-1, 1)."),
    ((LOGITS[..., 0, 0], LABELS, {}), "labels: expected shape (2,) to match logits (2, 3), got shape (2, 4, 5)."),
    ((LOGITS, LABELS, {"class_weight": [1, 1, 1]}), "class_weight: expected a torch.Tensor, got list."),
    ((LOGITS, LABELS, {"class_weight": torch.ones(4)}), "class_weight: expected shape (3,), one per class, got shape (4,)."),
    ((LOGITS, LABELS, {"class_weight": torch.ones(3, dtype=torch.int64)}), "class_weight: expected float32, float16, bfloat16 or float64, got int64."),
    ((LOGITS, LABELS, {"pixel_weight": 2.0}), "pixel_weight: expected a torch.Tensor, got float."),
    ((LOGITS, LABELS, {"pixel_weight": LABELS}), "pixel_weight: expected float32, float16, bfloat16 or float64, got uint8."),
    ((LOGITS, LABELS, {"pixel_weight": torch.ones(2, 5, 5)}), "pixel_weight: expected shape (2, 4, 5) to match logits (2, 3, 4, 5), got shape (2, 5, 5)."),
    ((LOGITS, LABELS, {"temperature": 0}), "temperature: expected a positive number, 1e-30...1e30, got 0."),
    ((LOGITS, LABELS, {"temperature": -1.0}), "temperature: expected a positive number, 1e-30...1e30, got -1.0."),
    ((LOGITS, LABELS, {"temperature": math.inf}), "temperature: expected a positive number, 1e-30...1e30, got inf."),
    ((LOGITS, LABELS, {"temperature": math.nan}), "temperature: expected a positive number, 1e-30...1e30, got nan."),
    ((LOGITS, LABELS, {"temperature": "1"}), "temperature: expected a positive number, 1e-30...1e30, got '1'."),
    ((LOGITS, LABELS, {"temperature": True}), "temperature: expected a positive number, 1e-30...1e30, got True."),
    ((LOGITS, LABELS, {"label_smoothing": -0.1}), "label_smoothing: expected a number from 0 to 1, got -0.1."),
    ((LOGITS, LABELS, {"label_smoothing": 1.1}), "label_smoothing: expected a number from 0 to 1, got 1.1."),
    ((LOGITS, LABELS, {"label_smoothing": math.nan}), "label_smoothing: expected a number from 0 to 1, got nan."),
    ((LOGITS, LABELS, {"label_smoothing": None}), "label_smoothing: expected a number from 0 to 1, got None."),
    ((LOGITS, LABELS, {"normalization": "mean"}), "normalization: expected one of valid, full, batch, none, weight, got 'mean'."),
    ((LOGITS, LABELS, {"normalization": None}), "normalization: expected one of valid, full, batch, none, weight, got None."),
    ((LOGITS, LABELS, {"ignore_index": None}), "ignore_index: expected an int or several, got None."),
    ((LOGITS, LABELS, {"ignore_index": 255.0}), "ignore_index: expected an int or several, got 255.0."),
    ((LOGITS, LABELS, {"ignore_index": True}), "ignore_index: expected an int or several, got True."),
    ((LOGITS, LABELS, {"ignore_index": "255"}), "ignore_index: expected an int or several, got '2'."),
    ((LOGITS, LABELS, {"ignore_index": (255, 0.5)}), "ignore_index: expected an int or several, got 0.5."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG_ARGUMENTS, ids=[message for _, message in WRONG_ARGUMENTS]
)
def test_wrong_arguments_are_named_with_what_was_expected(arguments, message):
    logits, labels, options = arguments
    for call in (seg_loss.spatial_cross_entropy, seg_loss.loss_and_gradient, seg_loss.evaluate):
        assert_raises(lambda call=call: call(logits, labels, **options), message)


SCORES, LABELS_OF_SCORES = torch.zeros(2, 3, 2, 4), torch.zeros(2, 7, 9, dtype=U8)
NOT_UPSAMPLABLE = "expected [N, C, h, w] with h and w of at least 1, to be upsampled, got shape"
WRONG_UPSAMPLED_ARGUMENTS = [
    ((None, LABELS_OF_SCORES, {}), "{}: expected a torch.Tensor, got NoneType."),
    ((SCORES[0], LABELS_OF_SCORES, {}), f"{{}}: {NOT_UPSAMPLABLE} (3, 2, 4)."),
    ((SCORES[..., 0, 0], LABELS_OF_SCORES, {}), f"{{}}: {NOT_UPSAMPLABLE} (2, 3)."),
    ((SCORES[..., None], LABELS_OF_SCORES, {}), f"{{}}: {NOT_UPSAMPLABLE} (2, 3, 2, 4, 1)."),
    ((SCORES[..., :0], LABELS_OF_SCORES, {}), f"{{}}: {NOT_UPSAMPLABLE} (2, 3, 2, 0)."),
    ((SCORES[:, :, :0], LABELS_OF_SCORES, {}), f"{{}}: {NOT_UPSAMPLABLE} (2, 3, 0, 4)."),
    ((SCORES[:0, :, :0], LABELS_OF_SCORES[:0], {}), f"{{}}: {NOT_UPSAMPLABLE} (0, 3, 0, 4)."),
    ((SCORES[0, 0, 0], LABELS_OF_SCORES, {}), "{}: expected [N, C, *spatial], got shape (4,). Add the batch and class axes."),
    ((SCORES.int(), LABELS_OF_SCORES, {}), "{}: expected float32, float16, bfloat16 or float64, got int32."),
    ((SCORES[:, :0], LABELS_OF_SCORES, {}), "{}: expected at least one class, got shape (2, 0, 2, 4)."),
    ((SCORES, None, {}), "labels: expected a torch.Tensor, got NoneType."),
    ((SCORES, LABELS_OF_SCORES.float(), {}), "labels: expected uint8, int8, int16, int32, int64, uint16, uint32 or uint64, got float32. Class indices are integers."),
    ((SCORES, LABELS_OF_SCORES[:1], {}), "labels: expected shape (2, 7, 9) to match {} (2, 3, 2, 4), got shape (1, 7, 9)."),
    ((SCORES, LABELS_OF_SCORES[:, None].expand(2, 3, 7, 9), {}), "labels: expected shape (2, 7, 9) to match {} (2, 3, 2, 4), got shape (2, 3, 7, 9). One-hot? Take argmax over axis 1."),
    ((SCORES, LABELS_OF_SCORES, {"class_weight": torch.ones(4)}), "class_weight: expected shape (3,), one per class, got shape (4,)."),
    ((SCORES, LABELS_OF_SCORES, {"pixel_weight": LABELS_OF_SCORES}), "pixel_weight: expected float32, float16, bfloat16 or float64, got uint8."),
    ((SCORES, LABELS_OF_SCORES, {"pixel_weight": SCORES[:, 0]}), "pixel_weight: expected shape (2, 7, 9) to match the labels, got shape (2, 2, 4)."),
    ((SCORES, LABELS_OF_SCORES, {"pixel_weight": torch.ones(2, 9, 7)}), "pixel_weight: expected shape (2, 7, 9) to match the labels, got shape (2, 9, 7). Height and width are exchanged."),
    ((SCORES, LABELS_OF_SCORES, {"temperature": 0}), "temperature: expected a positive number, 1e-30...1e30, got 0."),
    ((SCORES, LABELS_OF_SCORES, {"label_smoothing": 1.1}), "label_smoothing: expected a number from 0 to 1, got 1.1."),
    ((SCORES, LABELS_OF_SCORES, {"normalization": "mean"}), "normalization: expected one of valid, full, batch, none, weight, got 'mean'."),
    ((SCORES, LABELS_OF_SCORES, {"ignore_index": None}), "ignore_index: expected an int or several, got None."),
    ((SCORES, LABELS_OF_SCORES, {"check_labels": "later"}), "check_labels: expected one of raise, defer, ignore, got 'later'."),
    ((SCORES, LABELS_OF_SCORES, {"upsampling": "bilinear"}), "upsampling: expected Bilinear(...) or Deconvolution(...), got 'bilinear'."),
    ((SCORES, LABELS_OF_SCORES, {"upsampling": 8}), "upsampling: expected Bilinear(...) or Deconvolution(...), got 8."),
    ((SCORES, LABELS_OF_SCORES, {"upsampling": Bilinear}), "upsampling: expected Bilinear(...) or Deconvolution(...), got <class 'seg_loss.upsampling.Bilinear'>."),
    ((SCORES, LABELS_OF_SCORES, {"upsampling": Deconvolution(2)}), "labels: expected at most 6 rows and 10 columns, what upsampling leaves, got 7 and 9."),
    ((SCORES, LABELS_OF_SCORES, {"upsampling": Deconvolution(4, crop=(0, 12))}), "labels: expected at most 12 rows and 8 columns, what upsampling leaves, got 7 and 9."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    WRONG_UPSAMPLED_ARGUMENTS,
    ids=[message for _, message in WRONG_UPSAMPLED_ARGUMENTS],
)
def test_wrong_arguments_of_upsampled_scores_are_named(arguments, message):
    scores, labels, options = arguments
    options = {"upsampling": Bilinear(), **options}
    for where, call in (
        ("scores", seg_loss.upsampled_cross_entropy),
        ("logits", seg_loss.loss_and_gradient),
        ("logits", seg_loss.evaluate),
    ):
        assert_raises(lambda call=call: call(scores, labels, **options), message.format(where))


def test_no_upsampling_raises_only_where_one_is_needed():
    assert_raises(
        lambda: seg_loss.upsampled_cross_entropy(SCORES, LABELS_OF_SCORES, upsampling=None),
        "upsampling: expected Bilinear(...) or Deconvolution(...), got None.",
    )
    labels = torch.zeros(2, 2, 4, dtype=U8)
    expected = seg_loss.loss_and_gradient(SCORES, labels)
    got = seg_loss.loss_and_gradient(SCORES, labels, upsampling=None)
    assert same_bits(got[0], expected[0])
    assert same_bits(got[1], expected[1])
    for call in (seg_loss.loss_and_gradient, seg_loss.evaluate):
        assert_raises(
            lambda call=call: call(SCORES, LABELS_OF_SCORES, upsampling=None),
            "labels: expected shape (2, 2, 4) to match logits (2, 3, 2, 4), got shape (2, 7, 9). "
            "Scores of lower resolution? Use upsampling=bilinear; in Python, seg_loss.Bilinear().",
        )


@pytest.mark.parametrize(
    ("shape", "size", "fix"),
    [
        ((1, 4, 6, 3), (32, 48), "Pass logits.movedim(-1, 1) and seg_loss.Bilinear()."),
        ((1, 3, 4, 6), (32, 48), "in Python, seg_loss.Bilinear()."),
        ((1, 3, 4, 6), (32, 32), "in Python, seg_loss.Bilinear()."),  # even in neither
    ],
)
def test_smaller_scores_with_classes_on_the_last_axis_are_recognised(shape, size, fix):
    with pytest.raises(InvalidInput) as error:
        seg_loss.spatial_cross_entropy(torch.zeros(shape), torch.zeros(1, *size, dtype=U8))
    assert error.value.fix.endswith(fix)


META = {"device": "meta"}
NO_KERNELS = (
    "expected a tensor on the CPU or on a CUDA device, got one on mps:0. "
    "There are no kernels for other devices: call .cpu()."
)


@pytest.mark.parametrize("upsampling", [None, Bilinear()], ids=str)
def test_tensors_on_another_device_than_the_scores_raise(upsampling):
    assert_raises(
        lambda: loss_of(LOGITS, LABELS.to("meta"), upsampling),
        "labels: expected a tensor on cpu, got one on meta.",
    )
    assert_raises(
        lambda: loss_of(LOGITS, LABELS, upsampling, class_weight=torch.ones(3, **META)),
        "class_weight: expected a tensor on cpu, got one on meta.",
    )
    assert_raises(
        lambda: loss_of(LOGITS, LABELS, upsampling, pixel_weight=torch.ones(2, 4, 5, **META)),
        "pixel_weight: expected a tensor on cpu, got one on meta.",
    )


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("call", "where"),
    [(seg_loss.spatial_cross_entropy, "labels"), (compat_torch.cross_entropy, "target")],
)
def test_labels_on_another_device_raise_in_compiled_programs_too(call, where):
    torch.compiler.reset()
    logits, labels = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=U8, **META)
    assert_raises(
        lambda: torch.compile(call, backend="aot_eager")(logits, labels),
        f"{where}: expected a tensor on cpu, got one on meta.",
    )
    # A full graph has no place for an exception, so that torch's compiler raises its own error.
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=rf"InvalidInput\('{where}', 'a tensor"):
        torch.compile(call, backend="aot_eager", fullgraph=True)(logits, labels)


@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("logits", seg_loss.spatial_cross_entropy),
        ("logits", seg_loss.loss_and_gradient),
        ("scores", seg_loss.upsampled_cross_entropy),
    ],
)
def test_scores_on_a_device_without_kernels_raise(where, call):
    # A tensor of torch's fake mode needs no such device.
    with FakeTensorMode():
        logits = torch.zeros(1, 2, 3, 3, device="mps")
        there = torch.zeros(1, 3, 3, dtype=U8, device="mps")
    for labels in (there, torch.zeros(1, 3, 3, dtype=U8)):
        assert_raises(lambda labels=labels: call(logits, labels), f"{where}: {NO_KERNELS}")


MEMORY = torch.zeros(2, 2, 3, 4, 5)
WRONG_OUT = [
    (LOGITS, LOGITS.tolist(), "out: expected a torch.Tensor, got list."),
    (LOGITS, LOGITS.to_sparse(), "out: expected a dense tensor, got the layout torch.sparse_coo. Call .to_dense()."),
    (LOGITS, LOGITS[:1].clone(), "out: expected shape (2, 3, 4, 5) of the logits, got shape (1, 3, 4, 5)."),
    (LOGITS, LOGITS.half(), "out: expected float32 as the logits, got float16."),
    (LOGITS, torch.empty(LOGITS.shape, device="meta"), "out: expected a tensor on cpu, got one on meta."),
    (LOGITS, torch.zeros(1, 3, 4, 5).expand(2, 3, 4, 5), "out: expected separate memory for each element, got an expanded tensor."),
    (LOGITS[..., :1].expand(LOGITS.shape), LOGITS[..., :1].expand(LOGITS.shape), "out: expected separate memory for each element, got an expanded tensor."),
    (LOGITS, LOGITS.clone()._neg_view(), "out: expected a tensor without torch's negation bit, got a negated view."),
    (MEMORY[0], MEMORY.flatten()[60:180].view(2, 3, 4, 5), "out: expected the logits themselves, or other memory, got another view of the logits."),
]  # fmt: skip


@pytest.mark.parametrize(("logits", "out", "message"), WRONG_OUT, ids=[m for *_, m in WRONG_OUT])
def test_out_of_the_wrong_kind_raises(logits, out, message):
    assert_raises(lambda: seg_loss.loss_and_gradient(logits, LABELS, out=out), message)


def test_out_of_the_wrong_kind_raises_with_an_upsampling_too():
    scores, labels, upsampling = make_inputs(UPSAMPLINGS["bilinear"])
    for out, message in (
        (
            torch.empty(2, 5, 27, 31),
            "out: expected shape (2, 5, 7, 9) of the logits, got shape (2, 5, 27, 31).",
        ),
        (scores.half(), "out: expected float32 as the logits, got float16."),
        (
            scores.flip(0)[:1].expand(scores.shape),
            "out: expected separate memory for each element, got an expanded tensor.",
        ),
    ):
        assert_raises(
            lambda out=out: loss_and_gradient_of(scores, labels, upsampling, out=out), message
        )


@pytest.mark.parametrize("upsampling", [None, Bilinear()], ids=str)
def test_unknown_maps_raise(upsampling):
    names = ", ".join(MAPS)
    assert names == "prediction, nll, confidence, entropy, top_classes, top_probabilities"
    for maps in (("nll", "depth"), "nll"):
        assert_raises(
            lambda maps=maps: seg_loss.evaluate(LOGITS, LABELS, upsampling=upsampling, maps=maps),
            f"maps: expected names among {names}, got {maps!r}.",
        )


@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("prediction", lambda x: metrics.confusion_matrix(x, LABELS, 3)),
        ("labels", lambda x: metrics.confusion_matrix(LABELS, x, 3)),
        ("confusion", metrics.fcn_metrics),
        ("scores", lambda x: seg_loss.scratch_bytes(x, (8, 8), upsampling=Bilinear())),
        ("logits", seg_loss.spatial_softmax),
        ("logits", lambda x: seg_loss.require_finite(x, LABELS)),
        ("probabilities", lambda x: seg_loss.probability_cross_entropy(x, LABELS)),
    ],
)
def test_every_function_refuses_what_is_no_dense_tensor(where, call):
    assert_raises(lambda: call([[0]]), f"{where}: expected a torch.Tensor, got list.")
    with pytest.raises(InvalidInput, match=f"^{where}: expected a dense tensor, got the layout"):
        call(LOGITS.to_sparse())


def test_invalid_input_is_a_value_error_that_keeps_its_fields():
    error = InvalidInput("labels", "4", "5", "Count again.")
    assert isinstance(error, ValueError)
    assert str(error) == "labels: expected 4, got 5. Count again."
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.where, copy.expected, copy.got, copy.fix) == ("labels", "4", "5", "Count again.")
    assert str(InvalidInput("a", "b", "c")) == "a: expected b, got c."
