"""`process_group`: the loss and gradient of several ranks are those of one process.

The ranks are four gloo processes, started once. Ranks 1 and 3 are a group of two as well. A
function whose first argument is a rank runs in the processes.
"""

import functools
import itertools
import re
import subprocess
import sys
import threading
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

import seg_loss
from seg_loss import Bilinear, Deconvolution, InvalidInput
from tests import documents
from tests.support import backends, ranks
from tests.support.cases import NORMALIZATIONS, make_labels, make_logits, seed_of

EPS = torch.finfo(torch.float32).eps
WORLD_SIZE = 4
PAIR = (1, 3)
WORLDS = {"four": tuple(range(WORLD_SIZE)), "two": PAIR}
# The images of each rank of a group: uneven, and none on one of four.
PARTS = {"four": (2, 0, 3, 1), "two": (4, 2)}
NUM_IMAGES = 6

# Upsampling, size of the scores, size of the labels.
KINDS = {
    "logits": (None, (5, 6), (5, 6)),
    "bilinear": (Bilinear(), (3, 4), (13, 11)),
    "deconvolution": (Deconvolution(4, crop=3), (4, 5), (11, 13)),
    "probabilities": (None, (5, 6), (5, 6)),
}
if backends.IS_INTERPRETED:
    KINDS = {"logits": (None, (4, 5), (4, 5)), "bilinear": (Bilinear(), (1, 2), (4, 5))}
WEIGHTS = ("none", "class", "class and pixel")
OPTIONS = list(itertools.product(NORMALIZATIONS, WEIGHTS, (0.0, 0.1)))


@functools.cache
def group_of(world):
    """Returns a group; all ranks of the world must ask for the groups in the same order."""
    if world == "two":
        return dist.new_group(PAIR)
    return dist.group.WORLD


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    with ranks.started(WORLD_SIZE, tmp_path_factory.mktemp("ranks")) as started:
        started.run(make_groups)
        yield started


def make_groups(rank):
    group_of("two")


def of_members(results, world):
    """Returns the results of the ranks of a group, after a check that all ranks are alive."""
    return [results[rank] for rank in WORLDS[world]]


def make_batch(kind, dtype=torch.float32):
    """Returns the batch of all ranks: logits, labels, weights. Images differ in their ignores."""
    _, size, label_size = KINDS[kind]
    logits = make_logits((NUM_IMAGES, 5, *size), dtype)
    if kind == "probabilities":
        logits = logits.softmax(1)
    labels = make_labels((NUM_IMAGES, 5, *label_size), torch.int64)
    labels[0] = 255  # the only image of a rank may be ignored
    labels[5, 1:] = 255
    labels[2, :, :3] = 255
    labels[4, 0, 0] = 1
    class_weight = torch.rand(5, generator=seed_of("class")) + 0.5
    pixel_weight = torch.rand(NUM_IMAGES, *label_size, generator=seed_of("pixel"))
    return logits, labels, class_weight, pixel_weight


def part_of(rank, world, *tensors):
    """Returns the images of a rank."""
    member = WORLDS[world].index(rank)
    first = sum(PARTS[world][:member])
    return [tensor[first : first + PARTS[world][member]] for tensor in tensors]


def options_of(kind, option):
    normalization, _, smoothing = option
    options = {"normalization": normalization}
    if kind != "probabilities":
        options |= {"label_smoothing": smoothing, "temperature": 1.5}
    return options


def function_of(kind):
    if kind == "probabilities":
        return seg_loss.probability_cross_entropy
    upsampling, _, _ = KINDS[kind]
    if upsampling is None:
        return seg_loss.spatial_cross_entropy
    return functools.partial(seg_loss.upsampled_cross_entropy, upsampling=upsampling)


def loss_and_gradient_of(kind, option, batch, *, factor=1.0, **options):
    """Returns loss and gradient by autograd, and both by `loss_and_gradient`."""
    logits, labels, class_weight, pixel_weight = batch
    weights = {
        "none": {},
        "class": {"class_weight": class_weight},
        "class and pixel": {"class_weight": class_weight, "pixel_weight": pixel_weight},
    }[option[1]]
    options = {**weights, **options_of(kind, option), **options}
    x = logits.clone().requires_grad_()
    loss = function_of(kind)(x, labels, **options)
    (factor * loss).backward()
    more = {"scores": "probabilities"} if kind == "probabilities" else {}
    again = seg_loss.loss_and_gradient(logits, labels, upsampling=KINDS[kind][0], **options, **more)
    return [as_numpy(tensor) for tensor in (loss, x.grad, *again)]


def as_numpy(tensor):
    return tensor.detach().double().numpy()


def fail_on_rank_0(rank):
    if rank == 0:
        raise ValueError("of the test")
    return rank


def test_a_failed_function_leaves_no_results_to_the_next(processes):
    with pytest.raises(ranks.RankError, match="ValueError: of the test"):
        processes.run(fail_on_rank_0)
    assert processes.run(abs) == list(range(WORLD_SIZE))


# -- equal to one process --------------------------------------------------------------------------


def rank_results(rank, world, kind, options, dtype=torch.float32):
    if rank not in WORLDS[world]:
        return None
    group = group_of(world)
    logits, labels, class_weight, pixel_weight = make_batch(kind, dtype)
    x, y, of_pixels = part_of(rank, world, logits, labels, pixel_weight)
    batch = x, y, class_weight, of_pixels
    return [loss_and_gradient_of(kind, option, batch, process_group=group) for option in options]


def joined(results):
    """Returns the sum of the losses and all gradients, of the results of the ranks."""
    loss, gradient, loss_again, gradient_again = zip(*results, strict=True)
    return (
        sum(loss),
        np.concatenate(gradient),
        sum(loss_again),
        np.concatenate(gradient_again),
    )


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_ranks_have_the_loss_and_gradient_of_one_process(processes, kind, world):
    options = [o for o in OPTIONS if kind != "probabilities" or not o[2]]
    if backends.IS_INTERPRETED:
        options = options[::11] if kind == "logits" else options[8:9]
    batch = make_batch(kind)
    expected = [loss_and_gradient_of(kind, option, batch) for option in options]
    results = of_members(processes.run(rank_results, world, kind, options), world)
    worst = 0.0, 0.0
    for k, option in enumerate(options):
        got = joined([of_rank[k] for of_rank in results])
        loss, gradient, _, _ = expected[k]
        of_loss = max(abs(got[0] - loss), abs(got[2] - loss)) / abs(loss)
        largest = np.abs(gradient).max()
        of_gradient = max(np.abs(got[i] - gradient).max() for i in (1, 3)) / largest
        assert of_loss < 1e-6, option
        assert of_gradient <= 2 * EPS, option
        worst = max(worst[0], of_loss), max(worst[1], of_gradient)
    print(f"{kind}, {len(PARTS[world])} ranks: loss {worst[0]:.1e}, gradient {worst[1]:.1e}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_the_ranks_agree_with_one_process_in_other_dtypes(processes, dtype):
    kind, option, eps = "logits", ("valid", "class", 0.0), torch.finfo(dtype).eps
    loss, gradient, _, _ = loss_and_gradient_of(kind, option, make_batch(kind, dtype))
    results = of_members(processes.run(rank_results, "two", kind, [option], dtype), "two")
    got = joined([of_rank[0] for of_rank in results])
    assert got[0] == pytest.approx(loss, rel=1e-6)
    for i in (1, 3):
        np.testing.assert_allclose(got[i], gradient, rtol=2 * eps, atol=1e-7)


def test_a_mean_over_the_means_of_the_ranks_differs():
    logits, labels, _, _ = make_batch("logits")
    of_batch = seg_loss.spatial_cross_entropy(logits, labels)
    parts = [part_of(rank, "two", logits, labels) for rank in PAIR]
    wrong = sum(seg_loss.spatial_cross_entropy(*part) for part in parts) / len(parts)
    assert abs(wrong - of_batch) > 0.01 * of_batch


def rows_of_rank(rank, normalization):
    """Returns loss and gradient of images of another size on each rank."""
    logits, labels = images_of(rank)
    x = logits.requires_grad_()
    loss = seg_loss.spatial_cross_entropy(
        x, labels, normalization=normalization, process_group=dist.group.WORLD
    )
    loss.backward()
    return as_numpy(loss), as_numpy(rows(x.grad))


def images_of(rank):
    shape = rank + 1, 5, 3 + rank, 9 - 2 * rank
    return make_logits(shape), make_labels(shape, torch.int64, ignored=rank / 4)


def rows(tensor):
    return tensor.movedim(1, -1).flatten(0, -2) if tensor.ndim == 4 else tensor.flatten()


@pytest.mark.parametrize("normalization", ["valid", "full", "weight", "none"])
def test_ranks_may_have_images_of_different_sizes(processes, normalization):
    images = [images_of(rank) for rank in range(WORLD_SIZE)]
    x = torch.cat([rows(logits) for logits, _ in images])
    y = torch.cat([rows(labels) for _, labels in images])
    loss, gradient = seg_loss.loss_and_gradient(x, y, normalization=normalization)
    losses, gradients = zip(*processes.run(rows_of_rank, normalization), strict=True)
    assert sum(losses) == pytest.approx(loss.item(), rel=1e-6)
    np.testing.assert_allclose(np.concatenate(gradients), gradient, rtol=1e-5, atol=1e-8)


def nothing_valid(rank, normalization, *, has_images):
    group = dist.group.WORLD
    x = make_logits((2 if has_images else 0, 5, 4, 5)).requires_grad_()
    labels = torch.full((len(x), 4, 5), 255)
    weight = torch.ones(5)
    loss = seg_loss.spatial_cross_entropy(
        x, labels, weight, normalization=normalization, process_group=group
    )
    loss.backward()
    return loss.item(), as_numpy(x.grad)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_batch_without_a_valid_pixel_has_loss_and_gradient_0(processes, normalization):
    for has_images in (True, False):
        function = functools.partial(nothing_valid, has_images=has_images)
        for loss, gradient in processes.run(function, normalization):
            assert loss == 0
            assert not gradient.any()


def out_of_rank(rank):
    group = dist.group.WORLD
    logits, labels, _, _ = make_batch("logits")
    x, y = part_of(rank, "four", logits, labels)
    memory = x.clone()
    loss, gradient = seg_loss.loss_and_gradient(memory, y, out=memory, process_group=group)
    assert gradient is memory
    return as_numpy(loss), as_numpy(memory)


def test_out_is_the_memory_of_the_gradient(processes):
    logits, labels, _, _ = make_batch("logits")
    loss, gradient = seg_loss.loss_and_gradient(logits, labels)
    losses, gradients = zip(*processes.run(out_of_rank), strict=True)
    assert sum(losses) == pytest.approx(loss.item(), rel=1e-6)
    np.testing.assert_allclose(np.concatenate(gradients), gradient, rtol=1e-6, atol=1e-9)


def alone(rank):
    """Compares a group of this process alone with None; all ranks make all groups."""
    groups = [dist.new_group([member]) for member in range(WORLD_SIZE)]
    group = groups[rank]
    for kind in KINDS:
        batch = make_batch(kind)
        option = "valid", "class", 0.0
        with_group = loss_and_gradient_of(kind, option, batch, process_group=group)
        for got, expected in zip(
            with_group, loss_and_gradient_of(kind, option, batch), strict=True
        ):
            assert np.array_equal(got, expected)


def test_a_group_of_one_rank_gives_the_same_bits_as_none(processes):
    processes.run(alone)


def modules_of_rank(rank):
    group = dist.group.WORLD
    logits, labels, class_weight, pixel_weight = make_batch("bilinear")
    x, y, w = part_of(rank, "four", logits, labels, pixel_weight)
    criterion = seg_loss.UpsampledCrossEntropy(class_weight, process_group=group)
    loss = criterion(x, y, pixel_weight=w)
    assert loss == seg_loss.upsampled_cross_entropy(
        x, y, class_weight, pixel_weight=w, process_group=group
    )
    logits, labels, class_weight, _ = make_batch("logits")
    x, y = part_of(rank, "four", logits, labels)
    criterion = seg_loss.SpatialCrossEntropy(class_weight, process_group=group)
    loss = criterion(x, y)
    assert loss == seg_loss.spatial_cross_entropy(x, y, class_weight, process_group=group)
    assert criterion.state_dict().keys() == {"class_weight"}
    return repr(criterion)


def test_the_modules_take_a_group(processes):
    for text in processes.run(modules_of_rank):
        assert text.endswith("check_labels='raise', process_group=<size 4>)")


# -- derivatives -----------------------------------------------------------------------------------


def derivatives(kind, x, labels, **options):
    """Returns derivatives of the loss: of second order, in forward mode and by torch.func."""
    loss_of = functools.partial(function_of(kind), labels=labels, **options)
    v = torch.sin(x)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(leaf), leaf, create_graph=True)
    (product,) = torch.autograd.grad(gradient, leaf, v)
    by_func = torch.func.grad(loss_of)(x)
    value, tangent = torch.func.jvp(loss_of, (x,), (v,))
    batch = torch.func.vmap(torch.func.grad(loss_of))(torch.stack((x, x + v)))
    return [as_numpy(t) for t in (product, by_func, batch[1], value, tangent)]


def derivatives_of_rank(rank, kind):
    logits, labels, _, _ = make_batch(kind, torch.float64)
    x, y = part_of(rank, "two", logits, labels) if rank in PAIR else (None, None)
    if x is None:
        return None
    return derivatives(kind, x, y, process_group=group_of("two"))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of torch.func.jvp
@pytest.mark.parametrize("kind", ["logits", "bilinear"])
def test_the_divisor_of_all_ranks_is_a_constant_to_derivatives(processes, kind):
    logits, labels, _, _ = make_batch(kind, torch.float64)
    expected = derivatives(kind, logits, labels)
    results = of_members(processes.run(derivatives_of_rank, kind), "two")
    product, by_func, of_batch, value, tangent = zip(*results, strict=True)
    for got, truth in zip((product, by_func, of_batch), expected[:3], strict=True):
        np.testing.assert_allclose(np.concatenate(got), truth, rtol=1e-9, atol=1e-12)
    assert sum(value) == pytest.approx(float(expected[3]), rel=1e-9)
    assert sum(tangent) == pytest.approx(float(expected[4]), rel=1e-9)


def labels_of_a_vmap(rank):
    logits, labels, _, _ = make_batch("logits")
    x, y = part_of(rank, "two", logits, labels) if rank in PAIR else (None, None)
    if x is None:
        return None
    loss_of = functools.partial(seg_loss.spatial_cross_entropy, process_group=group_of("two"))
    return as_numpy(torch.func.vmap(loss_of)(torch.stack((x, x)), torch.stack((y, y.flip(2)))))


def test_vmap_over_labels_reduces_a_divisor_for_each(processes):
    logits, labels, _, _ = make_batch("logits")
    expected = [seg_loss.spatial_cross_entropy(logits, y).item() for y in (labels, labels.flip(2))]
    results = of_members(processes.run(labels_of_a_vmap), "two")
    np.testing.assert_allclose(sum(results), expected, rtol=1e-6)


def gradients_of_a_vmap(rank, kind):
    logits, labels, _, _ = make_batch(kind)
    x, y = part_of(rank, "two", logits, labels) if rank in PAIR else (None, None)
    if x is None:
        return None
    return vmap_of_gradients(kind, x, y, process_group=group_of("two"))


def vmap_of_gradients(kind, x, y, **options):
    if kind == "probabilities":
        options["scores"] = "probabilities"
    function = functools.partial(
        seg_loss.loss_and_gradient, upsampling=KINDS[kind][0], check_labels="defer", **options
    )
    batch = torch.func.vmap(function)(torch.stack((x, x)), torch.stack((y, y.flip(2))))
    return [as_numpy(tensor) for tensor in batch]


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_of_loss_and_gradient_divides_by_the_divisor_of_all_ranks(processes, kind):
    loss, gradient = vmap_of_gradients(kind, *make_batch(kind)[:2])
    results = of_members(processes.run(gradients_of_a_vmap, kind), "two")
    losses, gradients = zip(*results, strict=True)
    np.testing.assert_allclose(sum(losses), loss, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate(gradients, 1), gradient, rtol=1e-5, atol=1e-8)


def functionalized(rank):
    logits, labels, _, _ = make_batch("logits")
    functions = seg_loss.spatial_cross_entropy, seg_loss.probability_cross_entropy
    errors = []
    for function in functions:
        call = functools.partial(function, process_group=dist.group.WORLD)
        program = torch.func.functionalize(call) if rank == 1 else call
        errors.append(error_of(functools.partial(program, logits.softmax(1), labels)))
    return errors


def test_a_functionalized_call_is_an_error_on_all_ranks(processes):
    results = processes.run(functionalized)
    for error in results.pop(1):
        assert "expected a tensor with elements in memory" in error
    assert all("an error on rank 1." in error for errors in results for error in errors)


class Network(torch.nn.Module):
    """A convolution, whose scores are upsampled."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 5, 3, padding=1)
        for parameter in self.parameters():
            values = torch.randn(parameter.shape, generator=seed_of(*parameter.shape))
            parameter.data.copy_(values)

    def forward(self, image):
        return self.layer(image)


def training_step(rank):
    group = group_of("two")
    network = torch.nn.parallel.DistributedDataParallel(Network(), process_group=group)
    image = make_logits((NUM_IMAGES, 3, 3, 4))
    _, labels, _, _ = make_batch("bilinear")
    x, y = part_of(rank, "two", image, labels)
    loss = seg_loss.upsampled_cross_entropy(network(x), y, process_group=group)
    (loss * group.size()).backward()
    return [as_numpy(parameter.grad) for parameter in network.parameters()]


def ddp_of_rank(rank):
    return training_step(rank) if rank in PAIR else None


def test_ddp_gradients_of_a_multiplied_loss_are_those_of_one_process(processes):
    network = Network()
    image = make_logits((NUM_IMAGES, 3, 3, 4))
    _, labels, _, _ = make_batch("bilinear")
    seg_loss.upsampled_cross_entropy(network(image), labels).backward()
    for of_rank in of_members(processes.run(ddp_of_rank), "two"):
        for got, parameter in zip(of_rank, network.parameters(), strict=True):
            np.testing.assert_allclose(got, parameter.grad, rtol=1e-5, atol=1e-7)


def run_documented_training(rank, source):
    """Runs the program of the documentation, in a group that is initialised already."""
    names = {}
    with (
        mock.patch.object(dist, "init_process_group"),
        mock.patch.object(dist, "destroy_process_group"),
    ):
        exec(source, names)
    return names["total"].item(), [as_numpy(p) for p in names["network"].parameters()]


def test_the_documented_training_runs(processes):
    (source,) = documents.blocks(documents.ROOT / "docs" / "distributed.md", "py")
    (total, parameters), *others = processes.run(run_documented_training, source)
    for other_total, of_other in others:
        assert other_total == total
        assert all(map(np.array_equal, parameters, of_other))


# -- errors ----------------------------------------------------------------------------------------


def error_of(call):
    try:
        call()
    except InvalidInput as error:
        return str(error)
    return None


def call_with(rank, culprit, kind, change, **options):
    """Calls a function of the group, with one argument changed on one rank."""
    logits, labels, class_weight, pixel_weight = make_batch(kind)
    arguments = {
        "logits": logits,
        "labels": labels,
        "class_weight": class_weight,
        "pixel_weight": pixel_weight,
        "process_group": dist.group.WORLD,
        **options,
    }
    if rank == culprit:
        CHANGES[change](arguments)
    x, y = arguments.pop("logits"), arguments.pop("labels")
    if "out" in arguments:
        more = {"scores": "probabilities"} if kind == "probabilities" else {}
        return seg_loss.loss_and_gradient(x, y, upsampling=KINDS[kind][0], **more, **arguments)[0]
    return function_of(kind)(x, y, **arguments)


def set_label(arguments):
    arguments["labels"] = arguments["labels"].clone()
    arguments["labels"][1, 2, 3] = 77


def set_pixel_weight(arguments):
    arguments["pixel_weight"] = arguments["pixel_weight"].clone()
    arguments["pixel_weight"][4, 0, 0] = -1


def set_class_weight(arguments):
    arguments["class_weight"] = torch.tensor([1, 2, torch.nan, 3, 4])


CHANGES = {
    "label": set_label,
    "pixel weight": set_pixel_weight,
    "class weight": set_class_weight,
    "dtype of labels": lambda a: a.update(labels=a["labels"].double()),
    "no tensor": lambda a: a.update(logits=None),
    "shape": lambda a: a.update(labels=a["labels"][:1]),
    "option": lambda a: a.update(normalization="mean"),
    "meta": lambda a: a.update(
        {name: value.to("meta") for name, value in a.items() if isinstance(value, torch.Tensor)}
    ),
    "out": lambda a: a.update(out=torch.zeros(2)),
}
OWN_ERRORS = {
    "label": "labels: expected 0...4 or 255 (ignored), got 77 at (1, 2, 3).",
    "pixel weight": "pixel_weight: expected finite numbers that are not negative, got -1.0 at",
    "class weight": "class_weight: expected finite numbers that are not negative, got nan for",
    "dtype of labels": "labels: expected uint8, ",
    "no tensor": ": expected a torch.Tensor, got NoneType.",
    "shape": "labels: expected shape (6, ",
    "option": "normalization: expected one of ",
    "meta": "logits: expected a tensor with elements in memory, got a meta tensor. With a ",
    "out": "out: expected shape (6, ",
}


def errors_of_rank(rank, culprit, kind, change):
    options = {"out": None} if change == "out" else {}
    error = error_of(lambda: call_with(rank, culprit, kind, change, **options))
    loss = call_with(rank, None, kind, change)  # the ranks still meet
    assert loss.isfinite()
    return error


@pytest.mark.parametrize("kind", ["logits", "bilinear", "probabilities"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_error_on_one_rank_is_an_error_on_all(processes, kind, change):
    culprit = 2
    errors = processes.run(errors_of_rank, culprit, kind, change)
    assert OWN_ERRORS[change] in errors.pop(culprit)
    for error in errors:
        assert error == (
            "process_group: expected valid inputs on all ranks, got an error on rank 2. "
            "The error of rank 2 says what is wrong there."
        )


def errors_of_two(rank):
    """Calls with an invalid label on the ranks of the group of two, and in a group of two."""
    bad = 2 if rank == 2 else rank if rank in PAIR else None
    first = error_of(lambda: call_with(rank, bad, "logits", "label"))
    second = None
    if rank in PAIR:
        culprit = PAIR[1]
        second = error_of(
            lambda: call_with(rank, culprit, "logits", "label", process_group=group_of("two"))
        )
    return first, second


def test_a_message_names_all_ranks_by_their_number_in_the_world(processes):
    results = processes.run(errors_of_two)
    first, _ = results[0]
    assert "got an error on ranks 1, 2 and 3. The error of ranks 1, 2 and 3 says" in first
    assert "got 77 at" in results[1][0]
    assert "got an error on rank 3." in results[1][1]
    assert "got 77 at" in results[3][1]


def module_error(rank):
    criterion = seg_loss.SpatialCrossEntropy(process_group=dist.group.WORLD)
    logits, labels, _, _ = make_batch("logits")
    labels = labels.double() if rank == 1 else labels
    return error_of(lambda: criterion(logits, labels))


def test_an_error_of_a_module_is_an_error_on_all_ranks(processes):
    errors = processes.run(module_error)
    assert errors.pop(1).startswith("labels: expected uint8")
    assert all("an error on rank 1." in error for error in errors)


def deferred_of_rank(rank, kind):
    def call(culprit):
        return call_with(rank, culprit, kind, "label", check_labels="defer")

    results = []
    assert call(2).isfinite()
    results.append(error_of(lambda: call(None)))  # computes nothing
    assert call(None).isfinite()
    assert call(2).isfinite()
    results.append(error_of(seg_loss.check))
    assert call(None).isfinite()
    seg_loss.check()
    return results


@pytest.mark.parametrize("kind", ["logits", "bilinear", "probabilities"])
def test_a_deferred_error_is_raised_on_all_ranks_at_the_next_call(processes, kind):
    results = processes.run(deferred_of_rank, kind)
    for error in results.pop(2):
        assert "got 77 at (1, 2, 3)" in error
    for errors in results:
        for error in errors:
            assert "got an error on rank 2." in error


def deferred_and_failed(rank):
    """Has an error of the arguments, which is raised at once in any case."""
    errors = [
        error_of(functools.partial(call_with, rank, 0, "logits", "shape", check_labels=mode))
        for mode in ("defer", "ignore")
    ]
    seg_loss.check()
    return errors


def test_an_error_of_arguments_is_neither_deferred_nor_ignored(processes):
    results = processes.run(deferred_and_failed)
    assert all(OWN_ERRORS["shape"] in error for error in results.pop(0))
    assert all("an error on rank 0." in error for errors in results for error in errors)


def ignored_of_rank(rank):
    loss = call_with(rank, 2, "logits", "label", check_labels="ignore")
    seg_loss.check()
    return loss.item()


def test_ignored_errors_are_reported_nowhere(processes):
    logits, labels, class_weight, pixel_weight = make_batch("logits")
    bad = labels.clone()
    bad[1, 2, 3] = 255
    expected = seg_loss.spatial_cross_entropy(
        torch.cat([logits] * 4),
        torch.cat([labels, labels, bad, labels]),
        class_weight,
        pixel_weight=torch.cat([pixel_weight] * 4),
    )
    assert sum(processes.run(ignored_of_rank)) == pytest.approx(expected.item(), rel=1e-6)


def error_of_another_call(rank):
    """Defers an error of a call of this process alone, before one of all."""
    logits, labels, _, _ = make_batch("logits")
    if rank == 1:
        bad = torch.full_like(labels, 88)
        seg_loss.spatial_cross_entropy(logits, bad, check_labels="defer")
    error = error_of(lambda: call_with(rank, None, "logits", "label"))
    assert call_with(rank, None, "logits", "label").isfinite()
    return error


def test_a_deferred_error_of_a_call_without_a_group_is_raised_on_all(processes):
    errors = processes.run(error_of_another_call)
    assert "got 88 at" in errors.pop(1)
    assert all("an error on rank 1." in error for error in errors)


def error_taken_early(rank):
    """Takes the deferred error by `check` on one rank alone."""
    call_with(rank, 2, "logits", "label", check_labels="defer")
    early = error_of(seg_loss.check) if rank == 0 else None
    late = error_of(lambda: call_with(rank, None, "logits", "label", check_labels="defer"))
    assert call_with(rank, None, "logits", "label").isfinite()
    seg_loss.check()
    return early, late


def test_no_rank_computes_a_loss_while_others_raise_a_deferred_error(processes):
    (early, late), *others = processes.run(error_taken_early)
    assert "an error on rank 2." in early
    assert "an error on ranks 1, 2 and 3." in late
    assert "an error on rank 2." in others[0][1]
    assert "got 77 at" in others[1][1]


def error_of_two_groups(rank):
    """Defers an error in the group of two, before calls of others, of one rank and of all."""
    loss = functools.partial(call_with, rank, kind="logits", change="label", check_labels="defer")
    errors = []
    if rank in PAIR:
        loss(culprit=1, process_group=group_of("two"))
    if rank == 1:
        errors.append(error_of(lambda: loss(culprit=None, process_group=None)))
    errors.append(error_of(lambda: loss(culprit=None)))
    if rank in PAIR:
        errors.append(error_of(lambda: loss(culprit=None, process_group=group_of("two"))))
    seg_loss.check()
    return errors


def test_a_deferred_error_of_a_group_is_none_of_other_calls(processes):
    alone, first, second, third = processes.run(error_of_two_groups)
    assert alone == second == [None]
    assert first[:2] == [None, None]
    assert "got 77 at" in first[2]
    assert third[0] is None
    assert "an error on rank 1." in third[1]


def errors_of_threads(rank):
    """Returns in which calls each of two threads, with a group each, raises a deferred error."""
    calls = [[], []]

    def run(group, errors):
        call = functools.partial(call_with, rank, kind="logits", change="label")
        for step in range(30):
            culprit = step % 4 if step % 3 == 0 else None
            options = {"process_group": group, "check_labels": "defer"}
            errors.append(error_of(functools.partial(call, culprit=culprit, **options)) is not None)

    both = [dist.new_group(range(WORLD_SIZE)) for _ in calls]
    threads = [threading.Thread(target=run, args=pair) for pair in zip(both, calls, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while error_of(seg_loss.check):
        pass
    for group in both:
        dist.destroy_process_group(group)
    return calls


@pytest.mark.skipif(backends.IS_INTERPRETED, reason="Triton's interpreter runs in one thread")
def test_threads_with_a_group_each_raise_the_errors_of_their_own(processes):
    expected = [False] + [step % 3 == 0 for step in range(29)]
    for calls in processes.run(errors_of_threads):
        assert calls == [expected, expected]


def invalid_groups(rank):
    logits, labels, _, _ = make_batch("logits")
    outside = dist.new_group([0, 2])
    errors = []
    probabilities = logits.softmax(1)
    for group in ("nccl", -100, outside if rank == 1 else 7):
        options = {"process_group": group}
        calls = (
            functools.partial(seg_loss.spatial_cross_entropy, logits, labels, **options),
            functools.partial(seg_loss.loss_and_gradient, logits, labels, **options),
            functools.partial(seg_loss.probability_cross_entropy, probabilities, labels, **options),
            functools.partial(seg_loss.SpatialCrossEntropy, **options),
        )
        errors += map(error_of, calls)
    if rank in (0, 2):
        dist.destroy_process_group(outside)
        errors.append(
            error_of(lambda: seg_loss.spatial_cross_entropy(logits, labels, process_group=outside))
        )
    return errors


def test_a_group_that_is_none_is_an_error(processes):
    results = processes.run(invalid_groups)
    for error in results[1]:
        assert error.startswith("process_group: expected ")
    assert "got str. torch.distributed.group.WORLD has all ranks." in results[0][0]
    assert "expected a group of this process, got NON_GROUP_MEMBER." in results[1][4]
    assert "expected a group of this process, got NON_GROUP_MEMBER." in results[1][8]
    assert "got int." in results[0][8]
    assert "one that was destroyed" in results[0][-1]


def test_a_group_without_init_process_group_is_an_error(tmp_path, monkeypatch):
    for name, value in ranks.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    group = dist.group.WORLD
    dist.destroy_process_group()
    logits, labels, _, _ = make_batch("logits")
    with pytest.raises(InvalidInput, match=re.escape("torch.distributed.init_process_group")):
        seg_loss.spatial_cross_entropy(logits, labels, process_group=group)


def test_the_library_needs_no_torch_distributed():
    script = (
        "import torch, torch.distributed as dist\n"
        "dist.is_available = lambda: False\n"
        "del dist.ProcessGroup, dist.GroupMember\n"
        "import seg_loss\n"
        "x, y = torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.uint8)\n"
        "print(seg_loss.spatial_cross_entropy(x, y).item() > 0)\n"
        "try: seg_loss.spatial_cross_entropy(x, y, process_group=object())\n"
        "except seg_loss.InvalidInput as error: print(error)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "True",
        "process_group: expected None, got object. This torch was built without torch.distributed.",
    ]


# -- programs --------------------------------------------------------------------------------------


def compiled_of_rank(rank):
    """Calls compiled functions, which leave the loss to eager mode."""
    if rank not in PAIR:
        return None
    group = group_of("two")
    logits, labels, _, _ = make_batch("logits")
    x, y = part_of(rank, "two", logits, labels)

    def step(x, y):
        return 2 * seg_loss.spatial_cross_entropy(x + 1, y, process_group=group)

    compiled = torch.compile(step, backend="eager")
    leaf = x.clone().requires_grad_()
    loss = compiled(leaf, y)
    loss.backward()
    again = x.clone().requires_grad_()
    expected = step(again, y)
    expected.backward()
    assert torch.equal(loss, expected)
    assert torch.equal(leaf.grad, again.grad)
    errors = [error_of(lambda: compiled(x, y.double() if rank == PAIR[0] else y))]
    bad = y.clone()
    bad[0, 0, 0] = 9
    errors.append(error_of(lambda: compiled(x, bad if rank == PAIR[0] else y)))
    traced = torch.fx.experimental.proxy_tensor.make_fx(step)
    errors.append(error_of(lambda: traced(x, y)))
    return errors


def test_compiled_programs_call_the_loss_in_eager_mode(processes):
    first, second = of_members(processes.run(compiled_of_rank), "two")
    assert first[0].startswith("labels: expected uint8")
    assert "got 9 at (0, 0, 0)" in first[1]
    assert "an error on rank 1." in second[0]
    assert "an error on rank 1." in second[1]
    for errors in (first, second):
        assert "expected None while torch exports or traces a program" in errors[2]


# -- a GPU -----------------------------------------------------------------------------------------


def on_gpu(rank, kind, option):
    """Returns loss and gradient of CUDA tensors; two ranks share the device."""
    if rank not in PAIR:
        return None
    group = group_of("two")
    logits, labels, class_weight, pixel_weight = make_batch(kind)
    x, y, w = part_of(rank, "two", logits, labels, pixel_weight)
    batch = [tensor.cuda() for tensor in (x, y, class_weight, w)]
    results = loss_and_gradient_of(kind, option, batch, process_group=group)
    bad = batch[1].clone()
    bad[0, 0, 0] = 77 if rank == PAIR[1] else 1
    function = function_of(kind)

    def call(labels, mode):
        return function(batch[0], labels, check_labels=mode, process_group=group)

    errors = [error_of(lambda: call(bad, "raise"))]
    call(bad, "defer")
    errors.append(error_of(lambda: call(batch[1], "defer")))
    call(bad, "defer")
    errors.append(error_of(seg_loss.check))
    call(bad, "ignore")
    call(batch[1], "raise")
    seg_loss.check()
    return results, errors


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_with_cuda_tensors_agree_with_one_process(cuda, processes, kind):
    option = "valid", "class and pixel", 0.0
    loss, gradient, _, _ = loss_and_gradient_of(kind, option, make_batch(kind))
    results = of_members(processes.run(on_gpu, kind, option), "two")
    got = joined([of_rank for of_rank, _ in results])
    assert got[0] == pytest.approx(float(loss), rel=1e-5)
    assert got[2] == pytest.approx(float(loss), rel=1e-5)
    for i in (1, 3):
        np.testing.assert_allclose(got[i], gradient, rtol=1e-4, atol=1e-6)
    (_, of_others), (_, of_culprit) = results
    assert all("got 77 at (0, 0, 0)" in error for error in of_culprit)
    assert all("an error on rank 3." in error for error in of_others)
