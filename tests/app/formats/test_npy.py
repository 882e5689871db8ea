"""NPY: golden bytes, NumPy as a second implementation, and every kind of malformed file."""

import contextlib
import io
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import IllPosed, Malformed, RequestError
from app.formats import npy

HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
GOLDEN = (
    b"\x93NUMPY\x01\x00v\x00"
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }" + b" " * 58 + b"\n"
    b"\x00\x00\x00\x00\x00\x00\x80\x3f\x00\x00\x00\x40"
    b"\x00\x00\x40\x40\x00\x00\x80\x40\x00\x00\xa0\x40"
)
SIX = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def npy_of(array: np.ndarray, version: tuple[int, int] | None = None) -> bytearray:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return bytearray(file.getvalue())


def npy_with_header(
    header: str, payload: bytes = bytes(24), version: bytes = b"\x01\x00"
) -> bytearray:
    """A file with any header, valid or not, and its final line feed."""
    text = header.encode() + b"\n"
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return bytearray(b"\x93NUMPY" + version + length + text + payload)


def npy_with_descr(descr: str) -> bytearray:
    return npy_with_header(HEADER.replace("'<f4'", descr))


def test_the_golden_bytes_are_six_floats():
    torch.testing.assert_close(npy.decode(bytearray(GOLDEN), "logits"), SIX, rtol=0, atol=0)


def test_six_floats_are_the_golden_bytes():
    header, payload = npy.encode(SIX)
    assert header + payload == GOLDEN


def test_an_empty_array_is_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        tensor = npy.decode(npy_of(np.empty((0, 3), np.float32)), "logits")
    assert tensor.device.type == "cpu"


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (2, 3, 5)])
def test_arrays_pass_from_numpy_and_back_unchanged(dtype, shape):
    array = np.arange(math.prod(shape)).astype(dtype).reshape(shape)
    tensor = npy.decode(npy_of(array), "logits")
    assert tensor.shape == shape
    assert tensor.numpy().dtype == array.dtype
    np.testing.assert_array_equal(tensor.numpy(), array)
    loaded = np.load(io.BytesIO(b"".join(npy.encode(tensor))))
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize("dtype", ["u2", "u4", "u8"])
def test_unsigned_integers_are_read_as_they_are(dtype):
    array = np.array([0, np.iinfo(dtype).max], dtype)
    tensor = npy.decode(npy_of(array), "labels")
    assert tensor.numpy().dtype == array.dtype
    assert tensor.tolist() == array.tolist()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_all_three_versions_are_read(version):
    assert torch.equal(npy.decode(npy_of(SIX.numpy(), version), "logits"), SIX)


@pytest.mark.parametrize(
    "header",
    [
        "{'shape': (2, 3), 'descr': '<f4', 'fortran_order': False}",
        "{'fortran_order':False,'shape':(2,3,),'descr':'<f4'}   ",
        '{"descr": "<f4", "fortran_order": False, "shape": (2, 3), }',
    ],
)
def test_keys_may_stand_in_any_order_and_spacing(header):
    assert npy.decode(npy_with_header(header), "logits").shape == (2, 3)


@pytest.mark.parametrize(
    ("text", "shape"), [("(2L, 3L)", (2, 3)), ("(6L,)", (6,)), ("(1, 2L, 3)", (1, 2, 3))]
)
def test_long_integers_of_python_2_are_read(text, shape):
    assert npy.decode(npy_with_header(HEADER.replace("(2, 3)", text)), "logits").shape == shape


def test_one_byte_has_any_byte_order():
    for order in ("", "|", "<", ">", "="):
        body = npy_with_header(HEADER.replace("<f4", f"{order}u1"), bytes(range(6)))
        assert npy.decode(body, "labels").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_writable_body_is_not_copied():
    body = bytearray(GOLDEN)
    start = torch.frombuffer(body, dtype=torch.uint8).data_ptr()
    tensor = npy.decode(body, "logits")
    assert tensor.data_ptr() == start + 128
    body[-4:] = bytes(4)
    assert tensor[1, 2] == 0


def test_a_body_cannot_be_resized_under_its_tensor():
    body = bytearray(GOLDEN)
    tensor = npy.decode(body, "logits")
    with pytest.raises(BufferError):
        body.clear()
    assert torch.equal(tensor, SIX)


@pytest.mark.parametrize("body", [GOLDEN, memoryview(GOLDEN)])
def test_read_only_memory_is_copied_and_unchanged(body):
    npy.decode(body, "logits").zero_()
    assert GOLDEN[-4:] == b"\x00\x00\xa0\x40"


def test_fortran_order_is_a_transposed_view():
    array = np.asfortranarray(np.arange(24, dtype="<f4").reshape(2, 3, 4))
    body = npy_of(array)
    start = torch.frombuffer(body, dtype=torch.uint8).data_ptr()
    tensor = npy.decode(body, "logits")
    assert tensor.stride() == (1, 2, 6)
    assert tensor.data_ptr() == start + 128
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_misaligned_elements_are_copied_to_aligned_memory():
    body = bytearray(1) + GOLDEN
    tensor = npy.decode(memoryview(body)[1:], "logits")
    assert tensor.data_ptr() % 4 == 0
    assert torch.equal(tensor, SIX)


def test_a_contiguous_tensor_is_its_own_payload():
    tensor = SIX.clone()
    _, payload = npy.encode(tensor)
    assert np.frombuffer(payload, np.uint8).ctypes.data == tensor.data_ptr()


def test_a_strided_tensor_is_written_in_row_major_order():
    loaded = np.load(io.BytesIO(b"".join(npy.encode(SIX.T))))
    np.testing.assert_array_equal(loaded, SIX.T.numpy())


def test_a_tensor_that_requires_a_gradient_is_written():
    assert bytes(npy.encode(SIX.clone().requires_grad_())[1]) == GOLDEN[128:]


def test_writing_bfloat16_is_an_error_with_a_fix():
    with pytest.raises(IllPosed) as error:
        npy.encode(SIX.bfloat16())
    assert error.value.detail == (
        "npy: expected a number type that NumPy has, got bfloat16. "
        "Ask for application/x-safetensors."
    )


KNOWN = "one of |i1, <i2, <i4, <i8, |u1, <u2, <u4, <u8, <f2, <f4, <f8"


@pytest.mark.parametrize(
    ("descr", "got", "fix"),
    [
        ("'>f4'", "big-endian >f4", "Save array.astype('<f4')."),
        ("'=f4'", "no byte order =f4", "Save array.astype('<f4')."),
        ("'|b1'", "|b1", "Save array.astype('|u1')."),
        ("'<u16'", "<u16", "Save array.astype('<i8')."),
        ("'<f16'", "<f16", "Save array.astype('<f4')."),
        ("'|V2'", "|V2", "bfloat16? Send safetensors."),
        ("'<c8'", "<c8", None),
        ("'<U5'", "<U5", None),
        ("'<M8[ns]'", "<M8[ns]", None),
        ("[('a', '<f4')]", "a structured dtype", "Save each field as an array of its own."),
    ],
)
def test_an_unsupported_dtype_is_ill_posed(descr, got, fix):
    with pytest.raises(IllPosed) as error:
        npy.decode(npy_with_descr(descr), "logits")
    assert error.value.where == "logits"
    assert error.value.expected in (KNOWN, "little-endian <f4")
    assert error.value.got == got
    assert error.value.fix == fix


executed: list[str] = []


class Exploit:
    """An object whose unpickling calls a function."""

    def __reduce__(self):
        return execute, ("an exploit",)


def execute(name: str) -> None:
    executed.append(name)


@pytest.mark.parametrize("order", ["C", "F"])
def test_pickled_objects_are_malformed_and_never_executed(order):
    body = npy_of(np.array([[Exploit(), Exploit()]], dtype=object, order=order))
    executed.clear()
    with pytest.raises(Malformed) as error:
        npy.decode(body, "logits")
    assert executed == []
    assert error.value.detail == (
        f"logits: expected {KNOWN}, got Python objects. "
        "Pickled objects are never read: save numbers, array.astype('<f4')."
    )
    np.load(io.BytesIO(body), allow_pickle=True)
    assert executed == ["an exploit", "an exploit"]  # NumPy does execute it


NOT_NPY = "logits: expected an NPY file, which begins with 93 4e 55 4d 50 59"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            b"",
            f"{NOT_NPY}, got nothing. Write the file with numpy.save.",
        ),
        (
            b"PK\x03\x04 an npz file",
            f"{NOT_NPY}, got 50 4b 03 04 20 61. Write the file with numpy.save.",
        ),
        (b"\x93NUMPY\x04\x00", "logits: expected NPY version 1.0, 2.0 or 3.0, got 4.0."),
        (b"\x93NUMPY\x01\x00v", "logits: expected an NPY file of at least 10 bytes, got 9."),
        (b"\x93NUMPY\x01\x00v\x00{", "logits: expected an NPY header of 118 bytes, got 1."),
        (
            b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
            "logits: expected an NPY header of at most 65536 bytes, got 4294967295.",
        ),
        (GOLDEN[:-1], "logits: expected 24 bytes for float32 (2, 3), got 23."),
        (GOLDEN + b"\x00", "logits: expected 24 bytes for float32 (2, 3), got 25."),
    ],
)
def test_a_malformed_file_is_described(body, sentence):
    with pytest.raises(Malformed) as error:
        npy.decode(body, "logits")
    assert error.value.detail == sentence


def test_a_shape_beyond_64_bit_addresses_is_malformed():
    header = HEADER.replace("(2, 3)", "(2147483647, 2147483647)")
    with pytest.raises(Malformed) as error:
        npy.decode(npy_with_header(header), "logits")
    assert error.value.expected == "a shape within 64-bit addresses"


@pytest.mark.parametrize(
    "shape",
    [
        "(2147483648,)",
        "(99999999999999999999,)",
        f"({'9' * 60_000},)",
        f"({'1, ' * 65})",
        f"(0, {'2147483647, ' * 3})",
    ],
)
def test_a_shape_that_torch_cannot_hold_is_malformed(shape):
    with pytest.raises(Malformed):
        npy.decode(npy_with_header(HEADER.replace("(2, 3)", shape), b""), "logits")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{",
        "{}",
        "()",
        HEADER[:-1],
        HEADER + "x",
        HEADER + "\n",
        " " + HEADER,
        HEADER.replace("}", "'more': 1}"),
        HEADER.replace("}", "'descr': '<f4'}"),
        HEADER.replace("descr", "dtype"),
        HEADER.replace("False", "0"),
        HEADER.replace("False", "__import__('os')"),
        HEADER.replace("(2, 3)", "(-2, -3)"),
        HEADER.replace("(2, 3)", "(True, 6)"),
        HEADER.replace("(2, 3)", "[2, 3]"),
        HEADER.replace("(2, 3)", "(6)"),
        HEADER.replace("(2, 3)", "(2, , 3)"),
        HEADER.replace("(2, 3)", "(L, 3)"),
        HEADER.replace("(2, 3)", "(2LL, 3)"),
        HEADER.replace("(2, 3)", "(2 L, 3)"),
        HEADER.replace("(2, 3)", "(2_0, 3)"),
        HEADER.replace("(2, 3)", "(２, 3)"),
        HEADER.replace("(2, 3)", "'<f4'"),
        HEADER.replace("'<f4'", "True"),
        HEADER.replace("<f4", ""),
        HEADER.replace("<f4", "float32"),
        HEADER.replace("<f4", "<f4\\x00"),
        HEADER.replace("False", "'False'"),
        "{" + "'descr': '<f4', " * 4000 + "}",
        "{" + " " * 65_000,
        "{'shape': (" + "1, " * 20_000,
        "{'descr': [" + "]" * 60_000,
    ],
)
def test_a_header_without_exactly_the_three_keys_is_malformed(header):
    with pytest.raises(Malformed):
        npy.decode(npy_with_header(header), "logits")


def test_a_header_without_its_line_feed_is_malformed():
    text = HEADER.encode()
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(24)
    with pytest.raises(Malformed, match="something else from its byte 57 on"):
        npy.decode(body, "logits")


def test_a_file_cut_anywhere_is_malformed():
    for length in range(len(GOLDEN)):
        with pytest.raises(Malformed):
            npy.decode(GOLDEN[:length], "logits")


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_raise_a_request_error(noise):
    for body in (noise, b"\x93NUMPY\x01\x00" + noise, GOLDEN[:70] + noise):
        with contextlib.suppress(RequestError):
            npy.decode(body, "logits")


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(GOLDEN) - 1), st.integers(0, 255)), max_size=4))
def test_changed_bytes_are_read_or_raise_a_request_error(changes):
    body = bytearray(GOLDEN)
    for index, value in changes:
        body[index] = value
    try:
        tensor = npy.decode(body, "logits")
    except RequestError:
        return
    assert tensor.numel() * tensor.itemsize >= 24  # widening adds bytes


@settings(deadline=None, max_examples=300)
@given(st.text("{}()[]'\",: \n0123456789<>|=fiubOVdescrfortran_ordershapeTrueFalse", max_size=80))
def test_a_random_header_is_read_or_raise_a_request_error(header):
    for text in (header, HEADER.replace("'<f4'", header), HEADER.replace("(2, 3)", header)):
        with contextlib.suppress(RequestError):
            npy.decode(npy_with_header(text), "logits")
