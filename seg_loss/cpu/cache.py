"""The on-disk cache of compiled kernels, used by `kernels` and `upsampled` only.

Numba's own cache fails if it has no folder that it can write to, and it notices changes only of the
file that a function is defined in. This cache also reads a folder that it cannot write, such as
kernels compiled into a read-only image. Without any folder it compiles in memory. It identifies a
kernel by the contents of all files that kernels are made of.
"""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from numba import config, njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator

_FOLDER = Path(__file__).parent
_SOURCES = ("kernels.py", "simd.py", "upsampled.py")


class _Locator(_CacheLocator):
    """Selects the first folder that can be written.

    The candidates are NUMBA_CACHE_DIR if it is set, else the folder beside the sources and the
    user's cache folder. If none can be written, the first that exists is read.
    """

    def __init__(self, py_func, py_file):
        self._py_file = py_file  # Numba's warnings name it
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        folders = [_FOLDER / "__pycache__", Path(home) / "seg_loss"]
        if config.CACHE_DIR:
            folders = [Path(config.CACHE_DIR) / "seg_loss"]
        writable = (folder for folder in folders if _can_write(folder))
        existing = (folder for folder in folders if folder.is_dir())
        self._folder = next(writable, None) or next(existing, folders[0])

    def ensure_cache_path(self):
        self._folder.mkdir(parents=True, exist_ok=True)

    def get_cache_path(self):
        return str(self._folder)

    def get_source_stamp(self):
        digest = hashlib.sha256()
        for name in _SOURCES:
            digest.update((_FOLDER / name).read_bytes())
        return digest.hexdigest()

    def get_disambiguator(self):
        return ""

    @classmethod
    def from_function(cls, py_func, py_file):
        return cls(py_func, py_file)


class _Implementation(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _Cache(FunctionCache):
    _impl_class = _Implementation

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception:
            # Another version or a full disk has left a damaged file: compile again.
            return None

    def save_overload(self, sig, data):
        # Without a writable folder, or without space, the next process compiles again.
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


def kernel(function):
    """Compiles `function` on its first call, without the GIL, and caches the result on disk."""
    dispatcher = njit(nogil=True, error_model="numpy")(function)
    dispatcher._cache = _Cache(function)
    return dispatcher


def _can_write(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True
