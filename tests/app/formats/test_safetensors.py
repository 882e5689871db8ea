"""safetensors: golden bytes, the package as a second implementation, and malformed files."""

import contextlib
import json
import struct

import pytest
import safetensors.torch as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import IllPosed, Malformed, RequestError
from app.formats import safetensors

GOLDEN = (
    b"\x78\x00\x00\x00\x00\x00\x00\x00"
    b'{"logits":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
    b'"labels":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}}  '
    b"\x00\x00\x80\x3f\x00\x00\x00\xc0\xff"
)
LOGITS = torch.tensor([[1.0, -2.0]])
LABELS = torch.tensor([255], dtype=torch.uint8)
KNOWN = "a dtype among I8, I16, I32, I64, U8, U16, U32, U64, F16, BF16, F32, F64"


def file_with_header(header: object, payload: bytes = b"", padding: int = 0) -> bytearray:
    """A file with any header, valid or not; a header of bytes is not encoded."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * padding
    return bytearray(struct.pack("<Q", len(text)) + text + payload)


def entry(dtype: object, shape: object, *offsets: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def error_of(body: bytes | bytearray, where: str = "body") -> RequestError:
    with pytest.raises(RequestError) as error:
        safetensors.decode(body, where)
    return error.value


def test_the_golden_bytes_are_logits_and_labels():
    tensors, metadata = safetensors.decode(bytearray(GOLDEN))
    assert list(tensors) == ["logits", "labels"]
    assert torch.equal(tensors["logits"], LOGITS)
    assert torch.equal(tensors["labels"], LABELS)
    assert metadata == {}


def test_logits_and_labels_are_the_golden_bytes_in_any_order():
    for tensors in ({"logits": LOGITS, "labels": LABELS}, {"labels": LABELS, "logits": LOGITS}):
        assert b"".join(safetensors.encode(tensors, {})) == GOLDEN


DTYPES = [
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3, 5)])
def test_tensors_pass_from_the_safetensors_package_and_back(dtype, shape):
    tensor = torch.arange(torch.Size(shape).numel()).to(dtype).reshape(shape)
    tensors = {"logits": tensor, "labels": torch.tensor([1, 2, 255], dtype=torch.uint8)}
    by_package = reference.save(tensors, {"loss": "0.5", "ü": "∞"})
    by_app = b"".join(safetensors.encode(tensors, {"loss": "0.5", "ü": "∞"}))
    assert reference.load(by_app).keys() == tensors.keys()
    for body in (by_package, by_app):
        decoded, metadata = safetensors.decode(bytearray(body))
        assert metadata == {"loss": "0.5", "ü": "∞"}
        for name, expected in tensors.items():
            assert decoded[name].dtype == expected.dtype
            assert torch.equal(decoded[name], expected)
            assert torch.equal(reference.load(by_app)[name], expected)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_integers_are_read_as_they_are(dtype):
    expected = torch.tensor([0, torch.iinfo(dtype).max], dtype=dtype)
    labels = safetensors.decode(bytearray(reference.save({"labels": expected})))[0]["labels"]
    assert labels.dtype == dtype
    assert labels.tolist() == expected.tolist()


def test_a_writable_body_is_not_copied():
    body = bytearray(GOLDEN)
    start = torch.frombuffer(body, dtype=torch.uint8).data_ptr()
    tensors, _ = safetensors.decode(body)
    assert tensors["logits"].data_ptr() == start + 128
    assert tensors["labels"].data_ptr() == start + 136


def test_read_only_memory_is_copied_and_unchanged():
    safetensors.decode(GOLDEN)[0]["logits"].zero_()
    assert GOLDEN[128:132] == b"\x00\x00\x80\x3f"


@pytest.mark.parametrize("padding", range(8))
def test_misaligned_elements_are_copied_to_aligned_memory(padding):
    payload = struct.pack("<2f", 1, -2)
    body = file_with_header({"logits": entry("F32", [1, 2], 0, 8)}, payload, padding)
    logits = safetensors.decode(body)[0]["logits"]
    assert logits.data_ptr() % 4 == 0
    assert torch.equal(logits, LOGITS)


def test_written_payloads_are_aligned_and_not_copied():
    tensors = {"a": LABELS, "b": LOGITS.double(), "c": LOGITS.half(), "d": LOGITS.clone()}
    header, *payloads = safetensors.encode(tensors, {"loss": "0.5"})
    assert len(header) % 64 == 0
    addresses = [torch.frombuffer(payload, dtype=torch.uint8).data_ptr() for payload in payloads]
    assert addresses == [tensors[name].data_ptr() for name in "bdca"]
    members = json.loads(bytes(header[8:]))
    assert members["c"]["data_offsets"] == [24, 28]


def test_an_empty_file_has_no_tensors():
    assert safetensors.decode(file_with_header({})) == ({}, {})
    assert safetensors.decode(b"".join(safetensors.encode({}, {}))) == ({}, {})


def test_writing_a_dtype_that_the_format_lacks_is_an_error():
    with pytest.raises(IllPosed) as error:
        safetensors.encode({"gradient": LOGITS.to(torch.complex64)}, {})
    assert error.value.detail == f"gradient: expected {KNOWN}, got complex64."


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"1234567", "body: expected a safetensors file of at least 8 bytes, got 7."),
        (
            struct.pack("<Q", 2**64 - 1) + b"{}",
            "body: expected a safetensors header of at most 65536 bytes, got 18446744073709551615.",
        ),
        (
            struct.pack("<Q", 3) + b"{}",
            "body: expected a safetensors header of 3 bytes, got 2.",
        ),
        (
            file_with_header(b""),
            "body: expected a safetensors header that begins with {, got something else.",
        ),
        (
            file_with_header(b" {}"),
            "body: expected a safetensors header that begins with {, got something else.",
        ),
        (file_with_header(b"{]"), "body header: expected JSON, got something else at character 1."),
        (file_with_header(b"{\xff}"), "body header: expected JSON in UTF-8, got other bytes."),
        (
            file_with_header(b'{"a":1,"a":1}'),
            "body header: expected a JSON object with every key once, got a key twice.",
        ),
        (
            file_with_header(b'{"a":{"shape":[],"shape":[]}}'),
            "body header: expected a JSON object with every key once, got a key twice.",
        ),
        (
            file_with_header(b'{"a":NaN}'),
            "body header: expected JSON, which has finite numbers only, got NaN.",
        ),
        (
            file_with_header(b'{"a":' + b"9" * 5000 + b"}"),
            "body header: expected JSON numbers of a few digits, got thousands of digits.",
        ),
        (
            file_with_header(b'{"a":' + b"[" * 30_000),
            "body header: expected JSON nested a few levels deep, got hundreds of levels.",
        ),
        (
            file_with_header({f"t{i}": entry("U8", [0], 0, 0) for i in range(17)}),
            "body: expected at most 16 tensors, got 17.",
        ),
        (
            file_with_header({"logits": entry("F32", [2, 3], 0, 20)}, bytes(20)),
            "body['logits']: expected 24 bytes for float32 (2, 3), got 20.",
        ),
        (
            file_with_header({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 3, 7)}, bytes(7)),
            "body: expected tensors one after the other, got an overlap at byte 3.",
        ),
        (
            file_with_header({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 0, 4)}, bytes(4)),
            "body: expected tensors one after the other, got an overlap at byte 0.",
        ),
        (
            file_with_header({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 5, 9)}, bytes(9)),
            "body: expected tensors one after the other, got a hole at byte 5.",
        ),
        (
            file_with_header({"a": entry("U8", [4], 1, 5)}, bytes(5)),
            "body: expected tensors one after the other, got a hole at byte 1.",
        ),
        (
            file_with_header({"a": entry("U8", [4], 0, 4)}, bytes(5)),
            "body: expected 4 bytes after the header, got 5.",
        ),
        (
            file_with_header({"a": entry("U8", [2**40], 0, 2**40)}, bytes(5)),
            "body: expected 1099511627776 bytes after the header, got 5.",
        ),
    ],
)
def test_a_malformed_file_is_described(body, sentence):
    error = error_of(body)
    assert isinstance(error, Malformed)
    assert error.detail == sentence


@pytest.mark.parametrize(
    "invalid",
    [
        {},
        [],
        None,
        1,
        {"dtype": "U8", "shape": [4]},
        entry("U8", [4], 0, 4) | {"more": 1},
        entry(1, [4], 0, 4),
        entry(None, [4], 0, 4),
        entry("", [4], 0, 4),
        entry("u8", [4], 0, 4),
        entry("U8\n", [4], 0, 4),
        entry("U8", 4, 0, 4),
        entry("U8", "4", 0, 4),
        entry("U8", [4.0], 0, 4),
        entry("U8", [True, 4], 0, 4),
        entry("U8", [-4], 0, 4),
        entry("U8", [-2, -2], 0, 4),
        entry("U8", [None], 0, 4),
        entry("U8", [[4]], 0, 4),
        entry("U8", [2**31], 0, 2**31),
        entry("U8", [2**64], 0, 4),
        entry("U8", [2**63 - 1, 2**63 - 1], 0, 4),
        entry("U8", [2**31 - 1] * 40, 0, 4),
        entry("U8", [0, *[2**31 - 1] * 3], 0, 4),
        entry("U8", [1] * 65 + [4], 0, 4),
        entry("U8", [], 0, 4),
        entry("U8", [4], 0),
        entry("U8", [4]),
        entry("U8", [4], 0, 4, 4),
        entry("U8", [4], 4, 0),
        entry("U8", [4], -4, 0),
        entry("U8", [4], 0, 4.0),
        entry("U8", [4], False, 4),
        entry("U8", [4], 0, 10**400),
        entry("F64", [4], 0, 4),
    ],
)
def test_an_invalid_entry_is_malformed(invalid):
    assert isinstance(error_of(file_with_header({"labels": invalid}, bytes(4))), Malformed)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "C64", "F4"])
def test_an_unsupported_dtype_is_ill_posed(dtype):
    error = error_of(
        file_with_header({"labels": entry(dtype, [1], 0, 8)}, bytes(8)), "multipart labels"
    )
    assert isinstance(error, IllPosed)
    assert error.where == "multipart labels['labels']"
    assert error.expected == KNOWN
    assert error.got == dtype


def test_booleans_are_ill_posed_with_a_fix():
    error = error_of(reference.save({"labels": torch.tensor([True])}))
    assert isinstance(error, IllPosed)
    assert error.detail == f"body['labels']: expected {KNOWN}, got BOOL. Send U8."


@pytest.mark.parametrize("metadata", [None, [], "a", {"a": 1}, {"a": None}, {"a": {"b": "c"}}])
def test_metadata_other_than_strings_is_malformed(metadata):
    error = error_of(file_with_header({"__metadata__": metadata}))
    assert error.detail == (
        "body: expected an object of strings as __metadata__, got something else."
    )


def test_an_unpaired_surrogate_in_a_name_is_malformed():
    body = file_with_header(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}')
    assert error_of(body).detail == "body header: expected JSON in UTF-8, got other bytes."


def test_a_long_name_is_cut_and_escaped_in_messages():
    error = error_of(file_with_header({"\n\u202e" + "x" * 99: {}}))
    assert error.where == "body['\\x0a\\u202e" + "x" * 65 + "...']"


def test_a_file_cut_anywhere_is_malformed():
    for length in range(len(GOLDEN)):
        assert isinstance(error_of(GOLDEN[:length]), Malformed)


@pytest.mark.parametrize(
    "header", [b'{"a":[' + b"0," * 32_000 + b"0]}", b'{"a":' * 10_000, b"{" + b" " * 65_000]
)
def test_a_costly_header_is_malformed(header):
    assert isinstance(error_of(file_with_header(header)), Malformed)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_raise_a_request_error(noise):
    for body in (
        noise,
        file_with_header(noise),
        file_with_header(b"{" + noise + b"}"),
        GOLDEN[:60] + noise,
    ):
        with contextlib.suppress(RequestError):
            safetensors.decode(body)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(GOLDEN) - 1), st.integers(0, 255)), max_size=4))
def test_changed_bytes_are_read_or_raise_a_request_error(changes):
    body = bytearray(GOLDEN)
    for index, value in changes:
        body[index] = value
    with contextlib.suppress(RequestError):
        safetensors.decode(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["U8", "F32", "a"]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]), children
        )
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(JSON, st.integers(0, 16))
def test_a_random_header_is_read_or_raise_a_request_error(value, num_bytes):
    for header in (value, {"a": value}, {"a": entry("U8", value, 0, num_bytes)}):
        with contextlib.suppress(RequestError):
            safetensors.decode(file_with_header(header, bytes(num_bytes)))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(-1, 9), st.integers(-1, 9)), max_size=4), st.integers(0, 9))
def test_read_tensors_cover_the_payload_without_overlap(offsets, num_bytes):
    header = {
        f"t{i}": entry("U8", [end - begin], begin, end) for i, (begin, end) in enumerate(offsets)
    }
    try:
        tensors, _ = safetensors.decode(file_with_header(header, bytes(num_bytes)))
    except RequestError:
        return
    assert sorted(i for begin, end in offsets for i in range(begin, end)) == list(range(num_bytes))
    assert sum(tensor.numel() for tensor in tensors.values()) == num_bytes
