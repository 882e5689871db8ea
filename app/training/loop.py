"""The loop of a training: steps, validations, checkpoints.

    batches -> Objective.accumulate -> sum over processes -> optimizer -> callbacks

The order and the changes of images, dropout and the learning rate depend on the seed and on the
number of the step alone. A training that is resumed from a checkpoint therefore goes on with the
bits that it would have had, on the CPU and with the same number of threads.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from .callbacks import Callback, DiagnosisAdvice, LogRecord, WriteLine, call_all, peak_memory_bytes
from .checkpoints import Progress, Run, are_finite, load_checkpoint
from .data import LabelFormat
from .distributed import Ranks
from .interrupts import Interrupts
from .networks import NetworkSpec, save_network
from .objective import Batch, Objective
from .optimization import make_optimizer, rate_at, set_rate, trained_parameters
from .recipes import Recipe
from .samples import Samples, Stream, make_loader, read_batches, step_seed
from .validation import Validation, Validator


@dataclass(frozen=True)
class Outcome:
    """How a training has ended.

    Attributes:
        progress: how far it is.
        signal: the number of the signal that has stopped it, or 0.
        is_saved: whether the last checkpoint could be written.
    """

    progress: Progress
    signal: int
    is_saved: bool


class Trainer:
    """Trains a network.

    Args:
        model: the network, on the device of `ranks`.
        spec: its description, for checkpoints.
        recipe: the complete recipe.
        samples: the training images.
        labels: how label files are read.
        run: the folder to write to.
        ranks: the processes.
        validator: validates; None for no validation.
        callbacks: what happens beside the loop; in the first process alone.
        advice: the callback that can tell why a training diverges.
        write_line: writes a line; does nothing in other processes than the first.
        workers: number of processes that read images.

    Attributes:
        progress: how far the training is.
        draws_pictures: whether validations return pictures.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: NetworkSpec,
        recipe: Recipe,
        samples: Samples,
        labels: LabelFormat,
        run: Run,
        ranks: Ranks,
        *,
        validator: Validator | None = None,
        callbacks: Sequence[Callback] = (),
        advice: DiagnosisAdvice,
        write_line: WriteLine,
        workers: int = 0,
    ) -> None:
        self._model = model
        self._spec = spec
        self._recipe = recipe
        self._samples = samples
        self._labels = labels
        self._run = run
        self._ranks = ranks
        self._validator = validator
        self._callbacks: list[Callback] = [*callbacks, advice]
        self._advice = advice
        self._write_line = write_line
        self._workers = workers
        self.draws_pictures = False
        self._optimizer: Optimizer = make_optimizer(model, recipe)
        self._parameters = trained_parameters(self._optimizer)
        self._objective = Objective(model, recipe, labels.ignore_index, ranks)
        self.progress = Progress()

    def add(self, callback: Callback) -> None:
        """Adds a callback, which is called before the advice on the loss."""
        self._callbacks.insert(-1, callback)

    def load(self) -> bool:
        """Goes on from the newest checkpoint of the run; returns whether there is one.

        Raises:
            InvalidInput, IllPosed, Malformed: if it does not fit this training.
            OSError: if it cannot be read.
        """
        checkpoints = self._run.checkpoints()
        if not checkpoints:
            return False
        scaler = self._objective.scaler
        self.progress = load_checkpoint(
            checkpoints[-1], self._model, self._spec, self._optimizer, scaler
        )
        return True

    def train(self, interrupts: Interrupts) -> Outcome:
        """Trains until the last step or a signal, and writes a checkpoint.

        Raises:
            Diverged: if the loss or the weights are not finite. No checkpoint is written then.
        """
        # Steps seed torch's generators; the caller's are as before afterwards.
        devices = [self._ranks.device] if self._ranks.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            try:
                return self._train(interrupts)
            finally:
                call_all(self._callbacks, "on_end")

    def _train(self, interrupts: Interrupts) -> Outcome:
        recipe, progress = self._recipe, self.progress
        self._ranks.copy_from_first(self._model)
        batches = self._batches()
        log = _Log(self._ranks, len(self._samples))
        is_saved = True
        received = 0
        self._model.train()
        if progress.step and self._is_validation_due():  # it was interrupted
            received = self._validate(interrupts)
            if not received:
                is_saved = self._save_progress()
            log.restart()
        while progress.step < recipe.steps and not received:
            with log.waiting():
                micro_batches = [next(batches) for _ in range(recipe.accumulation)]
            loss = self._update(micro_batches, log)
            progress.step += 1
            progress.samples += self._samples_per_step
            call_all(self._callbacks, "on_step", progress.step, loss)
            is_last = progress.step == recipe.steps
            # All processes stop after the same step.
            (num_received,) = self._ranks.sum([float(interrupts.received != 0)])
            received = (interrupts.received or 2) if num_received else 0
            if is_last or progress.step % recipe.log_interval == 0:
                record = log.record(progress, rate_at(progress.step - 1, recipe))
                call_all(self._callbacks, "on_log", record)
            if self._is_validation_due() and not received:
                received = self._validate(interrupts)
                log.restart()
            if is_last or received or progress.step % recipe.checkpoint_interval == 0:
                is_saved = self._save()
                log.restart()
        return Outcome(progress, received, is_saved)

    @property
    def _samples_per_step(self) -> int:
        recipe = self._recipe
        return recipe.batch_size * recipe.accumulation * self._ranks.world_size

    def _batches(self) -> Iterator[Batch]:
        recipe = self._recipe
        stream = Stream(
            len(self._samples),
            begin=self.progress.samples,
            num_steps=recipe.steps - self.progress.step,
            batch_size=recipe.batch_size,
            accumulation=recipe.accumulation,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            seed=recipe.seed,
        )
        pin = self._ranks.device.type == "cuda"
        return read_batches(
            make_loader(self._samples, stream, self._labels, self._workers, pin=pin)
        )

    def _update(self, micro_batches: Sequence[Batch], log: "_Log") -> float:
        """Changes the weights by the gradient of these batches, and returns the loss."""
        recipe, optimizer, scaler = self._recipe, self._optimizer, self._objective.scaler
        step = self.progress.step
        self._seed(step_seed(recipe.seed, step, self._ranks.rank))
        set_rate(optimizer, rate_at(step, recipe))
        optimizer.zero_grad(set_to_none=True)
        result = self._objective.accumulate(micro_batches)
        self._sum_gradients()
        if recipe.clip_grad_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self._parameters, recipe.clip_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        log.add(result.loss, result.mean_nll, result.valid_pixels, result.num_images)
        return result.loss

    def _seed(self, seed: int) -> None:
        """Seeds the generator of the device, and that of the CPU."""
        torch.default_generator.manual_seed(seed)
        device = self._ranks.device
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)

    def _sum_gradients(self) -> None:
        if self._ranks.world_size == 1:
            return
        # A layer that a step skips has no gradient in any process, and is not changed.
        used = self._ranks.sum([float(p.grad is not None) for p in self._parameters])
        self._ranks.sum_gradients(self._parameters, [count > 0 for count in used])

    def _is_validation_due(self) -> bool:
        """Returns whether the weights of this step have to be validated, and have not been."""
        step, recipe = self.progress.step, self._recipe
        has_ended = step == recipe.steps or step % recipe.val_interval == 0
        return self._validator is not None and has_ended and self.progress.validated < step

    def _validate(self, interrupts: Interrupts) -> int:
        """Validates, and returns the number of the signal that has ended it, or 0.

        A training that is resumed begins with the validation that a signal has ended.
        """
        validator = self._validator
        assert validator is not None
        # Statistics of normalisation layers are those of the first process, which writes them.
        self._ranks.copy_from_first(self._model)
        result = validator(
            self._model,
            self._objective.autocast(),
            pictures=self.draws_pictures,
            is_cancelled=lambda: interrupts.received != 0,
        )
        if result is None:
            return interrupts.received or 2
        call_all(self._callbacks, "on_validation", self.progress.step, result)
        self._keep_best(result)
        self.progress.validated = self.progress.step
        return 0

    def _keep_best(self, result: Validation) -> None:
        progress, mean_iu = self.progress, result.metrics.mean_iu
        if mean_iu is None or (progress.best is not None and mean_iu <= progress.best):
            return
        if self._ranks.is_first:
            try:
                save_network(self._run.best, self._model, self._spec)
            except OSError as error:
                self._write_line(_write_warning(f"{self._run.best}", error))
                return
        progress.best, progress.best_step = mean_iu, progress.step

    def _save(self) -> bool:
        """Writes a checkpoint and returns whether that was possible."""
        step = self.progress.step
        if not are_finite(self._model):
            raise self._advice.diverged(step, "weights that are not finite")
        return self._write(
            lambda: self._run.save_checkpoint(
                self.progress,
                self._model,
                self._spec,
                self._optimizer,
                self._objective.scaler,
                self._recipe.keep,
            )
        )

    def _save_progress(self) -> bool:
        """Writes into the checkpoint that this training began with that it has been validated."""
        scaler = self._objective.scaler
        return self._write(lambda: self._run.save_progress(self.progress, self._optimizer, scaler))

    def _write(self, write: Callable[[], object]) -> bool:
        """Writes in the first process, and returns whether that was possible."""
        is_saved = True
        if self._ranks.is_first:
            try:
                write()
            except OSError as error:
                what = f"the checkpoint of step {self.progress.step}"
                self._write_line(_write_warning(what, error))
                is_saved = False
        self._ranks.wait()
        return is_saved


def _write_warning(what: str, error: OSError) -> str:
    reason = error.strerror or f"{error}"
    return f"warning: {what} could not be written: {reason}. Older files are unchanged."


class _Log:
    """Sums of what is measured since the last line of the log."""

    def __init__(self, ranks: Ranks, num_images_of_epoch: int) -> None:
        self._ranks = ranks
        self._num_images_of_epoch = num_images_of_epoch
        self._start = time.monotonic()
        self.restart()
        self._clear()

    def restart(self) -> None:
        """Leaves out the time since the last step, which was no training."""
        self._last = time.monotonic()

    def _clear(self) -> None:
        self._num_steps = self._num_images = self._valid_pixels = 0
        self._loss = self._nll = self._seconds = self._waited = 0.0

    def waiting(self) -> "_Waiting":
        """Returns a context whose time counts as waiting for images."""
        return _Waiting(self)

    def add_waiting(self, seconds: float) -> None:
        """Adds time in which no image was there."""
        self._waited += seconds

    def add(self, loss: float, mean_nll: float, valid_pixels: int, num_images: int) -> None:
        """Adds a step."""
        now = time.monotonic()
        self._seconds += now - self._last
        self._last = now
        self._num_steps += 1
        self._loss += loss
        self._nll += mean_nll * valid_pixels
        self._valid_pixels += valid_pixels
        self._num_images += num_images

    def record(self, progress: Progress, learning_rate: float) -> LogRecord:
        """Returns the means of the steps, and begins with the next ones."""
        seconds = max(self._seconds, 1e-9)
        record = LogRecord(
            step=progress.step,
            epoch=progress.samples / self._num_images_of_epoch,
            loss=self._loss / max(self._num_steps, 1),
            mean_nll=self._nll / max(self._valid_pixels, 1),
            valid_pixels=self._valid_pixels,
            learning_rate=learning_rate,
            images_per_second=self._num_images / seconds,
            data_share=min(self._waited / seconds, 1.0),
            memory_bytes=peak_memory_bytes(self._ranks.device),
            seconds=time.monotonic() - self._start,
        )
        self._clear()
        return record


class _Waiting:
    """Measures a block."""

    def __init__(self, log: _Log) -> None:
        self._log = log

    def __enter__(self) -> None:
        self._begin = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._log.add_waiting(time.monotonic() - self._begin)
