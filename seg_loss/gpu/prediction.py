"""The maps of `predict`, without labels."""

from dataclasses import replace

import torch
from torch import Tensor

from seg_loss._inputs import LossInputs, LossOptions
from seg_loss.gpu.evaluation import evaluate
from seg_loss.upsampling import Axes


def predict(scores: Tensor, axes: Axes | None, temperature: float, maps: dict[str, Tensor]) -> None:
    """Fills the maps."""

    class Inputs(LossInputs):
        @property
        def axes(self):
            return axes

    first = next(iter(maps.values()))
    size = (
        first.shape
        if not next(iter(maps)).startswith("top")
        else (first.shape[0], *first.shape[2:])
    )
    labels = torch.full((), 255, dtype=torch.uint8, device=scores.device).expand(size)
    evaluate(Inputs(scores, labels, None, None, LossOptions(temperature=temperature)), maps)
