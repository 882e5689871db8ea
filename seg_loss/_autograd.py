"""The functions of `_operators` made differentiable, by `torch.autograd.Function`.

If there will be a backward pass, the forward pass computes the gradient too, for a `grad_output` of
1: one read of the logits and one write serve both. The backward pass returns that gradient if
`grad_output` is 1, which is checked on the device, and otherwise computes it again from the logits,
so that a gradient is never rounded twice. The gradient of upsampled scores is stored in the loss's
dtype and multiplied instead: in place, unless the graph is retained for another pass.

Forward mode, the transforms of torch.func and create_graph differentiate again. With p the softmax
of x / T, and <u, v> = sum_c p_c u_c v_c, the derivatives of the term of a pixel of weight w along
u and v are

    first     w (p_c - [c = y]) / T
    second    w p_c (v_c - <1, v>) / T^2
    third     w (q_c - p_c sum_k q_k) / T^3     where q_c = p_c (u_c - <1, u>) (v_c - <1, v>)

With label smoothing, w of the second and third is the sum of the weights of all nll in the term.
The second is the gradient of the softmax times w / T, in one read of the logits and of v. The third
is composed of torch's operations. Each Function differentiates into Functions of this module.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function, forward_ad

from seg_loss import _backends, _labels, _operators
from seg_loss._inputs import LossInputs, LossOptions, loss_dtype, valid_classes
from seg_loss._interpolation import interpolate, interpolate_transposed


def cross_entropy(inputs: LossInputs) -> Tensor:
    """Returns the loss, differentiable in the logits."""
    is_upsampled = inputs.options.upsampling is not None
    if not _is_differentiated(inputs.logits):
        if is_upsampled:
            return _operators.upsampled_cross_entropy(inputs, False)[0]
        return _operators.full_size_cross_entropy(inputs, False)[0]
    function = UpsampledCrossEntropy if is_upsampled else CrossEntropy
    loss: Tensor = apply(function, *inputs.tensors, not is_transformed(), inputs.options)[0]
    return loss


def sum_of_terms(inputs: LossInputs) -> Tensor:
    """Returns the loss of inputs whose divisor is 1, to be divided; differentiable in the logits.

    The division makes `grad_output` differ from 1, so that the backward pass computes the gradient
    of full-size logits, and the forward pass need not.
    """
    if inputs.options.upsampling is not None or not _is_differentiated(inputs.logits):
        return cross_entropy(inputs)
    loss: Tensor = apply(CrossEntropy, *inputs.tensors, False, inputs.options)[0]
    return loss


def loss_and_gradient(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Returns the loss and its gradient, without gradients of their own."""
    is_upsampled = inputs.options.upsampling is not None
    results: tuple[Any, ...]
    if torch._C._are_functorch_transforms_active():
        function = UpsampledCrossEntropy if is_upsampled else CrossEntropy
        # Forward mode would pass through the kernels, although no gradient is recorded here.
        logits, *others = inputs.tensors
        results = apply(function, logits.detach(), *others, True, inputs.options)
    elif is_upsampled:
        results = _operators.upsampled_cross_entropy(inputs, True)
    else:
        results = _operators.full_size_cross_entropy(inputs, True)
    return results[0], results[-1]


def pixel_terms(inputs: LossInputs) -> Tensor:
    """Returns the terms [N, *spatial], differentiable in the logits."""
    if not _is_differentiated(inputs.logits):
        return _operators.pixel_terms(inputs)
    terms: Tensor = apply(PixelTerms, *inputs.tensors, inputs.options)
    return terms


def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature) along `axis`, differentiable."""
    if not _is_differentiated(logits):
        return _operators.softmax(logits, axis, temperature)
    result: Tensor = apply(Softmax, logits, axis, temperature)
    return result


def is_transformed() -> bool:
    """Returns whether torch.func or forward mode may differentiate the call."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _is_differentiated(logits: Tensor) -> bool:
    """Returns whether a call must be recorded."""
    return (logits.requires_grad and torch.is_grad_enabled()) or is_transformed()


def apply(function: type[Function], *arguments: Any) -> Any:
    """Returns `function.apply(*arguments)`, by the method of the base class where that is enough.

    `Function.apply` also inspects the signature of `forward`, for defaults and for torch.func. That
    takes as long as four launches.
    """
    if torch._C._are_functorch_transforms_active():
        if _is_functionalized():
            return function.forward(*arguments)  # an operator
        return function.apply(*arguments)  # type: ignore[no-untyped-call]
    return super(Function, function).apply(*arguments)  # type: ignore[misc]


def _is_functionalized() -> bool:
    """Returns whether torch.func.functionalize transforms the call, which takes no Function."""
    transform = torch._C._functorch.peek_interpreter_stack()
    return transform.key() == torch._C._functorch.TransformType.Functionalize


def _call(function: type[Function], *arguments: Any) -> Any:
    """Returns the result of a Function of a gradient, which is recorded only if torch needs that.

    A batch of gradients is no argument of a Function: torch would not record it. It calls the
    operator for each element, and records the derivative of that. In a backward pass that torch
    compiles, the graph holds the operator too.
    """
    is_recorded = torch.is_grad_enabled() or is_transformed()
    if not is_recorded or torch.compiler.is_compiling():
        return function.forward(*arguments)
    if any(map(_operators.is_batched, arguments)):
        return function.forward(*arguments)
    return apply(function, *arguments)


class DifferentiableFunction(Function):
    """A Function whose only or first result has a derivative along tangents of its arguments."""

    @staticmethod
    def derivative(primals: Sequence[Any], tangents: Sequence[Tensor | None]) -> Tensor:
        """Returns the derivative along `tangents`; `primals` are the values that `_save` saved."""
        raise NotImplementedError

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Tensor | None) -> Any:
        """Returns the derivative, and None for all results but the first."""
        primals = _saved(ctx)
        if not torch._C._are_functorch_transforms_active():
            tangent = cls.derivative(primals, tangents)
        else:
            # torch disables forward mode in this method, so that the derivative of an outer
            # torch.func.jvp would be 0.
            with forward_ad._set_fwd_grad_enabled(True):
                tangent = cls.derivative([_without_tangent(value) for value in primals], tangents)
        num_others = getattr(ctx, "num_other_results", 0)
        return (tangent, *(None,) * num_others) if num_others else tangent

    @classmethod
    def vmap(cls, info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Any, Any]:
        """Returns the results, stacked, of one element of the batch after the other."""

        def element(index: int) -> Any:
            return cls.apply(  # type: ignore[no-untyped-call]
                *(
                    argument if dim is None else argument.select(dim, index)
                    for argument, dim in zip(arguments, in_dims, strict=True)
                )
            )

        if not info.batch_size:
            return cls._empty_batch(in_dims, arguments)
        # A deferred error of one element is no error of the next one's call.
        with _labels.deferred_errors_held():
            results = [element(index) for index in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(outputs) for outputs in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    @classmethod
    def _empty_batch(cls, in_dims: Sequence[int | None], arguments: Any) -> tuple[Any, Any]:
        """Returns empty results, of the shapes that those of an element have."""
        element = [
            argument
            if dim is None
            else argument.new_zeros(torch.Size(argument.movedim(dim, 0).shape[1:]))
            for argument, dim in zip(arguments, in_dims, strict=True)
        ]
        results = cls.apply(*element)  # type: ignore[no-untyped-call]
        if isinstance(results, Tensor):
            return results.new_empty((0, *results.shape)), 0
        empty = tuple(result.new_empty((0, *result.shape)) for result in results)
        return empty, (0,) * len(empty)


class CrossEntropy(DifferentiableFunction):
    """Logits to loss, divisor and, if wanted, gradient; only the loss is differentiable."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor | None, ...]:
        *tensors, with_gradient, options = arguments
        inputs = _inputs(tensors, options)
        results = _operators.full_size_cross_entropy(inputs, with_gradient)
        return results if with_gradient else results[:2]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        *tensors, with_gradient, options = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # no zeros of the gradient's size for its own gradient
        _save(ctx, (*tensors, output[1]), options)
        ctx.num_other_results = len(output) - 1
        ctx.gradient = output[2] if with_gradient else None

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 5
        if grad_loss is None:
            return None, *nothing
        # The gradient is returned once: a second backward pass through the graph computes its own.
        gradient, ctx.gradient = ctx.gradient, None
        *tensors, divisor, options = _saved(ctx)
        if gradient is None or torch.is_grad_enabled() or _operators.needs_operator(grad_loss):
            return _call(Gradient, *tensors, divisor, grad_loss, options), *nothing
        inputs = _inputs(tensors, options)
        _backends.rescale_gradient_(inputs, divisor, grad_loss, gradient)
        return gradient, *nothing

    @staticmethod
    def derivative(primals: Sequence[Any], tangents: Sequence[Tensor | None]) -> Tensor:
        *tensors, divisor, options = primals
        return _inner_product_of_loss(tensors, divisor, options, tangents[0])


class Gradient(DifferentiableFunction):
    """Logits to grad_output / D * d(sum of terms) / d(logits).

    A divisor or `grad_output` of None is 1. Differentiable in `grad_output` and pixel weights too.
    """

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        *tensors, divisor, grad_output, options = arguments
        inputs = _inputs(tensors, options)
        return _operators.cross_entropy_gradient(inputs, divisor, grad_output)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        *tensors, options = inputs
        _save(ctx, tensors, options)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, class_weight, pixel_weight, divisor, grad_output, options = _saved(ctx)
        grad_logits = grad_weight = grad_factor = None
        needs = _needs_input_grad(ctx)
        tensors = logits, labels, class_weight, pixel_weight
        if needs[0]:
            inputs = _inputs(tensors, options)
            grad_logits = _second_derivative(v, inputs, divisor, grad_output)
        if needs[3]:
            unweighted = logits, labels, class_weight, None, divisor, grad_output
            unit = _call(Gradient, *unweighted, options)
            grad_weight = _products(unit, v, pixel_weight.dtype).sum(1)
        if needs[5]:
            product = _inner_product_of_loss(tensors, divisor, options, v)
            grad_factor = product.to(grad_output.dtype)
        return grad_logits, None, None, grad_weight, None, grad_factor, None

    @staticmethod
    def derivative(primals: Sequence[Any], tangents: Sequence[Tensor | None]) -> Tensor:
        logits, labels, class_weight, pixel_weight, divisor, grad_output, options = primals
        along_logits, _, _, along_weight, _, along_factor, _ = tangents
        parts = []
        if along_logits is not None:
            inputs = LossInputs(logits, labels, class_weight, pixel_weight, options)
            parts.append(_second_derivative(along_logits, inputs, divisor, grad_output))
        if along_weight is not None:
            tensors = logits, labels, class_weight, along_weight, divisor, grad_output
            parts.append(_call(Gradient, *tensors, options))
        if along_factor is not None:
            tensors = logits, labels, class_weight, pixel_weight, divisor, along_factor
            parts.append(_call(Gradient, *tensors, options))
        return _sum(parts)


class UpsampledCrossEntropy(DifferentiableFunction):
    """Scores to loss and, if wanted, gradient; only the loss is differentiable."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor | None, ...]:
        *tensors, with_gradient, options = arguments
        inputs = _inputs(tensors, options)
        results = _operators.upsampled_cross_entropy(inputs, with_gradient)
        return results if with_gradient else results[:1]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        *tensors, with_gradient, options = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        _save(ctx, (*tensors, output[1] if with_gradient else None), options)
        ctx.num_other_results = len(output) - 1

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 5
        if grad_loss is None:
            return None, *nothing
        *tensors, gradient, options = _saved(ctx)
        if gradient is None or torch.is_grad_enabled() or _operators.needs_operator(grad_loss):
            arguments = *tensors, gradient, grad_loss, options
            return _call(UpsampledGradient, *arguments), *nothing
        # A graph that is not retained drops the stored gradient after this pass.
        is_retained = torch._C._autograd._get_current_graph_task_keep_graph()
        scaled = _backends.scale_upsampled_gradient(
            tensors[0], gradient, grad_loss, may_overwrite=not is_retained
        )
        return scaled, *nothing

    @staticmethod
    def derivative(primals: Sequence[Any], tangents: Sequence[Tensor | None]) -> Tensor:
        *tensors, stored, options = primals
        gradient = _call(UpsampledGradient, *tensors, stored, None, options)
        return _inner_product(gradient, tangents[0])


class UpsampledGradient(DifferentiableFunction):
    """Scores and the gradient of their loss, if it is stored, to its product with `grad_output`.

    A `grad_output` of None is 1.
    """

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        *tensors, gradient, grad_output, options = arguments
        # The forward pass has checked the labels.
        inputs = _inputs(tensors, replace(options, check_labels="ignore"))
        if gradient is None:
            with _labels.deferred_errors_held():
                _, gradient = _operators.upsampled_cross_entropy(inputs, True)
        if grad_output is None:
            return torch.clone(gradient).to(inputs.logits.dtype)
        return _operators.upsampled_gradient(inputs, gradient, grad_output)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        *tensors, options = inputs
        _save(ctx, tensors, options)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, gradient, grad_output, options = _saved(ctx)
        grad_scores = grad_factor = None
        needs = _needs_input_grad(ctx)
        if needs[0]:
            inputs = _inputs(tensors, options)
            grad_scores = _second_derivative_of_scores(v, inputs, grad_output)
        if needs[5]:
            unit = _call(UpsampledGradient, *tensors, gradient, None, options)
            grad_factor = _inner_product(unit, v).to(grad_output.dtype)
        return grad_scores, None, None, None, None, grad_factor, None

    @staticmethod
    def derivative(primals: Sequence[Any], tangents: Sequence[Tensor | None]) -> Tensor:
        *tensors, gradient, grad_output, options = primals
        along_scores, *_, along_factor, _ = tangents
        parts = []
        if along_scores is not None:
            inputs = _inputs(tensors, options)
            parts.append(_second_derivative_of_scores(along_scores, inputs, grad_output))
        if along_factor is not None:
            arguments = *tensors, gradient, along_factor, options
            parts.append(_call(UpsampledGradient, *arguments))
        return _sum(parts)


class PixelTerms(DifferentiableFunction):
    """Logits to terms."""

    @staticmethod
    def forward(*flat: Any) -> Tensor:
        return _operators.pixel_terms(LossInputs(*flat))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        *tensors, options = inputs
        _save(ctx, tensors, options)

    @staticmethod
    def backward(ctx: Any, grad_terms: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _backends.weighted_by(LossInputs(*_saved(ctx)), grad_terms)
        gradient = _call(Gradient, *inputs.tensors, None, None, inputs.options)
        return gradient, None, None, None, None

    @staticmethod
    def derivative(primals: Sequence[Any], tangents: Sequence[Tensor | None]) -> Tensor:
        *tensors, options = primals
        gradient = _call(Gradient, *tensors, None, None, options)
        return _products(gradient, tangents[0], loss_dtype(gradient)).sum(1)


class Softmax(DifferentiableFunction):
    """Logits to probabilities."""

    @staticmethod
    def forward(logits: Tensor, axis: int, temperature: float) -> Tensor:
        return _operators.softmax(logits, axis, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        logits, *constants = inputs
        _save(ctx, (logits,), *constants)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        logits, axis, temperature = _saved(ctx)
        arguments = grad_output, logits, None, axis, temperature
        return _call(SoftmaxGradient, *arguments), None, None

    @staticmethod
    def derivative(primals: Sequence[Any], tangents: Sequence[Tensor | None]) -> Tensor:
        logits, axis, temperature = primals
        arguments = tangents[0], logits, None, axis, temperature
        result: Tensor = _call(SoftmaxGradient, *arguments)
        return result

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
        """Returns the probabilities of the whole batch."""
        logits, axis, temperature = arguments
        batch = logits.movedim(in_dims[0], 0)
        return cls.apply(batch, axis + 1, temperature), 0  # type: ignore[no-untyped-call]


class SoftmaxGradient(DifferentiableFunction):
    """A gradient in the softmax, and the logits, to weight * p (g - sum_c g_c p_c) / temperature.

    g is `grad_output`. A weight of None is 1.
    """

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return _operators.softmax_gradient(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        *tensors, axis, temperature = inputs
        _save(ctx, tensors, axis, temperature)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, logits, weight, axis, temperature = _saved(ctx)
        others = logits, weight, axis, temperature
        grad_grad_output = grad_logits = grad_weight = None
        needs = _needs_input_grad(ctx)
        if needs[0]:  # the function is symmetric in `grad_output` and v
            grad_grad_output = _call(SoftmaxGradient, v, *others)
        if needs[1]:
            grad_logits = _third_derivative(v, grad_output, *others)
        if needs[2]:
            unit = _call(SoftmaxGradient, grad_output, logits, None, axis, temperature)
            grad_weight = _products(unit, v, weight.dtype).sum(axis)
        return grad_grad_output, grad_logits, grad_weight, None, None

    @staticmethod
    def derivative(primals: Sequence[Any], tangents: Sequence[Tensor | None]) -> Tensor:
        grad_output, *others = primals
        logits, _, axis, temperature = others
        along_grad_output, along_logits, along_weight, *_ = tangents
        parts = []
        if along_grad_output is not None:
            parts.append(_call(SoftmaxGradient, along_grad_output, *others))
        if along_logits is not None:
            parts.append(_third_derivative(along_logits, grad_output, *others))
        if along_weight is not None:
            arguments = grad_output, logits, along_weight, axis, temperature
            parts.append(_call(SoftmaxGradient, *arguments))
        return _sum(parts)

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
        """Returns the gradients of the whole batch."""
        *tensors, axis, temperature = arguments

        def batch(tensor: Tensor | None, dim: int | None) -> Tensor | None:
            if tensor is None:
                return None
            if dim is None:
                return tensor.expand(info.batch_size, *tensor.shape)
            return tensor.movedim(dim, 0)

        batches = map(batch, tensors, in_dims[:3])
        return cls.apply(*batches, axis + 1, temperature), 0  # type: ignore[no-untyped-call]


def _needs_input_grad(ctx: Any) -> list[bool]:
    """Returns whether each argument of the Function needs a gradient, also for its operator."""
    needs = ctx.needs_input_grad
    return [needs[index] for index in getattr(ctx, "indices", range(len(needs)))]


def _inputs(tensors: Sequence[Any], options: LossOptions) -> LossInputs:
    logits, labels, class_weight, pixel_weight = tensors
    return LossInputs(logits, labels, class_weight, pixel_weight, options)


def _save(ctx: Any, tensors: Sequence[Tensor | None], *constants: Any) -> None:
    """Saves the arguments of a Function for its derivatives."""
    ctx.save_for_backward(*tensors)
    ctx.is_transformed = is_transformed()
    if ctx.is_transformed:
        ctx.save_for_forward(*tensors)
    ctx.constants = constants


def _saved(ctx: Any) -> tuple[Any, ...]:
    """Returns the arguments that `_save` saved."""
    tensors = ctx.saved_tensors  # read once: each access unpacks them
    if ctx.is_transformed:  # the function that torch.func.vjp returns is called after the transform
        tensors = unwrap_dead_wrappers(tensors)
    return *tensors, *ctx.constants


def _without_tangent(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return forward_ad.unpack_dual(value).primal  # type: ignore[no-untyped-call]


def _second_derivative(
    v: Tensor, inputs: LossInputs, divisor: Tensor | None, grad_output: Tensor | None
) -> Tensor:
    """Returns the derivative of `Gradient` in the logits, along v."""
    dtype, options = loss_dtype(inputs.logits), inputs.options
    valid, classes = valid_classes(inputs)
    # The divisor has 1 / (D T) as its second element.
    scale = 1 / options.temperature if divisor is None else divisor[1].to(dtype)
    weight = valid.to(dtype) * scale
    if grad_output is not None:
        weight = weight * grad_output.to(dtype)
    if inputs.class_weight is not None:
        weights, smoothing = inputs.class_weight.to(dtype), options.label_smoothing
        of_classes = (1 - smoothing) * weights + smoothing / inputs.num_classes * weights.sum()
        weight = weight * of_classes[classes]
    if inputs.pixel_weight is not None:
        weight = weight * inputs.pixel_weight.to(dtype)
    weight = torch.where(valid, weight, 0)
    product: Tensor = _call(SoftmaxGradient, v, inputs.logits, weight, 1, options.temperature)
    return product


def _second_derivative_of_scores(
    v: Tensor, inputs: LossInputs, grad_output: Tensor | None
) -> Tensor:
    """Returns the derivative of `UpsampledGradient` in the scores, along v.

    It is that of the upsampled scores, which are stored, along the upsampled v.
    """
    dtype, axes = loss_dtype(v), inputs.axes
    assert axes is not None
    logits, direction = (interpolate(tensor.to(dtype), axes) for tensor in (inputs.logits, v))
    # The forward pass has checked the labels.
    options = replace(inputs.options, upsampling=None, check_labels="ignore")
    inputs = replace(inputs, logits=logits, options=options)
    with _labels.deferred_errors_held():
        divisor = apply(CrossEntropy, *inputs.tensors, False, options)[1]
    product = _second_derivative(direction, inputs, divisor, grad_output)
    return interpolate_transposed(product, axes).to(v.dtype)


def _third_derivative(
    u: Tensor, v: Tensor, logits: Tensor, weight: Tensor | None, axis: int, temperature: float
) -> Tensor:
    """Returns the derivative of `SoftmaxGradient` in the logits, along u for a `grad_output` v."""
    dtype = loss_dtype(logits)
    p: Tensor = apply(Softmax, logits.to(dtype), axis, temperature)
    u, v = u.to(dtype), v.to(dtype)
    u_centred, v_centred = (x - (p * x).sum(axis, keepdim=True) for x in (u, v))
    q = p * u_centred * v_centred
    product = (q - p * q.sum(axis, keepdim=True)) / temperature**2
    if weight is not None:
        weight = weight.unsqueeze(axis)
        product = torch.where(weight != 0, weight * product, 0)
    return product.to(logits.dtype)


def _products(gradient: Tensor, v: Tensor | None, dtype: torch.dtype) -> Tensor:
    assert v is not None
    return gradient.to(dtype) * v.to(dtype)


def _inner_product(gradient: Tensor, v: Tensor | None) -> Tensor:
    """Returns the sum of the products of a gradient and a vector, in the loss's dtype."""
    return _products(gradient, v, loss_dtype(gradient)).sum()


def _inner_product_of_loss(
    tensors: Sequence[Any], divisor: Tensor | None, options: LossOptions, v: Tensor | None
) -> Tensor:
    """Returns the inner product of the gradient of a loss and v.

    A divisor of NaN, which is that of torch's mean of no pixel, makes it NaN.
    """
    product = _inner_product(_call(Gradient, *tensors, None, None, options), v)
    return product if divisor is None else product / divisor[0].to(product.dtype)


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total, *others = parts
    for part in others:
        total = total + part
    return total
