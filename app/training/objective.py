"""The loss of a step and its gradient: micro-batches, processes, mixed precision.

    loss = sum over all micro-batches and processes of their terms / D

D is that of the joined batch: with "valid", the number of valid pixels in all micro-batches of all
processes. The gradients of A micro-batches therefore add up to the gradient of one batch of A times
the size. A mean of A means would weigh the pixels of a micro-batch with few of them higher.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import seg_loss
from seg_loss import InvalidInput

from .distributed import Ranks
from .networks import scores_of
from .recipes import Recipe

Batch = tuple[Tensor, Tensor]
"""Images [N,3,H,W] and labels [N,H,W]."""


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step, over all processes.

    Attributes:
        loss: the loss, with the recipe's divisor.
        mean_nll: the sum of the terms, divided by the number of valid pixels.
        valid_pixels: that number.
        num_images: number of images.
    """

    loss: float
    mean_nll: float
    valid_pixels: int
    num_images: int


class Objective:
    """Computes the loss of a network for batches, and its gradient.

    Args:
        model: a network with `forward` and `scores`, as in `models.fcn`.
        recipe: the recipe.
        ignore_index: labels of pixels that do not count.
        ranks: the processes.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, ignore_index: Sequence[int], ranks: Ranks
    ) -> None:
        self._model = model
        self._recipe = recipe
        self._ranks = ranks
        self._ignored = tuple(ignore_index)
        weight = torch.tensor(recipe.class_weight) if recipe.class_weight else None
        self._class_weight = None if weight is None else weight.to(ranks.device)
        self._amp_dtype = amp_dtype(recipe.amp, ranks.device)
        self.scaler = torch.amp.GradScaler(
            ranks.device.type, enabled=self._amp_dtype == torch.float16
        )

    def accumulate(self, batches: Sequence[Batch]) -> StepLoss:
        """Adds the gradient of the loss to that of the parameters, and returns the loss.

        The library divides one micro-batch by the D of all processes. The D of several must be
        known before the first of them: their terms are counted here.

        Args:
            batches: the micro-batches of this process.
        """
        counts = _Counts(*map(sum, zip(*map(self._count, batches), strict=True)))
        if len(batches) == 1:
            (batch,) = batches
            loss = self._backward(*batch, None)
            loss, *sums = self._ranks.sum([loss, *counts])
            counts = _Counts(*sums)
        else:
            counts = _Counts(*self._ranks.sum(counts))
            divisor = self._divisor(counts)
            (loss,) = self._ranks.sum([sum(self._backward(*batch, divisor) for batch in batches)])
        valid_pixels = int(counts.valid_pixels)
        mean_nll = loss * self._divisor(counts) / max(valid_pixels, 1)
        return StepLoss(loss, mean_nll, valid_pixels, int(counts.images))

    def autocast(self) -> AbstractContextManager[object]:
        """Returns the context in which the network computes."""
        return torch.autocast(
            self._ranks.device.type, self._amp_dtype, enabled=self._amp_dtype is not None
        )

    def _backward(self, image: Tensor, labels: Tensor, divisor: float | None) -> float:
        """Computes the gradient of one micro-batch, and returns this process's part of the loss.

        Args:
            image, labels: the micro-batch.
            divisor: D; None for that of this micro-batch in all processes.
        """
        device = self._ranks.device
        image, labels = (tensor.to(device, non_blocking=True) for tensor in (image, labels))
        with self.autocast():
            if self._recipe.head == "plain":
                scores, upsampling = self._model(image), None
            else:
                scores, upsampling = scores_of(self._model, image)
        arguments: dict[str, Any] = {
            "ignore_index": self._ignored,
            "label_smoothing": self._recipe.label_smoothing,
            "normalization": self._recipe.normalization if divisor is None else "none",
            "process_group": self._ranks.group if divisor is None else None,
        }
        if upsampling is None:
            loss = seg_loss.spatial_cross_entropy(scores, labels, self._class_weight, **arguments)
        else:
            loss = seg_loss.upsampled_cross_entropy(
                scores, labels, self._class_weight, upsampling=upsampling, **arguments
            )
        if divisor is not None:
            loss = loss / divisor
        torch.autograd.backward(self.scaler.scale(loss))
        return float(loss.detach())

    def _count(self, batch: Batch) -> "_Counts":
        """Returns what the divisors are made of."""
        labels = batch[1]
        valid = torch.ones_like(labels, dtype=torch.bool)
        for value in self._ignored:
            valid &= labels.long() != value  # which may not fit the labels' dtype
        num_valid = float(valid.sum())
        weight = num_valid
        if self._recipe.normalization == "weight" and self._recipe.class_weight:
            by_class = torch.tensor(self._recipe.class_weight, dtype=torch.float64)
            pixels = torch.bincount(labels[valid].long(), minlength=len(by_class))
            weight = float(pixels.double() @ by_class)
        return _Counts(num_valid, float(len(labels)), float(labels.numel()), weight)

    def _divisor(self, counts: "_Counts") -> float:
        return {
            "valid": max(counts.valid_pixels, 1.0),
            "full": max(counts.pixels, 1.0),
            "batch": max(counts.images, 1.0),
            "none": 1.0,
            "weight": counts.weight or 1.0,
        }[self._recipe.normalization]


class _Counts(NamedTuple):
    """What the divisors are made of; float64 holds integers up to 2^53."""

    valid_pixels: float
    images: float
    pixels: float
    weight: float


def amp_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Returns the dtype of autocast, or None for float32.

    Args:
        name: a value of the option `amp`.
        device: the device.

    Raises:
        InvalidInput: if the device has no such autocast.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else None
    if name == "float16" and device.type == "cpu":
        raise InvalidInput("amp", "bfloat16 on the CPU", "float16", "Pass amp=bfloat16.")
    return {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
