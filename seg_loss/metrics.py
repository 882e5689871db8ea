"""Segmentation metrics of a confusion matrix of integers, as in FCN's `score.py`.

With n_ij the pixels of class i predicted as j, t_i = sum_j n_ij and p_i = sum_j n_ji:

    pixel accuracy            sum_i n_ii / sum_i t_i
    mean accuracy             mean of n_ii / t_i
    mean IU                   mean of n_ii / (t_i + p_i - n_ii)
    frequency-weighted IU     sum_i t_i IU_i / sum_i t_i

An ignored class has no row, because its pixels do not count, and no IU. Its column remains: a valid
pixel that is predicted as an ignored class is wrong, and counts in t_i of its true class.

Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, CVPR 2015, section
5.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seg_loss._errors import InvalidInput, dtype_name, more_pixels, shape_of, shape_text
from seg_loss._inputs import LABEL_DTYPES, LossOptions, check_choice, check_memory, check_tensor
from seg_loss._labels import InvalidValues, LabelReport, error_for
from seg_loss.constants import ABSENT

_BLOCK_PIXELS = 1 << 17
"""Pixels that are counted together."""


@dataclass(frozen=True)
class FcnMetrics:
    """Metrics between 0 and 1; None where the divisor is 0.

    Attributes:
        pixel_accuracy, mean_accuracy, mean_iu, frequency_weighted_iu: as in the module's formulas.
        iu: of each class; None for a class in neither truth nor prediction, or an ignored one.
        accuracy: of each class; None for a class not in the truth.
        num_classes_averaged: number of classes that `mean_iu` is the mean of.
        absent: how `mean_iu` treats classes that do not occur.
    """

    pixel_accuracy: float | None
    mean_accuracy: float | None
    mean_iu: float | None
    frequency_weighted_iu: float | None
    iu: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    num_classes_averaged: int
    absent: str


def confusion_matrix(
    prediction: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    ignore_index: int | Sequence[int] = 255,
) -> Tensor:
    """Counts pixels by truth (rows) and prediction (columns).

    Args:
        prediction: class indices, any integer dtype.
        labels: the truth, of the same shape.
        num_classes: C.
        ignore_index: labels of pixels that do not count. Predictions are never ignored.

    Returns:
        int64 [C, C]. Its sum is the number of valid pixels.

    Raises:
        InvalidInput: for another shape or dtype, or if a label or a prediction at a valid pixel is
            not a class. The message has the value, the number of such pixels, and the first index.

    >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 255]), 2).tolist()
    [[1, 0], [0, 1]]
    """
    for where, tensor in (("prediction", prediction), ("labels", labels)):
        check_tensor(where, tensor)
        if tensor.dtype not in LABEL_DTYPES:
            raise InvalidInput(where, "class indices", dtype_name(tensor.dtype))
    if prediction.shape != labels.shape:
        expected = f"shape {shape_of(labels)} of the labels"
        raise InvalidInput("prediction", expected, f"shape {shape_of(prediction)}")
    check_memory(prediction=prediction, labels=labels)
    num_classes = int(num_classes)  # also of NumPy, or a tensor
    options = LossOptions(ignore_index)
    num_entries = num_classes**2
    # One entry more counts the pixels that are not valid.
    counts = torch.zeros(num_entries + 1, dtype=torch.int64, device=labels.device)
    # Blocks stay in the cache of a processor. A GPU is waited for once.
    block_size = labels.numel() if labels.is_cuda else max(_BLOCK_PIXELS, num_entries)
    flat_labels, flat_prediction = labels.flatten(), prediction.flatten()
    for begin in range(0, labels.numel(), max(1, block_size)):
        block = slice(begin, begin + block_size)
        truth, predicted = flat_labels[block].long(), flat_prediction[block].long()
        valid = _valid_pixels(flat_labels[block], options)
        for where, classes in (("labels", truth), ("prediction", predicted)):
            low, high = torch.where(valid, classes, 0).aminmax()
            if bool((low < 0) | (high >= num_classes)):
                raise _invalid_class(where, prediction, labels, num_classes, options)
        entries = torch.where(valid, truth * num_classes + predicted, num_entries)
        counts += torch.bincount(entries, minlength=num_entries + 1)
    return counts[:num_entries].reshape(num_classes, num_classes)


def fcn_metrics(
    confusion: Tensor, *, absent: str = "skip", ignore_index: int | Sequence[int] | None = None
) -> FcnMetrics:
    """Returns the metrics of a confusion matrix.

    Args:
        confusion: [C, C] counts, rows = truth. The matrix of a data set is the sum of the matrices
            of its images.
        absent: how mean IU treats a class in neither truth nor prediction: "skip" leaves it out, as
            FCN does, "zero" counts it as 0, as CSAIL's ADE20K does, and "one" as 1. "gt_only"
            leaves out every class that is not in the truth.
        ignore_index: as in `confusion_matrix`. An ignored value may be a class. The pixels in its
            row do not count, and the class is in no mean, whatever `absent` is. None
            ignores class 255, unless its row has pixels. Then no class is ignored.

    Raises:
        InvalidInput: for another shape or another `absent`.

    >>> fcn_metrics(torch.tensor([[3, 1], [0, 4]])).pixel_accuracy
    0.875
    """
    check_tensor("confusion", confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise InvalidInput("confusion", "[C, C]", f"shape {shape_of(confusion)}")
    check_choice("absent", absent, ABSENT)
    # NumPy, because each call of torch takes longer than the arithmetic.
    counts = confusion.double().cpu().numpy().copy()
    if ignore_index is None:
        ignore_index = () if counts[255:256].any() else 255
    values = LossOptions(ignore_index).ignored_values
    ignored = [value for value in values if 0 <= value < len(counts)]
    counts[ignored] = 0
    right, truth, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    union, present, total = truth + predicted - right, truth > 0, truth.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        iu, accuracy = right / union, right / truth
        iu[ignored] = math.nan
        pixel_accuracy = right.sum() / total
        frequencies = truth[present] / total
    averaged = iu[present] if absent == "gt_only" else iu[~np.isnan(iu)]
    if absent in ("zero", "one"):
        averaged = np.where(np.isnan(iu), float(absent == "one"), iu)
        averaged = np.delete(averaged, ignored)
    return FcnMetrics(
        pixel_accuracy=_none_if_nan(float(pixel_accuracy)),
        mean_accuracy=_mean(accuracy[present]),
        mean_iu=_mean(averaged),
        frequency_weighted_iu=float((frequencies * iu[present]).sum()) if total else None,
        iu=tuple(map(_none_if_nan, iu.tolist())),
        accuracy=tuple(map(_none_if_nan, accuracy.tolist())),
        num_classes_averaged=len(averaged),
        absent=absent,
    )


def _valid_pixels(labels: Tensor, options: LossOptions) -> Tensor:
    """Returns which pixels are not ignored."""
    valid = torch.ones_like(labels, dtype=torch.bool)
    for value in options.ignored_labels(labels.dtype):
        valid &= labels != value
    return valid


def _invalid_class(
    where: str, prediction: Tensor, labels: Tensor, num_classes: int, options: LossOptions
) -> InvalidInput:
    """Returns the error for values of labels or prediction, at valid pixels, that are no class."""
    tensor = labels if where == "labels" else prediction
    classes = tensor.long()
    invalid = _valid_pixels(labels, options) & ((classes < 0) | (classes >= num_classes))
    flat_index = int(invalid.flatten().nonzero()[0])
    index = tuple(map(int, np.unravel_index(flat_index, tensor.shape)))
    values = InvalidValues(int(invalid.sum()), index, tensor.flatten()[flat_index].item())
    ignored = options.ignored_values
    if where == "labels":
        error = error_for(LabelReport(values, None, None), num_classes, ignored)
        assert error is not None
        return error
    fix = "A prediction is not ignored at a pixel whose label is a class."
    return InvalidInput(
        where,
        f"0...{num_classes - 1}",
        f"{values.value} at {shape_text(index)}" + more_pixels(values.count),
        fix if values.value in ignored else "",
    )


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    return float(values.sum() / len(values)) if len(values) else None


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
