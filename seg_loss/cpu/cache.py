"""Kernels as machine code: compiled by Numba once, kept on disk, and loaded with llvmlite alone.

A `Kernel` names a function that makes an entry point, and the arguments that the entry point is
compiled for. The cache keeps its object code in a file, named by a hash of what the code depends
on: the sources of this package, the versions of the compilers, and the processor. Loading a file
takes milliseconds, where Numba's import alone takes two hundred.

The files lie in the first folder that can be written: NUMBA_CACHE_DIR if it is set, else beside the
sources, else the user's cache folder. Folders that can only be read, such as one within a read-only
image, are read too. Without any folder each process compiles for itself. Files that other versions
have written for a kernel are removed, except for the newest.
"""

import contextlib
import ctypes
import gc
import hashlib
import importlib
import importlib.metadata
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm

from seg_loss.cpu.target import target

_SOURCES = Path(__file__).parent
SYMBOL = "seg_loss_kernel"
_DIGEST_BYTES = hashlib.sha256().digest_size
# Files of one kernel for one processor: of this version and of others that share the folder.
_MAX_VERSIONS = 4

Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Kernel(NamedTuple):
    """An entry point: `make(**parameters)` of a module of this package, compiled.

    Attributes:
        module: name of the module.
        make: name of the function.
        parameters: its arguments, numbers and strings only, as pairs of name and value.
    """

    module: str
    make: str
    parameters: tuple[tuple[str, Any], ...]


class Function(NamedTuple):
    """A loaded kernel: its address, and the same to be called from Python without the GIL."""

    address: int
    call: Any


_loaded: dict[Kernel, Function] = {}
_engines: list[Any] = []  # they own the machine code
_lock = threading.RLock()


# A fork waits for a compilation: its child would inherit the locks of Numba and LLVM, but not the
# thread that holds them.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


def load(kernel: Kernel) -> Function:
    """Returns a kernel, from this process, from the cache on disk, or compiled."""
    function = _loaded.get(kernel)
    if function is None:
        with _lock:
            function = _loaded.get(kernel)
            if function is None:
                code = _read(kernel)
                if code is None:
                    code = _compile(kernel)
                    # Modules that were imported before an edit do not belong to the new sources.
                    if _hash_of_sources() == _VERSIONS[0]:
                        _write(kernel, code)
                function = _loaded[kernel] = link(code)
    return function


def link(code: bytes) -> Function:
    """Returns a kernel from its object code, whose one symbol is `SYMBOL`."""
    machine = llvm.Target.from_triple(target().triple).create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    address = engine.get_function_address(SYMBOL)
    return Function(address, Entry(address))


def _compile(kernel: Kernel) -> bytes:
    """Returns the object code of a kernel, with the one symbol `SYMBOL`."""
    with _garbage_uncollected():
        # Numba's import takes time that a process with cached kernels need not spend.
        from seg_loss.cpu.compiler import compile_to_object

        make = getattr(importlib.import_module(f"seg_loss.cpu.{kernel.module}"), kernel.make)
        return compile_to_object(make(**dict(kernel.parameters)), SYMBOL)


@contextlib.contextmanager
def _garbage_uncollected() -> Iterator[None]:
    """Turns the garbage collector off: it would take a sixth of the time of a compilation."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# -- the files -------------------------------------------------------------------------------------


def _read(kernel: Kernel) -> bytes | None:
    """Returns the code of a kernel from the first folder that has it; None if none has."""
    for folder in _folders():
        with contextlib.suppress(OSError):
            content = (folder / _file_name(kernel)).read_bytes()
            digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            # Another process may have died while it wrote the file, or a disk was full.
            if hashlib.sha256(code).digest() == digest:
                return code
    return None


def _write(kernel: Kernel, code: bytes) -> None:
    """Writes the code to the first folder that takes it; without one, nothing is written."""
    for folder in _folders():
        path = folder / _file_name(kernel)
        temporary = path.with_suffix(f".{os.urandom(8).hex()}")
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(hashlib.sha256(code).digest() + code)
                # A process that reads at the same time finds the whole file or none.
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            _remove_old_versions(path)
            return


def _remove_old_versions(path: Path) -> None:
    """Removes the files of a kernel except for the `_MAX_VERSIONS` newest."""
    kernel, _, _ = path.name.rpartition("-")
    with contextlib.suppress(OSError):
        versions = sorted(path.parent.glob(f"{kernel}-*.o"), key=lambda file: file.stat().st_mtime)
        for old in versions[:-_MAX_VERSIONS]:
            old.unlink()


def _folders() -> tuple[Path, ...]:
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return (Path(chosen) / "seg_loss",)
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not home.is_absolute():  # then the specification ignores it
        home = Path(os.path.expanduser("~/.cache"))
    # A user without a home folder has none.
    return _SOURCES / "__pycache__", *([home / "seg_loss"] if home.is_absolute() else [])


def _file_name(kernel: Kernel) -> str:
    which, version = (
        hashlib.sha256(repr(parts).encode()).hexdigest()[:20]
        for parts in ((kernel, target()), _VERSIONS)
    )
    return f"{kernel.module}.{kernel.make}-{which}-{version}.o"


def _hash_of_sources() -> str:
    sources = hashlib.sha256()
    for path in (
        *sorted(_SOURCES.glob("*.py")),
        _SOURCES.parent / "_divisor.py",
        _SOURCES.parent / "constants.py",
    ):
        sources.update(path.read_bytes())
    return sources.hexdigest()


# What the code of every kernel depends on, besides the processor.
_VERSIONS = (
    _hash_of_sources(),
    *(importlib.metadata.version(name) for name in ("numba", "llvmlite", "numpy")),
)
