"""`compat.torch` on the samples with which torch tests its own cross entropy.

The installed torch makes the samples: the OpInfo of `nn.functional.cross_entropy` and the
ModuleInfo of `nn.CrossEntropyLoss`. Those with probabilities as targets are left out.
"""

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from seg_loss import InvalidInput
from seg_loss.compat import torch as ours
from tests.support.backends import IS_INTERPRETED
from tests.support.cases import FLOATS, assert_accurate

pytest.importorskip("expecttest", reason="torch's modules of samples import it")
# torch's forward derivatives import a module that uses torch.jit.script.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")

# Those modules change settings of the process that imports them.
COLLECT = """
import sys

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

operator = next(info for info in op_db if info.name == "nn.functional.cross_entropy")
module = next(info for info in module_db if info.module_cls is torch.nn.CrossEntropyLoss)
arguments = {"device": "cpu", "requires_grad": False, "training": True}
samples, errors = [], []
for dtype in operator.dtypes:
    for sample in operator.sample_inputs("cpu", dtype):
        samples.append(((sample.input, *sample.args), sample.kwargs))
    for sample in module.module_inputs_func(module, dtype=dtype, **arguments):
        samples.append((sample.forward_input.args, sample.constructor_input.kwargs))
if operator.error_inputs_func:
    for error in operator.error_inputs("cpu"):
        sample = error.sample_input
        errors.append(((sample.input, *sample.args), sample.kwargs, error.error_type))
if module.module_error_inputs_func:
    for error in module.module_error_inputs_func(module, dtype=torch.float32, **arguments):
        sample = error.module_error_input
        options = sample.constructor_input.kwargs
        errors.append((sample.forward_input.args, options, error.error_type))
torch.save((samples, errors), sys.argv[1])
"""
# The interpreter takes a tenth of a second for a sample.
MAX_SAMPLES = 12 if IS_INTERPRETED else None


@dataclass(frozen=True)
class Sample:
    """Arguments of a cross entropy.

    Attributes:
        input, target: the tensors.
        options: the other arguments.
    """

    input: Tensor
    target: Tensor
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"input {tuple(self.input.shape)}, {', '.join(self.options) or 'no options'}"

    def to(self, place: Any) -> "Sample":
        """Returns the sample with `place` called for each tensor."""
        options = {
            name: place(value) if isinstance(value, Tensor) else value
            for name, value in self.options.items()
        }
        return Sample(place(self.input), place(self.target), options)

    def double(self) -> "Sample":
        """Returns the sample in float64, in which torch computes the truth."""
        return self.to(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # samples are small, and threads would wait for each other


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """Samples and wrong calls as torch makes them."""
    path = tmp_path_factory.mktemp("samples") / "samples.pt"
    subprocess.run([sys.executable, "-W", "ignore", "-c", COLLECT, path], check=True)
    return torch.load(path, weights_only=False)


@pytest.fixture
def samples(collected, dtype):
    """The samples of a dtype whose targets are class indices."""
    found = [
        Sample(input, target, options)
        for (input, target), options in collected[0]  # noqa: A001 - torch's name
        if input.dtype == dtype and not target.is_floating_point()
    ]
    assert len(found) > 70
    return found[:MAX_SAMPLES]


SUMS_OF_PRODUCTS = "grad_output", "batch of grad_output", "jvp, tangents"


def check_against_torch(results_of, sample, backend):
    """Checks results against torch's in float64, with torch's own error as the tolerance.

    Args:
        results_of: takes a function, its input and a sample, and returns results by name.
        sample: the sample.
        backend: the kernels under test.
    """

    def run(function, sample):
        return results_of(function, sample.input.detach().requires_grad_(), sample)

    got = run(ours.cross_entropy, sample.to(backend.place))
    truth, by_torch = run(F.cross_entropy, sample.double()), run(F.cross_entropy, sample)
    for name, result in got.items():
        result = result.detach().cpu()
        expected, theirs = truth[name].detach(), by_torch[name].detach()
        assert result.dtype == theirs.dtype
        # A mean over no pixel is NaN.
        assert torch.equal(result.isnan(), expected.isnan()), f"{name} of {sample}"
        result, expected, theirs = (x.nan_to_num() for x in (result, expected, theirs))
        scale = None
        if name in SUMS_OF_PRODUCTS:  # with numbers of -1 to 1
            scale = float(truth["gradient"].detach().nan_to_num().abs().sum())
        elif results_of in (second_derivatives, function_transforms):
            # Second derivatives are differences of numbers as large as the gradient.
            scale = max(float(other.detach().nan_to_num().abs().max()) for other in truth.values())
        if result.dtype == torch.float64:
            # The error of torch's float64 is invisible: there the scale is that of a probability,
            # of which differences are taken.
            scale = max(1.0, float(expected.abs().max()), scale or 0.0)
        assert_accurate(f"{name} of {sample}", result, expected, theirs, scale=scale)


def upstream(loss, *batch):
    """Returns numbers for the gradient in a loss, the same for each dtype and device."""
    size = torch.Size([*batch, *loss.shape])
    numbers = torch.linspace(-1, 1, size.numel() + 1, dtype=torch.float64)[1:].reshape(size)
    return numbers.to(loss)


def values_and_gradients(function, x, sample):
    loss = function(x, sample.target, **sample.options)
    (gradient,) = torch.autograd.grad(loss, x, upstream(loss))
    return {"loss": loss, "gradient": gradient}


def batched_gradients(function, x, sample):
    loss = function(x, sample.target, **sample.options)
    (gradients,) = torch.autograd.grad(loss, x, upstream(loss, 3), is_grads_batched=True)
    return {"gradients": gradients}


def second_derivatives(function, x, sample):
    loss = function(x, sample.target, **sample.options)
    grad_output = upstream(loss).requires_grad_()
    (gradient,) = torch.autograd.grad(loss, x, grad_output, create_graph=True)
    inputs = x, grad_output
    second = torch.autograd.grad(gradient, inputs, upstream(gradient), retain_graph=True)
    batch = upstream(gradient, 2)
    batched = torch.autograd.grad(gradient, inputs, batch, is_grads_batched=True)
    names = "gradient", "input", "grad_output", "batch of input", "batch of grad_output"
    return dict(zip(names, (gradient, *second, *batched), strict=True))


def function_transforms(function, x, sample):
    x = x.detach()

    def loss_of(x, target=sample.target):
        return function(x, target, **sample.options)

    def total(x):
        loss = loss_of(x)
        return (loss * upstream(loss)).sum()

    xs, targets = torch.stack([x, -x, x / 2]), torch.stack([sample.target] * 3)
    values, tangents = torch.func.jvp(loss_of, (x,), (upstream(x),))
    _, hvp = torch.func.jvp(torch.func.grad(total), (x,), (upstream(x),))
    return {
        "vmap": torch.func.vmap(loss_of)(xs),
        "vmap of inputs and targets": torch.func.vmap(loss_of)(xs, targets),
        "gradient": torch.func.grad(total)(x),
        "vmap of grad": torch.func.vmap(torch.func.grad(total))(xs),
        "jvp, values": values,
        "jvp, tangents": tangents,
        "jvp of grad": hvp,
        "hvp": torch.autograd.functional.hvp(total, x, upstream(x))[1],
    }


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "results_of",
    [values_and_gradients, batched_gradients, second_derivatives, function_transforms],
)
def test_results_on_torchs_samples_are_torchs(backend, samples, results_of):
    for sample in samples:
        check_against_torch(results_of, sample, backend)


@pytest.mark.parametrize("dtype", [torch.float64], ids=str)
def test_derivatives_on_torchs_samples_pass_gradgradcheck(backend, samples):
    for sample in samples[:12]:
        placed = sample.to(backend.place)
        x = placed.input.requires_grad_()

        def loss(x, placed=placed):
            return ours.cross_entropy(x, placed.target, **placed.options)

        if loss(x).isnan().any():
            continue  # the mean of no pixel
        assert torch.autograd.gradcheck(loss, x, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(loss, x, check_batched_grad=True)


@pytest.mark.parametrize("dtype", [torch.float32], ids=str)
def test_modules_on_torchs_samples_equal_the_function(backend, samples):
    for sample in samples:
        sample = sample.to(backend.place)
        module = ours.CrossEntropyLoss(**sample.options)
        got = module(sample.input, sample.target)
        expected = ours.cross_entropy(sample.input, sample.target, **sample.options)
        assert torch.equal(got.nan_to_num(), expected.nan_to_num()), str(sample)


def test_torchs_wrong_calls_raise_what_torchs_handlers_catch(backend, collected):
    _, errors = collected
    for arguments, options, error_type in errors:
        wrong = Sample(*arguments, options).to(backend.place)
        call = ours.CrossEntropyLoss(**wrong.options)
        with pytest.raises(error_type) as raised:
            call(wrong.input, wrong.target)
        assert isinstance(raised.value, InvalidInput)
