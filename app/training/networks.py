"""What a training uses of `models`, with the types of a checkout."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..models_import import import_models

if TYPE_CHECKING:
    from models.checkpoints import NetworkSpec as NetworkSpec
    from seg_loss.upsampling import Upsampling
else:
    NetworkSpec = Any


def scores_of(model: nn.Module, image: Tensor) -> "tuple[Tensor, Upsampling | None]":
    """Returns the scores of an image, and how they are upsampled; None if they are not."""
    scores, upsampling = model.scores(image)  # type: ignore[operator]
    return scores, upsampling


def save_network(path: Path, model: nn.Module, spec: NetworkSpec) -> None:
    """Writes the weights and the description of a network, as `models.checkpoints` does."""
    import_models("checkpoints").save_network(path, model, spec)


def load_network(path: Path, *, network: str | None = None) -> tuple[nn.Module, NetworkSpec]:
    """Returns the network in a file, as `models.checkpoints` does."""
    model, spec = import_models("checkpoints").load_network(path, network=network)
    return model, spec
