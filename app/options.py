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

import seg_loss
from seg_loss.constants import MAPS, NORMALIZATIONS, SCORES

from .errors import IllPosed, Malformed, safe_repr
from .formats.png import ENCODINGS, Encoding
from .images.palettes import PALETTES
from .images.render import KINDS

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

MAX_IGNORED = 256
"""Largest number of values of `ignore_index`."""
MAX_TEXT = 4096
"""Largest number of characters of an option."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?")


def _check_number(text: object) -> object:
    # float() also accepts "nan", "1_000" and the digits of all scripts.
    if isinstance(text, str) and not _NUMBER.fullmatch(text):
        raise ValueError
    return text


def _parse_integers(text: object) -> object:
    """Returns the integers in `255` or `0,255`; none in `none`."""
    if not isinstance(text, str):
        return text
    if text == "none":
        return ()
    entries = [entry.strip(" ") for entry in text.split(",")]
    if len(entries) > MAX_IGNORED or not all(map(_INTEGER.fullmatch, entries)):
        raise ValueError
    return tuple(dict.fromkeys(map(int, entries)))


def _parse_names(text: object) -> object:
    if not isinstance(text, str):
        return text
    return tuple(dict.fromkeys(name.strip(" ") for name in text.split(",")))


def _one_of(choices: Iterable[str]) -> BeforeValidator:
    """Returns a validator of a name, or of each name in a tuple."""
    names = tuple(choices)

    def check(value: object) -> object:
        for name in value if isinstance(value, tuple) else (value,):
            if name not in names:
                raise ValueError
        return value

    return BeforeValidator(check)


Number = Annotated[float, BeforeValidator(_check_number)]


class LossOptions(BaseModel):
    """The options of every operation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ignore_index: Annotated[tuple[int, ...], BeforeValidator(_parse_integers)] = Field(
        default=(255,),
        title="an integer, several with commas between them, or none",
        description="Labels of pixels that do not count.",
    )
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
    normalization: Annotated[str, _one_of(NORMALIZATIONS)] = Field(
        default="valid",
        title=f"one of {', '.join(NORMALIZATIONS)}",
        description="Divisor of the sum: the number of valid pixels, of all pixels or of images, "
        "1, or the sum of the weights.",
    )
    upsampling: Annotated[str, _one_of(UPSAMPLINGS)] = Field(
        default="none",
        title=f"one of {', '.join(UPSAMPLINGS)}",
        description="Upsamples logits of lower resolution to the size of the labels: bilinear "
        "without or with align_corners, or as the last layer of FCN-8s, 16s or 32s does.",
    )
    scores: Annotated[str, _one_of(SCORES)] = Field(
        default="logits",
        title=f"one of {', '.join(SCORES)}",
        description="Whether the logits are logits, or probabilities after the softmax. The "
        "gradient is then in the probabilities.",
    )
    label_encoding: Annotated[Encoding, _one_of(ENCODINGS)] = Field(
        default="auto",
        title=f"one of {', '.join(ENCODINGS)}",
        description="Whether the samples of label PNGs are class indices or colours.",
    )
    palette: Annotated[str | None, _one_of(PALETTES)] = Field(
        default=None,
        title=f"one of {', '.join(PALETTES)}",
        description="The colours and names of the classes.",
    )


class GradientOptions(LossOptions):
    """The options of `gradient`."""

    loss_weight: Number = Field(
        default=1.0,
        title="a number",
        description="Multiplies the gradient, but not the reported loss.",
    )


class EvaluateOptions(LossOptions):
    """The options of `evaluate`."""

    maps: Annotated[tuple[str, ...], _one_of(MAPS), BeforeValidator(_parse_names)] = Field(
        default=(),
        title=f"some of {', '.join(MAPS)}, with commas between them",
        description="Maps [N,H,W] to return as well; the maps top_* are [N,3,H,W].",
    )


class VisualizeOptions(LossOptions):
    """The options of `visualize`."""

    kind: Annotated[str, _one_of(KINDS)] = Field(
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


Options = TypeVar("Options", bound=LossOptions)


def parse(model: type[Options], pairs: Iterable[tuple[str, str]]) -> Options:
    """Returns the options in the names and texts of a query string or a command line.

    Raises:
        IllPosed: if a name is unknown or repeated, or a value is invalid.
        Malformed: if a text is longer than `MAX_TEXT`.
    """
    texts: dict[str, str] = {}
    for name, text in pairs:
        if name not in model.model_fields:
            known = ", ".join(model.model_fields)
            raise IllPosed("options", f"names among {known}", safe_repr(name))
        if name in texts:
            raise IllPosed(name, "one value", "several")
        if len(text) > MAX_TEXT:
            raise Malformed(name, f"at most {MAX_TEXT} characters", "more")
        texts[name] = text
    try:
        return model.model_validate(texts)
    except ValidationError as error:
        name = str(error.errors(include_url=False, include_context=False)[0]["loc"][0])
    expected = model.model_fields[name].title or "another value"
    raise IllPosed(name, expected, safe_repr(texts[name]))


def option_text(value: Any) -> str:
    """Returns the text that `parse` reads as this value; an empty one for None."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
