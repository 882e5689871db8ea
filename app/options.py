"""The options of a request: one model, one row per option, with the library's names.

`LossOptions` are the options of every loss. An operation with further ones has a class of its own
below it. Query parameters and the flags of the command line are both read by `parse`, from text, so
they mean the same and are refused with the same sentence. The way goes on in `app.operations`.

In each row `title` is what the value must be, as it reads behind "expected", and `description` is
what it does.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

import seg_loss
from seg_loss.constants import MAPS, NORMALIZATIONS

from .errors import IllPosed, Malformed, safe_repr
from .formats.png import ENCODINGS, Encoding
from .images.palettes import PALETTES
from .images.render import KINDS

if TYPE_CHECKING:
    from seg_loss.upsampling import Size, Upsampling

UPSAMPLINGS: Mapping[str, Callable[["Size", "Size"], "Upsampling"] | None] = {
    "none": None,
    "bilinear": lambda scores, labels: seg_loss.Bilinear(),
    "bilinear_aligned": lambda scores, labels: seg_loss.Bilinear(align_corners=True),
    "fcn": lambda scores, labels: seg_loss.Deconvolution.of_fcn(scores, labels),
}
"""Functions from the sizes of scores and labels to an upsampling; None where there is none."""

MAX_IGNORED = 256
MAX_TEXT = 4096

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?")


def _number(text: object) -> object:
    # float() would also take "nan", "1_000" and the digits of all scripts.
    if isinstance(text, str) and not _NUMBER.fullmatch(text):
        raise ValueError
    return text


def _integers(text: object) -> object:
    """`255`, `0,255`, or `none`, which ignores no label."""
    if not isinstance(text, str):
        return text
    if text == "none":
        return ()
    entries = [entry.strip(" ") for entry in text.split(",")]
    if len(entries) > MAX_IGNORED or not all(map(_INTEGER.fullmatch, entries)):
        raise ValueError
    return tuple(dict.fromkeys(map(int, entries)))


def _names(text: object) -> object:
    if not isinstance(text, str):
        return text
    return tuple(dict.fromkeys(name.strip(" ") for name in text.split(",")))


def _one_of(names: Iterable[str]) -> BeforeValidator:
    known = tuple(names)

    def check(value: object) -> object:
        for name in value if isinstance(value, tuple) else (value,):
            if name not in known:
                raise ValueError
        return value

    return BeforeValidator(check)


Number = Annotated[float, BeforeValidator(_number)]


class LossOptions(BaseModel):
    """What every operation knows."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ignore_index: Annotated[tuple[int, ...], BeforeValidator(_integers)] = Field(
        default=(255,),
        title="an integer, several with commas between them, or none",
        description="Labels of pixels that do not count.",
    )
    label_smoothing: Number = Field(
        default=0.0,
        ge=0,
        le=1,
        title="a number from 0 to 1",
        description="Share of the truth that is spread over all classes.",
    )
    temperature: Number = Field(
        default=1.0,
        ge=1e-30,
        le=1e30,
        title="a positive number, 1e-30...1e30",
        description="What the logits are divided by.",
    )
    normalization: Annotated[str, _one_of(NORMALIZATIONS)] = Field(
        default="valid",
        title=f"one of {', '.join(NORMALIZATIONS)}",
        description="What the sum is divided by: valid pixels, all pixels, images, 1, weights.",
    )
    upsampling: Annotated[str, _one_of(UPSAMPLINGS)] = Field(
        default="none",
        title=f"one of {', '.join(UPSAMPLINGS)}",
        description="How logits of lower resolution become as large as the labels: bilinear by "
        "pixel areas, by pixel centres (align_corners), or as FCN-8s, 16s and 32s do.",
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
        description="What the gradient is multiplied by; the loss is reported without it.",
    )


class EvaluateOptions(LossOptions):
    """The options of `evaluate`."""

    maps: Annotated[tuple[str, ...], _one_of(MAPS), BeforeValidator(_names)] = Field(
        default=(),
        title=f"some of {', '.join(MAPS)}, with commas between them",
        description="Maps [N,H,W] (top_*: [N,3,H,W]) that are wanted as well.",
    )


class VisualizeOptions(LossOptions):
    """The options of `visualize`."""

    kind: Annotated[str, _one_of(KINDS)] = Field(
        default="prediction",
        title=f"one of {', '.join(KINDS)}",
        description="What to draw.",
    )
    alpha: Number = Field(
        default=0.5,
        ge=0,
        le=1,
        title="a number from 0 to 1",
        description="Weight of the palette over the photo of kind=overlay.",
    )


Options = TypeVar("Options", bound=LossOptions)


def parse(model: type[Options], pairs: Iterable[tuple[str, str]]) -> Options:
    """Read options from the texts of a query string or of a command line.

    Raises:
        IllPosed: an option that `model` does not have, that comes twice, or that is out of range.
        Malformed: more text than any option needs.
    """
    texts: dict[str, str] = {}
    for name, text in pairs:
        if name not in model.model_fields:
            known = ", ".join(model.model_fields)
            raise IllPosed("options", f"names out of {known}", safe_repr(name))
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
    """Returns the text that `parse` reads as this value."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
