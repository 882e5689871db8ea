"""The files of compiled CPU kernels: when they are written, read, repaired and removed."""

import ctypes
import errno
import gc
import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from seg_loss.cpu import cache
from seg_loss.cpu.cache import Kernel
from seg_loss.cpu.target import target
from tests.support.processes import run_script

KERNEL = Kernel("module", "make", (("num_classes", 3),))
OTHER = Kernel("module", "make", (("num_classes", 4),))
SOURCE = """
target triple = "{triple}"
define void @seg_loss_kernel(i64* %address) {{
  store i64 {number}, i64* %address
  ret void
}}
"""


def object_code(number):
    """Returns the code of a kernel that stores a number at its address."""
    triple = target().triple
    module = llvm.parse_assembly(SOURCE.format(triple=triple, number=number))
    return llvm.Target.from_triple(triple).create_target_machine().emit_object(module)


def number_from(function):
    result = ctypes.c_int64()
    function.call(ctypes.addressof(result))
    return result.value


class Process:
    """The cache of a process that has loaded nothing. Kernel k of n classes stores n."""

    def __init__(self, monkeypatch, folder):
        self.folder = folder / "seg_loss"
        self.compiled = []
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
        monkeypatch.setattr(cache, "_loaded", {})
        monkeypatch.setattr(cache, "_compile", self._compile)

    def _compile(self, kernel):
        self.compiled.append(kernel)
        return object_code(dict(kernel.parameters)["num_classes"])

    def load(self, kernel=KERNEL):
        """Loads a kernel as a new process would, and returns what it stores."""
        cache._loaded.clear()
        return number_from(cache.load(kernel))

    def files(self):
        return sorted(self.folder.iterdir())


@pytest.fixture
def process(monkeypatch, tmp_path):
    return Process(monkeypatch, tmp_path)


def test_a_kernel_is_compiled_once_and_then_read(process):
    assert process.load() == process.load() == 3
    assert process.compiled == [KERNEL]
    assert len(process.files()) == 1


def test_a_process_reads_the_file_of_a_kernel_once(process):
    first = cache.load(KERNEL)
    process.files()[0].unlink()
    assert cache.load(KERNEL) is first


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:-1],
        lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
        lambda content: bytes([content[0] ^ 128]) + content[1:],
        lambda content: content + b"\0",
    ],
    ids=["empty", "short", "truncated", "flipped", "flipped digest", "longer"],
)
def test_a_damaged_file_is_compiled_again_and_replaced(process, damage):
    process.load()
    (path,) = process.files()
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert process.load() == 3
    assert process.compiled == [KERNEL, KERNEL]
    assert path.read_bytes() == content
    assert process.load() == 3
    assert len(process.compiled) == 2


def test_without_a_folder_each_process_compiles_for_itself(process):
    process.folder.parent.rmdir()
    process.folder.parent.write_text("a file in place of the folder")
    assert process.load() == process.load() == 3
    assert process.compiled == [KERNEL, KERNEL]


def test_a_folder_that_can_only_be_read_serves_what_it_has(process, monkeypatch):
    process.load()
    files = process.files()

    def open_to_read(path, mode):
        if mode != "rb":
            raise OSError(errno.EROFS, "Read-only file system")
        return open(path, mode)

    monkeypatch.setattr(Path, "open", open_to_read)
    assert process.load() == 3
    assert process.load(OTHER) == 4
    assert process.compiled == [KERNEL, OTHER]
    assert process.files() == files


def test_a_full_disk_leaves_no_file_behind(process, monkeypatch):
    class FullDisk(io.FileIO):
        def write(self, content):
            super().write(content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = []

    def open_file(path, mode):
        opened.append(path)
        return FullDisk(path, mode)

    monkeypatch.setattr(Path, "open", open_file)
    assert process.load() == 3
    assert opened
    assert process.files() == []


@pytest.mark.skipif(os.name != "posix", reason="reads modes of files")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_others_may_read_a_file_as_far_as_the_umask_allows(process, umask, mode):
    before = os.umask(umask)
    try:
        process.load()
    finally:
        os.umask(before)
    assert process.files()[0].stat().st_mode & 0o777 == mode


def test_files_of_other_versions_are_removed_but_the_newest(process, monkeypatch):
    for k in range(10):
        monkeypatch.setattr(cache, "_VERSIONS", (cache._hash_of_sources(), f"version {k}"))
        process.load()
        process.load(OTHER)
        for path in process.files():
            os.utime(path, (path.stat().st_mtime - 10,) * 2)
    assert len(process.files()) == 2 * cache._MAX_VERSIONS
    compiled = len(process.compiled)
    process.load()
    process.load(OTHER)
    assert len(process.compiled) == compiled


def test_a_changed_source_is_another_file_of_the_same_kernel(monkeypatch, tmp_path):
    package = tmp_path / "seg_loss"
    shutil.copytree(cache._SOURCES, package / "cpu", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_divisor.py", "constants.py"):
        shutil.copy(cache._SOURCES.parent / name, package)
    monkeypatch.setattr(cache, "_SOURCES", package / "cpu")
    names = []
    for changed in (None, "cpu/simd.py", "cpu/records.py", "_divisor.py", "constants.py"):
        if changed is not None:
            with (package / changed).open("a") as file:
                file.write("\n")
        monkeypatch.setattr(cache, "_VERSIONS", (cache._hash_of_sources(),))
        names.append(cache._file_name(KERNEL))
    assert len(set(names)) == len(names)
    assert len({name.rpartition("-")[0] for name in names}) == 1


def test_code_of_modules_that_were_imported_before_an_edit_is_not_kept(process, monkeypatch):
    monkeypatch.setattr(cache, "_hash_of_sources", lambda: "the sources after an edit")
    process.load()
    assert len(process.compiled) == 1
    assert not process.folder.exists()


def test_processors_and_parameters_have_files_of_their_own(monkeypatch):
    names = {cache._file_name(KERNEL), cache._file_name(OTHER)}
    monkeypatch.setattr(cache, "target", lambda: target()._replace(cpu="another"))
    names |= {cache._file_name(KERNEL), cache._file_name(OTHER)}
    assert len({name.rpartition("-")[0] for name in names}) == 4


def test_the_folders_are_the_chosen_one_or_two_others(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert cache._folders() == (tmp_path / "seg_loss",)
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    beside = cache._SOURCES / "__pycache__"
    assert cache._folders() == (beside, tmp_path / "seg_loss")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache._folders() == (beside, Path.home() / ".cache" / "seg_loss")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache._folders() == (beside,)


def test_compiling_leaves_the_garbage_collector_as_it_was():
    for is_enabled in (True, False):
        (gc.enable if is_enabled else gc.disable)()
        try:
            with cache._garbage_uncollected():
                assert not gc.isenabled()
            assert gc.isenabled() == is_enabled
        finally:
            gc.enable()


# -- with real kernels, in processes of their own --------------------------------------------------

CALL = """
import json, sys
import torch
import seg_loss

seg_loss.loss_and_gradient, seg_loss.evaluate, seg_loss.SpatialCrossEntropy
after_import = set(sys.modules)
from tests.support.cases import (
    Case, assert_accurate, make_inputs, torch_loss_and_gradient, true_loss_and_gradient,
)
logits, labels, _ = make_inputs(Case((1, 3, 5, 7), ""))
result = seg_loss.loss_and_gradient(logits, labels)
truth = true_loss_and_gradient(logits, labels)
others = torch_loss_and_gradient(logits, labels)
for name, *values in zip(("loss", "gradient"), result, truth, others):
    assert_accurate(name, *values)
wanted = "numba", "llvmlite", "seg_loss.cpu.simd", "seg_loss.cpu.compiler"
print(json.dumps([[name for name in wanted if name in modules]
                  for modules in (after_import, sys.modules)]))
"""


def test_processes_that_compile_at_the_same_time_share_their_files(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run_script, CALL, cache=tmp_path) for _ in range(2)]
    for run in runs:
        assert json.loads(run.result())[0] == []
    (path,) = (tmp_path / "seg_loss").iterdir()
    assert path.name.startswith("cross_entropy.make_columns-")
    # A third process finds the file, and needs llvmlite alone.
    time = path.stat().st_mtime_ns
    after_import, after_call = json.loads(run_script(CALL, cache=tmp_path))
    assert after_import == []
    assert after_call == ["llvmlite"]
    assert path.stat().st_mtime_ns == time
