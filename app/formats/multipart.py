r"""Named files in one body (`multipart/form-data`, RFC 7578): what curl and browsers send.

    --BOUNDARY\r\n
    Content-Disposition: form-data; name="logits"; filename="logits.npy"\r\n
    Content-Type: application/x-npy\r\n
    \r\n
    ...the file...\r\n
    --BOUNDARY--\r\n

The boundary stands in the Content-Type of the request: 1 to 70 of the characters that RFC 2046
allows. The body begins with it, so there is no preamble; what follows the last one is ignored. At
most `MAX_PARTS` parts, each with its own name and at most `MAX_HEADER_BYTES` of headers. A line
that begins with the boundary and does not end after it is refused, as RFC 2046 forbids it in data:
the body is read once, whatever is in it. Content-Transfer-Encoding, deprecated, may only say that
nothing was encoded. `filename*` is ignored, as RFC 7578 forbids it.

The parts are views of the body. That is why the lines are found here: the parser of
`python_multipart` takes `bytes`, and a body gathered in a bytearray would have to be copied first.
The quoting inside of header values is that library's.
"""

import re
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from ..errors import Malformed

MEDIA_TYPE = "multipart/form-data"

MAX_PARTS = 16
MAX_HEADER_BYTES = 8 * 1024

_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_HEADERS_END = re.compile(rb"\r\n\r\n")
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_UNENCODED = ("7bit", "8bit", "binary")


@dataclass(frozen=True, slots=True)
class Part:
    """One file, or one field when `filename` is None; `data` is a view of the body."""

    name: str
    filename: str | None
    content_type: str | None
    data: memoryview


def decode(body: bytes | bytearray | memoryview, content_type: str) -> dict[str, Part]:
    """Split a body into its parts by name, in their order."""
    memory = memoryview(body).cast("B")
    boundary = _boundary(content_type)
    delimiter = re.compile(rb"\r\n--" + re.escape(boundary) + rb"(--|[ \t]{0,70}\r\n)?")
    opening = re.compile(rb"--" + re.escape(boundary) + rb"(--|[ \t]{0,70}\r\n)?")
    line = opening.match(memory)
    if line is None:
        fix = "Let the HTTP client write the Content-Type: it holds the boundary of this body."
        expected = "a body that begins with the boundary of its Content-Type"
        raise Malformed("body", expected, "something else", fix)
    parts: dict[str, Part] = {}
    while True:
        if line[1] is None:
            expected = "-- or a line end after the boundary"
            raise Malformed("body", expected, f"something else at byte {line.end()}")
        if line[1] == b"--":
            return parts
        if len(parts) == MAX_PARTS:
            raise Malformed("body", f"at most {MAX_PARTS} parts", "more")
        begin, headers = _headers(memory, line.end(), f"part {len(parts)}")
        line = delimiter.search(memory, begin)
        if line is None:
            raise Malformed("body", "a last boundary, followed by --", "a body without it")
        part = _part(headers, memory[begin : line.start()], f"part {len(parts)}")
        if part.name in parts:
            raise Malformed("body", "every part once", f"{part.name[:40]!a} twice")
        parts[part.name] = part


def _boundary(content_type: str) -> bytes:
    media_type, options = _options(content_type, "Content-Type")
    if media_type != MEDIA_TYPE:
        raise Malformed("Content-Type", MEDIA_TYPE, "another media type")
    boundary = options.get("boundary", "").encode()
    if not _BOUNDARY.fullmatch(boundary):
        expected = "a boundary of 1 to 70 characters that RFC 2046 allows"
        raise Malformed("Content-Type", expected, "another one" if boundary else "none")
    return boundary


def _headers(memory: memoryview, begin: int, where: str) -> tuple[int, dict[str, str]]:
    """Where the data begins, and the headers before it by lower-case name."""
    # From two bytes before, for a part without headers: the line end of its boundary counts.
    blank_line = _HEADERS_END.search(memory, begin - 2, begin + MAX_HEADER_BYTES + 4)
    if blank_line is None:
        expected = f"a blank line within {MAX_HEADER_BYTES} bytes of headers"
        raise Malformed(where, expected, "none")
    headers: dict[str, str] = {}
    for line in bytes(memory[begin : blank_line.start()]).split(b"\r\n"):
        header = _HEADER.fullmatch(line)
        if header is None:
            raise Malformed(where, "headers of the form name: value", "something else")
        name = header[1].decode().lower()
        if name in headers:
            raise Malformed(where, "every header once", f"{name[:40]!a} twice")
        try:
            headers[name] = header[2].decode()
        except UnicodeDecodeError:
            raise Malformed(where, "headers in UTF-8", "other bytes") from None
    return blank_line.end(), headers


def _part(headers: dict[str, str], data: memoryview, where: str) -> Part:
    kind, options = _options(headers.get("content-disposition", ""), where)
    if kind != "form-data" or not options.get("name"):
        expected = 'the header Content-Disposition: form-data; name="..."'
        raise Malformed(where, expected, "none" if not kind else "something else")
    encoding = headers.get("content-transfer-encoding", "binary").strip().lower()
    if encoding not in _UNENCODED:
        fix = "Send the bytes as they are."
        raise Malformed(where, "an unencoded part", "a Content-Transfer-Encoding", fix)
    return Part(options["name"], options.get("filename"), headers.get("content-type"), data)


def _options(value: str, where: str) -> tuple[str, dict[str, str]]:
    """A header value and its parameters; UTF-8 passes through the library's Latin-1 unharmed."""
    if len(value) > MAX_HEADER_BYTES:
        raise Malformed(where, f"a header of at most {MAX_HEADER_BYTES} bytes", "a longer one")
    try:
        kind, options = parse_options_header(value.encode().decode("latin-1"))
        texts = {name.decode(): text.decode() for name, text in options.items()}
    except UnicodeError:
        raise Malformed(where, "a header in UTF-8", "other bytes") from None
    return kind.decode("latin-1"), texts
