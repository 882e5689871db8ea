"""The command line, `seg-loss`: files in, the operations of the service, files and tables out.

Results on stdout, warnings and errors on stderr. Exit 0: good; 1: evaluated but failed, or a file
that cannot be used; 2: wrong usage.

Nothing heavy is imported before a command runs: `seg-loss --help` must not wait for torch. The
flags of the options come from the rows of `app.options`. The way goes on in `app.uploads` and
`app.operations`.
"""

import inspect
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from .errors import IllPosed, RequestError
from .options import (
    EvaluateOptions,
    GradientOptions,
    LossOptions,
    VisualizeOptions,
    option_text,
    parse,
)
from .report import FORMS, Report, Table, render
from .settings import PREFIX, Settings

if TYPE_CHECKING:
    from .inputs import Upload
    from .results import EvaluationResult

PROGRAM = "seg-loss"
METRICS = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")

Command = TypeVar("Command", bound=Callable[..., None])

cli = typer.Typer(
    name=PROGRAM,
    help="The pixel-wise softmax loss of semantic segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # The library's names are accepted as they are: --ignore_index.
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)


class UsageError(Exception):
    """Wrong usage, in one sentence."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit."""
    try:
        cli(arguments, prog_name=PROGRAM)
    except UsageError as error:
        _fail(f"{error}", 2)
    except RequestError as error:
        _fail(error.detail, 1)
    except OSError as error:
        _fail(f"{error.filename or 'files'}: {error.strerror or error}", 1)
    except ValueError as error:
        from seg_loss import InvalidInput

        if not isinstance(error, InvalidInput):
            raise
        _fail(f"{error}", 1)
    sys.exit(0)


# Flags that several commands share.

LogitsFile = Annotated[
    Path, typer.Argument(metavar="LOGITS", help="[N,C,H,W] or [C,H,W]: .npy, .npz, .safetensors.")
]
LabelsFile = Annotated[
    Path, typer.Argument(metavar="LABELS", help="[N,H,W] or [H,W]: .png, .npy, .npz, .safetensors.")
]
ClassWeightFile = Annotated[
    Path | None, typer.Option("--class-weight", help="File of [C], a weight for each class.")
]
PixelWeightFile = Annotated[
    Path | None, typer.Option("--pixel-weight", help="File of [N,H,W], a weight for each pixel.")
]
Form = Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMS)}.")]


def _with_options(model: type[LossOptions]) -> Callable[[Command], Command]:
    """Give a command a flag for each row of `model`; it gets them parsed, as `options`."""

    def decorate(function: Command) -> Command:
        def command(**arguments: Any) -> None:
            texts = {name: arguments.pop(name) for name in model.model_fields}
            given = ((name, text) for name, text in texts.items() if text is not None)
            function(options=_options(model, given), **arguments)

        own = inspect.signature(function).parameters.values()
        flags = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[str | None, _flag(name, model)],
            )
            for name in model.model_fields
        ]
        kept = [parameter for parameter in own if parameter.name != "options"]
        command.__doc__ = function.__doc__
        command.__name__ = function.__name__
        command.__annotations__ = {}
        command.__signature__ = inspect.Signature([*kept, *flags])  # type: ignore[attr-defined]
        cli.command()(command)
        return function

    return decorate


def _flag(name: str, model: type[LossOptions]) -> Any:
    row = model.model_fields[name]
    default = option_text(row.default)
    text = f"{row.description} Expected: {row.title}." + (f" [{default}]" if default else "")
    return typer.Option(f"--{name.replace('_', '-')}", help=text, metavar="VALUE")


def _options(model: type[LossOptions], given: Iterable[tuple[str, str]]) -> LossOptions:
    try:
        return parse(model, given)
    except RequestError as error:
        raise UsageError(error.detail) from None


@_with_options(LossOptions)
def loss(
    logits: LogitsFile,
    labels: LabelsFile,
    options: LossOptions,
    class_weight: ClassWeightFile = None,
    pixel_weight: PixelWeightFile = None,
    form: Form = "table",
) -> None:
    """Print the loss, for the batch, each image and each class."""
    _check_form(form)
    from . import operations, results

    result = operations.loss(
        _upload(
            options,
            logits=logits,
            labels=labels,
            class_weight=class_weight,
            pixel_weight=pixel_weight,
        ),
        options,
    )
    _warn(result.warnings)
    members = results.loss_fields(result)
    note = result.evaluation.diagnosis.advice
    print(render(Report(_loss_tables(result, options), members, note), form))


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
    form: Form = "table",
) -> None:
    """Write the gradient of the loss in the logits, and print the loss."""
    _check_form(form)
    if output.suffix not in (".npy", ".safetensors"):
        raise UsageError("--output: expected a name that ends in .npy or .safetensors.")
    from . import operations, results
    from .formats import npy

    result = operations.gradient(
        _upload(
            options,
            logits=logits,
            labels=labels,
            class_weight=class_weight,
            pixel_weight=pixel_weight,
        ),
        options,
    )
    _warn(result.warnings)
    if not result.is_finite:
        _warn(["logits: not all are finite, and so is the gradient."])
    if output.suffix == ".npy":
        _write(output, npy.encode(result.gradient))
    else:
        _write(output, results.gradient_file(result))
    members = {
        "loss": results.to_jsonable(result.loss),
        "normalization": result.normalization,
        "loss_weight": result.loss_weight,
        "output": str(output),
        "warnings": list(result.warnings),
    }
    rows = tuple((name, members[name]) for name in ("loss", "normalization", "loss_weight"))
    table = Table("batch", ("quantity", "value"), (*rows, ("output", str(output))))  # type: ignore[arg-type]
    print(render(Report((table,), members), form))


@_with_options(EvaluateOptions)
def evaluate(
    logits: LogitsFile,
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
            help=f"Exit 1 if a metric is lower. One of {', '.join(METRICS)}.",
        ),
    ] = None,
    form: Form = "table",
) -> None:
    """Print loss, metrics and calibration; write the maps that are asked for."""
    _check_form(form)
    thresholds = [_threshold(text) for text in fail_under or ()]
    for path in (logits, labels):
        if path.is_dir():
            raise UsageError(f"{path}: expected a file, got a directory.")
    if (output is None) == bool(options.maps):
        raise UsageError("--maps and --output: expected both or neither.")
    if output is not None and output.suffix != ".safetensors":
        raise UsageError("--output: expected a name that ends in .safetensors.")
    from . import operations, results

    result = operations.evaluate(
        _upload(
            options,
            logits=logits,
            labels=labels,
            class_weight=class_weight,
            pixel_weight=pixel_weight,
        ),
        options,
    )
    _warn(result.warnings)
    if output is not None:
        _write(output, results.maps_file(result))
    members = results.evaluation_fields(result)
    note = result.evaluation.diagnosis.advice
    print(render(Report(_evaluation_tables(result, options), members, note), form))
    for name, least in thresholds:
        value = getattr(result.evaluation.metrics, name)
        if value is None or value < least:
            _fail(f"{name}: expected at least {least:g}, got {value}.", 1)


@_with_options(VisualizeOptions)
def visualize(
    options: VisualizeOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .png.")],
    logits: Annotated[
        Path | None, typer.Argument(metavar="[LOGITS]", help="[1,C,H,W] or [C,H,W].")
    ] = None,
    labels: Annotated[
        Path | None, typer.Argument(metavar="[LABELS]", help="[1,H,W], [H,W], or a PNG.")
    ] = None,
    labels_alone: Annotated[
        Path | None, typer.Option("--labels", help="The labels, where there are no logits.")
    ] = None,
    prediction: Annotated[
        Path | None, typer.Option("--prediction", help="Class indices, in place of logits.")
    ] = None,
    image: Annotated[Path | None, typer.Option("--image", help="The photo: PNG or JPEG.")] = None,
) -> None:
    """Draw labels, prediction, error or loss of one image."""
    if labels is not None and labels_alone is not None:
        raise UsageError("--labels: expected the labels once.")
    if output.suffix != ".png":
        raise UsageError("--output: expected a name that ends in .png.")
    from . import operations

    upload = _upload(
        options,
        logits=logits,
        labels=labels or labels_alone,
        prediction=prediction,
        image=image,
    )
    result = operations.visualize(upload, options)
    _warn(result.warnings)
    _write(output, [result.png])


@cli.command()
def palettes(
    name: Annotated[str | None, typer.Argument(help="Show the colours of this one.")] = None,
    form: Form = "table",
) -> None:
    """List the palettes, or the classes and colours of one."""
    _check_form(form)
    from .images.palettes import PALETTES

    if name is None:
        rows = tuple(
            (row.name, len(row.class_names), row.ignore_index) for row in PALETTES.values()
        )
        tables = (Table("palette", ("palette", "classes", "ignore_index"), rows),)
        members: Mapping[str, object] = {"palettes": list(PALETTES)}
    else:
        if name not in PALETTES:
            expected = f"one of {', '.join(PALETTES)}"
            raise UsageError(f"palette: expected {expected}, got an unknown name.")
        chosen = PALETTES[name]
        colours = chosen.colours.tolist()
        tables = (
            Table(
                "class",
                ("class", "name", "red", "green", "blue"),
                tuple(
                    (index, name, *colours[index]) for index, name in enumerate(chosen.class_names)
                ),
            ),
        )
        members = {**chosen.fields(), "colours": colours}
    print(render(Report(tables, members), form))


@cli.command()
def sample(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made if it is not there.")],
    height: Annotated[int, typer.Option("--height", min=32)] = 256,
    width: Annotated[int, typer.Option("--width", min=32)] = 512,
) -> None:
    """Write a made-up street scene to try things with: photo, labels and logits."""
    from .images.sample import make_sample

    files = make_sample(directory, height=height, width=width)
    for path in (files.photo, files.labels, files.logits):
        print(path)


def _settings_help() -> str:
    """The settings as paragraphs that the help page keeps as they are."""
    rows = (
        f"{PREFIX}{name.upper()} [{field.default}]\n  {field.description}"
        for name, field in Settings.model_fields.items()
    )
    return "\b\nSettings, as environment variables:\n" + "\n".join(rows)


@cli.command(epilog=_settings_help())
def serve(
    host: Annotated[str | None, typer.Option("--host", help=f"In place of {PREFIX}HOST.")] = None,
    port: Annotated[int | None, typer.Option("--port", help=f"In place of {PREFIX}PORT.")] = None,
) -> None:
    """Serve over HTTP until stopped."""
    settings = _settings(host=host, port=port)
    from .http import server

    server.serve(settings)


def _settings(**given: object) -> Settings:
    from pydantic import ValidationError

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = f"{PREFIX}{str(first['loc'][0]).upper()}" if first["loc"] else "settings"
        raise UsageError(f"{name}: {first['msg']}.") from None


def _upload(options: LossOptions, **paths: Path | None) -> "Upload":
    """The inputs in these files, read as the parts of a multipart body would be."""
    from .inputs import assemble

    settings = _settings()
    files = {name: _read(path, name) for name, path in paths.items() if path is not None}
    return assemble(files, options, settings)


def _read(path: Path, name: str) -> memoryview:
    """A file in memory that tensors may share and write to."""
    import numpy as np

    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return _read_npz(path, name)
        file.seek(0)
        memory = np.empty(os.fstat(file.fileno()).st_size, dtype=np.uint8).data
        filled = 0
        while filled < len(memory) and (count := file.readinto(memory[filled:])):
            filled += count
    return memory[:filled]


def _read_npz(path: Path, name: str) -> memoryview:
    """The NPY file in an NPZ that is called as the input, or the only one there is.

    Unzipped here and read by `app.codecs.npy` like any other: nothing is ever unpickled.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            wanted = f"{name}.npy"
            if wanted not in members and len(members) == 1:
                wanted = members[0]
            if wanted not in members:
                got = f"{len(members)} others"
                raise IllPosed(name, f"one array, or one called {name}", got)
            return memoryview(bytearray(archive.read(wanted)))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise IllPosed(name, "a complete NPZ file", "a damaged one") from None


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write beside the file, then take its place: nobody sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.writelines(pieces)
        beside.replace(path)
    except OSError as error:
        error.filename = str(path)  # not a name that only exists for a moment
        raise
    finally:
        beside.unlink(missing_ok=True)


def _loss_tables(result: "EvaluationResult", options: LossOptions) -> tuple[Table, ...]:
    classes = zip(_class_names(result, options), result.evaluation.per_class, strict=True)
    per_class = Table(
        "class",
        ("class", "name", "pixels", "mean_nll"),
        tuple(
            (index, name, row.pixels, row.mean_nll)
            for index, (name, row) in enumerate(classes)
            if row.pixels
        ),
    )
    return (*_batch_tables(result, ()), per_class)


def _evaluation_tables(result: "EvaluationResult", options: LossOptions) -> tuple[Table, ...]:
    metrics = result.evaluation.metrics
    rows = [(name, getattr(metrics, name)) for name in METRICS]
    rows += [("num_classes_averaged", metrics.num_classes_averaged)]
    rows += [("ece", result.evaluation.calibration.ece)]
    classes = zip(
        _class_names(result, options),
        result.evaluation.per_class,
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
    return (*_batch_tables(result, rows), per_class)


def _batch_tables(result: "EvaluationResult", rows: Iterable[tuple[str, Any]]) -> tuple[Table, ...]:
    evaluation = result.evaluation
    names = (
        "loss",
        "normalization",
        "divisor",
        "valid_pixels",
        "ignored_pixels",
        "uniform_loss",
    )
    batch = Table(
        "batch",
        ("quantity", "value"),
        (
            *((name, getattr(evaluation, name)) for name in names),
            *rows,
            ("diagnosis", evaluation.diagnosis.state),
        ),
    )
    if len(evaluation.per_image) == 1:
        return (batch,)
    images = tuple(
        (index, image.loss, image.valid_pixels) for index, image in enumerate(evaluation.per_image)
    )
    return (batch, Table("image", ("image", "loss", "valid_pixels"), images))


def _class_names(result: "EvaluationResult", options: LossOptions) -> list[str]:
    from .images.palettes import PALETTES

    names = PALETTES[options.palette].class_names if options.palette else ()
    num_classes = len(result.evaluation.per_class)
    return [*names[:num_classes], *[""] * (num_classes - len(names))]


def _threshold(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    name = name.replace("-", "_")
    try:
        if name in METRICS:
            return name, float(number)
    except ValueError:
        pass
    raise UsageError(f"--fail-under: expected METRIC=VALUE with one of {', '.join(METRICS)}.")


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise UsageError(f"--format: expected one of {', '.join(FORMS)}.")


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"{PROGRAM}: warning: {warning}", file=sys.stderr)


def _fail(sentence: str, status: int) -> NoReturn:
    print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    sys.exit(status)
