"""Imports the modules of the folder `models`, which an installed wheel has as `seg_loss_models`.

They load torch and protobuf, so that commands without a network do not import them.
"""

import importlib
from types import ModuleType

_PACKAGE = "models" if __package__ == "app" else "seg_loss_models"


def import_models(name: str) -> ModuleType:
    """Returns a module of the folder `models`, such as "checkpoints"."""
    return importlib.import_module(f"{_PACKAGE}.{name}")
