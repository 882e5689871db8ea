"""Checks the arguments of a loss: tensors become `LossInputs`, options become `LossOptions`.

Every public function calls `check_inputs` first. No function in this module reads an element of the
logits or the labels: invalid label values are found later, by a backend, and reported by `_labels`.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor

from seg_loss import constants
from seg_loss._errors import InvalidInput, dtype_name, shape_of, shape_text
from seg_loss._numbers import plain_number
from seg_loss.upsampling import (
    Axes,
    Bilinear,
    Deconvolution,
    Upsampling,
    axes,
    check_size,
    check_upsampling,
)

FLOAT_DTYPES = tuple(getattr(torch, name) for name in constants.FLOAT_DTYPES)
LABEL_DTYPES = tuple(getattr(torch, name) for name in constants.LABEL_DTYPES)


@dataclass(frozen=True)
class LossOptions:
    """The options of a loss, checked; equal options are equal and have the same hash.

    A new option of the loss is a field here. The public functions list the options that users set;
    the last three are set by `seg_loss.compat` alone.

    Attributes:
        ignore_index: labels of pixels that do not count; an int becomes a tuple of one.
        label_smoothing, temperature, normalization, check_labels: as in `spatial_cross_entropy`.
        upsampling: None, or how the logits become as large as the labels.
        max_nll: upper bound of a pixel's nll, but not of its gradient, as in Caffe.
        has_divisor_floor: whether the loss of no valid pixel is 0; torch divides 0 by 0 instead.
        checks_class_weight: whether class weights must be finite and not negative; torch computes
            with any.

    Raises:
        InvalidInput: naming the option.
    """

    ignore_index: int | Sequence[int] = 255
    label_smoothing: float = 0.0
    temperature: float = 1.0
    normalization: str = "valid"
    check_labels: str = "raise"
    upsampling: Upsampling | None = None
    max_nll: float = math.inf
    has_divisor_floor: bool = True
    checks_class_weight: bool = True

    def __post_init__(self) -> None:
        temperature = check_temperature(self.temperature)
        label_smoothing = plain_number(self.label_smoothing)
        if not (_is_number(label_smoothing) and 0 <= label_smoothing <= 1):
            raise InvalidInput("label_smoothing", "a number from 0 to 1", repr(label_smoothing))
        check_choice("normalization", self.normalization, constants.NORMALIZATIONS)
        check_choice("check_labels", self.check_labels, constants.CHECK_LABELS)
        if self.upsampling is not None:
            check_upsampling(self.upsampling)
        normal = {
            "ignore_index": _ignored_values(self.ignore_index),
            "label_smoothing": float(label_smoothing),
            "temperature": temperature,
        }
        for name, value in normal.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_hash", hash(tuple(getattr(self, f.name) for f in fields(self))))

    def __hash__(self) -> int:
        """Returns the hash, computed once: each call of a loss looks up its plan with it."""
        return self._hash  # type: ignore[attr-defined, no-any-return]

    def __reduce__(self) -> tuple[Any, ...]:
        # The hash of a string differs from process to process, so that it cannot be pickled.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    @property
    def ignored_values(self) -> tuple[int, ...]:
        """The values of `ignore_index`."""
        values: Any = self.ignore_index
        return values  # type: ignore[no-any-return]

    def ignored_labels(self, dtype: torch.dtype) -> tuple[int, ...]:
        """Returns the ignored values that labels of this dtype can hold, without repetitions.

        Any other value matches no pixel; a cast to the dtype would make it match a wrong one.
        """
        limits = torch.iinfo(dtype)
        values = (v for v in self.ignored_values if limits.min <= v <= limits.max)
        return tuple(dict.fromkeys(values))


def loss_options(ignore_index: int | Sequence[int], *others: Any) -> LossOptions:
    """Returns `LossOptions` of these values, from a cache if `ignore_index` is an int.

    Checking the values takes longer than launching a kernel. A sequence is no key: a list has no
    hash, and (True,) equals (1,). Nor is a tensor, whose number may change.
    """
    if (
        type(ignore_index) is not int
        or not _PYTHON_TYPES.issuperset(map(type, others))
        or torch.compiler.is_compiling()
    ):
        return LossOptions(ignore_index, *others)
    return _loss_options(ignore_index, *others)


_PYTHON_TYPES = {int, float, str, Bilinear, Deconvolution, type(None)}
"""The types of values that have a hash and cannot change."""


@functools.lru_cache(maxsize=256, typed=True)
def _loss_options(*values: Any) -> LossOptions:
    return LossOptions(*values)


@dataclass(frozen=True, eq=False)
class LossInputs:
    """The tensors of a loss, checked against each other, and its options.

    Attributes:
        logits: [N, C, *spatial]; scores [N, C, h, w] if the options have an upsampling.
        labels: [N, *spatial].
        class_weight: [C] or None.
        pixel_weight: [N, *spatial] or None.
        options: the options.
    """

    logits: Tensor
    labels: Tensor
    class_weight: Tensor | None
    pixel_weight: Tensor | None
    options: LossOptions

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The tensors, of which the weights may be None."""
        return self.logits, self.labels, self.class_weight, self.pixel_weight

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.shape[1]

    @property
    def ignored(self) -> tuple[int, ...]:
        """The ignored values that the labels can hold."""
        return self.options.ignored_labels(self.labels.dtype)

    @property
    def ignored_bits(self) -> tuple[int, ...]:
        """The ignored values as int64, in which the kernels read labels; uint64 keeps its bits."""
        return tuple(v - (1 << 64) if v >= 1 << 63 else v for v in self.ignored)

    @property
    def is_weighted(self) -> bool:
        """Whether there are class weights or pixel weights."""
        return self.class_weight is not None or self.pixel_weight is not None

    @property
    def axes(self) -> Axes | None:
        """The rows and columns of the upsampling; None without one."""
        if self.options.upsampling is None:
            return None
        return axes(self.options.upsampling, self.logits.shape[2:], self.labels.shape[1:])

    def resolve_neg(self) -> "LossInputs":
        """Returns the inputs with torch's lazy negation bit resolved, as z.conj().imag has it.

        The backends read memory, which holds the numbers before the negation. Therefore each caller
        of a backend calls this first.
        """
        class_weight, pixel_weight = self.class_weight, self.pixel_weight
        if not (
            self.logits.is_neg()
            or (class_weight is not None and class_weight.is_neg())
            or (pixel_weight is not None and pixel_weight.is_neg())
        ):
            return self
        return replace(
            self,
            logits=self.logits.resolve_neg(),
            class_weight=None if class_weight is None else class_weight.resolve_neg(),
            pixel_weight=None if pixel_weight is None else pixel_weight.resolve_neg(),
        )


def valid_classes(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Returns whether each pixel is valid, and its class, int64, which is 0 where it is not."""
    classes = inputs.labels.long()
    valid = (classes >= 0) & (classes < inputs.num_classes)
    for value in inputs.ignored_bits:
        valid = valid & (classes != value)
    return valid, classes.masked_fill(~valid, 0)


def check_inputs(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    options: LossOptions,
    *,
    where: str = "logits",
) -> LossInputs:
    """Checks shapes, dtypes and devices, and drops an axis of length 1 from the labels.

    Args:
        where: what messages call the logits.

    Raises:
        InvalidInput: naming the argument.
    """
    tensors = logits, labels, class_weight, pixel_weight
    if torch.compiler.is_compiling() or any(map(has_symbolic_sizes, tensors)):
        return _check_inputs(*tensors, options, where)
    # Shapes, dtypes and devices that have passed the checks pass them again.
    key = options, *((None if t is None else _metadata(t)) for t in tensors)
    if key not in _checked:
        inputs = _check_inputs(*tensors, options, where)
        if len(_checked) >= _MAX_CHECKED:
            _checked.clear()
        _checked.add(key)
        return inputs
    if labels.ndim == logits.ndim:
        labels = labels.squeeze(1)
    if class_weight is not None:
        class_weight = class_weight.detach()
    if pixel_weight is not None:
        pixel_weight = pixel_weight.detach()
        if pixel_weight.ndim == logits.ndim:
            pixel_weight = pixel_weight.squeeze(1)
    return LossInputs(logits, labels, class_weight, pixel_weight, options)


_MAX_CHECKED = 1024
_checked: set[Any] = set()


def has_symbolic_sizes(value: object) -> bool:
    """Returns whether a tensor has sizes or strides that are symbols, which have no hash.

    torch traces programs with such tensors for inputs of any size.
    """
    return isinstance(value, Tensor) and _has_strides(value) and value._has_symbolic_sizes_strides


def _metadata(value: object) -> Any:
    """Returns shape, dtype and device of a tensor; else an object that is equal to no other."""
    if not isinstance(value, Tensor) or not _has_strides(value):
        return object()
    return value.shape, value.dtype, value.device


def _check_inputs(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    options: LossOptions,
    where: str,
) -> LossInputs:
    check_logits(logits, where)
    spatial: Sequence[int] = logits.shape[2:]
    if options.upsampling is not None:
        spatial = size_to_upsample_to(logits, labels, where)
    labels = check_labels_tensor(labels, logits, spatial, where)
    if class_weight is not None:
        _check_class_weight(class_weight, logits)
        class_weight = class_weight.detach()  # the loss is differentiable in the logits alone
    if pixel_weight is not None:
        pixel_weight = _check_pixel_weight(pixel_weight, logits, spatial).detach()
    # A check would bound sizes that are symbols. The operator checks them.
    is_traced = torch.compiler.is_compiling() or has_symbolic_sizes(logits)
    if options.upsampling is not None and not is_traced:
        check_size(options.upsampling, logits.shape[2:], labels.shape[1:])
    return LossInputs(logits, labels, class_weight, pixel_weight, options)


def check_logits(logits: Tensor, where: str = "logits") -> None:
    """Checks for a float tensor [N, C, *spatial] with at least one class."""
    check_tensor(where, logits)
    if logits.ndim < 2:
        got = f"shape {shape_of(logits)}"
        raise InvalidInput(where, "[N, C, *spatial]", got, "Add the batch and class axes.")
    check_device(where, logits)
    check_float_dtype(where, logits)
    if logits.shape[1] < 1:
        raise InvalidInput(where, "at least one class", f"shape {shape_of(logits)}")


def check_tensor(where: str, value: object) -> None:
    """Checks for a torch.Tensor with strides, which sparse and nested tensors lack."""
    if not isinstance(value, Tensor):
        raise InvalidInput(where, "a torch.Tensor", type(value).__name__)
    if not _has_strides(value):
        kind = "a nested tensor" if value.is_nested else f"the layout {value.layout}"
        fix = "Pad it." if value.is_nested else "Call .to_dense()."
        raise InvalidInput(where, "a dense tensor", kind, fix)


def _has_strides(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested


def check_choice(where: str, value: object, choices: Sequence[str]) -> None:
    """Checks for one of several names."""
    if value not in choices:
        raise InvalidInput(where, f"one of {', '.join(choices)}", repr(value))


def check_device(where: str, tensor: Tensor) -> None:
    """Checks for a device that a backend has kernels for, or for one without memory."""
    if tensor.device.type not in ("cpu", "cuda", "meta"):
        raise InvalidInput(
            where,
            "a tensor on the CPU or on a CUDA device",
            f"one on {tensor.device}",
            "There are no kernels for other devices: call .cpu().",
        )


def check_memory(**tensors: Tensor | None) -> None:
    """Checks for tensors whose elements can be read, by the names of the arguments."""
    for where, tensor in tensors.items():
        if tensor is None:
            continue
        check_tensor(where, tensor)
        if not _has_memory(tensor):
            fix = "Only the differentiable functions accept such tensors."
            raise InvalidInput(where, "a tensor with elements in memory", _kind(tensor), fix)


def _kind(tensor: Tensor) -> str:
    """Returns what a tensor without elements is."""
    if torch._C._functorch.is_batchedtensor(tensor):
        return "one inside of torch.func.vmap"
    if torch._C._functorch.is_gradtrackingtensor(tensor):
        return "one inside of torch.func.grad, vjp or jvp"
    if tensor.is_meta:
        return "a meta tensor"
    return f"a {type(tensor).__name__} without them"


def _has_memory(tensor: Tensor) -> bool:
    """Returns whether the elements of a tensor can be read.

    Meta tensors and those of torch's fake mode have none. A subclass of Tensor that redefines
    torch's operators, or a tensor inside of torch.func, may hold its elements elsewhere.
    """
    return not (
        tensor.is_meta
        or type(tensor).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
    )


def check_float_dtype(where: str, tensor: Tensor) -> None:
    """Checks for one of `FLOAT_DTYPES`."""
    if tensor.dtype not in FLOAT_DTYPES:
        raise InvalidInput(where, _one_of(FLOAT_DTYPES), dtype_name(tensor.dtype))


def check_axis(axis: int, tensor: Tensor, owner: str) -> int:
    """Returns an axis of the tensor, counted from the first; `owner` is such as "x has"."""
    number = plain_number(axis)
    if not (is_integer(number) and -tensor.ndim <= number < tensor.ndim):
        raise InvalidInput("axis", f"an axis of the {tensor.ndim} that {owner}", repr(number))
    return number % tensor.ndim


def check_temperature(temperature: float) -> float:
    """Returns a temperature whose reciprocal times a logit does not overflow in float32."""
    number = plain_number(temperature)
    if not (_is_number(number) and 1e-30 <= number <= 1e30):
        raise InvalidInput("temperature", "a positive number, 1e-30...1e30", repr(number))
    return float(number)


def check_out(out: Tensor, logits: Tensor) -> None:
    """Checks for memory that can hold the gradient: like the logits, or the logits themselves."""
    check_tensor("out", out)
    if out.shape != logits.shape:
        expected = f"shape {shape_of(logits)} of the logits"
        raise InvalidInput("out", expected, f"shape {shape_of(out)}")
    if out.dtype != logits.dtype:
        expected = f"{dtype_name(logits.dtype)} as the logits"
        raise InvalidInput("out", expected, dtype_name(out.dtype))
    if out.device != logits.device:
        raise InvalidInput("out", f"a tensor on {logits.device}", f"one on {out.device}")
    strides = zip(out.shape, out.stride(), strict=True)
    if out.numel() and any(size > 1 and stride == 0 for size, stride in strides):
        raise InvalidInput("out", "separate memory for each element", "an expanded tensor")
    if out.is_neg():
        raise InvalidInput("out", "a tensor without torch's negation bit", "a negated view")
    if not torch.compiler.is_compiling() and not _has_memory(out):
        return
    same_memory = out.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
    same_elements = out.data_ptr() == logits.data_ptr() and out.stride() == logits.stride()
    if same_memory and not same_elements and out.numel():
        raise InvalidInput(
            "out", "the logits themselves, or other memory", "another view of the logits"
        )


def size_to_upsample_to(scores: Tensor, labels: Tensor, where: str) -> Sequence[int]:
    """Returns height and width of the labels, after checking that the scores have two as well."""
    if scores.ndim != 4 or 0 in scores.shape[2:]:
        expected = "[N, C, h, w] with h and w of at least 1, to be upsampled"
        raise InvalidInput(where, expected, f"shape {shape_of(scores)}")
    if isinstance(labels, Tensor) and labels.ndim in (2, 3, 4):
        return labels.shape[-2:]
    return scores.shape[2:]


def check_labels_tensor(
    labels: Tensor, logits: Tensor, spatial: Sequence[int], where: str = "logits"
) -> Tensor:
    """Returns integer labels as [N, *spatial]; `where` is what messages call the logits."""
    check_tensor("labels", labels)
    if labels.dtype not in LABEL_DTYPES:
        fix = "Class indices are integers." if labels.dtype in FLOAT_DTYPES else ""
        raise InvalidInput("labels", _one_of(LABEL_DTYPES), dtype_name(labels.dtype), fix)
    return _check_map("labels", labels, logits, spatial, where)


def _check_map(
    where: str, tensor: Tensor, logits: Tensor, spatial: Sequence[int], reference: str | None
) -> Tensor:
    """Returns a tensor with one entry per pixel, [N, *spatial] or [N, 1, *spatial], as the former.

    Args:
        reference: what the message says that the shape must match: the name of the logits, or None
            for the labels.
    """
    expected = (logits.shape[0], *spatial)
    got = tuple(tensor.shape)
    if tensor.device != logits.device:
        raise InvalidInput(where, f"a tensor on {logits.device}", f"one on {tensor.device}")
    if got == expected:
        return tensor
    if got == (logits.shape[0], 1, *spatial):
        return tensor.squeeze(1)
    fix = ""
    if got == (*logits.shape[:2], *spatial):
        fix = "One-hot? Take argmax over axis 1."
    elif got == expected[1:] and expected[0] == 1:
        fix = "Add the batch axis: [None]."
    elif logits.ndim > 2 and got in (logits.shape[:-1], logits.shape[1:-1]):
        fix = "Classes on the last axis? Pass logits.movedim(-1, 1)."
    elif len(expected) == 3 and got == (expected[0], expected[2], expected[1]):
        fix = "Height and width are exchanged."
    elif where == "labels" and _is_larger_map(got, expected):
        fix = "Scores of lower resolution? Use upsampling=bilinear; in Python, seg_loss.Bilinear()."
        if _is_last_axis_likely(logits.shape, got[-2:]):
            fix = "Classes on the last axis? Pass logits.movedim(-1, 1) and seg_loss.Bilinear()."
    matched = "the labels" if reference is None else f"{reference} {shape_of(logits)}"
    raise InvalidInput(
        where, f"shape {shape_text(expected)} to match {matched}", f"shape {shape_of(tensor)}", fix
    )


def _is_larger_map(got: Sequence[int], expected: Sequence[int]) -> bool:
    """Returns whether a map has more rows or columns than expected, and fewer of neither."""
    if len(expected) != 3 or tuple(got[:-2]) not in ((), expected[:1], (expected[0], 1)):
        return False
    size = tuple(got[-2:])
    return (
        len(size) == 2
        and size != tuple(expected[1:])
        and size[0] >= expected[1]
        and size[1] >= expected[2]
    )


def _is_last_axis_likely(shape: Sequence[int], size: Sequence[int]) -> bool:
    """Returns whether a larger map has the proportions of [N, h, w, C], not of [N, C, h, w]."""
    _, first, second, third = shape
    distortions = [
        max(size[0] * width, size[1] * height) / min(size[0] * width, size[1] * height)
        for height, width in ((first, second), (second, third))
    ]
    return distortions[0] < 1.05 and distortions[1] > 1.1


def _check_class_weight(class_weight: Tensor, logits: Tensor) -> None:
    num_classes = logits.shape[1]
    check_tensor("class_weight", class_weight)
    check_float_dtype("class_weight", class_weight)
    if tuple(class_weight.shape) != (num_classes,):
        expected = f"shape ({num_classes},), one per class"
        raise InvalidInput("class_weight", expected, f"shape {shape_of(class_weight)}")
    if class_weight.device != logits.device:
        raise InvalidInput(
            "class_weight", f"a tensor on {logits.device}", f"one on {class_weight.device}"
        )


def _check_pixel_weight(pixel_weight: Tensor, logits: Tensor, spatial: Sequence[int]) -> Tensor:
    check_tensor("pixel_weight", pixel_weight)
    check_float_dtype("pixel_weight", pixel_weight)
    reference = "logits" if tuple(spatial) == tuple(logits.shape[2:]) else None
    return _check_map("pixel_weight", pixel_weight, logits, spatial, reference)


def _ignored_values(ignore_index: int | Sequence[int]) -> tuple[int, ...]:
    """Returns one ignored label, or several, as a tuple."""
    several = plain_number(ignore_index)
    values = []
    for value in several if isinstance(several, Iterable) else (several,):
        number = plain_number(value)
        if not is_integer(number):
            raise InvalidInput("ignore_index", "an int or several", repr(number))
        values.append(number)
    return tuple(values)


def loss_dtype(logits: Tensor) -> torch.dtype:
    """Returns the dtype of a loss and of its maps: float32, or float64 for float64 logits."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def is_integer(value: object) -> TypeGuard[int]:
    """Returns whether a value is an int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_of(dtypes: Sequence[torch.dtype]) -> str:
    *most, last = map(dtype_name, dtypes)
    return f"{', '.join(most)} or {last}"
