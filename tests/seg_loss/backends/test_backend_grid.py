"""Accuracy of every backend over shapes, numbers of classes, dtypes, layouts and options."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

import seg_loss
from seg_loss import Bilinear, Deconvolution
from seg_loss.constants import MAPS
from tests.support.backends import (
    DEFAULT_SHAPE,
    IS_SMALL,
    LARGE_IMAGE,
    MANY_CLASSES,
    SMALL_IMAGE,
    Depth,
    assert_close,
    numba_kernels,
)
from tests.support.cases import (
    ALIGNED,
    CASES,
    FCN_8S,
    FLOATS,
    LABEL_DTYPES,
    LAYOUTS,
    OPTIONS,
    UPSAMPLED_CASES,
    Case,
    assert_accurate,
    is_positive_zero,
    is_read,
    is_valid,
    loss_and_gradient_of,
    loss_of,
    make_inputs,
    make_options,
    same_bits,
    seed_of,
    torch_loss_and_gradient,
    true_logits,
    true_loss_and_gradient,
    with_void,
)

DEVICE_LAYOUTS = tuple(name for name in LAYOUTS if name != "between_bytes")  # no device allows that


@dataclass(frozen=True)
class Point:
    """A point of the grid, and how many functions are called there."""

    case: Case
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    label_dtype: torch.dtype = torch.uint8
    option: str = "plain"
    depth: Depth = Depth.FORWARD

    def __str__(self):
        dtypes = f"{str(self.dtype)[6:]}-{str(self.label_dtype)[6:]}"
        return f"{self.case.name}-{dtypes}-{self.layout}-{self.option}"

    def inputs(self):
        """Returns scores, labels, upsampling and options, on the CPU."""
        scores, labels, upsampling = make_inputs(
            self.case, self.dtype, label_dtype=self.label_dtype
        )
        options = with_void(make_options(self.option, self.case.full_shape), labels)
        return LAYOUTS[self.layout](scores), labels, upsampling, options


def logits(shape, *arguments, **fields):
    return Point(Case(shape, ""), *arguments, **fields)


def scores(shape, size, upsampling=Bilinear(), *arguments, **fields):  # noqa: B008 - immutable
    return Point(Case(shape, "", size, upsampling), *arguments, **fields)


def each(points):
    return pytest.mark.parametrize("point", points, ids=str)


# -- checks ------------------------------------------------------------------------------------


def check(backend, point):
    """Loss and gradient at a point, and the other functions of its depth, against float64."""
    scores, labels, upsampling, options = point.inputs()
    x, here = backend.place(scores), backend.place_options(options)
    y = labels
    if (
        upsampling is None
        and labels.ndim > 1
        and point.layout in ("transposed", "sliced", "cropped", "shifted")
    ):
        y = LAYOUTS[point.layout](labels)
    y = backend.place(y)
    truth, true_gradient = true_loss_and_gradient(scores, labels, **options, upsampling=upsampling)
    by_torch, torch_gradient = torch_loss_and_gradient(
        scores, labels, **options, upsampling=upsampling
    )
    scale = 1.0 if scores.shape[1] == 1 else None  # for one class the truth is 1 - 1

    with torch.no_grad():
        forward = loss_of(x, y, upsampling, **here)
    loss, gradient = loss_and_gradient_of(x, y, upsampling, **here)
    assert_accurate("loss", loss.cpu(), truth, by_torch)
    # Two kernels: the compiler may add the classes in another order.
    assert_close("loss without gradient", float(forward), float(loss), 1e-6)
    assert_accurate("gradient", gradient.cpu(), true_gradient, torch_gradient, scale=scale)
    assert gradient.stride() == torch.empty_like(x).stride()
    read = is_read(labels, scores.shape, upsampling, options["ignore_index"])
    assert is_positive_zero(gradient.cpu()[~read.expand_as(gradient)])
    if point.depth >= Depth.TRAINING:
        check_training(backend, point, x, y, here, gradient, true_gradient, torch_gradient)
    if point.depth >= Depth.EVERYTHING:
        only = {name: options[name] for name in ("ignore_index", "temperature") if name in options}
        check_pixel_nll(backend, scores, labels, only, x, y)
        check_softmax(backend, scores, x, float(options.get("temperature", 1.0)))
        check_evaluation(backend, scores, labels, options, x, y)


def check_training(backend, point, x, y, options, gradient, truth, by_torch):
    """Autograd, for a `grad_output` of 1 and of 3, and the caller's memory for the gradient."""
    upsampling = point.case.upsampling
    leaf = x.detach().requires_grad_()
    loss = loss_of(leaf, y, upsampling, **options)
    (got,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    assert same_bits(got, gradient), "gradient by autograd"
    (got,) = torch.autograd.grad(3 * loss, leaf)
    scale = 3.0 if x.shape[1] == 1 else None
    by_torch = (3 * by_torch.double()).to(point.dtype)
    assert_accurate("gradient for grad_output 3", got.cpu(), 3 * truth, by_torch, scale=scale)
    if point.layout == "expanded":
        return
    out = torch.full(x.shape, torch.nan).to(point.dtype)
    out = backend.place(LAYOUTS[point.layout](out))
    loss_and_gradient_of(x, y, upsampling, **options, out=out)
    assert same_bits(out, gradient), "out="
    loss_and_gradient_of(out.copy_(x), y, upsampling, **options, out=out)
    assert same_bits(out, gradient), "out=scores"


def check_pixel_nll(backend, logits, labels, options, x, y):
    target = torch.where(is_valid(labels, options["ignore_index"]), labels.long(), -100)
    grad_output = torch.randn(labels.shape, generator=seed_of("upstream"), dtype=torch.float64)

    def by_torch(dtype):
        leaf = logits.detach().to(dtype).requires_grad_()
        terms = F.cross_entropy(leaf / options.get("temperature", 1.0), target, reduction="none")
        (gradient,) = torch.autograd.grad(terms, leaf, grad_output.to(dtype))
        return terms.detach(), gradient

    truth, true_gradient = by_torch(torch.float64)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    torch_terms, torch_gradient = by_torch(wide)
    leaf = x.detach().requires_grad_()
    got = seg_loss.pixel_nll(leaf, y, **options)
    (gradient,) = torch.autograd.grad(got, leaf, grad_output.to(wide).to(backend.device))
    scale = float(grad_output.abs().max()) if logits.shape[1] == 1 else None
    assert_accurate("pixel_nll", got.detach().cpu(), truth, torch_terms)
    torch_gradient = torch_gradient.to(logits.dtype)
    assert_accurate(
        "gradient of pixel_nll", gradient.cpu(), true_gradient, torch_gradient, scale=scale
    )


def check_softmax(backend, logits, x, temperature):
    grad_output = torch.randn(logits.shape, generator=seed_of("upstream"), dtype=torch.float64)
    grad_output = grad_output.to(logits.dtype)

    def by_torch(dtype):
        leaf = logits.detach().to(dtype).requires_grad_()
        p = torch.softmax(leaf / temperature, 1)
        (gradient,) = torch.autograd.grad(p, leaf, grad_output.to(dtype))
        return p.detach(), gradient

    truth, true_gradient = by_torch(torch.float64)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    torch_p, torch_gradient = by_torch(wide)
    leaf = x.detach().requires_grad_()
    got = seg_loss.spatial_softmax(leaf, temperature=temperature)
    (gradient,) = torch.autograd.grad(got, leaf, grad_output.to(backend.device))
    assert_accurate("softmax", got.detach().cpu(), truth, torch_p.to(logits.dtype))
    # p (g - sum g p) may cancel, so the scale is that of g.
    scale, torch_gradient = float(grad_output.abs().max()), torch_gradient.to(logits.dtype)
    assert_accurate(
        "gradient of softmax", gradient.cpu(), true_gradient, torch_gradient, scale=scale
    )


def check_evaluation(backend, logits, labels, options, x, y, upsampling=None):
    """Compares `evaluate` of x with `evaluate` of these logits by the CPU kernels.

    Integers are equal, except where two classes, or a confidence and the edge of a bin, are closer
    than rounding. Floats are close. The maps do not change the other results.
    """
    here = {**backend.place_options(options), "upsampling": upsampling}
    got = seg_loss.evaluate(x, y, **here, maps=MAPS)
    with numba_kernels():
        expected = seg_loss.evaluate(logits, labels, **options, maps=MAPS)
    temperature = options.get("temperature", 1.0)
    spread = max(1.0, float(logits.double().abs().max()) / temperature)
    tolerance = 32 * torch.finfo(torch.float32).eps * spread
    for name in ("loss", "divisor", "uniform_loss"):
        assert_close(name, getattr(got, name), getattr(expected, name), 1e-5)
    for name in ("valid_pixels", "ignored_pixels", "non_finite_pixels"):
        assert getattr(got, name) == getattr(expected, name), name
    for a, b in zip(got.per_image, expected.per_image, strict=True):
        assert_close("loss of an image", a.loss, b.loss, 1e-5)
        assert a.valid_pixels == b.valid_pixels
    for a, b in zip(got.per_class, expected.per_class, strict=True):
        assert a.pixels == b.pixels
        if a.mean_nll is not None and b.mean_nll is not None:
            assert_close("nll of a class", a.mean_nll, b.mean_nll, 1e-5)

    maps = {name: values.cpu() for name, values in got.maps.items()}
    for name in ("nll", "confidence", "entropy", "top_probabilities"):
        error = float((maps[name] - expected.maps[name]).abs().max()) if labels.numel() else 0.0
        assert error <= tolerance, name
    p = torch.softmax(logits.double() / temperature, dim=1)
    selected = p.gather(1, maps["top_classes"].long())
    error = float((selected - maps["top_probabilities"]).abs().max()) if labels.numel() else 0.0
    assert error <= tolerance, "probabilities of top_classes"
    assert torch.equal(maps["prediction"], maps["top_classes"][:, 0])
    if torch.equal(maps["prediction"], expected.maps["prediction"]):
        assert torch.equal(got.confusion, expected.confusion)
    assert int(got.confusion.sum()) == got.valid_pixels
    position = expected.maps["confidence"].double() * 15
    near_an_edge = int(((position - position.round()).abs() < 15 * tolerance).sum())
    for a, b in zip(got.calibration.bins, expected.calibration.bins, strict=True):
        assert abs(a.pixels - b.pixels) <= near_an_edge
    without_maps = seg_loss.evaluate(x, y, **here)
    assert_close("loss without maps", without_maps.loss, got.loss, 1e-6)
    assert torch.equal(without_maps.confusion, got.confusion)


# -- logits ------------------------------------------------------------------------------------


def points_of_shapes():
    rotation = zip(
        CASES,
        itertools.cycle(FLOATS),
        itertools.cycle(DEVICE_LAYOUTS),
        itertools.cycle(LABEL_DTYPES),
        itertools.cycle(OPTIONS),
    )
    points = [Point(*values, depth=Depth.TRAINING) for values in rotation]
    return points[:: 3 if IS_SMALL else 1]


@each(points_of_shapes())
def test_shapes(backend, point):
    check(backend, point)


def points_of_classes():
    """Numbers of classes of every row of the tables; up to 65 with images not merged into one."""
    groups = (
        (1, 2, 8, 9, 19, 21, 32, 33),
        (59, 64, 65, 150, 151, 256, 257),
        (512, 1000),
        (2048, 4096, 5000),
    )
    points = []
    for group in groups:
        rotation = itertools.cycle((torch.uint8, torch.int16, torch.int32, torch.int64))
        for num_classes in group[:: 3 if IS_SMALL else 1]:
            shape = (1, num_classes, *SMALL_IMAGE)
            if num_classes <= 512:
                shape = (2, num_classes, *(LARGE_IMAGE if num_classes <= 65 else DEFAULT_SHAPE[2:]))
            points.append(logits(shape, torch.float32, "contiguous", next(rotation)))
            points.append(logits(shape, torch.bfloat16, "channels_last", next(rotation)))
    return points


@each(points_of_classes())
def test_numbers_of_classes(backend, point):
    check(backend, point)


def points_of_layouts():
    shapes = (DEFAULT_SHAPE,) if IS_SMALL else (DEFAULT_SHAPE, (3, 3, 15, 17))
    for dtype in FLOATS:
        rotation = itertools.cycle(LABEL_DTYPES)
        for shape, layout in itertools.product(shapes, DEVICE_LAYOUTS):
            yield logits(shape, dtype, layout, next(rotation), depth=Depth.TRAINING)


@each(list(points_of_layouts()))
def test_layouts(backend, point):
    check(backend, point)


def points_of_options():
    shapes = (DEFAULT_SHAPE,) if IS_SMALL else (DEFAULT_SHAPE, MANY_CLASSES)
    rotation = itertools.cycle((torch.float32, torch.bfloat16))
    for shape, option in itertools.product(shapes, OPTIONS):
        yield logits(shape, next(rotation), option=option, depth=Depth.TRAINING)
    yield logits(
        DEFAULT_SHAPE, torch.float64, "channels_last", torch.int8, "everything", Depth.TRAINING
    )


@each(list(points_of_options()))
def test_options(backend, point):
    check(backend, point)


def points_of_everything():
    points = [
        logits(DEFAULT_SHAPE),
        logits(DEFAULT_SHAPE, torch.bfloat16, "channels_last", option="temperature"),
        logits(MANY_CLASSES),
        logits((1, 5000, 3, 5)),
        logits((2, 3, 5, 6, 7), torch.float64, label_dtype=torch.int64, option="everything"),
        logits((5, 10), torch.float16, option="class_weight"),
        logits((1, 1, 3, 5)),
        logits((2, 257, *DEFAULT_SHAPE[2:]), torch.bfloat16, label_dtype=torch.int16),
        logits((1, 1000, 9, 13), layout="channels_last"),
        logits((3, 2, *LARGE_IMAGE), torch.float16, "sliced", option="label_smoothing"),
    ]
    return points[: 3 if IS_SMALL else None]


@each(points_of_everything())
def test_softmax_pixel_nll_and_evaluation(backend, point):
    check(backend, Point(**{**vars(point), "depth": Depth.EVERYTHING}))


# -- upsampled scores --------------------------------------------------------------------------


def points_of_upsampled_cases():
    """The cases; full ones with one number of classes and one dtype, which compiles few kernels."""
    if not IS_SMALL:
        return [
            scores((case.shape[0], 21, *case.shape[2:]), case.size, case.upsampling)
            for case in UPSAMPLED_CASES
        ]
    small = [case for case in UPSAMPLED_CASES if math.prod(case.full_shape) <= 400] + [
        Case((1, 3, 3, 3), "", (5, 4), Deconvolution(2, crop=(1, 2))),
        Case((1, 3, 2, 2), "", (7, 6), Deconvolution(3)),
        Case((1, 3, 5, 5), "", (6, 9), FCN_8S),
        Case((1, 3, 2, 3), "", (5, 8), ALIGNED),
    ]
    rotation = zip(small, itertools.cycle(FLOATS), itertools.cycle(LABEL_DTYPES))
    return [Point(case, dtype, label_dtype=label_dtype) for case, dtype, label_dtype in rotation]


@each(points_of_upsampled_cases())
def test_upsampled_cases(backend, point):
    check(backend, point)


def points_of_upsampled_classes():
    """Numbers of classes at both ends of every row of the table."""
    if IS_SMALL:
        points = [scores((1, n, 2, 2), (3, 4)) for n in (1, 3, 7, 19, 33, 150, 200)]
        return [*points, scores((1, 257, 1, 2), (2, 3), option="everything")]
    ends = [n + more for n in (6, 12, 24, 64, 160, 256) for more in (0, 1)]
    shape, size = (5, 19), (37, 150)
    return [
        *(scores((2, n, *shape), size) for n in (1, *ends, 19, 150, 1000, 5000)),
        *(scores((2, n, *shape), (17, 129), FCN_8S, torch.bfloat16) for n in (19, 150)),
        *(scores((2, n, *shape), size, option="everything") for n in (19, 150, 300)),
    ]


@each(points_of_upsampled_classes())
def test_upsampled_numbers_of_classes(backend, point):
    check(backend, point)


def points_of_upsampled_options():
    shape, size = ((2, 5, 2, 2), (3, 4)) if IS_SMALL else ((2, 21, 9, 20), (67, 150))
    layouts = ("channels_last", "sliced") if IS_SMALL else DEVICE_LAYOUTS
    for layout, dtype in zip(layouts, itertools.cycle(FLOATS)):
        yield scores(shape, size, dtype=dtype, layout=layout, depth=Depth.TRAINING)
    dtypes = itertools.cycle((torch.float32, torch.bfloat16))
    for option in ("everything",) if IS_SMALL else OPTIONS:
        yield scores(shape, size, ALIGNED, next(dtypes), option=option, depth=Depth.TRAINING)


@each(list(points_of_upsampled_options()))
def test_upsampled_layouts_and_options(backend, point):
    check(backend, point)


def points_of_upsampled_evaluation():
    points = [
        scores((2, 5, 3, 4), (7, 9)),
        scores((1, 21, 5, 6), (11, 17), FCN_8S, torch.bfloat16, option="temperature"),
        scores((2, 3, 4, 5), (4, 5), ALIGNED, torch.float64, option="everything"),
        scores((1, 150, 9, 20), (67, 150), label_dtype=torch.int64),
        scores((1, 5000, 2, 3), (5, 6)),
    ]
    return points[: 3 if IS_SMALL else None]


@each(points_of_upsampled_evaluation())
def test_evaluation_of_upsampled_scores(backend, point):
    scores, labels, upsampling, options = point.inputs()
    logits = true_logits(scores, labels, upsampling)
    x, y = backend.place(scores), backend.place(labels)
    check_evaluation(backend, logits, labels, options, x, y, upsampling)
