"""Checkpoints: what a training writes so that it can go on, and so that its network can be served.

    RUN/
      config.json                            network, options and recipe
      best.safetensors                       weights of the best validation
      checkpoints/00004000/
        weights.safetensors                  as `models.checkpoints.save_network` writes them
        training.safetensors                 the state of the optimizer, and numbers as JSON
      metrics.jsonl                          a line of JSON for each line of the log
      events/                                for TensorBoard

A checkpoint is written into a folder of another name, which is renamed when both files are on the
disk. Older checkpoints are deleted only then: a full disk, or a power failure at any time, leaves
what was there. Nothing is ever pickled, and no file names code to run.

The random numbers of a training come from its seed and the number of the step or sample, see
`samples`. Its state is therefore the step, and needs no state of generators.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ..errors import IllPosed, Malformed, dtype_name, safe_repr
from ..formats import safetensors
from ..models_import import import_models
from .networks import NetworkSpec, load_network, save_network

_WEIGHTS, _TRAINING = "weights.safetensors", "training.safetensors"
_NUMBER = re.compile(r"[0-9]{8,12}")
_TENSOR = re.compile(r"optimizer\.([0-9]{1,9})\.(\w{1,64})")
_FORMAT = "1"


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        step: number of updates of the weights.
        samples: number of training samples that they have used, in all processes.
        best: the best mean IU of a validation, or None.
        best_step: the step of that validation.
        validated: the step of the last validation.
    """

    step: int = 0
    samples: int = 0
    best: float | None = None
    best_step: int = 0
    validated: int = 0


def write_atomically(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Writes a file so that it has either its old or its new content, whatever happens.

    Raises:
        OSError: if the disk is full or the folder cannot be written to. The old file stays.
    """
    with (
        import_models("atomic_file").atomic_write(path) as temporary,
        temporary.open("wb") as file,
    ):
        file.writelines(chunks)


def _sync_folder(folder: Path) -> None:
    """Makes sure that the names in a folder are on the disk."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Run:
    """The folder of one training.

    Attributes:
        folder: the folder, RUN.
        config: the file with network, options and recipe.
        best: the weights of the best validation.
        metrics: the file of metrics.
        events: the folder for TensorBoard.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.json"
        self.best = folder / "best.safetensors"
        self.metrics = folder / "metrics.jsonl"
        self.events = folder / "events"
        self._checkpoints = folder / "checkpoints"

    def checkpoints(self) -> list[Path]:
        """Returns the folders of complete checkpoints, the newest last."""
        if not self._checkpoints.is_dir():
            return []
        return sorted(
            (
                path
                for path in self._checkpoints.iterdir()
                if _NUMBER.fullmatch(path.name) and (path / _TRAINING).is_file()
            ),
            key=lambda path: int(path.name),
        )

    def write_config(self, config: Mapping[str, object]) -> None:
        """Writes `config.json`; creates the folder.

        Raises:
            OSError: if it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(config, indent=2, allow_nan=False) + "\n"
        write_atomically(self.config, [text.encode()])

    def read_config(self) -> dict[str, Any]:
        """Returns the content of `config.json`.

        Raises:
            Malformed: if it is no JSON object.
            OSError: if it cannot be read.
        """
        try:
            config = json.loads(self.config.read_bytes())
        except ValueError:
            raise Malformed(f"{self.config}", "a JSON object", "something else") from None
        if not isinstance(config, dict):
            raise Malformed(f"{self.config}", "a JSON object", "something else")
        return config

    def save_checkpoint(
        self,
        progress: Progress,
        model: nn.Module,
        spec: NetworkSpec,
        optimizer: Optimizer,
        scaler: GradScaler,
        keep: int,
    ) -> Path:
        """Writes a checkpoint, deletes all but the last `keep`, and returns its folder.

        Raises:
            OSError: if it cannot be written. All that was there stays.
        """
        final = self._checkpoints / f"{progress.step:08d}"
        temporary = self._checkpoints / f".{final.name}.{os.getpid()}"
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        self._delete_incomplete()
        temporary.mkdir()
        try:
            save_network(temporary / _WEIGHTS, model, spec)
            write_atomically(temporary / _TRAINING, _encode(progress, optimizer, scaler))
            if final.exists():  # the training was resumed from an older one
                shutil.rmtree(final)
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync_folder(self._checkpoints)
        for old in self.checkpoints()[:-keep]:
            if old != final:
                shutil.rmtree(old)
        return final

    def save_progress(self, progress: Progress, optimizer: Optimizer, scaler: GradScaler) -> None:
        """Replaces the numbers in the checkpoint of a step, whose weights stay.

        Raises:
            OSError: if they cannot be written. All that was there stays.
        """
        path = self._checkpoints / f"{progress.step:08d}" / _TRAINING
        write_atomically(path, _encode(progress, optimizer, scaler))

    def _delete_incomplete(self) -> None:
        """Deletes what a process that was killed has left."""
        for path in self._checkpoints.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)


def load_weights(path: Path, model: nn.Module, spec: NetworkSpec, fix: str) -> None:
    """Loads all weights of a network.

    Args:
        path: a file of the same network.
        model: the network that is filled.
        spec: its description.
        fix: the remedy if the file is of a network of other sizes.

    Raises:
        InvalidInput, IllPosed: if it is.
        OSError: if the file cannot be read.
    """
    loaded, saved = load_network(path, network=spec.network)
    if saved.num_classes != spec.num_classes:
        expected = f"a network of {spec.num_classes} classes"
        raise IllPosed(f"{path}", expected, f"{saved.num_classes}", fix)
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        shape, got = (tuple(t.shape) if t is not None else None for t in (tensor, state.get(name)))
        if got != shape:
            expected = f"{safe_repr(name)} of shape {shape}"
            raise IllPosed(f"{path}", expected, "none" if got is None else f"{got}", fix)
    model.load_state_dict(state)


def load_checkpoint(
    folder: Path, model: nn.Module, spec: NetworkSpec, optimizer: Optimizer, scaler: GradScaler
) -> Progress:
    """Loads weights and the state of the optimizer, and returns how far the training was.

    Raises:
        InvalidInput, IllPosed, Malformed: if a file does not fit network and optimizer.
        OSError: if a file cannot be read.
    """
    load_weights(folder / _WEIGHTS, model, spec, "Resume with the options of the training.")
    path = folder / _TRAINING
    where = f"{path}"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Malformed(where, "a safetensors file", f"the error {safe_repr(f'{error}')}") from None
    if metadata.get("format") != _FORMAT:
        raise Malformed(where, f"format {_FORMAT}", safe_repr(metadata.get("format", "")))
    _load_optimizer(optimizer, tensors, metadata, where)
    numbers = _parse(metadata, "progress", where)
    state = _parse(metadata, "scaler", where)
    try:
        if scaler.is_enabled() and state:
            scaler.load_state_dict(state)
        best = numbers["best"]
        return Progress(
            int(numbers["step"]),
            int(numbers["samples"]),
            None if best is None else float(best),
            int(numbers["best_step"]),
            int(numbers["validated"]),
        )
    except (KeyError, TypeError, ValueError):
        raise Malformed(where, "the numbers of a training", "others") from None


def _encode(
    progress: Progress, optimizer: Optimizer, scaler: GradScaler
) -> list[bytes | memoryview]:
    """Returns the file of an optimizer's state and of the numbers."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, object]] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            elif value is not None:
                scalars.setdefault(f"{index}", {})[name] = value
    metadata = {
        "format": _FORMAT,
        "optimizer": type(optimizer).__name__,
        "scalars": json.dumps(scalars),
        "progress": json.dumps(vars(progress)),
        "scaler": json.dumps(scaler.state_dict()),
    }
    return safetensors.encode(tensors, metadata)


def _load_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], where: str
) -> None:
    name = type(optimizer).__name__
    if metadata.get("optimizer") != name:
        got = safe_repr(metadata.get("optimizer", ""))
        fix = "Resume with the optimizer of the checkpoint, or begin another training."
        raise IllPosed(where, f"the state of {name}", got, fix)
    parameters = [row for group in optimizer.param_groups for row in group["params"]]
    state: dict[int, dict[str, object]] = {}
    for key, tensor in tensors.items():
        match = _TENSOR.fullmatch(key)
        index = int(match[1]) if match else -1
        if match is None or index >= len(parameters):
            raise IllPosed(where, "the state of this network's parameters", safe_repr(key))
        shape = parameters[index].shape
        if tensor.ndim and tensor.shape != shape:
            got = f"{tuple(tensor.shape)} {dtype_name(tensor.dtype)}"
            raise IllPosed(f"{where}[{safe_repr(key)}]", f"shape {tuple(shape)}", got)
        state.setdefault(index, {})[match[2]] = tensor
    for text, entries in _parse(metadata, "scalars", where).items():
        if not isinstance(entries, dict) or not text.isdecimal() or int(text) >= len(parameters):
            raise Malformed(where, "numbers of this network's parameters", "others")
        state.setdefault(int(text), {}).update(entries)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _parse(metadata: Mapping[str, str], name: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(name, ""))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Malformed(where, f"a JSON object as {name}", "something else")
    return value


def are_finite(model: nn.Module) -> bool:
    """Returns whether all parameters of a network are finite numbers."""
    with torch.no_grad():
        return all(bool(parameter.isfinite().all()) for parameter in model.parameters())
