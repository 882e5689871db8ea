"""The threads of the CPU kernels: how many there are, forks, several calling threads, the pool."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import seg_loss
from seg_loss import Bilinear
from seg_loss.constants import MAPS
from seg_loss.cpu import threads
from seg_loss.cpu.cache import Function
from seg_loss.cpu.plan import MAX_PLANS, Cache
from tests.support.cases import (
    Case,
    assert_accurate,
    make_inputs,
    same_bits,
    torch_loss_and_gradient,
    true_loss_and_gradient,
)
from tests.support.processes import run_script

# Enough logits for several threads, and chunks for four of them.
LARGE = Case((1, 19, 96, 64), "")
CALLERS = 4
needs_openmp = pytest.mark.skipif(
    threads._openmp() is None, reason="torch has no OpenMP library of the GNU kind"
)


@pytest.fixture
def four_processors(monkeypatch):
    """Four threads, also on a machine with fewer processors."""
    monkeypatch.setattr(threads, "max_threads", lambda: 4)
    torch.set_num_threads(4)


@pytest.fixture
def teams(monkeypatch):
    """The numbers of threads that OpenMP is asked for, in the order of the calls."""
    found = []
    start = threads._openmp()

    def start_parallel(address, job, num_threads, flags):
        found.append(num_threads)
        start(address, job, num_threads, flags)

    monkeypatch.setattr(threads, "_openmp", lambda: start_parallel)
    return found


def results(case, dtype=torch.float32):
    """All that the library computes of a case."""
    scores, labels, upsampling = make_inputs(case, dtype)
    loss, gradient = seg_loss.loss_and_gradient(scores, labels, upsampling=upsampling)
    evaluation = seg_loss.evaluate(scores, labels, upsampling=upsampling, maps=MAPS)
    return loss, gradient, evaluation.confusion, *evaluation.maps.values()


def assert_same(one, other):
    assert all(same_bits(a, b) for a, b in zip(one, other, strict=True))


# -- the number of threads -------------------------------------------------------------------------


@needs_openmp
def test_set_num_threads_is_honoured_also_by_plans_that_exist(four_processors, teams):
    scores, labels, _ = make_inputs(LARGE)
    torch.set_num_threads(1)
    alone = seg_loss.loss_and_gradient(scores, labels)
    assert teams == []
    for num_threads in (2, 4, 3):
        torch.set_num_threads(num_threads)
        assert_same(alone, seg_loss.loss_and_gradient(scores, labels))
    assert teams == [2, 4, 3]
    truth, by_torch = (
        true_loss_and_gradient(scores, labels),
        torch_loss_and_gradient(scores, labels),
    )
    for name, *values in zip(("loss", "gradient"), alone, truth, by_torch, strict=True):
        assert_accurate(name, *values)


@needs_openmp
def test_a_small_call_takes_one_thread(four_processors, teams):
    results(Case((1, 3, 9, 11), ""))
    assert teams == []


def test_no_more_threads_than_processors_or_chunks(four_processors):
    assert threads.num_threads_for(100) == 4
    assert threads.num_threads_for(3) == 3
    assert threads.num_threads_for(0) == 1
    torch.set_num_threads(8)
    assert threads.num_threads_for(100) == 4


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "rubbish"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "0\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "300000\n"}, math.inf),
    ],
    ids=str,
)
def test_a_control_group_limits_the_threads(monkeypatch, tmp_path, files, limit):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    assert threads._cgroup_limit(tmp_path) == limit
    monkeypatch.setattr(threads, "_cgroup_limit", lambda: limit)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert threads.max_threads.__wrapped__() == (8 if limit == math.inf else math.ceil(limit))


ONE_THREAD = """
import torch
import seg_loss
from seg_loss.cpu import threads
from tests.support.cases import (
    Case, assert_accurate, make_inputs, torch_loss_and_gradient, true_loss_and_gradient,
)

def start(*arguments):
    raise AssertionError("a second thread")

threads._openmp = lambda: start
inputs = make_inputs(Case((1, 19, 96, 64), ""))[:2]
found = seg_loss.loss_and_gradient(*inputs)
others = true_loss_and_gradient(*inputs), torch_loss_and_gradient(*inputs)
for name, *values in zip(("loss", "gradient"), found, *others):
    assert_accurate(name, *values)
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """A folder of compiled kernels that the processes of these tests share."""
    return tmp_path_factory.mktemp("kernels")


def test_omp_num_threads_is_honoured(kernels):
    run_script(ONE_THREAD, cache=kernels, OMP_NUM_THREADS="1")


# -- several calling threads -----------------------------------------------------------------------


class Counter:
    """Functions in place of a kernel and of OpenMP, which count the threads that are busy."""

    def __init__(self):
        self.lock, self.busy, self.most, self.calls = threading.Lock(), 0, 0, 0

    @contextmanager
    def counted(self, num_threads):
        with self.lock:
            self.busy += num_threads
            self.most = max(self.most, self.busy)
            self.calls += 1
        # The threads that share processors with a call must be able to begin and end.
        assert threads._lock.acquire(timeout=10)
        threads._lock.release()
        time.sleep(0.002)
        yield
        with self.lock:
            self.busy -= num_threads

    def call(self, job):
        with self.counted(1):
            pass

    def start_parallel(self, address, job, num_threads, flags):
        with self.counted(num_threads):
            pass


def test_busy_threads_are_at_most_the_limit_and_the_callers(monkeypatch):
    limit, counter = 3, Counter()
    monkeypatch.setattr(threads, "_openmp", lambda: counter.start_parallel)
    function = Function(0, counter.call)
    threads.run(function, 0, limit)
    assert counter.most == limit
    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(lambda _: threads.run(function, 0, limit), range(40)))
    assert counter.calls == 41
    assert counter.most <= limit + CALLERS - 1
    assert threads._busy == 0


def test_an_error_of_a_call_gives_its_threads_back(monkeypatch):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(threads, "_openmp", lambda: fail)
    with pytest.raises(MemoryError):
        threads.run(Function(0, fail), 0, 3)
    assert threads._busy == 0


@pytest.mark.parametrize("has_openmp", [True, False])
def test_calling_threads_get_the_same_bits_as_one_alone(four_processors, monkeypatch, has_openmp):
    if not has_openmp:
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    cases = [
        LARGE,  # the same plan in all threads
        Case((2, 19, 40, 52), ""),
        Case((1, 19, 12, 16), "", (96, 128), Bilinear()),
        Case((2, 3, 9, 11), ""),
    ]
    alone = [results(case) for case in cases]

    def call(caller):
        for k in range(12):
            index = (k * caller) % len(cases)
            assert_same(alone[index], results(cases[index]))

    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(call, range(CALLERS)))
    assert threads._busy == 0


def test_plans_are_limited_in_number_also_with_several_callers():
    plans = Cache()

    def make(caller):
        for k in range(3 * MAX_PLANS):
            plan = SimpleNamespace(num_bytes=k, discard=lambda: None)
            assert plans.get((caller, k), lambda plan=plan: plan) is plan

    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(make, range(CALLERS)))
    assert len(plans._plans) <= MAX_PLANS + CALLERS
    plan = SimpleNamespace(num_bytes=0)
    assert plans.get("new", lambda: plan) is plans.get("new", lambda: None) is plan
    assert len(plans._plans) <= MAX_PLANS


# -- without OpenMP, and after a fork --------------------------------------------------------------


def test_without_openmp_a_pool_gives_the_same_bits(four_processors, monkeypatch):
    expected = results(LARGE)
    called = []
    monkeypatch.setattr(threads, "_openmp", lambda: None)
    run_in_pool = threads._run_in_pool
    monkeypatch.setattr(
        threads, "_run_in_pool", lambda *arguments: (called.append(1), run_in_pool(*arguments))
    )
    assert_same(expected, results(LARGE))
    assert called


FORK = """
import os, signal, sys, time
import torch
import seg_loss
from seg_loss.cpu import cache, memory, threads
from tests.support.cases import (
    Case, assert_accurate, make_inputs, torch_loss_and_gradient, true_loss_and_gradient,
)

threads.max_threads = lambda: 2
torch.set_num_threads(2)
inputs = make_inputs(Case((1, 19, 96, 64), ""))[:2]

def bits():
    loss, gradient = seg_loss.loss_and_gradient(*inputs)
    return loss.numpy().tobytes() + gradient.numpy().tobytes()

expected = bits()
halves = inputs[0].half()  # torch's own operations hang in a child that has two threads
torch.randn(500, 500) @ torch.randn(500, 500)  # starts torch's threads
"""

CHILD = """
child = os.fork()
if child == 0:
    # Another kernel, compiled or loaded in the child.
    seg_loss.loss_and_gradient(halves, inputs[1])
    memory.empty_gradient(torch.empty(memory._LARGE_BYTES))
    os._exit(0 if bits() == expected == bits() else 1)
deadline = time.monotonic() + 60
while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
    time.sleep(0.01)
if ended == (0, 0):
    os.kill(child, signal.SIGKILL)
    sys.exit("the child does not end")
assert ended[1] == 0, ended
"""

PARENT = """
assert bits() == expected
found = seg_loss.loss_and_gradient(*inputs)
others = true_loss_and_gradient(*inputs), torch_loss_and_gradient(*inputs)
for name, *values in zip(("loss", "gradient"), found, *others):
    assert_accurate(name, *values)
"""

HELD_LOCKS = """
held = threading.Event()

def hold():
    with threads._lock, cache._lock, memory._lock:
        held.set()
        time.sleep(2)

thread = threading.Thread(target=hold)
thread.start()
held.wait()
"""

LOADER = """
class Losses(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        torch.set_num_threads(1 + index % 2)
        return bits()

loader = torch.utils.data.DataLoader(
    Losses(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
)
assert list(loader) == [expected] * 4
"""

needs_fork = pytest.mark.skipif(not hasattr(threads.os, "fork"), reason="the system has no fork")


@needs_fork
def test_a_forked_child_gets_the_same_bits_and_the_parent_goes_on(kernels):
    run_script(FORK + CHILD + PARENT, cache=kernels)


@needs_fork
def test_a_fork_while_another_thread_holds_the_locks_does_not_hang(kernels):
    held = HELD_LOCKS + CHILD + "thread.join()\n"
    run_script("import threading\n" + FORK + held + PARENT, cache=kernels)


@needs_fork
def test_the_workers_of_a_data_loader_compute_losses(kernels):
    run_script(FORK + LOADER + PARENT, cache=kernels)
