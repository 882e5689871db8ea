"""Recipes and options: the published numbers, what replaces them, groups of parameters."""

import dataclasses

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from app.errors import IllPosed
from app.options import parse
from app.training import options as train_options
from app.training.optimization import make_optimizer, parameter_groups, rate_at, set_rate
from app.training.options import TrainOptions, resolve
from app.training.recipes import FCN_RATES, RECIPES, Recipe
from models.checkpoints import PREPROCESSINGS as PREPROCESSINGS_OF_MODELS
from models.fcn import FCN8s
from models.networks import NETWORKS

THIN = (2, 2, 2, 2, 2, 2)


def resolved(name="fcn8s", num_images=100, world_size=1, **texts):
    options = parse(TrainOptions, texts.items())
    return resolve(options, name, num_images, world_size)


@pytest.mark.parametrize(
    ("network", "rate", "steps"),
    [
        ("fcn32s", 1e-10, 100_000),
        ("fcn16s", 1e-12, 100_000),
        ("fcn8s", 1e-14, 100_000),
        ("fcn8s-atonce", 1e-10, 300_000),
    ],
)
def test_the_fcn_recipe_has_the_published_numbers(network, rate, steps):
    recipe = resolved(network)
    assert (recipe.learning_rate, recipe.steps) == (rate, steps)
    assert (recipe.momentum, recipe.weight_decay, recipe.schedule) == (0.99, 5e-4, "fixed")
    assert (recipe.batch_size, recipe.accumulation, recipe.normalization) == (1, 1, "batch")
    assert (recipe.bias_lr_mult, recipe.bias_decay_mult) == (2, 0)
    assert (recipe.crop, recipe.scale, recipe.flip) == (None, None, False)
    assert (recipe.preprocessing, recipe.amp, recipe.optimizer) == ("caffe", "none", "sgd")


def test_the_networks_and_preprocessings_are_those_of_models():
    assert FCN_RATES.keys() == NETWORKS.keys()
    assert set(train_options.PREPROCESSINGS) == set(PREPROCESSINGS_OF_MODELS)


def test_options_have_the_names_of_the_recipe():
    names = {field.name for field in dataclasses.fields(Recipe)}
    assert names <= TrainOptions.model_fields.keys()


def test_each_option_replaces_one_value():
    modern = RECIPES["modern"]
    recipe = resolved(recipe="modern", crop="100x200", flip="no", scale="none", batch_size="3")
    assert recipe == dataclasses.replace(
        modern, crop=(100, 200), flip=False, scale=None, batch_size=3
    )
    assert resolved(recipe="modern", crop="96").crop == (96, 96)
    assert resolved(recipe="modern", crop="96, 32").crop == (96, 32)
    assert resolved(recipe="modern", crop="none").crop is None
    assert resolved(class_weight="1,0.5," + "1," * 18 + "0").class_weight[1] == 0.5
    assert resolved(clip_grad_norm="2").clip_grad_norm == 2


def test_the_rate_of_the_modern_recipe_depends_on_the_optimizer():
    assert resolved(recipe="modern").learning_rate == 1e-4
    sgd = resolved(recipe="modern", optimizer="sgd")
    assert (sgd.learning_rate, sgd.weight_decay) == (1e-2, 5e-4)
    assert resolved(recipe="modern", optimizer="sgd", learning_rate="3").learning_rate == 3


def test_epochs_become_steps_of_all_processes():
    assert resolved(epochs="2").steps == 200
    assert resolved(epochs="1.5", batch_size="4", accumulation="2", world_size=3).steps == 7
    assert resolved(epochs="0.001").steps == 1


def test_a_short_training_has_a_short_warm_up():
    assert resolved(recipe="modern").warmup_steps == 500
    assert resolved(recipe="modern", steps="60").warmup_steps == 6
    assert resolved(recipe="modern", steps="9").warmup_steps == 0


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"steps": "1", "epochs": "1"}, "epochs: expected either epochs or steps, got both"),
        ({"class_weight": "1,2"}, "class_weight: expected one for each of 21 classes, got 2"),
        ({"class_names": "a,b,c"}, "class_names: expected one for each of 21 classes, got 3"),
        (
            {"ignore_index": "none", "batch_size": "2"},
            "ignore_index: expected a value for padded pixels, got none. Padding has",
        ),
        (
            {"ignore_index": "4294967295", "batch_size": "2"},
            "ignore_index: expected a value for padded pixels, got 4294967295",
        ),
        ({"crop": "5x"}, "crop: expected height and width with a comma between them, .*, got '5x'"),
        ({"crop": "0"}, "crop: expected height and width"),
        ({"scale": "2,1"}, "scale: expected two numbers with a comma between them, or none"),
        ({"scale": "1"}, "scale: expected two numbers"),
        ({"channels": "1,2,3"}, "channels: expected 6 positive integers"),
        ({"channels": "64,128,256,512,512,0"}, "channels: expected 6 positive integers"),
        ({"learning_rate": "0"}, "learning_rate: expected a positive number, got '0'"),
        ({"learning_rate": "nan"}, "learning_rate: expected a positive number, got 'nan'"),
        ({"momentum": "1"}, "momentum: expected a number from 0 to below 1"),
        ({"flip": "perhaps"}, "flip: expected yes or no"),
        (
            {"recipe": "modem"},
            "recipe: expected one of fcn, modern, got 'modem'. Did you mean modern",
        ),
        ({"network": "fcn8"}, "network: expected one of fcn32s.*got 'fcn8'"),
        ({"amp": "half"}, "amp: expected one of auto, none, bfloat16, float16"),
        ({"batchsize": "3"}, "options: expected names among .*batchsize.*Did you mean batch_size"),
    ],
)
def test_an_option_that_does_not_fit_is_an_error(texts, message):
    with pytest.raises(IllPosed, match=message):
        resolved(**texts)


def test_options_pass_through_json_unchanged():
    texts = {"crop": "none", "channels": "1,2,3,4,5,6", "ignore_index": "0,255", "flip": "yes"}
    options = parse(TrainOptions, texts.items())
    saved = options.model_dump(mode="json", exclude_unset=True)
    assert TrainOptions.model_validate(saved) == options
    assert TrainOptions.model_validate(saved).model_fields_set == options.model_fields_set
    with pytest.raises(ValidationError):
        TrainOptions.model_validate({**saved, "crop": "__import__('os')"})


def test_biases_of_fcn_learn_twice_as_fast_without_decay():
    model = FCN8s(3, THIN)
    weights, biases = parameter_groups(model, RECIPES["fcn"])
    assert (weights["lr"], weights["weight_decay"]) == (1e-10, 5e-4)
    assert (biases["lr"], biases["weight_decay"]) == (2e-10, 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].rpartition(".")[2] for p in biases["params"]} == {"bias"}
    trained = [names[id(p)] for p in (*weights["params"], *biases["params"])]
    assert not any("up" in name for name in trained)
    assert len(trained) == 2 * (13 + 2 + 3)


def test_scales_of_normalisation_layers_have_no_decay():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    weights, biases, scales = parameter_groups(model, RECIPES["modern"])
    assert weights["params"] == [model[0].weight]
    assert biases["params"] == [model[0].bias, model[1].bias]
    assert scales["params"] == [model[1].weight]
    assert (weights["weight_decay"], biases["weight_decay"], scales["weight_decay"]) == (0.01, 0, 0)
    assert {group["lr"] for group in (weights, biases, scales)} == {1e-4}


def test_the_update_is_that_of_caffe():
    recipe = dataclasses.replace(RECIPES["fcn"], learning_rate=0.5)
    model = nn.Linear(1, 1)
    optimizer = make_optimizer(model, recipe)
    values = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    velocity = dict.fromkeys(values, 0.0)
    for step in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.25 * (step + 1))
        optimizer.step()
        for name, lr_mult, decay_mult in (("weight", 1, 1), ("bias", 2, 0)):
            gradient = 0.25 * (step + 1) + 5e-4 * decay_mult * values[name]
            velocity[name] = 0.99 * velocity[name] + 0.5 * lr_mult * gradient
            values[name] = values[name] - velocity[name]
            torch.testing.assert_close(getattr(model, name).double(), values[name])


def test_the_rate_is_fixed_or_falls_to_zero():
    assert {rate_at(step, RECIPES["fcn"]) for step in range(5)} == {1e-10}
    poly = dataclasses.replace(
        RECIPES["modern"], learning_rate=1.0, steps=100, warmup_steps=4, power=0.5
    )
    assert [rate_at(step, poly) for step in (0, 1, 3)] == pytest.approx(
        [0.25, 0.5 * 0.99**0.5, 0.97**0.5]
    )
    assert rate_at(75, poly) == pytest.approx(0.5)
    assert rate_at(100, poly) == 0
    optimizer = make_optimizer(nn.Linear(1, 1), dataclasses.replace(poly, bias_lr_mult=3.0))
    set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.5]
