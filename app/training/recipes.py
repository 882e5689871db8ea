"""Recipes: a row of values for everything that a training needs, except for data and network.

`fcn` is the training of Long, Shelhamer, Darrell, Fully Convolutional Networks for Semantic
Segmentation (CVPR 2015), with the numbers of their solver files: one whole image a step, the sum of
the loss over its pixels, momentum 0.99, and a learning rate for each network that fits this sum.
`modern` is the training that later networks are published with.
"""

from collections.abc import Mapping
from dataclasses import dataclass

FCN_RATES: Mapping[str, float] = {
    "fcn32s": 1e-10,
    "fcn16s": 1e-12,
    "fcn8s": 1e-14,
    "fcn8s-atonce": 1e-10,
}
"""The published learning rate of each network, for the loss summed over the pixels of an image.
FCN-16s continues the training of FCN-32s, and FCN-8s that of FCN-16s."""

FCN_STEPS: Mapping[str, int] = {"fcn8s-atonce": 300_000}
"""The published number of iterations, where it is not 100,000."""

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("fixed", "poly")
HEADS = ("fused", "plain")
AMP = ("auto", "none", "bfloat16", "float16")
MODERN_RATES: Mapping[str, float] = {"adamw": 1e-4, "sgd": 1e-2}
MODERN_DECAYS: Mapping[str, float] = {"adamw": 1e-2, "sgd": 5e-4}


def fits_labels(value: int) -> bool:
    """Returns whether labels of the widest dtype, int32, can have a value."""
    return -(1 << 31) <= value < 1 << 31


@dataclass(frozen=True)
class Recipe:
    """A complete description of a training, except for its data and its network.

    Attributes:
        preprocessing: a key of `preprocessing.PREPROCESSINGS`.
        batch_size: images of a micro-batch of one process.
        accumulation: micro-batches of a step (Caffe's iter_size).
        crop: height and width that training images are cropped and padded to; None for whole
            images.
        scale: the range of the random factor of their size; None for none.
        flip: whether half of them are mirrored.
        normalization: the divisor of the loss, as in `seg_loss.spatial_cross_entropy`.
        label_smoothing: as there.
        class_weight: as there; empty for none.
        optimizer: sgd or adamw.
        learning_rate: the base rate.
        momentum: of sgd.
        weight_decay: of the weights.
        bias_lr_mult, bias_decay_mult: multiply rate and decay of biases, as Caffe's lr_mult and
            decay_mult. Scales of normalisation layers have the decay of biases.
        schedule: fixed, or poly: rate * (1 - step / steps) ** power.
        power: of poly.
        warmup_steps: steps in which the rate grows linearly.
        clip_grad_norm: largest norm of the gradient; None for no limit.
        amp: the dtype of autocast.
        steps: number of updates of the weights.
        val_interval, checkpoint_interval, log_interval: numbers of steps.
        keep: number of checkpoints that are kept.
        seed: of everything random.
    """

    preprocessing: str = "caffe"
    batch_size: int = 1
    accumulation: int = 1
    crop: tuple[int, int] | None = None
    scale: tuple[float, float] | None = None
    flip: bool = False
    normalization: str = "batch"
    label_smoothing: float = 0.0
    class_weight: tuple[float, ...] = ()
    optimizer: str = "sgd"
    learning_rate: float = 1e-10
    momentum: float = 0.99
    weight_decay: float = 5e-4
    bias_lr_mult: float = 2.0
    bias_decay_mult: float = 0.0
    schedule: str = "fixed"
    power: float = 0.9
    warmup_steps: int = 0
    clip_grad_norm: float | None = None
    amp: str = "none"
    head: str = "fused"
    steps: int = 100_000
    val_interval: int = 4000
    checkpoint_interval: int = 4000
    log_interval: int = 20
    keep: int = 3
    seed: int = 0


RECIPES: Mapping[str, Recipe] = {
    "fcn": Recipe(),
    "modern": Recipe(
        preprocessing="imagenet",
        batch_size=8,
        crop=(512, 512),
        scale=(0.5, 2.0),
        flip=True,
        normalization="valid",
        optimizer="adamw",
        learning_rate=MODERN_RATES["adamw"],
        momentum=0.9,
        weight_decay=MODERN_DECAYS["adamw"],
        bias_lr_mult=1.0,
        schedule="poly",
        warmup_steps=500,
        amp="auto",
        steps=40_000,
        val_interval=1000,
        checkpoint_interval=1000,
    ),
}
"""The values of `fcn` are those of FCN's solver files; rate and steps depend on the network."""
