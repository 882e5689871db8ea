"""The operations of the service and the command line: `(Inputs, options) -> result`.

An operation checks which inputs it has and calls `seg_loss`, which computes on the device of the
tensors. Gradients and maps are on that device too. For a picture it also prepares the arrays that
`images.render` draws. `results` turns results into JSON fields and files.

For logits with NaN or infinity, operations return results that say so. The command line shows them;
the service calls `require_finite` and answers with an error. For finite logits, options and weights
with which the result is not finite, operations raise.
"""

import math
from dataclasses import replace
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import seg_loss
from seg_loss import Evaluation, InvalidInput
from seg_loss.constants import LABEL_DTYPES, MAPS
from seg_loss.metrics import confusion_matrix
from seg_loss.upsampling import Size, Upsampling

from . import label_spaces
from .errors import IllPosed, TooLarge, dtype_name
from .formats import npy, png
from .images import render, resample
from .images.error_map import is_one_of
from .images.kinds import KINDS
from .images.layers import Layers
from .images.palettes import PALETTES, ChosenPalette, Palette, choose_palette, find_class
from .images.style import Style
from .inputs import MAX_UPSAMPLED_SIDE, Inputs, NetworkOutput, class_indices, representable
from .options import (
    LAYOUTS,
    UPSAMPLINGS,
    EvaluateOptions,
    GradientOptions,
    LossOptions,
    PredictionOptions,
    PredictOptions,
    VisualizeOptions,
)
from .results import (
    LABEL_MAP_BYTES,
    EvaluationResult,
    GradientResult,
    LabelMapEvaluation,
    PictureResult,
    PredictionResult,
    Result,
    max_json_bytes,
)
from .settings import PREFIX, Settings, counted_pixels

COUNTED_BYTES = 24
"""The most bytes that a pixel takes while it is counted by class: those of an error message."""

_NO_NETWORK = f"No network is served: set {PREFIX}MODEL to a checkpoint, or send logits."

PICTURE_BYTES = 56
"""The most bytes that a pixel takes while its picture is resampled, drawn and encoded as a PNG."""

CANVAS_BYTES = 12
"""The most bytes that a pixel of a canvas with panels or a legend takes, and in its PNG."""


def loss(inputs: Inputs, options: LossOptions) -> EvaluationResult:
    """Returns the loss of logits and labels, with all that `seg_loss.evaluate` returns but maps."""
    return _evaluate(inputs, options, maps=())


def evaluate(inputs: Inputs, options: EvaluateOptions) -> EvaluationResult:
    """Returns the loss of logits and labels, with metrics and the maps asked for.

    With a prediction, a label map, in place of logits, there is no loss. A photo in place of logits
    has those of the network that is served.
    """
    if inputs.prediction is not None:
        return _evaluate_label_map(inputs, options, inputs.prediction)
    if inputs.logits is None or inputs.labels is None:
        got = " and ".join(inputs.names) or "neither"
        needs_network = inputs.labels is not None and inputs.image is not None
        fix = _NO_NETWORK if needs_network else ""
        raise IllPosed("inputs", "labels, and logits or a prediction", got, fix)
    _check_num_classes(options, inputs.logits.shape[1], "the logits")
    return _evaluate(inputs, options, maps=options.maps, absent=options.absent)


def gradient(inputs: Inputs, options: GradientOptions) -> GradientResult:
    """Returns the loss and its gradient in the logits or probabilities, times `loss_weight`."""
    logits, labels = _logits_and_labels(inputs)
    loss, gradient = seg_loss.loss_and_gradient(
        logits, labels, inputs.class_weight, **_loss_arguments(inputs, options)
    )
    value = float(loss)
    if options.loss_weight != 1:
        gradient *= options.loss_weight
    if math.isfinite(value):
        _check_gradient(inputs, options, gradient)
    else:
        _check_overflow(inputs, options)
    gradient = gradient.movedim(1, LAYOUTS[options.layout])
    return GradientResult(
        gradient, value, options.normalization, options.loss_weight, inputs.warnings
    )


def visualize(inputs: Inputs, options: VisualizeOptions) -> PictureResult:
    """Returns a picture of one image."""
    inputs = _one_image(inputs, options)
    palette = palette_for(inputs, options).palette
    labels = _indices("labels", inputs.labels)
    prediction = _indices("prediction", inputs.prediction)
    tensors, is_finite = dict[str, Tensor](), True
    names = _maps_of_picture(inputs, options)
    if names:
        tensors, is_finite = _maps_for_picture(inputs, options, names)
    maps = {name: tensor[0].cpu().numpy() for name, tensor in tensors.items()}
    if prediction is None:
        prediction = maps.get("prediction")
    num_classes = palette.num_classes
    if inputs.logits is not None:
        num_classes = inputs.logits.shape[1]
    layers = Layers(
        palette=palette,
        num_classes=num_classes,
        labels=labels,
        prediction=prediction,
        prediction_source="logits" if inputs.prediction is None else "prediction",
        nll=maps.get("nll"),
        confidence=maps.get("confidence"),
        entropy=maps.get("entropy"),
        photo=inputs.image,
        valid=None if labels is None else ~is_one_of(labels, options.ignore_index),
        class_names=palette.class_names,
    )
    style = Style(
        alpha=options.alpha,
        contour_px=options.contour_px,
        border_px=options.border_px,
        legend=options.legend,
        scale=options.scale,
        cmap=options.cmap,
        classes=_chosen_classes(palette, options),
        ignore=options.ignore,
    )
    picture = render.draw(options.kind, resample.resampled(layers, options.resize), style)
    return PictureResult(
        png.encode(picture.image),
        (*inputs.warnings, *picture.warnings),
        is_finite,
        picture.scale,
        picture.unit,
    )


def predict(inputs: Inputs, options: PredictOptions) -> PredictionResult:
    """Returns the classes of logits and the maps asked for; with labels, also loss and metrics."""
    logits = inputs.logits
    if logits is None:
        got = " and ".join(inputs.names) or "neither"
        fix = "" if inputs.image is None else _NO_NETWORK
        raise IllPosed("inputs", "logits, or an image where a network is served", got, fix)
    _check_size_of_image(inputs, options, logits)
    names = tuple(dict.fromkeys(("prediction", *options.maps)))
    evaluation, advice = None, list[str]()
    if inputs.labels is not None:
        _check_size_of_labels(inputs.labels, options)
        evaluation = _evaluation(inputs, options, logits, inputs.labels, names)
        advice = label_spaces.shift_advice(evaluation.confusion.cpu().numpy())
        maps, is_finite = evaluation.maps, evaluation.non_finite_pixels == 0
    elif options.scores == "probabilities":
        of_all_pixels = _evaluate_without_labels(inputs, options, logits, names)
        maps, is_finite = of_all_pixels.maps, of_all_pixels.non_finite_pixels == 0
    else:
        is_finite = _have_softmax(inputs, options, logits)
        maps = _predict(inputs, options, logits, names)
    return PredictionResult(
        maps=maps,
        names=options.maps,
        num_classes=logits.shape[1],
        palette=palette_for(inputs, options),
        evaluation=evaluation,
        reports=inputs.reports,
        warnings=(*inputs.warnings, *advice),
        is_finite=is_finite,
    )


def palette_for(
    inputs: Inputs, options: LossOptions, num_classes: int | None = None
) -> ChosenPalette:
    """Returns the palette of pictures and answers, by the rule of `choose_palette`.

    Args:
        inputs: the inputs.
        options: the options.
        num_classes: C, if the request names it.
    """
    of_option = None if options.palette is None else PALETTES[options.palette]
    if inputs.logits is not None and inputs.logits.ndim > 1:
        num_classes = inputs.logits.shape[1]
    space = options.label_space
    if space == "raw" and isinstance(options, PredictionOptions):
        space = options.prediction_space
    return choose_palette(
        option=inputs.palette or of_option,
        network_names=() if inputs.network is None else inputs.network.class_names,
        files=inputs.file_palettes,
        num_classes=num_classes,
        label_space=space,
        largest_value=inputs.largest_class,
    )


def needs_network(inputs: Inputs, options: LossOptions) -> bool:
    """Returns whether the logits of a request are those of a network for its photo."""
    if inputs.image is None or inputs.logits is not None:
        return False
    if isinstance(options, VisualizeOptions):
        name = KINDS[options.kind].map
        if options.kind in ("error", "nll") and inputs.labels is None:
            return False  # an error of `render`
        shows_labels = options.kind == "overlay" and inputs.labels is not None
        has_prediction = name == "prediction" and inputs.prediction is not None
        return name is not None and not shows_labels and not has_prediction
    if isinstance(options, EvaluateOptions):
        return inputs.labels is not None and inputs.prediction is None
    return isinstance(options, PredictOptions)


def check_photo(inputs: Inputs, options: LossOptions, settings: Settings, num_classes: int) -> None:
    """Checks a request whose logits a network will compute, before it does.

    Args:
        inputs: the photo, and labels if there are any.
        options: the options.
        settings: the limits.
        num_classes: C of the network.

    Raises:
        TooLarge: if the photo has more pixels, rows, columns or upsampled logits than allowed.
        IllPosed: if options about logits are set, or the labels have another size.
    """
    assert inputs.image is not None
    height, width = inputs.image.shape[:2]
    num_pixels = counted_pixels(height, width)
    padded = "" if num_pixels == height * width else f", counted as {num_pixels}"
    got = f"{height} x {width} = {height * width}{padded}"
    for count, limit, unit, setting in (
        (num_pixels, settings.max_photo_pixels, "pixels for a network", "MAX_PHOTO_PIXELS"),
        (max(height, width), MAX_UPSAMPLED_SIDE, "rows and columns", None),
        (
            num_classes * height * width,
            settings.max_upsampled_logits,
            f"upsampled logits of {num_classes} classes",
            "MAX_UPSAMPLED_LOGITS",
        ),
    ):
        if count > limit:
            expected = f"at most {limit} {unit}"
            source = f" The limit is {PREFIX}{setting}." if setting else ""
            raise TooLarge("image", expected, got, f"Send a smaller photo.{source}", limit=limit)
    check_options_of_photo(options)
    if isinstance(options, EvaluateOptions):
        _check_num_classes(options, num_classes, "the network")
    if inputs.labels is None:
        return
    shape = tuple(inputs.labels.shape)
    if shape[-2:] != (height, width):
        expected = f"{height} x {width} (height x width) to match the image"
        raise IllPosed("labels", expected, " x ".join(map(str, shape[-2:])) or "no axes")
    if shape[:-2] not in ((1,), (1, 1)):
        raise IllPosed("labels", "[H,W] or [1,H,W], those of one image", f"shape {shape}")


def _check_num_classes(options: EvaluateOptions, num_classes: int, owner: str) -> None:
    """Checks that the option, where it is set, is the number of classes of logits or a network.

    Raises:
        IllPosed: if it is another one.
    """
    if options.num_classes not in (None, num_classes):
        expected = f"{num_classes}, the classes of {owner}"
        fix = "Leave it out: it is for a prediction in place of logits."
        raise IllPosed("num_classes", expected, f"{options.num_classes}", fix)


def check_options_of_photo(options: LossOptions) -> None:
    """Checks that no option describes scores, which come from a network.

    Raises:
        IllPosed: if one does.
    """
    if options.upsampling != "none":
        expected = "none with a photo, since the network has its own"
        raise IllPosed("upsampling", expected, options.upsampling)
    if options.scores != "logits":
        raise IllPosed("scores", "logits with a photo, which is no scores", options.scores)
    if isinstance(options, PredictOptions) and options.size is not None:
        got = "{} x {}".format(*options.size)
        raise IllPosed("size", "none with a photo, whose maps have its size", got)


def with_scores(
    inputs: Inputs,
    options: LossOptions,
    scores: Tensor,
    upsampling: Upsampling | None,
    class_names: tuple[str, ...],
) -> Inputs:
    """Returns the inputs with the scores of a network for their photo as logits.

    Raises:
        IllPosed: if labels are invalid, and a request can name what they look like.
    """
    advice: list[str] = []
    if inputs.labels is not None and dtype_name(inputs.labels.dtype) in LABEL_DTYPES:
        space = options.label_space if "label_space" in options.model_fields_set else ""
        advice = label_spaces.advice_for(
            inputs.labels.numpy(), scores.shape[1], options.ignore_index, space
        )
    network = NetworkOutput(upsampling, class_names)
    warnings = (*inputs.warnings, *advice)
    return replace(inputs, logits=scores, network=network, warnings=warnings)


def working_bytes(inputs: Inputs, options: LossOptions, device: torch.device) -> int:
    """Returns the most bytes that an operation and its result need beside the inputs, on a device.

    With an upsampling or many classes they can be many more than the bytes of the body: see
    `seg_loss.scratch_bytes` and `results.max_json_bytes`.
    """
    upsampling = None if _size(inputs, options) is None else _upsampling(inputs, options)
    scratch = 0
    if upsampling is not None and inputs.logits is not None:
        # A tensor like the logits on the device, of one element: only its shape matters.
        logits = inputs.logits.new_empty((), device=device).expand(inputs.logits.shape)
        size = _upsampled_size(inputs, options)
        scratch = seg_loss.scratch_bytes(logits, size, upsampling=upsampling)
    on_cpu = _gradient_bytes(inputs, options) if device.type == "cpu" else 0
    of_result = _evaluation_bytes(inputs, options) + _picture_bytes(inputs, options)
    of_result += _label_map_bytes(inputs, options) + _counted_bytes(inputs)
    if device.type != "cpu":
        of_result += _copied_labels_bytes(inputs, options)
    of_inputs = scratch + _logarithm_bytes(inputs, options)
    return of_inputs + on_cpu + _map_bytes(inputs, options) + of_result


def tensor_bytes(inputs: Inputs, options: LossOptions) -> int:
    """Returns the bytes of all tensors that a device must hold at a time: inputs and results."""
    tensors = list(inputs.tensors_of_loss.values())
    if isinstance(options, GradientOptions) and inputs.logits is not None:
        tensors.append(inputs.logits)  # the gradient is as large
    num_bytes = sum(tensor.nbytes for tensor in tensors)
    return num_bytes + _logarithm_bytes(inputs, options) + _map_bytes(inputs, options)


def require_finite(inputs: Inputs, options: LossOptions, result: Result) -> None:
    """Raises if the logits of a valid pixel hold NaN or +inf, or are all -inf.

    Without labels, all pixels of a prediction are valid. The search reads the logits once more, and
    only if the result is not finite.

    Raises:
        seg_loss.InvalidInput: with the number of such pixels, and the index of the first.
    """
    if isinstance(options, VisualizeOptions):
        inputs = _one_image(inputs, options)
    labels, ignore_index = inputs.labels, options.ignore_index
    if labels is None and isinstance(result, PredictionResult) and inputs.logits is not None:
        labels, ignore_index = _no_labels(inputs, options, inputs.logits), ()
    if not result.is_finite and inputs.logits is not None and labels is not None:
        seg_loss.require_finite(
            inputs.logits,
            labels,
            ignore_index=ignore_index,
            upsampling=_upsampling(inputs, options),
        )


def _evaluate(
    inputs: Inputs, options: LossOptions, maps: tuple[str, ...], absent: str = "skip"
) -> EvaluationResult:
    logits, labels = _logits_and_labels(inputs)
    computed = tuple(name for name in maps if name in MAPS)
    evaluation = _evaluation(inputs, options, logits, labels, computed)
    if "labels" in maps:
        of_labels = {"labels": _without_class_axis(labels, logits)}
        evaluation = replace(evaluation, maps=evaluation.maps | of_labels)
    advice = label_spaces.shift_advice(evaluation.confusion.cpu().numpy())
    return EvaluationResult(
        evaluation=evaluation,
        reports=inputs.reports,
        palette=palette_for(inputs, options),
        warnings=(*inputs.warnings, *advice),
        ignore_index=options.ignore_index,
        absent=absent,
    )


def _evaluate_label_map(
    inputs: Inputs, options: EvaluateOptions, prediction: Tensor
) -> EvaluationResult:
    """Returns the metrics of a prediction that has one class per pixel, and no loss.

    Raises:
        IllPosed: if there are logits too or no labels, or a map is asked for that needs logits.
        seg_loss.InvalidInput: if sizes differ, or a value at a pixel that counts is no class.
    """
    if inputs.logits is not None:
        fix = "Leave one out: a request evaluates one of them."
        raise IllPosed("inputs", "logits or prediction", "logits and prediction", fix)
    if inputs.labels is None:
        raise IllPosed("inputs", "labels too", " and ".join(inputs.names))
    available = ("prediction", "labels")
    missing = [name for name in options.maps if name not in available]
    if missing:
        expected = f"some of {', '.join(available)} for a prediction without logits"
        raise IllPosed("maps", expected, ", ".join(missing), "Send logits to get them.")
    labels = class_indices("labels", inputs.labels)
    prediction = class_indices("prediction", prediction)
    num_classes = inputs.num_classes
    assert num_classes is not None
    try:
        confusion = confusion_matrix(
            prediction, labels, num_classes, ignore_index=options.ignore_index
        )
    except InvalidInput as error:
        fix = label_spaces.prediction_fix(prediction.numpy(), num_classes)
        if error.where != "prediction" or not fix:
            raise
        raise IllPosed(error.where, error.expected, error.got, fix) from None
    valid = torch.ones_like(labels, dtype=torch.bool)
    for value in representable(options.ignore_index, labels.dtype):
        valid &= labels != value
    maps = {"prediction": prediction, "labels": labels}
    evaluation = LabelMapEvaluation(
        normalization=options.normalization,
        valid_pixels_by_image=tuple(valid.reshape(len(valid), -1).sum(1).tolist()),
        num_pixels=labels.numel(),
        confusion=confusion,
        maps={name: maps[name] for name in options.maps},
    )
    names = label_spaces.SPACE_OPTIONS.items()
    unnamed = [name for name, option in names if option not in options.model_fields_set]
    advice = label_spaces.agreement_advice(confusion.numpy(), unnamed)
    warnings = [*inputs.warnings, *(advice or label_spaces.shift_advice(confusion.numpy()))]
    weights = [name for name in ("class_weight", "pixel_weight") if name in inputs.names]
    warnings += [f"{name}: a prediction has no loss that it could weight." for name in weights]
    return EvaluationResult(
        evaluation=evaluation,
        reports=inputs.reports,
        # A number that comes from the values chooses no palette: it would not be that of a picture.
        palette=palette_for(inputs, options, options.num_classes),
        warnings=tuple(warnings),
        ignore_index=options.ignore_index,
        absent=options.absent,
    )


def _without_class_axis(labels: Tensor, logits: Tensor) -> Tensor:
    """Returns labels [N,*spatial] from the same or [N,1,*spatial]."""
    return labels[:, 0] if labels.ndim == logits.ndim else labels


def _evaluation(
    inputs: Inputs, options: LossOptions, logits: Tensor, labels: Tensor, maps: tuple[str, ...]
) -> Evaluation:
    evaluation = seg_loss.evaluate(
        logits, labels, inputs.class_weight, **_loss_arguments(inputs, options), maps=maps
    )
    if not math.isfinite(evaluation.loss):
        _check_overflow(inputs, options)
    return evaluation


def _check_overflow(inputs: Inputs, options: LossOptions) -> None:
    """Raises if a loss that is not finite comes from logits that are.

    Logits with NaN or +inf, or -inf in the true class, have such a loss by definition.

    Raises:
        IllPosed: if the logits overflow when they are divided by the temperature and subtracted, or
            the loss when it is multiplied by the weights.
    """
    if options.scores == "probabilities":
        return  # the loss of a probability of 0 is infinite
    logits, _ = _logits_and_labels(inputs)
    bounds = [float(bound) for bound in logits.aminmax()]
    # Infinities and NaN are rare here, so that the logits are copied only if there are some.
    finite = bounds if all(map(math.isfinite, bounds)) else _finite_bounds(logits)
    _check_temperature(logits, finite, options)
    if finite is bounds:
        raise IllPosed("loss", "a finite number", "an overflow", "Use smaller weights.")


def _check_temperature(logits: Tensor, bounds: list[float], options: LossOptions) -> None:
    """Checks that logits with these bounds can be divided by the temperature and subtracted."""
    limit = torch.finfo(torch.promote_types(logits.dtype, torch.float32)).max
    if (bounds[1] - bounds[0]) / options.temperature > limit:
        raise IllPosed(
            "temperature",
            f"logits / temperature within {limit:.3g}",
            f"logits from {bounds[0]:.3g} to {bounds[1]:.3g}, temperature {options.temperature:g}",
        )


def _finite_bounds(logits: Tensor) -> list[float]:
    finite = logits[logits.isfinite()]
    return [float(bound) for bound in finite.aminmax()] if finite.numel() else [0.0, 0.0]


def _check_gradient(inputs: Inputs, options: GradientOptions, gradient: Tensor) -> None:
    """Raises if the gradient of a finite loss is not finite.

    Raises:
        IllPosed: if the dtype of the gradient cannot hold it.
    """
    is_weighted = inputs.class_weight is not None or inputs.pixel_weight is not None
    # The gradient of a score that is upsampled is a sum over several pixels, and that of a
    # probability is divided by it.
    may_be_large = is_weighted or options.upsampling != "none" or options.scores == "probabilities"
    if abs(options.loss_weight) <= 1 and options.temperature >= 1 and not may_be_large:
        return  # the softmax minus 1 or 0, divided by at least 1
    if not all(bound.isfinite() for bound in gradient.aminmax()):
        raise IllPosed(
            "gradient",
            f"numbers that {dtype_name(gradient.dtype)} holds",
            "an overflow",
            "Use a smaller loss_weight or smaller weights, a larger temperature, or another dtype.",
        )


def _size(inputs: Inputs, options: LossOptions) -> tuple[int, ...] | None:
    """Returns the size of the maps; None if the operation computes nothing, or raises."""
    if inputs.logits is None:
        return None
    if not _is_upsampled(inputs, options):
        return tuple(inputs.logits.shape[2:])
    if _size_option(options) is None and inputs.labels is None and inputs.image is None:
        return None
    return _upsampled_size(inputs, options)


def _logarithm_bytes(inputs: Inputs, options: LossOptions) -> int:
    """Returns the bytes of the logarithms of probabilities, which are float32 or float64."""
    if options.scores == "logits" or inputs.logits is None:
        return 0
    return max(4, inputs.logits.itemsize) * inputs.logits.numel()


def _map_bytes(inputs: Inputs, options: LossOptions) -> int:
    size = _size(inputs, options)
    if size is None or inputs.logits is None:
        return 0
    return 4 * _num_maps(inputs, options) * len(inputs.logits) * math.prod(size)


def _gradient_bytes(inputs: Inputs, options: LossOptions) -> int:
    """Returns the bytes of a gradient, and of its copy in float32 if NPY has no such dtype."""
    logits = inputs.logits
    if logits is None or not isinstance(options, GradientOptions):
        return 0
    return logits.nbytes + (0 if npy.has_dtype(logits.dtype) else 4 * logits.numel())


def _evaluation_bytes(inputs: Inputs, options: LossOptions) -> int:
    """Returns the bytes of the confusion matrix and of the JSON that is made of it."""
    logits, labels = inputs.logits, inputs.labels
    if labels is None or isinstance(options, GradientOptions):
        return 0
    if logits is not None:
        num_images, num_classes = logits.shape[:2]
    elif inputs.num_classes is not None:
        num_images, num_classes = len(labels), inputs.num_classes
    else:
        return 0
    matrix = 8 * num_classes * num_classes
    if not isinstance(options, (EvaluateOptions, PredictOptions)):
        return 2 * matrix  # that of the threads, and their sum
    text = max_json_bytes(num_images, num_classes, labels.numel())
    # The metrics are computed with float64. Metadata are made of a copy of the JSON.
    return 3 * matrix + text * (3 if options.maps else 1)


def _picture_bytes(inputs: Inputs, options: LossOptions) -> int:
    """Returns the bytes that a picture takes while it is drawn."""
    if not isinstance(options, VisualizeOptions):
        return 0
    tensors = (inputs.labels, inputs.prediction, inputs.logits)
    sizes = [tuple(tensor.shape[-2:]) for tensor in tensors if tensor is not None]
    if inputs.image is not None:
        sizes.append(inputs.image.shape[:2])
    # Tensors with fewer axes are an error of the operation.
    sizes = [size for size in sizes if len(size) == 2]
    height, width = max(sizes, key=math.prod, default=(0, 0))
    canvas = 0
    if height and width:
        canvas = render.canvas_pixels(options.kind, options.legend, height, width)
    return PICTURE_BYTES * height * width + CANVAS_BYTES * canvas


def _label_map_bytes(inputs: Inputs, options: LossOptions) -> int:
    """Returns the bytes that a label map takes while it becomes a PNG."""
    size = _size(inputs, options)
    if not isinstance(options, PredictOptions) or inputs.logits is None or size is None:
        return 0
    return LABEL_MAP_BYTES * len(inputs.logits) * math.prod(size)


def _counted_bytes(inputs: Inputs) -> int:
    """Returns the bytes that a prediction takes while its pixels are counted by class."""
    if inputs.num_classes is None or inputs.labels is None:
        return 0
    return COUNTED_BYTES * inputs.labels.numel()


def _copied_labels_bytes(inputs: Inputs, options: LossOptions) -> int:
    """Returns the bytes of the map `labels`, which comes back from a device."""
    if not isinstance(options, EvaluateOptions) or "labels" not in options.maps:
        return 0
    return inputs.labels.nbytes if inputs.labels is not None and inputs.logits is not None else 0


def _num_maps(inputs: Inputs, options: LossOptions) -> int:
    """Returns the number of maps [N,H,W] that are computed, counting [N,3,H,W] as three."""
    if isinstance(options, VisualizeOptions):
        return len(_maps_of_picture(replace(inputs, prediction=None), options))
    if isinstance(options, (EvaluateOptions, PredictOptions)):
        maps = {"prediction"} if isinstance(options, PredictOptions) else set()
        maps |= set(options.maps)
        maps.discard("labels")  # an input
        # The two maps top_* are always computed together.
        names = {name for name in maps if not name.startswith("top_")}
        return len(names) + (6 if names != maps else 0)
    return 0


class _LossArguments(TypedDict):
    """The keyword arguments that the losses of `seg_loss` share."""

    pixel_weight: Tensor | None
    ignore_index: tuple[int, ...]
    label_smoothing: float
    temperature: float
    normalization: str
    upsampling: Upsampling | None
    scores: str


def _loss_arguments(inputs: Inputs, options: LossOptions) -> _LossArguments:
    return {
        "pixel_weight": inputs.pixel_weight,
        "ignore_index": options.ignore_index,
        "label_smoothing": options.label_smoothing,
        "temperature": options.temperature,
        "normalization": options.normalization,
        "upsampling": _upsampling(inputs, options),
        "scores": options.scores,
    }


def _upsampling(inputs: Inputs, options: LossOptions) -> Upsampling | None:
    if inputs.network is not None:
        return inputs.network.upsampling
    name = options.upsampling
    if name == "none" and _size_option(options) is not None:
        name = "bilinear"
    upsampling_for = UPSAMPLINGS[name]
    if upsampling_for is None or inputs.logits is None:
        return None
    _, _, height, width = inputs.logits.shape
    try:
        return upsampling_for((height, width), _upsampled_size(inputs, options))
    except InvalidInput as error:
        if inputs.labels is not None and _size_option(options) is None:
            raise
        # The size is that of the option or the image, which the library does not know.
        source = "image" if _size_option(options) is None else "size"
        expected = error.expected.replace("labels", source)
        raise IllPosed(error.where, expected, error.got, error.fix) from None


def _is_upsampled(inputs: Inputs, options: LossOptions) -> bool:
    if inputs.network is not None:
        return inputs.network.upsampling is not None
    return options.upsampling != "none" or _size_option(options) is not None


def _size_option(options: LossOptions) -> Size | None:
    return options.size if isinstance(options, PredictOptions) else None


def _upsampled_size(inputs: Inputs, options: LossOptions) -> Size:
    """Returns height and width of the option, or else of the labels, or else of the image."""
    size = _size_option(options)
    if size is not None:
        return size
    if inputs.labels is not None:
        return inputs.labels.shape[-2], inputs.labels.shape[-1]
    if inputs.image is not None:
        return inputs.image.shape[:2]
    expected = "labels or image too, for the size that logits are upsampled to"
    fix = "Or name it: size=512,1024." if isinstance(options, PredictOptions) else ""
    raise IllPosed("inputs", expected, " and ".join(inputs.names), fix)


def _check_size_of_labels(labels: Tensor, options: PredictOptions) -> None:
    height, width = labels.shape[-2:] if labels.ndim > 1 else (0, 0)
    if options.size is not None and options.size != (height, width):
        got = "{} x {}".format(*options.size)
        raise IllPosed("size", f"{height} x {width} (height x width) to match the labels", got)


def _check_size_of_image(inputs: Inputs, options: PredictOptions, logits: Tensor) -> None:
    """Checks that an image beside logits, which are not upsampled to its size, has that size."""
    if inputs.image is None or inputs.network is not None:
        return
    is_upsampled = _is_upsampled(inputs, options)
    size = _upsampled_size(inputs, options) if is_upsampled else tuple(logits.shape[2:])
    if size == inputs.image.shape[:2]:
        return
    height, width = inputs.image.shape[:2]
    expected = f"{' x '.join(map(str, size)) or 'no axes'} (height x width) to match the maps"
    fix = "" if is_upsampled else "Scores of lower resolution? Use upsampling=bilinear."
    raise IllPosed("image", expected, f"{height} x {width}", fix)


def _predict(
    inputs: Inputs, options: LossOptions, logits: Tensor, names: tuple[str, ...]
) -> dict[str, Tensor]:
    upsampling = _upsampling(inputs, options)
    try:
        return seg_loss.predict(
            logits,
            size=None if upsampling is None else _upsampled_size(inputs, options),
            upsampling=upsampling,
            maps=names,
            temperature=options.temperature,
        )
    except InvalidInput as error:
        # The library calls them scores.
        raise error.renamed({"scores": "logits"}) from None


def _have_softmax(inputs: Inputs, options: LossOptions, logits: Tensor) -> bool:
    """Returns whether no pixel has logits with NaN or +inf, or that are all -inf.

    Raises:
        IllPosed: if finite logits overflow when they are divided by the temperature.
    """
    if not logits.is_floating_point():
        return True  # an error of `seg_loss`
    bounds = [float(bound) for bound in logits.aminmax()]
    if all(map(math.isfinite, bounds)):
        _check_temperature(logits, bounds, options)
        return True
    try:
        seg_loss.require_finite(
            logits,
            _no_labels(inputs, options, logits),
            ignore_index=(),
            upsampling=_upsampling(inputs, options),
        )
    except InvalidInput:
        return False
    return True


def _logits_and_labels(inputs: Inputs) -> tuple[Tensor, Tensor]:
    if inputs.logits is None or inputs.labels is None:
        got = " and ".join(inputs.names) or "neither"
        is_label_map = inputs.prediction is not None and inputs.labels is not None
        fix = "A prediction without logits has no loss: evaluate it." if is_label_map else ""
        raise IllPosed("inputs", "logits and labels", got, fix)
    return inputs.logits, inputs.labels


def _one_image(inputs: Inputs, options: VisualizeOptions) -> Inputs:
    """Returns the inputs with the image of the option `image_index`, as a batch of one.

    Without the option, the inputs are returned as they are.

    Raises:
        IllPosed: if a tensor has no image of that index.
    """
    index = options.image_index
    if index is None:
        return inputs
    names = ("logits", "labels", "pixel_weight", "prediction")
    tensors: dict[str, Tensor] = {
        name: getattr(inputs, name) for name in names if name in inputs.names
    }
    for name, tensor in tensors.items():
        num_images = len(tensor) if tensor.ndim else 0
        if index >= num_images:
            raise IllPosed("image_index", f"0...{num_images - 1}, the images of {name}", f"{index}")
    images = {name: tensor[index : index + 1] for name, tensor in tensors.items()}
    return replace(inputs, **images)  # type: ignore[arg-type]


def _choice_of_image(num_images: int) -> str:
    """Returns the fix for a batch where one image is expected."""
    return f"Choose one: image_index=0...{num_images - 1}." if num_images > 1 else ""


def _chosen_classes(palette: Palette, options: VisualizeOptions) -> tuple[int, ...] | None:
    if options.classes is None:
        return None
    return tuple(dict.fromkeys(find_class(palette, text) for text in options.classes))


def _maps_of_picture(inputs: Inputs, options: VisualizeOptions) -> tuple[str, ...]:
    """Returns the maps that a picture is drawn from, without a prediction that was sent."""
    kind = KINDS[options.kind]
    names = [] if kind.map is None else [kind.map]
    if kind.is_heat_map and (options.classes is not None or options.contour_px):
        names += ["prediction"] if inputs.labels is None else []
    return tuple(name for name in names if name != "prediction" or inputs.prediction is None)


def _maps_for_picture(
    inputs: Inputs, options: VisualizeOptions, names: tuple[str, ...]
) -> tuple[dict[str, Tensor], bool]:
    """Returns the maps of these names, and whether all valid pixels have a softmax.

    Without labels no pixel is valid. There is no map if none is possible.
    """
    logits, labels = inputs.logits, inputs.labels
    if logits is None or ("nll" in names and labels is None):
        return {}, True
    if logits.ndim != 4 or len(logits) != 1:
        expected = "[1,C,H,W], the logits of one image"
        fix = _choice_of_image(len(logits)) if logits.ndim == 4 else ""
        raise IllPosed("logits", expected, f"shape {tuple(logits.shape)}", fix)
    if labels is not None:
        evaluation = _evaluation(inputs, options, logits, labels, maps=names)
        return evaluation.maps, evaluation.non_finite_pixels == 0
    if options.scores == "logits":
        return _predict(inputs, options, logits, names), True
    return _evaluate_without_labels(inputs, options, logits, names).maps, True


def _evaluate_without_labels(
    inputs: Inputs, options: LossOptions, logits: Tensor, maps: tuple[str, ...]
) -> Evaluation:
    # Only the probabilities of valid pixels are checked.
    is_checked = options.scores == "probabilities"
    return seg_loss.evaluate(
        logits,
        _no_labels(inputs, options, logits),
        temperature=options.temperature,
        ignore_index=() if is_checked else 0,
        upsampling=_upsampling(inputs, options),
        scores=options.scores,
        maps=maps,
    )


def _no_labels(inputs: Inputs, options: LossOptions, logits: Tensor) -> Tensor:
    """Returns labels that are all 0, of the size of the maps."""
    is_upsampled = _upsampling(inputs, options) is not None
    size = _upsampled_size(inputs, options) if is_upsampled else tuple(logits.shape[2:])
    zero = torch.zeros((), dtype=torch.uint8, device=logits.device)
    return zero.expand(len(logits), *size)


def _indices(where: str, tensor: Tensor | None) -> npt.NDArray[np.integer] | None:
    """Returns class indices [H,W] from [1,H,W] or [1,1,H,W]."""
    if tensor is None:
        return None
    if dtype_name(tensor.dtype) not in LABEL_DTYPES:
        raise IllPosed(where, "class indices, which are integers", dtype_name(tensor.dtype))
    if tensor.ndim == 4 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim != 3 or len(tensor) != 1:
        fix = _choice_of_image(len(tensor)) if tensor.ndim == 3 else ""
        raise IllPosed(where, "[1,H,W], one image", f"shape {tuple(tensor.shape)}", fix)
    return tensor[0].cpu().numpy()
