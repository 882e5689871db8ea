"""Peak memory in addition to input and result, measured in processes of their own."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import torch, seg_loss

def status(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) << 10

def autograd(scores, labels, upsampling):
    scores.requires_grad_()
    if upsampling is None:
        loss = seg_loss.spatial_cross_entropy(scores, labels)
    else:
        loss = seg_loss.upsampled_cross_entropy(scores, labels, upsampling=upsampling)
    loss.backward()
    return loss

def in_place(scores, labels, upsampling):
    return seg_loss.loss_and_gradient(scores, labels, upsampling=upsampling, out=scores)

def predict(scores, labels, upsampling):
    names = sys.argv[-1].split()[1:] or ["prediction"]
    size = None if upsampling is None else labels.shape[1:]
    return seg_loss.predict(scores, size=size, upsampling=upsampling, maps=names)

CALLS = {
    "predict": predict,
    "predict confidence": predict,
    "evaluate": seg_loss.evaluate,
    "in place": in_place,
    "gradient": seg_loss.loss_and_gradient,
    "autograd": autograd,
}
dtype, layout, ratio, *names = sys.argv[1:]
dtype, ratio = getattr(torch, dtype), int(ratio)
upsampling = None if ratio == 1 else seg_loss.Bilinear()
# Each layout has kernels of its own.
memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
small = torch.zeros(1, 21, 256 // ratio, 256 // ratio, dtype=dtype)
for name in names:  # compiles the kernels and starts the threads
    labels = torch.zeros(1, 256, 256, dtype=torch.uint8)
    CALLS[name](small.clone(memory_format=memory_format), labels, upsampling=upsampling)
scores = torch.ones(1, 21, 1024 // ratio, 2048 // ratio, dtype=dtype)
labels = torch.zeros(1, 1024, 2048, dtype=torch.uint8)
scores = scores.contiguous(memory_format=memory_format)
peaks = {}
for name in names:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    before = status("VmRSS")
    CALLS[name](scores, labels, upsampling=upsampling)
    peaks[name] = (status("VmHWM") - before) / (scores.nbytes * ratio**2)
print(json.dumps(peaks))
"""


def peaks_of(*arguments):
    """Returns the peak memory of each call, as a share of the logits."""
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_proc = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc, which only Linux has"
)


@needs_proc
@pytest.mark.parametrize(
    ("dtype", "layout", "calls"),
    [
        # The memory of a gradient is kept: only the last call of a process may allocate one.
        ("float32", "contiguous", ("evaluate", "in place", "gradient")),
        ("float32", "contiguous", ("autograd",)),
        ("float32", "channels_last", ("evaluate", "in place", "gradient")),
        ("bfloat16", "contiguous", ("evaluate", "in place", "gradient")),
    ],
    ids=str,
)
def test_peak_memory_beside_the_gradient_is_two_percent(dtype, layout, calls):
    for call, peak in peaks_of(dtype, layout, 1, *calls).items():
        gradients = 1 if call in ("gradient", "autograd") else 0
        assert peak - gradients < 0.02, f"{call}: {peak - gradients:.1%} of the logits"


@needs_proc
@pytest.mark.parametrize(
    # Autograd stores a gradient, which the backward pass returns.
    ("call", "gradients"),
    [
        ("evaluate", 0),
        ("in place", 0),
        ("gradient", 1),
        ("autograd", 1),
        ("predict", 64 / 84),  # one byte a pixel, of 84 bytes of logits
        ("predict confidence", 64 * 4 / 84),
    ],
)
def test_upsampling_allocates_far_less_than_the_logits(call, gradients):
    peak = peaks_of("float32", "contiguous", 8, call)[call]
    beyond = peak - gradients / 64
    assert beyond < 0.015, f"{call}: {beyond:.1%} of the logits"
