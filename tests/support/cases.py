"""Shapes, layouts and options that the library's tests share, the truth, and the one tolerance.

The same functions serve logits and upsampled scores: `upsampling` is None for logits.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

import seg_loss
from seg_loss import Bilinear, Deconvolution, Evaluation, constants, reference
from seg_loss.upsampling import Upsampling, axes

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ALL_LABEL_DTYPES = tuple(getattr(torch, name) for name in constants.LABEL_DTYPES)
# Those that rotate through the grids, with numbers of other options that have no common divisor.
LABEL_DTYPES = ALL_LABEL_DTYPES[:5]
NORMALIZATIONS = ("valid", "full", "batch", "none", "weight")


@dataclass(frozen=True)
class Case:
    """A shape of logits, or of scores with the size of their labels, and what could go wrong.

    Attributes:
        shape: [N, C, *spatial] of the logits or scores.
        reason: why the tests need this case.
        size: height and width of the labels; None if they are those of the logits.
        upsampling: None for logits.
    """

    shape: tuple[int, ...]
    reason: str
    size: tuple[int, ...] | None = None
    upsampling: Upsampling | None = None

    @property
    def full_shape(self) -> tuple[int, ...]:
        """[N, C, *spatial] of the logits, which are not stored if there is an upsampling."""
        return self.shape if self.size is None else (*self.shape[:2], *self.size)

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.shape))
        if self.size is None:
            return shape
        method = "aligned" if self.upsampling == Bilinear(align_corners=True) else "bilinear"
        if isinstance(self.upsampling, Deconvolution):
            crop = "x".join(map(str, self.upsampling.crop))  # type: ignore[arg-type]
            method = f"s{self.upsampling.stride}k{self.upsampling.kernel_size}c{crop}"
        return f"{shape}to{'x'.join(map(str, self.size))}-{method}"


# A tile has 2048 pixels at C = 2, 1920 at C = 21, 256 at C = 150 and 64 at C = 1000.
CASES = (
    Case((1, 1, 3, 5), "one class: no other class to sum over"),
    Case((1, 2, 1, 1), "one pixel: less than a vector"),
    Case((3, 3, 15, 17), "255 pixels, odd planes: images after the first are unaligned"),
    Case((1, 21, 40, 48), "exactly one tile of PASCAL VOC"),
    Case((2, 21, 37, 53), "one tile and a remainder, odd planes"),
    Case((1, 3, 96, 301), "several tiles, chunks and threads, and a remainder"),
    Case((1, 150, 17, 31), "ADE20K: tiles of 256 pixels and a remainder"),
    Case((3, 151, 1, 7), "ADE20K with void as a class: odd, less than a vector"),
    Case((1, 1000, 9, 13), "many classes: the smallest tile and a remainder"),
    Case((5, 10), "rows: no spatial axis"),
    Case((3, 4, 29), "signals: one spatial axis"),
    Case((2, 3, 5, 6, 7), "volumes: three spatial axes"),
)


def _both(shape: tuple[int, ...], size: tuple[int, int], reason: str) -> list[Case]:
    return [Case(shape, reason, size, Bilinear(align)) for align in (False, True)]


# The CPU processes intervals between source pixels: blocks of their rows, at most 33 in an image,
# and groups of their columns, whose target pixels fill a tile (2048 at C = 2, 64 at C = 1000).
UPSAMPLED_CASES = (
    *_both((1, 1, 3, 4), (9, 10), "one class: no other class to sum over"),
    *_both((1, 2, 1, 1), (1, 1), "one target pixel of one source pixel"),
    *_both((2, 3, 1, 1), (7, 9), "one source pixel for a whole image"),
    *_both((1, 3, 1, 1), (3, 3001), "an interval with more target pixels than a tile"),
    *_both((1, 3, 1, 1), (4001, 2), "thousands of rows in an interval: sums of sums"),
    *_both((1, 3, 4, 5), (1, 1), "a single target pixel"),
    *_both((2, 5, 4, 1), (8, 9), "columns of one source pixel"),
    *_both((2, 5, 1, 6), (9, 12), "rows of one source pixel"),
    *_both((2, 21, 6, 7), (12, 14), "stride 2"),
    *_both((2, 19, 5, 7), (20, 28), "stride 4"),
    *_both((2, 21, 5, 6), (40, 48), "stride 8"),
    *_both((1, 21, 3, 4), (48, 64), "stride 16"),
    *_both((1, 5, 2, 3), (64, 96), "stride 32"),
    *_both((2, 4, 5, 7), (15, 21), "stride 3: target centres coincide with source centres"),
    *_both((2, 4, 5, 7), (13, 19), "aligned, stride 3: target pixels coincide with sources"),
    *_both((2, 7, 5, 6), (37, 43), "sizes that are not multiples of each other"),
    *_both((3, 6, 7, 9), (11, 10), "slightly larger: intervals with and without target pixels"),
    *_both((2, 6, 5, 7), (5, 7), "equal sizes"),
    *_both((2, 6, 5, 7), (5, 28), "equal rows"),
    *_both((2, 6, 9, 10), (4, 3), "down"),
    *_both((2, 6, 12, 3), (5, 24), "down and up"),
    *_both((1, 3, 32, 5), (64, 11), "the largest number of row blocks"),
    *_both((1, 3, 33, 5), (70, 11), "row blocks of two interval rows"),
    *_both((2, 3, 70, 9), (140, 18), "row blocks of three interval rows, and a remainder"),
    *_both((1, 2, 3, 300), (7, 2400), "several groups of intervals"),
    *_both((1, 150, 5, 41), (9, 90), "ADE20K: small tiles, several groups"),
    *_both((1, 1000, 2, 9), (5, 30), "many classes: the smallest tile"),
    Case((1, 1000, 1, 5), "phases that do not fit into a tile", (2, 160), Bilinear()),
    Case((1, 5, 6, 7), "not cropped: both borders are attenuated", (14, 16), Deconvolution(2)),
    Case((3, 5, 6, 7), "centred: exactly twice", (12, 14), Deconvolution(2, crop=1)),
    Case((1, 5, 6, 7), "a pair of crops", (10, 11), Deconvolution(2, crop=(3, 4))),
    Case((1, 21, 9, 10), "the last layer of FCN-8s", (33, 41), Deconvolution(8, crop=31)),
    Case((1, 21, 4, 5), "the last layer of FCN-16s", (40, 50), Deconvolution(16, crop=27)),
    Case((1, 21, 3, 4), "the last layer of FCN-32s", (64, 80), Deconvolution(32, crop=19)),
    Case((2, 4, 5, 3), "odd kernel: target pixels coincide with sources", (14, 9),
         Deconvolution(3, 5)),
    Case((2, 4, 4, 5), "gaps between filters", (15, 19), Deconvolution(4, 3)),
    Case((2, 4, 4, 5), "the scores themselves", (4, 5), Deconvolution(1, 1)),
    Case((2, 4, 4, 5), "stride 1: means of two", (5, 6), Deconvolution(1)),
    Case((2, 150, 3, 5), "odd stride, cropped", (7, 9), Deconvolution(3, crop=(4, 5))),
    Case((1, 3, 9, 9), "a corner alone", (3, 2), Deconvolution(8, crop=(60, 17))),
)  # fmt: skip

ALIGNED = Bilinear(align_corners=True)
FCN_8S = Deconvolution(8, crop=31)
# One small case of each kind: odd planes, intervals cut off at the borders, several row blocks.
UPSAMPLINGS = {
    "plain": Case((2, 5, 7, 9), "logits"),
    "bilinear": Case((2, 5, 7, 9), "up, no integer ratio", (27, 31), Bilinear()),
    "aligned": Case((2, 5, 7, 9), "corners aligned", (19, 25), ALIGNED),
    "equal": Case((2, 5, 7, 9), "equal sizes", (7, 9), Bilinear()),
    "down": Case((2, 5, 7, 9), "down", (4, 3), Bilinear()),
    "deconvolution": Case((2, 5, 7, 9), "the last layer of FCN-8s", (29, 39), FCN_8S),
    "odd kernel": Case((2, 5, 7, 9), "odd kernel", (20, 26), Deconvolution(3, 5, (1, 0))),
    "gaps": Case((2, 5, 7, 9), "gaps between filters", (26, 33), Deconvolution(4, 3, (1, 2))),
}


def seed_of(*parts: object) -> torch.Generator:
    """Returns a generator of random numbers that depend on the parts alone."""
    return torch.Generator().manual_seed(zlib.crc32(repr(parts).encode()))


def make_logits(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, *, spread: float = 3.0
) -> Tensor:
    """Returns normal logits, of the spread that a network in training gives."""
    values = torch.randn(*shape, generator=seed_of("logits", *shape), dtype=torch.float64)
    return (values * spread).to(dtype)


def ignored_label(dtype: torch.dtype) -> int:
    """Returns the usual label for void: 255, or -1 for int8, which cannot hold 255."""
    return -1 if dtype == torch.int8 else 255


def make_labels(
    shape: Sequence[int], dtype: torch.dtype = torch.uint8, *, ignored: float = 0.2
) -> Tensor:
    """Returns labels for logits of `shape`, a share of them ignored; classes below 127 for int8."""
    size, source = (shape[0], *shape[2:]), seed_of("labels", *shape)
    num_classes = min(shape[1], 127 if dtype == torch.int8 else 1 << 15)
    if dtype == torch.uint8:
        num_classes = min(num_classes, 255)
    labels = torch.randint(0, num_classes, size, generator=source)
    void = torch.rand(size, generator=source) < ignored
    return torch.where(void, ignored_label(dtype), labels).to(dtype)


def make_options(name: str, shape: Sequence[int]) -> dict[str, Any]:
    """Returns the arguments after logits and labels, by a name of `OPTIONS`."""
    return {key: value(shape) for key, value in OPTIONS[name].items()}


def _class_weight(shape: Sequence[int]) -> Tensor:
    return torch.rand(shape[1], generator=seed_of("class", *shape)) + 0.5


def _pixel_weight(shape: Sequence[int]) -> Tensor:
    return torch.rand(shape[0], *shape[2:], generator=seed_of("pixel", *shape)) * 2


def _always(value: object) -> Callable[[Sequence[int]], Any]:
    return lambda shape: value


OPTIONS: dict[str, Mapping[str, Callable[[Sequence[int]], Any]]] = {
    "plain": {},
    "class_weight": {"class_weight": _class_weight},
    "pixel_weight": {"pixel_weight": _pixel_weight},
    "label_smoothing": {"label_smoothing": _always(0.1)},
    "temperature": {"temperature": _always(2.5)},
    "several_ignored": {"ignore_index": lambda shape: (255, -1, 0) if shape[1] > 1 else (255, -1)},
    "weight_mean": {"class_weight": _class_weight, "normalization": _always("weight")},
    "everything": {
        "class_weight": _class_weight,
        "pixel_weight": _pixel_weight,
        "label_smoothing": _always(0.3),
        "temperature": _always(0.7),
        "ignore_index": lambda shape: (255, -1, 1) if shape[1] > 2 else (255, -1),
        "normalization": _always("weight"),
    },
}


def with_void(options: Mapping[str, Any], labels: Tensor) -> dict[str, Any]:
    """Returns the options, with the usual `ignore_index` of the labels' dtype as the default."""
    return {"ignore_index": ignored_label(labels.dtype), **options}


def make_inputs(
    case: Case,
    dtype: torch.dtype = torch.float32,
    *,
    label_dtype: torch.dtype = torch.uint8,
    ignored: float = 0.2,
) -> tuple[Tensor, Tensor, Upsampling | None]:
    """Returns scores, labels and the upsampling of a case."""
    scores = make_logits(case.shape, dtype)
    return scores, make_labels(case.full_shape, label_dtype, ignored=ignored), case.upsampling


def loss_of(
    scores: Tensor, labels: Tensor, upsampling: Upsampling | None, **options: Any
) -> Tensor:
    """Returns the loss of logits or of upsampled scores by its own function."""
    if upsampling is None:
        return seg_loss.spatial_cross_entropy(scores, labels, **options)
    return seg_loss.upsampled_cross_entropy(scores, labels, upsampling=upsampling, **options)


def loss_and_gradient_of(
    scores: Tensor, labels: Tensor, upsampling: Upsampling | None, **options: Any
) -> tuple[Tensor, Tensor]:
    return seg_loss.loss_and_gradient(scores, labels, upsampling=upsampling, **options)


def evaluation_of(
    scores: Tensor, labels: Tensor, upsampling: Upsampling | None, **options: Any
) -> Evaluation:
    return seg_loss.evaluate(scores, labels, upsampling=upsampling, **options)


# -- layouts: the same shape, other strides and offsets ----------------------------------------


def _gaps(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Returns the memory around a view: NaN, or the largest integer, which is no class."""
    return torch.full(
        shape, torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max, dtype=dtype
    )


def _sliced(x: Tensor) -> Tensor:
    """Returns every second row, column, class and image of a larger tensor, without its borders."""
    big = _gaps([2 * x.shape[0], 2 * x.shape[1], *(2 * n + 3 for n in x.shape[2:])], x.dtype)
    index = (slice(1, None, 2), slice(0, None, 2), *(slice(1, 2 * n, 2) for n in x.shape[2:]))
    big[index] = x
    return big[index]


def _cropped(x: Tensor) -> Tensor:
    big = _gaps([*x.shape[:2], *(n + 3 for n in x.shape[2:])], x.dtype)
    index = (slice(None), slice(None), *(slice(1, n + 1) for n in x.shape[2:]))
    big[index] = x
    return big[index]


def _shifted(x: Tensor) -> Tensor:
    memory = _gaps([x.numel() + 1], x.dtype)
    memory[1:] = x.reshape(-1)
    return memory[1:].view(x.shape)


def _between_bytes(x: Tensor) -> Tensor:
    memory = bytearray(x.numel() * x.element_size() + 1)
    out = torch.frombuffer(memory, dtype=x.dtype, offset=1, count=x.numel()).view(x.shape)
    return out.copy_(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "batch_inside": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "sliced": _sliced,
    "cropped": _cropped,
    "expanded": lambda x: (x[:1, :, ..., :1] if x.ndim > 2 else x[:1]).expand(x.shape),
    "shifted": _shifted,  # aligned to an element, not to a vector
    "between_bytes": _between_bytes,  # not aligned to an element either, as in a mapped file
}


# -- the truth, torch's result and the tolerance ------------------------------------------------


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread: on small tensors its threads mostly wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def weight_matrices(
    shape: Sequence[int], size: Sequence[int], upsampling: Upsampling | None
) -> tuple[Tensor, Tensor]:
    """Returns the weights of rows and of columns, float64 [targets, sources].

    `shape` is [N, C, h, w] of the scores, and `size` the labels' height and width.
    """
    if upsampling is None:
        return torch.eye(shape[2], dtype=torch.float64), torch.eye(shape[3], dtype=torch.float64)
    rows, columns = axes(upsampling, shape[2:], size)
    return torch.from_numpy(rows.matrix()), torch.from_numpy(columns.matrix())


def is_valid(labels: Tensor, ignore_index: int | Sequence[int] = 255) -> Tensor:
    """Returns the pixels that count, bool like the labels."""
    values = (ignore_index,) if isinstance(ignore_index, int) else tuple(ignore_index)
    return ~torch.isin(labels.long(), torch.tensor(values, dtype=torch.int64))


@one_thread()
def is_read(
    labels: Tensor,
    shape: Sequence[int],
    upsampling: Upsampling | None,
    ignore_index: int | Sequence[int] = 255,
) -> Tensor:
    """Returns the source pixels, bool [N, 1, *spatial], that a valid pixel reads.

    A target pixel reads a source pixel if it gives it another weight than 0.
    """
    valid = is_valid(labels, ignore_index)
    if upsampling is None:
        return valid[:, None]
    rows, columns = (
        (w != 0).double() for w in weight_matrices(shape, labels.shape[1:], upsampling)
    )
    return ((rows.T @ valid.double() @ columns) > 0)[:, None]


@one_thread()
def true_logits(scores: Tensor, labels: Tensor, upsampling: Upsampling | None) -> Tensor:
    """Returns the logits, float64 [N, C, *spatial]."""
    if upsampling is None:
        return scores.double()
    return reference.upsample(scores, (labels.shape[1], labels.shape[2]), upsampling)


@one_thread()
def true_loss_and_gradient(
    scores: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    upsampling: Upsampling | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Returns the loss and its gradient in the scores by definition, float64."""
    x = scores.detach().double().clone().requires_grad_()
    logits = true_logits(x, labels, upsampling)
    loss = reference.spatial_cross_entropy(logits, labels, class_weight, **options)
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient


def torch_upsample(scores: Tensor, size: Sequence[int], upsampling: Upsampling) -> Tensor:
    """Returns scores [N, C, h, w] as [N, C, *size] by torch's own operators, in the same dtype."""
    if isinstance(upsampling, Bilinear):
        return F.interpolate(
            scores, list(size), mode="bilinear", align_corners=upsampling.align_corners
        )
    assert upsampling.kernel_size is not None
    assert isinstance(upsampling.crop, tuple)
    axis = surgery_filter(upsampling.kernel_size)
    num_classes = scores.shape[1]
    weight = torch.outer(axis, axis).to(scores.dtype).expand(num_classes, 1, -1, -1)
    whole = F.conv_transpose2d(scores, weight, stride=upsampling.stride, groups=num_classes)
    down, right = upsampling.crop
    return whole[:, :, down : down + size[0], right : right + size[1]]


def surgery_filter(kernel_size: int) -> Tensor:
    """Returns one axis of `upsample_filt` in FCN's surgery.py, float64."""
    half = (kernel_size + 1) // 2
    centre = half - 1 if kernel_size % 2 else half - 0.5
    return 1 - (torch.arange(kernel_size, dtype=torch.float64) - centre).abs() / half


def torch_loss(
    scores: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    upsampling: Upsampling | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int | Sequence[int] = 255,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    normalization: str = "valid",
) -> Tensor:
    """Returns the loss by torch's own operators: float32, or float64 for float64 scores.

    The tolerance is relative to its error. For half-precision scores torch computes in float32,
    which is stricter than torch in their dtype.
    """
    x = scores if scores.dtype == torch.float64 else scores.float()
    if upsampling is not None:
        x = torch_upsample(x, labels.shape[1:], upsampling)
    valid = is_valid(labels, ignore_index)
    y = torch.where(valid, labels.long(), -100)
    weight = None if class_weight is None else class_weight.to(x.dtype)
    terms = F.cross_entropy(
        x / temperature, y, weight, reduction="none", label_smoothing=label_smoothing
    )
    weights = valid.to(x.dtype)
    if weight is not None:
        weights = weights * weight[y.clamp(min=0)]
    if pixel_weight is not None:
        terms, weights = terms * pixel_weight.to(x.dtype), weights * pixel_weight.to(x.dtype)
    divisor = {
        "valid": max(int(valid.sum()), 1),
        "full": labels.numel(),
        "batch": len(scores),
        "none": 1,
        "weight": weights.sum() if weights.sum() > 0 else 1,
    }[normalization]
    return terms.sum() / divisor


@one_thread()
def torch_loss_and_gradient(
    scores: Tensor, labels: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    """Returns `torch_loss` and its gradient, which is rounded to the scores' dtype at the end."""
    x = scores.detach().to(torch.float64 if scores.dtype == torch.float64 else torch.float32)
    x = x.clone().requires_grad_()
    loss = torch_loss(x, labels, *args, **options)
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient.to(scores.dtype)


def assert_accurate(
    name: str, got: Tensor, truth: Tensor, by_torch: Tensor, *, scale: float | None = None
) -> None:
    """Asserts that the largest error is at most 2 * torch's own + 4 * eps * scale.

    Errors are differences from the truth in float64. This is the only tolerance for results.

    Args:
        name: of the result, for the message.
        got: the result; its dtype gives eps.
        truth: in float64.
        by_torch: the same result by torch.
        scale: of the numbers involved; the largest of the truth by default.
    """
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)} is not {tuple(truth.shape)}"
    assert truth.dtype == torch.float64
    if not truth.numel():
        return
    ours = (got.detach().double() - truth.detach()).abs()
    theirs = float((by_torch.detach().double() - truth.detach()).abs().max())
    if scale is None:
        scale = float(truth.abs().max())
    if got.dtype == torch.float64:
        # The truth is torch's own float64, whose error is invisible; an ulp stands for it.
        theirs = max(theirs, torch.finfo(torch.float64).eps * scale)
    # Subnormal numbers have no relative precision, so the smallest step of the dtype counts.
    kind = torch.finfo(got.dtype)
    allowed = 2 * theirs + 4 * kind.eps * max(scale, kind.tiny)
    worst = int(torch.where(ours.isnan(), torch.inf, ours).argmax())
    error = float(ours.reshape(-1)[worst])
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), truth.shape))
    assert error <= allowed, (
        f"{name} at {index}: got {float(got.reshape(-1)[worst])!r}, "
        f"truth {float(truth.reshape(-1)[worst])!r}, torch {float(by_torch.reshape(-1)[worst])!r}, "
        f"error {error:.3g}, allowed {allowed:.3g}, ratio {error / (allowed or 5e-324):.3g}"
    )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Returns whether all bits are equal, including signs of zeros and payloads of NaN."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))
    )


def is_positive_zero(x: Tensor) -> bool:
    """Returns whether every element is +0."""
    return same_bits(x, torch.zeros_like(x))
