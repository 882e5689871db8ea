"""Where compiled kernels are kept on disk. Used by `numba_kernels` alone.

Numba's own cache asks for a folder it can write to, and fails without one; it watches only the file
that a function stands in. Ours also reads a folder it may not write (kernels compiled into an image
whose root is read-only), does without a folder where there is none, and knows the kernels by the
contents of all files that they are made of.
"""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from numba import config, njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator

_FOLDER = Path(__file__).parent
_SOURCES = ("kernels.py", "upsampled.py", "simd.py")


class _Locator(_CacheLocator):
    """The first folder that can be written: NUMBA_CACHE_DIR, beside the sources, the user's cache.

    Where none can be, the first that exists, to be read.
    """

    def __init__(self, py_func, py_file):
        self._py_file = py_file  # numba names it in warnings
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
            # A file that another version or a full disk left damaged: compile anew.
            return None

    def save_overload(self, sig, data):
        # Nowhere to write, or no room: the next process compiles again.
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


def kernel(function):
    """Compile `function` on its first call, without the GIL, and keep the result on disk."""
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
