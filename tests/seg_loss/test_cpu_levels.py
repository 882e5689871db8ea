"""The CPU kernels compiled for processors with and without AVX-512, AVX2, FMA, F16C, and for arm64.

Each processor has a process of its own, because a process compiles for one processor only.
"""

import ctypes
import json
import platform
import re
import struct
from pathlib import Path
from unittest import mock

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numpy as np
import pytest
import torch

from seg_loss.cpu import dtypes
from seg_loss.cpu.records import FLOAT16, LANES
from seg_loss.cpu.target import target
from tests.support.processes import run_script

# Flags of /proc/cpuinfo that a level needs.
LEVELS = {
    "x86-64": set(),
    "x86-64-v2": {"sse4_2", "ssse3", "popcnt", "cx16"},
    "x86-64-v3": {"avx2", "fma", "f16c", "bmi2", "movbe"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
# Functions of libm and libc, which each process has.
LIBRARY = {"sched_yield", "exp", "log", "log1p", "memset", "memcpy", "memmove"}

CHECK = """
import json, sys
import torch
import seg_loss
from seg_loss import Bilinear
from seg_loss.constants import MAPS
from tests.support.cases import (
    Case, assert_accurate, evaluation_of, loss_and_gradient_of, make_inputs,
    torch_loss_and_gradient, true_logits, true_loss_and_gradient,
)

calls, dtypes, classes = (text.split(",") for text in sys.argv[1:])

def check_loss(scores, labels, upsampling, **options):
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling, **options)
    arguments = scores, labels
    truth, true_gradient = true_loss_and_gradient(*arguments, upsampling=upsampling, **options)
    others = torch_loss_and_gradient(*arguments, upsampling=upsampling, **options)
    assert_accurate("loss", loss, truth, others[0])
    assert_accurate("gradient", gradient, true_gradient, others[1])

def check_evaluate(scores, labels, upsampling):
    result = evaluation_of(scores, labels, upsampling, maps=MAPS)
    logits = true_logits(scores, labels, upsampling)
    log_p = logits.log_softmax(1)
    torch.testing.assert_close(result.maps["entropy"].double(), -(log_p.exp() * log_p).sum(1),
                               atol=1e-5, rtol=1e-5)
    predicted = logits.gather(1, result.maps["prediction"].long()[:, None])[:, 0]
    torch.testing.assert_close(predicted, logits.amax(1), atol=1e-5, rtol=1e-5)
    truth, _ = true_loss_and_gradient(scores, labels, upsampling=upsampling)
    torch.testing.assert_close(torch.as_tensor(result.loss).double(), truth, atol=1e-6, rtol=1e-6)

def check_predict(case, dtype):
    scores, labels, upsampling = make_inputs(case, dtype)
    options = {"size": case.size, "upsampling": upsampling}
    got = seg_loss.predict(scores, **options)["prediction"]
    maps = seg_loss.predict(scores, maps=("prediction", "confidence"), **options)
    assert torch.equal(got, maps["prediction"])
    logits = true_logits(scores, labels, upsampling)
    best = logits.topk(2, dim=1).values
    is_sure = best[:, 0] - best[:, 1] > 1e-5
    assert torch.equal(got.long()[is_sure], logits.argmax(1)[is_sure])
    torch.testing.assert_close(maps["confidence"].double(), logits.softmax(1).amax(1),
                               atol=1e-6, rtol=1e-5)

def check_softmax(scores):
    leaf = scores.clone().requires_grad_()
    result = seg_loss.spatial_softmax(leaf)
    (gradient,) = torch.autograd.grad(result[:, 0].sum(), leaf)
    wide = scores.double().requires_grad_()
    truth = wide.softmax(1)
    (true_gradient,) = torch.autograd.grad(truth[:, 0].sum(), wide)
    eps = torch.finfo(scores.dtype).eps
    torch.testing.assert_close(result.double(), truth.detach(), atol=4 * eps, rtol=4 * eps)
    torch.testing.assert_close(gradient.double(), true_gradient, atol=4 * eps, rtol=4 * eps)

for dtype in (getattr(torch, name) for name in dtypes):
    for num_classes in map(int, classes):
        # One image of whole vectors, and one of a remainder at an odd address.
        for shape in (1, num_classes, 8, 48), (2, num_classes, 5, 7):
            scores, labels, _ = make_inputs(Case(shape, ""), dtype)
            if "loss" in calls:
                check_loss(scores, labels, None)
            if "smoothing" in calls:
                check_loss(scores, labels, None, label_smoothing=0.1)
            if "evaluate" in calls:
                check_evaluate(scores, labels, None)
            if "softmax" in calls:
                check_softmax(scores)
        if "predict" in calls:
            check_predict(Case((1, num_classes, 4, 19), "", (28, 133), Bilinear()), dtype)
        if "upsampled" in calls:
            case = Case((1, num_classes, 4, 7), "", (16, 28), Bilinear())
            check_loss(*make_inputs(case, dtype))
            check_evaluate(*make_inputs(case, dtype))

from seg_loss.cpu.target import target
print(json.dumps(target()._asdict()))
"""

ALL_CALLS = "loss,smoothing,evaluate,softmax,upsampled"
# Compiling takes a second for each kernel: every call and every dtype has one level at least, and
# conversions of float16 by integers, which no other test has, get every call.
RUNS = [
    ("x86-64", ("loss", "float16", "3")),
    ("x86-64-v2", (ALL_CALLS, "float16", "3,19,40")),
    ("x86-64-v2", ("loss", "float32,bfloat16", "3")),
    ("x86-64-v2", ("loss,softmax", "float64", "3,40")),
    ("x86-64-v3", ("loss,evaluate,softmax", "float32", "3,40")),
    ("x86-64-v3", ("loss", "float16", "19")),
    ("x86-64-v3", ("predict", "float32", "19")),
    ("x86-64", ("predict", "float64", "19")),
    ("x86-64-v4", ("loss", "float32", "3")),
]


def flags():
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


def undefined_symbols(path):
    """The names that the object code of a cached kernel expects of the process, read from ELF."""
    code = path.read_bytes()[32:]
    table, names = b"", b""
    for section in llvm.ObjectFileRef.from_data(code).sections():
        if section.name() == ".symtab":
            table = section.data()
        elif section.name() == ".strtab":
            names = section.data()
    found = set()
    for name, _, _, section, _, _ in struct.iter_unpack("<IBBHQQ", table):
        if section == 0 and name:
            found.add(names[name : names.index(b"\0", name)].decode())
    return found


def run_level(level, run, cache):
    """Runs `CHECK` on a processor of this level and returns what the library knows of it."""
    if platform.machine() not in ("x86_64", "AMD64") or not LEVELS[level] <= flags():
        pytest.skip(f"needs an {level} processor")
    environment = {"NUMBA_CPU_NAME": level, "NUMBA_CPU_FEATURES": ""}
    found = json.loads(run_script(CHECK, *run, cache=cache, **environment))
    assert found["cpu"] == level
    for path in (cache / "seg_loss").iterdir():
        assert undefined_symbols(path) <= LIBRARY, path.name
    return found


@pytest.mark.parametrize(
    ("level", "run"), RUNS, ids=[f"{level}-{run[0]}-{run[1]}" for level, run in RUNS]
)
def test_kernels_of_a_processor_level_are_accurate(level, run, tmp_path):
    found = run_level(level, run, tmp_path)
    has = {"v4": (True, True, True), "v3": (False, True, True)}.get(level[-2:], (False,) * 3)
    assert (found["has_avx512"], found["has_fma"], found["has_half"]) == has


@pytest.mark.skipif(platform.system() != "Linux", reason="reads ELF")
def test_kernels_of_this_processor_need_no_symbol_that_it_lacks(tmp_path):
    run = "evaluate", "float16", "19"
    run_script(CHECK, *run, cache=tmp_path)
    for path in (tmp_path / "seg_loss").iterdir():
        assert undefined_symbols(path) <= LIBRARY, path.name


# -- float16 without F16C --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converters():
    """Functions (source, target) that convert `LANES` elements from and to float16 by integers."""
    module, word = ir.Module(), ir.IntType(64)
    with mock.patch.object(dtypes, "_has_half", return_value=False):
        for name in ("widen", "narrow"):
            function = ir.Function(module, ir.FunctionType(ir.VoidType(), [word, word]), name)
            builder = ir.IRBuilder(function.append_basic_block())
            source, destination = function.args
            source_code, target_code = (FLOAT16, 0) if name == "widen" else (0, FLOAT16)
            value = dtypes.emit_load(builder, source, source_code, LANES)
            dtypes.emit_store(builder, destination, target_code, value, False)
            builder.ret_void()
    target()  # initializes LLVM
    assert "half" not in str(module)
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
    engine.finalize_object()
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
    yield [call(engine.get_function_address(name)) for name in ("widen", "narrow")]
    del engine


def convert(converter, source, dtype):
    result = np.empty(len(source), dtype)
    for i in range(0, len(source), LANES):
        converter(
            source.ctypes.data + i * source.itemsize, result.ctypes.data + i * result.itemsize
        )
    return result


def test_float16_becomes_float32_exactly_without_f16c(converters):
    bits = np.arange(1 << 16, dtype=np.uint16)
    truth = bits.view(np.float16).astype(np.float32)
    got = convert(converters[0], bits, np.float32)
    is_nan = np.isnan(truth)
    assert np.isnan(got[is_nan]).all()
    assert np.array_equal(got[~is_nan].view(np.uint32), truth[~is_nan].view(np.uint32))


def test_float32_rounds_to_float16_as_numpy_does_without_f16c(converters):
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[:-1] + halves[1:]) / 2
    edges = [0.0, 2.0**-149, 2.0**-126, 65504, 65519.996, 65520, 65536, 3e38, np.inf, np.nan]
    values = np.concatenate([halves, middles, np.array(edges, np.float32)])
    values = np.concatenate([np.nextafter(values, np.float32(s)) for s in (-np.inf, np.inf)])
    values = np.concatenate([halves, middles, values, np.float32(edges)])
    values = np.concatenate([values, -values])
    values = np.resize(values, -(-len(values) // LANES) * LANES)
    with np.errstate(over="ignore"):
        truth = values.astype(np.float16)
    got = convert(converters[1], values, np.uint16).view(np.float16)
    is_nan = np.isnan(truth)
    assert np.isnan(got[is_nan]).all()
    assert np.array_equal(got[~is_nan].view(np.uint16), truth[~is_nan].view(np.uint16))


# -- arm64 -----------------------------------------------------------------------------------------

ARM = """
import json, re, sys
import llvmlite.binding as llvm

try:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.Target.from_triple("aarch64-unknown-linux-gnu")
except RuntimeError:
    print(json.dumps(None))
    sys.exit()
# Numba and `target` both ask for it.
llvm.get_process_triple = lambda: "aarch64-unknown-linux-gnu"

from seg_loss.cpu import compiler, cross_entropy
from seg_loss.cpu.target import target

found = {}
for name, kernel in {
    "columns": cross_entropy.make_columns(
        num_classes=None, dtype_code=2, has_gradient=True, bypasses_caches=True,
        classes_adjacent=False),
    "tiles": cross_entropy.make_tiles(element="float32"),
}.items():
    module = compiler.compile_to_llvm(kernel, "seg_loss_kernel")
    assembly = compiler._codegen()._tm.emit_assembly(module)
    found[name] = {
        "llvm": sorted(set(re.findall(r"@(llvm\\.[\\w.]+)", str(module)))),
        "calls": sorted(set(re.findall(r"^\\tbl?\\t([a-zA-Z]\\w*)$", assembly, re.MULTILINE))),
        "fmla": len(re.findall(r"\\tfmla\\tv\\d+\\.4s", assembly)),
        "fmul": len(re.findall(r"\\tfmul\\tv\\d+\\.4s", assembly)),
        "fcvtl": len(re.findall(r"\\tfcvtl2?\\tv", assembly)),
    }
print(json.dumps([target()._asdict(), found]))
"""


def test_kernels_for_arm64_use_neon_and_call_only_libm(tmp_path):
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    answer = json.loads(run_script(ARM, cache=tmp_path, **environment))
    if answer is None:
        pytest.skip("LLVM is built for this processor alone")
    known, kernels = answer
    assert known["has_fma"]
    assert known["has_half"]
    assert not known["has_avx512"]
    for name, kernel in kernels.items():
        assert kernel["fmla"] >= 8, name
        assert kernel["fmul"] >= 8, name
        assert kernel["fcvtl"] >= 1, name
        assert not [call for call in kernel["llvm"] if "x86" in call], name
        assert set(kernel["calls"]) <= LIBRARY, name


def test_torch_still_computes_in_this_process():
    """The tests above compile for other processors: nothing of it may stay here."""
    assert target().triple == llvm.get_process_triple()
    assert torch.ones(2).sum() == 2
