"""`seg-loss train`: from a data set and options to a folder with a trained network.

find, check the data -> resolve the recipe -> build the network -> Trainer
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from seg_loss import InvalidInput, __version__

from .. import devices
from ..errors import IllPosed, Malformed, RequestError, safe_repr
from ..images.palettes import PALETTES, Palette, choose_palette
from ..models_import import import_models
from ..report import METRICS
from .callbacks import (
    Callback,
    DiagnosisAdvice,
    MetricsFile,
    TensorBoard,
    Terminal,
    WriteLine,
)
from .checkpoints import Run
from .data import DataSet, LabelFormat, check, find
from .distributed import Ranks, joined, local_rank, world_size
from .initialization import RANDOM, initialize
from .interrupts import Interrupts
from .loop import Outcome, Trainer
from .networks import NetworkSpec
from .options import TrainOptions, resolve
from .recipes import Recipe
from .samples import Augmentation, SampleError, Samples
from .validation import Validation, Validator

_CONFIG_FORMAT = 1
_STOPPING = "stopping after this step, with a checkpoint; Ctrl-C again aborts"
_ABORTED = 130
"""Exit status after a second Ctrl-C, as a shell reports SIGINT."""


@dataclass(frozen=True)
class Result:
    """What the command prints at its end.

    Attributes:
        status: the exit status of the command.
        fields: names and values; None if nothing is printed, as in all processes but the first.
        classes: index, name, IU and accuracy of each class in the last validation.
    """

    status: int
    fields: dict[str, Any] | None = None
    classes: tuple[tuple[int, str, float | None, float | None], ...] = ()


@dataclass(frozen=True)
class Request:
    """The arguments of the command.

    Attributes:
        data: the folder of the data set.
        output: the folder RUN.
        options: the options.
        model: "package.module:callable" of a network of the user, instead of `options.network`.
        init: random, or a file with weights.
        resume: whether the training in `output` goes on.
        palette: a palette of the user, instead of `options.palette`.
    """

    data: Path
    output: Path
    options: TrainOptions
    model: str | None = None
    init: str = RANDOM
    resume: bool = False
    palette: Palette | None = None


def train(request: Request, device: torch.device) -> Result:
    """Trains, and returns the exit status and the results.

    Raises:
        RequestError, InvalidInput: if data, options or files do not fit, or the loss diverges.
        OSError: if a file cannot be read or `output` cannot be written.
    """
    if world_size() > 1 and device.type == "cuda":
        device = devices.choose(f"cuda:{local_rank()}", "torchrun").device
        torch.cuda.set_device(device)
    terminal: Terminal | None = None
    try:
        with joined(device) as ranks:
            terminal = Terminal(sys.stderr if ranks.is_first else None)
            with _in_first_alone(ranks):
                return _train(request, ranks, terminal)
    except KeyboardInterrupt:
        if terminal is not None:
            terminal.write_line("Aborted. The newest checkpoint is unchanged.")
        return Result(_ABORTED)


@contextmanager
def _in_first_alone(ranks: Ranks) -> Iterator[None]:
    """Lets only the first process raise an error that all of them have found.

    A file that cannot be read is found by the process that reads it.
    """
    try:
        yield
    except (RequestError, InvalidInput) as error:
        if ranks.is_first or isinstance(error, SampleError):
            raise
        sys.exit(1)


def _train(request: Request, ranks: Ranks, terminal: Terminal) -> Result:
    write_line = terminal.write_line
    run = Run(request.output)
    options = _options(request, run)
    is_resumed = request.resume and bool(run.checkpoints())
    ranks.in_first(lambda: _check_output(request, run))
    palette = request.palette
    if palette is None and options.palette is not None:
        palette = PALETTES[options.palette]
    labels = LabelFormat(
        options.num_classes,
        options.ignore_index,
        options.label_space,
        options.label_encoding,
        palette,
        options.colour_classes,
        options.unknown_colours,
    )
    data = _checked_data(request, options, labels, ranks, terminal)
    network = request.model or options.network
    recipe = resolve(options, network, len(data.train), ranks.world_size)
    spec = _spec(network, options, palette, recipe)
    torch.manual_seed(recipe.seed)  # a network of the user initialises itself
    model = import_models("checkpoints").build(spec)
    before = run.read_config() if request.resume and run.config.exists() else {}
    init = _init(request, before)
    if not is_resumed:
        write_line(initialize(model, spec, init, recipe.seed))
    model.to(ranks.device)
    augmentation = Augmentation(recipe.crop, recipe.scale, recipe.flip)
    validation = Samples(data.val, labels, recipe.preprocessing) if data.val else None
    validator = Validator(validation, labels, ranks, options.workers) if validation else None
    is_new = init == RANDOM and not is_resumed
    trainer = Trainer(
        model,
        spec,
        recipe,
        Samples(data.train, labels, recipe.preprocessing, augmentation, recipe.seed),
        labels,
        run,
        ranks,
        validator=validator,
        advice=DiagnosisAdvice(options.num_classes, network, recipe, is_new, write_line),
        write_line=write_line,
        workers=options.workers,
    )
    config = _config(request, init, options, recipe, spec, data, ranks)
    if request.resume:
        _resume(trainer, run, recipe, ranks, write_line)
        config["resumed"] = _resumed(before, config, trainer.progress.step, write_line)
    ranks.in_first(lambda: run.write_config(config))
    write_line(_description(model, spec, recipe, ranks))
    results = _LastValidation()
    if ranks.is_first:
        terminal.num_steps = recipe.steps
        step = trainer.progress.step
        for callback in (terminal, results, MetricsFile(run.metrics, step, write_line)):
            trainer.add(callback)
        shown = choose_palette(
            option=palette, network_names=spec.class_names, num_classes=options.num_classes
        ).palette
        board = _tensorboard(options, run, shown, step, validation, spec.class_names, write_line)
        if board is not None:
            trainer.add(board)
            trainer.draws_pictures = True
    with Interrupts(_STOPPING if ranks.is_first else None) as interrupts:
        outcome = trainer.train(interrupts)
    _write_end(outcome, run, recipe, write_line)
    status = 128 + outcome.signal if outcome.signal else int(not outcome.is_saved)
    if not ranks.is_first:
        return Result(status)
    return Result(status, _results(outcome, run, results.last), _classes(results.last, spec))


def _checked_data(
    request: Request,
    options: TrainOptions,
    labels: LabelFormat,
    ranks: Ranks,
    terminal: Terminal,
) -> DataSet:
    """Returns the data set, which the first process has checked."""
    data = find(
        request.data,
        train_split=options.train_split,
        val_split=options.val_split,
        val_fraction=options.val_fraction,
        label_space=options.label_space,
        seed=options.seed or 0,
    )
    num_train, num_val = len(data.train), len(data.val)
    terminal.write_line(f"{data.layout}: {num_train} training and {num_val} validation images")
    ranks.in_first(lambda: _check_data(data, labels, options, terminal))
    if not data.train:
        got = f"images without a partner: {len(data.problems)}"
        raise IllPosed("data", "at least one training image with labels", got)
    return data


def _resume(
    trainer: Trainer,
    run: Run,
    recipe: Recipe,
    ranks: Ranks,
    write_line: WriteLine,
) -> None:
    """Goes on from the newest checkpoint, if there is one."""
    is_loaded = trainer.load()
    step = trainer.progress.step
    (total,) = ranks.sum([float(step)])
    if total != step * ranks.world_size:
        fix = "Name a folder that all machines share."
        raise IllPosed("output", "the same checkpoint in all processes", "others", fix)
    if not is_loaded:
        write_line(f"{run.folder} has no checkpoint: the training begins with step 1")
        return
    write_line(f"resumed after step {step} of {recipe.steps}")
    if step >= recipe.steps:
        write_line("there is no step left: pass more steps with --steps or --epochs to go on")


def _options(request: Request, run: Run) -> TrainOptions:
    """Returns the options; those of a training that is resumed are kept unless given again."""
    if not request.resume or not run.config.exists():
        return request.options
    config = run.read_config()
    where = f"{run.config}"
    saved = config.get("options")
    if config.get("format") != _CONFIG_FORMAT or not isinstance(saved, dict):
        raise Malformed(where, f"a configuration of format {_CONFIG_FORMAT}", "another one")
    given = request.options.model_dump(exclude_unset=True)
    if "steps" in given:
        saved.pop("epochs", None)
    if "epochs" in given:
        saved.pop("steps", None)
    try:
        options = TrainOptions.model_validate({**saved, **given})
    except ValidationError as error:
        name = f"{error.errors(include_url=False, include_context=False)[0]['loc'][0]}"
        raise Malformed(where, "valid options", f"another value of {safe_repr(name)}") from None
    network = config.get("network")
    saved_name = network.get("network") if isinstance(network, dict) else None
    wanted = request.model or options.network
    if saved_name != wanted:
        fix = "Pass the --model of the training: no file names code to run."
        if ":" not in f"{saved_name}{wanted}":
            fix = "Another network is another training: name another folder."
        expected = f"{safe_repr(f'{saved_name}')}, which {where} names"
        raise IllPosed("network", expected, safe_repr(wanted), fix)
    return options


def _init(request: Request, before: Mapping[str, Any]) -> str:
    """Returns the first weights: those of the training that is resumed, unless others are given."""
    saved = before.get("init")
    return saved if request.init == RANDOM and isinstance(saved, str) else request.init


_COMPARED = ("data", "num_train", "num_val", "processes", "device", "seg_loss", "torch")
"""What a configuration holds beside the recipe that should not change when a training goes on."""
_NOT_COMPARED = ("steps", "keep", "log_interval", "val_interval", "checkpoint_interval")
"""Values of the recipe that change no step."""


def _resumed(
    before: Mapping[str, Any], config: Mapping[str, Any], step: int, write_line: WriteLine
) -> list[Any]:
    """Returns what changed at each time that the training was resumed, and warns of it."""
    history = before.get("resumed")
    history = list(history) if isinstance(history, list) else []
    changes = {}
    old, new = (_compared(json.loads(json.dumps(each))) for each in (before, config))
    for name, value in new.items():
        if name in old and old[name] != value:
            changes[name] = [old[name], value]
            texts = (safe_repr(f"{each}") for each in changes[name])
            write_line(
                f"warning: {name}: the training had {next(texts)}, and now has {next(texts)}"
            )
    return [*history, {"after_step": step, "changes": changes}] if step else history


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    recipe = config.get("recipe")
    values = {name: config[name] for name in _COMPARED if name in config}
    if isinstance(recipe, dict):
        values |= {name: value for name, value in recipe.items() if name not in _NOT_COMPARED}
    return values


def _check_output(request: Request, run: Run) -> None:
    is_used = run.config.exists() or run.best.exists() or bool(run.checkpoints())
    if is_used and not request.resume:
        fix = "Pass --resume to go on with it, or name another folder."
        got = f"{safe_repr(f'{run.folder}')}, which has one"
        raise IllPosed("output", "a folder without a training", got, fix)


def _check_data(
    data: DataSet, labels: LabelFormat, options: TrainOptions, terminal: Terminal
) -> None:
    """Writes what is wrong with the data, and raises if anything is."""
    if options.check_data == "none":
        if data.problems:
            terminal.write_line(
                f"warning: images without a partner, which are left out: {len(data.problems)}"
            )
        return
    report = check(data, labels, workers=max(options.workers, 1), progress=terminal.on_checked)
    for line in report.lines():
        terminal.write_line(line)
    num_pairs = len(data.train) + len(data.val)
    if report.problems:
        raise report.error(num_pairs)
    for sentence in report.advice:
        terminal.write_line(f"warning: {sentence}")
    if report.turned:
        terminal.write_line(
            f"warning: photos that their EXIF orientation turns upright: {report.turned}. "
            "Their labels must be upright too."
        )
    num_shared = len(set(data.train) & set(data.val))
    if num_shared:
        terminal.write_line(f"warning: images that are trained and validated on: {num_shared}")
    absent = [index for index, count in enumerate(report.pixels) if not count]
    if absent:
        names = ", ".join(map(str, absent[:20])) + (", ..." if len(absent) > 20 else "")
        terminal.write_line(f"warning: no training label has the class {names}")


def _spec(
    network: str, options: TrainOptions, palette: Palette | None, recipe: Recipe
) -> NetworkSpec:
    names = options.class_names
    if not names and palette is not None and len(palette.class_names) == options.num_classes:
        names = palette.class_names
    spec: NetworkSpec = import_models("checkpoints").NetworkSpec(
        network, options.num_classes, options.channels, recipe.preprocessing, names
    )
    return spec


def _config(
    request: Request,
    init: str,
    options: TrainOptions,
    recipe: Recipe,
    spec: NetworkSpec,
    data: DataSet,
    ranks: Ranks,
) -> dict[str, object]:
    return {
        "format": _CONFIG_FORMAT,
        "seg_loss": __version__,
        "torch": torch.__version__,
        "data": f"{request.data}",
        "layout": data.layout,
        "num_train": len(data.train),
        "num_val": len(data.val),
        "processes": ranks.world_size,
        "device": ranks.device.type,
        "init": init,
        "network": asdict(spec),
        "options": options.model_dump(mode="json", exclude_unset=True),
        "recipe": asdict(recipe),
    }


def _tensorboard(
    options: TrainOptions,
    run: Run,
    palette: Palette,
    step: int,
    photos: Samples | None,
    class_names: Sequence[str],
    write_line: WriteLine,
) -> TensorBoard | None:
    if options.tensorboard == "no":
        return None
    try:
        return TensorBoard(run.events, step, photos, palette, write_line, class_names)
    except IllPosed:
        if options.tensorboard == "yes":
            raise
    except OSError as error:
        write_line(f"warning: {run.events}: {error.strerror or error}; there are no curves.")
    return None


def _description(model: nn.Module, spec: NetworkSpec, recipe: Recipe, ranks: Ranks) -> str:
    millions = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    images = recipe.batch_size * recipe.accumulation * ranks.world_size
    processes = f" in {ranks.world_size} processes" if ranks.world_size > 1 else ""
    return (
        f"{spec.network}, {millions:.3g} million weights, {spec.num_classes} classes; "
        f"{recipe.steps} steps of {images} image{'s' if images > 1 else ''}{processes} "
        f"on {ranks.device}; {recipe.optimizer}, lr {recipe.learning_rate:g} {recipe.schedule}, "
        f"normalization {recipe.normalization}"
    )


class _LastValidation(Callback):
    """Keeps the result of the last validation."""

    last: Validation | None = None

    def on_validation(self, step: int, validation: Validation) -> None:
        """Keeps the result."""
        self.last = validation


def _write_end(outcome: Outcome, run: Run, recipe: Recipe, write_line: WriteLine) -> None:
    progress = outcome.progress
    if outcome.signal:
        write_line(f"stopped after step {progress.step} of {recipe.steps}; --resume goes on")
    if progress.best is not None:
        write_line(f"best: mean IU {progress.best:.4f} in step {progress.best_step}, in {run.best}")


def _results(outcome: Outcome, run: Run, last: Validation | None) -> dict[str, Any]:
    progress = outcome.progress
    checkpoints = run.checkpoints()
    fields: dict[str, Any] = {
        "output": f"{run.folder}",
        "step": progress.step,
        "checkpoint": f"{checkpoints[-1]}" if checkpoints else None,
        "best_mean_iu": progress.best,
        "best_step": progress.best_step if progress.best is not None else None,
    }
    if last is not None:
        fields |= {name: getattr(last.metrics, name) for name in METRICS}
        mean_nll = last.mean_nll
        fields["mean_nll"] = mean_nll if mean_nll and math.isfinite(mean_nll) else None
    return fields


def _classes(
    last: Validation | None, spec: NetworkSpec
) -> tuple[tuple[int, str, float | None, float | None], ...]:
    if last is None:
        return ()
    names = spec.class_names or ("",) * spec.num_classes
    metrics = last.metrics
    rows = zip(names, metrics.iu, metrics.accuracy, strict=True)
    return tuple((index, *row) for index, row in enumerate(rows))
