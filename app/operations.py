"""What the service and the command line can do: `(Upload, options) -> result`, one function each.

No mathematics here: an operation says which inputs it needs, calls `seg_loss`, and for a picture
arranges what `app.pictures` draws. Results are frozen dataclasses; `app.answers` makes bytes of
them, `app.cli` tables.

Logits that are not finite give results that say so. The command line shows them; the service asks
`require_finite` first.
"""

import math
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import seg_loss
from seg_loss import Evaluation
from seg_loss.constants import LABEL_DTYPES
from seg_loss.upsampling import Size, Upsampling

from .errors import IllPosed, dtype_name
from .formats import png
from .images import render
from .images.palettes import PALETTES
from .images.render import KINDS, Layers
from .inputs import Upload
from .options import UPSAMPLINGS, EvaluateOptions, GradientOptions, LossOptions, VisualizeOptions
from .results import EvaluationResult, GradientResult, PictureResult, Result

DEFAULT_PALETTE = "voc"


def loss(upload: Upload, options: LossOptions) -> EvaluationResult:
    """The loss, with everything but maps that one read of the logits tells."""
    logits, labels = _logits_and_labels(upload)
    evaluation = seg_loss.evaluate(
        logits, labels, upload.class_weight, **_loss_options(upload, options)
    )
    return EvaluationResult(evaluation, upload.warnings)


def gradient(upload: Upload, options: GradientOptions) -> GradientResult:
    """The gradient of the loss in the logits."""
    logits, labels = _logits_and_labels(upload)
    value, gradient = seg_loss.loss_and_gradient(
        logits, labels, upload.class_weight, **_loss_options(upload, options)
    )
    if options.loss_weight != 1:
        gradient *= options.loss_weight
    return GradientResult(
        gradient, float(value), options.normalization, options.loss_weight, upload.warnings
    )


def evaluate(upload: Upload, options: EvaluateOptions) -> EvaluationResult:
    """The loss, the metrics, and the maps that are asked for."""
    logits, labels = _logits_and_labels(upload)
    evaluation = seg_loss.evaluate(
        logits, labels, upload.class_weight, **_loss_options(upload, options), maps=options.maps
    )
    return EvaluationResult(evaluation, upload.warnings)


def visualize(upload: Upload, options: VisualizeOptions) -> PictureResult:
    """A picture of one image."""
    palette = PALETTES[options.palette or DEFAULT_PALETTE]
    labels = _indices("labels", upload.labels)
    prediction = _indices("prediction", upload.prediction)
    evaluation = None
    if prediction is None or KINDS[options.kind].map != "prediction":
        evaluation = _evaluation_for(upload, options)
    drawn = {} if evaluation is None else evaluation.maps
    maps = {name: values[0].numpy() for name, values in drawn.items()}
    if prediction is None:
        prediction = maps.get("prediction")
    num_classes = len(palette.class_names)
    if upload.logits is not None:
        num_classes = upload.logits.shape[1]
    layers = Layers(
        palette=palette,
        num_classes=num_classes,
        labels=labels,
        prediction=prediction,
        nll=maps.get("nll"),
        confidence=maps.get("confidence"),
        entropy=maps.get("entropy"),
        photo=upload.image,
        valid=None if labels is None else ~np.isin(labels, _within(labels, options.ignore_index)),
        alpha=options.alpha,
    )
    is_finite = evaluation is None or evaluation.non_finite_pixels == 0
    return PictureResult(png.encode(render.draw(options.kind, layers)), upload.warnings, is_finite)


def working_bytes(upload: Upload, options: LossOptions) -> int:
    """The most memory that maps, and upsampling, take beside the body.

    With an upsampling a small body may have many pixels, long rows of nodes, or long tables.
    """
    logits = upload.logits
    has_size = upload.labels is not None or upload.image is not None
    if logits is None or (options.upsampling != "none" and not has_size):
        return 0  # there is nothing to compute, or it will be refused
    size, scratch = tuple(logits.shape[2:]), 0
    upsampling = _upsampling(upload, options)
    if upsampling is not None:
        size = _upsampled_size(upload)
        scratch = seg_loss.scratch_bytes(logits, size, upsampling=upsampling)
    return scratch + 4 * _num_maps(options) * len(logits) * math.prod(size)


def _num_maps(options: LossOptions) -> int:
    """Maps of the size of an image that are made for an answer."""
    if isinstance(options, VisualizeOptions):
        return int(KINDS[options.kind].map is not None)
    if isinstance(options, EvaluateOptions):
        # The two of `top_` are made together, three classes deep.
        names = {name for name in options.maps if not name.startswith("top_")}
        return len(names) + (6 if names != set(options.maps) else 0)
    return 0


def require_finite(upload: Upload, options: LossOptions, result: Result) -> None:
    """Refuse NaN and +inf at valid pixels, with their number and the first position.

    The search reads the logits once more, so it begins only when the result has shown them.

    Raises:
        seg_loss.InvalidInput: there are such logits.
    """
    if not result.is_finite and upload.logits is not None and upload.labels is not None:
        seg_loss.require_finite(
            upload.logits,
            upload.labels,
            ignore_index=options.ignore_index,
            upsampling=_upsampling(upload, options),
        )


class _LossOptions(TypedDict):
    """The keywords that every loss of `seg_loss` has."""

    pixel_weight: Tensor | None
    ignore_index: tuple[int, ...]
    label_smoothing: float
    temperature: float
    normalization: str
    upsampling: Upsampling | None


def _loss_options(upload: Upload, options: LossOptions) -> _LossOptions:
    return {
        "pixel_weight": upload.pixel_weight,
        "ignore_index": options.ignore_index,
        "label_smoothing": options.label_smoothing,
        "temperature": options.temperature,
        "normalization": options.normalization,
        "upsampling": _upsampling(upload, options),
    }


def _upsampling(upload: Upload, options: LossOptions) -> Upsampling | None:
    make = UPSAMPLINGS[options.upsampling]
    if make is None or upload.logits is None:
        return None
    _, _, height, width = upload.logits.shape
    return make((height, width), _upsampled_size(upload))


def _upsampled_size(upload: Upload) -> Size:
    """Height and width of the labels, or else of the image."""
    if upload.labels is not None:
        return upload.labels.shape[-2], upload.labels.shape[-1]
    if upload.image is not None:
        return upload.image.shape[:2]
    expected = "labels or image too, for the size that logits are upsampled to"
    raise IllPosed("body", expected, " and ".join(upload.names))


def _logits_and_labels(upload: Upload) -> tuple[Tensor, Tensor]:
    if upload.logits is None or upload.labels is None:
        got = " and ".join(upload.names) or "neither"
        raise IllPosed("body", "logits and labels", got)
    return upload.logits, upload.labels


def _evaluation_for(upload: Upload, options: VisualizeOptions) -> Evaluation | None:
    """The map that the picture needs, or None where it needs none or the inputs give none."""
    name, logits, labels = KINDS[options.kind].map, upload.logits, upload.labels
    if name is None or logits is None or (name == "nll" and labels is None):
        return None
    if logits.ndim != 4 or len(logits) != 1:
        expected = "[1,C,H,W], the logits of one image"
        raise IllPosed("logits", expected, f"shape {tuple(logits.shape)}")
    if labels is not None:
        return seg_loss.evaluate(
            logits, labels, upload.class_weight, **_loss_options(upload, options), maps=(name,)
        )
    upsampling = _upsampling(upload, options)
    size = logits.shape[2:] if upsampling is None else _upsampled_size(upload)
    nothing_valid = torch.full((1, 1, 1), 255, dtype=torch.uint8)
    return seg_loss.evaluate(
        logits,
        nothing_valid.expand(1, *size),
        temperature=options.temperature,
        ignore_index=255,
        upsampling=upsampling,
        maps=(name,),
    )


def _indices(where: str, tensor: Tensor | None) -> npt.NDArray[np.integer] | None:
    """One image of class indices [H,W] out of [1,H,W] or [1,1,H,W]."""
    if tensor is None:
        return None
    if dtype_name(tensor.dtype) not in LABEL_DTYPES:
        raise IllPosed(where, "class indices, which are integers", dtype_name(tensor.dtype))
    if tensor.ndim == 4 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim != 3 or len(tensor) != 1:
        raise IllPosed(where, "[1,H,W], one image", f"shape {tuple(tensor.shape)}")
    return tensor[0].numpy()


def _within(labels: npt.NDArray[np.integer], values: tuple[int, ...]) -> list[int]:
    """Those values that the labels can hold; NumPy would not compare the others rightly."""
    limits = np.iinfo(labels.dtype)
    return [value for value in values if limits.min <= value <= limits.max]
