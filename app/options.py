"""The options of a request: one model for each operation, one row for each option.

Options have the names of the library. `LossOptions` are those of every operation; subclasses add
their own. `parse` reads both query parameters and flags of the command line from text, so that they
have the same meaning and the same error messages.

In each row, `title` completes the sentence "expected ..."; `description` says what the option does.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

import seg_loss
from seg_loss.constants import ABSENT, MAPS, NORMALIZATIONS, PREDICTION_MAPS, SCORES

from .errors import IllPosed, Malformed, did_you_mean, safe_repr
from .formats.rasters import ENCODINGS, UNKNOWN_COLOURS, Encoding, UnknownColours
from .images.colormaps import COLORMAPS
from .images.kinds import KINDS
from .images.palettes import PALETTES
from .images.style import IGNORE_STYLES, LEGENDS, MAX_LINE_PIXELS, RESIZES, SCALE_NAMES
from .label_spaces import LABEL_SPACES

if TYPE_CHECKING:
    from seg_loss.upsampling import Size, Upsampling

# `seg_loss.Bilinear` loads torch. The lambdas keep that out of `seg-loss --help`.
UPSAMPLINGS: Mapping[str, Callable[["Size", "Size"], "Upsampling"] | None] = {
    "none": None,
    "bilinear": lambda scores, labels: seg_loss.Bilinear(),
    "bilinear_aligned": lambda scores, labels: seg_loss.Bilinear(align_corners=True),
    "fcn": lambda scores, labels: seg_loss.Deconvolution.of_fcn(scores, labels),
}
"""The upsampling for scores and labels of these heights and widths; None for no upsampling."""

LAYOUTS: Mapping[str, int] = {"nchw": 1, "nhwc": -1}
"""The axis of the classes in logits and their gradient."""

EVALUATE_MAPS = (*MAPS, "labels")
"""The maps that `evaluate` can return: those of the library, and the labels as they were read."""

MAX_CLASSES = 1 << 16
"""Largest value of `num_classes`. The settings have a limit of their own."""
MAX_IGNORED = 256
"""Largest number of values of `ignore_index`."""
MAX_TEXT = 4096
"""Largest number of characters of an option."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
SIZE = re.compile(r" *([1-9][0-9]{0,8}) *, *([1-9][0-9]{0,8}) *")
"""A height and a width, as the option `size` has them."""
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?")

COUNT = re.compile(r" *[0-9]{1,9} *")
_SCALES = {**{name: name for name in SCALE_NAMES}, "0..lnC": "lnC"}
_MAX_SCALE = 1e30


def _check_number(text: object) -> object:
    # float() also accepts "nan", "1_000" and the digits of all scripts.
    if isinstance(text, str) and not NUMBER.fullmatch(text):
        raise ValueError
    return text


def parse_integers(text: object) -> object:
    """Returns the integers in `255` or `0,255`; none in `none`."""
    if not isinstance(text, str):
        return text
    if text == "none":
        return ()
    entries = [entry.strip(" ") for entry in text.split(",")]
    if len(entries) > MAX_IGNORED or not all(map(_INTEGER.fullmatch, entries)):
        raise ValueError
    return tuple(dict.fromkeys(map(int, entries)))


def _check_integer(text: object) -> object:
    # int() also accepts "1_000" and the digits of all scripts.
    if isinstance(text, str) and not _INTEGER.fullmatch(text):
        raise ValueError
    return text


def _parse_names(text: object) -> object:
    if not isinstance(text, str):
        return text
    return tuple(dict.fromkeys(name.strip(" ") for name in text.split(",")))


def _parse_classes(text: object) -> object:
    """Returns the names in `road, sky`; which classes they are, `find_class` finds out."""
    names = _parse_names(text)
    if isinstance(names, tuple) and "" in names:
        raise ValueError
    return names


def _parse_size(text: object) -> object:
    """Returns the height and the width in `512,1024`."""
    if not isinstance(text, str):
        return text
    match = SIZE.fullmatch(text)
    if match is None:
        raise ValueError
    return int(match[1]), int(match[2])


def _parse_scale(text: object) -> object:
    """Returns the name of a scale, or the two numbers in `0,3.5`."""
    if not isinstance(text, str):
        return text
    if text in _SCALES:
        return _SCALES[text]
    ends = [end.strip(" ") for end in text.split(",")]
    if len(ends) != 2 or not all(map(NUMBER.fullmatch, ends)):
        raise ValueError
    low, high = map(float, ends)
    if not -_MAX_SCALE <= low < high <= _MAX_SCALE:
        raise ValueError
    return low, high


def _check_count(text: object) -> object:
    # int() also accepts "+1", "1_000" and the digits of all scripts.
    if isinstance(text, str) and not COUNT.fullmatch(text):
        raise ValueError
    return text


def _parse_width(text: object) -> object:
    """Returns the number in `3`; None for `none`."""
    return None if text == "none" else _check_count(text)


class OneOf:
    """The annotation of an option that is a name, or several names, among choices.

    Attributes:
        names: the choices.
    """

    def __init__(self, choices: Iterable[str]) -> None:
        self.names = tuple(choices)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: Callable[[Any], CoreSchema]
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def _check(self, value: object) -> object:
        for name in value if isinstance(value, tuple) else (value,):
            if name not in self.names:
                raise ValueError
        return value


Number = Annotated[float, BeforeValidator(_check_number)]
Count = Annotated[int, BeforeValidator(_check_count)]


class LabelOptions(BaseModel):
    """The options about labels, which operations and trainings share."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ignore_index: Annotated[tuple[int, ...], BeforeValidator(parse_integers)] = Field(
        default=(255,),
        title="an integer, several with commas between them, or none",
        description="Labels of pixels that do not count.",
    )
    label_space: Annotated[str, OneOf(LABEL_SPACES)] = Field(
        default="raw",
        title=f"one of {', '.join(LABEL_SPACES)}",
        description="What the values in labels mean, if they are no class indices.",
    )
    label_encoding: Annotated[Encoding, OneOf(ENCODINGS)] = Field(
        default="auto",
        title=f"one of {', '.join(ENCODINGS)}",
        description="Whether the samples of label pictures are class indices or colours.",
    )
    palette: Annotated[str | None, OneOf(PALETTES)] = Field(
        default=None,
        title=f"one of {', '.join(PALETTES)}",
        description="The colours and names of the classes.",
    )
    colour_classes: Annotated[tuple[str, ...], BeforeValidator(_parse_classes)] = Field(
        default=(),
        title="indices or names of classes, with commas between them",
        description="The classes that a colour is read as which several classes have: road for "
        "(140, 140, 140) of ade20k.",
    )
    unknown_colours: Annotated[UnknownColours, OneOf(UNKNOWN_COLOURS)] = Field(
        default="error",
        title=f"one of {', '.join(UNKNOWN_COLOURS)}",
        description="Whether colours in label pictures that the palette does not have are an "
        "error, or ignored.",
    )


class LossOptions(LabelOptions):
    """The options of every operation."""

    label_smoothing: Number = Field(
        default=0.0,
        ge=0,
        le=1,
        title="a number from 0 to 1",
        description="Share of the target that is spread over all classes.",
    )
    temperature: Number = Field(
        default=1.0,
        ge=1e-30,
        le=1e30,
        title="a positive number, 1e-30...1e30",
        description="Divides the logits.",
    )
    normalization: Annotated[str, OneOf(NORMALIZATIONS)] = Field(
        default="valid",
        title=f"one of {', '.join(NORMALIZATIONS)}",
        description="Divisor of the sum: the number of valid pixels, of all pixels or of images, "
        "1, or the sum of the weights.",
    )
    upsampling: Annotated[str, OneOf(UPSAMPLINGS)] = Field(
        default="none",
        title=f"one of {', '.join(UPSAMPLINGS)}",
        description="Upsamples logits of lower resolution to the size of the labels: bilinear "
        "without or with align_corners, or as the last layer of FCN-8s, 16s or 32s does.",
    )
    layout: Annotated[str, OneOf(LAYOUTS)] = Field(
        default="nchw",
        title=f"one of {', '.join(LAYOUTS)}",
        description="Whether the classes are axis 1 of the logits, as in torch, or the last axis, "
        "as in TensorFlow; the gradient has the same layout.",
    )
    scores: Annotated[str, OneOf(SCORES)] = Field(
        default="logits",
        title=f"one of {', '.join(SCORES)}",
        description="Whether the logits are logits, or probabilities after the softmax. The "
        "gradient is then in the probabilities.",
    )


class GradientOptions(LossOptions):
    """The options of `gradient`."""

    loss_weight: Number = Field(
        default=1.0,
        ge=-1e30,
        le=1e30,
        title="a number from -1e30 to 1e30",
        description="Multiplies the gradient, but not the reported loss.",
    )


class PredictionOptions(LossOptions):
    """The options of operations that take a prediction, a label map, in place of logits."""

    prediction_space: Annotated[str, OneOf(LABEL_SPACES)] = Field(
        default="raw",
        title=f"one of {', '.join(LABEL_SPACES)}",
        description="What the values in a prediction mean, if they are no class indices.",
    )


class EvaluateOptions(PredictionOptions):
    """The options of `evaluate`."""

    maps: Annotated[tuple[str, ...], OneOf(EVALUATE_MAPS), BeforeValidator(_parse_names)] = Field(
        default=(),
        title=f"some of {', '.join(EVALUATE_MAPS)}, with commas between them",
        description="Maps [N,H,W] to return as well; the maps top_* are [N,3,H,W].",
    )
    num_classes: Annotated[int | None, BeforeValidator(_check_integer)] = Field(
        default=None,
        ge=1,
        le=MAX_CLASSES,
        title=f"an integer from 1 to {MAX_CLASSES}",
        description="Number of classes of a prediction in place of logits. By default that of the "
        "palette, or else the largest class in prediction and labels, plus 1. Beside logits it is "
        "theirs.",
    )
    absent: Annotated[str, OneOf(ABSENT)] = Field(
        default="skip",
        title=f"one of {', '.join(ABSENT)}",
        description="How the mean IU treats classes that do not occur: it skips them, or those "
        "that are not in the labels, or counts their IU as 0 or as 1.",
    )


class VisualizeOptions(PredictionOptions):
    """The options of `visualize`."""

    kind: Annotated[str, OneOf(KINDS)] = Field(
        default="prediction",
        title=f"one of {', '.join(KINDS)}",
        description="The kind of picture.",
    )
    alpha: Number = Field(
        default=0.5,
        ge=0,
        le=1,
        title="a number from 0 to 1",
        description="Weight of the palette over the photo in kind=overlay.",
    )
    contour_px: Count = Field(
        default=0,
        le=MAX_LINE_PIXELS,
        title=f"an integer from 0 to {MAX_LINE_PIXELS}",
        description="Width of an outline within each region of a class: in its colour over the "
        "photo, black or white in other kinds.",
    )
    legend: Annotated[str, OneOf(LEGENDS)] = Field(
        default="none",
        title=f"one of {', '.join(LEGENDS)}",
        description="A strip beside the picture: colours, names and shares of the classes that "
        "occur; for heat maps a colour bar.",
    )
    scale: Annotated[str | tuple[float, float] | None, BeforeValidator(_parse_scale)] = Field(
        default=None,
        title="lnC, auto, percentile, or two numbers LO,HI with LO < HI",
        description="The values with the first and the last colour of a heat map: 0 and ln C, the "
        "least and the largest value, the 1st and the 99th percentile, or those named. By default "
        "lnC for nll and entropy, and 0,1 for confidence.",
    )
    cmap: Annotated[str | None, OneOf(COLORMAPS)] = Field(
        default=None,
        title=f"one of {', '.join(COLORMAPS)}",
        description="The colour map of a heat map. By default inferno for nll, viridis for others.",
    )
    classes: Annotated[tuple[str, ...] | None, BeforeValidator(_parse_names)] = Field(
        default=None,
        title="indices or names of classes, with commas between them",
        description="The classes that are shown; others are grey. With one class, kind=error "
        "shows where it is hit, missed, or a false alarm.",
    )
    ignore: Annotated[str, OneOf(IGNORE_STYLES)] = Field(
        default="auto",
        title=f"one of {', '.join(IGNORE_STYLES)}",
        description="How ignored pixels look. By default as the photo in kind=overlay, in the "
        "palette's colour in kind=labels, as predicted in kind=prediction, else a checkerboard.",
    )
    border_px: Annotated[int | None, BeforeValidator(_parse_width)] = Field(
        default=3,
        ge=0,
        le=MAX_LINE_PIXELS,
        title=f"an integer from 0 to {MAX_LINE_PIXELS}, or none",
        description="In kind=error, the largest distance of a boundary error from another true "
        "class. Other errors have the colour of the predicted class. With none, all errors have "
        "one colour.",
    )
    image_index: Annotated[int | None, BeforeValidator(_check_count)] = Field(
        default=None,
        title="an integer from 0",
        description="The image of a batch that is shown; needed if there are several.",
    )
    resize: Annotated[str, OneOf(RESIZES)] = Field(
        default="none",
        title=f"one of {', '.join(RESIZES)}",
        description="Resamples inputs of different size to that of the labels (or else the "
        "prediction), or of the image: photos bilinearly, classes and maps to the nearest pixel.",
    )


class PredictOptions(LossOptions):
    """The options of `predict`."""

    maps: Annotated[tuple[str, ...], OneOf(PREDICTION_MAPS), BeforeValidator(_parse_names)] = Field(
        default=("prediction",),
        title=f"some of {', '.join(PREDICTION_MAPS)}, with commas between them",
        description="Maps [N,H,W] to return; the maps top_* are [N,3,H,W].",
    )
    size: Annotated[tuple[int, int] | None, BeforeValidator(_parse_size)] = Field(
        default=None,
        title="height and width with a comma between them, such as 512,1024",
        description="Size of the maps, to which logits are upsampled; without upsampling, "
        "bilinear. By default that of the labels, the image or the logits.",
    )


MODELS: Mapping[str, type[LossOptions]] = {
    "loss": LossOptions,
    "gradient": GradientOptions,
    "evaluate": EvaluateOptions,
    "visualize": VisualizeOptions,
    "predict": PredictOptions,
}
"""The options of each operation."""

OPTION_NAMES = tuple(dict.fromkeys(name for row in MODELS.values() for name in row.model_fields))
"""The names of all options."""

Options = TypeVar("Options", bound=BaseModel)


def parse(model: type[Options], pairs: Iterable[tuple[str, str]]) -> Options:
    """Returns the options in the names and texts of a query string or a command line.

    Args:
        model: the options of the operation.
        pairs: the names and texts.

    Raises:
        IllPosed: if a name is unknown or repeated, or a value is invalid.
        Malformed: if a text is longer than `MAX_TEXT`.
    """
    texts: dict[str, str] = {}
    for name, text in pairs:
        if name not in model.model_fields:
            known = list(model.model_fields)
            expected = f"names among {', '.join(known)}"
            raise IllPosed("options", expected, safe_repr(name), _fix_for_name(name, known))
        if name in texts:
            raise IllPosed(name, "one value", "several")
        if len(text) > MAX_TEXT:
            raise Malformed(name, f"at most {MAX_TEXT} characters", "more")
        texts[name] = text
    try:
        return model.model_validate(texts)
    except ValidationError as error:
        name = str(error.errors(include_url=False, include_context=False)[0]["loc"][0])
    field, text = model.model_fields[name], texts[name]
    expected, choices = field.title or "another value", choices_of(field)
    entries = (entry.strip(" ") for entry in text.split(","))
    unknown = next((entry for entry in entries if entry not in choices), "")
    fix = did_you_mean(unknown, choices) or _fix_for_choice(name, unknown)
    raise IllPosed(name, expected, safe_repr(text), fix)


def flag_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern of options with a value, as messages name them: layout=nhwc.

    Options in quotes are what the user wrote, and those between slashes are names of folders.
    """
    return re.compile(rf"\b(?<!['/\\,])({'|'.join(names)})=(?=\w|-\d)(?!\S*[/\\])")


def with_flags(sentence: str, pattern: re.Pattern[str]) -> str:
    """Returns a sentence that names options as flags: --layout nhwc instead of layout=nhwc."""
    return pattern.sub(lambda match: f"--{match[1].replace('_', '-')} ", sentence)


def _fix_for_name(name: str, known: Iterable[str]) -> str:
    """Returns the fix for an unknown option: the operation that has it, or a similar name."""
    for operation, model in MODELS.items():
        if name in model.model_fields:
            return f"It is an option of {operation}."
    return did_you_mean(name, known)


def _fix_for_choice(name: str, choice: str) -> str:
    """Returns the fix for a choice that the option has in another operation."""
    for operation, model in MODELS.items():
        field = model.model_fields.get(name)
        if field is not None and choice in choices_of(field):
            return f"Ask {operation} for {choice}, which needs labels."
    return ""


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """Returns the names that an option may have; none for an option that is no name."""
    return next((entry.names for entry in field.metadata if isinstance(entry, OneOf)), ())


def option_text(value: Any) -> str:
    """Returns the text that `parse` reads as this value; an empty one for None."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
