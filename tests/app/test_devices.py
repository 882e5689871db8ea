"""The choice of the device, and the checks of its memory, with a fake driver."""

import fake_gpu
import pytest
import torch

from app import devices
from app.errors import TooLarge
from seg_loss import InvalidInput

SETTING = "SEG_LOSS_DEVICE"
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "count", "device"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 2, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_a_name_chooses_a_device(monkeypatch, name, count, device):
    fake_gpu.install_driver(monkeypatch, count=count)
    assert devices.choose(name, SETTING) == devices.Choice(torch.device(device))


@pytest.mark.parametrize(
    ("name", "driver", "sentence"),
    [
        (
            "cuda",
            {"count": 0},
            "expected a CUDA device, got none. Use cpu, or look for the device",
        ),
        ("cuda:1", {"count": 1}, "expected cuda:0, got cuda:1."),
        ("cuda:2", {"count": 2}, "expected one of cuda:0, cuda:1, got cuda:2."),
        (
            "cuda",
            {"capability": (7, 5)},
            "expected compute capability 8.0 or newer, got 7.5 of cuda:0. Use cpu.",
        ),
        (
            "cuda",
            {"error": "CUDA error: all devices are busy.\nCompile with TORCH_USE_CUDA_DSA"},
            "expected cuda:0 to be usable, got the error 'CUDA error: all devices are busy'",
        ),
    ],
)
def test_a_device_that_cannot_be_used_is_an_error_that_names_the_setting(
    monkeypatch, name, driver, sentence
):
    fake_gpu.install_driver(monkeypatch, **driver)
    with pytest.raises(InvalidInput) as error:
        devices.choose(name, SETTING)
    assert f"{error.value}".startswith(f"{SETTING}: {sentence}")


def test_a_device_without_triton_is_an_error_with_a_fix(monkeypatch):
    fake_gpu.install_driver(monkeypatch)
    monkeypatch.setattr(devices, "_has_triton", lambda: False)
    with pytest.raises(InvalidInput, match=r"expected Triton .*, got cuda:0 without it\. pip "):
        devices.choose("cuda", SETTING)


def test_torch_without_cuda_is_named_as_the_reason(monkeypatch):
    fake_gpu.install_driver(monkeypatch, count=0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(InvalidInput, match="which is built without CUDA"):
        devices.choose("cuda", SETTING)


def test_auto_warns_of_a_device_that_it_cannot_use(monkeypatch):
    fake_gpu.install_driver(monkeypatch, capability=(6, 1))
    choice = devices.choose("auto", SETTING)
    assert choice.device == devices.CPU
    assert choice.warning.startswith(f"{SETTING}: expected compute capability 8.0")


def test_the_cpu_has_no_model_and_no_limit_of_memory():
    assert devices.model(devices.CPU) == ""
    assert devices.total_bytes(devices.CPU) is None
    devices.check_fits(devices.CPU, 1 << 60)


def test_tensors_larger_than_the_memory_of_the_gpu_are_an_error(monkeypatch):
    fake_gpu.install_driver(monkeypatch, total_bytes=1000)
    assert devices.model(CUDA) == fake_gpu.MODEL
    devices.check_fits(CUDA, 1000)
    with pytest.raises(TooLarge) as error:
        devices.check_fits(CUDA, 1001)
    assert error.value.detail == (
        "memory: expected at most 1000 bytes on cuda:0, got 1001. Send fewer images."
    )
    assert error.value.extensions == {"limit": 1000}


@pytest.mark.parametrize(
    ("error", "is_out_of_memory"),
    [
        (torch.OutOfMemoryError("Tried to allocate 2.00 GiB"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (InvalidInput("maps", "names", "'out of memory'"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, is_out_of_memory):
    assert devices.is_out_of_memory(error) == is_out_of_memory
