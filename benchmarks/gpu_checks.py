"""What must hold on a GPU before anything is timed there: the checks of `benchmarks.gpu`.

A check is a function of a device that asserts, or raises `Skipped`, and returns a sentence on what
it compared. `CHECKS` is the table of them. Each runs in a process of its own, several at a time: an
illegal access spoils a process's context for good, and compiling the kernels is most of the work.

Truth is float64 on the CPU, the tolerance the tests' own, `tests.cases.assert_accurate`. Most
checks run in Triton's interpreter too, with `device` the CPU.
"""

import itertools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

import seg_loss
from seg_loss import Bilinear, Deconvolution, reference
from seg_loss.constants import MAPS
from seg_loss.evaluation import Evaluation
from seg_loss.upsampling import Upsampling
from tests.support.cases import (
    CASES,
    FLOATS,
    LABEL_DTYPES,
    LAYOUTS,
    OPTIONS,
    UPSAMPLED_CASES,
    assert_accurate,
    is_positive_zero,
    make_labels,
    make_logits,
    make_options,
    same_bits,
    seed_of,
    torch_loss,
    torch_loss_and_gradient,
    true_loss_and_gradient,
    with_void,
)

ON_DEVICE = tuple(name for name in LAYOUTS if name != "between_bytes")  # the device has no such
# Several tiles and a rest, of odd planes. LARGER is that of images not folded into one.
USUAL, MORE_CLASSES = (2, 21, 37, 53), (2, 150, 37, 53)
LARGER, SMALLER = (71, 67), (19, 23)
FORWARD, TRAINED, EVERYTHING = 1, 2, 3  # how much of the library an item of the grid goes through


class Skipped(Exception):
    """The check cannot be made here."""


@dataclass(frozen=True)
class Check:
    """A row of the table.

    Attributes:
        run: takes the device and whether to be quick.
        seconds: after which it counts as failed.
    """

    name: str
    run: Callable[[torch.device, bool], str]
    seconds: float = 200


# -- from the CPU to the device ----------------------------------------------------------------


def placed(x: Tensor, device: torch.device) -> Tensor:
    """A copy with the same strides, offset, and gaps between the elements."""
    memory = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    copy = memory.clone() if device.type == "cpu" else memory.to(device)
    return copy.as_strided(x.shape, x.stride(), x.storage_offset())


def on(device: torch.device, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in options.items()
    }


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def evaluate_on_cpu(logits: Tensor, labels: Tensor, **options: Any) -> Evaluation:
    return seg_loss.evaluate(logits, labels, **options)


def expect(condition: object, message: str) -> None:
    """An assertion that python -O keeps."""
    if not condition:
        raise AssertionError(message)


def expect_same_bits(what: str, a: Tensor, b: Tensor) -> None:
    if same_bits(a, b):
        return
    differs = (a != b) & ~(a.isnan() & b.isnan())
    raise AssertionError(f"{what}: {int(differs.sum())} of {a.numel()} elements differ")


# -- the grid ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A point of the grid, and how much of the library goes over it."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    label_dtype: torch.dtype = torch.uint8
    option: str = "plain"
    depth: int = FORWARD

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.shape))
        dtypes = f"{str(self.dtype)[6:]}, {str(self.label_dtype)[6:]}"
        return f"{shape} {dtypes}, {self.layout}, {self.option}"


def check_item(item: Item, device: torch.device) -> None:
    """Loss and gradient of one item, and what else its depth asks for, against float64."""
    logits = LAYOUTS[item.layout](make_logits(item.shape, item.dtype))
    labels = make_labels(item.shape, item.label_dtype)
    options = with_void(make_options(item.option, item.shape), labels)
    x, its = placed(logits, device), on(device, options)
    y = labels
    if labels.ndim > 1 and item.layout in ("transposed", "sliced", "cropped", "shifted"):
        y = LAYOUTS[item.layout](labels)
    y = placed(y, device)

    wide = logits.detach().double().requires_grad_()
    truth = torch_loss(wide, labels, **options)
    (truth_gradient,) = torch.autograd.grad(truth, wide)
    by_torch, gradient_by_torch = torch_loss_and_gradient(logits, labels, **options)
    scale = 1.0 if item.shape[1] == 1 else None  # of one class the truth is 1 - 1

    with torch.no_grad():
        forward = seg_loss.spatial_cross_entropy(x, y, **its)
    loss, gradient = seg_loss.loss_and_gradient(x, y, **its)
    assert_accurate("loss", loss.cpu(), truth.detach(), by_torch)
    # Two kernels: the compiler may add up the classes in another order.
    expect_close("loss without gradient", float(forward), float(loss), 1e-6)
    assert_accurate("gradient", gradient.cpu(), truth_gradient, gradient_by_torch, scale=scale)
    expect(gradient.stride() == torch.empty_like(x).stride(), "strides are not the logits'")
    values = options["ignore_index"]
    values = torch.tensor((values,) if isinstance(values, int) else values)
    ignored = torch.isin(labels.long(), values)
    at_ignored = gradient.cpu().movedim(1, -1)[ignored]
    expect(is_positive_zero(at_ignored), "gradient of ignored pixels is not +0")
    if item.depth >= TRAINED:
        _check_training(item, x, y, its, gradient, truth_gradient, gradient_by_torch)
    if item.depth >= EVERYTHING:
        only: dict[str, Any] = {
            name: options[name] for name in ("ignore_index", "temperature") if name in options
        }
        _check_pixel_nll(logits, labels, only, x, y)
        _check_softmax(logits, x, float(options.get("temperature", 1.0)))
        _check_evaluate(logits, labels, options, x, y)


def _check_training(
    item: Item, x: Tensor, y: Tensor, options: Mapping[str, Any],
    gradient: Tensor, truth: Tensor, by_torch: Tensor,
) -> None:  # fmt: skip
    """Autograd, for an upstream gradient of 1 and of 3, and memory of the caller's."""
    leaf = x.detach().requires_grad_()
    loss = seg_loss.spatial_cross_entropy(leaf, y, **options)
    (got,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    expect_same_bits("gradient by autograd", got, gradient)
    (thrice,) = torch.autograd.grad(3 * loss, leaf)
    scale = 3.0 if item.shape[1] == 1 else None
    assert_accurate(
        "gradient for an upstream of 3", thrice.cpu(), 3 * truth,
        (3 * by_torch.double()).to(item.dtype), scale=scale,
    )  # fmt: skip
    if item.layout == "expanded":
        return
    out = placed(LAYOUTS[item.layout](torch.full(item.shape, torch.nan).to(item.dtype)), x.device)
    seg_loss.loss_and_gradient(x, y, **options, out=out)
    expect_same_bits("out=", out, gradient)
    seg_loss.loss_and_gradient(out.copy_(x), y, **options, out=out)
    expect_same_bits("out=logits", out, gradient)


def _check_pixel_nll(
    logits: Tensor, labels: Tensor, options: Mapping[str, Any], x: Tensor, y: Tensor
) -> None:
    values = options["ignore_index"]
    values = torch.tensor((values,) if isinstance(values, int) else values)
    target = torch.where(torch.isin(labels.long(), values), -100, labels.long())
    upstream = torch.randn(labels.shape, generator=seed_of("upstream"), dtype=torch.float64)

    def by_torch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = logits.detach().to(dtype).requires_grad_()
        terms = F.cross_entropy(
            leaf / options.get("temperature", 1.0), target, reduction="none"
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(terms, leaf, upstream.to(dtype))
        return terms.detach(), gradient

    truth, truth_gradient = by_torch(torch.float64)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    theirs, their_gradient = by_torch(wide)
    leaf = x.detach().requires_grad_()
    got = seg_loss.pixel_nll(leaf, y, **options)
    (gradient,) = torch.autograd.grad(got, leaf, upstream.to(wide).to(x.device))
    scale = float(upstream.abs().max()) if logits.shape[1] == 1 else None
    assert_accurate("pixel_nll", got.detach().cpu(), truth, theirs)
    assert_accurate(
        "gradient of pixel_nll", gradient.cpu(), truth_gradient, their_gradient.to(logits.dtype),
        scale=scale,
    )  # fmt: skip


def _check_softmax(logits: Tensor, x: Tensor, temperature: float) -> None:
    upstream = torch.randn(logits.shape, generator=seed_of("upstream"), dtype=torch.float64)
    upstream = upstream.to(logits.dtype)

    def by_torch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = logits.detach().to(dtype).requires_grad_()
        p = torch.softmax(leaf / temperature, 1)
        (gradient,) = torch.autograd.grad(p, leaf, upstream.to(dtype))
        return p.detach(), gradient

    truth, truth_gradient = by_torch(torch.float64)
    theirs, their_gradient = by_torch(
        torch.float64 if logits.dtype == torch.float64 else torch.float32
    )
    leaf = x.detach().requires_grad_()
    got = seg_loss.spatial_softmax(leaf, temperature=temperature)
    (gradient,) = torch.autograd.grad(got, leaf, upstream.to(x.device))
    assert_accurate("softmax", got.detach().cpu(), truth, theirs.to(logits.dtype))
    # p (g - sum g p): where it cancels, the size of g is that of the numbers involved.
    assert_accurate(
        "gradient of softmax", gradient.cpu(), truth_gradient, their_gradient.to(logits.dtype),
        scale=float(upstream.abs().max()),
    )  # fmt: skip


def _check_evaluate(
    logits: Tensor, labels: Tensor, options: Mapping[str, Any], x: Tensor, y: Tensor, **how: Any
) -> None:
    """Of x, which by `how` is the same as these logits.

    Integers as on the CPU but where two classes, or a confidence and a bin's edge, are closer than
    rounding; floats close; and without maps as with them.
    """
    its = on(x.device, options)
    got = seg_loss.evaluate(x, y, **its, **how, maps=MAPS)
    plain = evaluate_on_cpu(logits, labels, **options, maps=MAPS)
    temperature = options.get("temperature", 1.0)
    spread = max(1.0, float(logits.double().abs().max()) / temperature)
    close = 32 * torch.finfo(torch.float32).eps * spread
    for name in ("loss", "divisor", "uniform_loss"):
        expect_close(f"evaluate's {name}", getattr(got, name), getattr(plain, name), 1e-5)
    for name in ("valid_pixels", "ignored_pixels", "non_finite_pixels"):
        expect(getattr(got, name) == getattr(plain, name), f"evaluate's {name} differs")
    for ours, theirs in zip(got.per_image, plain.per_image, strict=True):
        expect_close("an image's loss", ours.loss, theirs.loss, 1e-5)
        expect(ours.valid_pixels == theirs.valid_pixels, "an image's valid pixels differ")
    for one, other in zip(got.per_class, plain.per_class, strict=True):
        expect(one.pixels == other.pixels, "a class's pixels differ")
        if other.mean_nll is not None and one.mean_nll is not None:
            expect_close("a class's nll", one.mean_nll, other.mean_nll, 1e-5)

    maps = {name: values.cpu() for name, values in got.maps.items()}
    for name in ("nll", "confidence", "entropy", "top_probabilities"):
        error = float((maps[name] - plain.maps[name]).abs().max()) if labels.numel() else 0.0
        expect(error <= close, f"map {name}: off by {error:.3g}, allowed {close:.3g}")
    p = torch.softmax(logits.double() / temperature, dim=1)
    chosen = p.gather(1, maps["top_classes"].long())
    error = float((chosen - maps["top_probabilities"]).abs().max()) if labels.numel() else 0.0
    expect(error <= close, f"map top_classes: their probabilities are off by {error:.3g}")
    expect(torch.equal(maps["prediction"], maps["top_classes"][:, 0]), "prediction is not the top")
    if torch.equal(maps["prediction"], plain.maps["prediction"]):
        expect(torch.equal(got.confusion, plain.confusion), "confusion differs")
    expect(int(got.confusion.sum()) == got.valid_pixels, "confusion does not count every pixel")
    share = plain.maps["confidence"].double() * 15
    near_an_edge = int(((share - share.round()).abs() < 15 * close).sum())
    for ours_bin, their_bin in zip(got.calibration.bins, plain.calibration.bins, strict=True):
        apart = abs(ours_bin.pixels - their_bin.pixels)
        expect(apart <= near_an_edge, f"{apart} pixels are in another bin of confidence")
    alone = seg_loss.evaluate(x, y, **its, **how)
    expect_close("evaluate's loss without maps", alone.loss, got.loss, 1e-6)
    expect(torch.equal(alone.confusion, got.confusion), "evaluate's confusion depends on the maps")


def expect_close(what: str, got: float, truth: float, relative: float) -> None:
    off = abs(got - truth)
    expect(off <= relative * max(abs(truth), 1e-30) + 1e-12, f"{what}: {got!r}, not {truth!r}")


_Item = TypeVar("_Item", Item, "UpsampledItem")


def check_items(
    items: Sequence[_Item],
    device: torch.device,
    check: Callable[[_Item, torch.device], None],
) -> str:
    """All items, whatever fails.

    Raises:
        AssertionError: that says of the first few which failed, and how.
    """
    failures = []
    for item in items:
        try:
            check(item, device)
        except Exception as failure:  # noqa: BLE001, RUF100 - a table of failures is the aim
            failures.append(f"{item.name}: {type(failure).__name__}: {failure}")
            if "CUDA error" in str(failure):
                break  # nothing after it can succeed
    if failures:
        raise AssertionError(f"{len(failures)} of {len(items)} failed; " + " | ".join(failures[:6]))
    return f"{len(items)} cases"


def _shape_for(num_classes: int) -> tuple[int, ...]:
    """Several tiles and a rest; up to 65 classes in images large enough not to be folded."""
    if num_classes <= 65:
        return 2, num_classes, *LARGER
    return (2, num_classes, *USUAL[2:]) if num_classes <= 512 else (1, num_classes, *SMALLER)


def _items_of_shapes() -> list[Item]:
    turns = zip(
        itertools.cycle(FLOATS), itertools.cycle(ON_DEVICE), itertools.cycle(LABEL_DTYPES)
    )  # fmt: skip
    return [
        Item(case.shape, dtype, layout, label_dtype, option, TRAINED)
        for case, (dtype, layout, label_dtype), option in zip(
            CASES, turns, itertools.cycle(OPTIONS), strict=False
        )
    ]


def _items_of_classes(classes: Sequence[int], *, quick: bool) -> list[Item]:
    turns = itertools.cycle((torch.uint8, torch.int16, torch.int32, torch.int64))
    items = []
    for num_classes in classes[:: 3 if quick else 1]:
        shape = _shape_for(num_classes)
        items.append(Item(shape, torch.float32, "contiguous", next(turns)))
        items.append(Item(shape, torch.bfloat16, "channels_last", next(turns)))
    return items


def _items_of_layouts(dtype: torch.dtype, *, quick: bool) -> list[Item]:
    shapes = (USUAL,) if quick else (USUAL, (3, 3, 15, 17))
    turns = itertools.cycle(LABEL_DTYPES)
    return [
        Item(shape, dtype, layout, next(turns), "plain", TRAINED)
        for shape in shapes
        for layout in ON_DEVICE
    ]


def _items_of_options(*, quick: bool) -> list[Item]:
    shapes = (USUAL,) if quick else (USUAL, MORE_CLASSES)
    turns = itertools.cycle((torch.float32, torch.bfloat16))
    return [
        Item(shape, next(turns), "contiguous", torch.uint8, option, TRAINED)
        for shape in shapes
        for option in OPTIONS
    ] + [Item(USUAL, torch.float64, "channels_last", torch.int8, "everything", TRAINED)]


def _items_of_everything(place: int, *, quick: bool) -> list[Item]:
    items = [
        Item(USUAL, torch.float32, depth=EVERYTHING),
        Item(USUAL, torch.bfloat16, "channels_last", option="temperature",
             depth=EVERYTHING),
        Item(MORE_CLASSES, torch.float32, depth=EVERYTHING),
        Item((1, 5000, 3, 5), torch.float32, depth=EVERYTHING),
        Item((2, 3, 5, 6, 7), torch.float64, label_dtype=torch.int64, option="everything",
             depth=EVERYTHING),
        Item((5, 10), torch.float16, option="class_weight", depth=EVERYTHING),
        Item((1, 1, 3, 5), torch.float32, depth=EVERYTHING),
        Item((2, 257, *USUAL[2:]), torch.bfloat16, label_dtype=torch.int16, depth=EVERYTHING),
        Item((1, 1000, 9, 13), torch.float32, "channels_last", depth=EVERYTHING),
        Item((3, 2, *LARGER), torch.float16, "sliced", option="label_smoothing", depth=EVERYTHING),
    ]  # fmt: skip
    return items[place::3][: 1 if quick else None]


# -- upsampled scores --------------------------------------------------------------------------

PLAIN, ALIGNED = Bilinear(), Bilinear(align_corners=True)
FCN_8S = Deconvolution(8, crop=31)


@dataclass(frozen=True)
class UpsampledItem:
    """Scores and how they become as large as the labels."""

    shape: tuple[int, ...]
    size: tuple[int, ...]
    upsampling: Upsampling = PLAIN
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    label_dtype: torch.dtype = torch.uint8
    option: str = "plain"
    depth: int = FORWARD

    @property
    def name(self) -> str:
        shapes = "x".join(map(str, self.shape)) + " to " + "x".join(map(str, self.size))
        dtypes = f"{str(self.dtype)[6:]}, {str(self.label_dtype)[6:]}"
        return f"{shapes} by {self.upsampling}, {dtypes}, {self.layout}, {self.option}"

    def tensors(self) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Scores, labels and options, on the CPU."""
        full = (*self.shape[:2], *self.size)
        scores = LAYOUTS[self.layout](make_logits(self.shape, self.dtype))
        labels = make_labels(full, self.label_dtype)
        return scores, labels, with_void(make_options(self.option, full), labels)


def check_upsampled_item(item: UpsampledItem, device: torch.device) -> None:
    """Loss and gradient; when trained, autograd for an upstream of 3 and memory of the caller's."""
    scores, labels, options = item.tensors()
    x, y, its = placed(scores, device), placed(labels, device), on(device, options)
    how: dict[str, Any] = {"upsampling": item.upsampling}
    truth, truth_gradient = true_loss_and_gradient(scores, labels, **options, **how)
    by_torch, gradient_by_torch = torch_loss_and_gradient(scores, labels, **options, **how)
    scale = 1.0 if item.shape[1] == 1 else None

    with torch.no_grad():
        forward = seg_loss.upsampled_cross_entropy(x, y, **its, **how)
    loss, gradient = seg_loss.loss_and_gradient(x, y, **its, **how)
    assert_accurate("loss", loss.cpu(), truth, by_torch)
    expect_close("loss without gradient", float(forward), float(loss), 1e-6)
    assert_accurate("gradient", gradient.cpu(), truth_gradient, gradient_by_torch, scale=scale)
    if item.depth < TRAINED:
        return
    leaf = x.detach().requires_grad_()
    loss = seg_loss.upsampled_cross_entropy(leaf, y, **its, **how)
    (thrice,) = torch.autograd.grad(3 * loss, leaf)
    assert_accurate(
        "gradient for an upstream of 3", thrice.cpu(), 3 * truth_gradient,
        (3 * gradient_by_torch.double()).to(item.dtype), scale=None if scale is None else 3.0,
    )  # fmt: skip
    if item.layout == "expanded":
        return
    out = placed(LAYOUTS[item.layout](torch.full(item.shape, torch.nan).to(item.dtype)), device)
    seg_loss.loss_and_gradient(x, y, **its, **how, out=out)
    expect_same_bits("out=", out, gradient)
    seg_loss.loss_and_gradient(out.copy_(x), y, **its, **how, out=out)
    expect_same_bits("out=scores", out, gradient)


def _upsampled_ways(*, quick: bool) -> list[UpsampledItem]:
    """The tests' cases. On a device all of one number of classes and one dtype, to compile little;
    in the interpreter the smallest.
    """
    cases = [
        (case.shape, case.size, case.upsampling)
        for case in UPSAMPLED_CASES
        if case.size is not None and case.upsampling is not None
    ]
    if not quick:
        return [UpsampledItem((shape[0], 21, *shape[2:]), *how) for shape, *how in cases]  # type: ignore[arg-type]
    cases = [case for case in cases if math.prod((*case[0][:2], *case[1])) <= 400]
    cases += [
        ((1, 3, 3, 3), (5, 4), Deconvolution(2, crop=(1, 2))),
        ((1, 3, 2, 2), (7, 6), Deconvolution(3)),
        ((1, 3, 5, 5), (6, 9), FCN_8S),
        ((1, 3, 2, 3), (5, 8), ALIGNED),
    ]
    turns = zip(itertools.cycle(FLOATS), itertools.cycle(LABEL_DTYPES))
    return [
        UpsampledItem(*case, dtype, label_dtype=label_dtype)
        for case, (dtype, label_dtype) in zip(cases, turns, strict=False)
    ]


def _upsampled_classes(place: int, *, quick: bool) -> list[UpsampledItem]:
    """Every row of the table, from both ends."""
    if quick:
        items = [UpsampledItem((1, n, 2, 2), (3, 4)) for n in (1, 3, 7, 19, 33, 150, 200)]
        items += [UpsampledItem((1, 257, 1, 2), (2, 3), option="everything")]
        return items[place::3]
    ends = [n + more for n in (6, 12, 24, 64, 160, 256) for more in (0, 1)]
    shape, size = (5, 19), (37, 150)
    items = [UpsampledItem((2, n, *shape), size) for n in (1, *ends, 19, 150, 1000, 5000)]
    for n in (19, 150):
        items.append(UpsampledItem((2, n, *shape), size, FCN_8S, torch.bfloat16))
    for n in (19, 150, 300):
        items.append(UpsampledItem((2, n, *shape), size, option="everything"))
    return items[place::3]


def _upsampled_options(*, quick: bool) -> list[UpsampledItem]:
    shape, size = ((2, 5, 2, 2), (3, 4)) if quick else ((2, 21, 9, 20), (67, 150))
    turns = itertools.cycle(FLOATS)
    items = [
        UpsampledItem(shape, size, layout=layout, dtype=next(turns), depth=TRAINED)
        for layout in (("channels_last", "sliced") if quick else ON_DEVICE)
    ]
    turns = itertools.cycle((torch.float32, torch.bfloat16))
    return items + [
        UpsampledItem(shape, size, ALIGNED, next(turns), option=option, depth=TRAINED)
        for option in OPTIONS
        if option == "everything" or not quick
    ]


def check_upsampled_evaluate(device: torch.device, quick: bool) -> str:
    """All that `evaluate` tells of upsampled scores is what it tells of the logits they mean."""
    items = [
        UpsampledItem((2, 5, 3, 4), (7, 9)),
        UpsampledItem((1, 21, 5, 6), (11, 17), FCN_8S, torch.bfloat16, option="temperature"),
        UpsampledItem((2, 3, 4, 5), (4, 5), ALIGNED, torch.float64, option="everything"),
        UpsampledItem((1, 150, 9, 20), (67, 150), label_dtype=torch.int64),
        UpsampledItem((1, 5000, 2, 3), (5, 6)),
    ]
    for item in items[: 3 if quick else None]:
        scores, labels, options = item.tensors()
        logits = reference.upsample(scores, item.size, item.upsampling)  # type: ignore[arg-type]
        x, y = placed(scores, device), placed(labels, device)
        _check_evaluate(logits, labels, options, x, y, upsampling=item.upsampling)
    return f"{len(items[: 3 if quick else None])} cases"


def check_upsampled_edges(device: torch.device, quick: bool) -> str:
    """What no pixel reads stays where it is; bad labels; nothing valid; nothing at all; the same
    bits twice, and for an image alone.
    """
    shape, size = ((2, 5, 3, 4), (7, 9)) if quick else ((3, 5, 4, 6), (15, 21))
    labels = make_labels((*shape[:2], *size))
    # Whoever reads the very first node.
    labels[0, : size[0] * 2 // shape[2] + 1, : size[1] * 2 // shape[3] + 1] = 255
    y = labels.to(device)
    dtypes = (torch.float32,) if quick else (torch.float32, torch.bfloat16)
    for dtype in dtypes:
        x = make_logits(shape, dtype).to(device)
        options: dict[str, Any] = {"normalization": "none"}
        plain = seg_loss.loss_and_gradient(x, y, **options, upsampling=PLAIN)
        again = seg_loss.loss_and_gradient(x, y, **options, upsampling=PLAIN)
        expect_same_bits(f"{dtype} loss again", again[0], plain[0])
        expect_same_bits(f"{dtype} gradient again", again[1], plain[1])
        _, alone = seg_loss.loss_and_gradient(x[1:2], y[1:2], **options, upsampling=PLAIN)
        expect_same_bits(f"{dtype} image alone", alone, plain[1][1:2])
        for value in (math.nan, math.inf, -math.inf)[: 1 if quick else None]:
            spoilt = x.clone()
            spoilt[0, :, 0, 0] = value
            got = seg_loss.loss_and_gradient(spoilt, y, **options, upsampling=PLAIN)
            expect_same_bits(f"{dtype} loss with ignored {value}", got[0], plain[0])
            expect_same_bits(f"{dtype} gradient with ignored {value}", got[1], plain[1])
            expect(is_positive_zero(got[1][0, :, 0, 0]), f"{value}: gradient is not +0")
        # A class that is out of the question; of equal size each pixel reads one node.
        masked = x.clone()
        masked[:, 3] = -math.inf
        masked[0, 2, 1, 1] = -math.inf
        for upsampling in (ALIGNED, PLAIN)[: 1 if quick else None]:
            some = make_labels(shape)
            some = torch.where((some == 3) | (some == 2), 255, some).to(device)
            whole = seg_loss.loss_and_gradient(masked, some, **options)
            got = seg_loss.loss_and_gradient(masked, some, **options, upsampling=upsampling)
            expect(math.isfinite(float(got[0])), f"{dtype}: loss {float(got[0])} of a masked class")
            expect_close("loss of equal sizes", float(got[0]), float(whole[0]), 1e-6)
            assert_accurate(
                "gradient of equal sizes", got[1].cpu(), whole[1].cpu().double(), whole[1].cpu()
            )
            expect(not got[1][:, 3].any(), f"{dtype}: the gradient of -inf is not 0")
            found = seg_loss.evaluate(masked, some, upsampling=upsampling)
            expect(found.non_finite_pixels == 0, f"{dtype}: {found.non_finite_pixels} non-finite")
        for normalization in ("valid", "weight", "full")[: 1 if quick else None]:
            nothing = torch.full_like(y, 255)
            bad = torch.full_like(x, math.nan)
            got = seg_loss.loss_and_gradient(
                bad, nothing, normalization=normalization, upsampling=PLAIN
            )
            expect(float(got[0]) == 0, f"{dtype} {normalization}: nothing valid costs something")
            expect(is_positive_zero(got[1]), "gradient is not +0")
        loss, gradient = seg_loss.loss_and_gradient(x[:0], y[:0], upsampling=PLAIN)
        expect(float(loss) == 0 and gradient.shape == x[:0].shape, "an empty batch costs something")
    _check_upsampled_bad_labels(device)
    return f"NaN, inf, -inf, nothing valid and bad labels, in {len(dtypes)} dtypes"


def _check_upsampled_bad_labels(device: torch.device) -> None:
    shape, size = (2, 5, 2, 3), (5, 6)
    scores, good = make_logits(shape), make_labels((*shape[:2], *size), torch.int64)
    labels = good.clone()
    labels[1, 2, 4] = labels[1, -1, 2] = 77
    spoken = refusal(on_cpu, torch.zeros(*shape[:2], *size), labels)
    x, y = scores.to(device), labels.to(device)
    calls: dict[str, Callable[[str], object]] = {
        "loss_and_gradient": lambda how: seg_loss.loss_and_gradient(
            x, y, upsampling=PLAIN, check_labels=how
        ),
        "upsampled_cross_entropy": lambda how: seg_loss.upsampled_cross_entropy(
            x, y, check_labels=how
        ),
        "evaluate": lambda how: seg_loss.evaluate(x, y, upsampling=PLAIN, check_labels=how),
    }
    for name, call in calls.items():
        got = refusal(call, "raise")
        expect(got and got == spoken, f"{name}: {got!r}, on the CPU {spoken!r}")
        expect(not refusal(call, "defer"), f"{name}: defer spoke at once")
        late = refusal(seg_loss.check)
        expect(late == spoken, f"{name}: check() said {late!r}")
        expect(not refusal(call, "ignore"), f"{name}: ignore spoke")
        expect(not refusal(seg_loss.check), f"{name}: ignore left a report")
    ignored = torch.where(y == 77, 255, y)
    for what, one, other in zip(
        ("loss", "gradient"),
        seg_loss.loss_and_gradient(x, y, upsampling=PLAIN, check_labels="ignore"),
        seg_loss.loss_and_gradient(x, ignored, upsampling=PLAIN),
        strict=True,
    ):
        expect_same_bits(f"{what} with bad labels ignored", one, other)


# -- beyond the grid ---------------------------------------------------------------------------


def check_determinism(device: torch.device, quick: bool) -> str:
    """The same bits twice, for an image alone, and in torch's deterministic mode."""
    shapes = [(3, *USUAL[1:]), (2, 19, *LARGER)]
    if device.type == "cuda":
        shapes += [(16, 3, 1024, 1024)] + ([] if quick else [(4, 150, 256, 256)])
    for shape in shapes:
        # Sums of float32 numbers are often exact in float64, whatever the order: float64 tells.
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            x, y = make_logits(shape, dtype).to(device), make_labels(shape).to(device)
            options: dict[str, Any] = {"normalization": "none"}
            loss, gradient = seg_loss.loss_and_gradient(x, y, **options)
            whole = seg_loss.evaluate(x, y, **options)
            for _ in range(3):
                again = seg_loss.loss_and_gradient(x, y, **options)
                expect_same_bits(f"{shape} loss again", again[0], loss)
                expect_same_bits(f"{shape} gradient again", again[1], gradient)
            expect(seg_loss.evaluate(x, y, **options).loss == whole.loss, "evaluate's loss again")
            for k in range(0, shape[0], max(1, shape[0] // 3)):
                part = slice(k, k + 1)
                _, alone = seg_loss.loss_and_gradient(x[part], y[part], **options)
                expect_same_bits(f"{shape} image {k} alone: gradient", alone, gradient[part])
                one = seg_loss.evaluate(x[part], y[part], **options)
                expect(
                    one.per_image == whole.per_image[part],
                    f"{shape} image {k} alone: {one.per_image[0]}, in the batch "
                    f"{whole.per_image[k]}",
                )
            torch.use_deterministic_algorithms(True)
            try:
                leaf = x.detach().requires_grad_()
                strict = seg_loss.spatial_cross_entropy(leaf, y, **options)
                expect_same_bits("loss in deterministic mode", strict, loss)
                expect_same_bits(
                    "gradient in deterministic mode", torch.autograd.grad(strict, leaf)[0], gradient
                )
                seg_loss.evaluate(x, y)
            finally:
                torch.use_deterministic_algorithms(False)
    return f"{len(shapes)} shapes in float32, bfloat16 and float64"


@contextmanager
def no_waiting() -> Iterator[None]:
    """Torch raises for what makes the host wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_no_waiting(device: torch.device, quick: bool) -> str:
    """Nothing but check_labels="raise" waits for the device."""
    if device.type != "cuda":
        raise Skipped("only a CUDA device can be waited for")
    shape = (2, 21, 64, 96)
    x, y = make_logits(shape).to(device), make_labels(shape).to(device)
    pixel_weight = torch.rand(y.shape, device=device)
    class_weight = torch.rand(21, device=device)
    for check_labels in ("defer", "ignore"):

        def everything(check_labels: str = check_labels) -> None:
            leaf = x.detach().requires_grad_()
            loss = seg_loss.spatial_cross_entropy(leaf, y, check_labels=check_labels)
            loss.backward()  # type: ignore[no-untyped-call]
            scaled = seg_loss.spatial_cross_entropy(
                leaf, y, class_weight, pixel_weight=pixel_weight, normalization="weight",
                check_labels=check_labels,
            )  # fmt: skip
            (scaled * 3).backward()  # type: ignore[no-untyped-call]
            seg_loss.loss_and_gradient(x, y, check_labels=check_labels)
            seg_loss.pixel_nll(leaf, y, check_labels=check_labels).sum().backward()  # type: ignore[no-untyped-call]
            seg_loss.spatial_softmax(leaf).sum().backward()  # type: ignore[no-untyped-call]
            small = x[:, :, ::8, ::8].detach().requires_grad_()
            loss = seg_loss.upsampled_cross_entropy(small, y, check_labels=check_labels)
            (loss * 3).backward()  # type: ignore[no-untyped-call]

        everything()
        wait(device)
        with no_waiting():
            everything()
        wait(device)
    seg_loss.check()
    return "forward and backward of all, defer and ignore"


def check_graphs(device: torch.device, quick: bool) -> str:
    """A CUDA graph replayed over new contents gives the bits of a plain call."""
    if device.type != "cuda":
        raise Skipped("only a CUDA device has graphs")
    shapes = ((2, 19, 96, 128), (1, 150, 64, 64))
    for shape in shapes:
        x, y = make_logits(shape).to(device), make_labels(shape).to(device)
        y_of_ones = torch.ones_like(y)
        leaf = x.clone().requires_grad_()

        def direct(x: Tensor = x, y: Tensor = y) -> tuple[Tensor, ...]:
            return seg_loss.loss_and_gradient(x, y)  # "raise", which a capture defers

        def trained(leaf: Tensor = leaf, y: Tensor = y) -> tuple[Tensor, ...]:
            loss = seg_loss.spatial_cross_entropy(leaf, y, check_labels="defer")
            return loss.detach(), *torch.autograd.grad(2 * loss, leaf)

        def upsampled(leaf: Tensor = leaf, y: Tensor = y) -> tuple[Tensor, ...]:
            loss = seg_loss.upsampled_cross_entropy(leaf[:, :, ::4, ::4], y, check_labels="defer")
            return loss.detach(), *torch.autograd.grad(2 * loss, leaf)

        for call in (direct, trained, upsampled):
            graph, results = captured(call)
            for factor, labels in ((1.0, y.clone()), (-0.5, y.clone()), (2.0, y_of_ones)):
                with torch.no_grad():
                    x.copy_(make_logits(shape).to(device) * factor)
                    leaf.copy_(x)
                    y.copy_(labels)
                graph.replay()
                wait(device)
                kept = [result.clone() for result in results]
                for name, got, plain in zip(("loss", "gradient"), kept, call(), strict=True):
                    expect_same_bits(f"{shape} {call.__name__} {name}", got, plain)
            with torch.no_grad():
                y[0, 3, 5] = 200
            graph.replay()
            message = refusal(seg_loss.check)
            expect(message.startswith("labels:"), f"a bad label in a replay: {message!r}")
            y.copy_(make_labels(shape))
    return "loss_and_gradient, forward+backward, upsampled; 3 contents each, and a bad label"


def captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The call as a CUDA graph, and the memory where replays leave its results."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


def check_compile(device: torch.device, quick: bool) -> str:
    """torch.compile(fullgraph=True) takes forward and backward, and changes no result."""
    shapes = (USUAL,) if quick else (USUAL, (1, 150, 64, 64))
    for shape in shapes:
        logits, labels = make_logits(shape), make_labels(shape)
        x, y = logits.to(device), labels.to(device)
        torch._dynamo.reset()

        @torch.compile(fullgraph=True)
        def halved(leaf: Tensor, y: Tensor) -> Tensor:
            return 0.5 * seg_loss.spatial_cross_entropy(2 * leaf, y, check_labels="defer")

        leaf = x.clone().requires_grad_()
        loss = halved(leaf, y)
        (gradient,) = torch.autograd.grad(loss, leaf)
        wide = logits.double().requires_grad_()
        truth = 0.5 * torch_loss(2 * wide, labels)
        by_torch, gradient_by_torch = torch_loss_and_gradient(2 * logits, labels)
        assert_accurate("loss", loss.detach().cpu(), truth.detach(), 0.5 * by_torch)
        (truth_gradient,) = torch.autograd.grad(truth, wide)
        assert_accurate("gradient", gradient.cpu(), truth_gradient, gradient_by_torch)
    seg_loss.check()
    return f"{len(shapes)} shapes"


def refusal(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """What the call says when it refuses; empty if it does not."""
    try:
        call(*arguments, **options)
    except seg_loss.InvalidInput as refused:
        return str(refused)
    return ""


def check_bad_labels(device: torch.device, quick: bool) -> str:
    """Bad labels and weights are named as on the CPU, and harm nothing."""
    shape = USUAL
    logits, good = make_logits(shape), make_labels(shape, torch.int64)
    x, fine = logits.to(device), good.to(device)
    before = seg_loss.loss_and_gradient(x, fine)
    calls = 0
    for bad, dtype in (
        (-1, torch.int64), (21, torch.uint8), (254, torch.uint8), (1 << 40, torch.int64),
        (-128, torch.int8), (-(1 << 62), torch.int64),
    ):  # fmt: skip
        labels = make_labels(shape, dtype)
        void: dict[str, Any] = {"ignore_index": -1 if dtype == torch.int8 else 255}
        labels[1, 5, 7] = labels[1, -3, 2] = labels[0, -1, -1] = bad
        y = labels.to(device)
        spoken = refusal(on_cpu, logits, labels, **void)
        for name, call in _calls_on(x, y, void).items():
            got = refusal(call, "raise")
            expect(got and got == spoken, f"{name}, label {bad}: {got!r}, on the CPU {spoken!r}")
            expect(not refusal(call, "defer"), f"{name}: defer spoke at once")
            wait(device)
            late = refusal(seg_loss.loss_and_gradient, x, fine)
            expect(late == spoken, f"{name}, label {bad}: the next call said {late!r}")
            expect(not refusal(seg_loss.check), "a report was given twice")
            expect(not refusal(call, "defer"), f"{name}: defer spoke at once")
            late = refusal(seg_loss.check)
            expect(late == spoken, f"{name}, label {bad}: check() said {late!r}")
            expect(not refusal(call, "ignore"), f"{name}: ignore spoke")
            expect(not refusal(seg_loss.check), f"{name}: ignore left a report")
            calls += 1
        loss, gradient = seg_loss.loss_and_gradient(x, y, **void, check_labels="ignore")
        y[y == bad] = void["ignore_index"]
        plain = seg_loss.loss_and_gradient(x, y, **void)
        expect_same_bits(f"loss with {bad} ignored", loss, plain[0])
        expect_same_bits(f"gradient with {bad} ignored", gradient, plain[1])
    for value in (-1.0, math.nan, math.inf):
        for name, size in (("class_weight", (21,)), ("pixel_weight", tuple(good.shape))):
            weight = torch.ones(size)
            weight[-1] = value
            if name == "pixel_weight":
                weight[0, :3, :3] = value
            spoken = refusal(on_cpu, logits, good, **{name: weight})
            there: dict[str, Any] = {name: weight.to(device)}
            got = refusal(seg_loss.loss_and_gradient, x, fine, **there)
            expect(got and got == spoken, f"{name} {value}: {got!r}, on the CPU {spoken!r}")
            seg_loss.loss_and_gradient(x, fine, **there, check_labels="defer")
            late = refusal(seg_loss.check)
            expect(late == spoken, f"{name} {value}: check() said {late!r}")
            calls += 1
    after = seg_loss.loss_and_gradient(x, fine)
    expect_same_bits("loss after it all", after[0], before[0])
    expect_same_bits("gradient after it all", after[1], before[1])
    return f"{calls} bad calls"


def on_cpu(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """The backend whose words are the measure."""
    return seg_loss.spatial_cross_entropy(logits, labels, **options)


def _calls_on(
    x: Tensor, y: Tensor, void: Mapping[str, Any]
) -> dict[str, Callable[[str], object]]:  # fmt: skip
    return {
        "loss_and_gradient": lambda how: seg_loss.loss_and_gradient(
            x, y, **void, check_labels=how
        ),
        "spatial_cross_entropy": lambda how: seg_loss.spatial_cross_entropy(
            x.detach().requires_grad_(), y, **void, check_labels=how
        ),
        "pixel_nll": lambda how: seg_loss.pixel_nll(x, y, **void, check_labels=how),
        "evaluate": lambda how: seg_loss.evaluate(x, y, **void, check_labels=how),
    }  # fmt: skip


def check_edge_values(device: torch.device, quick: bool) -> str:
    """What ignored pixels hold stays there; nothing valid; all -inf; huge logits."""
    shape = USUAL
    labels = make_labels(shape)
    y = labels.to(device)
    ignored = (y == 255)[:, None].expand(shape)
    for dtype in FLOATS:
        x = make_logits(shape, dtype).to(device)
        plain = seg_loss.loss_and_gradient(x, y)
        for value in (math.nan, math.inf, -math.inf):
            spoilt = torch.where(ignored, torch.tensor(value, dtype=dtype, device=device), x)
            got = seg_loss.loss_and_gradient(spoilt, y)
            expect_same_bits(f"loss with {value} at ignored pixels", got[0], plain[0])
            expect_same_bits(f"gradient with {value} at ignored pixels", got[1], plain[1])
            expect(is_positive_zero(got[1][ignored]), f"{value}: gradient there is not +0")
        for normalization in ("valid", "weight", "full"):
            bad = torch.full_like(x, math.nan)
            nothing = torch.full_like(y, 255)
            leaf = bad.requires_grad_()
            loss = seg_loss.spatial_cross_entropy(leaf, nothing, normalization=normalization)
            loss.backward()  # type: ignore[no-untyped-call]
            cost = float(loss.detach())
            expect(cost == 0, f"{dtype} {normalization}: nothing valid costs {cost}")
            expect(leaf.grad is not None and is_positive_zero(leaf.grad), "gradient is not +0")
        hopeless = torch.full_like(x, -math.inf)
        loss, _ = seg_loss.loss_and_gradient(hopeless, y)
        expect(math.isnan(float(loss)), f"{dtype}: all -inf costs {float(loss)}, not NaN")
        partly = x.clone()
        partly[:, 3] = -math.inf
        some = torch.where(labels == 3, 255, labels)
        loss, gradient = seg_loss.loss_and_gradient(partly, some.to(device))
        expect(math.isfinite(float(loss)), f"{dtype}: one class of -inf costs {float(loss)}")
        expect(not gradient[:, 3].any(), f"{dtype}: the gradient of -inf is not 0")
        huge = x.double().sign().to(dtype) * 1e4
        leaf = huge.cpu().double().requires_grad_()
        truth = torch_loss(leaf, labels)
        by_torch, gradient_by_torch = torch_loss_and_gradient(huge.cpu(), labels)
        (truth_gradient,) = torch.autograd.grad(truth, leaf)
        loss, gradient = seg_loss.loss_and_gradient(huge, y)
        assert_accurate(f"{dtype} loss of +-1e4", loss.cpu(), truth.detach(), by_torch)
        assert_accurate(
            f"{dtype} gradient of +-1e4", gradient.cpu(), truth_gradient, gradient_by_torch
        )
        spotted = x.clone()
        spotted[0, 2, 0, 0] = math.nan
        first = y.clone()
        first[0, 0, 0] = 1
        loss, gradient = seg_loss.loss_and_gradient(spotted, first)
        expect(math.isnan(float(loss)), f"{dtype}: NaN at a valid pixel is hidden")
        expect(int(gradient.isnan().sum()) == shape[1], f"{dtype}: NaN reached other pixels")
        found = seg_loss.evaluate(spotted, first)
        expect(found.non_finite_pixels == 1, f"{dtype}: {found.non_finite_pixels} non-finite")
    return "NaN, inf, -inf, +-1e4, nothing valid, in four dtypes"


def check_grad_output(device: torch.device, quick: bool) -> str:
    """Upstream gradients other than 1, a second backward pass, and a GradScaler's."""
    shape = USUAL
    for dtype in FLOATS:
        logits, labels = make_logits(shape, dtype), make_labels(shape)
        y = labels.to(device)
        wide = logits.double().requires_grad_()
        (truth,) = torch.autograd.grad(torch_loss(wide, labels), wide)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        narrow = logits.to(exact).requires_grad_()
        (theirs,) = torch.autograd.grad(torch_loss(narrow, labels), narrow)
        upstream = torch.tensor([7.0, 3.0], dtype=exact, device=device)[1:].expand(7)[2]
        roots: dict[str, tuple[float, Callable[[Tensor], Tensor], Tensor | None]] = {
            "times 3": (3, lambda loss: loss * 3, None),
            "times 1024": (1024, lambda loss: loss * 1024, None),
            "times 65536": (65536, lambda loss: loss * 65536, None),
            "times 0": (0, lambda loss: loss * 0, None),
            "negative": (-1, lambda loss: -loss, None),
            "expanded": (3, lambda loss: loss.expand(3).sum(), None),
            "a view": (3, lambda loss: loss, upstream),
        }
        for name, (factor, root, above) in roots.items():
            x = logits.to(device).requires_grad_()
            loss = root(seg_loss.spatial_cross_entropy(x, y))
            got = torch.autograd.grad(loss, x, above)[0].cpu()
            by_torch = (factor * theirs).to(dtype)
            if not bool(by_torch.isfinite().all()):
                continue
            assert_accurate(f"{dtype} {name}", got, factor * truth, by_torch)
        x = logits.to(device).requires_grad_()
        loss = seg_loss.spatial_cross_entropy(x, y)
        (first,) = torch.autograd.grad(loss, x, retain_graph=True)
        kept = first.clone()
        first.mul_(5)  # the caller's own: no later pass may see it
        (second,) = torch.autograd.grad(loss, x, retain_graph=True)
        (third,) = torch.autograd.grad(2 * loss, x)
        expect_same_bits(f"{dtype} second backward", second, kept)
        assert_accurate(f"{dtype} third", third.cpu(), 2 * truth, (2 * theirs).to(dtype))
    _check_scaler(device, quick)
    return "seven upstreams in four dtypes, retained graphs, a GradScaler at 2 M pixels"


def _check_scaler(device: torch.device, quick: bool) -> None:
    """The gradient of a mean over 2 M pixels is subnormal in float16 but for the scale."""
    size = (1000, 2000) if device.type == "cuda" else (20, 30)
    shape = (1, 2, *size)
    logits, labels = make_logits(shape, torch.float16), make_labels(shape)
    scaler = torch.amp.GradScaler(device.type, init_scale=65536.0)
    x = logits.to(device).requires_grad_()
    scaled = scaler.scale(seg_loss.spatial_cross_entropy(x, labels.to(device)))
    scaled.backward()  # type: ignore[no-untyped-call]
    wide = logits.double().requires_grad_()
    (truth,) = torch.autograd.grad(65536 * torch_loss(wide, labels), wide)
    narrow = logits.float().requires_grad_()
    (theirs,) = torch.autograd.grad(65536 * torch_loss(narrow, labels), narrow)
    assert x.grad is not None
    assert_accurate("GradScaler", x.grad.cpu(), truth, theirs.half())


def check_large(device: torch.device, quick: bool) -> str:
    """More than 2^31 elements, in one image, over images, and more than 2^31 pixels."""
    if device.type != "cuda":
        raise Skipped("gigabytes, on a CUDA device only")
    shapes = [(1, 19, 12000, 12000), (120, 19, 1024, 1024), (1, 2, 46400, 46400)]
    for shape in shapes[: 2 if quick else None]:
        torch.cuda.empty_cache()
        torch.manual_seed(0)
        x = torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 3)
        y = torch.randint(0, shape[1], (shape[0], *shape[2:]), dtype=torch.uint8, device=device)
        y[:, ::9, ::3] = 255
        loss, gradient = seg_loss.loss_and_gradient(x, y, normalization="none")
        total = 0.0
        rows = 1000 if shape[0] == 1 else shape[2]
        for image in range(shape[0]):
            for first in range(0, shape[2], rows):
                band = slice(first, first + rows)
                total += float(
                    seg_loss.spatial_cross_entropy(
                        x[image : image + 1, :, band], y[image : image + 1, band],
                        normalization="none",
                    )
                )  # fmt: skip
        expect_close(f"{shape} loss against the sum of its parts", float(loss), total, 1e-5)
        for rows_there in (slice(-5, None), slice(0, 5), slice(shape[2] // 2, shape[2] // 2 + 5)):
            part, its = x[-1:, :, rows_there].contiguous(), y[-1:, rows_there].contiguous()
            _, alone = seg_loss.loss_and_gradient(part, its, normalization="none")
            expect_same_bits(f"{shape} rows {rows_there}", gradient[-1:, :, rows_there], alone)
        del loss, gradient
        leaf = x.detach().requires_grad_()
        scaled = 3 * seg_loss.spatial_cross_entropy(leaf, y, normalization="none")
        scaled.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        last = x[-1:, :, -5:].clone().requires_grad_()
        thrice = 3 * seg_loss.spatial_cross_entropy(last, y[-1:, -5:], normalization="none")
        thrice.backward()  # type: ignore[no-untyped-call]
        assert last.grad is not None
        expect_same_bits(f"{shape} last rows, upstream 3", leaf.grad[-1:, :, -5:], last.grad)
        del leaf, scaled
        nll = seg_loss.pixel_nll(x, y)
        expect_same_bits(
            f"{shape} pixel_nll", nll[-1:, -5:],
            seg_loss.pixel_nll(x[-1:, :, -5:].contiguous(), y[-1:, -5:]),
        )  # fmt: skip
        y[-1, -1, -1] = 77
        said = refusal(seg_loss.loss_and_gradient, x, y, out=x)
        place = f"77 at ({shape[0] - 1}, {shape[2] - 1}, {shape[3] - 1})"
        expect(place in said, f"{shape}: a bad label at the very end: {said!r}")
        del x, y, nll
    return ", ".join("x".join(map(str, shape)) for shape in shapes[: 2 if quick else None])


def check_peak_memory(device: torch.device, quick: bool) -> str:
    """Beyond logits, labels and gradient at most 4 bytes a pixel."""
    if device.type != "cuda":
        raise Skipped("torch counts the memory of CUDA devices only")
    figures = []
    for shape in ((1, 19, 1024, 2048), (8, 150, 512, 512)):
        x = torch.randn(shape, device=device)
        y = torch.randint(0, shape[1], (shape[0], *shape[2:]), device=device).to(torch.uint8)
        leaf = x.detach().requires_grad_()

        def direct(x: Tensor = x, y: Tensor = y) -> object:
            return seg_loss.loss_and_gradient(x, y)

        def trained(leaf: Tensor = leaf, y: Tensor = y) -> object:
            return torch.autograd.grad(seg_loss.spatial_cross_entropy(leaf, y), leaf)

        def scaled(leaf: Tensor = leaf, y: Tensor = y) -> object:
            return torch.autograd.grad(2 * seg_loss.spatial_cross_entropy(leaf, y), leaf)

        for call in (direct, trained, scaled):
            call()
            beyond = peak_beyond(call) - x.nbytes
            a_pixel = beyond / y.numel()
            expect(a_pixel <= 4, f"{shape} {call.__name__}: {a_pixel:.2f} bytes a pixel")
            figures.append(f"{call.__name__} {a_pixel:.3f}")
        small = x[:, :, ::8, ::8].contiguous()

        def upsampled(small: Tensor = small, y: Tensor = y) -> object:
            return seg_loss.loss_and_gradient(small, y, upsampling=PLAIN)

        upsampled()
        a_pixel = (peak_beyond(upsampled) - small.nbytes) / y.numel()
        expect(a_pixel <= 0.1, f"{shape} upsampled: {a_pixel:.3f} bytes a pixel")
        figures.append(f"upsampled {a_pixel:.3f}")
    return "bytes a pixel: " + ", ".join(figures)


def peak_beyond(call: Callable[[], object]) -> int:
    """Bytes that the call has at its peak beyond those that were there before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def check_sanitizer(device: torch.device, quick: bool) -> str:
    """compute-sanitizer finds no access outside an allocation."""
    tool = shutil.which("compute-sanitizer", path=os.environ["PATH"] + ":/usr/local/cuda/bin")
    if device.type != "cuda" or tool is None:
        raise Skipped("compute-sanitizer is not installed")
    # Torch's cache of memory would hide what lies beyond a tensor.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m"]
    try:
        done = subprocess.run(
            [*command, "benchmarks.gpu", "--sanitized-child"],
            capture_output=True, text=True, check=False, env=environment, timeout=60,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        raise Skipped("compute-sanitizer took more than 60 s") from late
    said = done.stdout + done.stderr
    unable = ("not supported", "Unable to", "Internal Sanitizer", "Target application terminated")
    if done.returncode != 9 and any(words in said for words in unable):
        line = next(line for line in said.splitlines() if any(words in line for words in unable))
        raise Skipped(line.strip("= "))
    summary = [line.strip("= ") for line in said.splitlines() if "ERROR SUMMARY" in line]
    expect(done.returncode == 0 and summary, f"exit {done.returncode}: {said[:1500]}")
    return summary[-1]


def run_sanitized(device: torch.device) -> None:
    """What runs under the sanitizer: odd shapes, every kernel, and bad labels."""
    for shape in ((3, 3, 15, 17), USUAL, (1, 150, 17, 31), (1, 5000, 1, 3)):
        x = placed(make_logits(shape), device).requires_grad_()
        y = placed(make_labels(shape, torch.int64), device)
        (2 * seg_loss.spatial_cross_entropy(x, y)).backward()  # type: ignore[no-untyped-call]
        seg_loss.spatial_softmax(x).sum().backward()  # type: ignore[no-untyped-call]
        seg_loss.evaluate(x, y, maps=MAPS)
        y[0, 0, 0], y[0, 0, 1] = 1 << 40, -5
        seg_loss.loss_and_gradient(x, y, torch.ones(shape[1], device=device), check_labels="ignore")
        seg_loss.evaluate(x, y, check_labels="ignore")
    for item in (
        UpsampledItem((2, 21, 5, 9), (37, 71)),
        UpsampledItem((1, 150, 6, 7), (17, 31), FCN_8S),
        UpsampledItem((1, 300, 2, 3), (9, 11), ALIGNED),
    ):
        scores, labels, _ = item.tensors()
        x, y = placed(scores, device), placed(labels.long(), device)
        y[0, 0, 0], y[0, 0, 1] = 1 << 40, -5
        how: dict[str, Any] = {"upsampling": item.upsampling, "check_labels": "ignore"}
        seg_loss.loss_and_gradient(x, y, **how)
        seg_loss.evaluate(x, y, **how, maps=MAPS)
    wait(device)
    print("sanitized child: done", flush=True)


# -- the table ---------------------------------------------------------------------------------

_FEW = (1, 2, 8, 9, 19, 21, 32, 33)
_MORE = (59, 64, 65, 150, 151, 256, 257)
_MANY = (512, 1000, 2048, 4096, 5000)


def _grid(name: str, items: Callable[[bool], list[Item]]) -> Check:
    return Check(
        f"grid: {name}", lambda device, quick: check_items(items(quick), device, check_item)
    )


def _upsampled(name: str, items: Callable[[bool], list[UpsampledItem]]) -> Check:
    return Check(
        f"upsampled: {name}",
        lambda device, quick: check_items(items(quick), device, check_upsampled_item),
    )


def _by_classes(name: str, classes: Sequence[int]) -> Check:
    return _grid(name, lambda quick: _items_of_classes(classes, quick=quick))


# The longest come first, so that all are done soonest.
CHECKS = (
    Check("more than 2^31 elements", check_large),
    _by_classes("up to 33 classes", _FEW),
    _by_classes("59 to 257 classes", _MORE),
    _by_classes("512 and 1000 classes", _MANY[:2]),
    _by_classes("2048 to 5000 classes", _MANY[2:]),
    *(
        _grid(
            f"layouts in {str(dtype)[6:]}",
            lambda quick, dtype=dtype: _items_of_layouts(dtype, quick=quick),  # type: ignore[misc]
        )
        for dtype in FLOATS
    ),
    _grid("options", lambda quick: _items_of_options(quick=quick)),
    *(
        _grid(
            f"softmax, pixel_nll, evaluate {place + 1} of 3",
            lambda quick, place=place: _items_of_everything(place, quick=quick),  # type: ignore[misc]
        )
        for place in range(3)
    ),
    _upsampled("ways", lambda quick: _upsampled_ways(quick=quick)),
    *(
        _upsampled(
            f"classes {place + 1} of 3",
            lambda quick, place=place: _upsampled_classes(place, quick=quick),  # type: ignore[misc]
        )
        for place in range(3)
    ),
    _upsampled("layouts and options", lambda quick: _upsampled_options(quick=quick)),
    Check("upsampled: evaluate", check_upsampled_evaluate),
    Check("upsampled: edges", check_upsampled_edges),
    _grid("the tests' shapes", lambda quick: _items_of_shapes()[:: 3 if quick else 1]),
    Check("torch.compile", check_compile),
    Check("compute-sanitizer", check_sanitizer, 100),
    Check("determinism", check_determinism),
    Check("bad labels and weights", check_bad_labels),
    Check("NaN, inf and nothing valid", check_edge_values),
    Check("grad_output", check_grad_output),
    Check("no waiting", check_no_waiting),
    Check("CUDA graphs", check_graphs),
    Check("peak memory", check_peak_memory),
)
