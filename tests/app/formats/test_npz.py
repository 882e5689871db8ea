"""NPZ: archives as NumPy writes them, and a sentence for every damaged one."""

import contextlib
import io
import random
import struct
import zipfile

import numpy as np
import pytest
import torch

from app.errors import IllPosed, Malformed, RequestError, TooLarge
from app.formats import npy, npz

METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflated": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}
ARRAY = np.arange(3000, dtype=np.float32).reshape(30, 100) % 17
MAX_BYTES = 1 << 16


def npz_file(method: str = "deflated", **arrays: np.ndarray) -> memoryview:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", METHODS[method]) as archive:
        for name, array in (arrays or {"logits": ARRAY}).items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
    return memoryview(target.getvalue())


def with_bytes(content: memoryview, replacements: dict[int, bytes]) -> memoryview:
    changed = bytearray(content)
    for offset, value in replacements.items():
        changed[offset : offset + len(value)] = value
    return memoryview(changed)


def entry_of(content: memoryview) -> int:
    """The offset of the last entry of the central directory."""
    return bytes(content).rfind(b"PK\x01\x02")


@pytest.mark.parametrize("method", METHODS)
def test_every_compression_of_zip_files_is_read(method):
    tensor = npy.decode(npz.read(npz_file(method), "logits"), "logits")
    assert torch.equal(tensor, torch.from_numpy(ARRAY))


@pytest.mark.parametrize("content", [b"", b"text", bytes(npz_file())])
def test_a_member_that_is_no_array_is_an_error(content):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("logits.npy", content)
    with pytest.raises(Malformed) as error:
        npz.read(memoryview(target.getvalue()), "logits")
    assert error.value.detail == (
        "logits: expected an NPZ file of arrays, got one with another file."
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_of_numpy_are_read_with_a_limit(save):
    target = io.BytesIO()
    save(target, labels=ARRAY, logits=ARRAY + 1)
    content = npz.read(memoryview(target.getvalue()), "labels", MAX_BYTES)
    assert not content.readonly
    assert torch.equal(npy.decode(content, "labels"), torch.from_numpy(ARRAY))


def test_the_only_array_may_have_any_name():
    assert npz.read(npz_file(arr_0=ARRAY), "logits")[:6] == npy.MAGIC


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (npz_file(a=ARRAY, b=ARRAY), "2 of other names"),
        (memoryview(b"PK\x05\x06" + bytes(18)), "an empty archive"),
    ],
)
def test_an_array_that_cannot_be_chosen_is_an_error(content, got):
    with pytest.raises(IllPosed) as error:
        npz.read(content, "logits")
    assert error.value.detail == f"logits: expected one array, or one named logits, got {got}."


@pytest.mark.parametrize("method", ["bzip2", "lzma"])
def test_a_limit_allows_only_compressions_that_keep_to_it(method):
    with pytest.raises(Malformed, match="expected arrays that are stored or deflated"):
        npz.read(npz_file(method), "logits", MAX_BYTES)


def test_a_bomb_costs_no_more_than_the_limit():
    bomb = npz_file(logits=np.zeros(1 << 20, np.float32))
    assert len(bomb) < MAX_BYTES
    with pytest.raises(TooLarge, match=r"logits: expected at most 65536 bytes, got more"):
        npz.read(bomb, "logits", MAX_BYTES)
    # The entry claims fewer bytes: the checksum of the first ones is wrong.
    claimed = with_bytes(bomb, {entry_of(bomb) + 24: struct.pack("<I", 100)})
    with pytest.raises(Malformed, match="a damaged one"):
        npz.read(claimed, "logits", MAX_BYTES)


def test_an_archive_of_too_many_members_is_an_error():
    arrays = {f"a{number}": np.zeros(0) for number in range(npz.MAX_MEMBERS + 1)}
    with pytest.raises(Malformed, match="at most 1024 arrays, got more"):
        npz.read(npz_file(**arrays), "logits")


def test_an_encrypted_member_is_an_error_that_says_so():
    content = npz_file()
    encrypted = with_bytes(content, {6: b"\1", entry_of(content) + 8: b"\1"})
    with pytest.raises(Malformed, match="expected an NPZ file without a password"):
        npz.read(encrypted, "logits")


@pytest.mark.parametrize("method", METHODS)
def test_every_cut_archive_ends_with_a_sentence(method):
    content = npz_file(method)
    for end in range(4, len(content), max(1, len(content) // 40)):
        with pytest.raises(Malformed, match="expected a complete NPZ file, got a damaged one"):
            npz.read(content[:end], "logits")


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_archive_ends_with_a_sentence_or_unchanged(method):
    content = npz_file(method)
    numbers = random.Random(method)
    for _ in range(300):
        offset = numbers.choice([numbers.randrange(len(content)), numbers.randrange(60)])
        flipped = with_bytes(content, {offset: bytes([numbers.randrange(256)])})
        with contextlib.suppress(RequestError):
            tensor = npy.decode(npz.read(flipped, "logits"), "logits")
            assert torch.equal(tensor, torch.from_numpy(ARRAY))
