"""The CPU backend where its kernels' numbers and memory come to an end."""

import threading

import pytest
import torch

import seg_loss
from seg_loss import InvalidInput, _labels
from seg_loss.cpu import arguments, plan
from tests.support.cases import same_bits

U8 = torch.uint8


def test_calibration_counts_an_image_of_certain_pixels_exactly():
    logits = torch.zeros(1, 3, 512, 512)
    logits[:, 1] = 200
    evaluation = seg_loss.evaluate(logits, torch.ones(1, 512, 512, dtype=U8))
    assert evaluation._sums.bin_pixels.tolist() == [0] * 14 + [512 * 512]
    assert evaluation._sums.bin_correct[-1] == 512 * 512
    assert evaluation._sums.bin_confidence[-1] == 512 * 512


@pytest.mark.parametrize("num_classes", [3, 40])
def test_entropy_is_right_for_logits_far_apart_and_a_high_temperature(num_classes):
    logits = torch.full((1, num_classes, 4, 8), -3000.0)
    logits[:, 0] = 0
    labels = torch.zeros(1, 4, 8, dtype=U8)
    p = (logits.double() / 1000).softmax(1)
    truth = -(p * p.log()).sum(1)
    maps = seg_loss.evaluate(logits, labels, temperature=1000.0, maps=("entropy",)).maps
    assert torch.allclose(maps["entropy"].double(), truth, rtol=1e-5)


@pytest.mark.parametrize("num_classes", [20, 40])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_evaluate_agrees_with_the_loss_where_logits_over_temperature_overflow(
    num_classes, label_smoothing
):
    logits = torch.zeros(1, num_classes, 16)
    logits[:, 0] = 1e10
    labels, options = torch.zeros(1, 16, dtype=U8), {"temperature": 1e-30}
    evaluation = seg_loss.evaluate(logits, labels, **options)
    assert evaluation.loss == float(seg_loss.spatial_cross_entropy(logits, labels, **options)) == 0
    assert evaluation.non_finite_pixels == 0
    loss = seg_loss.spatial_cross_entropy(
        logits, labels, label_smoothing=label_smoothing, **options
    )
    assert not loss.isnan()


@pytest.mark.parametrize("check_labels", ["ignore", "defer", "raise"])
@pytest.mark.parametrize("function", ["spatial_cross_entropy", "evaluate"])
def test_a_call_with_invalid_labels_gives_its_memory_back_once(check_labels, function):
    arguments.plans._plans.clear()
    logits, labels = torch.zeros(1, 4, 30, 30), torch.zeros(1, 30, 30, dtype=U8)
    labels[0, 3, 5] = 9
    for _ in range(3):
        try:
            getattr(seg_loss, function)(logits, labels, check_labels=check_labels)
        except InvalidInput:
            continue
    _labels._deferred.clear()
    (kept,) = arguments.plans._plans.values()
    assert len(kept._free) == len(set(map(id, kept._free))) == 1


def test_threads_that_call_with_invalid_labels_do_not_share_memory():
    logits = torch.linspace(-3, 3, 40_000).reshape(1, 4, 100, 100)
    labels = torch.zeros(1, 100, 100, dtype=U8)
    labels[0, 0, 0] = 9
    expected = seg_loss.loss_and_gradient(logits, labels, check_labels="ignore")
    results = []

    def work():
        results.extend(
            seg_loss.loss_and_gradient(logits, labels, check_labels="ignore") for _ in range(50)
        )

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 150
    assert all(same_bits(loss, expected[0]) for loss, _ in results)
    assert all(same_bits(gradient, expected[1]) for _, gradient in results)


def test_an_invalid_class_weight_is_deferred_once_for_forward_and_backward():
    logits = torch.zeros(1, 2, 3, 3, requires_grad=True)
    weight = torch.tensor([-1.0, 1.0])
    labels = torch.zeros(1, 3, 3, dtype=U8)
    loss = seg_loss.spatial_cross_entropy(logits, labels, weight, check_labels="defer")
    (loss * 2).backward()
    with pytest.raises(InvalidInput, match="class_weight"):
        seg_loss.check()
    seg_loss.check()


@pytest.mark.parametrize("weights", [[1e308, 1e308], [float("inf"), float("-inf")]])
def test_class_weights_of_any_size_raise_no_error_of_python(weights):
    logits = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
    labels = torch.zeros(1, 3, 3, dtype=U8)
    weight = torch.tensor(weights, dtype=torch.float64)
    seg_loss.loss_and_gradient(logits, labels, weight, check_labels="ignore")


def test_an_infinite_class_weight_leaves_ignored_pixels_without_gradient():
    logits, labels = torch.zeros(1, 2, 1, 2), torch.tensor([[[255, 1]]], dtype=U8)
    weight = torch.tensor([1.0, float("inf")])
    _, gradient = seg_loss.loss_and_gradient(
        logits, labels, weight, label_smoothing=0.1, check_labels="ignore"
    )
    assert gradient[0, :, 0, 0].tolist() == [0, 0]


def test_an_empty_out_in_channels_last_is_accepted():
    logits = torch.zeros(2, 3, 0, 4).to(memory_format=torch.channels_last)
    loss, _ = seg_loss.loss_and_gradient(
        logits, torch.zeros(2, 0, 4, dtype=U8), out=torch.empty_like(logits)
    )
    assert loss == 0


def test_labels_at_any_address_share_a_plan():
    arguments.plans._plans.clear()
    logits, memory = torch.zeros(1, 4, 8, 8), torch.zeros(128, dtype=U8)
    for offset in range(64):
        seg_loss.spatial_cross_entropy(logits, memory[offset : offset + 64].reshape(1, 8, 8))
    assert len(arguments.plans._plans) == 1


def test_plans_keep_a_bounded_number_of_bytes(monkeypatch):
    arguments.plans._plans.clear()
    monkeypatch.setattr(plan, "MAX_KEPT_BYTES", plan._kept_bytes + (1 << 20))
    monkeypatch.setattr(plan, "MAX_PLANS", 8)
    for height in range(1, 40):
        seg_loss.evaluate(torch.zeros(1, 21, height, 16), torch.zeros(1, height, 16, dtype=U8))
    plans = list(arguments.plans._plans.values())
    assert len(plans) == 8
    kept = sum(memory.num_bytes for kept_plan in plans for memory in kept_plan._free)
    assert 0 < kept <= 1 << 20
