"""The examples in docstrings are correct, and the main functions have one."""

import doctest
import importlib
import pkgutil

import pytest

import seg_loss

MODULES = ["seg_loss"] + [
    module.name for module in pkgutil.walk_packages(seg_loss.__path__, "seg_loss.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_correct(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize(
    "name",
    [
        "spatial_softmax",
        "spatial_cross_entropy",
        "upsampled_cross_entropy",
        "loss_and_gradient",
        "evaluate",
    ],
)
def test_the_main_functions_have_an_example(name):
    function = getattr(seg_loss, name)
    assert doctest.DocTestFinder().find(function, name)[0].examples
