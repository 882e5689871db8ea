"""Launch plans: what is computed once, what each call looks up, and that neither is confused.

A fake kernel and a fake torch.cuda stand in for a device. The launches of the backend itself are
recorded, and not run, with tensors on the CPU.
"""

import ctypes
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
import seg_loss
from seg_loss import Bilinear, _backends
from seg_loss.constants import MAPS
from seg_loss.gpu import backend, plan
from seg_loss.gpu.plan import Cache, Launch, layout, workspace
from seg_loss.upsampling import axes
from tests.support.backends import IS_INTERPRETED, TRITON
from tests.support.cases import same_bits

THREADS = 8


def in_threads(function):
    """Returns the results of `function(number)`, called by several threads at the same time."""
    barrier = threading.Barrier(THREADS)

    def call(number):
        barrier.wait()
        return function(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(call, range(THREADS)))


# -- the cache ---------------------------------------------------------------------------------


def test_a_value_is_computed_once_and_kept():
    cache, first = Cache(max_size=2), object()
    assert cache.get("key", lambda: first) is first
    assert cache.get("key", pytest.fail) is first


def test_each_key_has_its_own_value():
    cache = Cache(max_size=2)
    assert [cache.get(key, lambda key=key: key + 1) for key in (1, 2, 1)] == [2, 3, 2]


def test_of_too_many_values_the_oldest_is_removed():
    cache = Cache(max_size=2)
    for key in "abc":
        cache.get(key, lambda key=key: key)
    assert cache.get("b", lambda: "again") == "b"
    assert cache.get("c", lambda: "again") == "c"
    assert cache.get("a", lambda: "again") == "again"


def test_a_cleared_cache_computes_its_values_again():
    cache = Cache(max_size=2)
    cache.get("key", lambda: 1)
    cache.clear()
    assert cache.get("key", lambda: 2) == 2


def test_a_failure_is_not_kept():
    cache = Cache(max_size=2)
    with pytest.raises(ZeroDivisionError):
        cache.get("key", lambda: 1 // 0)
    assert cache.get("key", lambda: 2) == 2


def test_threads_that_compute_a_value_at_once_all_get_the_first():
    cache, all_compute = Cache(max_size=2), threading.Barrier(THREADS)

    def make():
        all_compute.wait()
        return object()

    values = in_threads(lambda _: cache.get("key", make))
    assert all(value is values[0] for value in values)


@pytest.fixture
def frequent_thread_switches():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("frequent_thread_switches")
def test_threads_may_fill_a_full_cache_at_once():
    cache = Cache(max_size=4)

    def fill(number):
        return all(cache.get((number, k % 50), lambda k=k: (number, k)) for k in range(5000))

    assert all(in_threads(fill))
    assert (
        sum(cache.get((n, k), lambda: None) is not None for n in range(8) for k in range(50)) <= 4
    )


# -- launches ----------------------------------------------------------------------------------

STREAM, FUNCTION, METADATA = 77, 42, (8, 1)
LENGTH = 4  # of the kernel's tensors


class Compiled:
    """A compiled kernel whose launches are recorded, and computed from the pointers."""

    function, packed_metadata = FUNCTION, METADATA

    def __init__(self, kernel):
        self.kernel = kernel

    def run(self, *arguments):
        self.kernel.runs.append(arguments)
        x, out, offset, _, factor, block = arguments[9:]
        for k in range(LENGTH):
            y = memory_at(x)[k] * factor + block
            memory_at(out)[k] = y + (0 if offset is None else offset)


def memory_at(pointer):
    return (ctypes.c_float * LENGTH).from_address(pointer)


class Kernel:
    """A kernel as `triton.jit` returns it: out = x * factor + BLOCK + offset."""

    arg_names = ("x", "out", "offset", "size", "factor", "BLOCK")

    def __init__(self):
        self.calls, self.runs = [], []

    def __getitem__(self, grid):
        def call(*arguments, **constants):
            self.calls.append((grid, arguments, constants))
            x, out, offset, _, factor = arguments
            out.copy_(x * factor + constants["BLOCK"] + (0 if offset is None else offset))
            return Compiled(self)

        return call


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(plan, "CompiledKernel", Compiled)
    return Kernel()


def launch_of(kernel):
    return Launch(kernel, 12, (LENGTH, 3), BLOCK=16, num_warps=2)


def numbers():
    return torch.randn(LENGTH), torch.empty(LENGTH)


def test_the_first_call_launches_through_triton(kernel):
    x, out = numbers()
    launch_of(kernel)(STREAM, x, out, 5)
    (call,) = kernel.calls
    grid, arguments, constants = call
    assert grid == (12,)
    assert arguments[0] is x
    assert arguments[1] is out
    assert arguments[2:] == (5, LENGTH, 3)
    assert constants == {"BLOCK": 16, "num_warps": 2, "enable_fp_fusion": True}
    assert not kernel.runs


def test_later_calls_pass_the_same_arguments_in_the_same_order(kernel):
    launch = launch_of(kernel)
    launch(STREAM, *numbers(), 5)
    for stream in (STREAM, STREAM + 1):
        x, out = numbers()
        launch(stream, x, out, 6)
        # Without launch metadata and hooks; options of the compiler are no arguments.
        assert kernel.runs[-1] == (
            12, 1, 1, stream, FUNCTION, METADATA, None, None, None,
            x.data_ptr(), out.data_ptr(), 6, LENGTH, 3, 16,
        )  # fmt: skip
    assert len(kernel.calls) == 1


@pytest.mark.parametrize("offset", [None, 0, 5])
def test_a_later_call_computes_what_the_first_did(kernel, offset):
    launch, (x, first), (_, second) = launch_of(kernel), numbers(), numbers()
    launch(STREAM, x, first, offset)
    launch(STREAM, x, second, offset)
    assert same_bits(first, second)
    assert kernel.runs[0][11] is offset
    assert torch.allclose(second, 3 * x + 16 + (offset or 0))


def test_a_tensor_is_passed_with_its_offset(kernel):
    launch, (x, out) = launch_of(kernel), (torch.randn(9), torch.zeros(9))
    launch(STREAM, *numbers(), None)
    launch(STREAM, x[5:], out[5:], None)
    assert torch.allclose(out[5:], 3 * x[5:] + 16)
    assert not out[:5].any()


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
@pytest.mark.parametrize("hook", [print, SimpleNamespace(calls=[print])], ids=["3.4", "chain"])
def test_each_call_goes_through_triton_while_a_hook_is_set(kernel, monkeypatch, name, hook):
    unset = {"launch_enter_hook": None, "launch_exit_hook": SimpleNamespace(calls=[])}
    launch = launch_of(kernel)
    for hooks, num_calls, num_runs in ((unset, 1, 1), ({**unset, name: hook}, 3, 1), (unset, 3, 3)):
        monkeypatch.setattr(plan, "knobs", SimpleNamespace(runtime=SimpleNamespace(**hooks)))
        for _ in range(2):
            x, out = numbers()
            launch(STREAM, x, out, None)
            assert torch.allclose(out, 3 * x + 16)
        assert (len(kernel.calls), len(kernel.runs)) == (num_calls, num_runs)


def test_the_hooks_of_the_installed_triton_are_noticed():
    runtime = plan.knobs.runtime
    if not hasattr(runtime.launch_enter_hook, "add"):
        pytest.skip("this Triton has one hook, and no chain of them")
    assert not plan._has_hooks()
    for chain in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        chain.add(print)
        assert plan._has_hooks()
        chain.remove(print)
    assert not plan._has_hooks()


def test_the_interpreter_compiles_nothing_and_is_called_each_time(kernel, monkeypatch):
    monkeypatch.setattr(plan, "CompiledKernel", type(None))  # the interpreter returns none of them
    launch = launch_of(kernel)
    for _ in range(3):
        launch(STREAM, *numbers(), None)
    assert len(kernel.calls) == 3
    assert not kernel.runs


# -- keys --------------------------------------------------------------------------------------

BASE = torch.zeros(64)


@pytest.mark.parametrize(
    "other",
    [
        BASE[:24].view(2, 12),
        BASE[:32].view(4, 8),
        BASE[:24].view(6, 4).mT,
        BASE[:48].view(4, 12)[:, :6],
        BASE[1:25].view(4, 6),
        BASE[3:27].view(4, 6),
        torch.zeros(4, 6, dtype=torch.float64),
        torch.zeros(4, 6, dtype=torch.int32),
        None,
    ],
    ids=["shape", "size", "transposed", "gaps", "offset 4", "offset 12", "dtype", "int", "None"],
)
def test_layouts_differ_where_kernels_do(other):
    x = BASE[:24].view(4, 6)
    assert layout(x) != layout(other)
    assert len({layout(x), layout(other)}) == 2


@pytest.mark.parametrize("offset", [0, 4, 16])
def test_layouts_are_equal_for_all_memory_aligned_to_16_bytes(offset):
    assert layout(BASE[:24].view(4, 6)) == layout(BASE[offset : offset + 24].view(4, 6))


def test_a_layout_does_not_depend_on_what_autograd_knows():
    x = BASE[:24].view(4, 6)
    assert layout(x) == layout(x.detach().requires_grad_())


# -- devices and streams -----------------------------------------------------------------------


class FakeCuda:
    """torch.cuda with a current device, which contexts change, and with a stream per device."""

    def __init__(self):
        self.current, self.entered, self.streams = 0, [], {0: 100, 1: 200}

    @contextmanager
    def device(self, device):
        self.entered.append(device)
        before, self.current = self.current, device.index
        try:
            yield
        finally:
            self.current = before


@pytest.fixture
def fake_cuda(monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: cuda.current)
    monkeypatch.setattr(torch.cuda, "device", cuda.device)
    monkeypatch.setattr(
        torch._C, "_cuda_getCurrentRawStream", lambda index: cuda.streams[index], raising=False
    )
    return cuda


def on_cuda(index):
    return SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))


def test_the_tensors_device_becomes_the_current_one(fake_cuda):
    with plan.on_device(on_cuda(1)):
        assert fake_cuda.current == 1
    assert fake_cuda.current == 0
    assert fake_cuda.entered == [torch.device("cuda", 1)]


def test_the_current_device_is_not_entered_again(fake_cuda):
    with plan.on_device(on_cuda(0)):
        assert fake_cuda.current == 0
    fake_cuda.current = 1  # torch.cuda.set_device(1)
    with plan.on_device(on_cuda(1)):
        assert fake_cuda.current == 1
    assert not fake_cuda.entered


def test_the_stream_is_that_of_the_tensors_device_at_each_call(fake_cuda):
    assert plan.current_stream(on_cuda(0)) == 100
    assert plan.current_stream(on_cuda(1)) == 200
    fake_cuda.streams[1] = 201  # with torch.cuda.stream(...)
    assert plan.current_stream(on_cuda(1)) == 201
    fake_cuda.current = 1
    assert plan.current_stream(on_cuda(0)) == 100


def test_tensors_on_the_cpu_ask_torch_cuda_for_nothing(monkeypatch):
    for name in ("current_device", "device", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, pytest.fail)
    x = torch.zeros(3)
    with plan.on_device(x):
        assert plan.current_stream(x) == 0
    assert not plan.is_capturing(x)


# -- workspaces --------------------------------------------------------------------------------

CPU, META = torch.zeros(1), torch.zeros(1, device="meta")


@pytest.fixture(autouse=True)
def no_workspaces(monkeypatch):
    monkeypatch.setattr(plan, "_workspaces", type(plan._workspaces)())


def is_shared(one, other):
    return [a is b for a, b in zip(one, other, strict=True)] == [True, True]


def test_calls_on_a_stream_share_their_workspace():
    assert is_shared(workspace(CPU, 1, 20, 30), workspace(CPU, 1, 20, 30))
    assert is_shared(workspace(CPU, 1, 20, 30), workspace(CPU, 1, 3, 4))


def test_other_streams_have_other_workspaces():
    first, second = workspace(CPU, 1, 20, 30), workspace(CPU, 2, 20, 30)
    assert not any(a is b for a, b in zip(first, second, strict=True))
    assert is_shared(first, workspace(CPU, 1, 20, 30))
    assert is_shared(second, workspace(CPU, 2, 20, 30))


def test_other_devices_have_other_workspaces():
    first, second = workspace(CPU, 1, 20, 30), workspace(META, 1, 20, 30)
    assert {tensor.device.type for tensor in first} == {"cpu"}
    assert {tensor.device.type for tensor in second} == {"meta"}
    assert is_shared(first, workspace(CPU, 1, 20, 30))


def test_other_threads_have_other_workspaces():
    workspaces = in_threads(lambda _: workspace(CPU, 1, 20, 30))
    pointers = {tensor.data_ptr() for pair in workspaces for tensor in pair}
    assert len(pointers) == 2 * THREADS


def test_a_workspace_has_the_dtypes_and_sizes_asked_for():
    ints, floats = workspace(CPU, 1, 20, 30)
    assert (ints.dtype, floats.dtype) == (torch.int64, torch.float64)
    assert (len(ints), len(floats)) == (20, 30)


@pytest.mark.parametrize(("num_ints", "num_floats"), [(40, 30), (20, 50), (40, 50), (1, 50)])
def test_a_workspace_grows_and_never_shrinks(num_ints, num_floats):
    workspace(CPU, 1, 20, 30)
    ints, floats = workspace(CPU, 1, num_ints, num_floats)
    assert (len(ints), len(floats)) == (max(20, num_ints), max(30, num_floats))
    assert is_shared((ints, floats), workspace(CPU, 1, 20, 30))


def test_integers_are_zeros_at_first_and_when_they_have_grown():
    ints, _ = workspace(CPU, 1, 20, 30)
    assert not ints.any()
    ints.fill_(7)  # kernels that have not ended yet
    grown, _ = workspace(CPU, 1, 40, 30)
    assert not grown.any()


def test_a_captured_call_has_a_workspace_of_its_own(monkeypatch):
    shared = workspace(CPU, 1, 20, 30)
    shared[0].fill_(7)
    monkeypatch.setattr(plan, "is_capturing", lambda _: True)
    captured = [workspace(CPU, 1, 20, 30) for _ in range(2)]
    pointers = {tensor.data_ptr() for pair in (shared, *captured) for tensor in pair}
    assert len(pointers) == 6
    assert not any(ints.any() for ints, _ in captured)
    monkeypatch.undo()
    monkeypatch.setattr(plan, "_workspaces", type(plan._workspaces)())
    assert workspace(CPU, 1, 20, 30)[0].data_ptr() not in pointers


# -- the launches of the backend -----------------------------------------------------------------

C, IMAGES, SIZE, SCORES = 5, 2, (6, 8), (3, 4)


class Recorder:
    """The launches of the backend, which compute nothing.

    Attributes:
        launches: of each launch the `Launch`, the stream and the arguments of the call.
        keys: of the plans.
        stream: the current stream.
        devices: those that the calls entered.
    """

    def __init__(self):
        self.launches, self.keys, self.stream, self.devices = [], [], 0, []
        self.depth = 0

    def call(self, launch, stream, *arguments):
        assert self.depth, "a launch outside the context of the tensors' device"
        self.launches.append((launch, stream, arguments))

    @contextmanager
    def on_device(self, tensor):
        self.devices.append(tensor.device)
        self.depth += 1
        yield
        self.depth -= 1


class RecordingCache(Cache):
    def __init__(self, recorder):
        super().__init__(1024)
        self.recorder = recorder

    def get(self, key, make):
        self.recorder.keys.append(key)
        return super().get(key, make)


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(
        Launch,
        "__call__",
        lambda launch, stream, *arguments: recorder.call(launch, stream, *arguments),
    )
    monkeypatch.setitem(_backends.BACKENDS, "cpu", TRITON)
    plans = RecordingCache(recorder)
    monkeypatch.setattr("seg_loss.gpu.arguments.current_stream", lambda _: recorder.stream)
    for name in ("loss", "upsampled_loss", "evaluation", "probabilities"):
        module = f"seg_loss.gpu.{name}"
        monkeypatch.setattr(f"{module}.plans", plans)
        monkeypatch.setattr(f"{module}.on_device", recorder.on_device)
        monkeypatch.setattr(f"{module}.current_stream", lambda _: recorder.stream)
    return recorder


@dataclass(frozen=True)
class Variant:
    """What kernels are specialized on, of the inputs of `call_all`.

    Attributes:
        dtype, label_dtype, weight_dtype: of the inputs.
        unaligned: the tensor that does not begin at 16 bytes.
        without: the weights that are None.
        memory_format: of logits and scores.
    """

    dtype: torch.dtype = torch.float32
    label_dtype: torch.dtype = torch.uint8
    weight_dtype: torch.dtype = torch.float32
    unaligned: str = ""
    without: tuple[str, ...] = ()
    memory_format: torch.memory_format = torch.contiguous_format

    def tensor(self, name, shape, dtype, value=0):
        if name in self.without:
            return None
        size, first = math.prod(shape), int(name == self.unaligned)
        return torch.full((size + 8,), value, dtype=dtype)[first : first + size].view(shape)


VARIANTS = {
    "float32": Variant(),
    "bfloat16": Variant(dtype=torch.bfloat16),
    "float64": Variant(dtype=torch.float64),
    "int64 labels": Variant(label_dtype=torch.int64),
    "float64 weights": Variant(weight_dtype=torch.float64),
    "channels_last": Variant(memory_format=torch.channels_last),
    "no class weight": Variant(without=("class_weight",)),
    "no pixel weight": Variant(without=("pixel_weight",)),
    "no weights": Variant(without=("class_weight", "pixel_weight")),
    **{
        f"unaligned {name}": Variant(unaligned=name)
        for name in ("logits", "labels", "class_weight", "pixel_weight", "grad_output", "out")
    },
}
OPTIONS = (
    {"check_labels": "defer"},
    {"check_labels": "ignore", "normalization": "none"},
    {"label_smoothing": 0.1, "temperature": 2.0},
    {"normalization": "weight", "ignore_index": (255, 0)},
)


def call_all(variant):
    """Calls each function of the library that launches kernels, and its backward pass."""
    dtype = variant.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    labels = variant.tensor("labels", (IMAGES, *SIZE), variant.label_dtype)
    weights = {
        "class_weight": variant.tensor("class_weight", (C,), variant.weight_dtype, 1),
        "pixel_weight": variant.tensor("pixel_weight", (IMAGES, *SIZE), variant.weight_dtype, 1),
    }
    grad_output = variant.tensor("grad_output", (1,), wide)[0]
    for size, upsampling in ((SIZE, None), (SCORES, Bilinear())):
        x = variant.tensor("logits", (IMAGES, C, *size), dtype)
        out = variant.tensor("out", x.shape, dtype)
        if variant.memory_format == torch.channels_last:
            x, out = (t.to(memory_format=torch.channels_last) for t in (x, out))
        leaf = x.detach().requires_grad_()
        for options in OPTIONS:
            options = {**weights, **options}
            if upsampling is None:
                loss = seg_loss.spatial_cross_entropy(leaf, labels, **options)
                seg_loss.spatial_cross_entropy(x, labels, **options)
            else:
                loss = seg_loss.upsampled_cross_entropy(leaf, labels, **options)
                seg_loss.upsampled_cross_entropy(x, labels, **options)
            for is_retained in (True, False):
                torch.autograd.grad(loss, leaf, grad_output, retain_graph=is_retained)
            for memory in (None, out, x):
                seg_loss.loss_and_gradient(x, labels, upsampling=upsampling, out=memory, **options)
            for maps in ((), MAPS):
                with pytest.MonkeyPatch.context() as patch:
                    # What the kernels have not computed is no evaluation.
                    patch.setattr("seg_loss.gpu.evaluation._evaluation_sums", stop)
                    with pytest.raises(StopIteration):
                        seg_loss.evaluate(x, labels, upsampling=upsampling, maps=maps, **options)
    logits = variant.tensor("logits", (IMAGES, C, *SIZE), dtype).requires_grad_()
    nll = seg_loss.pixel_nll(logits, labels)
    torch.autograd.grad(nll, logits, variant.tensor("grad_output", nll.shape, wide))
    for axis in (0, 1, -1):
        probabilities = seg_loss.spatial_softmax(logits, axis=axis)
        above = variant.tensor("grad_output", logits.shape, dtype)
        torch.autograd.grad(probabilities, logits, above)


def stop(*_):
    raise StopIteration


def specialization_of(argument):
    """Returns what Triton compiles a kernel for, of an argument that a call passes."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return type(argument)


def test_a_launch_is_only_used_for_what_its_kernel_is_compiled_for(recorder):
    for variant in (*VARIANTS.values(), *VARIANTS.values()):
        call_all(variant)
    compiled = {}
    for launch, _, arguments in recorder.launches:
        specialization = tuple(map(specialization_of, arguments))
        assert compiled.setdefault(launch, specialization) == specialization, launch.kernel
    assert len(compiled) < len(recorder.launches) / 2, "nothing is used twice"


def test_each_launch_passes_the_arguments_of_its_kernel_in_their_order(recorder):
    for variant in VARIANTS.values():
        call_all(variant)
    options = {"num_warps", "num_stages", "maxnreg", "launch_pdl", "enable_fp_fusion"}
    for launch, _, arguments in recorder.launches:
        names = launch.kernel.arg_names
        by_position = len(arguments) + len(launch.scalars)
        constants = [name for name in launch.constants if name not in options]
        # The arguments behind those of the call are passed by name at first, by position later.
        assert sorted(constants) == sorted(names[by_position:]), launch.kernel


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter specializes on nothing")
def test_integers_of_a_call_do_not_specialize_its_kernel(recorder):
    call_all(Variant())
    for launch, _, arguments in recorder.launches:
        for name, argument in zip(launch.kernel.arg_names, arguments, strict=False):
            if isinstance(argument, int):
                assert name in launch.kernel.do_not_specialize, name


def test_the_key_of_each_plan_contains_the_device(recorder):
    call_all(Variant())
    assert {key[0] for key in recorder.keys} == {
        "loss", "gradient", "terms", "upsampled", "scale", "evaluate", "softmax",
    }  # fmt: skip
    for key in recorder.keys:
        assert torch.device("cpu") in key, key[0]


def test_each_launch_is_on_the_current_stream_of_its_call(recorder):
    for stream in (3, 4, 3):
        recorder.stream = stream
        recorder.launches.clear()
        call_all(Variant())
        assert {used for _, used, _ in recorder.launches} == {stream}


def test_kernels_on_other_streams_get_other_counters(recorder):
    x, y = torch.zeros(1, C, *SIZE), torch.zeros(1, *SIZE, dtype=torch.uint8)
    counters = []
    for stream in (3, 4, 3):
        recorder.stream = stream
        seg_loss.loss_and_gradient(x, y)
        _, _, arguments = recorder.launches[-3]
        counters.append(arguments[3].data_ptr())
    assert counters[0] == counters[2] != counters[1]


def test_the_tensors_device_is_entered_once_per_call(recorder):
    x, y = torch.zeros(1, C, *SIZE).requires_grad_(), torch.zeros(1, *SIZE, dtype=torch.uint8)
    loss = seg_loss.spatial_cross_entropy(x, y)
    assert recorder.devices == [torch.device("cpu")]
    loss.backward()  # in a thread of autograd, for a tensor on a device
    assert recorder.devices == [torch.device("cpu")] * 2


@pytest.mark.parametrize("out", ["scores", "bfloat16", "none"])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 21, 5, 6), (40, 48)),
        ((2, 3, 70, 9), (140, 18)),
        ((1, 3, 1, 1), (3, 3001)),
        ((1, 5, 12, 3), (5, 24)),
        ((1, 300, 2, 9), (9, 30)),
    ],
    ids=str,
)
def test_scratch_bytes_is_what_the_kernels_of_upsampled_scores_get(recorder, shape, size, out):
    scores = torch.zeros(shape, dtype=torch.bfloat16 if out == "bfloat16" else torch.float32)
    labels = torch.zeros(shape[0], *size, dtype=torch.uint8)
    memory = scores if out == "scores" else torch.empty_like(scores)
    seg_loss.loss_and_gradient(scores, labels, upsampling=Bilinear(), out=memory)
    temporary = {}
    for launch, _, arguments in recorder.launches:
        for name, argument in zip(launch.kernel.arg_names, arguments, strict=False):
            if name in ("halo", "grad_planes", "gradient") and argument is not None:
                temporary[argument.data_ptr()] = argument.nbytes
    temporary.pop(memory.data_ptr(), None)
    scratch = seg_loss.scratch_bytes(scores, size, upsampling=Bilinear())
    # The second gradient is part of it, for any dtype and any `out`.
    unused = 4 * scores.numel() if out == "none" else 0
    assert sum(temporary.values()) + unused == scratch


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((1, 19, 1024, 2048), stride) for stride in (4, 8, 16, 32)]
    + [((images, 150, 512, 512), 8) for images in (2, 8)],
    ids=str,
)
def test_rows_that_programs_share_take_four_percent_of_the_logits_at_most(shape, stride):
    size = shape[2:]
    scores = torch.empty(*shape[:2], *(length // stride for length in size), device="meta")
    scratch = backend.scratch_bytes(scores, axes(Bilinear(), scores.shape[2:], size))
    assert scratch - scores.nbytes <= 0.04 * 4 * math.prod(shape)
