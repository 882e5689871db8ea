"""The device that losses are computed on: how it is chosen, and how its memory is checked.

The names of devices are those of torch: `cpu`, `cuda:0`, `cuda:1`. `cuda` is `cuda:0`. `auto` is
`cuda:0` if the kernels can run there, and else `cpu`.
"""

import importlib.util
import warnings
from dataclasses import dataclass

import torch

from seg_loss import InvalidInput

from .errors import TooLarge

CPU = torch.device("cpu")
MIN_CAPABILITY = (8, 0)
"""The oldest compute capability that the kernels are compiled for."""


@dataclass(frozen=True)
class Choice:
    """A device, and a sentence about the CUDA device that `auto` cannot use, or an empty string."""

    device: torch.device
    warning: str = ""


def choose(name: str, where: str) -> Choice:
    """Returns the device of a name.

    Args:
        name: auto, cpu, cuda or cuda:N.
        where: the flag or setting that holds the name, for messages.

    Raises:
        seg_loss.InvalidInput: if the name is that of a CUDA device that cannot be used.
    """
    if name == "cpu":
        return Choice(CPU)
    index = int(name.partition(":")[2] or 0)
    error = _error_of_cuda(index, where)
    if error is None:
        return Choice(torch.device("cuda", index))
    if name != "auto":
        raise error
    # A machine without a CUDA device is an ordinary one; a device that is not used is a surprise.
    return Choice(CPU, f"{error}" if _num_cuda_devices() else "")


def model(device: torch.device) -> str:
    """Returns the name that the maker gives a GPU; an empty string for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def total_bytes(device: torch.device) -> int | None:
    """Returns the size of a GPU's memory; None for the CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory


def check_fits(device: torch.device, num_bytes: int) -> None:
    """Checks that tensors of this size fit in a GPU's memory if it holds nothing else.

    Raises:
        TooLarge: if not.
    """
    limit = total_bytes(device)
    if limit is not None and num_bytes > limit:
        expected = f"at most {limit} bytes on {device}"
        raise TooLarge("memory", expected, f"{num_bytes}", "Send fewer images.", limit=limit)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether an error says that the memory of a GPU is full.

    torch has a class for it, but errors of the driver, which Triton and pinned memory raise too,
    say so in their text alone. `InvalidInput` is a RuntimeError whose text may quote a client.
    """
    if isinstance(error, InvalidInput):
        return False
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in f"{error}"


def release_cached_bytes() -> None:
    """Gives the memory back to the GPU that torch keeps for later tensors."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _error_of_cuda(index: int, where: str) -> InvalidInput | None:
    """Returns why a CUDA device cannot be used, or None if it can."""
    name = f"cuda:{index}"
    count = _num_cuda_devices()
    if not count:
        got, fix = "none", "Use cpu, or look for the device and its driver with nvidia-smi."
        if torch.version.cuda is None:
            got = f"torch {torch.__version__}, which is built without CUDA"
            fix = "Use cpu, or install torch's CUDA build."
        return InvalidInput(where, "a CUDA device", got, fix)
    if index >= count:
        names = ", ".join(f"cuda:{number}" for number in range(count))
        return InvalidInput(where, f"one of {names}" if count > 1 else names, name)
    capability = torch.cuda.get_device_capability(index)
    if capability < MIN_CAPABILITY:
        expected = f"compute capability {_version(MIN_CAPABILITY)} or newer"
        got = f"{_version(capability)} of {name}"
        return InvalidInput(where, expected, got, "Use cpu.")
    if not _has_triton():
        fix = "pip install triton, or use cpu."
        return InvalidInput(where, "Triton to be installed", f"{name} without it", fix)
    try:
        _allocate(name)
    except RuntimeError as error:
        got = f"{error}".partition("\n")[0].rstrip(".")
        return InvalidInput(where, f"{name} to be usable", f"the error '{got}'", "Use cpu.")
    return None


def _num_cuda_devices() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a driver that is missing or too old
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _allocate(name: str) -> None:
    """Allocates memory on a device, which fails if another process uses it exclusively."""
    torch.zeros(1, device=name)


def _version(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
