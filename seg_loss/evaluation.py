"""`evaluate`: everything that one read of the logits can tell, without a gradient.

It calls the `evaluate` of a backend, which returns `EvaluationSums`, and divides them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from seg_loss import _labels
from seg_loss._backends import backend_of, without_dynamo
from seg_loss._divisor import divisor
from seg_loss._errors import InvalidInput
from seg_loss._evaluation_sums import EvaluationSums
from seg_loss._inputs import LossInputs, check_inputs, check_memory, loss_dtype, loss_options
from seg_loss._maps import empty_maps
from seg_loss.constants import MAPS, SATURATED_NLL
from seg_loss.diagnosis import Diagnosis, diagnose
from seg_loss.metrics import FcnMetrics, fcn_metrics
from seg_loss.probabilities import check_probabilities, check_scores, targets_of
from seg_loss.upsampling import Upsampling


@dataclass(frozen=True)
class ImageLoss:
    """The loss of one image, as if it were alone in the batch, and the number of its valid pixels.

    Attributes:
        loss: the loss.
        valid_pixels: the number of valid pixels.
    """

    loss: float
    valid_pixels: int


@dataclass(frozen=True)
class ClassLoss:
    """The valid pixels of a class and their mean nll.

    Attributes:
        pixels: the number of valid pixels whose label is the class.
        mean_nll: their mean nll, unweighted; None if there are none.
    """

    pixels: int
    mean_nll: float | None


@dataclass(frozen=True)
class CalibrationBin:
    """The valid pixels with a confidence in (lower, upper].

    Attributes:
        lower, upper: the bounds.
        pixels: the number of pixels.
        accuracy: the share of pixels whose prediction is right; None without pixels.
        confidence: the mean confidence; None without pixels.
    """

    lower: float
    upper: float
    pixels: int
    accuracy: float | None
    confidence: float | None


@dataclass(frozen=True)
class Calibration:
    """How well the confidence of a prediction agrees with its accuracy.

    Attributes:
        ece: expected calibration error, sum_b pixels_b / pixels * |accuracy_b - confidence_b|
            (Guo et al., On Calibration of Modern Neural Networks, ICML 2017); None without pixels.
        bins: the 15 bins.
    """

    ece: float | None
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of `evaluate`. Its properties are computed from sums on their first use.

    Attributes:
        loss: the value of `spatial_cross_entropy` with the same options.
        normalization: the option.
        divisor: D, which divides the sum of the terms.
        valid_pixels, ignored_pixels: their sum is the number of all pixels.
        uniform_loss: ln C, the loss of a uniform prediction.
        confusion: int64 [C, C] over the valid pixels, rows = truth; on the CPU.
        non_finite_pixels: number of valid pixels whose logits hold NaN or +inf, or only -inf.
        maps: the maps asked for, over all pixels, ignored ones included (where `nll` is 0).
            `prediction` is the most probable class, the first of equal ones; `confidence` is its
            probability; `entropy` is in nats; `top_classes` and `top_probabilities`
            [N, k, *spatial] are the k = 3 most probable classes. Classes are uint8 for at most 256
            classes, else int16 or int32; the other maps are float32.
    """

    loss: float
    normalization: str
    divisor: float
    valid_pixels: int
    ignored_pixels: int
    uniform_loss: float
    confusion: Tensor
    non_finite_pixels: int
    maps: dict[str, Tensor]
    _ignored_values: tuple[int, ...] = field(repr=False)
    _sums: EvaluationSums = field(repr=False)

    @cached_property
    def per_image(self) -> tuple[ImageLoss, ...]:
        """The loss of each image."""
        sums = self._sums
        losses, valid_pixels = sums.loss.tolist(), sums.valid_pixels.tolist()
        weights = [None] * len(losses) if sums.weight is None else sums.weight.tolist()
        num_pixels = self.valid_pixels + self.ignored_pixels

        def of_image(loss: float, valid: int, weight: float | None) -> ImageLoss:
            total = divisor(
                self.normalization,
                valid_pixels=valid,
                weight_sum=weight,
                num_images=1,
                num_pixels=num_pixels // len(losses),
            )
            return ImageLoss(loss / total, valid)

        return tuple(map(of_image, losses, valid_pixels, weights))

    @cached_property
    def per_class(self) -> tuple[ClassLoss, ...]:
        """The mean nll of each class, by the labels."""
        pixels = self.confusion.sum(dim=1).tolist()
        return tuple(
            ClassLoss(count, nll / count if count else None)
            for count, nll in zip(pixels, self._sums.class_nll.tolist(), strict=True)
        )

    @cached_property
    def metrics(self) -> FcnMetrics:
        """The metrics of the confusion matrix; ignored classes are in no mean."""
        return fcn_metrics(self.confusion, ignore_index=self._ignored_values)

    @cached_property
    def calibration(self) -> Calibration:
        """How well the highest probability of a pixel agrees with the accuracy."""
        return _calibration(self._sums)

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """What the loss says about the training."""
        valid_pixels = self.valid_pixels
        return diagnose(
            num_classes=len(self.confusion),
            valid_pixels=valid_pixels,
            mean_nll=float(self._sums.class_nll.sum()) / valid_pixels if valid_pixels else 0.0,
            saturated_pixels=self._sums.num_saturated,
            non_finite_pixels=self.non_finite_pixels,
        )


@without_dynamo
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
    scores: str = "logits",
    maps: Sequence[str] = (),
) -> Evaluation:
    """Returns the loss with losses per image and class, confusion, metrics, calibration and maps.

    Arguments, meaning and errors are those of `spatial_cross_entropy`. On a GPU the call waits for
    the device, because it copies the results, except for the maps, to the host.

    Args:
        logits: [N, C, *spatial]; scores [N, C, h, w] with an upsampling.
        labels: as in `spatial_cross_entropy`, like the arguments that follow.
        class_weight: as there.
        pixel_weight: as there.
        ignore_index: as there.
        label_smoothing: as there.
        temperature: as there.
        normalization: as there.
        check_labels: as there.
        upsampling: None, or how the scores become as large as the labels, as in
            `upsampled_cross_entropy`. The maps have the labels' size.
        scores: "probabilities" if the logits are probabilities, as in `probability_cross_entropy`.
            The loss is then that function's. The logarithms take as much memory again.
        maps: names of the maps to return: prediction, nll, confidence, entropy, top_classes,
            top_probabilities.

    >>> evaluation = evaluate(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.uint8))
    >>> evaluation.diagnosis.state
    'at_chance'
    """
    if isinstance(maps, str) or any(name not in MAPS for name in maps):
        raise InvalidInput("maps", f"names among {', '.join(MAPS)}", repr(maps))
    options = loss_options(
        ignore_index, label_smoothing, temperature, normalization, check_labels, upsampling
    )
    check_scores(scores, options)
    inputs = check_inputs(logits, labels, class_weight, pixel_weight, options).resolve_neg()
    check_memory(logits=logits, labels=labels, class_weight=class_weight, pixel_weight=pixel_weight)
    _labels.raise_deferred()
    sums: EvaluationSums
    if scores == "probabilities":
        sums = _sums_of_probabilities(inputs, maps)
    else:
        sums = backend_of(logits).evaluate(inputs, _empty_maps(inputs, maps))
    valid_pixels = int(sums.valid_pixels.sum())
    total = divisor(
        normalization,
        valid_pixels=valid_pixels,
        weight_sum=None if sums.weight is None else float(sums.weight.sum()),
        num_images=inputs.labels.shape[0],
        num_pixels=inputs.labels.numel(),
    )
    return Evaluation(
        loss=float(sums.loss.sum()) / total,
        normalization=normalization,
        divisor=total,
        valid_pixels=valid_pixels,
        ignored_pixels=inputs.labels.numel() - valid_pixels,
        uniform_loss=math.log(inputs.num_classes),
        confusion=sums.confusion,
        non_finite_pixels=sums.num_non_finite,
        maps={name: sums.maps[name] for name in maps},
        _ignored_values=options.ignored_values,
        _sums=sums,
    )


def _empty_maps(inputs: LossInputs, names: Sequence[str]) -> dict[str, Tensor]:
    return empty_maps(names, inputs.num_classes, inputs.labels.shape, inputs.logits.device)


def _sums_of_probabilities(inputs: LossInputs, maps: Sequence[str]) -> EvaluationSums:
    """Returns the sums of probabilities, whose logarithms are logits with the same softmax.

    Their nll is -ln p. That of the logits would be divided by the sum of the probabilities, which
    is 1 only up to rounding.
    """
    logits = inputs.logits.to(loss_dtype(inputs.logits)).log()
    of_logits = replace(inputs, logits=logits)
    sums: EvaluationSums = backend_of(logits).evaluate(of_logits, _empty_maps(inputs, maps))
    check_probabilities(inputs)
    targets = targets_of(inputs)
    nll = targets.nll
    if "nll" in maps:
        sums.maps["nll"].copy_(nll)
    by_class = torch.bincount(
        targets.classes.flatten().cpu(),
        weights=nll.double().flatten().cpu(),
        minlength=inputs.num_classes,
    )
    terms = nll * targets.weight
    return replace(
        sums,
        loss=terms.unsqueeze(1).flatten(1).sum(dim=1, dtype=torch.float64).cpu(),
        class_nll=by_class,
        num_saturated=int((nll > SATURATED_NLL).sum()),
    )


def _calibration(sums: EvaluationSums) -> Calibration:
    pixels, correct = sums.bin_pixels.tolist(), sums.bin_correct.tolist()
    confidence = sums.bin_confidence.tolist()
    num_bins, total = len(pixels), sum(pixels)
    bins = tuple(
        CalibrationBin(
            lower=k / num_bins,
            upper=(k + 1) / num_bins,
            pixels=pixels[k],
            accuracy=correct[k] / pixels[k] if pixels[k] else None,
            confidence=confidence[k] / pixels[k] if pixels[k] else None,
        )
        for k in range(num_bins)
    )
    gaps = (abs(right - sure) for right, sure in zip(correct, confidence, strict=True))
    return Calibration(sum(gaps) / total if total else None, bins)
