"""Results to bytes: one table per operation, media type -> encoder, the first row the default.

`choose` reads `Accept` before the body is read. JSON never holds NaN or Infinity: null instead.
What has no place in a format goes into headers: the loss of an NPY gradient is `Seg-Loss`, warnings
are `Seg-Loss-Warning`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass

from torch import Tensor

from ..errors import IllPosed, NotAcceptable
from ..formats import npy, safetensors
from ..operations import Evaluated, Gradient, Picture

JSON = "application/json"
NPY = "application/x-npy"
PNG = "image/png"
SAFETENSORS = "application/x-safetensors"


@dataclass(frozen=True, eq=False)
class Answer:
    """A body in pieces that need not be joined, as views of the tensors they come from."""

    media_type: str
    pieces: Sequence[bytes | memoryview]
    headers: Mapping[str, str] = field(default_factory=dict)


LOSS_MEMBERS = (
    "loss",
    "normalization",
    "divisor",
    "valid_pixels",
    "ignored_pixels",
    "uniform_loss",
    "per_image",
    "per_class",
    "diagnosis",
)
"""The members of an `Evaluation` that `loss` answers with."""

EVALUATION_MEMBERS = (*LOSS_MEMBERS, "confusion", "metrics", "calibration")
"""Those that `evaluate` answers with: all that JSON can hold."""


def loss_members(result: Evaluated) -> dict[str, object]:
    """The JSON object of `loss`."""
    return _members(result, LOSS_MEMBERS)


def evaluation_members(result: Evaluated) -> dict[str, object]:
    """The JSON object of `evaluate`."""
    return _members(result, EVALUATION_MEMBERS)


def json_bytes(value: object) -> bytes:
    """JSON in UTF-8 of what `plain` returned."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def plain(value: object) -> object:
    """Dataclasses, tuples and numbers as JSON knows them; what is not finite is None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Tensor):
        return value.tolist()  # counts only: integers need no second look
    if is_dataclass(value):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, tuple):
        return [plain(entry) for entry in value]
    return value


def gradient_file(result: Gradient) -> list[bytes | memoryview]:
    """The gradient as safetensors: the rest of the result is text in the metadata."""
    metadata = {
        "loss": repr(result.loss),
        "normalization": result.normalization,
        "loss_weight": repr(result.loss_weight),
        "warnings": json.dumps(result.warnings),
    }
    return safetensors.encode({"gradient": result.gradient}, metadata)


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """The offered media type that `Accept` likes best; the first of equals.

    Raises:
        NotAcceptable: it likes none.
    """
    if accept is None or not accept.strip():
        return offered[0]
    ranges = [_range(text) for text in accept.lower().split(",")]
    best, best_quality = "", 0.0
    for media_type in offered:
        matching = [
            (len(wanted), quality) for wanted, quality in ranges if _matches(wanted, media_type)
        ]
        # The most specific range speaks: `image/png;q=0, */*` is everything but PNG.
        quality = max(matching, default=(0, 0.0))[1]
        if quality > best_quality:
            best, best_quality = media_type, quality
    if not best:
        raise NotAcceptable(
            "Accept", f"one of {', '.join(offered)}", "others", offered=list(offered)
        )
    return best


def _loss_as_json(result: Evaluated) -> Answer:
    return Answer(JSON, [json_bytes(loss_members(result))])


def _gradient_as_safetensors(result: Gradient) -> Answer:
    return Answer(SAFETENSORS, gradient_file(result), {"Seg-Loss": repr(result.loss)})


def _gradient_as_npy(result: Gradient) -> Answer:
    headers = {"Seg-Loss": repr(result.loss), **_warning(result.warnings)}
    return Answer(NPY, npy.encode(result.gradient), headers)


def _evaluation_as_json(result: Evaluated) -> Answer:
    assert not result.evaluation.maps  # `refuse_maps_in_json` was asked before the work
    return Answer(JSON, [json_bytes(evaluation_members(result))])


def _evaluation_as_safetensors(result: Evaluated) -> Answer:
    metadata = {"evaluation": json_bytes(evaluation_members(result)).decode()}
    return Answer(SAFETENSORS, safetensors.encode(result.evaluation.maps, metadata))


def _picture_as_png(result: Picture) -> Answer:
    return Answer(PNG, [result.png], _warning(result.warnings))


LOSS: Mapping[str, Callable[[Evaluated], Answer]] = {JSON: _loss_as_json}
GRADIENT: Mapping[str, Callable[[Gradient], Answer]] = {
    SAFETENSORS: _gradient_as_safetensors,
    NPY: _gradient_as_npy,
}
EVALUATE: Mapping[str, Callable[[Evaluated], Answer]] = {
    JSON: _evaluation_as_json,
    SAFETENSORS: _evaluation_as_safetensors,
}
VISUALIZE: Mapping[str, Callable[[Picture], Answer]] = {PNG: _picture_as_png}


def refuse_maps_in_json(maps: Sequence[str], media_type: str) -> None:
    """Maps have a place in safetensors only.

    Raises:
        IllPosed: maps are wanted, and JSON.
    """
    if maps and media_type == JSON:
        raise IllPosed(
            "maps", "none in a JSON answer", "some", f"Send Accept: {SAFETENSORS} to get them."
        )


def _members(result: Evaluated, names: Sequence[str]) -> dict[str, object]:
    members = {name: plain(getattr(result.evaluation, name)) for name in names}
    return {**members, "warnings": list(result.warnings)}


def _warning(warnings: Sequence[str]) -> dict[str, str]:
    text = " ".join(warnings).encode("ascii", "replace").decode()
    return {"Seg-Loss-Warning": text} if text else {}


def _range(text: str) -> tuple[str, float]:
    """A media range and its quality, 0 if it cannot be read."""
    name, *parameters = (part.strip() for part in text.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = float(parameter[2:])
            except ValueError:
                return name, 0.0
            return name, quality if 0 <= quality <= 1 else 0.0
    return name, 1.0


def _matches(wanted: str, media_type: str) -> bool:
    kind = media_type.partition("/")[0]
    return wanted in (media_type, f"{kind}/*", "*/*")
