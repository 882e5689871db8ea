"""Files that are either written whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields the path of an empty file next to `path`, which replaces it when the block ends.

    The data are on the disk before the new name is. If the block raises, such as when the disk is
    full, the file that was there is unchanged and the new one is deleted.

    Raises:
        OSError: if the folder does not exist or cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name[:64]}.{secrets.token_hex(8)}.tmp")
    with open(temporary, "xb") as file:
        mode = os.stat(file.fileno()).st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors replaces the file by one that others cannot read
        _synchronize(temporary, os.O_RDWR)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        _synchronize(target.parent, os.O_RDONLY)  # the new name itself


def _synchronize(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
