"""The options of `seg-loss train`; importing this module does not import torch.

    flags -> `options.parse` -> TrainOptions -> `resolve` -> Recipe, complete

An option that is not given has the value of the recipe.
"""

import math
import re
from dataclasses import fields, replace
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from seg_loss.constants import NORMALIZATIONS

from ..errors import IllPosed
from ..options import LabelOptions, Number, OneOf, flag_pattern
from ..preprocessing import PREPROCESSINGS
from .recipes import (
    AMP,
    FCN_RATES,
    FCN_STEPS,
    HEADS,
    MODERN_DECAYS,
    MODERN_RATES,
    OPTIMIZERS,
    RECIPES,
    SCHEDULES,
    Recipe,
    fits_labels,
)

DATA_CHECKS = ("full", "none")
TENSORBOARD = ("auto", "yes", "no")

MAX_SIDE = 1 << 15
"""Largest height and width of a crop."""

_SIZE = re.compile(r" *([0-9]{1,5})(?: *[,x] *([0-9]{1,5}))? *")
_INTEGER = re.compile(r"[0-9]{1,9}")


def _parse_size(text: object) -> object:
    """Returns height and width in `512,1024`, `512x1024` or `512`; None in `none`."""
    if not isinstance(text, str):
        return text
    if text == "none":
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError
    return int(match[1]), int(match[2] or match[1])


def _check_size(size: tuple[int, int] | None) -> tuple[int, int] | None:
    if size is not None and not all(1 <= side <= MAX_SIDE for side in size):
        raise ValueError
    return size


def _parse_range(text: object) -> object:
    """Returns the two numbers in `0.5,2`; None in `none`."""
    if text == "none":
        return None
    return text.split(",") if isinstance(text, str) else text


def _check_range(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    if bounds is not None and not 0.01 <= bounds[0] <= bounds[1] <= 100:
        raise ValueError
    return bounds


def _parse_sizes(text: object) -> object:
    """Returns the integers in `64,128`, which may repeat."""
    if not isinstance(text, str):
        return text
    entries = [entry.strip(" ") for entry in text.split(",")]
    if not all(map(_INTEGER.fullmatch, entries)):
        raise ValueError
    return tuple(map(int, entries))


def _parse_texts(text: object) -> object:
    """Returns the texts between commas."""
    if not isinstance(text, str):
        return text
    return tuple(entry.strip(" ") for entry in text.split(",")) if text else ()


def _check_channels(channels: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if channels is not None and not (len(channels) == 6 and all(channels)):
        raise ValueError
    return channels


def _none(text: object) -> object:
    return None if text == "none" else text


def _values_of(name: str) -> str:
    """Returns the values of an option in the recipes, for its description."""
    texts = {key: _text(getattr(recipe, name)) for key, recipe in RECIPES.items()}
    if len(set(texts.values())) == 1:
        return f"[{next(iter(texts.values()))}]"
    return f"[{', '.join(f'{key}: {text}' for key, text in texts.items())}]"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else f"{value}"


def _row(name: str, title: str, description: str, **bounds: Any) -> Any:
    """Returns the field of an option whose value, if it is not given, is that of the recipe."""
    text = f"{description} {_values_of(name)}"
    return Field(default=None, title=title, description=text, **bounds)


class TrainOptions(LabelOptions):
    """The options of `seg-loss train`; those that are None have the value of the recipe."""

    recipe: Annotated[str, OneOf(RECIPES)] = Field(
        default="fcn",
        title=f"one of {', '.join(RECIPES)}",
        description="The training of FCN as it was published, or a modern one.",
    )
    network: Annotated[str, OneOf(FCN_RATES)] = Field(
        default="fcn8s-atonce",
        title=f"one of {', '.join(FCN_RATES)}",
        description="The network to train.",
    )
    channels: Annotated[
        tuple[int, ...] | None, BeforeValidator(_parse_sizes), AfterValidator(_check_channels)
    ] = Field(
        default=None,
        title="6 positive integers with commas between them",
        description="Channels of conv1 to conv5 and of fc6 and fc7, for a thinner network. "
        "[64,128,256,512,512,4096]",
    )
    num_classes: int = Field(
        default=21,
        ge=1,
        le=4096,
        title="an integer from 1 to 4096",
        description="Number C of classes.",
    )
    class_names: Annotated[tuple[str, ...], BeforeValidator(_parse_texts)] = Field(
        default=(),
        title="a name for each class, with commas between them",
        description="Names of the classes, which the checkpoints hold. Those of the palette if not "
        "given.",
    )
    train_split: str = Field(default="train", title="a name", description="The split to train on.")
    val_split: Annotated[str | None, BeforeValidator(_none)] = Field(
        default="val", title="a name, or none", description="The split to validate on."
    )
    val_fraction: Number = Field(
        default=0.1,
        ge=0,
        le=0.9,
        title="a number from 0 to 0.9",
        description="Share of the images to validate on, where folders have no splits.",
    )
    check_data: Annotated[str, OneOf(DATA_CHECKS)] = Field(
        default="full",
        title=f"one of {', '.join(DATA_CHECKS)}",
        description="Whether all files are read and checked before the first step.",
    )
    preprocessing: Annotated[str | None, OneOf(PREPROCESSINGS)] = _row(
        "preprocessing",
        f"one of {', '.join(PREPROCESSINGS)}",
        "BGR minus a mean, or RGB with mean and deviation.",
    )
    batch_size: int | None = _row(
        "batch_size", "a positive integer", "Images at a time in one process.", ge=1
    )
    accumulation: int | None = _row(
        "accumulation",
        "a positive integer",
        "Batches of a step, whose divisor is that of all of them; Caffe's iter_size.",
        ge=1,
    )
    crop: Annotated[
        tuple[int, int] | None, BeforeValidator(_parse_size), AfterValidator(_check_size)
    ] = _row(
        "crop",
        "height and width with a comma between them, one number, or none",
        "Size that training images are cropped to.",
    )
    scale: Annotated[
        tuple[Number, Number] | None, BeforeValidator(_parse_range), AfterValidator(_check_range)
    ] = _row(
        "scale",
        "two numbers with a comma between them, or none",
        "Range of the random factor of the size of training images.",
    )
    flip: bool | None = _row("flip", "yes or no", "Mirror half of the training images.")
    normalization: Annotated[str | None, OneOf(NORMALIZATIONS)] = _row(
        "normalization",
        f"one of {', '.join(NORMALIZATIONS)}",
        "Divisor of the loss. With batch and one image the loss is the sum over its pixels.",
    )
    label_smoothing: Number | None = _row(
        "label_smoothing",
        "a number from 0 to 1",
        "Share of the target that is spread over all classes.",
        ge=0,
        le=1,
    )
    class_weight: Annotated[
        tuple[Annotated[Number, Field(ge=0)], ...] | None, BeforeValidator(_parse_texts)
    ] = _row(
        "class_weight",
        "a number of at least 0 for each class, with commas between them",
        "Weight of the loss of each class.",
    )
    optimizer: Annotated[str | None, OneOf(OPTIMIZERS)] = _row(
        "optimizer", f"one of {', '.join(OPTIMIZERS)}", "How gradients change the weights."
    )
    learning_rate: Number | None = Field(
        default=None,
        gt=0,
        le=1e6,
        title="a positive number",
        description="Base learning rate. "
        f"[fcn: {', '.join(f'{name} {rate:g}' for name, rate in FCN_RATES.items())}; "
        f"modern: {', '.join(f'{name} {rate:g}' for name, rate in MODERN_RATES.items())}]",
    )
    momentum: Number | None = _row(
        "momentum", "a number from 0 to below 1", "Momentum of sgd.", ge=0, lt=1
    )
    weight_decay: Number | None = Field(
        default=None,
        ge=0,
        le=1e6,
        title="a number of at least 0",
        description="Weight decay. [fcn: 0.0005; "
        f"modern: {', '.join(f'{name} {rate:g}' for name, rate in MODERN_DECAYS.items())}]",
    )
    bias_lr_mult: Number | None = _row(
        "bias_lr_mult", "a number of at least 0", "Multiplies the rate of biases.", ge=0, le=1e6
    )
    bias_decay_mult: Number | None = _row(
        "bias_decay_mult",
        "a number of at least 0",
        "Multiplies the weight decay of biases and normalisation layers.",
        ge=0,
        le=1e6,
    )
    schedule: Annotated[str | None, OneOf(SCHEDULES)] = _row(
        "schedule",
        f"one of {', '.join(SCHEDULES)}",
        "How the rate changes: not at all, or with (1 - step / steps) ** power.",
    )
    power: Number | None = _row("power", "a number from 0 to 10", "Power of poly.", ge=0, le=10)
    warmup_steps: int | None = _row(
        "warmup_steps",
        "an integer of at least 0",
        "Steps in which the rate grows to the base rate.",
        ge=0,
    )
    clip_grad_norm: Annotated[Number | None, BeforeValidator(_none)] = _row(
        "clip_grad_norm", "a positive number, or none", "Largest norm of the gradient.", gt=0
    )
    amp: Annotated[str | None, OneOf(AMP)] = _row(
        "amp",
        f"one of {', '.join(AMP)}",
        "Mixed precision of the network; auto is bfloat16 on a GPU and none on the CPU.",
    )
    head: Annotated[str | None, OneOf(HEADS)] = _row(
        "head",
        f"one of {', '.join(HEADS)}",
        "Loss of the scores of low resolution, with the upsampling in it; plain stores the scores "
        "at full size.",
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        title="a positive integer",
        description="Number of updates of the weights. [fcn: 100000, fcn8s-atonce 300000; "
        f"modern: {RECIPES['modern'].steps}]",
    )
    epochs: Number | None = Field(
        default=None,
        gt=0,
        le=1e9,
        title="a positive number",
        description="Number of passes over the training images, instead of --steps.",
    )
    val_interval: int | None = _row(
        "val_interval", "a positive integer", "Steps between validations.", ge=1
    )
    checkpoint_interval: int | None = _row(
        "checkpoint_interval", "a positive integer", "Steps between checkpoints.", ge=1
    )
    log_interval: int | None = _row(
        "log_interval", "a positive integer", "Steps between lines of the log.", ge=1
    )
    keep: int | None = _row(
        "keep", "a positive integer", "Number of checkpoints to keep, beside the best.", ge=1
    )
    seed: int | None = _row(
        "seed", "an integer of at least 0", "Seed of everything random.", ge=0, le=1 << 62
    )
    workers: int = Field(
        default=2,
        ge=0,
        le=1024,
        title="an integer from 0 to 1024",
        description="Processes that read images for each training process. They change no result.",
    )
    tensorboard: Annotated[str, OneOf(TENSORBOARD)] = Field(
        default="auto",
        title=f"one of {', '.join(TENSORBOARD)}",
        description="Write curves and pictures for TensorBoard; auto does if it is installed.",
    )


def resolve(options: TrainOptions, network: str, num_images: int, world_size: int = 1) -> Recipe:
    """Returns the recipe with the options that replace its values.

    Args:
        options: the options.
        network: the name of the network, by which FCN's learning rate is chosen.
        num_images: number of training images, for `epochs`.
        world_size: number of processes.

    Raises:
        IllPosed: if options contradict each other.
    """
    names = [field.name for field in fields(Recipe)]
    given = {name: getattr(options, name) for name in names}
    replaced = {
        name: value
        for name, value in given.items()
        if value is not None or name in options.model_fields_set
    }
    recipe = RECIPES[options.recipe]
    if options.recipe == "fcn":
        recipe = replace(
            recipe,
            learning_rate=FCN_RATES.get(network, FCN_RATES["fcn32s"]),
            steps=FCN_STEPS.get(network, recipe.steps),
        )
    elif options.optimizer is not None:
        recipe = replace(
            recipe,
            learning_rate=MODERN_RATES[options.optimizer],
            weight_decay=MODERN_DECAYS[options.optimizer],
        )
    recipe = replace(recipe, **replaced)
    if options.epochs is not None:
        if options.steps is not None:
            raise IllPosed("epochs", "either epochs or steps", "both")
        images_per_step = recipe.batch_size * recipe.accumulation * world_size
        steps = max(1, math.ceil(options.epochs * num_images / images_per_step))
        recipe = replace(recipe, steps=steps)
    _check(recipe, options)
    # A short training must not end before its rate has grown.
    return replace(recipe, warmup_steps=min(recipe.warmup_steps, recipe.steps // 10))


def _check(recipe: Recipe, options: TrainOptions) -> None:
    num_classes = options.num_classes
    for name, values in (
        ("class_weight", recipe.class_weight),
        ("class_names", options.class_names),
    ):
        if values and len(values) != num_classes:
            raise IllPosed(name, f"one for each of {num_classes} classes", f"{len(values)}")
    pads = recipe.crop is not None or recipe.batch_size > 1
    if pads and not any(map(fits_labels, options.ignore_index)):
        fix = "Padding has an ignored label: pass ignore_index=255, or batch_size=1 and crop=none."
        got = ",".join(map(str, options.ignore_index)) or "none"
        raise IllPosed("ignore_index", "a value for padded pixels", got, fix)


FLAGS = flag_pattern(TrainOptions.model_fields)
"""The options with a value, as messages name them."""
