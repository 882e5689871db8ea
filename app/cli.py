"""The command line, `seg-loss`: operations on files, with files and tables as results.

Results go to stdout, warnings and errors to stderr. An input may be a pipe; - is stdin. The exit
status is 0 for success; 1 if a file cannot be used or a metric is below its threshold; 2 for wrong
usage.

Modules that load torch are imported inside the commands, so that `seg-loss --help` does not wait
for it. Each option of `options` becomes a flag. Commands continue in `inputs` and `operations`.
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NoReturn, TypeVar

import typer
from pydantic import BaseModel

from seg_loss import __version__

from .errors import RequestError, UsageError, did_you_mean, safe_repr
from .formats import PHOTO_SUFFIXES, TENSOR_SUFFIXES
from .options import (
    NUMBER,
    OPTION_NAMES,
    EvaluateOptions,
    GradientOptions,
    LossOptions,
    Options,
    PredictOptions,
    VisualizeOptions,
    flag_pattern,
    option_text,
    parse,
    with_flags,
)
from .report import FORMATS, METRICS, Report, Table, render
from .settings import PREFIX, Settings, for_commands, invalid_setting, misspelt_variables
from .terminal import configure_streams, printable
from .training.options import TrainOptions

if TYPE_CHECKING:
    from torch import Tensor

    from seg_loss.upsampling import Upsampling

    from .devices import Choice
    from .folders import FileTask
    from .inputs import Inputs
    from .network import Network, Photo
    from .results import EvaluationResult, PredictionResult

PROGRAM = "seg-loss"
STDOUT = "standard output"
STDIN = Path("-")
"""Standard input. A file of that name is another path, ./-, which is equal."""
_FLAGS = flag_pattern((*OPTION_NAMES, *TrainOptions.model_fields))

Command = TypeVar("Command", bound=Callable[..., None])

cli = typer.Typer(
    name=PROGRAM,
    help="The pixel-wise softmax loss of semantic segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # Accepts the names of the library too: --ignore_index.
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits."""
    configure_streams()
    try:
        _run(arguments)
    except UsageError as error:
        _fail(f"{error}", 2)
    except RequestError as error:
        _fail(_with_flags(error.detail), 1)
    except BrokenPipeError:  # as with `seg-loss ... | head -1`
        # Python would flush the rest at its exit and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'files'}: {error.strerror or error}", 1)
    except ValueError as error:
        from seg_loss import InvalidInput

        if not isinstance(error, InvalidInput):
            raise
        _fail(_with_flags(f"{error}"), 1)
    except RuntimeError as error:
        from . import devices

        if not devices.is_out_of_memory(error):
            raise
        _fail("memory: expected enough on the GPU, got too little. Use --device cpu.", 1)
    sys.exit(0)


def _run(arguments: Sequence[str] | None) -> None:
    """Runs a command, whose output is written when it returns."""
    try:
        cli(arguments, prog_name=PROGRAM)
    except SystemExit as stop:
        if stop.code:
            raise
    if sys.stdout is not None:
        with _naming_standard_output():
            sys.stdout.flush()  # at the exit of Python, a full disk would be a traceback


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        _print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@cli.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def _input_file(text: str) -> Path:
    return STDIN if text == f"{STDIN}" else Path(text)


def _file_option(name: str, text: str) -> Any:
    return typer.Option(name, parser=_input_file, metavar="PATH", help=text)


# Arguments and flags that several commands share.

LogitsFile = Annotated[
    Path,
    typer.Argument(
        parser=_input_file,
        metavar="LOGITS",
        help="[N,C,H,W] or [C,H,W]: .npy, .npz, .safetensors.",
    ),
]
LabelsFile = Annotated[
    Path,
    typer.Argument(
        parser=_input_file,
        metavar="LABELS",
        help="[N,H,W] or [H,W]: .png, .tif, .bmp, .npy, .npz, .safetensors.",
    ),
]
ClassWeightFile = Annotated[
    Path | None, _file_option("--class-weight", "File with [C], a weight for each class.")
]
PredictionFile = Annotated[
    Path,
    typer.Argument(
        parser=_input_file,
        metavar="PREDICTION",
        help="Logits [N,C,H,W] or [C,H,W], or a label map [N,H,W], [H,W] or picture.",
    ),
]
PixelWeightFile = Annotated[
    Path | None, _file_option("--pixel-weight", "File with [N,H,W], a weight for each pixel.")
]
DeviceName = Annotated[
    str | None,
    typer.Option("--device", help=f"auto, cpu, cuda or cuda:N. Replaces {PREFIX}DEVICE."),
]
FormatName = Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")]


def _with_options(model: type[BaseModel]) -> Callable[[Command], Command]:
    """Returns a decorator that registers a command with a flag for each option of `model`.

    The command gets the parsed options as the argument `options`, and as `palette_file` the path
    that --palette holds instead of the name of a palette.
    """

    def decorate(function: Command) -> Command:
        def command(**arguments: Any) -> None:
            texts = {name: arguments.pop(name) for name in model.model_fields}
            arguments["palette_file"] = _palette_file(texts["palette"])
            if arguments["palette_file"] is not None:
                texts["palette"] = None
            pairs = ((name, text) for name, text in texts.items() if text is not None)
            function(options=_parse_options(model, pairs), **arguments)

        flags = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[str | None, _flag(name, model)],
            )
            for name in model.model_fields
        ]
        parameters = inspect.signature(function).parameters.values()
        others = [row for row in parameters if row.name not in ("options", "palette_file")]
        # Typer reads the signature.
        command.__doc__ = function.__doc__
        command.__name__ = function.__name__
        command.__annotations__ = {}
        command.__signature__ = inspect.Signature([*others, *flags])  # type: ignore[attr-defined]
        cli.command()(command)
        return function

    return decorate


def _palette_file(text: str | None) -> Path | None:
    """Returns the path that --palette names; None if it is the name of a palette, or not given."""
    from .formats.palette_files import SUFFIXES
    from .images.palettes import PALETTES

    if text is None or text in PALETTES:
        return None
    path = Path(text)
    is_path = path.suffix.lower() in SUFFIXES or len(path.parts) > 1 or path.is_file()
    return path if is_path else None


def _flag(name: str, model: type[BaseModel]) -> Any:
    row = model.model_fields[name]
    default = option_text(row.default)
    title = f"{row.title}, or the path of a file" if name == "palette" else row.title
    text = f"{row.description} Expected: {title}." + (f" [{default}]" if default else "")
    return typer.Option(f"--{name.replace('_', '-')}", help=text, metavar="VALUE")


def _parse_options(model: type[Options], pairs: Iterable[tuple[str, str]]) -> Options:
    try:
        return parse(model, pairs)
    except RequestError as error:
        raise UsageError(error.detail) from None


@_with_options(LossOptions)
def loss(
    logits: LogitsFile,
    labels: LabelsFile,
    options: LossOptions,
    class_weight: ClassWeightFile = None,
    pixel_weight: PixelWeightFile = None,
    palette_file: Path | None = None,
    device: DeviceName = None,
    format_name: FormatName = "table",
) -> None:
    """Prints the loss of the batch, of each image and of each class."""
    _check_format(format_name)
    from . import operations, results

    inputs = _read_inputs(
        options,
        device,
        palette=palette_file,
        logits=logits,
        labels=labels,
        class_weight=class_weight,
        pixel_weight=pixel_weight,
    )
    result = operations.loss(inputs, options)
    _warn(result.warnings)
    diagnosis = result.evaluation.diagnosis
    assert diagnosis is not None
    report = Report(_loss_tables(result), results.loss_fields(result), diagnosis.advice)
    _print(render(report, format_name))


@_with_options(GradientOptions)
def gradient(
    logits: LogitsFile,
    labels: LabelsFile,
    options: GradientOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .npy or .safetensors.")
    ],
    class_weight: ClassWeightFile = None,
    pixel_weight: PixelWeightFile = None,
    palette_file: Path | None = None,
    device: DeviceName = None,
    format_name: FormatName = "table",
) -> None:
    """Writes the gradient in the logits, and prints the loss."""
    _check_format(format_name)
    _check_suffix(output, ".npy", ".safetensors")
    from . import operations, results
    from .formats import npy

    inputs = _read_inputs(
        options,
        device,
        palette=palette_file,
        logits=logits,
        labels=labels,
        class_weight=class_weight,
        pixel_weight=pixel_weight,
    )
    result = operations.gradient(inputs, options)
    _warn(result.warnings)
    if not result.is_finite:
        _warn(["logits contain non-finite values, so the gradient does too."])
    is_npy = output.suffix == ".npy"
    if is_npy and not npy.has_dtype(result.gradient.dtype):
        _warn(["NPY has no bfloat16: the file holds the same numbers as float32."])
    _write(output, results.gradient_npy(result) if is_npy else results.gradient_file(result))
    fields = {
        "loss": results.to_jsonable(result.loss),
        "normalization": result.normalization,
        "loss_weight": result.loss_weight,
        "output": str(output),
    }
    table = Table("batch", ("quantity", "value"), tuple(fields.items()))  # type: ignore[arg-type]
    report = Report((table,), {**fields, "warnings": list(result.warnings)})
    _print(render(report, format_name))


@_with_options(EvaluateOptions)
def evaluate(
    prediction: PredictionFile,
    labels: LabelsFile,
    options: EvaluateOptions,
    class_weight: ClassWeightFile = None,
    pixel_weight: PixelWeightFile = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write the maps to: .safetensors."),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            metavar="METRIC=VALUE",
            help=f"Exit with 1 if the metric is lower. One of {', '.join(METRICS)}.",
        ),
    ] = None,
    palette_file: Path | None = None,
    device: DeviceName = None,
    format_name: FormatName = "table",
) -> None:
    """Prints loss, metrics and calibration of logits, or the metrics of a label map."""
    _check_format(format_name)
    thresholds = [_parse_threshold(text) for text in fail_under or ()]
    for path in (prediction, labels):
        if path is not STDIN and path.is_dir():
            raise UsageError(f"{path}: expected a file, got a directory.")
    if (output is None) == bool(options.maps):
        raise UsageError("--maps and --output: expected both or neither.")
    if output is not None:
        _check_suffix(output, ".safetensors")
    from . import operations, results

    inputs = _read_inputs(
        options,
        device,
        palette=palette_file,
        logits=prediction,
        labels=labels,
        class_weight=class_weight,
        pixel_weight=pixel_weight,
    )
    result = operations.evaluate(inputs, options)
    _warn(result.warnings)
    if output is not None:
        _write(output, results.maps_file(result))
    diagnosis = result.evaluation.diagnosis
    report = Report(
        _evaluation_tables(result),
        results.evaluation_fields(result),
        "" if diagnosis is None else diagnosis.advice,
    )
    _print(render(report, format_name))
    for metric, threshold in thresholds:
        value = getattr(result.metrics, metric)
        if value is None or value < threshold:
            _fail(f"{metric}: expected at least {threshold:g}, got {value}.", 1)


@_with_options(VisualizeOptions)
def visualize(
    options: VisualizeOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .png.")],
    logits: Annotated[
        Path | None,
        typer.Argument(parser=_input_file, metavar="[LOGITS]", help="[1,C,H,W] or [C,H,W]."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Argument(
            parser=_input_file, metavar="[LABELS]", help="[1,H,W], [H,W], or a picture."
        ),
    ] = None,
    labels_option: Annotated[
        Path | None, _file_option("--labels", "The labels, if there are no logits.")
    ] = None,
    prediction: Annotated[
        Path | None, _file_option("--prediction", "Class indices, instead of logits.")
    ] = None,
    image: Annotated[Path | None, _file_option("--image", "The photo: PNG or JPEG.")] = None,
    palette_file: Path | None = None,
    device: DeviceName = None,
    format_name: Annotated[
        str | None,
        typer.Option("--format", help=f"Print the scale. One of {', '.join(FORMATS)}."),
    ] = None,
) -> None:
    """Draws labels, prediction, error or loss of one image."""
    if labels is not None and labels_option is not None:
        raise UsageError("--labels: expected the labels once.")
    if format_name is not None:
        _check_format(format_name)
    _check_suffix(output, ".png")
    from . import operations

    inputs = _read_inputs(
        options,
        device,
        palette=palette_file,
        logits=logits,
        labels=labels or labels_option,
        prediction=prediction,
        image=image,
    )
    result = operations.visualize(inputs, options)
    _warn(result.warnings)
    if result.scale_text:
        _print_error(f"{PROGRAM}: scale: {result.scale_text} ({result.unit})")
    _write(output, [result.png])
    if format_name is not None:
        fields = {"output": str(output), "kind": options.kind, "unit": result.unit or None}
        ends = ("first_colour", "last_colour")
        scale = None if result.scale is None else dict(zip(ends, result.scale, strict=True))
        rows = (*fields.items(), *(scale or {}).items())
        report = Report(
            (Table("picture", ("quantity", "value"), rows),),
            {**fields, "scale": result.scale, "warnings": list(result.warnings)},
        )
        _print(render(report, format_name))


@_with_options(PredictOptions)
def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            parser=_input_file,
            metavar="INPUT...",
            help="Files or folders: logits, or with --model photos.",
        ),
    ],
    options: PredictOptions,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder, or for a single file: .png, .safetensors for maps."
        ),
    ],
    labels: Annotated[
        Path | None,
        _file_option("--labels", "Labels: a file, or a folder with files of the same names."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Checkpoint of the network: .safetensors or .caffemodel."),
    ] = None,
    factory: Annotated[
        str | None,
        typer.Option(
            "--network", help="package.module:callable that makes the network, if not one of FCN's."
        ),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            metavar="METRIC=VALUE",
            help=f"Exit with 1 if the metric is lower. One of {', '.join(METRICS)}.",
        ),
    ] = None,
    palette_file: Path | None = None,
    device: DeviceName = None,
    format_name: FormatName = "table",
) -> None:
    """Writes the label maps of logits or photos, and prints the share of each class."""
    _check_format(format_name)
    thresholds = [_parse_threshold(text) for text in fail_under or ()]
    if thresholds and labels is None:
        raise UsageError("--fail-under: expected --labels too.")
    if factory is not None and model is None:
        raise UsageError("--network: expected --model too.")
    _check_stdin([*inputs, labels])
    if labels is not None and not labels.is_dir() and (len(inputs) > 1 or inputs[0].is_dir()):
        raise UsageError(f"--labels: expected a folder for several files, got {labels}.")
    if model is None and any(path.suffix.lower() in PHOTO_SUFFIXES for path in inputs):
        raise UsageError("--model: expected a checkpoint, since photos need a network.")
    from . import folders, operations, prediction_report

    if model is not None:
        try:
            operations.check_options_of_photo(options)
        except RequestError as error:
            raise UsageError(error.detail) from None
    tasks = folders.tasks_of(
        inputs,
        output,
        suffixes=PHOTO_SUFFIXES if model else TENSOR_SUFFIXES,
        with_maps="maps" in options.model_fields_set,
        labels=labels,
        others=[] if model is None else [model],
    )
    settings = _settings(for_commands, device=device, network=factory)
    choice = _choose_device(settings, device)
    _warn([choice.warning] if choice.warning else [])
    network = None
    if model is not None:
        from .network import load

        flags = ("--model", "--network")
        network = load(str(model), settings.factory, choice.device, settings, flags)
    summary = prediction_report.Summary(options.ignore_index)
    for task in _with_progress(tasks):
        try:
            label_file = None if labels is None else folders.labels_for(task, labels)
            files = {"labels": label_file, "palette": palette_file}
            result = _predict_file(task, files, options, settings, choice, network)
            summary.add(task, result)
        except (RequestError, OSError, ValueError) as error:
            sentence = _sentence_of(error, task.source)
            summary.add_failure(task, sentence)
            _print_error(f"{PROGRAM}: {task.source}: {sentence}")
    if summary.files:
        _print(render(summary.report(), format_name))
    for metric, threshold in thresholds:
        value = summary.metric(metric)
        if value is None or value < threshold:
            _fail(f"{metric}: expected at least {threshold:g}, got {value}.", 1)
    if summary.failures:
        sys.exit(1)


@cli.command()
def palettes(
    name: Annotated[str | None, typer.Argument(help="The palette to show.")] = None,
    format_name: FormatName = "table",
) -> None:
    """Lists the palettes, or the classes and colours of one."""
    _check_format(format_name)
    from .images.palettes import PALETTES

    tables: tuple[Table, ...]
    if name is None:
        fields: Mapping[str, object] = {"palettes": list(PALETTES)}
        rows = tuple(
            (row.name, row.num_classes, row.ignore_index, len(row.shared_colours()))
            for row in PALETTES.values()
        )
        columns = ("palette", "classes", "ignore_index", "shared_colours")
        tables = (Table("palette", columns, rows),)
    elif name not in PALETTES:
        raise _usage_error("palette", PALETTES, name)
    else:
        palette = PALETTES[name]
        colours = palette.colours.tolist()
        fields = {**palette.fields(), "colours": colours}
        names = [*palette.class_names, *[""] * palette.unnamed_classes]
        classes = tuple(
            (index, class_name, *colours[index]) for index, class_name in enumerate(names)
        )
        shared = tuple(
            ("{} {} {}".format(*colour), ", ".join(f"{i} {names[i]}".rstrip() for i in indices))
            for colour, indices in palette.shared_colours().items()
        )
        tables = (Table("class", ("class", "name", "red", "green", "blue"), classes),)
        if shared:
            tables += (Table("shared colour", ("shared colour", "classes"), shared),)
    _print(render(Report(tables, fields), format_name))


_MAX_VALUES = 12
"""Number of values of a label map that a table lists."""

_HELD_OUT = 40
"""Default number of scenes to validate with."""


@cli.command()
def sample(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Created if it does not exist.")],
    height: Annotated[int, typer.Option("--height", min=32)] = 256,
    width: Annotated[int, typer.Option("--width", min=32)] = 512,
    scenes: Annotated[
        int | None,
        typer.Option("--scenes", min=1, help="Number of scenes of a data set to train with."),
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option("--held-out", min=1, help="Number of further scenes, to validate with. [40]"),
    ] = None,
) -> None:
    """Writes a synthetic scene: photo, labels and logits; or a data set of scenes."""
    paths: tuple[Path, ...]
    if scenes is None:
        if held_out is not None:
            raise UsageError("--held-out: expected --scenes too, the number of scenes to train on.")
        from .images.sample import make_sample

        files = make_sample(directory, height=height, width=width)
        paths = files.photo, files.labels, files.logits
    else:
        from .images.scenes import write_scenes

        paths = write_scenes(
            directory,
            scenes,
            _HELD_OUT if held_out is None else held_out,
            height=height,
            width=width,
        )
    for path in paths:
        _print(f"{path}")


def _predict_file(
    task: "FileTask",
    others: Mapping[str, Path | None],
    options: PredictOptions,
    settings: Settings,
    choice: "Choice",
    network: "Network | None",
) -> "PredictionResult":
    """Predicts one file, with labels and palette if there are, and writes its outputs.

    Returns the result on the CPU.
    """
    from dataclasses import replace

    from . import folders, operations, results
    from .inputs import assemble

    name = "logits" if network is None else "image"
    paths = {name: task.source, **others}
    files = {name: _read(path, name) for name, path in paths.items() if path is not None}
    inputs = assemble(files, options, settings)
    if network is not None:
        assert inputs.image is not None
        operations.check_photo(inputs, options, settings, network.num_classes)
        scores, upsampling = _scores(network, inputs.image)
        names = network.class_names
        inputs = operations.with_scores(inputs, options, scores, upsampling, names)

    def to_device(tensor: "Tensor") -> "Tensor":
        return tensor.to(choice.device)

    result = operations.predict(inputs.copied(to_device), options)
    result = replace(result, maps={name: map_.cpu() for name, map_ in result.maps.items()})
    warnings = list(result.warnings)
    if not result.is_finite:
        warnings.append("logits contain non-finite values.")
    _warn(f"{task.source}: {warning}" for warning in warnings)
    # Both are made before the first is written.
    chunks: dict[str, Iterable[bytes | memoryview]] = {}
    if folders.LABEL_MAP_SUFFIX in task.outputs:
        chunks[folders.LABEL_MAP_SUFFIX] = [results.label_map_png(result)]
    if folders.MAPS_SUFFIX in task.outputs:
        chunks[folders.MAPS_SUFFIX] = results.prediction_file(result)
    for suffix, path in task.outputs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, chunks[suffix])
    return result


def _scores(network: "Network", photo: "Photo") -> "tuple[Tensor, Upsampling | None]":
    """Returns `network.scores`, with an error that says what the network has raised.

    The service keeps that in its log.
    """
    from .errors import IllPosed
    from .network import reason_of

    try:
        return network.scores(photo)
    except IllPosed as error:
        if error.__cause__ is None:
            raise
        fix = f"It raised {reason_of(error)}."
        raise IllPosed(f"{error.where}", f"{error.expected}", f"{error.got}", fix) from None


def _sentence_of(error: Exception, source: Path) -> str:
    """Returns the message of an error about one file of several; raises defects."""
    from seg_loss import InvalidInput

    if isinstance(error, OSError):
        name = f"{error.filename}" if error.filename else ""
        text = error.strerror or f"{error}"
        return text if name in ("", f"{source}") else f"{name}: {text}"
    if isinstance(error, RequestError):
        return _with_flags(error.detail)
    if not isinstance(error, InvalidInput):
        raise error
    return _with_flags(f"{error}")


def _with_progress(tasks: "Sequence[FileTask]") -> "Iterator[FileTask]":
    """Yields the tasks, with a bar on standard error if that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty() or len(tasks) < 2:
        yield from tasks
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(tasks, "Predicting", console=Console(stderr=True), transient=True)


@_with_options(TrainOptions)
def train(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Data set: VOC, or folders of images and labels."),
    ],
    options: TrainOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder RUN of checkpoints and metrics.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="PACKAGE.MODULE:CALLABLE",
            help="A network of your own instead of --network; called with num_classes=.",
        ),
    ] = None,
    init: Annotated[
        str,
        typer.Option(
            "--init",
            metavar="PATH",
            help="First weights: random, VGG16 or FCN as .caffemodel, torchvision's VGG16 or a "
            "checkpoint as .safetensors.",
        ),
    ] = "random",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the training in RUN, if there is one.")
    ] = False,
    palette_file: Path | None = None,
    device: DeviceName = None,
    format_name: FormatName = "table",
) -> None:
    """Trains a network on photos and label maps."""
    _check_format(format_name)
    settings = _settings(for_commands, device=device)
    choice = _choose_device(settings, device)
    _warn([choice.warning] if choice.warning else [])
    from .training import command

    palette = None
    if palette_file is not None:
        from .formats import palette_files

        palette = palette_files.decode(_read(palette_file, "palette"), "palette")
    request = command.Request(data, output, options, model, init, resume, palette)
    result = command.train(request, choice.device)
    if result.fields is not None:
        rows = tuple((name, value) for name, value in result.fields.items() if value is not None)
        tables = [Table("training", ("quantity", "value"), rows)]
        columns = ("class", "name", "iu", "accuracy")
        if result.classes:
            tables.append(Table("class", columns, result.classes))
        per_class = [dict(zip(columns, row, strict=True)) for row in result.classes]
        fields = {**result.fields, "per_class": per_class}
        _print(render(Report(tuple(tables), fields), format_name))
    if result.status:
        raise typer.Exit(result.status)


def _settings_help() -> str:
    """Returns the names, defaults and descriptions of all settings."""
    rows = (
        f"{PREFIX}{name.upper()} [{field.default}]\n  {field.description}"
        for name, field in Settings.model_fields.items()
    )
    # The character \b makes the help page keep the line feeds.
    return "\b\nSettings, as environment variables:\n" + "\n".join(rows)


@cli.command(epilog=_settings_help())
def serve(
    host: Annotated[str | None, typer.Option("--host", help=f"Replaces {PREFIX}HOST.")] = None,
    port: Annotated[int | None, typer.Option("--port", help=f"Replaces {PREFIX}PORT.")] = None,
    device: DeviceName = None,
) -> None:
    """Serves the page and the API over HTTP until a signal stops it."""
    settings = _settings(Settings, host=host, port=port, device=device)
    _choose_device(settings, device)  # names the flag in its error; the service logs its warning
    from .http import server

    server.serve(settings)


def _settings(read: Callable[..., Settings], **flags: object) -> Settings:
    """Returns the settings that `read` reads; flags replace environment variables."""
    from pydantic import ValidationError

    _warn(misspelt_variables(os.environ))

    present = {name: value for name, value in flags.items() if value is not None}
    try:
        return read(**present)
    except ValidationError as error:
        field, sentence = invalid_setting(error)
        name = f"--{field}" if field in present else f"{PREFIX}{field.upper()}"
        raise UsageError(f"{name}: {sentence}") from None


def _choose_device(settings: Settings, flag: str | None) -> "Choice":
    """Returns the device of the settings, which the flag has replaced if there is one."""
    from seg_loss import InvalidInput

    from . import devices

    try:
        return devices.choose(settings.device, "--device" if flag else f"{PREFIX}DEVICE")
    except InvalidInput as error:
        raise UsageError(f"{error}") from None


def _read_inputs(options: LossOptions, device: str | None, **paths: Path | None) -> "Inputs":
    """Returns the inputs in these files, which are read like the parts of a multipart body.

    The tensors of a loss are on the device of that name.
    """
    from .inputs import assemble, is_label_map

    _check_stdin(paths.values())
    settings = _settings(for_commands, device=device)
    choice = _choose_device(settings, device)
    _warn([choice.warning] if choice.warning else [])
    files = {name: _read(path, name) for name, path in paths.items() if path is not None}
    if isinstance(options, EvaluateOptions) and is_label_map(files["logits"]):
        files["prediction"] = files.pop("logits")
    return assemble(files, options, settings).copied(lambda tensor: tensor.to(choice.device))


def _check_stdin(paths: Iterable[Path | None]) -> None:
    if sum(path is STDIN for path in paths) > 1:
        raise UsageError(f"{STDIN}: expected one input from standard input, got several.")


def _read(path: Path, name: str) -> memoryview:
    """Returns a file, or an array in an NPZ file, in writable memory that tensors can share."""
    from .formats import npz

    with _open(path) as file:
        content = _read_all(file)
    is_npz = bytes(content[:4]) in (npz.MAGIC, npz.EMPTY_MAGIC)
    return npz.read(content, name) if is_npz else content


def _open(path: Path) -> BinaryIO:
    """Returns an open file; that of standard input for -."""
    if path is not STDIN:
        return path.open("rb")
    if sys.stdin is None:
        raise UsageError(f"{STDIN}: expected standard input, got none.")
    return open(0, "rb", closefd=False)


def _read_all(file: BinaryIO) -> memoryview:
    """Returns all bytes of a file, or of a pipe, whose size is not known."""
    import numpy as np

    memory = np.empty(os.fstat(file.fileno()).st_size, dtype=np.uint8).data
    filled = 0
    while filled < len(memory) and (count := file.readinto(memory[filled:])):  # type: ignore[attr-defined]
        filled += count
    rest = file.read()
    return memoryview(bytearray().join((memory[:filled], rest))) if rest else memory[:filled]


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Writes a temporary file and renames it, so that no other process reads a part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.writelines(chunks)
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # the name that the user knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _loss_tables(result: "EvaluationResult") -> tuple[Table, ...]:
    per_class_rows: Sequence[Any] = result.evaluation.per_class
    classes = zip(_class_names(result), per_class_rows, strict=True)
    per_class = Table(
        "class",
        ("class", "name", "pixels", "mean_nll"),
        tuple(
            (index, name, row.pixels, row.mean_nll)
            for index, (name, row) in enumerate(classes)
            if row.pixels
        ),
    )
    return (*_batch_tables(result, ()), per_class, _input_table(result))


def _evaluation_tables(result: "EvaluationResult") -> tuple[Table, ...]:
    metrics, calibration = result.metrics, result.evaluation.calibration
    rows = [(name, getattr(metrics, name)) for name in METRICS]
    rows += [("num_classes_averaged", metrics.num_classes_averaged)]
    rows += [("ece", None if calibration is None else calibration.ece)]
    per_class_rows: Sequence[Any] = result.evaluation.per_class
    classes = zip(
        _class_names(result),
        per_class_rows,
        metrics.iu,
        metrics.accuracy,
        strict=True,
    )
    per_class = Table(
        "class",
        ("class", "name", "pixels", "mean_nll", "iu", "accuracy"),
        tuple(
            (index, name, row.pixels, row.mean_nll, iu, accuracy)
            for index, (name, row, iu, accuracy) in enumerate(classes)
            if row.pixels or iu is not None
        ),
    )
    return (*_batch_tables(result, rows), per_class, _input_table(result))


def _batch_tables(
    result: "EvaluationResult", metrics: Iterable[tuple[str, Any]]
) -> tuple[Table, ...]:
    """Returns the table of the batch, and one of its images if there are several."""
    from .results import BATCH_FIELDS

    evaluation = result.evaluation
    batch = Table(
        "batch",
        ("quantity", "value"),
        (
            *((name, getattr(evaluation, name)) for name in BATCH_FIELDS),
            *metrics,
            ("diagnosis", None if evaluation.diagnosis is None else evaluation.diagnosis.state),
        ),
    )
    per_image: Sequence[Any] = evaluation.per_image
    if len(per_image) == 1:
        return (batch,)
    images = tuple((index, image.loss, image.valid_pixels) for index, image in enumerate(per_image))
    return (batch, Table("image", ("image", "loss", "valid_pixels"), images))


def _class_names(result: "EvaluationResult") -> list[str]:
    """Returns the name of each class, or an empty string if the palette has none."""
    num_classes = len(result.evaluation.per_class)
    names = result.palette.palette.class_names
    return [*names[:num_classes], *[""] * (num_classes - len(names))]


def _input_table(result: "EvaluationResult") -> Table:
    """Returns a table of the label maps: how each was read, and the values in it."""
    from .input_reports import LabelMapReport

    rows = []
    for name, row in result.reports.items():
        if not isinstance(row, LabelMapReport):
            continue
        shown = [f"{value}: {count}" for value, count in row.values[:_MAX_VALUES]]
        left_out = len(row.values) - len(shown) + row.values_left_out
        shown += [f"{left_out} more values"] if left_out else []
        space = row.label_space if row.read_as == "indices" else row.read_as
        kind = f"{row.file}, mode {row.mode}" if row.mode else row.file
        rows.append((name, kind, row.dtype, space, row.ignored_pixels, ", ".join(shown)))
    columns = ("input", "file", "dtype", "read_as", "ignored_pixels", "pixels_of_value")
    return Table("input", columns, tuple(rows))


def _parse_threshold(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    name = name.replace("-", "_")
    if name in METRICS and NUMBER.fullmatch(number) and 0 <= float(number) <= 1:
        return name, float(number)
    names = ", ".join(METRICS)
    fix = did_you_mean(name, METRICS) if name not in METRICS else ""
    raise UsageError(
        f"--fail-under: expected METRIC=VALUE with one of {names}, and 0...1, "
        f"got {safe_repr(text)}. {fix}".rstrip()
    )


def _check_format(format_name: str) -> None:
    if format_name not in FORMATS:
        raise _usage_error("--format", FORMATS, format_name)


def _usage_error(where: str, choices: Iterable[str], got: str) -> UsageError:
    """Returns the error for a name that is none of the choices."""
    sentence = f"{where}: expected one of {', '.join(choices)}, got {safe_repr(got)}."
    return UsageError(f"{sentence} {did_you_mean(got, choices)}".rstrip())


def _check_suffix(output: Path, *suffixes: str) -> None:
    if output.suffix not in suffixes:
        raise UsageError(f"--output: expected a name that ends in {' or '.join(suffixes)}.")


def _with_flags(sentence: str) -> str:
    return with_flags(sentence, _FLAGS)


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        _print_error(f"{PROGRAM}: warning: {_with_flags(warning)}")


def _fail(sentence: str, status: int) -> NoReturn:
    _print_error(f"{PROGRAM}: {sentence}")
    sys.exit(status)


def _print_error(line: str) -> None:
    if sys.stderr is not None:  # else print writes to standard output
        print(printable(line), file=sys.stderr)


def _print(text: str) -> None:
    if sys.stdout is None:
        _fail(f"{STDOUT}: expected an open one, got none.", 1)
    with _naming_standard_output():
        print(text)


@contextmanager
def _naming_standard_output() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = STDOUT
        raise
