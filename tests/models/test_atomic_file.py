"""Files that replace others: whole, or not at all."""

import os
import stat

import pytest

from models.atomic_file import atomic_write


def test_a_new_file_has_what_was_written(tmp_path):
    path = tmp_path / "weights.bin"
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists()
        assert temporary.parent == tmp_path
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def write_and_fail(path, error):
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"ne")
        raise error


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file(error, tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        write_and_fail(path, error)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_has_the_usual_permissions(tmp_path):
    usual, path = tmp_path / "usual", tmp_path / "weights.bin"
    usual.write_bytes(b"")
    with atomic_write(path):
        pass
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "none" / "weights.bin"):
        pass


def test_a_long_name_is_no_obstacle(tmp_path):
    path = tmp_path / ("w" * 250)
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_file_has_the_usual_permissions_whoever_writes_it(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    with atomic_write(tmp_path / "file") as temporary:
        temporary.unlink()
        temporary.touch(0o600)  # as safetensors does
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
