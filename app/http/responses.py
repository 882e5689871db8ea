"""Results as response bodies, in a media type that `Accept` allows.

Each operation has a table of encoders by media type; the first row is the default. The media type
is chosen before the body of the request is read. Values that a media type cannot hold become
headers: `Seg-Loss` is the loss of an NPY gradient, `Seg-Loss-Dtype` is the dtype of a gradient that
NPY does not have, `Seg-Loss-Scale` is the scale of a heat map, and `Seg-Loss-Warning` holds the
warnings.

Encoders run in a worker thread.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .. import results
from ..errors import IllPosed, NotAcceptable, dtype_name, safe_repr
from ..formats import json, npy, png, safetensors
from ..results import EvaluationResult, GradientResult, PictureResult, PredictionResult
from ..settings import Settings

_MAX_SEND_BYTES = 1024 * 1024
"""Size of one ASGI message. The server waits for a slow client between messages, not within."""
_LAST_BYTES = 16 * 1024
"""Size of the last message. It is a copy, so that the memory of the result is free before it."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A result as bytes.

    Attributes:
        media_type: the Content-Type.
        chunks: the body in parts, which may be views of tensors.
        headers: headers that belong to the result.
    """

    media_type: str
    chunks: Sequence[bytes | memoryview]
    headers: Mapping[str, str] = field(default_factory=dict)


class ChunkedResponse(Response):
    """A response whose chunks are sent one after the other and never joined.

    Clients slower than the minimum rate get a truncated response.

    A client that has received the whole body may send its next request at once. So the memory of
    the chunks is freed, and the stack closed, before the last bytes are sent. `http.protocol`
    returns from `send` when the socket has taken the bytes, and holds none of them from then on.

    Args:
        encoded: the body, its media type and its headers.
        headers: additional headers.
        stack: closed before the last bytes, or when the client is too slow.
        settings: the minimum rate and the grace time, which are those of request bodies.
    """

    def __init__(
        self, encoded: Encoded, headers: Mapping[str, str], stack: ExitStack, settings: Settings
    ) -> None:
        self._chunks = encoded.chunks
        self._stack = stack
        num_bytes = sum(map(len, encoded.chunks))
        super().__init__(
            headers={**encoded.headers, **headers, "Content-Length": f"{num_bytes}"},
            media_type=encoded.media_type,
        )
        self._timeout_seconds = settings.transfer_seconds(num_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # `http.protocol` resets the connection of a response that was not completed.
        with self._stack, suppress(TimeoutError):
            await asyncio.wait_for(self._send(send), self._timeout_seconds)

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        parts, last = _split(self._chunks)
        self._chunks = ()
        while parts:
            body = parts.popleft()
            await send({"type": "http.response.body", "body": body, "more_body": True})
            del body
        self._stack.close()
        await send({"type": "http.response.body", "body": last, "more_body": False})


def _split(chunks: Sequence[bytes | memoryview]) -> tuple[deque[bytes | memoryview], bytes]:
    """Returns the chunks as views of at most `_MAX_SEND_BYTES`, and a copy of the last bytes."""
    parts = deque(
        chunk[begin : begin + _MAX_SEND_BYTES]
        for chunk in chunks
        for begin in range(0, len(chunk), _MAX_SEND_BYTES)
    )
    if not parts:
        return parts, b""
    end = parts.pop()
    if len(end) > _LAST_BYTES:
        parts.append(end[:-_LAST_BYTES])
    return parts, bytes(end[-_LAST_BYTES:])


def choose_media_type(accept: str | None, offered: Sequence[str]) -> str:
    """Returns the offered media type with the highest quality in `Accept`, the first of equals.

    Raises:
        NotAcceptable: if the quality of all of them is 0.
    """
    if accept is None or not accept.strip():
        return offered[0]
    ranges = [_parse_media_range(text) for text in accept.lower().split(",")]
    best, best_quality = "", 0.0
    for media_type in offered:
        matching = [
            (len(media_range), quality)
            for media_range, quality in ranges
            if _matches(media_range, media_type)
        ]
        # The most specific range decides: `image/png;q=0, */*` allows everything but PNG.
        quality = max(matching, default=(0, 0.0))[1]
        if quality > best_quality:
            best, best_quality = media_type, quality
    if not best:
        expected = f"one of {', '.join(offered)}"
        raise NotAcceptable("Accept", expected, safe_repr(accept), offered=list(offered))
    return best


def has_copy(if_none_match: Sequence[str], etag: str) -> bool:
    """Returns whether a client has a copy of what has this tag, by its header `If-None-Match`."""
    tags = [tag.strip().removeprefix("W/") for tag in ",".join(if_none_match).split(",")]
    return etag in tags or "*" in tags


def check_can_hold_maps(media_type: str, maps: Sequence[str]) -> None:
    """Checks that a response of this media type can hold the maps asked for.

    Raises:
        IllPosed: if there are maps and the response is JSON or a picture.
    """
    if maps and media_type != safetensors.MEDIA_TYPE:
        name = "a JSON response" if media_type == json.MEDIA_TYPE else "a PNG"
        fix = f"Send Accept: {safetensors.MEDIA_TYPE} to get them."
        raise IllPosed("maps", f"none in {name}", "some", fix)


def _loss_as_json(result: EvaluationResult) -> Encoded:
    return Encoded(json.MEDIA_TYPE, results.loss_json(result))


def _gradient_as_safetensors(result: GradientResult) -> Encoded:
    headers = {"Seg-Loss": repr(result.loss)}
    return Encoded(safetensors.MEDIA_TYPE, results.gradient_file(result), headers)


def _gradient_as_npy(result: GradientResult) -> Encoded:
    headers = {"Seg-Loss": repr(result.loss), **_warning_header(result.warnings)}
    if not npy.has_dtype(result.gradient.dtype):
        headers["Seg-Loss-Dtype"] = dtype_name(result.gradient.dtype)
    return Encoded(npy.MEDIA_TYPE, results.gradient_npy(result), headers)


def _evaluation_as_json(result: EvaluationResult) -> Encoded:
    assert not result.evaluation.maps  # `check_can_hold_maps` came before the computation
    return Encoded(json.MEDIA_TYPE, results.evaluation_json(result))


def _evaluation_as_safetensors(result: EvaluationResult) -> Encoded:
    return Encoded(safetensors.MEDIA_TYPE, results.maps_file(result))


def _picture_as_png(result: PictureResult) -> Encoded:
    headers = _warning_header(result.warnings)
    if result.scale_text:
        headers["Seg-Loss-Scale"] = result.scale_text
    return Encoded(png.MEDIA_TYPE, [result.png], headers)


def _prediction_as_png(result: PredictionResult) -> Encoded:
    content = results.label_map_png(result)
    return Encoded(png.MEDIA_TYPE, [content], _warning_header(result.warnings))


def _prediction_as_safetensors(result: PredictionResult) -> Encoded:
    return Encoded(safetensors.MEDIA_TYPE, results.prediction_file(result))


def _prediction_as_json(result: PredictionResult) -> Encoded:
    return Encoded(json.MEDIA_TYPE, results.prediction_json(result))


LOSS_ENCODERS: Mapping[str, Callable[[EvaluationResult], Encoded]] = {
    json.MEDIA_TYPE: _loss_as_json,
}
GRADIENT_ENCODERS: Mapping[str, Callable[[GradientResult], Encoded]] = {
    safetensors.MEDIA_TYPE: _gradient_as_safetensors,
    npy.MEDIA_TYPE: _gradient_as_npy,
}
EVALUATE_ENCODERS: Mapping[str, Callable[[EvaluationResult], Encoded]] = {
    json.MEDIA_TYPE: _evaluation_as_json,
    safetensors.MEDIA_TYPE: _evaluation_as_safetensors,
}
VISUALIZE_ENCODERS: Mapping[str, Callable[[PictureResult], Encoded]] = {
    png.MEDIA_TYPE: _picture_as_png,
}
PREDICT_ENCODERS: Mapping[str, Callable[[PredictionResult], Encoded]] = {
    png.MEDIA_TYPE: _prediction_as_png,
    safetensors.MEDIA_TYPE: _prediction_as_safetensors,
    json.MEDIA_TYPE: _prediction_as_json,
}


def _warning_header(warnings: Sequence[str]) -> dict[str, str]:
    text = " ".join(warnings).encode("ascii", "replace").decode()
    return {"Seg-Loss-Warning": text} if text else {}


def _parse_media_range(text: str) -> tuple[str, float]:
    """Returns a media range and its quality; an invalid quality counts as 0."""
    media_range, *parameters = (part.strip() for part in text.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = float(parameter[2:])
            except ValueError:
                return media_range, 0.0
            return media_range, quality if 0 <= quality <= 1 else 0.0
    return media_range, 1.0


def _matches(media_range: str, media_type: str) -> bool:
    main_type = media_type.partition("/")[0]
    return media_range in (media_type, f"{main_type}/*", "*/*")
