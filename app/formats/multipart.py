r"""Named files in one body (`multipart/form-data`, RFC 7578), as curl and browsers send them.

    --BOUNDARY\r\n
    Content-Disposition: form-data; name="logits"; filename="logits.npy"\r\n
    Content-Type: application/x-npy\r\n
    \r\n
    ...the file...\r\n
    --BOUNDARY--\r\n

The boundary is a parameter of the Content-Type: 1 to 70 of the characters that RFC 2046 allows.
Lines before the first boundary, the preamble, are ignored. They have at most `MAX_PREAMBLE_BYTES`.
Everything after the last boundary, the epilogue, is ignored too. There are at most `MAX_PARTS`
parts, with different names and at most `MAX_HEADER_BYTES` of headers each.

RFC 2046 forbids a line in the data that begins with the boundary. Such a line is rejected, so that
one pass over the body is enough.

Only Content-Disposition and Content-Transfer-Encoding have a meaning. The latter is deprecated and
must not announce an encoding. Other headers may have any name and value, occur twice, and continue
on a line that begins with a space (RFC 5322). Bytes that are not UTF-8, which old clients write in
file names, become the replacement character. `filename*` is ignored, since RFC 7578 forbids it.

The parts are views of the body. `python_multipart` parses only `bytes`, for which a body in a
bytearray would have to be copied. It is used for the values of headers alone.
"""

import re
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from ..errors import Malformed, safe_repr

MEDIA_TYPE = "multipart/form-data"

MAX_PARTS = 16
MAX_HEADER_BYTES = 8 * 1024
MAX_PREAMBLE_BYTES = 8 * 1024

_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_HEADERS_END = re.compile(rb"\r\n\r\n")
_FOLD = re.compile(rb"\r\n[ \t]+")
_HEADER = re.compile(rb"([^\x00-\x20:\x7f]+)[ \t]*:[ \t]*([^\x00\r\n]*)")
_MAX_DELIMITER_BYTES = len(b"\r\n--") + 70 + len(b"\r\n")
"""Largest number of bytes of a boundary line, without the boundary."""
_UNENCODED = ("7bit", "8bit", "binary")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a body.

    Attributes:
        name: the name of the part.
        filename: the name of the file, or None.
        content_type: the media type of the part, or None.
        data: a view of the body.
    """

    name: str
    filename: str | None
    content_type: str | None
    data: memoryview


def decode(body: bytes | bytearray | memoryview, content_type: str) -> dict[str, Part]:
    """Returns the parts of a body by name, in their order.

    Raises:
        Malformed: if the body or its Content-Type is not as specified above.
    """
    memory = memoryview(body).cast("B")
    boundary = _boundary(content_type)
    delimiter = re.compile(rb"\r\n--" + re.escape(boundary) + rb"(--|[ \t]{0,70}\r\n)?")
    opening = re.compile(delimiter.pattern.removeprefix(rb"\r\n"))
    # The first boundary has no line end before it, unless there is a preamble.
    boundary_line = opening.match(memory) or delimiter.search(
        memory, 0, MAX_PREAMBLE_BYTES + len(boundary) + _MAX_DELIMITER_BYTES
    )
    if boundary_line is None:
        fix = "Let the HTTP client write the Content-Type: it holds the boundary of this body."
        expected = f"the boundary of its Content-Type within {MAX_PREAMBLE_BYTES} bytes"
        raise Malformed("body", expected, "something else", fix)
    parts: dict[str, Part] = {}
    while True:
        if boundary_line[1] is None:
            expected = "-- or a line end after the boundary"
            raise Malformed("body", expected, f"something else at byte {boundary_line.end()}")
        if boundary_line[1] == b"--":
            return parts
        if len(parts) == MAX_PARTS:
            raise Malformed("body", f"at most {MAX_PARTS} parts", "more")
        begin, headers = _headers(memory, boundary_line.end(), f"part {len(parts)}")
        boundary_line = delimiter.search(memory, begin)
        if boundary_line is None:
            raise Malformed("body", "a last boundary, followed by --", "a body without it")
        part = _part(headers, memory[begin : boundary_line.start()], f"part {len(parts)}")
        if part.name in parts:
            raise Malformed("body", "every part once", f"{safe_repr(part.name)} twice")
        parts[part.name] = part


def _boundary(content_type: str) -> bytes:
    media_type, parameters = _parse_header(content_type, "Content-Type")
    if media_type != MEDIA_TYPE:
        raise Malformed("Content-Type", MEDIA_TYPE, safe_repr(media_type))
    boundary = parameters.get("boundary", "").encode()
    if not _BOUNDARY.fullmatch(boundary):
        expected = "a boundary of 1 to 70 characters that RFC 2046 allows"
        raise Malformed("Content-Type", expected, safe_repr(boundary.decode()))
    return boundary


def _headers(memory: memoryview, begin: int, where: str) -> tuple[int, dict[str, str]]:
    """Returns the offset of the data, and the headers before it by lower-case name."""
    # A part without headers begins with the blank line: its first line end is the boundary's.
    blank_line = _HEADERS_END.search(memory, begin - 2, begin + MAX_HEADER_BYTES + 4)
    if blank_line is None:
        expected = f"a blank line within {MAX_HEADER_BYTES} bytes of headers"
        raise Malformed(where, expected, "none")
    headers: dict[str, str] = {}
    for line in _FOLD.sub(b" ", bytes(memory[begin : blank_line.start()])).split(b"\r\n"):
        header = _HEADER.fullmatch(line)
        if header is None:
            raise Malformed(where, "headers of the form name: value", "something else")
        name, value = (text.decode(errors="replace") for text in header.groups())
        name = name.lower()
        if name == "content-disposition" and name in headers:
            raise Malformed(where, "Content-Disposition once", "it twice")
        # A header that occurs twice means the same as one with both values (RFC 9110).
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return blank_line.end(), headers


def _part(headers: dict[str, str], data: memoryview, where: str) -> Part:
    disposition, parameters = _parse_header(headers.get("content-disposition", ""), where)
    if disposition != "form-data" or not parameters.get("name"):
        expected = 'the header Content-Disposition: form-data; name="..."'
        got = headers.get("content-disposition", "")
        raise Malformed(where, expected, safe_repr(got))
    encoding = headers.get("content-transfer-encoding", "binary").strip().lower()
    if encoding not in _UNENCODED:
        fix = "Send the bytes as they are."
        got = f"Content-Transfer-Encoding {safe_repr(encoding)}"
        raise Malformed(where, "an unencoded part", got, fix)
    return Part(parameters["name"], parameters.get("filename"), headers.get("content-type"), data)


def _parse_header(value: str, where: str) -> tuple[str, dict[str, str]]:
    """Returns a header value and its parameters."""
    if len(value) > MAX_HEADER_BYTES:
        raise Malformed(where, f"a header of at most {MAX_HEADER_BYTES} bytes", "a longer one")
    try:
        # The library decodes and encodes Latin-1, which keeps the bytes of UTF-8.
        kind, parameters = parse_options_header(value.encode().decode("latin-1"))
        texts = {name.decode(): text.decode() for name, text in parameters.items()}
    except UnicodeError:
        raise Malformed(where, "a header in UTF-8", "other bytes") from None
    return kind.decode("latin-1"), texts
