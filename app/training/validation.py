"""Validation: the loss and FCN's four metrics on the images of a split, without full-size scores.

The images are shared among the processes. Counts are integers, and losses are added in the order of
the images, so that the result is the same for any number of processes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import seg_loss
from seg_loss import Diagnosis, FcnMetrics
from seg_loss.diagnosis import diagnose
from seg_loss.metrics import fcn_metrics

from .data import LabelFormat
from .distributed import Ranks
from .networks import scores_of
from .samples import Key, Samples, make_loader, read_batches

NUM_PICTURES = 4


@dataclass(frozen=True, eq=False)
class Picture:
    """One image of a validation.

    Attributes:
        index: its number in the split.
        labels, prediction: class indices [H,W].
        valid: false at ignored pixels [H,W].
    """

    index: int
    labels: npt.NDArray[np.integer]
    prediction: npt.NDArray[np.integer]
    valid: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Validation:
    """The result of a validation.

    Attributes:
        mean_nll: mean loss of the valid pixels of all images; None without valid pixels.
        image_loss: mean over the images of the sum over their pixels, as FCN's `score.py` prints.
        metrics: FCN's metrics.
        confusion: int64 [C,C], rows = truth.
        diagnosis: the state of the training that the loss shows.
        pictures: some of the images.
    """

    mean_nll: float | None
    image_loss: float
    metrics: FcnMetrics
    confusion: Tensor
    diagnosis: Diagnosis
    pictures: tuple[Picture, ...]


class _Shares(torch.utils.data.Sampler[list[Key]]):
    """The images of one process, one at a time."""

    def __init__(self, num_images: int, ranks: Ranks) -> None:
        self.indices = range(ranks.rank, num_images, ranks.world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[list[Key]]:
        return ([(0, index)] for index in self.indices)


class Validator:
    """Validates a network on the images of a split.

    Args:
        samples: the images.
        labels: how label files are read.
        ranks: the processes.
        workers: number of processes that read images.
    """

    def __init__(
        self, samples: Samples, labels: LabelFormat, ranks: Ranks, workers: int = 0
    ) -> None:
        self.samples = samples
        self._labels = labels
        self._ranks = ranks
        self._shares = _Shares(len(samples), ranks)
        self._loader = make_loader(
            samples,
            self._shares,
            labels,
            workers,
            pin=ranks.device.type == "cuda",
            keep_workers=True,
        )

    @torch.no_grad()
    def __call__(
        self,
        model: nn.Module,
        autocast: AbstractContextManager[Any],
        *,
        pictures: bool = False,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Validation | None:
        """Returns the result of a network, which is in training mode again afterwards.

        All processes return None if one of them has been cancelled.

        Args:
            model: the network, with `scores`.
            autocast: the context in which it computes.
            pictures: whether some images are returned.
            is_cancelled: is asked before each image.
        """
        num_classes = self._labels.num_classes
        # By image, so that the sum does not depend on the shares of the processes.
        losses = torch.zeros(len(self.samples), dtype=torch.float64)
        counts = torch.zeros(2, dtype=torch.int64)
        confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        drawn: list[Picture] = []
        was_training = model.training
        model.eval()
        try:
            # Not strict: a loader that is cancelled has more images.
            batches = read_batches(self._loader)
            for index, (image, labels) in zip(self._shares.indices, batches, strict=False):
                if is_cancelled():
                    break
                is_drawn = pictures and len(drawn) < NUM_PICTURES
                evaluation = self._evaluate(
                    model, autocast, image, labels, ("prediction",) if is_drawn else ()
                )
                losses[index] = evaluation.loss
                counts += torch.tensor([evaluation.valid_pixels, evaluation.non_finite_pixels])
                confusion += evaluation.confusion
                if is_drawn:
                    prediction = evaluation.maps["prediction"][0].cpu().numpy()
                    truth = labels[0].numpy()
                    valid = ~np.isin(truth, self._labels.ignore_index)
                    drawn.append(Picture(index, truth, prediction, valid))
        finally:
            model.train(was_training)
        (num_cancelled,) = self._ranks.sum([float(is_cancelled())])
        if num_cancelled:
            return None
        for tensor in (losses, counts, confusion):
            self._ranks.sum_(tensor)
        valid_pixels, non_finite = counts.tolist()
        total = float(losses.sum())
        mean_nll = total / valid_pixels if valid_pixels else None
        return Validation(
            mean_nll,
            total / max(len(losses), 1),
            fcn_metrics(confusion, ignore_index=self._labels.ignore_index),
            confusion,
            diagnose(
                num_classes=num_classes,
                valid_pixels=valid_pixels,
                mean_nll=mean_nll or 0.0,
                saturated_pixels=0,
                non_finite_pixels=non_finite,
            ),
            tuple(drawn),
        )

    def _evaluate(
        self,
        model: nn.Module,
        autocast: AbstractContextManager[Any],
        image: Tensor,
        labels: Tensor,
        maps: Sequence[str],
    ) -> seg_loss.Evaluation:
        device = self._ranks.device
        with autocast:
            scores, upsampling = scores_of(model, image.to(device, non_blocking=True))
        return seg_loss.evaluate(
            scores,
            labels.to(device, non_blocking=True),
            ignore_index=self._labels.ignore_index,
            normalization="none",
            upsampling=upsampling,
            maps=maps,
        )
