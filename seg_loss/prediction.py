"""`predict`: the most probable classes of scores, and how sure they are, without labels.

The backends interpolate scores of lower resolution where they need them. The upsampled scores, C
times as large as a map of float32, are never stored.
"""

from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from seg_loss import _operators
from seg_loss._errors import InvalidInput, shape_of
from seg_loss._inputs import check_logits, check_memory, check_temperature, is_integer
from seg_loss._numbers import plain_number
from seg_loss.constants import PREDICTION_MAPS
from seg_loss.upsampling import (
    Bilinear,
    Deconvolution,
    Size,
    Upsampling,
    check_size,
    check_upsampling,
    encode,
)

_Array = TypeVar("_Array", Tensor, "np.ndarray[tuple[int, ...], np.dtype[np.generic]]")


def predict(
    scores: _Array,
    *,
    size: Size | None = None,
    upsampling: Upsampling | None = None,
    maps: Sequence[str] = ("prediction",),
    temperature: float = 1.0,
) -> dict[str, _Array]:
    """Returns maps of the most probable classes and their probabilities; needs no labels.

    The prediction equals `F.interpolate(scores, size, mode="bilinear").argmax(1)`, up to the
    rounding of nearly equal scores, without the memory and the time of the upsampled scores. The
    maps are those of `evaluate`. They are not differentiable.

    Args:
        scores: [N, C, *spatial], float32, float16, bfloat16 or float64, a tensor or a NumPy array;
            [N, C, h, w] with a size or an upsampling.
        size: height and width of the maps. None for those of the scores; with a `Deconvolution`,
            for what its crop leaves.
        upsampling: how the scores become that large, as in `upsampled_cross_entropy`. By default
            `Bilinear()` if there is a size.
        maps: names of the maps to return:

            prediction           the most probable class, the first of equal ones
            confidence           its probability
            entropy              of the probabilities, in nats
            top_classes          the k = 3 most probable classes, or all if there are fewer
            top_probabilities    their probabilities
        temperature: divides the scores before the softmax; does not change the classes.

    Returns:
        The maps by name, [N, H, W] or [N, *spatial]; those of the top classes have an axis of k
        behind N. Classes are uint8 for at most 256 classes, else int16 or int32; the other maps are
        float32. NumPy arrays for an array. A pixel whose scores hold NaN or +inf, or only -inf, has
        probabilities of NaN; its prediction is the first class whose score is the largest number.

    Raises:
        InvalidInput: if shapes, dtypes, names or options do not fit.

    >>> scores = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).reshape(1, 2, 1, 2)
    >>> predict(scores, size=(1, 4))["prediction"].tolist()
    [[[1, 1, 0, 0]]]
    """
    _check_names(maps)
    temperature = check_temperature(temperature)
    if isinstance(scores, np.ndarray):
        tensors = _maps_of(_tensor_of(scores), size, upsampling, maps, temperature)
        return {name: values.numpy() for name, values in tensors.items()}
    return _maps_of(scores, size, upsampling, maps, temperature)


def _maps_of(
    scores: Tensor,
    size: Size | None,
    upsampling: Upsampling | None,
    maps: Sequence[str],
    temperature: float,
) -> dict[str, Tensor]:
    check_logits(scores, "scores")
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling and torch._C._functorch.is_functorch_wrapped_tensor(scores):
        check_memory(scores=scores)
    spatial: Sequence[int] = scores.shape[2:]
    if size is not None or upsampling is not None:
        if upsampling is None:
            upsampling = Bilinear()
        check_upsampling(upsampling)
        spatial = _target_size(scores, size, upsampling)
    names = ",".join(dict.fromkeys(maps))
    values = _operators.predict(
        scores.detach(), list(spatial), encode(upsampling), names, temperature
    )
    return dict(zip(dict.fromkeys(maps), values, strict=True))


def _check_names(maps: Sequence[str]) -> None:
    if isinstance(maps, str) or any(name not in PREDICTION_MAPS for name in maps):
        has_nll = "nll" in maps and not isinstance(maps, str)
        fix = "The nll needs labels: use evaluate." if has_nll else ""
        raise InvalidInput("maps", f"names among {', '.join(PREDICTION_MAPS)}", repr(maps), fix)


def _target_size(scores: Tensor, size: object, upsampling: Upsampling) -> Size:
    """Returns the checked height and width of the maps."""
    if scores.ndim != 4 or 0 in scores.shape[2:]:
        expected = "[N, C, h, w] with h and w of at least 1, to be upsampled"
        raise InvalidInput("scores", expected, f"shape {shape_of(scores)}")
    source = scores.shape[2], scores.shape[3]
    if size is None:
        if not isinstance(upsampling, Deconvolution):
            raise InvalidInput("size", "height and width of the maps", "None")
        return upsampling.max_size(source)
    values = tuple(map(plain_number, size)) if isinstance(size, Sequence) else (size,)
    if len(values) != 2 or not all(_is_length(value) for value in values):
        raise InvalidInput("size", "height and width of the maps, integers", repr(size))
    target = cast("Size", values)
    if not torch.compiler.is_compiling():
        try:
            check_size(upsampling, source, target)
        except InvalidInput as error:
            raise error.renamed({"labels": "size"}) from None
    return target


def _is_length(value: object) -> bool:
    return isinstance(value, torch.SymInt) or (is_integer(value) and value >= 0)


def _tensor_of(scores: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> Tensor:
    """Returns a tensor with the memory of an array, or of a copy if torch cannot read it."""
    dtype, size = scores.dtype.newbyteorder("="), scores.dtype.itemsize
    has_other_strides = any(stride < 0 or stride % size for stride in scores.strides)
    # torch warns about memory that must not be written.
    if has_other_strides or scores.dtype != dtype or not scores.flags.writeable:
        scores = scores.astype(dtype, order="C")
    try:
        return torch.from_numpy(scores)
    except TypeError as error:
        expected = "an array of float32, float16 or float64"
        raise InvalidInput("scores", expected, f"one of {scores.dtype}") from error
