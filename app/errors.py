"""HTTP error types, one per status code, and the wording that their messages share.

A message about a tensor is a `seg_loss.InvalidInput`, which has the same parts. `http.problems`
turns both into problem documents; the command line prints them.
"""

import re

_MAX_REPR = 40
_PLAIN = re.compile(r"[\w+\-.,: ]*", re.A)


class RequestError(Exception):
    """A request that cannot be answered: `{where}: expected {expected}, got {got}. {fix}`.

    Args:
        where: the input, header or option, such as "labels".
        expected: what would have been accepted.
        got: what was sent. Text of the client is described or escaped, never repeated raw.
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
    return TooLarge("body", f"at most {max_bytes} bytes", got, limit=max_bytes)


def safe_repr(text: str) -> str:
    """Returns a text of the client as a message may hold it: quoted if short and plain.

    >>> safe_repr("mean"), safe_repr(""), safe_repr("<script>")
    ("'mean'", 'nothing', 'something else')
    """
    if not text:
        return "nothing"
    if len(text) <= _MAX_REPR and _PLAIN.fullmatch(text):
        return f"'{text}'"
    return "something else"


def dtype_name(dtype: object) -> str:
    """Returns "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")
