"""What the library's tests share: shapes and layouts, each for a reason, and the one tolerance."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from seg_loss import Bilinear, Deconvolution, reference
from seg_loss.upsampling import Upsampling

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
NORMALIZATIONS = ("valid", "full", "batch", "none", "weight")


@dataclass(frozen=True)
class Case:
    """A shape of logits and what could go wrong with it."""

    shape: tuple[int, ...]
    reason: str

    @property
    def name(self) -> str:
        return "x".join(map(str, self.shape))


# A tile has 2048 pixels at C = 2, 1920 at C = 21, 256 at C = 150 and 64 at C = 1000.
CASES = (
    Case((1, 1, 3, 5), "one class: nothing to choose, no other class to sum over"),
    Case((1, 2, 1, 1), "one pixel: less than a vector"),
    Case((3, 3, 15, 17), "255 pixels, odd planes: images but the first lie unaligned"),
    Case((1, 21, 40, 48), "exactly one tile of PASCAL VOC"),
    Case((2, 21, 37, 53), "one tile and a rest, odd planes"),
    Case((1, 3, 96, 301), "several tiles, chunks and threads, and a rest"),
    Case((1, 150, 17, 31), "ADE20K: tiles of 256 pixels and a rest"),
    Case((3, 151, 1, 7), "ADE20K with void as a class: odd, less than a vector"),
    Case((1, 1000, 9, 13), "many classes: the smallest tile and a rest"),
    Case((5, 10), "rows: no spatial axis at all"),
    Case((3, 4, 29), "signals: one spatial axis"),
    Case((2, 3, 5, 6, 7), "volumes: three spatial axes"),
)
SMALL_CASES = tuple(case for case in CASES if case.shape[1] * case.shape[-1] < 1500)


def seed_of(*parts: object) -> torch.Generator:
    """Random numbers that depend on the parts alone."""
    return torch.Generator().manual_seed(zlib.crc32(repr(parts).encode()))


def make_logits(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, *, spread: float = 3.0
) -> Tensor:
    """Normal logits, of the spread a network in training gives."""
    values = torch.randn(*shape, generator=seed_of("logits", *shape), dtype=torch.float64)
    return (values * spread).to(dtype)


def ignored_label(dtype: torch.dtype) -> int:
    """The label for void that is usual, and that the dtype can hold."""
    return -1 if dtype == torch.int8 else 255


def make_labels(
    shape: Sequence[int], dtype: torch.dtype = torch.uint8, *, ignored: float = 0.2
) -> Tensor:
    """Labels for logits of `shape`, a share of them ignored; classes up to 127 for int8."""
    size, source = (shape[0], *shape[2:]), seed_of("labels", *shape)
    num_classes = min(shape[1], 127 if dtype == torch.int8 else 1 << 15)
    if dtype == torch.uint8:
        num_classes = min(num_classes, 255)
    labels = torch.randint(0, num_classes, size, generator=source)
    void = torch.rand(size, generator=source) < ignored
    return torch.where(void, ignored_label(dtype), labels).to(dtype)


def make_options(name: str, shape: Sequence[int]) -> dict[str, Any]:
    """The arguments behind logits and labels, by a name of `OPTIONS`."""
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
    """The options, `ignore_index` being the labels' usual one where they name none."""
    return {"ignore_index": ignored_label(labels.dtype), **options}


# -- scores that are upsampled ----------------------------------------------------------------


@dataclass(frozen=True)
class UpsampledCase:
    """Scores, the labels' height and width, and what could go wrong between them."""

    shape: tuple[int, ...]
    size: tuple[int, int]
    upsampling: Upsampling
    reason: str

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Of the logits, which nobody stores."""
        return (*self.shape[:2], *self.size)

    @property
    def name(self) -> str:
        way = "aligned" if self.upsampling == Bilinear(align_corners=True) else "bilinear"
        if isinstance(self.upsampling, Deconvolution):
            crop = "x".join(map(str, self.upsampling.crop))  # type: ignore[arg-type]
            way = f"s{self.upsampling.stride}k{self.upsampling.kernel_size}c{crop}"
        return "x".join(map(str, self.shape)) + "to" + "x".join(map(str, self.size)) + "-" + way


def _both(shape: tuple[int, ...], size: tuple[int, int], reason: str) -> list[UpsampledCase]:
    return [UpsampledCase(shape, size, Bilinear(align), reason) for align in (False, True)]


# The CPU works by cells between nodes: bands of their rows, at most 32 in an image, and groups of
# their columns, whose pixels fill a tile (2048 at C = 2, 64 at C = 1000).
UPSAMPLED_CASES = (
    *_both((1, 1, 3, 4), (9, 10), "one class: nothing to choose"),
    *_both((1, 2, 1, 1), (1, 1), "a pixel from a pixel"),
    *_both((2, 3, 1, 1), (7, 9), "a pixel for a whole image"),
    *_both((1, 3, 1, 1), (3, 3001), "a cell of more pixels than a tile"),
    *_both((1, 3, 1, 1), (4001, 2), "thousands of rows in a cell: sums of sums"),
    *_both((1, 3, 4, 5), (1, 1), "a single position"),
    *_both((2, 5, 4, 1), (8, 9), "columns of one node"),
    *_both((2, 5, 1, 6), (9, 12), "rows of one node"),
    *_both((2, 21, 6, 7), (12, 14), "stride 2"),
    *_both((2, 19, 5, 7), (20, 28), "stride 4"),
    *_both((2, 21, 5, 6), (40, 48), "stride 8"),
    *_both((1, 21, 3, 4), (48, 64), "stride 16"),
    *_both((1, 5, 2, 3), (64, 96), "stride 32"),
    *_both((2, 4, 5, 7), (15, 21), "stride 3: centres meet centres"),
    *_both((2, 4, 5, 7), (13, 19), "stride 3 less the corners: aligned nodes meet pixels"),
    *_both((2, 7, 5, 6), (37, 43), "sizes that are no multiples of each other"),
    *_both((3, 6, 7, 9), (11, 10), "up by little: cells with and without pixels"),
    *_both((2, 6, 5, 7), (5, 7), "equal sizes"),
    *_both((2, 6, 5, 7), (5, 28), "equal rows"),
    *_both((2, 6, 9, 10), (4, 3), "down"),
    *_both((2, 6, 12, 3), (5, 24), "down and up"),
    *_both((1, 3, 31, 5), (62, 11), "as many bands as there may be"),
    *_both((1, 3, 32, 5), (70, 11), "a band of two cell rows"),
    *_both((2, 3, 70, 9), (140, 18), "bands of three cell rows, and a rest"),
    *_both((1, 2, 3, 300), (7, 2400), "several groups of cells"),
    *_both((1, 150, 5, 41), (9, 90), "ADE20K: small tiles, several groups"),
    *_both((1, 1000, 2, 9), (5, 30), "many classes: the smallest tile"),
    UpsampledCase((1, 1000, 1, 5), (2, 160), Bilinear(), "phases that do not fit into a tile"),
    UpsampledCase((1, 5, 6, 7), (14, 16), Deconvolution(2), "uncropped: both borders attenuated"),
    UpsampledCase((3, 5, 6, 7), (12, 14), Deconvolution(2, crop=1), "centred: exactly twice"),
    UpsampledCase((1, 5, 6, 7), (10, 11), Deconvolution(2, crop=(3, 4)), "a pair of crops"),
    UpsampledCase((1, 21, 9, 10), (33, 41), Deconvolution(8, crop=31), "the end of FCN-8s"),
    UpsampledCase((1, 21, 4, 5), (40, 50), Deconvolution(16, crop=27), "the end of FCN-16s"),
    UpsampledCase((1, 21, 3, 4), (64, 80), Deconvolution(32, crop=19), "the end of FCN-32s"),
    UpsampledCase((2, 4, 5, 3), (14, 9), Deconvolution(3, 5), "odd kernel: nodes meet pixels"),
    UpsampledCase((2, 4, 4, 5), (15, 19), Deconvolution(4, 3), "gaps between filters"),
    UpsampledCase((2, 4, 4, 5), (4, 5), Deconvolution(1, 1), "the scores themselves"),
    UpsampledCase((2, 4, 4, 5), (5, 6), Deconvolution(1), "stride 1: means of two"),
    UpsampledCase((2, 150, 3, 5), (7, 9), Deconvolution(3, crop=(4, 5)), "odd stride, cropped"),
    UpsampledCase((1, 3, 9, 9), (3, 2), Deconvolution(8, crop=(60, 17)), "a corner alone"),
)


# -- layouts: the same shape, other places in memory ------------------------------------------


def _gaps(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What lies between the elements of a view: NaN, or the largest integer; no class either."""
    return torch.full(
        shape, torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max, dtype=dtype
    )


def _sliced(x: Tensor) -> Tensor:
    """Every second row, column, class and image of something larger, without its borders."""
    big = _gaps([2 * x.shape[0], 2 * x.shape[1], *(2 * n + 3 for n in x.shape[2:])], x.dtype)
    places = (slice(1, None, 2), slice(0, None, 2), *(slice(1, 2 * n, 2) for n in x.shape[2:]))
    big[places] = x
    return big[places]


def _cropped(x: Tensor) -> Tensor:
    big = _gaps([*x.shape[:2], *(n + 3 for n in x.shape[2:])], x.dtype)
    places = (slice(None), slice(None), *(slice(1, n + 1) for n in x.shape[2:]))
    big[places] = x
    return big[places]


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
    "between_bytes": _between_bytes,  # not even to an element, as in a mapped file
}


# -- the yardstick and the tolerance ----------------------------------------------------------


def torch_loss(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    pixel_weight: Tensor | None = None,
    ignore_index: int | Sequence[int] = 255,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    normalization: str = "valid",
) -> Tensor:
    """The loss by torch's own operators, in float32 (float64 of float64 logits): the yardstick.

    Half-precision logits are judged against torch in float32, stricter than torch in their dtype.
    """
    x = logits if logits.dtype == torch.float64 else logits.float()
    values = (ignore_index,) if isinstance(ignore_index, int) else ignore_index
    valid = torch.ones(labels.shape, dtype=torch.bool)
    for value in values:
        valid &= labels.long() != value
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
        "batch": len(logits),
        "none": 1,
        "weight": weights.sum() if weights.sum() > 0 else 1,
    }[normalization]
    return terms.sum() / divisor


def torch_loss_and_gradient(
    logits: Tensor, labels: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    """`torch_loss` and its gradient, rounded to the logits' dtype at the end."""
    x = logits.detach().to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    x = x.clone().requires_grad_()
    loss = torch_loss(x, labels, *args, **options)
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient.to(logits.dtype)


def upsample_by_torch(scores: Tensor, size: Sequence[int], upsampling: Upsampling) -> Tensor:
    """[N, C, h, w] to [N, C, *size] by torch's own operators, in the scores' dtype."""
    if isinstance(upsampling, Bilinear):
        return F.interpolate(
            scores, list(size), mode="bilinear", align_corners=upsampling.align_corners
        )
    assert upsampling.kernel_size is not None
    assert isinstance(upsampling.crop, tuple)
    # One axis of `upsample_filt` in FCN's surgery.py.
    half = (upsampling.kernel_size + 1) // 2
    centre = half - 1 if upsampling.kernel_size % 2 else half - 0.5
    axis = 1 - (torch.arange(upsampling.kernel_size, dtype=torch.float64) - centre).abs() / half
    num_classes = scores.shape[1]
    weight = torch.outer(axis, axis).to(scores.dtype).expand(num_classes, 1, -1, -1)
    made = F.conv_transpose2d(scores, weight, stride=upsampling.stride, groups=num_classes)
    down, right = upsampling.crop
    return made[:, :, down : down + size[0], right : right + size[1]]


@contextmanager
def one_thread() -> Iterator[None]:
    """For oracles: torch's threads spin while they wait, and small operators are waiting mostly."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@one_thread()
def upsampled_truth(
    scores: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    upsampling: Upsampling,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The loss of upsampled scores and its gradient by them, by definition: float64."""
    x = scores.detach().double().clone().requires_grad_()
    logits = reference.upsample(x, (labels.shape[1], labels.shape[2]), upsampling)
    loss = reference.spatial_cross_entropy(logits, labels, class_weight, **options)
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient


@one_thread()
def upsampled_torch(
    scores: Tensor, labels: Tensor, *args: Any, upsampling: Upsampling, **options: Any
) -> tuple[Tensor, Tensor]:
    """The same by torch's own operators, as `torch_loss_and_gradient`: the yardstick."""
    x = scores.detach().to(torch.float64 if scores.dtype == torch.float64 else torch.float32)
    x = x.clone().requires_grad_()
    logits = upsample_by_torch(x, labels.shape[1:], upsampling)
    loss = torch_loss(logits, labels, *args, **options)
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient.to(scores.dtype)


def assert_accurate(
    name: str, got: Tensor, truth: Tensor, by_torch: Tensor, *, scale: float | None = None
) -> None:
    """Max error <= 2 * torch's own + 4 * eps * scale, against float64. The one tolerance.

    Args:
        got: ours; its dtype gives eps.
        by_torch: the same by torch.
        scale: of the numbers involved; that of the truth if not given.
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
        # The truth is torch's own float64, whose error does not show: an ulp stands for it.
        theirs = max(theirs, torch.finfo(torch.float64).eps * scale)
    # Below the smallest normal number a dtype has no relative precision: its smallest step counts.
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
    """Equal in every bit: the sign of zero and the payload of NaN count."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))
    )


def is_positive_zero(x: Tensor) -> bool:
    """Every element is +0, bit by bit."""
    return same_bits(x, torch.zeros_like(x))
