"""The loss of a step and its gradient: micro-batches, processes, mixed precision.

    loss = sum over all micro-batches and processes of their terms / D

D is that of the joined batch: with "valid", the number of valid pixels in all micro-batches of all
processes. The gradients of A micro-batches therefore add up to the gradient of one batch of A times
the size. A mean of A means would weigh the pixels of a micro-batch with few of them higher.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

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

        Args:
            batches: the micro-batches of this process.
        """
        valid_pixels = sum(self._num_valid(labels) for _, labels in batches)
        num_images = sum(len(labels) for _, labels in batches)
        divisor, valid_pixels, num_images = self._divisor(batches, valid_pixels, num_images)
        loss = 0.0
        for image, labels in batches:
            loss += self._backward(image, labels, divisor)
        (loss,) = self._ranks.sum([loss])
        mean_nll = loss * divisor / max(valid_pixels, 1)
        return StepLoss(loss, mean_nll, valid_pixels, num_images)

    def autocast(self) -> AbstractContextManager[object]:
        """Returns the context in which the network computes."""
        return torch.autocast(
            self._ranks.device.type, self._amp_dtype, enabled=self._amp_dtype is not None
        )

    def _backward(self, image: Tensor, labels: Tensor, divisor: float) -> float:
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
            "normalization": "none",
        }
        if upsampling is None:
            terms = seg_loss.spatial_cross_entropy(scores, labels, self._class_weight, **arguments)
        else:
            terms = seg_loss.upsampled_cross_entropy(
                scores, labels, self._class_weight, upsampling=upsampling, **arguments
            )
        loss: Tensor = terms / divisor
        torch.autograd.backward(self.scaler.scale(loss))
        return float(loss.detach())

    def _num_valid(self, labels: Tensor) -> int:
        return int(self._valid(labels).sum())

    def _valid(self, labels: Tensor) -> Tensor:
        valid = torch.ones_like(labels, dtype=torch.bool)
        for value in self._ignored:
            valid &= labels.int() != value
        return valid

    def _divisor(
        self, batches: Sequence[Batch], valid_pixels: int, num_images: int
    ) -> tuple[float, int, int]:
        """Returns D, the number of valid pixels and of images in all processes."""
        num_pixels = sum(labels.numel() for _, labels in batches)
        weight = 0.0
        if self._recipe.normalization == "weight":
            weight = sum(self._weight_sum(labels) for _, labels in batches)
        sums = self._ranks.sum([valid_pixels, num_images, num_pixels, weight])
        valid_pixels, num_images = int(sums[0]), int(sums[1])
        divisor = {
            "valid": max(sums[0], 1.0),
            "full": max(sums[2], 1.0),
            "batch": max(sums[1], 1.0),
            "none": 1.0,
            "weight": sums[3] or 1.0,
        }[self._recipe.normalization]
        return divisor, valid_pixels, num_images

    def _weight_sum(self, labels: Tensor) -> float:
        classes = labels[self._valid(labels)].long()
        if not self._recipe.class_weight:
            return float(classes.numel())
        weight = torch.tensor(self._recipe.class_weight, dtype=torch.float64)
        counts = torch.bincount(classes, minlength=len(weight))
        return float(counts.double() @ weight)


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
