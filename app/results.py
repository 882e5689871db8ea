"""The results of operations, and how they become JSON fields and files.

The command line and the service write the same fields and the same files. JSON has no NaN and no
infinity: `to_jsonable` replaces them by null.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace

from torch import Tensor

from seg_loss import Evaluation

from .formats import safetensors

BATCH_FIELDS = (
    "loss",
    "normalization",
    "divisor",
    "valid_pixels",
    "ignored_pixels",
    "uniform_loss",
)
"""Attributes of an `Evaluation` that are one value for the whole batch."""

LOSS_FIELDS = (*BATCH_FIELDS, "per_image", "per_class", "diagnosis")
"""Attributes of an `Evaluation` that are in the JSON object of `loss`."""

EVALUATION_FIELDS = (*LOSS_FIELDS, "confusion", "metrics", "calibration")
"""Attributes of an `Evaluation` that are in the JSON object of `evaluate`."""


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """The result of `loss` and of `evaluate`.

    Attributes:
        evaluation: the return value of `seg_loss.evaluate`.
        warnings: sentences about the inputs.
    """

    evaluation: Evaluation
    warnings: tuple[str, ...]

    @property
    def is_finite(self) -> bool:
        """Whether the logits of all valid pixels have a softmax."""
        return self.evaluation.non_finite_pixels == 0 and not math.isnan(self.evaluation.loss)


@dataclass(frozen=True, eq=False)
class GradientResult:
    """The result of `gradient`.

    Attributes:
        gradient: of the loss in the logits, times `loss_weight`; shape, layout and dtype of the
            logits that were sent.
        loss: the loss, without `loss_weight`; Caffe reports the loss of a layer in the same way.
        normalization: the option.
        loss_weight: the option.
        warnings: sentences about the inputs.
    """

    gradient: Tensor
    loss: float
    normalization: str
    loss_weight: float
    warnings: tuple[str, ...]

    @property
    def is_finite(self) -> bool:
        """Whether the logits of all valid pixels have a softmax."""
        return not math.isnan(self.loss)


@dataclass(frozen=True, eq=False)
class PictureResult:
    """The result of `visualize`.

    Attributes:
        png: a PNG file.
        warnings: sentences about the inputs.
        is_finite: whether the logits of all valid pixels have a softmax.
    """

    png: bytes
    warnings: tuple[str, ...]
    is_finite: bool


Result = EvaluationResult | GradientResult | PictureResult


def copied(result: Result, copy: Callable[[Tensor], Tensor]) -> Result:
    """Returns the result with copies of its gradient or maps, which may be on another device."""
    if isinstance(result, GradientResult):
        return replace(result, gradient=copy(result.gradient))
    if isinstance(result, EvaluationResult) and result.evaluation.maps:
        maps = {name: copy(tensor) for name, tensor in result.evaluation.maps.items()}
        return replace(result, evaluation=replace(result.evaluation, maps=maps))
    return result


def loss_fields(result: EvaluationResult) -> dict[str, object]:
    """Returns the JSON object of `loss`."""
    return _fields(result, LOSS_FIELDS)


def evaluation_fields(result: EvaluationResult) -> dict[str, object]:
    """Returns the JSON object of `evaluate`: all but the maps."""
    return _fields(result, EVALUATION_FIELDS)


def gradient_file(result: GradientResult) -> list[bytes | memoryview]:
    """Returns a safetensors file in chunks: tensor `gradient`, all else as text in the metadata."""
    metadata = {
        "loss": repr(result.loss),
        "normalization": result.normalization,
        "loss_weight": repr(result.loss_weight),
        "warnings": json.dumps(result.warnings),
    }
    return safetensors.encode({"gradient": result.gradient}, metadata)


def maps_file(result: EvaluationResult) -> list[bytes | memoryview]:
    """Returns a safetensors file in chunks: the maps, and the JSON object in the metadata."""
    metadata = {"evaluation": json_bytes(evaluation_fields(result)).decode()}
    return safetensors.encode(result.evaluation.maps, metadata)


def to_jsonable(value: object) -> object:
    """Returns dataclasses, tuples, integer tensors and numbers as `json.dumps` accepts them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Tensor):
        return value.tolist()
    if is_dataclass(value):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [to_jsonable(entry) for entry in value]
    return value


def json_bytes(value: object) -> bytes:
    """Returns JSON in UTF-8; the value comes from `to_jsonable`."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def _fields(result: EvaluationResult, names: tuple[str, ...]) -> dict[str, object]:
    values = {name: to_jsonable(getattr(result.evaluation, name)) for name in names}
    return {**values, "warnings": list(result.warnings)}
