"""`evaluate`: all that one read of the logits can tell.

The next stop is a backend's `evaluate`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seg_loss import _inputs as checks
from seg_loss import _labels as label_check
from seg_loss import _operators as ops
from seg_loss._divisor import divisor
from seg_loss._dynamo import eagerly
from seg_loss._evaluation_sums import Tallies
from seg_loss.diagnosis import Diagnosis, diagnose
from seg_loss.metrics import FcnMetrics, fcn_metrics
from seg_loss.upsampling import Upsampling, axes_for

MAPS = ("prediction", "nll", "confidence", "entropy", "top_classes", "top_probabilities")
_TOP = 3  # classes in them


@dataclass(frozen=True)
class ImageLoss:
    """The loss of one image, as if it were alone in the batch, and its pixels that count."""

    loss: float
    valid_pixels: int


@dataclass(frozen=True)
class ClassLoss:
    """The valid pixels of a class and their mean nll, unweighted; None where there are none."""

    pixels: int
    mean_nll: float | None


@dataclass(frozen=True)
class CalibrationBin:
    """Valid pixels with a confidence in (lower, upper]; one of 0 is in the first bin."""

    lower: float
    upper: float
    pixels: int
    accuracy: float | None
    confidence: float | None


@dataclass(frozen=True)
class Calibration:
    """How far confidence can be believed.

    Attributes:
        ece: expected calibration error, sum_b pixels_b / pixels * |accuracy_b - confidence_b|
            (Guo et al., On Calibration of Modern Neural Networks, ICML 2017); None without pixels.
        bins: 15 of them.
    """

    ece: float | None
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True)
class Evaluation:
    """What the logits say about the labels.

    Attributes:
        loss: the value of `spatial_cross_entropy` with the same options.
        normalization: the option.
        divisor: D, what the sum of the terms was divided by.
        valid_pixels, ignored_pixels: together all pixels.
        uniform_loss: ln C, the cost of knowing nothing.
        per_image: for each image.
        per_class: for each class, by truth.
        confusion: int64 [C, C] over valid pixels, rows = truth; on the CPU.
        metrics: of the confusion.
        calibration: of the confidence, the highest probability of a pixel.
        diagnosis: what the loss says about the training.
        non_finite_pixels: valid pixels without a softmax, for NaN or +inf among their logits.
        maps: those asked for, over all pixels, ignored ones too (but `nll` is 0 there).
            `prediction` is the most probable class, the first of equals; `confidence` its
            probability; `entropy` in nats; `top_classes` and `top_probabilities` [N, k, *spatial]
            the k = 3 most probable. Classes are uint8 up to 256 of them, int16 or int32 beyond; the
            rest is float32.
    """

    loss: float
    normalization: str
    divisor: float
    valid_pixels: int
    ignored_pixels: int
    uniform_loss: float
    per_image: tuple[ImageLoss, ...]
    per_class: tuple[ClassLoss, ...]
    confusion: Tensor
    metrics: FcnMetrics
    calibration: Calibration
    diagnosis: Diagnosis
    non_finite_pixels: int
    maps: dict[str, Tensor]


@eagerly
@torch.no_grad()
def evaluate(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    pixel_weight: Tensor | None = None,
    ignore_index: int | Sequence[int] = 255,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    normalization: str = "valid",
    check_labels: str = "raise",
    upsampling: Upsampling | None = None,
    maps: Sequence[str] = (),
) -> Evaluation:
    """Loss, losses per image and class, confusion, metrics, calibration and maps, without a
    gradient.

    Arguments, meaning and errors are those of `spatial_cross_entropy`.

    Args:
        upsampling: None, or how the logits, which then are scores [N, C, h, w], become as large as
            the labels: as in `upsampled_cross_entropy`. Maps are as large as the labels.
        maps: names of the maps to return: prediction, nll, confidence, entropy, top_classes,
            top_probabilities.

    >>> evaluation = evaluate(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.uint8))
    >>> evaluation.diagnosis.state
    'at_chance'
    """
    if isinstance(maps, str) or any(name not in MAPS for name in maps):
        raise checks.InvalidInput("maps", f"names among {', '.join(MAPS)}", repr(maps))
    inputs = checks.loss_inputs(
        logits,
        labels,
        class_weight,
        pixel_weight=pixel_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        normalization=normalization,
        check_labels=check_labels,
        is_upsampled=upsampling is not None,
    )
    axes = None
    if upsampling is not None:
        axes = axes_for(upsampling, logits, inputs.labels)
    label_check.raise_deferred()
    inputs = inputs.as_they_lie()
    tallies = ops.backend_of(logits).evaluate(inputs, axes, _empty_maps(inputs, maps))
    weight = None if tallies.weight is None else float(tallies.weight.sum())
    valid_pixels = int(tallies.valid_pixels.sum())
    num_images, num_pixels = inputs.labels.shape[0], inputs.labels.numel()
    count = divisor(normalization, valid_pixels, weight, num_images, num_pixels)
    num_classes = logits.shape[1]
    truth = tallies.confusion.sum(dim=1).tolist()
    total_nll = float(tallies.class_nll.sum())
    return Evaluation(
        loss=float(tallies.loss.sum()) / count,
        normalization=normalization,
        divisor=count,
        valid_pixels=valid_pixels,
        ignored_pixels=inputs.labels.numel() - valid_pixels,
        uniform_loss=math.log(num_classes),
        per_image=_per_image(inputs, tallies),
        per_class=tuple(
            ClassLoss(pixels, nll / pixels if pixels else None)
            for pixels, nll in zip(truth, tallies.class_nll.tolist(), strict=True)
        ),
        confusion=tallies.confusion,
        metrics=fcn_metrics(tallies.confusion),
        calibration=_calibration(
            tallies.bin_pixels.tolist(),
            tallies.bin_correct.tolist(),
            tallies.bin_confidence.tolist(),
        ),
        diagnosis=diagnose(
            num_classes=num_classes,
            valid_pixels=valid_pixels,
            mean_nll=total_nll / valid_pixels if valid_pixels else 0.0,
            saturated_pixels=tallies.num_saturated,
            non_finite_pixels=tallies.num_non_finite,
        ),
        non_finite_pixels=tallies.num_non_finite,
        maps={name: tallies.maps[name] for name in maps},
    )


def _empty_maps(inputs: checks.LossInputs, names: Sequence[str]) -> dict[str, Tensor]:
    """Memory for the maps asked for, on the logits' device; the two of `top_` come together."""
    num_classes = inputs.logits.shape[1]
    # The smallest integers that hold the classes.
    index = torch.uint8 if num_classes <= 1 << 8 else torch.int16
    index = index if num_classes <= 1 << 15 else torch.int32
    shape = inputs.labels.shape
    top = torch.Size([shape[0], min(_TOP, num_classes), *shape[1:]])
    every = {
        "prediction": (shape, index),
        "nll": (shape, torch.float32),
        "confidence": (shape, torch.float32),
        "entropy": (shape, torch.float32),
        "top_classes": (top, index),
        "top_probabilities": (top, torch.float32),
    }
    both = {"top_classes", "top_probabilities"}
    wanted = set(names) | (both if both & set(names) else set())
    return {
        name: torch.empty(size, dtype=dtype, device=inputs.logits.device)
        for name, (size, dtype) in every.items()
        if name in wanted
    }


def _per_image(inputs: checks.LossInputs, tallies: Tallies) -> tuple[ImageLoss, ...]:
    sums, valid_pixels = tallies.loss.tolist(), tallies.valid_pixels.tolist()
    weights = [None] * len(sums) if tallies.weight is None else tallies.weight.tolist()
    pixels = inputs.labels[0].numel() if sums else 0
    counts = (
        divisor(inputs.normalization, valid, weight, 1, pixels)
        for valid, weight in zip(valid_pixels, weights, strict=True)
    )
    return tuple(
        ImageLoss(total / count, valid)
        for total, count, valid in zip(sums, counts, valid_pixels, strict=True)
    )


def _calibration(pixels: list[int], correct: list[int], confidence: list[float]) -> Calibration:
    number, total = len(pixels), sum(pixels)
    bins = tuple(
        CalibrationBin(
            lower=place / number,
            upper=(place + 1) / number,
            pixels=pixels[place],
            accuracy=correct[place] / pixels[place] if pixels[place] else None,
            confidence=confidence[place] / pixels[place] if pixels[place] else None,
        )
        for place in range(number)
    )
    gaps = (abs(right - sure) for right, sure in zip(correct, confidence, strict=True))
    return Calibration(sum(gaps) / total if total else None, bins)
