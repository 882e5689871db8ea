"""Everything the service can say no with: one class per status code.

A message about a tensor comes as `seg_loss.InvalidInput` with the same fields; `app.problems` turns
both into problem documents and the command line prints them.
"""

from typing import Self


class RequestError(Exception):
    """A refusal with its HTTP status, a machine-readable `code`, and a sentence for the reader.

    Args:
        detail: the sentence. What a client sent is described, never echoed raw.
        where, expected, got, fix: the parts of the sentence, when it is about an input.
        headers: further headers of the answer, such as `Retry-After`.
        members: further members of the problem document, such as `limit`.
    """

    status = 500
    code = "internal"
    title = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        fix: str | None = None,
        headers: dict[str, str] | None = None,
        **members: object,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.where = where
        self.expected = expected
        self.got = got
        self.fix = fix
        self.headers = headers or {}
        self.members = members

    @classmethod
    def about(
        cls,
        where: str,
        expected: str,
        got: str,
        fix: str = "",
        *,
        headers: dict[str, str] | None = None,
        **members: object,
    ) -> Self:
        """Build the sentence `{where}: expected {expected}, got {got}. {fix}` from its parts."""
        return cls(
            f"{where}: expected {expected}, got {got}. {fix}".rstrip(),
            where=where,
            expected=expected,
            got=got,
            fix=fix or None,
            headers=headers,
            **members,
        )


class Malformed(RequestError):
    """The bytes do not follow the format they claim to have."""

    status = 400
    code = "malformed"
    title = "Malformed request"


class NotFound(RequestError):
    """There is no such thing here."""

    status = 404
    code = "not_found"
    title = "Not found"


class NotAcceptable(RequestError):
    """No answer of the kind that `Accept` asks for; carries `offered`."""

    status = 406
    code = "not_acceptable"
    title = "Not acceptable"


class TooSlow(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "too_slow"
    title = "Request timeout"


class TooLarge(RequestError):
    """More bytes, pixels or classes than the settings allow; carries `limit`."""

    status = 413
    code = "too_large"
    title = "Request too large"


class UnsupportedMedia(RequestError):
    """A media type or content coding that is not read here; carries `accepted`."""

    status = 415
    code = "unsupported_media"
    title = "Unsupported media type"


class IllPosed(RequestError):
    """Well-formed, but no loss or picture can be made of it: shapes, modes, colours, options."""

    status = 422
    code = "ill_posed"
    title = "Ill-posed input"


class Unavailable(RequestError):
    """Not now: too much to do, not warm yet, or shutting down; carries `Retry-After`."""

    status = 503
    code = "unavailable"
    title = "Service unavailable"


REFUSALS: tuple[type[RequestError], ...] = (
    Malformed,
    NotFound,
    NotAcceptable,
    TooSlow,
    TooLarge,
    UnsupportedMedia,
    IllPosed,
    Unavailable,
)
"""Every refusal there is, for the table of statuses in `/openapi.json`."""
