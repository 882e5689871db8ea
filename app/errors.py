"""HTTP error types, one per status code, and the wording that their messages share.

A message about a tensor is a `seg_loss.InvalidInput`, which has the same parts. `http.problems`
turns both into problem documents; the command line prints them.
"""

import difflib
import string
from collections.abc import Iterable

MAX_REPR = 80
"""Largest number of characters of a text of the client in a message."""

_SIMILARITY = 0.7
_MIN_STEM, _STEM_SHARE = 3, 0.75
"""The part of a text with which the only similar choice may begin instead: `prob` of `probs`."""

_PLAIN = frozenset(string.ascii_letters + string.digits + " !#()*+,-./:;=?@[]^_|~")


class UsageError(Exception):
    """Wrong usage of the command line; exit status 2."""


class RequestError(Exception):
    """A request that cannot be answered: `{where}: expected {expected}, got {got}. {fix}`.

    Args:
        where: the input, header or option, such as "labels".
        expected: what would have been accepted.
        got: what was sent. Text of the client goes through `safe_repr`, and is never repeated raw.
        fix: a likely remedy, or an empty string.
        headers: additional headers of the response.
        extensions: additional members of the problem document, such as `limit`.

    Attributes:
        status: HTTP status code.
        code: machine-readable name of the error.
        title: name of the error for people.
        detail: the sentence.
        where, expected, got, fix: parts of the sentence; None where it has no such part.
    """

    status = 500
    code = "internal"
    title = "Internal error"

    where: str | None = None
    expected: str | None = None
    got: str | None = None
    fix: str | None = None

    def __init__(
        self,
        where: str,
        expected: str,
        got: str,
        fix: str = "",
        *,
        headers: dict[str, str] | None = None,
        **extensions: object,
    ) -> None:
        self.detail = f"{where}: expected {expected}, got {got}. {fix}".rstrip()
        super().__init__(self.detail)
        self.where, self.expected, self.got, self.fix = where, expected, got, fix or None
        self.headers = headers or {}
        self.extensions = extensions


class Malformed(RequestError):
    """The bytes do not follow their format."""

    status = 400
    code = "malformed"
    title = "Malformed request"


class NotFound(RequestError):
    """The requested resource does not exist."""

    status = 404
    code = "not_found"
    title = "Not found"


class MethodNotAllowed(RequestError):
    """The path has other methods; the header `Allow` lists them."""

    status = 405
    code = "method_not_allowed"
    title = "Method not allowed"


class NotAcceptable(RequestError):
    """No response has a media type that `Accept` allows; `offered` lists those there are."""

    status = 406
    code = "not_acceptable"
    title = "Not acceptable"


class TooSlow(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "too_slow"
    title = "Request timeout"


class TooLarge(RequestError):
    """The request has more bytes, pixels, images or classes than allowed; `limit` says how many."""

    status = 413
    code = "too_large"
    title = "Request too large"


class UnsupportedMedia(RequestError):
    """The body has an unknown media type or content encoding; `accepted` lists the known ones."""

    status = 415
    code = "unsupported_media"
    title = "Unsupported media type"


class IllPosed(RequestError):
    """The request is well-formed, but shapes, dtypes, values, colours or options do not fit."""

    status = 422
    code = "ill_posed"
    title = "Ill-posed input"


class Unavailable(RequestError):
    """The service is busy, still loading its kernels, or stopping.

    Args:
        detail: the sentence; it is not about an input and has no parts.
        retry_after_seconds: after which time the client may try again.
    """

    status = 503
    code = "unavailable"
    title = "Service unavailable"

    def __init__(self, detail: str, retry_after_seconds: int) -> None:
        Exception.__init__(self, detail)
        self.detail = detail
        self.headers = {"Retry-After": f"{retry_after_seconds}"}
        self.extensions = {"retry_after_seconds": retry_after_seconds}


ERROR_TYPES: tuple[type[RequestError], ...] = (
    Malformed,
    NotFound,
    MethodNotAllowed,
    NotAcceptable,
    TooSlow,
    TooLarge,
    UnsupportedMedia,
    IllPosed,
    Unavailable,
)
"""All error types, for the table of statuses in `/openapi.json`."""


def empty_body() -> Malformed:
    """Returns the error for a body without bytes."""
    return Malformed("body", "tensors", "0 bytes")


def body_too_large(max_bytes: int, got: str) -> TooLarge:
    """Returns the error for a body, as sent or decompressed, of more than `max_bytes`."""
    fix = "Send fewer images, or logits in float16. JSON has a lower limit than other bodies."
    return TooLarge("body", f"at most {max_bytes} bytes", got, fix, limit=max_bytes)


def safe_repr(text: str) -> str:
    r"""Returns a text of the client as a message may hold it.

    It is quoted, and has at most `MAX_REPR` characters. All characters but letters, digits and
    harmless signs of ASCII are escaped, so that neither a page nor a terminal interprets them.

    >>> print(safe_repr("text/html; q=1"), safe_repr("<script>\n"), safe_repr(""))
    'text/html; q=1' '\x3cscript\x3e\x0a' nothing
    """
    if not text:
        return "nothing"
    shown = ""
    for character in text:
        piece = character if character in _PLAIN else _escape(character)
        if len(shown) + len(piece) > MAX_REPR - len("'...'"):
            return f"'{shown}...'"
        shown += piece
    return f"'{shown}'"


def did_you_mean(text: str, choices: Iterable[str]) -> str:
    """Returns a fix that names the choice most like a text of the client; "" if none is like it.

    >>> did_you_mean("Palete", ["palette", "kind"]), did_you_mean("x", ["palette", "kind"])
    ('Did you mean palette?', '')
    >>> did_you_mean("ade", ["raw", "ade_zero"]), did_you_mean("opt", ["option_a", "option_b"])
    ('Did you mean ade_zero?', '')
    """
    names = {choice.lower(): choice for choice in choices}
    lower = text[:MAX_REPR].lower()
    close = difflib.get_close_matches(lower, names, n=1, cutoff=_SIMILARITY)
    if not close and len(lower) >= _MIN_STEM:
        stem = lower[: max(_MIN_STEM, round(_STEM_SHARE * len(lower)))]
        close = [name for name in names if name.startswith(stem)]
    return f"Did you mean {names[close[0]]}?" if len(close) == 1 else ""


def _escape(character: str) -> str:
    number = ord(character)
    if number < 1 << 8:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 1 << 16 else f"\\U{number:08x}"


def dtype_name(dtype: object) -> str:
    """Returns "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")
