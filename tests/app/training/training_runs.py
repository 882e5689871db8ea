"""Trainings of tiny networks without the command line, which takes longer."""

import dataclasses

import torch
from safetensors.torch import load_file
from training_data import NUM_CLASSES, TINY

from app.training.callbacks import DiagnosisAdvice
from app.training.checkpoints import Run
from app.training.data import LabelFormat, find
from app.training.distributed import Ranks
from app.training.interrupts import Interrupts
from app.training.loop import Trainer
from app.training.recipes import RECIPES
from app.training.samples import Augmentation, Samples
from app.training.validation import Validator
from models.checkpoints import NetworkSpec, build

LABELS = LabelFormat(NUM_CLASSES)
SPEC = NetworkSpec(TINY, NUM_CLASSES, preprocessing="imagenet")
CPU = Ranks(0, 1, torch.device("cpu"))
TINY_RECIPE = dataclasses.replace(
    RECIPES["modern"],
    batch_size=2,
    crop=(16, 16),
    learning_rate=1e-2,
    warmup_steps=2,
    steps=8,
    val_interval=4,
    checkpoint_interval=3,
    log_interval=2,
)


class Lines(list):
    """The lines that a training writes."""

    def __call__(self, line):
        self.append(line)


def make_trainer(
    data, folder, recipe=TINY_RECIPE, *, callbacks=(), write_line=None, ranks=CPU, network=TINY
):
    """Returns a trainer of a tiny network on a data set."""
    pairs, labels = find(data), LABELS
    spec = dataclasses.replace(SPEC, network=network)
    write_line = Lines() if write_line is None else write_line
    torch.manual_seed(recipe.seed)
    return Trainer(
        build(spec),
        spec,
        recipe,
        Samples(
            pairs.train,
            labels,
            "imagenet",
            Augmentation(recipe.crop, recipe.scale, recipe.flip),
            recipe.seed,
        ),
        labels,
        Run(folder),
        ranks,
        validator=Validator(Samples(pairs.val, labels, "imagenet"), labels, ranks),
        callbacks=callbacks,
        advice=DiagnosisAdvice(NUM_CLASSES, network, recipe, True, write_line),
        write_line=write_line,
    )


def run(trainer):
    """Trains to the end, and returns the outcome."""
    with Interrupts() as interrupts:
        return trainer.train(interrupts)


def bits_of(folder):
    """Returns the state of the optimizer and the weights in the newest checkpoint, as bytes.

    The package safetensors writes metadata in any order.
    """
    newest = Run(folder).checkpoints()[-1]
    weights = weights_of(newest / "weights.safetensors")
    return {"training": (newest / "training.safetensors").read_bytes(), **weights}


def weights_of(path):
    """Returns the bytes of each tensor in a file."""
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
