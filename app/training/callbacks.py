"""What happens beside the loop: lines on standard error, metrics in a file, curves, advice.

A callback cannot change the training. If it cannot write, there is one warning, and the training
goes on.
"""

import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch

from seg_loss.diagnosis import diagnose

from ..errors import IllPosed
from ..images.layers import Layers
from ..images.palettes import Palette
from ..loggers import Log
from ..options import with_flags
from ..report import METRICS
from ..terminal import printable
from .checkpoints import write_atomically
from .options import FLAGS
from .recipes import FCN_RATES, Recipe

if TYPE_CHECKING:
    from .samples import Samples
    from .validation import Validation

WriteLine = Callable[[str], None]
"""Writes one line to standard error."""


@dataclass(frozen=True)
class LogRecord:
    """Some steps: means of what was measured in them.

    Attributes:
        step: number of updates so far.
        epoch: number of passes over the training images so far.
        loss: mean loss, with the recipe's divisor.
        mean_nll: loss of a valid pixel.
        valid_pixels: number of valid pixels in all processes.
        learning_rate: of the last of the steps.
        images_per_second: in all processes.
        data_share: share of the time in which this process waited for images.
        memory_bytes: most memory so far: allocated on the GPU, or of this process.
        seconds: since the training was started or resumed.
    """

    step: int
    epoch: float
    loss: float
    mean_nll: float
    valid_pixels: int
    learning_rate: float
    images_per_second: float
    data_share: float
    memory_bytes: int
    seconds: float


class Callback:
    """The events of a training; by default nothing happens."""

    def on_step(self, step: int, loss: float) -> None:
        """Is called after each step with the number of updates and the loss of this step."""

    def on_log(self, record: LogRecord) -> None:
        """Is called after every `log_interval` steps."""

    def on_validation(self, step: int, validation: "Validation") -> None:
        """Is called after each validation."""

    def on_end(self) -> None:
        """Is called when the training has ended or was stopped."""


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the most memory that a GPU has allocated, or that this process has had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Terminal(Callback):
    """Lines on standard error, and a bar below them if that is a terminal.

    Args:
        stream: standard error, or None if the process has none.

    Attributes:
        num_steps: number of steps of the training, which must be set before the first.
    """

    _WIDTH = 24
    _SECONDS = 0.2

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.num_steps = 0
        self._has_bar = stream is not None and stream.isatty()
        self._bar = ""
        self._drawn = 0.0
        self._begin: tuple[int, float] | None = None

    def write_line(self, line: str) -> None:
        """Writes a line, above the bar."""
        self._erase()
        self._write(f"{printable(with_flags(line, FLAGS))}\n")

    def on_checked(self, done: int, total: int) -> None:
        """Shows how many images of the data set have been checked."""
        self._show(f"checking images {self._bar_of(done, total)}", force=done == total)
        if done == total:
            self._erase()

    def on_step(self, step: int, loss: float) -> None:
        """Moves the bar."""
        now = time.monotonic()
        if self._begin is None:
            self._begin = step, now
        first, begin = self._begin
        left = ""
        if step > first:
            seconds = (self.num_steps - step) * (now - begin) / (step - first)
            left = f"  {_duration(seconds)} left"
        self._show(f"{self._bar_of(step, self.num_steps)}  loss {loss:.5g}{left}")

    def on_log(self, record: LogRecord) -> None:
        """Writes loss, rates and memory."""
        self.write_line(
            f"step {record.step}/{self.num_steps}  epoch {record.epoch:.2f}  "
            f"loss {record.loss:.5g} ({record.mean_nll:.4f} a pixel)  lr {record.learning_rate:.3g}"
            f"  {record.images_per_second:.3g} images/s"
            f"  {record.data_share:.0%} waiting for images  {record.memory_bytes / 2**30:.2f} GiB"
        )

    def on_validation(self, step: int, validation: "Validation") -> None:
        """Writes the loss and the four metrics."""
        names = ("pixel acc.", "mean acc.", "mean IU", "f.w. IU")
        values = (getattr(validation.metrics, name) for name in METRICS)
        metrics = "  ".join(f"{name} {_number(v)}" for name, v in zip(names, values, strict=True))
        self.write_line(
            f"validation {step}  loss {_number(validation.mean_nll)} a pixel  {metrics}"
        )

    def on_end(self) -> None:
        """Removes the bar."""
        self._erase()

    def _bar_of(self, done: int, total: int) -> str:
        filled = self._WIDTH * done // max(total, 1)
        return f"[{'#' * filled}{'-' * (self._WIDTH - filled)}] {done}/{total}"

    def _show(self, text: str, *, force: bool = False) -> None:
        now = time.monotonic()
        is_due = force or now - self._drawn >= self._SECONDS
        if not self._has_bar or not is_due:
            return
        self._drawn = now
        # A line that wraps could not be erased.
        text = text[: shutil.get_terminal_size().columns - 1]
        padding = " " * max(len(self._bar) - len(text), 0)
        self._write(f"\r{text}{padding}")
        self._bar = text

    def _erase(self) -> None:
        if self._bar:
            self._write(f"\r{' ' * len(self._bar)}\r")
            self._bar = ""

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # the terminal, or the reader of a pipe, is gone
            self._stream = None


class MetricsFile(Callback):
    """`metrics.jsonl`: an object for each line of the log and for each validation.

    Args:
        path: the file.
        step: the lines of later steps are removed, which a training that is resumed repeats.
        write_line: writes a warning.
    """

    def __init__(self, path: Path, step: int, write_line: WriteLine) -> None:
        self._path = path
        self._write_line = write_line
        self._failed = False
        if path.exists():
            try:
                write_atomically(path, [_lines_until(path, step).encode()])
            except OSError as error:
                self._warn(error)

    def on_log(self, record: LogRecord) -> None:
        """Adds a line of kind train."""
        self._add({"kind": "train", **asdict(record)})

    def on_validation(self, step: int, validation: "Validation") -> None:
        """Adds a line of kind val."""
        metrics = validation.metrics
        self._add(
            {
                "kind": "val",
                "step": step,
                "mean_nll": validation.mean_nll,
                "image_loss": validation.image_loss,
                **{name: getattr(metrics, name) for name in METRICS},
                "num_classes_averaged": metrics.num_classes_averaged,
                "iu": list(metrics.iu),
                "diagnosis": validation.diagnosis.state,
            }
        )

    def _add(self, fields: dict[str, object]) -> None:
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }
        # A line that was cut off must not run into this one.
        text = ("\n" if self._failed else "") + json.dumps(finite, allow_nan=False) + "\n"
        try:
            with self._path.open("a") as file:
                file.write(text)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._failed:
            self._write_line(
                f"warning: {self._path}: {error.strerror or error}; metrics are missing."
            )
        self._failed = True


def _lines_until(path: Path, step: int) -> str:
    """Returns the complete lines of steps up to this one."""
    lines = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            fields = json.loads(line)
            is_kept = int(fields["step"]) <= step
        except (ValueError, TypeError, KeyError):  # cut by a full disk
            continue
        if is_kept:
            lines.append(line + "\n")
    return "".join(lines)


class TensorBoard(Callback):
    """Scalars and pictures for TensorBoard.

    Args:
        folder: the folder of the event files.
        step: TensorBoard hides what was written for later steps, which a resumed training repeats.
        photos: the images of the validation.
        palette: the colours of the classes.
        write_line: writes a warning.
        class_names: the names of the classes, if they have names.

    Raises:
        IllPosed: if TensorBoard is not installed.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        photos: "Samples | None",
        palette: Palette,
        write_line: WriteLine,
        class_names: Sequence[str] = (),
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            fix = "pip install tensorboard, or pass tensorboard=no."
            raise IllPosed("tensorboard", "TensorBoard to be installed", "none", fix) from None
        self._photos = photos
        self._palette = palette
        self._class_names = class_names
        self._write_line = write_line
        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        # TensorBoard writes in a thread, whose error the next call here raises again.
        self._report_thread_error = threading.excepthook
        threading.excepthook = self._on_thread_error

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        is_of_tensorboard = type(error.thread).__module__.startswith("tensorboard.")
        if not (is_of_tensorboard and issubclass(error.exc_type, OSError)):
            self._report_thread_error(error)

    def on_log(self, record: LogRecord) -> None:
        """Adds the curves of the training."""
        self._write(
            lambda: [
                self._writer.add_scalar(f"train/{name}", getattr(record, name), record.step)
                for name in ("loss", "mean_nll", "learning_rate", "images_per_second")
            ]
        )

    def on_validation(self, step: int, validation: "Validation") -> None:
        """Adds curves, the table of the classes, the confusion matrix, and some images."""

        def write() -> None:
            log = Log("val", validation.confusion, validation.metrics, self._class_names)
            log.scalars["val/mean_nll"] = validation.mean_nll
            for picture in validation.pictures:
                layers = Layers(
                    self._palette,
                    len(validation.confusion),
                    labels=picture.labels,
                    prediction=picture.prediction,
                    photo=None if self._photos is None else self._photos.photo(picture.index),
                    valid=picture.valid,
                )
                log.add_image(f"val/{picture.index}", layers, f"image {picture.index}")
            log.write(self._writer, step)

        self._write(write)

    def on_end(self) -> None:
        """Closes the event file."""
        self._write(lambda: self._writer.close())
        threading.excepthook = self._report_thread_error

    def _write(self, write: Callable[[], object]) -> None:
        if self._writer is None:
            return
        try:
            write()
        except OSError as error:
            self._write_line(f"warning: TensorBoard: {error.strerror or error}; curves end here.")
            self._writer = None


class Diverged(IllPosed):
    """The loss is no finite number: the weights cannot be trained further."""


class DiagnosisAdvice(Callback):
    """Advice on a loss that sits at ln C, is worse than chance, or is no number.

    Args:
        num_classes: C.
        network: the name of the network.
        recipe: the recipe.
        is_new: whether the weights are random.
        write_line: writes a line.
    """

    PATIENCE = 200
    """Number of steps after which a loss at ln C is unusual."""
    _BLOWN_UP = 2.0
    """A mean loss of more than this many ln C is unusual at any step."""

    def __init__(
        self, num_classes: int, network: str, recipe: Recipe, is_new: bool, write_line: WriteLine
    ) -> None:
        self._num_classes = num_classes
        self._network = network
        self._recipe = recipe
        self._is_new = is_new
        self._write_line = write_line
        self._state = ""
        self._first = max(self.PATIENCE, 2 * recipe.warmup_steps)

    def on_step(self, step: int, loss: float) -> None:
        """Raises `Diverged` if the loss is no number."""
        if not math.isfinite(loss):
            raise self.diverged(step, f"{loss}")

    def diverged(self, step: int, got: str) -> Diverged:
        """Returns the error for a training whose loss or weights are not finite."""
        advice = self._lower_rate() + " The newest checkpoint is from before."
        return Diverged("loss", f"a finite number in step {step}", got, advice)

    def on_log(self, record: LogRecord) -> None:
        """Gives advice on the mean loss of the last steps, once for each state."""
        if not record.valid_pixels:
            self._report(record.step, 0, 0.0)
        # With smoothing or weights the terms are no nll, which ln C could be compared with.
        elif not self._recipe.label_smoothing and not self._recipe.class_weight:
            has_blown_up = record.mean_nll > self._BLOWN_UP * math.log(max(self._num_classes, 2))
            if has_blown_up or record.step >= self._first:
                self._report(record.step, record.valid_pixels, record.mean_nll)

    def on_validation(self, step: int, validation: "Validation") -> None:
        """Gives advice on the loss of a validation, unless that of the training had the state."""
        diagnosis = validation.diagnosis
        is_certain = step >= self._first or diagnosis.state in ("non_finite", "nothing_valid")
        if is_certain and diagnosis.state != self._state:
            self._advise(step, diagnosis.state, diagnosis.advice)

    def _report(self, step: int, valid_pixels: int, mean_nll: float) -> None:
        diagnosis = diagnose(
            num_classes=self._num_classes,
            valid_pixels=valid_pixels,
            mean_nll=mean_nll,
            saturated_pixels=0,
            non_finite_pixels=0,
        )
        if diagnosis.state != self._state:
            self._advise(step, diagnosis.state, diagnosis.advice)

    def _advise(self, step: int, state: str, advice: str) -> None:
        is_new = not self._state
        self._state = state
        if state == "learning" and is_new:
            return  # as it should be
        more = {"at_chance": self._raise_rate, "worse_than_chance": self._lower_rate}.get(state)
        self._write_line(f"step {step}: {state}: {advice}{' ' + more() if more else ''}")

    def _raise_rate(self) -> str:
        rate = self._recipe.learning_rate
        usual = FCN_RATES["fcn32s"]
        if self._network in FCN_RATES and FCN_RATES[self._network] < usual and rate < usual:
            if self._is_new:
                return (
                    f"The rate {rate:g} of {self._network} continues a trained network: pass "
                    f"--init with a checkpoint of fcn32s, or --learning-rate {usual:g}."
                )
            return f"Try --learning-rate {usual:g}."
        if self._recipe.normalization in ("valid", "full", "weight") and rate < 1e-7:
            return (
                f"The loss is a mean over the pixels, and {rate:g} is a rate for a sum: try "
                "--learning-rate 1e-2 or --normalization batch."
            )
        return f"Try --learning-rate {10 * rate:g}, or weights to begin with: --init."

    def _lower_rate(self) -> str:
        rate = self._recipe.learning_rate
        is_sum = self._recipe.normalization in ("batch", "none")
        if is_sum and rate > 1e-7 and self._recipe.optimizer == "sgd":
            return (
                f"The loss is a sum over the pixels of an image, and {rate:g} is a rate for a "
                "mean: try --learning-rate 1e-10 or --normalization valid."
            )
        return f"Try --learning-rate {rate / 10:g}, --warmup-steps, or --clip-grad-norm 1."


def call_all(callbacks: Sequence[Callback], event: str, *arguments: object) -> None:
    """Calls a method of each callback."""
    for callback in callbacks:
        getattr(callback, event)(*arguments)


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
