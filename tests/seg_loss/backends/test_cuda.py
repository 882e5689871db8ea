"""What only a device has: asynchronous calls, CUDA graphs, its memory, over 2^31 elements."""

from contextlib import contextmanager

import pytest
import torch

import seg_loss
from seg_loss import Bilinear, InvalidInput
from tests.support.backends import DEFAULT_SHAPE, IS_SMALL, assert_close
from tests.support.cases import (
    Case,
    assert_accurate,
    make_inputs,
    make_labels,
    make_logits,
    same_bits,
    torch_loss_and_gradient,
    true_loss_and_gradient,
)


def error_of(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except InvalidInput as error:
        return str(error)
    return ""


@contextmanager
def no_synchronization():
    """Torch raises an error if the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("check_labels", ["defer", "ignore"])
def test_only_check_labels_raise_waits_for_the_device(cuda, check_labels):
    logits, labels, _ = make_inputs(Case((2, 21, 64, 96), ""))
    x, y = cuda.place(logits), cuda.place(labels)
    pixel_weight = torch.rand(y.shape, device=cuda.device)
    class_weight = torch.rand(21, device=cuda.device)

    def call_everything():
        leaf = x.detach().requires_grad_()
        seg_loss.spatial_cross_entropy(leaf, y, check_labels=check_labels).backward()
        scaled = seg_loss.spatial_cross_entropy(
            leaf, y, class_weight, pixel_weight=pixel_weight, normalization="weight",
            check_labels=check_labels,
        )  # fmt: skip
        (scaled * 3).backward()
        seg_loss.loss_and_gradient(x, y, check_labels=check_labels)
        seg_loss.pixel_nll(leaf, y, check_labels=check_labels).sum().backward()
        seg_loss.spatial_softmax(leaf).sum().backward()
        scores = x[:, :, ::8, ::8].detach().requires_grad_()
        loss = seg_loss.upsampled_cross_entropy(scores, y, check_labels=check_labels)
        (loss * 3).backward()

    call_everything()  # compiles, and copies the tables of the upsampling
    cuda.wait()
    with no_synchronization():
        call_everything()
    cuda.wait()
    seg_loss.check()


# -- CUDA graphs -------------------------------------------------------------------------------


def capture(call):
    """Returns the call as a CUDA graph, and the tensors that its replays write."""
    stream = torch.cuda.Stream()
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


@pytest.mark.parametrize("function", ["direct", "trained", "upsampled"])
@pytest.mark.parametrize("shape", [(2, 19, 96, 128), (1, 150, 64, 64)], ids=str)
def test_a_replayed_graph_gives_the_bits_of_a_call(cuda, shape, function):
    x, y = make_logits(shape).to(cuda.device), make_labels(shape).to(cuda.device)
    ones, leaf = torch.ones_like(y), x.clone().requires_grad_()

    def direct():
        return seg_loss.loss_and_gradient(x, y)  # "raise", which a capture defers

    def trained():
        loss = seg_loss.spatial_cross_entropy(leaf, y, check_labels="defer")
        return loss.detach(), *torch.autograd.grad(2 * loss, leaf)

    def upsampled():
        loss = seg_loss.upsampled_cross_entropy(leaf[:, :, ::4, ::4], y, check_labels="defer")
        return loss.detach(), *torch.autograd.grad(2 * loss, leaf)

    call = {"direct": direct, "trained": trained, "upsampled": upsampled}[function]
    graph, results = capture(call)
    for factor, labels in ((1.0, y.clone()), (-0.5, y.clone()), (2.0, ones)):
        with torch.no_grad():
            x.copy_(make_logits(shape).to(cuda.device) * factor)
            leaf.copy_(x)
            y.copy_(labels)
        graph.replay()
        cuda.wait()
        replayed = [result.clone() for result in results]
        for got, expected in zip(replayed, call(), strict=True):
            assert same_bits(got, expected)
    with torch.no_grad():
        y[0, 3, 5] = 200
    graph.replay()
    assert error_of(seg_loss.check).startswith("labels:"), "an invalid label in a replay"


# -- torch.compile -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [DEFAULT_SHAPE] if IS_SMALL else [DEFAULT_SHAPE, (1, 150, 64, 64)], ids=str
)
def test_inductor_compiles_a_full_graph(cuda, shape):
    logits, labels = make_logits(shape), make_labels(shape)
    x, y = logits.to(cuda.device), labels.to(cuda.device)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True)
    def halved(leaf, y):
        return 0.5 * seg_loss.spatial_cross_entropy(2 * leaf, y, check_labels="defer")

    leaf = x.clone().requires_grad_()
    loss = halved(leaf, y)
    (gradient,) = torch.autograd.grad(loss, leaf)
    truth, true_gradient = true_loss_and_gradient(2 * logits, labels)
    by_torch, torch_gradient = torch_loss_and_gradient(2 * logits, labels)
    assert_accurate("loss", loss.detach().cpu(), 0.5 * truth, 0.5 * by_torch)
    assert_accurate("gradient", gradient.cpu(), true_gradient, torch_gradient)
    seg_loss.check()


# -- memory ------------------------------------------------------------------------------------


def peak_bytes(call):
    """Returns the bytes that a call has at its peak in addition to those before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("shape", [(1, 19, 1024, 2048), (8, 150, 512, 512)], ids=str)
def test_peak_memory_beside_the_gradient_is_four_bytes_per_pixel(cuda, shape):
    x = torch.randn(shape, device=cuda.device)
    y = torch.randint(0, shape[1], (shape[0], *shape[2:]), device=cuda.device).to(torch.uint8)
    leaf = x.detach().requires_grad_()
    calls = {
        "direct": lambda: seg_loss.loss_and_gradient(x, y),
        "trained": lambda: torch.autograd.grad(seg_loss.spatial_cross_entropy(leaf, y), leaf),
        "scaled": lambda: torch.autograd.grad(2 * seg_loss.spatial_cross_entropy(leaf, y), leaf),
    }
    for name, call in calls.items():
        call()
        per_pixel = (peak_bytes(call) - x.nbytes) / y.numel()
        assert per_pixel <= 4, f"{name}: {per_pixel:.2f} bytes per pixel"
    scores = x[:, :, ::8, ::8].contiguous()

    def upsampled():
        return seg_loss.loss_and_gradient(scores, y, upsampling=Bilinear())

    upsampled()
    per_pixel = (peak_bytes(upsampled) - scores.nbytes) / y.numel()
    assert per_pixel <= 0.1, f"upsampled: {per_pixel:.3f} bytes per pixel"


# One test, so that parallel runs do not allocate these tensors at the same time.
def test_more_than_two_to_the_31_elements(cuda):
    """In one image, over images, and more than 2^31 pixels."""
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would double the time
    shapes = [(1, 19, 12000, 12000), (120, 19, 1024, 1024), (1, 2, 46400, 46400)]
    for shape in shapes[: 2 if IS_SMALL else None]:
        torch.cuda.empty_cache()
        x = torch.empty(shape, dtype=torch.bfloat16, device=cuda.device).normal_(0, 3)
        size = (shape[0], *shape[2:])
        y = torch.randint(0, shape[1], size, dtype=torch.uint8, device=cuda.device)
        y[:, ::9, ::3] = 255
        check_large(x, y)
        del x, y


def check_large(x, y):
    options = {"normalization": "none"}
    num_images, _, height, width = x.shape
    loss, gradient = seg_loss.loss_and_gradient(x, y, **options)
    total = 0.0
    step = 1000 if num_images == 1 else height
    for image in range(num_images):
        for first in range(0, height, step):
            rows = slice(first, first + step)
            part = x[image : image + 1, :, rows], y[image : image + 1, rows]
            total += float(seg_loss.spatial_cross_entropy(*part, **options))
    assert_close("loss and the sum of its parts", float(loss), total, 1e-5)
    for rows in (slice(-5, None), slice(0, 5), slice(height // 2, height // 2 + 5)):
        part = x[-1:, :, rows].contiguous(), y[-1:, rows].contiguous()
        _, expected = seg_loss.loss_and_gradient(*part, **options)
        assert same_bits(gradient[-1:, :, rows], expected)
    del loss, gradient
    leaf = x.detach().requires_grad_()
    (3 * seg_loss.spatial_cross_entropy(leaf, y, **options)).backward()
    last = x[-1:, :, -5:].clone().requires_grad_()
    (3 * seg_loss.spatial_cross_entropy(last, y[-1:, -5:], **options)).backward()
    assert same_bits(leaf.grad[-1:, :, -5:], last.grad)
    del leaf
    nll = seg_loss.pixel_nll(x, y)
    assert same_bits(nll[-1:, -5:], seg_loss.pixel_nll(x[-1:, :, -5:].contiguous(), y[-1:, -5:]))
    del nll
    y[-1, -1, -1] = 77
    message = error_of(seg_loss.loss_and_gradient, x, y, out=x)
    assert f"77 at ({num_images - 1}, {height - 1}, {width - 1})" in message
