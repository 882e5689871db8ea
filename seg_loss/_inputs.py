"""Whether a loss can be made of what the caller gave. All messages about tensors are made here.

`loss` and `evaluation` call `loss_inputs` first; `judge` speaks on what a backend's survey of the
labels found. Nothing here reads a logit.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import forward_ad

from seg_loss._divisor import NORMALIZATIONS
from seg_loss._label_report import Survey

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
CHECK_LABELS = ("raise", "defer", "ignore")
LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class InvalidInput(ValueError):
    """An input no loss can be made of: `{where}: expected {expected}, got {got}. {fix}`.

    Attributes:
        where: the argument, such as "labels".
        expected: what would have been accepted.
        got: what there was.
        fix: the likely cure, or an empty string.
    """

    def __init__(self, where: str, expected: str, got: str, fix: str = "") -> None:
        super().__init__(f"{where}: expected {expected}, got {got}. {fix}".rstrip())
        self.where = where
        self.expected = expected
        self.got = got
        self.fix = fix

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str]]:
        return type(self), (self.where, self.expected, self.got, self.fix)


@dataclass(frozen=True)
class LossInputs:
    """All that a loss is made of: tensors and options that fit each other.

    It goes as it is from the functions to the backends; a new option is a field here.

    Attributes:
        logits: [N, C, *spatial]; scores [N, C, h, w] if they are to be upsampled.
        labels: [N, *spatial].
        class_weight: [C] or None.
        pixel_weight: [N, *spatial] or None.
        ignored: the label values that are ignored and that the labels' dtype can hold.
        label_smoothing, temperature, check_labels: as in `spatial_cross_entropy`.
        normalization: as there, or "torch_mean", of `compat.torch`.
        max_nll: bounds a pixel's nll, not its gradient, as Caffe does.
    """

    logits: Tensor
    labels: Tensor
    class_weight: Tensor | None
    pixel_weight: Tensor | None
    ignored: Sequence[int]
    label_smoothing: float
    temperature: float
    normalization: str
    check_labels: str
    max_nll: float

    @property
    def is_weighted(self) -> bool:
        """Whether weights of either kind are given."""
        return self.class_weight is not None or self.pixel_weight is not None

    def as_they_lie(self) -> "LossInputs":
        """Numbers in memory as they are, where torch marks some as negated (z.conj().imag).

        For what calls a backend by itself; the dispatcher does it for operators.
        """
        class_weight, pixel_weight = self.class_weight, self.pixel_weight
        return replace(
            self,
            logits=self.logits.resolve_neg(),
            class_weight=None if class_weight is None else class_weight.resolve_neg(),
            pixel_weight=None if pixel_weight is None else pixel_weight.resolve_neg(),
        )


def loss_inputs(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    *,
    pixel_weight: Tensor | None,
    ignore_index: int | Sequence[int],
    label_smoothing: float,
    temperature: float,
    normalization: str,
    check_labels: str = "raise",
    max_nll: float = math.inf,
    is_upsampled: bool = False,
    where: str = "logits",
) -> LossInputs:
    """Check shapes, dtypes, devices and options; drop the labels' axis of length 1.

    With `is_upsampled` labels may have another height and width than the logits, which the caller
    calls `where`.

    Raises:
        InvalidInput: naming the argument.
    """
    check_logits(logits, where)
    spatial: Sequence[int] = logits.shape[2:]
    if is_upsampled:
        spatial = size_to_upsample_to(logits, labels, where)
    labels = check_labels_for(labels, logits, spatial, where)
    if class_weight is not None:
        _check_class_weight(class_weight, logits)
        class_weight = class_weight.detach()  # the loss is differentiable in the logits alone
    if pixel_weight is not None:
        pixel_weight = _check_pixel_weight(pixel_weight, logits, spatial).detach()
    check_temperature(temperature)
    if not (_is_number(label_smoothing) and 0 <= label_smoothing <= 1):
        raise InvalidInput("label_smoothing", "a number from 0 to 1", repr(label_smoothing))
    if normalization not in NORMALIZATIONS:
        raise InvalidInput(
            "normalization", f"one of {', '.join(NORMALIZATIONS)}", repr(normalization)
        )
    if check_labels not in CHECK_LABELS:
        raise InvalidInput("check_labels", f"one of {', '.join(CHECK_LABELS)}", repr(check_labels))
    return LossInputs(
        logits,
        labels,
        class_weight,
        pixel_weight,
        ignored_labels(ignore_index, labels.dtype),
        float(label_smoothing),
        float(temperature),
        normalization,
        check_labels,
        max_nll,
    )


def check_logits(logits: Tensor, where: str = "logits") -> None:
    """A float tensor [N, C, *spatial] with at least one class."""
    if not isinstance(logits, Tensor):
        raise InvalidInput(where, "a torch.Tensor", type(logits).__name__)
    if logits.ndim < 2:
        raise InvalidInput(
            where, "[N, C, *spatial]", f"shape {_shape(logits)}", "Add the batch and class axes."
        )
    check_device(where, logits)
    check_float_dtype(where, logits)
    check_tangent(where, logits)
    if logits.shape[1] < 1:
        raise InvalidInput(where, "at least one class", f"shape {_shape(logits)}")


def check_device(where: str, tensor: Tensor) -> None:
    """One that there are kernels for."""
    if tensor.device.type not in ("cpu", "cuda"):
        raise InvalidInput(
            where,
            "a tensor on the CPU or on a CUDA device",
            f"one on {tensor.device}",
            "There are no kernels for other devices: call .cpu().",
        )


def check_float_dtype(where: str, tensor: Tensor) -> None:
    """One of the four dtypes a softmax is computed of."""
    if tensor.dtype not in FLOAT_DTYPES:
        raise InvalidInput(where, _one_of(FLOAT_DTYPES), _name(tensor.dtype))


def check_tangent(where: str, tensor: Tensor) -> None:
    """Without one: the operators would drop it, and derivatives of 0 come out.

    Not seen in a program that torch compiles.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    dual = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    if dual.tangent is not None:
        raise InvalidInput(
            where,
            "a tensor without a tangent",
            "one of forward-mode differentiation (jvp, jacfwd)",
            "Only backward derivatives are supported.",
        )


def map_dtype(logits: Tensor) -> torch.dtype:
    """Dtype of a loss, and of a map of them: float32, or float64 of float64 logits."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def check_temperature(temperature: float) -> None:
    """Positive, and such that logits times 1 / temperature stay numbers in float32."""
    if not (_is_number(temperature) and 1e-30 <= temperature <= 1e30):
        raise InvalidInput("temperature", "a positive number, 1e-30...1e30", repr(temperature))


def check_out(out: Tensor, logits: Tensor) -> None:
    """Memory for a gradient: like the logits, which it may also be."""
    if not isinstance(out, Tensor):
        raise InvalidInput("out", "a torch.Tensor", type(out).__name__)
    if out.shape != logits.shape:
        raise InvalidInput("out", f"shape {_shape(logits)} of the logits", f"shape {_shape(out)}")
    if out.dtype != logits.dtype:
        raise InvalidInput("out", f"{_name(logits.dtype)} as the logits", _name(out.dtype))
    if out.device != logits.device:
        raise InvalidInput("out", f"a tensor on {logits.device}", f"one on {out.device}")
    if any(size > 1 and stride == 0 for size, stride in zip(out.shape, out.stride(), strict=True)):
        raise InvalidInput("out", "an element of its own for each logit", "an expanded tensor")
    if out.is_neg():
        raise InvalidInput("out", "memory that holds numbers as they are", "a view of negatives")
    same_memory = out.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
    same_places = out.data_ptr() == logits.data_ptr() and out.stride() == logits.stride()
    if same_memory and not same_places and out.numel():
        raise InvalidInput(
            "out", "the logits themselves, or other memory", "another view of theirs"
        )


def judge(survey: Survey, num_classes: int, ignored: Sequence[int]) -> InvalidInput | None:
    """The refusal for what the survey found: with the value, how many, and where the first is."""
    found = survey.bad_class_weights
    if found is not None:
        return InvalidInput(
            "class_weight",
            "finite numbers that are not negative",
            f"{found.value} for class {found.place[0]}",
        )
    found = survey.bad_labels
    if found is not None:
        names = ", ".join(str(value) for value in ignored)
        return InvalidInput(
            "labels",
            f"0...{num_classes - 1}" + (f" or {names} (ignored)" if ignored else ""),
            f"{found.value} at {text_of_place(found.place)}" + text_of_others(found.number),
            _label_advice(int(found.value), num_classes),
        )
    found = survey.bad_weights
    if found is not None:
        return InvalidInput(
            "pixel_weight",
            "finite numbers that are not negative",
            f"{found.value} at {text_of_place(found.place)}" + text_of_others(found.number),
        )
    return None


def size_to_upsample_to(scores: Tensor, labels: Tensor, where: str) -> Sequence[int]:
    """Height and width of the labels, which scores of any height and width can be upsampled to."""
    if scores.ndim != 4 or not scores.shape[2:].numel():
        expected = "[N, C, h, w] with h and w of at least 1, to be upsampled"
        raise InvalidInput(where, expected, f"shape {_shape(scores)}")
    if isinstance(labels, Tensor) and labels.ndim in (2, 3, 4):
        return labels.shape[-2:]
    return scores.shape[2:]


def check_labels_for(
    labels: Tensor, logits: Tensor, spatial: Sequence[int], where: str = "logits"
) -> Tensor:
    """Integers [N, *spatial], without an axis of length 1, for logits called `where`."""
    if not isinstance(labels, Tensor):
        raise InvalidInput("labels", "a torch.Tensor", type(labels).__name__)
    if labels.dtype not in LABEL_DTYPES:
        fix = "Class indices are integers." if labels.dtype in FLOAT_DTYPES else ""
        raise InvalidInput("labels", _one_of(LABEL_DTYPES), _name(labels.dtype), fix)
    return _check_map("labels", labels, logits, spatial, where)


def _check_map(
    where: str, tensor: Tensor, logits: Tensor, spatial: Sequence[int], model: str | None
) -> Tensor:
    """A tensor with one entry per pixel, as [N, *spatial] or [N, 1, *spatial].

    It must match the logits, which the caller calls `model`; if that is None, the labels.
    """
    wanted = (logits.shape[0], *spatial)
    if tensor.device != logits.device:
        raise InvalidInput(where, f"a tensor on {logits.device}", f"one on {tensor.device}")
    if tuple(tensor.shape) == wanted:
        return tensor
    if tuple(tensor.shape) == (logits.shape[0], 1, *spatial):
        return tensor.squeeze(1)
    fix = ""
    if tuple(tensor.shape) == (*logits.shape[:2], *spatial):
        fix = "One-hot? Take argmax over axis 1."
    elif tuple(tensor.shape) == wanted[1:] and wanted[0] == 1:
        fix = "Add the batch axis: [None]."
    elif len(wanted) == 3 and tuple(tensor.shape) == (wanted[0], wanted[2], wanted[1]):
        fix = "Height and width are exchanged."
    elif where == "labels" and _is_larger_map(tensor, wanted):
        fix = "Scores of lower resolution? Use upsampling=bilinear; in Python, seg_loss.Bilinear()."
    matched = "the labels" if model is None else f"{model} {_shape(logits)}"
    raise InvalidInput(
        where, f"shape {_text(wanted)} to match {matched}", f"shape {_shape(tensor)}", fix
    )


def _is_larger_map(tensor: Tensor, wanted: Sequence[int]) -> bool:
    """A map of more rows or columns, and not less of the others."""
    if len(wanted) != 3 or tuple(tensor.shape[:-2]) not in ((), wanted[:1], (wanted[0], 1)):
        return False
    size = tuple(tensor.shape[-2:])
    return len(size) == 2 and size != wanted[1:] and size[0] >= wanted[1] and size[1] >= wanted[2]


def _check_class_weight(class_weight: Tensor, logits: Tensor) -> None:
    num_classes = logits.shape[1]
    if not isinstance(class_weight, Tensor):
        raise InvalidInput("class_weight", "a torch.Tensor", type(class_weight).__name__)
    check_float_dtype("class_weight", class_weight)
    if tuple(class_weight.shape) != (num_classes,):
        raise InvalidInput(
            "class_weight",
            f"shape ({num_classes},), one per class",
            f"shape {_shape(class_weight)}",
        )
    if class_weight.device != logits.device:
        raise InvalidInput(
            "class_weight", f"a tensor on {logits.device}", f"one on {class_weight.device}"
        )


def _check_pixel_weight(pixel_weight: Tensor, logits: Tensor, spatial: Sequence[int]) -> Tensor:
    if not isinstance(pixel_weight, Tensor):
        raise InvalidInput("pixel_weight", "a torch.Tensor", type(pixel_weight).__name__)
    check_float_dtype("pixel_weight", pixel_weight)
    has_their_size = tuple(spatial) == tuple(logits.shape[2:])
    model = "logits" if has_their_size else None
    return _check_map("pixel_weight", pixel_weight, logits, spatial, model)


def ignored_values(ignore_index: int | Sequence[int]) -> tuple[int, ...]:
    """One label or several, as several."""
    values = tuple(ignore_index) if isinstance(ignore_index, Iterable) else (ignore_index,)
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidInput("ignore_index", "an int or several", repr(value))
    return values


def ignored_labels(ignore_index: int | Sequence[int], dtype: torch.dtype) -> tuple[int, ...]:
    values = ignored_values(ignore_index)
    limits = torch.iinfo(dtype)
    # A value the dtype cannot hold matches no pixel; cast to it, it would match another.
    return tuple(dict.fromkeys(value for value in values if limits.min <= value <= limits.max))


def _label_advice(value: int, num_classes: int) -> str:
    if value == num_classes:
        return f"If {value} marks void pixels, pass ignore_index={value}."
    if value < 0 or value in (254, 255):
        return f"If {value} marks void pixels, add it to ignore_index."
    if num_classes == 19 and value <= 33:
        return "Cityscapes ids? Map them to the 19 train ids."
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _one_of(dtypes: Sequence[torch.dtype]) -> str:
    *most, last = (_name(dtype) for dtype in dtypes)
    return f"{', '.join(most)} or {last}"


def _text(shape: Sequence[int]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ("," if len(shape) == 1 else "") + ")"


def _shape(tensor: Tensor) -> str:
    return _text(tensor.shape)


def text_of_place(place: Sequence[int]) -> str:
    return _text(place)


def text_of_others(number: int) -> str:
    """Behind the first of so many pixels."""
    others = number - 1
    return f" and {others} pixel{'' if others == 1 else 's'} more" if others else ""
