"""Copies to a device and back through pinned memory, with a fake link to the device."""

import threading

import pytest
import torch
from fake_gpu import FakeLink

from app.devices import CPU
from app.http import staging
from app.http.staging import NUM_SLOTS, StagingPool

SLOT_BYTES = 64
DTYPES = [torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def small_slots(monkeypatch):
    monkeypatch.setattr(staging, "SLOT_BYTES", SLOT_BYTES)


def make_pool(monkeypatch, num_workers=1, **settings):
    link = FakeLink(**settings)
    monkeypatch.setattr(staging, "link_to", lambda _: link)
    return StagingPool(CPU, num_workers), link


def make_tensor(num_bytes, dtype=torch.uint8, seed=0):
    random = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 100, (num_bytes // dtype.itemsize,), generator=random)
    return numbers.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_bytes", [0, 8, SLOT_BYTES, SLOT_BYTES + 8, 7 * SLOT_BYTES - 8])
@pytest.mark.parametrize("is_late", [False, True])
def test_copies_equal_their_tensors(monkeypatch, dtype, num_bytes, is_late):
    pool, link = make_pool(monkeypatch, is_late=is_late)
    tensor = make_tensor(num_bytes, dtype)
    with pool.borrow() as buffers:
        uploaded = buffers.upload(tensor)
        assert uploaded.data_ptr() != tensor.data_ptr() or not num_bytes
        link.finish()  # a device does so before the kernels that come behind the copies
        assert torch.equal(uploaded, tensor)
        assert torch.equal(buffers.download(uploaded), tensor)
    assert len(link.copies) == 2 * -(-num_bytes // SLOT_BYTES)


def test_several_tensors_are_uploaded_without_waiting_for_the_last_ones(monkeypatch):
    pool, link = make_pool(monkeypatch, is_late=True)
    tensors = [make_tensor(40, seed=1), torch.tensor(3.5), make_tensor(5 * SLOT_BYTES, seed=2)]
    with pool.borrow() as buffers:
        uploaded = [buffers.upload(tensor) for tensor in tensors]
        assert [copy.is_done for copy in link.copies[-NUM_SLOTS:]] == [False] * NUM_SLOTS
        link.finish()
        assert all(map(torch.equal, uploaded, tensors))


def test_pinned_memory_does_not_grow_with_requests(monkeypatch):
    pool, link = make_pool(monkeypatch, num_workers=3)
    assert link.pinned_bytes == 3 * NUM_SLOTS * SLOT_BYTES
    for seed in range(20):
        with pool.borrow() as buffers:
            buffers.download(buffers.upload(make_tensor(10 * SLOT_BYTES, seed=seed)))
    assert link.pinned_bytes == 3 * NUM_SLOTS * SLOT_BYTES


def test_buffers_return_after_an_error_and_wait_for_its_copies(monkeypatch):
    pool, link = make_pool(monkeypatch, is_late=True)
    failed = make_tensor(NUM_SLOTS * SLOT_BYTES, seed=1)

    def fail():
        with pool.borrow() as buffers:
            targets.append(buffers.upload(failed))
            raise RuntimeError("no memory")

    targets = []
    with pytest.raises(RuntimeError, match="no memory"):
        fail()
    with pool.borrow() as buffers:  # would wait for ever if the buffers were lost
        uploaded = buffers.upload(make_tensor(3 * SLOT_BYTES, seed=2))
        link.finish()
    # The copies of the failed request were made before their slots were overwritten.
    assert torch.equal(targets[0], failed)
    assert torch.equal(uploaded, make_tensor(3 * SLOT_BYTES, seed=2))


def test_requests_at_the_same_time_have_buffers_of_their_own(monkeypatch):
    pool, _ = make_pool(monkeypatch, num_workers=2)
    wrong = []

    def request(seed):
        for k in range(50):
            tensor = make_tensor(9 * SLOT_BYTES, seed=1000 * seed + k)
            with pool.borrow() as buffers:
                if not torch.equal(buffers.download(buffers.upload(tensor)), tensor):
                    wrong.append((seed, k))

    threads = [threading.Thread(target=request, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_download_takes_the_memory_of_an_alike_tensor_alone(monkeypatch):
    pool, _ = make_pool(monkeypatch)
    result = make_tensor(100, torch.float32).reshape(5, 5)
    with pool.borrow() as buffers:
        unneeded = torch.zeros(5, 5)
        assert buffers.download(result, into=unneeded).data_ptr() == unneeded.data_ptr()
        assert torch.equal(unneeded, result)
        for other in (torch.zeros(25), torch.zeros(5, 5).half(), torch.zeros(5, 10)[:, ::2]):
            copy = buffers.download(result, into=other)
            assert torch.equal(copy, result)
            assert copy.data_ptr() != other.data_ptr()
        assert torch.equal(buffers.download(result), result)


def test_tensors_that_are_not_contiguous_are_copied_by_torch(monkeypatch):
    pool, link = make_pool(monkeypatch)
    tensor = make_tensor(400, torch.float32).reshape(10, 10).T
    with pool.borrow() as buffers:
        assert torch.equal(buffers.download(buffers.upload(tensor)), tensor)
    assert not link.copies


def test_without_pinned_memory_torch_copies_and_the_log_says_so(monkeypatch, caplog):
    pool, link = make_pool(monkeypatch, num_workers=2, max_pinned_bytes=3 * SLOT_BYTES)
    assert "will be slow, without pinned memory: CUDA error: out of memory" in caplog.text
    assert "kernel errors" not in caplog.text
    tensor = make_tensor(1000)
    for _ in range(3):
        with pool.borrow() as buffers:
            assert torch.equal(buffers.download(buffers.upload(tensor)), tensor)
    assert not link.copies


def test_nothing_is_copied_on_the_cpu():
    pool = StagingPool(CPU, 1)
    tensor = make_tensor(1000)
    with pool.borrow() as buffers:
        assert buffers.upload(tensor) is tensor
        assert buffers.download(tensor) is tensor
