"""What only a device has: asynchronous calls, streams, other devices, CUDA graphs, its memory."""

import threading
from concurrent.futures import ThreadPoolExecutor
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


# -- streams and threads -----------------------------------------------------------------------

# Planes and channels_last, one tile and many, classes that do not fit the registers.
SHAPES = [(2, 21, 37, 53), (1, 3, 5, 7), (1, 150, 64, 96), (4, 19, 128, 96), (1, 5000, 3, 5)]
DELAY = 20_000_000  # cycles of the device, about 10 ms


def delay():
    """Lets the device wait, so that what the host launches next comes without a gap."""
    torch.cuda._sleep(DELAY)


def inputs_on(device, shape, factor=1.0):
    return (factor * make_logits(shape)).to(device), make_labels(shape).to(device)


def results_of(x, y, check_labels="defer"):
    """Returns losses and gradients of all kinds, and what `evaluate` counts."""
    options = {"check_labels": check_labels}
    leaf = x.detach().requires_grad_()
    results = [*seg_loss.loss_and_gradient(x, y, label_smoothing=0.1, **options)]
    loss = seg_loss.spatial_cross_entropy(leaf, y, normalization="weight", **options)
    results += [loss.detach(), *torch.autograd.grad(3 * loss, leaf)]
    nll = seg_loss.pixel_nll(leaf, y, **options)
    results += [nll.detach(), *torch.autograd.grad(nll.sum(), leaf)]
    results += [seg_loss.spatial_softmax(x, temperature=2.0)]
    scores = x[:, :, ::2, ::2]
    results += [*seg_loss.loss_and_gradient(scores, y, upsampling=Bilinear(), **options)]
    return results


def assert_same_results(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert same_bits(one, other)


@pytest.mark.parametrize("check_labels", ["raise", "defer"])
def test_a_call_runs_on_the_current_stream(cuda, check_labels):
    stream = torch.cuda.Stream()
    for shape in SHAPES:
        source, labels = inputs_on(cuda.device, shape)
        expected = results_of(source, labels)
        x, y = torch.zeros_like(source), torch.zeros_like(labels)
        cuda.wait()
        with torch.cuda.stream(stream):
            delay()  # kernels on another stream would read zeros
            x.copy_(source)
            y.copy_(labels)
            got = results_of(x, y, check_labels)
        stream.synchronize()
        assert_same_results(got, expected)
    seg_loss.check()


def test_an_invalid_label_on_another_stream_raises_in_its_call(cuda):
    x, y = inputs_on(cuda.device, SHAPES[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        seg_loss.loss_and_gradient(x, y)  # compiles
        delay()
        y[1, 2, 3] = 77
        assert "77 at (1, 2, 3)" in error_of(seg_loss.loss_and_gradient, x, y)
        y[1, 2, 3] = 0
        assert error_of(seg_loss.loss_and_gradient, x, y) == ""
    stream.synchronize()
    seg_loss.check()


def test_calls_on_two_streams_do_not_disturb_each_other(cuda):
    streams = [torch.cuda.Stream() for _ in range(2)]
    inputs = [inputs_on(cuda.device, shape) for shape in SHAPES]
    expected = [results_of(*pair) for pair in inputs]
    cuda.wait()
    got = []
    for stream in streams:
        with torch.cuda.stream(stream):
            delay()
    for k in range(4 * len(SHAPES)):
        with torch.cuda.stream(streams[k % 2]):
            got.append(results_of(*inputs[k % len(SHAPES)]))
    cuda.wait()
    for k, results in enumerate(got):
        assert_same_results(results, expected[k % len(SHAPES)])
    seg_loss.check()


def test_threads_with_their_own_streams_and_shapes_do_not_disturb_each_other(cuda):
    inputs = [inputs_on(cuda.device, shape) for shape in SHAPES]
    expected = [results_of(*pair) for pair in inputs]
    cuda.wait()
    barrier = threading.Barrier(len(SHAPES))

    def call(number):
        stream = torch.cuda.Stream()
        barrier.wait()
        with torch.cuda.stream(stream):
            got = [results_of(*inputs[(number + k) % len(SHAPES)], "raise") for k in range(8)]
        stream.synchronize()
        return got

    with ThreadPoolExecutor(len(SHAPES)) as pool:
        for number, got in enumerate(pool.map(call, range(len(SHAPES)))):
            for k, results in enumerate(got):
                assert_same_results(results, expected[(number + k) % len(SHAPES)])
    seg_loss.check()


def test_threads_on_one_stream_do_not_disturb_each_other(cuda):
    inputs = [inputs_on(cuda.device, shape) for shape in SHAPES]
    expected = [results_of(*pair) for pair in inputs]
    cuda.wait()
    barrier = threading.Barrier(len(SHAPES))

    def call(number):
        barrier.wait()
        return [results_of(*inputs[(number + k) % len(SHAPES)], "raise") for k in range(8)]

    with ThreadPoolExecutor(len(SHAPES)) as pool:
        for number, got in enumerate(pool.map(call, range(len(SHAPES)))):
            cuda.wait()
            for k, results in enumerate(got):
                assert_same_results(results, expected[(number + k) % len(SHAPES)])
    seg_loss.check()


def test_each_thread_gets_the_error_of_its_own_call(cuda):
    barrier = threading.Barrier(4)

    def call(number):
        x, y = inputs_on(cuda.device, SHAPES[0])
        y[1, 2, number] = 70 + number
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        barrier.wait()
        with torch.cuda.stream(stream):
            errors = [error_of(seg_loss.loss_and_gradient, x, y) for _ in range(10)]
        stream.synchronize()
        return errors

    with ThreadPoolExecutor(4) as pool:
        for number, errors in enumerate(pool.map(call, range(4))):
            assert all(f"got {70 + number} at (1, 2, {number})" in error for error in errors)
    seg_loss.check()


# -- overlapping kernels -----------------------------------------------------------------------


@contextmanager
def unfilled_memory():
    """Without torch's kernels that fill new tensors, ours follow each other as in training."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_calls_back_to_back_give_the_bits_of_calls_one_by_one(cuda, dtype):
    # A kernel may start before the one ahead of it has ended. Each call has other numbers of
    # programs, valid pixels and weights, so that what an earlier call left behind would show.
    inputs = []
    for shape in SHAPES:
        for factor in (1.0, -0.5):
            x, y = inputs_on(cuda.device, shape, factor)
            y[:, :1] = 255 if factor == 1.0 else 0
            inputs.append((x.to(dtype), y))
            inputs.append((x.to(dtype, memory_format=torch.channels_last), y))
    with unfilled_memory():
        expected = []
        for x, y in inputs:
            expected.append(results_of(x, y))
            cuda.wait()
        for _ in range(3):
            delay()
            got = [results_of(x, y) for x, y in inputs]
            cuda.wait()
            for one, other in zip(got, expected, strict=True):
                assert_same_results(one, other)
    seg_loss.check()


def test_evaluations_back_to_back_give_the_results_of_evaluations_one_by_one(cuda):
    inputs = [inputs_on(cuda.device, shape) for shape in SHAPES]

    def evaluate(x, y):
        evaluation = seg_loss.evaluate(x, y, maps=("prediction", "nll"), check_labels="defer")
        return evaluation.loss, evaluation.confusion.clone(), evaluation.maps["nll"]

    with unfilled_memory():
        expected = []
        for x, y in inputs:
            cuda.wait()
            expected.append(evaluate(x, y))
        cuda.wait()
        for k in range(20):
            x, y = inputs[k % len(SHAPES)]
            seg_loss.loss_and_gradient(x, y, check_labels="defer")
            loss, confusion, nll = evaluate(x, y)
            expected_loss, expected_confusion, expected_nll = expected[k % len(SHAPES)]
            assert loss == expected_loss
            assert torch.equal(confusion, expected_confusion)
            assert same_bits(nll, expected_nll)
    seg_loss.check()


def test_a_chain_of_gradient_steps_is_the_same_with_and_without_waiting(cuda):
    shape = (2, 19, 96, 128)
    start, y = inputs_on(cuda.device, shape)

    def train(*, waits):
        x = start.clone()
        leaf = x.requires_grad_()
        losses = []
        for step in range(50):
            loss = seg_loss.spatial_cross_entropy(leaf, y, check_labels="defer")
            (loss * (1 + step % 2)).backward()
            with torch.no_grad():
                leaf -= 1000 * leaf.grad
            leaf.grad = None
            losses.append(loss.detach())
            if waits:
                cuda.wait()
        return torch.stack(losses), leaf.detach()

    with unfilled_memory():
        expected = train(waits=True)
        delay()
        assert_same_results(train(waits=False), expected)
    assert expected[0].unique().numel() > 40, "the loss changes with each step"
    seg_loss.check()


# -- several devices ---------------------------------------------------------------------------


@pytest.fixture
def two_devices(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    torch.cuda.set_device(0)
    yield [torch.device("cuda", index) for index in range(2)]
    torch.cuda.set_device(0)


def test_tensors_on_another_device_than_the_current_one(two_devices):
    for shape in SHAPES:
        results = []
        for device in (*two_devices, *two_devices):
            results.append(results_of(*inputs_on(device, shape), "raise"))
            assert all(tensor.device == device for tensor in results[-1])
            assert torch.cuda.current_device() == 0
        assert_same_results(results[0], results[2])
        assert_same_results(results[1], results[3])
        for one, other in zip(results[0], results[1], strict=True):
            torch.testing.assert_close(one.cpu(), other.cpu())
    seg_loss.check()


def test_set_device_does_not_change_where_later_calls_run(two_devices):
    inputs = {device: inputs_on(device, SHAPES[0]) for device in two_devices}
    expected = {device: results_of(*pair) for device, pair in inputs.items()}
    for current in (*two_devices, *two_devices):
        torch.cuda.set_device(current)
        for device, pair in inputs.items():
            assert_same_results(results_of(*pair, "raise"), expected[device])
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.default_stream(device))
            # A stream's context also makes its device the current one.
            with torch.cuda.stream(stream), torch.cuda.device(current):
                got = results_of(*pair, "raise")
            stream.synchronize()
            assert_same_results(got, expected[device])
        assert torch.cuda.current_device() == current.index
    seg_loss.check()


def test_each_device_reports_its_invalid_labels(two_devices):
    for device in two_devices:
        x, y = inputs_on(device, SHAPES[0])
        y[0, 1, 2] = 70 + device.index
        assert f"got {70 + device.index} at (0, 1, 2)" in error_of(seg_loss.loss_and_gradient, x, y)
        seg_loss.loss_and_gradient(x, y, check_labels="defer")
        assert f"got {70 + device.index} at (0, 1, 2)" in error_of(seg_loss.check)
    seg_loss.check()


def test_set_device_to_the_current_device_changes_nothing(cuda):
    x, y = inputs_on(cuda.device, SHAPES[0])
    expected = results_of(x, y)
    torch.cuda.set_device(torch.cuda.current_device())
    assert_same_results(results_of(x, y), expected)


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


@pytest.mark.parametrize("check_labels", ["raise", "defer"])
def test_each_replay_reports_the_labels_that_it_read(cuda, check_labels):
    x, y = inputs_on(cuda.device, SHAPES[0])
    graph, _ = capture(lambda: seg_loss.loss_and_gradient(x, y, check_labels=check_labels))
    for value, index in ((77, (1, 2, 3)), (78, (0, 36, 52)), (79, (0, 0, 0))):
        before = int(y[index])
        y[index] = value
        graph.replay()
        assert f"got {value} at {index}." in error_of(seg_loss.check)
        y[index] = before
        graph.replay()
        assert error_of(seg_loss.check) == "", "the labels of this replay are valid"


def test_a_replay_with_invalid_labels_ignores_their_pixels(cuda):
    x, y = inputs_on(cuda.device, SHAPES[0])
    graph, results = capture(lambda: seg_loss.loss_and_gradient(x, y, check_labels="ignore"))
    y[0, :3] = 77
    graph.replay()
    cuda.wait()
    got = [result.clone() for result in results]
    y[0, :3] = 255
    assert_same_results(got, seg_loss.loss_and_gradient(x, y))


def test_graphs_and_calls_between_their_replays_do_not_disturb_each_other(cuda):
    inputs = [inputs_on(cuda.device, shape) for shape in SHAPES[:3]]
    graphs = [
        capture(lambda x=x, y=y: seg_loss.loss_and_gradient(x, y, check_labels="defer"))
        for x, y in inputs
    ]
    expected = [results_of(x, y) for x, y in inputs]
    direct = [seg_loss.loss_and_gradient(x, y) for x, y in inputs]
    stream = torch.cuda.Stream()
    cuda.wait()
    for _ in range(5):
        with torch.cuda.stream(stream):
            called = [results_of(x, y) for x, y in inputs]
        for graph, _ in graphs:
            graph.replay()
        cuda.wait()
        for k, (_, results) in enumerate(graphs):
            assert_same_results(called[k], expected[k])
            assert_same_results(results, direct[k])
    seg_loss.check()


def test_two_graphs_report_the_shapes_of_their_own_labels(cuda):
    captured = []
    for shape in ((2, 21, 37, 53), (1, 21, 20, 30)):
        x, y = inputs_on(cuda.device, shape)
        graph, _ = capture(lambda x=x, y=y: seg_loss.loss_and_gradient(x, y))
        captured.append((graph, y))
    for graph, y in captured:
        y[-1, -1, -1] = 77
        graph.replay()
    messages = {error_of(seg_loss.check) for _ in captured}
    assert {message.partition(" at ")[2] for message in messages} == {
        "(1, 36, 52).",
        "(0, 19, 29).",
    }
    assert error_of(seg_loss.check) == ""


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [4, 8, 32])
@pytest.mark.parametrize("shape", [(1, 19, 1024, 2048), (8, 150, 512, 512)], ids=str)
def test_peak_memory_of_upsampled_scores_is_what_scratch_bytes_says(cuda, shape, stride, dtype):
    size = [length // stride for length in shape[2:]]
    scores = torch.randn(*shape[:2], *size, device=cuda.device, dtype=dtype)
    y = torch.randint(0, shape[1], (shape[0], *shape[2:]), device=cuda.device).to(torch.uint8)
    leaf = scores.detach().requires_grad_()
    scratch = seg_loss.scratch_bytes(scores, shape[2:], upsampling=Bilinear())
    stored = 4 * scores.numel()  # by autograd, in float32

    def trained():
        return torch.autograd.grad(2 * seg_loss.upsampled_cross_entropy(leaf, y), leaf)

    def direct():
        return seg_loss.loss_and_gradient(scores, y, upsampling=Bilinear())

    for name, call, results in (
        ("forward", lambda: seg_loss.upsampled_cross_entropy(scores, y), 0),
        ("direct", direct, scores.nbytes),
        ("trained", trained, scores.nbytes + stored),
    ):
        call()  # compiles, and allocates what is kept
        beyond = peak_bytes(call) - results
        # torch's allocator does not split a rest of less than 1 MiB off a block.
        assert beyond <= scratch + (4 << 20), f"{name}: {beyond} bytes, scratch {scratch}"


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
