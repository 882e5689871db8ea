"""Networks of a user, as "package.module:callable" names them, and checkpoints for tests.

They are small: a pixel's scores depend on the three pixels around it. FCN's networks are tested
with few channels.
"""

import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.checkpoints import NetworkSpec, build, save_network
from models.surgery import initialize

NUM_CLASSES = 5
CLASS_NAMES = ("road", "grass", "tree", "house", "sky")
FCN_CHANNELS = (4, 4, 4, 4, 4, 8)


class Strided(nn.Module):
    """Scores at a quarter of the resolution, like those of SegFormer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.score = nn.Conv2d(8, num_classes, 3, stride=2, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.score(torch.relu(self.first(image)))


class FullSize(nn.Module):
    """Scores of the photo's own size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, num_classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.score(image)


class OneSize(Strided):
    """Scores 4 x 4 of a photo of any size, which fit no tiles."""

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(super().forward(image), 4)


class NoWhite(Strided):
    """Fails for a batch with a white photo, and for photos of less than four pixels."""

    def forward(self, image: Tensor) -> Tensor:
        if bool((image.amin(dim=(1, 2, 3)) > 2).any()) or image[0, 0].numel() < 4:
            raise RuntimeError("a secret of the network")
        return super().forward(image)


class Waiting(Strided):
    """Waits for `may_go` from its second batch on."""

    may_go = threading.Event()

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.sizes: list[tuple[int, ...]] = []
        """Height and width of each batch."""

    def forward(self, image: Tensor) -> Tensor:
        self.sizes.append(tuple(image.shape[2:]))
        if len(self.sizes) > 1:
            self.may_go.wait(60)
        return super().forward(image)


class Broken(Strided):
    """Fails for every photo."""

    def forward(self, image: Tensor) -> Tensor:
        raise RuntimeError("needs 65 pixels.\nand more")


class Diverged(Strided):
    """Scores of NaN."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) * float("nan")


class Overflowing(Strided):
    """Scores of NaN, except of black photos."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) * (float("nan") if image.amax() > 0 else 1)


class Choosy(Strided):
    """Fails as a transformer does that takes photos of 64 x 64 only."""

    def forward(self, image: Tensor) -> Tensor:
        assert image.shape[2:] == (64, 64), "size does not match model (64)."
        return super().forward(image)


class Small(Strided):
    """Scores of a quarter of the size, and no upsampling, in a wrapper of its own."""

    def scores(self, image: Tensor) -> tuple[Tensor, None]:
        return self.forward(image), None


def failing(num_classes: int) -> nn.Module:
    raise LookupError(f"no network with {num_classes} classes")


class Misshapen(Strided):
    """One class too many, in a wrapper of its own."""

    def scores(self, image: Tensor) -> tuple[Tensor, None]:
        return torch.zeros(len(image), NUM_CLASSES + 1, *image.shape[2:]), None


def write_checkpoint(directory: Path, network: str = "Strided") -> Path:
    """Writes a network with random weights; the name of one of the classes here, or of an FCN."""
    if network.startswith("fcn"):
        spec = NetworkSpec(network, NUM_CLASSES, FCN_CHANNELS, "caffe", CLASS_NAMES)
        model = build(spec)
        initialize(model, 0)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.startswith("score"):
                    weight.normal_(generator=torch.Generator().manual_seed(1))
    else:
        name = f"{__name__}:{network}"
        spec = NetworkSpec(name, NUM_CLASSES, None, "imagenet", CLASS_NAMES)
        torch.manual_seed(0)
        model = build(spec)
    path = directory / f"{network}.safetensors"
    save_network(path, model, spec)
    return path


def make_photos(*sizes: tuple[int, int]) -> list[npt.NDArray[np.uint8]]:
    """Random photos, uint8 [H,W,3]."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
