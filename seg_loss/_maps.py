"""Memory for the maps of `evaluate` and `predict`, one entry for each pixel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seg_loss.constants import NUM_TOP_CLASSES

_TOP_MAPS = {"top_classes", "top_probabilities"}


def class_dtype(num_classes: int) -> torch.dtype:
    """Returns the smallest of uint8, int16 and int32 that holds the classes."""
    if num_classes <= 1 << 8:
        return torch.uint8
    return torch.int16 if num_classes <= 1 << 15 else torch.int32


def empty_maps(
    names: Sequence[str], num_classes: int, size: Sequence[int], device: torch.device
) -> dict[str, Tensor]:
    """Returns memory for the maps of these names; the two maps of the top classes come together.

    Args:
        names: names of maps, each any number of times.
        num_classes: C.
        size: [N, *spatial], the size of a map.
        device: where the maps lie.
    """
    needed = set(names)
    if needed & _TOP_MAPS:
        needed |= _TOP_MAPS
    top = (size[0], min(NUM_TOP_CLASSES, num_classes), *size[1:])
    maps = {}
    for name in sorted(needed):
        dtype = class_dtype(num_classes) if name in CLASS_MAPS else torch.float32
        shape = top if name in _TOP_MAPS else tuple(size)
        maps[name] = torch.empty(shape, dtype=dtype, device=device)
    return maps


CLASS_MAPS = ("prediction", "top_classes")
"""The maps that hold classes; the others hold float32 numbers."""
