"""JSON lists: the tensors in them, and the message for every other text."""

import contextlib
from json import dumps

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import IllPosed, Malformed, RequestError
from app.formats import json

GOLDEN = b'{"logits": [[[[0.5, 2.0]], [[1.5, -1.0]]]], "labels": [[[0, 255]]]}'


def error_of(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as error:
        json.decode(body)
    return error.value


def test_the_example_is_logits_and_labels():
    tensors = json.decode(GOLDEN)
    assert list(tensors) == ["logits", "labels"]
    assert tensors["logits"].dtype == torch.float32
    assert torch.equal(tensors["logits"], torch.tensor([[[[0.5, 2.0]], [[1.5, -1.0]]]]))
    assert tensors["labels"].dtype == torch.int64
    assert torch.equal(tensors["labels"], torch.tensor([[[0, 255]]]))


def test_empty_lists_are_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        tensors = json.decode(b'{"logits": [[]], "labels": []}')
    assert {tensor.device.type for tensor in tensors.values()} == {"cpu"}


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_kind_of_buffer_is_read(wrap):
    assert json.decode(wrap(GOLDEN)).keys() == {"logits", "labels"}


def test_a_byte_order_mark_is_ignored():
    tensors = json.decode(b"\xef\xbb\xbf" + GOLDEN)
    assert torch.equal(tensors["labels"], torch.tensor([[[0, 255]]]))


def test_every_key_has_its_dtype():
    body = {key: [0, 1] for key in json.KEYS}
    dtypes = {key: tensor.dtype for key, tensor in json.decode(dumps(body).encode()).items()}
    assert dtypes == {
        "logits": torch.float32,
        "labels": torch.int64,
        "prediction": torch.int64,
        "class_weight": torch.float32,
        "pixel_weight": torch.float32,
    }


@pytest.mark.parametrize("key", ["logits", "labels"])
@pytest.mark.parametrize("shape", [(1,), (0,), (2, 0), (2, 3), (1, 2, 3, 4), (1, 2, 1, 2, 1, 2)])
def test_lists_keep_their_shape_and_entries(key, shape):
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape)
    body = dumps({key: numbers.tolist()}).encode()
    decoded = json.decode(body)[key]
    assert decoded.shape == shape
    assert torch.equal(decoded, numbers.to(decoded.dtype))


def test_the_limits_of_int64_and_float32_are_kept():
    body = {"labels": [-(2**63), 2**63 - 1], "logits": [3.4028234e38, -3.4028234e38, 1e-45, -0.0]}
    decoded = json.decode(dumps(body).encode())
    assert decoded["labels"].tolist() == body["labels"]
    assert torch.equal(decoded["logits"], torch.tensor(body["logits"]))
    assert decoded["logits"][3].signbit()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "body: expected JSON, got something else at character 0."),
        (b'{"labels": [0,]}', "body: expected JSON, got something else at character 14."),
        (b"{} {}", "body: expected JSON, got something else at character 3."),
        (b"\xef\xbb\xbf", "body: expected JSON, got something else at character 0."),
        (b"{}\xef\xbb\xbf", "body: expected JSON, got something else at character 2."),
        (b'{"labels": "\xff"}', "body: expected JSON in UTF-8, got other bytes."),
        (b'{"labels": "\\ud800"}', "body: expected JSON in UTF-8, got other bytes."),
        ("{}".encode("utf-16"), "body: expected JSON in UTF-8, got other bytes."),
        (b"[]", "body: expected a JSON object, got a list."),
        (b"null", "body: expected a JSON object, got null."),
        (b"true", "body: expected a JSON object, got true or false."),
        (b'"logits"', "body: expected a JSON object, got a string."),
        (
            b'{"logits": [NaN]}',
            "body: expected JSON, which has finite numbers only, got NaN.",
        ),
        (
            b'{"logits": [-Infinity]}',
            "body: expected JSON, which has finite numbers only, got -Infinity.",
        ),
        (
            b'{"logits": [0], "logits": [0]}',
            "body: expected a JSON object with every key once, got a key twice.",
        ),
        (
            b'{"logits": [' + b"1" * 5000 + b"]}",
            "body: expected JSON numbers of a few digits, got thousands of digits.",
        ),
        (
            b'{"logits": ' + b"[" * 100_000,
            "body: expected JSON nested a few levels deep, got hundreds of levels.",
        ),
        (
            b'{"logits": ' + b"[" * 7 + b"]" * 7 + b"}",
            "logits: expected lists at most 6 deep, got deeper ones.",
        ),
    ],
)
def test_a_body_that_is_not_json_or_too_deep_is_malformed(body, sentence):
    error = error_of(body)
    assert isinstance(error, Malformed)
    assert error.detail == sentence


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            b'{"target": [0]}',
            f"body: expected keys among {', '.join(json.KEYS)}, got 'target'.",
        ),
        (
            b'{"Label": [0]}',
            f"body: expected keys among {', '.join(json.KEYS)}, got 'Label'. Did you mean labels?",
        ),
        (b'{"logits": 1}', "logits: expected a list, got an integer."),
        (b'{"logits": null}', "logits: expected a list, got null."),
        (b'{"logits": {}}', "logits: expected a list, got an object."),
        (b'{"logits": [[[1, 2], [3]]]}', "logits[0][1]: expected 2 entries, got 1."),
        (
            b'{"logits": [[[1,2,3,4], [1,2,3,4], [1,2,3]]]}',
            "logits[0][2]: expected 4 entries, got 3.",
        ),
        (b'{"logits": [[[1]], [[2], [3]]]}', "logits[1]: expected 1 entries, got 2."),
        (b'{"logits": [[1], 2]}', "logits[1]: expected a list of 1 entries, got an integer."),
        (b'{"logits": [[1], null]}', "logits[1]: expected a list of 1 entries, got null."),
        (b'{"logits": [[1, [2]]]}', "logits[0][1]: expected a number, got a list."),
        (b'{"logits": [[1, null]]}', "logits[0][1]: expected a number, got null."),
        (b'{"logits": [true]}', "logits[0]: expected a number, got true or false."),
        (b'{"logits": ["1"]}', "logits[0]: expected a number, got a string."),
        (b'{"labels": [[0, false]]}', "labels[0][1]: expected an integer, got true or false."),
        (b'{"labels": [[0], [null]]}', "labels[1][0]: expected an integer, got null."),
        (b'{"labels": [[0, 1.0]]}', "labels[0][1]: expected an integer, got 1.0. Write 1."),
        (b'{"labels": [1.5]}', "labels[0]: expected an integer, got 1.5."),
        (b'{"labels": [1e400]}', "labels[0]: expected an integer, got inf."),
        (
            b'{"prediction": [9223372036854775808]}',
            "prediction[0]: expected a 64-bit integer, got a larger one.",
        ),
        (
            b'{"labels": [0, -9223372036854775809]}',
            "labels[1]: expected a 64-bit integer, got a smaller one.",
        ),
        (
            b'{"logits": [0, 1e39]}',
            "logits[1]: expected a number that float32 holds, got a larger one.",
        ),
        (
            b'{"logits": [1e400]}',
            "logits[0]: expected a number that float32 holds, got a larger one.",
        ),
        (
            b'{"logits": [[0, 1], [2, -1' + b"0" * 400 + b"]]}",
            "logits[1][1]: expected a number that float32 holds, got a smaller one.",
        ),
    ],
)
def test_json_that_is_no_tensor_is_ill_posed_with_its_path(body, sentence):
    error = error_of(body)
    assert isinstance(error, IllPosed)
    assert error.detail == sentence


def test_the_caller_may_know_the_fix_for_an_unknown_key():
    with pytest.raises(IllPosed) as error:
        json.decode(b'{"label": 0}', "Send {}.".format)
    assert error.value.fix == "Send label."


def test_an_unknown_key_is_cut_and_escaped_in_messages():
    error = error_of(dumps({"\n\u202e" + "x" * 99: []}).encode())
    assert error.got == "'\\x0a\\u202e" + "x" * 65 + "...'"


def test_a_body_cut_anywhere_is_malformed():
    for length in range(len(GOLDEN)):
        assert isinstance(error_of(GOLDEN[:length]), Malformed)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=100), st.integers(0, len(GOLDEN)), st.integers(0, len(GOLDEN)))
def test_random_bytes_are_read_or_raise_a_request_error(noise, begin, end):
    for body in (noise, GOLDEN[:begin] + noise + GOLDEN[end:]):
        with contextlib.suppress(RequestError):
            json.decode(body)


NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63) - 1, 10**400, 1e39, True])
VALUES = st.recursive(
    NUMBERS | st.none() | st.text(max_size=3),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(json.KEYS), st.lists(VALUES, max_size=4)))
def test_random_lists_are_read_or_raise_a_request_error(message):
    with contextlib.suppress(RequestError):
        tensors = json.decode(dumps(message).encode())
        assert tensors.keys() == message.keys()
        assert all(tensor.isfinite().all() for tensor in tensors.values())
