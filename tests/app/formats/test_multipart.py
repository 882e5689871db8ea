"""Multipart bodies: golden bytes, httpx as a client, and every kind of malformed body."""

import contextlib

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import Malformed, RequestError
from app.formats import multipart

TYPE = "multipart/form-data; boundary=cut-here"
GOLDEN = (
    b"--cut-here\r\n"
    b'Content-Disposition: form-data; name="logits"; filename="logits.npy"\r\n'
    b"Content-Type: application/x-npy\r\n"
    b"\r\n"
    b"\x93NUMPY\r\n--cut\r\n\r\n"
    b"\r\n--cut-here\r\n"
    b'content-disposition:form-data;name="palette"\r\n'
    b"\r\n"
    b"voc"
    b"\r\n--cut-here--\r\n"
)
NO_BOUNDARY = "Content-Type: expected a boundary of 1 to 70 characters that RFC 2046 allows"
NO_BOUNDARY_LINE = (
    "body: expected the boundary of its Content-Type within 8192 bytes, got something else. "
    "Let the HTTP client write the Content-Type: it holds the boundary of this body."
)
NO_LINE_END = "body: expected -- or a line end after the boundary"
NO_NAME = 'part 0: expected the header Content-Disposition: form-data; name="..."'
ENCODED = "part 0: expected an unencoded part, got Content-Transfer-Encoding"


def body_of(*parts: bytes) -> bytes:
    return b"--cut-here\r\n" + b"\r\n--cut-here\r\n".join(parts) + b"\r\n--cut-here--\r\n"


def part(name: str, data: bytes = b"") -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + data


def error_of(body: bytes, content_type: str = TYPE) -> RequestError:
    with pytest.raises(Malformed) as error:
        multipart.decode(body, content_type)
    return error.value


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_the_golden_bytes_are_a_file_and_a_field(wrap):
    parts = multipart.decode(wrap(GOLDEN), TYPE)
    assert list(parts.values()) == [
        multipart.Part(
            "logits",
            "logits.npy",
            "application/x-npy",
            memoryview(b"\x93NUMPY\r\n--cut\r\n\r\n"),
        ),
        multipart.Part("palette", None, None, memoryview(b"voc")),
    ]
    assert list(parts) == ["logits", "palette"]


def test_a_part_is_a_view_of_the_body():
    body = bytearray(GOLDEN)
    start = torch.frombuffer(body, dtype=torch.uint8).data_ptr()
    data = multipart.decode(body, TYPE)["logits"].data
    address = torch.frombuffer(data, dtype=torch.uint8).data_ptr()
    assert address == start + GOLDEN.index(b"\x93")
    assert not data.readonly


def test_a_body_of_httpx_is_read():
    files = {"logits": ('ü "a".npy', b"\r\n--\r\n" * 5, "application/x-npy"), "image": b"\x89PNG"}
    request = httpx.Request("POST", "http://a", files=files, data={"palette": "voc"})
    parts = multipart.decode(request.read(), request.headers["Content-Type"])
    assert parts.keys() == {"palette", "logits", "image"}
    assert parts["palette"].data == b"voc"
    assert parts["palette"].filename is None
    assert parts["logits"].filename == "ü %22a%22.npy"
    assert parts["logits"].content_type == "application/x-npy"
    assert parts["logits"].data == b"\r\n--\r\n" * 5


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/form-data; boundary="cut-here"',
        "Multipart/Form-Data;BOUNDARY=cut-here",
        "multipart/form-data; charset=utf-8; boundary=cut-here",
    ],
)
def test_the_boundary_may_be_quoted_and_stand_anywhere(content_type):
    assert len(multipart.decode(GOLDEN, content_type)) == 2


def test_the_longest_boundary_and_all_its_characters_are_read():
    boundary = "'()+_,-./:=? 0" * 5
    body = GOLDEN.replace(b"cut-here", boundary.encode())
    content_type = f'multipart/form-data; boundary="{boundary}"'
    assert multipart.decode(body, content_type)["palette"].data == b"voc"


def test_a_quoted_quote_stays_in_the_filename():
    body = body_of(b'Content-Disposition: form-data; name="a"; filename="b;\\"c\\".npy"\r\n\r\n')
    assert multipart.decode(body, TYPE)["a"].filename == 'b;"c".npy'


def test_an_empty_part_and_an_empty_form_are_read():
    assert multipart.decode(body_of(part("a")), TYPE)["a"].data == b""
    assert multipart.decode(b"--cut-here--\r\n", TYPE) == {}


def test_spaces_after_a_boundary_and_the_epilogue_are_ignored():
    body = GOLDEN.replace(b"--cut-here\r\n", b"--cut-here \t\r\n") + b"anything"
    assert multipart.decode(body, TYPE)["palette"].data == b"voc"


PREAMBLES = [b"", b"anything", b"two\r\nlines", b"--cut", b"\r\n\r\n", b"a" * 8192]


@pytest.mark.parametrize("preamble", PREAMBLES, ids=len)
def test_lines_before_the_first_boundary_are_ignored(preamble):
    for end in (b"", b"\r\nan epilogue\r\n--cut-here--\r\n"):
        parts = multipart.decode(preamble + b"\r\n" + GOLDEN + end, TYPE)
        assert {name: bytes(found.data) for name, found in parts.items()} == {
            "logits": b"\x93NUMPY\r\n--cut\r\n\r\n",
            "palette": b"voc",
        }


UNUSUAL = {
    "a file name in Latin-1": (
        b'Content-Disposition: form-data; name="a"; filename="\xfc.npy"',
        "\ufffd.npy",
    ),
    "a file name in Shift JIS": (
        b'Content-Disposition: form-data; name="a"; filename="\x83\x89.npy"',
        "\ufffd\ufffd.npy",
    ),
    "a file name in an extended parameter": (
        b"Content-Disposition: form-data; name=a; filename=b; filename*=iso-8859-1''%A3",
        "b",
    ),
    "a folded header": (
        b'Content-Disposition: form-data;\r\n\tname="a";\r\n  filename="b"',
        "b",
    ),
    "space before a colon": (b'Content-Disposition : form-data; name="a"; filename="b"', "b"),
    "no space": (b'content-disposition:FORM-DATA;NAME="a";FILENAME="b"', "b"),
    "other headers": (
        (
            b"X\xff(): \x01\xff\r\nContent-Type:\r\nA: b\r\nContent-Length: 9999999\r\nA: c\r\n"
            b"Content-Transfer-Encoding: Binary\r\n"
            b'Content-Disposition: form-data; name="a"; filename=b'
        ),
        "b",
    ),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_headers_of_a_part_are_read(case):
    headers, filename = UNUSUAL[case]
    found = multipart.decode(body_of(headers + b"\r\n\r\ndata"), TYPE)["a"]
    assert (found.data, found.filename) == (b"data", filename)


def test_sixteen_parts_are_read_and_one_more_is_an_error():
    names = [f"p{i}" for i in range(17)]
    assert len(multipart.decode(body_of(*map(part, names[:16])), TYPE)) == 16
    error = error_of(body_of(*map(part, names)))
    assert error.detail == "body: expected at most 16 parts, got more."


@pytest.mark.parametrize(
    ("content_type", "sentence"),
    [
        ("", "Content-Type: expected multipart/form-data, got nothing."),
        (
            "text/html; boundary=a",
            "Content-Type: expected multipart/form-data, got 'text/html'.",
        ),
        (
            "multipart/form-data",
            f"{NO_BOUNDARY}, got nothing.",
        ),
        (
            "multipart/form-data; boundary=" + "a" * 71,
            f"{NO_BOUNDARY}, got '{'a' * 71}'.",
        ),
        (
            "multipart/form-data; boundary=ü",
            f"{NO_BOUNDARY}, got '\\xfc'.",
        ),
        (
            'multipart/form-data; boundary="a "',
            f"{NO_BOUNDARY}, got 'a '.",
        ),
        ("a" * 9000, "Content-Type: expected a header of at most 8192 bytes, got a longer one."),
        ("a; b=\ud800", "Content-Type: expected a header in UTF-8, got other bytes."),
    ],
)
def test_a_content_type_without_a_valid_boundary_is_malformed(content_type, sentence):
    assert error_of(GOLDEN, content_type).detail == sentence


def test_another_boundary_is_an_error_with_a_fix():
    assert error_of(GOLDEN.replace(b"cut-here", b"cut-there")).detail == NO_BOUNDARY_LINE


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            GOLDEN.replace(b"--\r\n", b"\r\n"),
            "part 2: expected a blank line within 8192 bytes of headers, got none.",
        ),
        (
            GOLDEN[: GOLDEN.index(b"\r\n--cut-here--")],
            "body: expected a last boundary, followed by --, got a body without it.",
        ),
        (
            GOLDEN.replace(b"--cut-here--", b"--cut-hereto"),
            f"{NO_LINE_END}, got something else at byte {GOLDEN.index(b'--cut-here--') + 10}.",
        ),
        (
            body_of(part("a"), part("b"), part("a")),
            "body: expected every part once, got 'a' twice.",
        ),
        (
            body_of(b"X: " + b"a" * 8192 + b"\r\n" + part("a")),
            "part 0: expected a blank line within 8192 bytes of headers, got none.",
        ),
        (
            body_of(b"\r\ndata"),
            "part 0: expected headers of the form name: value, got something else.",
        ),
        (
            body_of(b"a b: c\r\n" + part("a")),
            "part 0: expected headers of the form name: value, got something else.",
        ),
        (
            body_of(b"a: b\rc\r\n" + part("a")),
            "part 0: expected headers of the form name: value, got something else.",
        ),
        (
            body_of(b" a: b\r\n" + part("a")),
            "part 0: expected headers of the form name: value, got something else.",
        ),
        (
            body_of(b'Content-Disposition: form-data; name="b"\r\n' + part("a")),
            "part 0: expected Content-Disposition once, got it twice.",
        ),
        (
            body_of(b"a: b\r\n\r\n"),
            f"{NO_NAME}, got nothing.",
        ),
        (
            body_of(part("")),
            f"{NO_NAME}, got 'form-data; name=\\x22\\x22'.",
        ),
        (
            body_of(b'Content-Disposition: attachment; name="a"\r\n\r\n'),
            f"{NO_NAME}, got 'attachment; name=\\x22a\\x22'.",
        ),
        (
            body_of(b"Content-Transfer-Encoding: base64\r\n" + part("a")),
            f"{ENCODED} 'base64'. Send the bytes as they are.",
        ),
        (
            b"a" * 9999 + b"\r\n" + body_of(part("a")),
            NO_BOUNDARY_LINE,
        ),
    ],
)
def test_a_malformed_body_is_described(body, sentence):
    assert error_of(body).detail == sentence


def test_lines_that_begin_with_the_boundary_fail_at_the_first():
    body = body_of(part("a", b"\r\n--cut-hereX" * 100_000))
    assert error_of(body).detail == f"{NO_LINE_END}, got something else at byte 68."


def test_an_extended_name_does_not_replace_the_name():
    body = body_of(b"Content-Disposition: form-data; name=\"a\"; name*=utf-8''b\r\n\r\n")
    assert list(multipart.decode(body, TYPE)) == ["a"]


def test_a_body_cut_before_its_last_boundary_ends_is_malformed():
    for length in range(len(GOLDEN) - 2):
        error_of(GOLDEN[:length])


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=100), st.integers(0, len(GOLDEN)), st.integers(0, len(GOLDEN)))
def test_random_bytes_are_read_or_raise_a_request_error(noise, begin, end):
    for body in (noise, GOLDEN[:begin] + noise + GOLDEN[end:]):
        with contextlib.suppress(RequestError):
            multipart.decode(body, TYPE)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40))
def test_random_header_values_are_read_or_raise_a_request_error(text):
    disposition = f"Content-Disposition: form-data; name=a; {text}\r\n\r\n"
    with contextlib.suppress(RequestError):
        multipart.decode(body_of(disposition.encode(errors="replace")), TYPE)
    for content_type in (text, f"multipart/form-data; {text}", f"{TYPE}{text}"):
        with contextlib.suppress(RequestError):
            multipart.decode(GOLDEN, content_type)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from("abcdef"), st.binary(max_size=40)))
def test_any_data_without_the_boundary_is_read_unchanged(contents):
    body = body_of(*(part(name, data) for name, data in contents.items()))
    if not contents:
        body = b"--cut-here--\r\n"
    parts = multipart.decode(body, TYPE)
    assert {name: bytes(found.data) for name, found in parts.items()} == contents
