"""Optimizers: the groups of parameters, and the learning rate of each step.

The rate is a function of the step alone, so that a resumed training needs no state of a schedule.
"""

from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from .recipes import Recipe


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """Returns the groups of parameters that are trained: weights, biases and scales.

    A bias is a parameter whose name ends in `bias`. A scale is another parameter of one axis, such
    as the weight of a normalisation layer. Parameters that need no gradient are in no group.
    """
    weights, biases, scales = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.rpartition(".")[2].endswith("bias"):
            biases.append(parameter)
        elif parameter.ndim <= 1:
            scales.append(parameter)
        else:
            weights.append(parameter)
    decay = recipe.weight_decay
    rows = (
        ("weights", weights, 1.0, decay),
        ("biases", biases, recipe.bias_lr_mult, decay * recipe.bias_decay_mult),
        ("scales", scales, 1.0, decay * recipe.bias_decay_mult),
    )
    return [
        {
            "name": name,
            "params": parameters,
            "lr_mult": lr_mult,
            "lr": recipe.learning_rate * lr_mult,
            "weight_decay": weight_decay,
        }
        for name, parameters, lr_mult, weight_decay in rows
        if parameters
    ]


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Returns the optimizer of a recipe. SGD has Caffe's update while the rate is fixed.

    Caffe has the rate in the velocity, v = m v + lr g, and torch applies it to the velocity.
    """
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        return AdamW(groups)
    return SGD(groups, momentum=recipe.momentum)


def rate_at(step: int, recipe: Recipe) -> float:
    """Returns the learning rate of the update number `step`, from 0."""
    rate = recipe.learning_rate
    if recipe.schedule == "poly":
        rate *= (1 - min(step, recipe.steps) / recipe.steps) ** recipe.power
    if step < recipe.warmup_steps:
        rate *= (step + 1) / recipe.warmup_steps
    return rate


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the learning rate of all groups, each with its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]


def trained_parameters(optimizer: Optimizer) -> Iterable[nn.Parameter]:
    """Returns the parameters of all groups, in their order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
