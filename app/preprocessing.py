"""Photos as the input of a network: order of the channels, mean and scale.

A network must see photos as it did in training. A checkpoint therefore names its preprocessing.
`to_input` imports torch, so that the command line can list the names without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    """Maps photos, uint8 RGB, to (photo / scale - mean) / deviation.

    Attributes:
        is_bgr: whether blue comes first.
        scale: divides the values, which are 0 to 255.
        mean: is subtracted, for each channel in the order of the network.
        deviation: divides the result, for each channel.
    """

    is_bgr: bool
    scale: float
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    def to_input(self, photo: npt.NDArray[np.uint8]) -> "Tensor":
        """Returns a photo [H,W,3] as the input of a network, float32 [3,H,W]."""
        import torch

        # torch warns of an array that cannot be written to, such as np.asarray(Image).
        array = np.require(photo, requirements=["C", "W"])
        channels = torch.from_numpy(array).permute(2, 0, 1)
        if self.is_bgr:
            channels = channels.flip(0)
        mean, deviation = (
            torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.deviation)
        )
        return (channels.float() / self.scale - mean) / deviation


PREPROCESSINGS: Mapping[str, Preprocessing] = {
    "caffe": Preprocessing(True, 1.0, (104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0)),
    "imagenet": Preprocessing(False, 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""The preprocessing of FCN and Caffe's VGG16, and that of torchvision's networks."""
