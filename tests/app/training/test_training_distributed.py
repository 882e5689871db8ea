"""Several processes: the weights of one process on the joined batch, one end, one writer."""

import dataclasses
import importlib
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from training_data import PLAIN, SKIPPING
from training_runs import TINY_RECIPE, Lines, make_trainer, run

from app.errors import IllPosed
from app.training.callbacks import Callback
from app.training.checkpoints import Run
from app.training.distributed import Ranks, joined, world_size
from app.training.interrupts import Interrupts
from tests.support.ranks import started

RECIPE = dataclasses.replace(
    TINY_RECIPE, batch_size=1, crop=(18, 22), steps=5, val_interval=5, checkpoint_interval=5
)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with started(2, tmp_path_factory.mktemp("ranks")) as ranks:
        yield ranks


def ranks_of(rank):
    return Ranks(rank, 2, torch.device("cpu"), dist.group.WORLD)


class Validations(Callback):
    """Keeps the results of all validations."""

    def __init__(self):
        self.results = []

    def on_validation(self, step, validation):
        self.results.append((validation.mean_nll, validation.confusion.tolist()))


def results_of(trainer, validations):
    weights = {name: tensor.tolist() for name, tensor in trainer._model.state_dict().items()}
    return weights, validations.results


def train_rank(rank, data, folder, recipe):
    """Trains in one of the processes; returns the weights and the results of validations."""
    torch.manual_seed(rank)  # weights are those of the first process
    validations = Validations()
    trainer = make_trainer(
        data, folder, recipe, callbacks=[validations], ranks=ranks_of(rank), network=PLAIN
    )
    if rank:
        with torch.no_grad():
            for parameter in trainer._model.parameters():
                parameter.add_(1)
    run(trainer)
    return results_of(trainer, validations)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("normalization", ["valid", "batch"])
def test_two_processes_train_as_one_on_the_joined_batch(
    two, voc, tmp_path, accumulation, normalization
):
    recipe = dataclasses.replace(
        RECIPE, accumulation=accumulation, normalization=normalization, optimizer="sgd"
    )
    recipe = dataclasses.replace(
        recipe, learning_rate=0.1 if normalization == "valid" else 1e-4, clip_grad_norm=10.0
    )
    one = dataclasses.replace(recipe, batch_size=2)
    validations = Validations()
    trainer = make_trainer(voc, tmp_path / "one", one, callbacks=[validations], network=PLAIN)
    start = {name: tensor.clone() for name, tensor in trainer._model.state_dict().items()}
    run(trainer)
    expected, expected_results = results_of(trainer, validations)
    first, second = two.run(train_rank, voc, tmp_path / "two", recipe)
    assert first == second
    weights, results = first
    for name, values in expected.items():
        change = torch.tensor(values) - start[name]
        assert bool(change.any()) == ("auxiliary" not in name), name
        torch.testing.assert_close(
            torch.tensor(weights[name]) - start[name],
            change,
            rtol=0,
            atol=2e-6 * max(1.0, float(change.abs().max())),
        )
    # Counts are exact wherever the weights agree to all digits that a prediction needs.
    ((mean_nll, confusion),), ((expected_nll, expected_confusion),) = results, expected_results
    assert mean_nll == pytest.approx(expected_nll, rel=1e-5)
    assert confusion == expected_confusion


def test_the_first_process_alone_writes(two, voc, tmp_path):
    two.run(train_rank, voc, tmp_path, RECIPE)
    assert [path.name for path in Run(tmp_path).checkpoints()] == ["00000005"]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def train_with_skipped_layer(rank, data, folder):
    """Trains a network that skips a layer in its first step; returns the weights."""
    trainer = make_trainer(data, folder, RECIPE, ranks=ranks_of(rank), network=SKIPPING)
    run(trainer)
    return {name: tensor.tolist() for name, tensor in trainer._model.state_dict().items()}


def test_a_layer_that_some_steps_skip_stays_the_same_in_all(two, voc, tmp_path):
    first, second = two.run(train_with_skipped_layer, voc, tmp_path)
    assert first == second


def interrupted_rank(rank, data, folder):
    """Interrupts the second process after its third step; returns the outcome of this one."""
    trainer = make_trainer(data, folder, RECIPE, ranks=ranks_of(rank), network=PLAIN)
    interrupts = Interrupts()

    class Interrupting(Callback):
        def on_step(self, step, loss):
            if rank == 1 and step == 3:
                interrupts.received = signal.SIGTERM

    trainer.add(Interrupting())
    outcome = trainer.train(interrupts)
    return outcome.progress.step, outcome.signal


def test_a_signal_to_one_process_stops_all_after_the_same_step(two, voc, tmp_path):
    results = two.run(interrupted_rank, voc, tmp_path)
    assert results == [(3, signal.SIGINT), (3, signal.SIGTERM)]
    assert [path.name for path in Run(tmp_path).checkpoints()] == ["00000003"]


def gloo_threads():
    names = (path.read_text() for path in Path("/proc/self/task").glob("*/comm"))
    return sum("gloo" in name for name in names)


def train_and_leave(folder, data):
    """Trains in one of two processes that have nothing else; returns gloo's threads afterwards."""
    defaults = "torch.distributed.nn.functional"  # would keep the group if it were imported later
    sys.modules.pop(defaults, None)
    with joined(torch.device("cpu")) as ranks:
        importlib.import_module(defaults)
        trainer = make_trainer(data, folder, RECIPE, ranks=ranks, network=PLAIN)
        run(trainer)
        during = gloo_threads()
    return during, gloo_threads(), trainer.progress.step


def join_and_leave(rank, folder, data, port, results):
    os.environ.update(
        RANK=f"{rank}", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=f"{port}"
    )
    results.put(train_and_leave(folder, data))


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_no_thread_of_gloo_outlives_a_training(voc, tmp_path):
    # A thread that frees a tensor while the interpreter ends would abort the process.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    results = context.Queue()
    arguments = (tmp_path, voc, port, results)
    processes = [context.Process(target=join_and_leave, args=(r, *arguments)) for r in range(2)]
    for process in processes:
        process.start()
    try:
        for _ in processes:
            during, after, step = results.get(timeout=60)
            assert (during > 0, after, step) == (True, 0, 5)
    finally:
        for process in processes:
            process.join(timeout=60)
            process.kill()
        results.close()
    assert [process.exitcode for process in processes] == [0, 0]


def fail_in_first(rank):
    """Returns what a process gets when an action fails in the first."""

    def action():
        raise IllPosed("data", "files", "none")

    try:
        ranks_of(rank).in_first(action)
    except IllPosed as error:
        return f"{error}"
    except SystemExit as stop:
        return stop.code
    return None


def test_an_error_in_the_first_process_ends_the_others(two):
    assert two.run(fail_in_first) == ["data: expected files, got none.", 1]


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert world_size() == 1
    with joined(torch.device("cpu")) as ranks:
        assert ranks == Ranks(0, 1, torch.device("cpu"))
        assert ranks.sum([1.0, 2.5]) == [1.0, 2.5]
        called = Lines()
        ranks.in_first(lambda: called("x"))
        assert called == ["x"]
