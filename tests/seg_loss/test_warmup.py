"""`warm_up`: that later calls compile no kernel, told from what Triton specializes kernels on."""

from unittest import mock

import pytest
import torch

import seg_loss
from seg_loss import Bilinear, _backends, warmup
from seg_loss.constants import MAPS
from tests.support import backends

triton = pytest.importorskip("triton", reason="Triton is not installed")

ALL_DTYPES = [
    (torch.float32, torch.uint8),
    (torch.float32, torch.int64),
    (torch.float16, torch.uint8),
    (torch.bfloat16, torch.uint8),
]
# One image of Cityscapes, a crop of ADE20K, images of PASCAL VOC.
USUAL = [
    ((1, 19, 1024, 2048), ALL_DTYPES[:1]),
    ((1, 150, 512, 512), ALL_DTYPES),
    ((1, 21, 375, 500), ALL_DTYPES),
    ((1, 21, 500, 334), ALL_DTYPES),
    ((1, 21, 500, 300), ALL_DTYPES[:1]),
]
OTHERS = [(2, 19, 512, 1024), (1, 19, 769, 769), (4, 150, 512, 512), (3, 21, 321, 321)]
SMALL_KERNELS = {
    "check_labels_kernel",
    "count_kernel",
    "finish_kernel",
    "nll_kernel",
    "sum_kernel",
    "sum_partials_kernel",
}
"""Kernels that do not read logits. They are specialized on numbers of images and programs."""


@pytest.fixture
def compiled(monkeypatch):
    """What would be compiled: a set of kernels with what each is specialized on. Nothing runs."""
    from seg_loss.gpu.plan import Launch

    found = set()

    def record(launch, stream, *arguments):
        found.add(specialization(launch, arguments))

    monkeypatch.setattr(Launch, "__call__", record)
    # Tensors on the CPU take the way of those on a GPU.
    monkeypatch.setattr(warmup, "CPU_CASES", warmup.GPU_CASES)
    with mock.patch.dict(_backends.BACKENDS, {"cpu": backends.TRITON}):
        yield found


def specialization(launch, arguments):
    """The kernel, its constants, and what Triton's `specialize_impl` keeps of the arguments."""
    kernel = launch.kernel
    values = [*arguments, *launch.scalars]
    parameters = kernel.params[: len(values)]
    kept = tuple(
        kept_of(value, is_specialized=not parameter.do_not_specialize)
        for parameter, value in zip(parameters, values, strict=True)
    )
    return kernel.fn.__name__, kept, tuple(sorted(launch.constants.items(), key=str))


def kept_of(value, *, is_specialized=True):
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, tuple):
        return tuple(map(kept_of, value))
    if isinstance(value, int):
        is_wide = not -(1 << 31) <= value < 1 << 31
        if not is_specialized:
            return (is_wide,)
        return "1" if value == 1 else (is_wide, value % 16 == 0)
    return value


def use(shape, dtype, label_dtype):
    """The calls that a service makes for most requests."""
    logits = torch.zeros(shape, dtype=dtype)
    labels = torch.zeros((shape[0], *shape[2:]), dtype=label_dtype)
    seg_loss.loss_and_gradient(logits, labels)
    seg_loss.evaluate(logits, labels)


def compiled_after_warm_up(compiled, num_classes, call):
    """The names of the kernels that a call compiles after a warm-up."""
    seg_loss.warm_up(num_classes=num_classes)
    warm = set(compiled)
    call()
    return {name for name, *_ in compiled - warm}


@pytest.mark.parametrize(("shape", "dtypes"), USUAL, ids=[f"{shape}" for shape, _ in USUAL])
def test_usual_calls_on_a_gpu_compile_nothing_after_a_warm_up(compiled, shape, dtypes):
    def call():
        for dtype, label_dtype in dtypes:
            use(shape, dtype, label_dtype)

    assert compiled_after_warm_up(compiled, shape[1], call) == set()


@pytest.mark.parametrize("shape", OTHERS, ids=str)
def test_other_sizes_compile_small_kernels_at_most(compiled, shape):
    def call():
        for dtype, label_dtype in ALL_DTYPES:
            use(shape, dtype, label_dtype)

    assert compiled_after_warm_up(compiled, shape[1], call) <= SMALL_KERNELS


def test_upsampled_scores_compile_nothing_after_a_warm_up(compiled):
    logits = torch.zeros(1, 19, 64, 64)
    labels = torch.zeros(1, 512, 512, dtype=torch.uint8)

    def call():
        seg_loss.loss_and_gradient(logits, labels, upsampling=Bilinear())
        for maps in ((), MAPS):
            seg_loss.evaluate(logits, labels, upsampling=Bilinear(), maps=maps)
        for maps in (("prediction",), ("prediction", "confidence")):
            seg_loss.predict(logits, size=(512, 512), maps=maps)

    assert compiled_after_warm_up(compiled, 19, call) == set()


def test_a_warm_up_for_very_many_classes_takes_small_images(compiled):
    seg_loss.warm_up(num_classes=4096)
    assert "cross_entropy_kernel" in {name for name, *_ in compiled}


@pytest.mark.parametrize("num_classes", [21, 150])
def test_usual_calls_on_the_cpu_compile_nothing_after_a_warm_up(monkeypatch, num_classes):
    from seg_loss.cpu import arguments, cache

    monkeypatch.setattr(arguments.plans, "_plans", {})
    monkeypatch.setattr(cache, "_loaded", {})
    with backends.numba_kernels():
        seg_loss.warm_up(num_classes=num_classes)
        warm = set(cache._loaded)
        for size in (24, 32), (37, 53):
            for dtype in torch.float32, torch.float64:
                for label_dtype in torch.uint8, torch.int64:
                    use((1, num_classes, *size), dtype, label_dtype)
            logits = torch.zeros(1, num_classes, *size)
            labels = torch.zeros(1, *size, dtype=torch.uint8)
            weight = torch.ones(num_classes)
            seg_loss.spatial_cross_entropy(logits, labels, weight)
            seg_loss.pixel_nll(logits, labels)
            seg_loss.loss_and_gradient(logits, labels, label_smoothing=0.1)
            seg_loss.evaluate(logits, labels, maps=MAPS)
            large_labels = torch.zeros(1, 8 * size[0], 8 * size[1], dtype=torch.uint8)
            seg_loss.loss_and_gradient(logits, large_labels, upsampling=Bilinear())
            seg_loss.evaluate(logits, large_labels, upsampling=Bilinear(), maps=MAPS)
            for maps in (("prediction",), ("prediction", "confidence")):
                seg_loss.predict(logits, maps=maps)
                seg_loss.predict(logits, size=large_labels.shape[1:], maps=maps)
            leaf = logits.requires_grad_()
            seg_loss.spatial_cross_entropy(leaf, labels).backward()
            seg_loss.spatial_softmax(leaf)[:, 0].sum().backward()
    assert set(cache._loaded) == warm
