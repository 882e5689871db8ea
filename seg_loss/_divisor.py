"""The divisor D of the loss, for each `normalization`.

"valid" divides by the number of valid pixels (Caffe VALID; torch's unweighted mean), "weight" by
the sum of their weights (torch's weighted mean): the kernels compute them. The CPU kernels compile
`counted_divisor`; those of the GPU have the same in `gpu.labels`.

With a process group, the counts of all ranks are added first, by `DivisorReduction`. This is the
only module that uses `torch.distributed`.
"""

import math
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from seg_loss._errors import InvalidInput

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup as ProcessGroup
else:  # a torch that was built without it has no such class
    ProcessGroup = getattr(dist, "ProcessGroup", Any)


def known_divisor(normalization: str, num_images: int, num_pixels: int) -> float | None:
    """Returns the divisor if it depends on the shapes alone, at least 1 as in Caffe; else None.

    "full" divides by all pixels (Caffe FULL), "batch" by the images (Caffe BATCH_SIZE, the FCN
    setup), "none" by 1 (Caffe NONE; torch's sum).
    """
    if normalization == "full":
        return float(max(num_pixels, 1))
    if normalization == "batch":
        return float(max(num_images, 1))
    return 1.0 if normalization == "none" else None


def counted_divisor(total: float, has_floor: bool) -> float:
    """Returns the divisor for a number of valid pixels, or for the sum of their weights.

    With a floor a count is raised to at least 1, and a weight of 0 replaced by 1, so that a batch
    without valid pixels has the loss 0. Without one a divisor of 0 is NaN, and so are loss and
    gradient: torch divides by 0 too, each part of a smoothed loss.
    """
    if has_floor:
        return total if total > 0 else 1.0
    return total if total != 0 else math.nan


def divisor(
    normalization: str,
    *,
    valid_pixels: int,
    weight_sum: float | None,
    num_images: int,
    num_pixels: int,
    has_floor: bool = True,
) -> float:
    """Returns the divisor D.

    Args:
        normalization: "valid", "weight", or one of those that `known_divisor` knows.
        valid_pixels: number of valid pixels.
        weight_sum: sum of their weights; None if there are no weights, so that each weighs 1.
        num_images: N.
        num_pixels: number of pixels of all images.
        has_floor: as in `counted_divisor`.
    """
    known = known_divisor(normalization, num_images, num_pixels)
    if known is not None:
        return known
    total = float(valid_pixels)
    if normalization == "weight" and weight_sum is not None:
        total = weight_sum
    return counted_divisor(total, has_floor)


# -- the divisor over the ranks of a process group -------------------------------------------------

VALID, INVALID, FAILED, LATE = 0, 1, 2, 3
"""The status of a rank: valid labels, invalid labels or weights, an error before they were read, or
the error of an earlier call with `check_labels="defer"`, which all ranks raise in this call."""


def check_process_group(group: object) -> None:
    """Checks for an initialised process group that this process belongs to."""
    where, expected = "process_group", "None or a torch.distributed.ProcessGroup"
    if not dist.is_available():
        fix = "This torch was built without torch.distributed."
        raise InvalidInput(where, "None", type(group).__name__, fix)
    if isinstance(group, int) and group == dist.GroupMember.NON_GROUP_MEMBER:
        fix = "new_group returns it to ranks outside of the group: do not call the loss there."
        raise InvalidInput(where, "a group of this process", "NON_GROUP_MEMBER", fix)
    if not isinstance(group, ProcessGroup):
        fix = "torch.distributed.group.WORLD has all ranks."
        raise InvalidInput(where, expected, type(group).__name__, fix)
    if not dist.is_initialized():
        fix = "Call torch.distributed.init_process_group first."
        raise InvalidInput(where, "an initialised process group", "one that was destroyed", fix)
    try:
        rank = dist.get_rank(group)
    except (ValueError, RuntimeError):  # torch has forgotten the group
        got = "one that was destroyed or that torch did not make"
        fix = "Use torch.distributed.group.WORLD or a result of new_group."
        raise InvalidInput(where, "an initialised process group", got, fix) from None
    if rank < 0:
        got = f"one without rank {dist.get_rank()}"
        raise InvalidInput(where, "a group of this process", got, "Use a group that it is in.")


class DivisorReduction:
    """An all-reduce that adds up the divisor of all ranks, and tells each the status of the others.

    The constructor starts it. On a GPU the host waits for nothing. The counts are float64, which
    holds integers up to 2^53.

    Attributes:
        vector: float64 [1 + ranks], complete once `wait` has returned: the sum, and the statuses.
    """

    def __init__(
        self,
        group: "ProcessGroup",
        summand: Tensor | float,
        status: Tensor | int,
        device: torch.device | None,
    ) -> None:
        """Starts the all-reduce.

        Args:
            group: a checked group.
            summand: what this rank adds to the divisor.
            status: `VALID`, `INVALID`, `FAILED` or `LATE`.
            device: of the inputs; None if there are none.
        """
        self._rank, self._device = group.rank(), device
        self._ranks = dist.get_process_group_ranks(group)
        size = 1 + len(self._ranks)
        self.vector = torch.zeros(size, dtype=torch.float64, device=_device_for(group, device))
        for index, value in ((0, summand), (1 + self._rank, status)):
            # An assignment would copy a number to the device, and wait for that.
            if isinstance(value, Tensor):
                self.vector[index].copy_(value)
            else:
                self.vector[index].fill_(value)
        self._work = dist.all_reduce(self.vector, group=group, async_op=True)

    @classmethod
    def of_batch(
        cls,
        group: "ProcessGroup",
        normalization: str,
        labels: Tensor,
        total: Tensor | float,
        is_invalid: Tensor | bool,
    ) -> "DivisorReduction":
        """Starts the all-reduce of a batch of this rank, of which `total` has been counted."""
        # The sum is raised to at least 1, which is the divisor of "none".
        known = {"full": float(labels.numel()), "batch": float(len(labels)), "none": 0.0}
        status = is_invalid * INVALID
        return cls(group, known.get(normalization, total), status, labels.device)

    def wait(self) -> Tensor:
        """Returns the divisor, float64, on the device of the inputs.

        The host waits for gloo; a GPU waits for NCCL.
        """
        assert self._work is not None
        self._work.wait()
        total = self.vector[0]
        return torch.where(total > 0, total, 1.0).to(self._device)

    def error_of_others(
        self, statuses: Sequence[float], reported: Container[int]
    ) -> InvalidInput | None:
        """Returns the error for other ranks with one of the statuses `reported`; None without any.

        The message gives their numbers among all processes.
        """
        ranks = [
            str(self._ranks[rank])
            for rank, status in enumerate(statuses)
            if rank != self._rank and status in reported
        ]
        if not ranks:
            return None
        *most, last = ranks
        names = f"ranks {', '.join(most)} and {last}" if most else f"rank {last}"
        fix = f"The error of {names} says what is wrong there."
        got = f"an error on {names}"
        return InvalidInput("process_group", "valid inputs on all ranks", got, fix)


def _device_for(group: "ProcessGroup", device: torch.device | None) -> torch.device:
    """Returns where a group reduces the counts.

    All ranks must choose the same backend, also a rank whose inputs are no tensors. Therefore the
    type of the device depends on the group alone.
    """
    # Such as "cpu:gloo,cuda:nccl".
    pairs = dist.get_backend_config(group).split(",")
    backends = dict(pair.split(":") for pair in pairs)
    if "cpu" in backends and backends.get("cuda", "gloo") in ("gloo", backends["cpu"]):
        return torch.device("cpu")
    if "cuda" not in backends:
        expected, got = "a group with a backend for tensors on the CPU or on CUDA", ",".join(pairs)
        raise InvalidInput("process_group", expected, got, "Use gloo or nccl.")
    if device is not None and device.type == "cuda":
        return device
    return torch.device("cuda", torch.cuda.current_device())
