"""The loop: learning, checkpoints that resume to the same bits, signals, full disks, advice."""

import dataclasses
import errno
import json
import math
import os
import resource
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_data import NUM_CLASSES, TINY
from training_runs import TINY_RECIPE, Lines, bits_of, make_trainer, run, weights_of

from app.errors import IllPosed, Malformed
from app.images.palettes import PALETTES
from app.training import checkpoints
from app.training.callbacks import (
    Callback,
    DiagnosisAdvice,
    Diverged,
    LogRecord,
    MetricsFile,
    TensorBoard,
    Terminal,
)
from app.training.checkpoints import Run, write_atomically
from app.training.interrupts import Interrupts
from models.checkpoints import load_network

SGD = dataclasses.replace(TINY_RECIPE, optimizer="sgd", momentum=0.9, accumulation=2, steps=7)


class AtStep(Callback):
    """Does something after a step."""

    def __init__(self, step, action):
        self._step, self._action = step, action

    def on_step(self, step, loss):
        if step == self._step:
            self._action()


def interrupt(number=signal.SIGINT):
    os.kill(os.getpid(), number)


def test_a_training_learns_and_its_metrics_are_written(voc, tmp_path):
    recipe = dataclasses.replace(TINY_RECIPE, steps=60, crop=None, scale=None, val_interval=60)
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0, Lines())
    outcome = run(make_trainer(voc, tmp_path, recipe, callbacks=[metrics]))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    train = [record for record in records if record["kind"] == "train"]
    (val,) = (record for record in records if record["kind"] == "val")
    assert [record["step"] for record in train] == list(range(2, 61, 2))
    assert train[-1]["epoch"] == 20
    assert train[-1]["loss"] < 0.6 < 0.9 < train[0]["loss"]
    assert val["mean_iu"] == outcome.progress.best > 0.3
    assert 0 < val["mean_nll"] < math.log(3)
    assert len(val["iu"]) == NUM_CLASSES
    assert val["image_loss"] == pytest.approx(val["mean_nll"] * (20 - 1) * 24)


@pytest.mark.parametrize("recipe", [TINY_RECIPE, SGD], ids=["adamw", "sgd"])
def test_interrupted_and_resumed_equals_uninterrupted(voc, tmp_path, recipe):
    assert run(make_trainer(voc, tmp_path / "whole", recipe)).signal == 0
    whole = bits_of(tmp_path / "whole")
    interrupted = make_trainer(voc, tmp_path / "parts", recipe, callbacks=[AtStep(5, interrupt)])
    outcome = run(interrupted)
    assert (outcome.signal, outcome.progress.step) == (signal.SIGINT, 5)
    torch.rand(7)  # torch's own generator plays no part
    resumed = make_trainer(voc, tmp_path / "parts", dataclasses.replace(recipe, keep=2))
    with torch.no_grad():
        for parameter in resumed._model.parameters():
            parameter.fill_(float("nan"))  # all weights are read
    assert resumed.load()
    assert run(resumed).progress.step == recipe.steps
    assert bits_of(tmp_path / "parts") == whole
    names = load_file(Run(tmp_path / "whole").checkpoints()[-1] / "training.safetensors").keys()
    kinds = {name.rpartition(".")[2] for name in names}
    assert kinds == ({"momentum_buffer"} if recipe is SGD else {"exp_avg", "exp_avg_sq", "step"})
    best = [weights_of(tmp_path / name / "best.safetensors") for name in ("whole", "parts")]
    assert best[0] == best[1]


def test_another_seed_gives_another_training(voc, tmp_path):
    for seed in (0, 1):
        run(make_trainer(voc, tmp_path / f"{seed}", dataclasses.replace(TINY_RECIPE, seed=seed)))
    assert bits_of(tmp_path / "0") != bits_of(tmp_path / "1")


def test_the_last_checkpoints_and_the_best_are_kept(voc, tmp_path):
    recipe = dataclasses.replace(TINY_RECIPE, steps=11, keep=2)
    outcome = run(make_trainer(voc, tmp_path, recipe))
    names = [path.name for path in Run(tmp_path).checkpoints()]
    assert names == ["00000009", "00000011"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names
    model, spec = load_network(tmp_path / "best.safetensors", network=TINY)
    assert (spec.network, spec.num_classes, spec.preprocessing) == (TINY, 3, "imagenet")
    assert not model.training
    assert outcome.progress.best_step in (4, 8, 11)


def test_torchs_generator_is_as_before_a_training(voc, tmp_path):
    trainer = make_trainer(voc, tmp_path)
    torch.manual_seed(5)
    run(trainer)
    numbers = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), numbers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_stop_with_a_checkpoint_too(voc, tmp_path, number):
    trainer = make_trainer(voc, tmp_path, callbacks=[AtStep(2, lambda: interrupt(number))])
    outcome = run(trainer)
    assert (outcome.signal, outcome.is_saved) == (number, True)
    assert Run(tmp_path).checkpoints()[-1].name == "00000002"


def test_nohup_lets_a_training_go_on():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            interrupt(signal.SIGHUP)
            assert interrupts.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_aborts_and_a_second_sigterm_does_not(capfd):
    before = signal.getsignal(signal.SIGINT)
    with Interrupts("stopping") as interrupts:
        interrupt(signal.SIGTERM)
        interrupt(signal.SIGTERM)
        assert interrupts.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr().err.split() == ["stopping"]


def test_a_signal_ends_a_validation_that_is_running(voc, tmp_path):
    class Interrupting(Interrupts):
        """Is interrupted when the validation asks for the first time."""

        asked = 0

        @property
        def received(self):
            return signal.SIGINT if self.asked else 0

        @received.setter
        def received(self, number):
            pass

    trainer = make_trainer(voc, tmp_path, dataclasses.replace(TINY_RECIPE, val_interval=1))
    evaluate = trainer._validator._evaluate
    interrupts = Interrupting()

    def evaluate_and_interrupt(*arguments):
        interrupts.asked += 1
        return evaluate(*arguments)

    trainer._validator._evaluate = evaluate_and_interrupt
    outcome = trainer.train(interrupts)
    assert interrupts.asked == 1  # of two images
    assert (outcome.signal, outcome.progress.best) == (signal.SIGINT, None)
    assert (outcome.progress.step, outcome.progress.validated) == (1, 0)


def validations_of(path):
    return [line for line in path.read_text().splitlines() if '"val"' in line]


@pytest.mark.parametrize("step", [4, 8])
def test_a_validation_that_a_signal_prevented_follows_on_resume(voc, tmp_path, step):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    run(make_trainer(voc, whole, callbacks=[MetricsFile(whole / "m", 0, Lines())]))
    stopped = [AtStep(step, interrupt), MetricsFile(parts / "m", 0, Lines())]
    assert run(make_trainer(voc, parts, callbacks=stopped)).progress.validated == step - 4
    for _ in range(2):  # the second time there is nothing to do
        resumed = make_trainer(voc, parts, callbacks=[MetricsFile(parts / "m", step, Lines())])
        assert resumed.load()
        assert run(resumed).progress.validated == 8
        step = 8
        assert bits_of(parts) == bits_of(whole)
        best = [weights_of(folder / "best.safetensors") for folder in (whole, parts)]
        assert best[0] == best[1]
        assert validations_of(parts / "m") == validations_of(whole / "m")


@pytest.fixture
def small_files():
    """Lets no file of this process become larger than 4 KiB, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_loses_nothing_that_was_there(voc, tmp_path, small_files):
    run(make_trainer(voc, tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    lines = Lines()
    longer = dataclasses.replace(TINY_RECIPE, steps=14, checkpoint_interval=10)
    trainer = make_trainer(voc, tmp_path, longer, write_line=lines)
    assert trainer.load()
    # Its state is larger than the limit.
    trainer._optimizer.state[trainer._parameters[0]]["ballast"] = torch.zeros(2000)
    small_files()
    outcome = run(trainer)
    assert (outcome.progress.step, outcome.is_saved) == (14, False)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for files in (before, after):
        files.pop(tmp_path / "best.safetensors")  # is small enough to be replaced
    assert after == before
    warnings = [line for line in lines if line.startswith("warning")]
    assert [line.partition(":")[2] for line in warnings] == [
        f" the checkpoint of step {step} could not be written: {os.strerror(errno.EFBIG)}. "
        "Older files are unchanged."
        for step in (10, 14)
    ]


def test_best_weights_that_cannot_be_written_are_only_a_warning(voc, tmp_path, monkeypatch):
    def full(path, model, spec):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("app.training.loop.save_network", full)
    lines = Lines()
    outcome = run(make_trainer(voc, tmp_path, write_line=lines))
    assert outcome.progress.best is None
    assert outcome.is_saved
    assert "best.safetensors could not be written: No space left on device." in lines[0]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    write_atomically(path, [b"old"])

    def chunks():
        yield b"new"
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        write_atomically(path, chunks())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_that_was_cut_off_is_none(voc, tmp_path):
    run(make_trainer(voc, tmp_path))
    folder = tmp_path / "checkpoints"
    (folder / ".00000099.1").mkdir()  # a process was killed while it wrote
    (folder / ".00000099.1" / "weights.safetensors").write_bytes(b"")
    (folder / "00000098").mkdir()
    (folder / "notes").mkdir()
    trainer = make_trainer(voc, tmp_path, dataclasses.replace(TINY_RECIPE, steps=9))
    assert trainer.load()
    assert trainer.progress.step == 8
    run(trainer)
    assert not (folder / ".00000099.1").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t, m: (t, {**m, "format": "2"}), Malformed, "expected format 1, got '2'"),
        (lambda t, m: (t, {**m, "optimizer": "SGD"}), IllPosed, "the state of AdamW, got 'SGD'"),
        (lambda t, m: (t, {**m, "progress": "[]"}), Malformed, "a JSON object as progress"),
        (lambda t, m: (t, {**m, "progress": "{}"}), Malformed, "the numbers of a training"),
        (lambda t, m: (t, {**m, "progress": "1" * 5000}), Malformed, "a JSON object as progress"),
        (
            lambda t, m: ({**t, "optimizer.0.exp_avg": torch.zeros(3)}, m),
            IllPosed,
            r"expected shape \(8, 3, 3, 3\), got \(3,\) float32",
        ),
        (lambda t, m: ({**t, "optimizer.9.step": torch.zeros(1)}, m), IllPosed, "optimizer.9"),
        (lambda t, m: (t, {**m, "scalars": '{"77": {}}'}), Malformed, "of this network's param"),
    ],
)
def test_a_state_that_does_not_fit_is_an_error(voc, tmp_path, change, error, message):
    run(make_trainer(voc, tmp_path))
    path = Run(tmp_path).checkpoints()[-1] / "training.safetensors"
    with checkpoints.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors, metadata = change(load_file(path), metadata)
    save_file(tensors, path, metadata)
    with pytest.raises(error, match=message):
        make_trainer(voc, tmp_path).load()
    path.write_bytes(b"\x80\x04")
    with pytest.raises(Malformed, match="expected a safetensors file, got the error"):
        make_trainer(voc, tmp_path).load()


def test_a_loss_that_is_no_number_ends_the_training(voc, tmp_path):
    recipe = dataclasses.replace(
        SGD, learning_rate=1e30, steps=30, checkpoint_interval=1, clip_grad_norm=None
    )
    lines = Lines()
    with pytest.raises(
        Diverged,
        match=r"loss: expected a finite number in step \d+, got .*Try --learning-rate 1e\+29",
    ):
        run(make_trainer(voc, tmp_path, recipe, write_line=lines))
    saved = Run(tmp_path).checkpoints()
    for folder in saved:
        weights = load_file(folder / "weights.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def record_of(step, mean_nll, valid_pixels=100):
    return LogRecord(step, 1.0, mean_nll, mean_nll, valid_pixels, 1e-3, 1.0, 0.0, 1, 1.0)


def advice_on(*records, network="fcn32s", is_new=True, **changes):
    lines = Lines()
    recipe = dataclasses.replace(TINY_RECIPE, warmup_steps=0, **changes)
    advice = DiagnosisAdvice(NUM_CLASSES, network, recipe, is_new, lines)
    for record in records:
        advice.on_log(record)
    return lines


AT_CHANCE = record_of(400, math.log(3))


CONTINUES = (
    "The rate 1e-14 of fcn8s continues a trained network: pass --init with a checkpoint of fcn32s, "
    "or --learning-rate 1e-10."
)
A_MEAN = (
    "The loss is a mean over the pixels, and 1e-10 is a rate for a sum: try --learning-rate 1e-2 "
    "or --normalization batch."
)
A_SUM = (
    "The loss is a sum over the pixels of an image, and 0.001 is a rate for a mean: try "
    "--learning-rate 1e-10 or --normalization valid."
)
HIGHER = "Try --learning-rate 0.01, or weights to begin with: --init."
LOWER = "Try --learning-rate 0.0001, --warmup-steps, or --clip-grad-norm 1."


@pytest.mark.parametrize(
    ("network", "is_new", "learning_rate", "normalization", "fix"),
    [
        ("fcn8s", True, 1e-14, "batch", CONTINUES),
        ("fcn16s", False, 1e-12, "batch", "Try --learning-rate 1e-10."),
        ("fcn32s", True, 1e-10, "valid", A_MEAN),
        (TINY, True, 1e-3, "valid", HIGHER),
    ],
)
def test_a_loss_at_ln_c_gets_advice(network, is_new, learning_rate, normalization, fix):
    (line,) = advice_on(
        AT_CHANCE,
        record_of(402, math.log(3)),
        network=network,
        is_new=is_new,
        learning_rate=learning_rate,
        normalization=normalization,
    )
    assert line.startswith("step 400: at_chance: The mean loss of a pixel, 1.099, is that of a")
    assert line.endswith(fix)


@pytest.mark.parametrize(
    ("optimizer", "normalization", "fix"), [("sgd", "batch", A_SUM), ("adamw", "valid", LOWER)]
)
def test_a_loss_that_blows_up_gets_advice_at_once(optimizer, normalization, fix):
    changes = {"optimizer": optimizer, "normalization": normalization, "learning_rate": 1e-3}
    (line,) = advice_on(record_of(2, 9.0), **changes)
    assert line.startswith("step 2: worse_than_chance: ")
    assert line.endswith(fix)


def test_advice_is_given_once_for_each_state():
    assert advice_on(record_of(2, math.log(3)), record_of(400, 0.5)) == []
    lines = advice_on(AT_CHANCE, record_of(402, 0.5), record_of(404, math.log(3)), AT_CHANCE)
    assert [line.split(": ")[1] for line in lines] == ["at_chance", "learning", "at_chance"]
    (line,) = advice_on(record_of(2, 0.0, valid_pixels=0))
    assert "nothing_valid: Every pixel is ignored" in line
    assert advice_on(AT_CHANCE, label_smoothing=0.1) == []


def test_a_validation_without_numbers_gets_advice_at_once(voc, tmp_path):
    lines = Lines()
    trainer = make_trainer(voc, tmp_path, write_line=lines)
    with torch.no_grad():
        for parameter in trainer._model.parameters():
            parameter.fill_(math.nan)
    result = trainer._validator(trainer._model, trainer._objective.autocast())
    trainer._advice.on_validation(2, result)
    (line,) = lines
    assert line.startswith("step 2: non_finite: The logits of 912 of 912 valid pixels hold NaN")
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, 0, lines).on_validation(2, result)
    assert json.loads(path.read_text())["mean_nll"] is None


def test_a_resumed_training_repeats_no_line_of_the_metrics(voc, tmp_path):
    path = tmp_path / "metrics.jsonl"
    run(make_trainer(voc, tmp_path, callbacks=[MetricsFile(path, 0, Lines())]))
    lines = path.read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [2, 4, 4, 6, 8, 8]
    path.write_text("\n".join([*lines, '{"kind": "tr']))
    metrics = MetricsFile(path, 4, Lines())
    assert path.read_text().splitlines() == lines[:3]
    metrics.on_log(record_of(6, math.nan))
    assert json.loads(path.read_text().splitlines()[-1])["loss"] is None


def test_metrics_that_cannot_be_written_are_one_warning(tmp_path):
    lines = Lines()
    metrics = MetricsFile(tmp_path / "missing" / "metrics.jsonl", 0, lines)
    for step in (2, 4):
        metrics.on_log(record_of(step, 1.0))
    (line,) = lines
    assert line.endswith("No such file or directory; metrics are missing.")


def test_tensorboard_gets_scalars_and_pictures(voc, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(voc, tmp_path)
    trainer.draws_pictures = True
    photos = trainer._validator.samples
    board = TensorBoard(
        tmp_path / "events", 0, photos, PALETTES["voc"], Lines(), ("road", "car", "sky")
    )
    trainer.add(board)
    run(trainer)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8]
    assert [event.step for event in events.Scalars("val/mean_iu")] == [4, 8]
    (first, _) = events.Images("val/0")
    assert first.height > 20
    assert first.width > 4 * 24  # photo, truth, prediction, error, and a legend
    assert len(events.Images("val/confusion")) == 2
    (_, last) = events.Tensors("val/classes/text_summary")
    assert b"| road |" in last.tensor_proto.string_val[0]


def test_curves_keep_the_step_that_a_training_is_resumed_after(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begin, end in ((0, 8), (4, 10)):  # killed after step 8, resumed from step 4
        board = TensorBoard(tmp_path, begin, None, PALETTES["voc"], Lines())
        for step in range(begin + 2, end + 1, 2):
            board.on_log(record_of(step, float(begin)))
        board.on_end()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert points == [(2, 0), (4, 0), (6, 4), (8, 4), (10, 4)]


def test_curves_end_with_one_warning_on_a_full_disk(tmp_path, small_files, capfd):
    lines = Lines()
    before = threading.excepthook
    board = TensorBoard(tmp_path, 0, None, PALETTES["voc"], lines)
    small_files()
    while not lines:
        board.on_log(record_of(1, 1.0))
    board.on_log(record_of(2, 1.0))
    board.on_end()
    assert lines == [f"warning: TensorBoard: {os.strerror(errno.EFBIG)}; curves end here."]
    assert capfd.readouterr().err == ""
    assert threading.excepthook is before


def test_tensorboard_that_is_not_installed_is_an_error_with_a_fix(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(IllPosed, match=r"tensorboard: .* pip install tensorboard, or pass"):
        TensorBoard(tmp_path, 0, None, PALETTES["voc"], Lines())


class Console:
    """A stream that may be a terminal."""

    def __init__(self, is_terminal):
        self.text = ""
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("is_terminal", [False, True])
def test_only_a_terminal_gets_a_bar(is_terminal):
    console = Console(is_terminal)
    terminal = Terminal(console)
    terminal.num_steps = 10
    terminal.on_checked(3, 3)
    terminal.on_step(1, 1.5)
    terminal.on_log(record_of(2, 1.25))
    terminal.on_end()
    assert ("\r" in console.text) == ("#" in console.text) == is_terminal
    assert "step 2/10  epoch 1.00  loss 1.25 (1.2500 a pixel)  lr 0.001  1 images/s" in console.text


def test_a_terminal_that_is_gone_does_not_end_the_training(voc, tmp_path):
    class Gone(Console):
        def write(self, text):
            raise BrokenPipeError

    terminal = Terminal(Gone(True))
    assert run(make_trainer(voc, tmp_path, callbacks=[terminal])).is_saved


def test_a_process_without_standard_error_trains_silently(voc, tmp_path):
    terminal = Terminal(None)
    terminal.on_checked(1, 1)
    assert run(make_trainer(voc, tmp_path, callbacks=[terminal])).is_saved


def test_files_of_a_training_are_named_in_one_place(tmp_path):
    assert Run(Path("run")).checkpoints() == []
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(Malformed, match="expected a JSON object, got something else"):
        Run(tmp_path).read_config()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(Malformed, match="expected a JSON object, got something else"):
        Run(tmp_path).read_config()
