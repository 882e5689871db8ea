"""The processes of one training: one alone, or those that torchrun has started.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK and the address of the first process. Processes on GPUs
communicate through NCCL, those on CPUs through Gloo.

Gradients are added, not averaged: the loss of a process is its terms divided by the D of all
processes, so that the sum of the gradients is the gradient of the joined batch. (torch's
DistributedDataParallel divides this sum by the number of processes. With it, multiply the loss by
that number.)
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_TIMEOUT = timedelta(hours=2)
"""Time for which the other processes wait while the first checks the data."""


@dataclass
class Ranks:
    """The processes of a training.

    Attributes:
        rank: number of this process.
        world_size: number of processes.
        device: the device of this process.
        group: the process group; None if there is one process.
    """

    rank: int
    world_size: int
    device: torch.device
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Returns the sums over all processes, in float64."""
        if self.group is None:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, group=self.group)
        return tensor.tolist()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replaces a tensor on the CPU by its sum over all processes, and returns it."""
        if self.group is not None:
            on_device = tensor.to(self.device)
            dist.all_reduce(on_device, group=self.group)
            tensor.copy_(on_device)
        return tensor

    def sum_gradients(
        self, parameters: Iterable[nn.Parameter], has_gradient: Sequence[bool]
    ) -> None:
        """Adds the gradients of all processes.

        Args:
            parameters: the parameters.
            has_gradient: whether a parameter has a gradient in some process. It is 0 elsewhere.
        """
        if self.group is None:
            return
        pending = []
        for parameter, is_used in zip(parameters, has_gradient, strict=True):
            if is_used:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                pending.append(dist.all_reduce(parameter.grad, group=self.group, async_op=True))
        for work in pending:
            work.wait()

    def copy_from_first(self, module: nn.Module) -> None:
        """Gives all processes the parameters and buffers of the first."""
        if self.group is not None:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0, group=self.group)

    def in_first(self, action: Callable[[], object]) -> None:
        """Calls a function in the first process; if it raises there, the others end.

        Raises:
            Exception: what the function raises, in the first process.
            SystemExit: in the others.
        """
        error = None
        if self.is_first:
            try:
                action()
            except Exception as raised:
                error = raised
        (num_failed,) = self.sum([float(error is not None)])
        if error is not None:
            raise error
        if num_failed:
            sys.exit(1)

    def wait(self) -> None:
        """Waits until all processes are here."""
        self.sum([0.0])


def world_size() -> int:
    """Returns the number of processes that torchrun has started, or 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Returns the number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Joins the processes that torchrun has started, and leaves them at the end.

    Args:
        device: the device of this process.
    """
    if world_size() == 1:
        yield Ranks(0, 1, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    # Its functions have the group of the moment in which it is imported as a default argument.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend, timeout=_TIMEOUT)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), device, dist.group.WORLD)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
        # Gloo's threads end with the last reference. One that frees a tensor while the interpreter
        # is finalised aborts the process: "terminate called without an active exception".
        ranks.group = None
