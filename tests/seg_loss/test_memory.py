"""Peak memory, measured in a process of its own: what a call takes beyond its input and its result."""

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

def run(logits, labels):
    if sys.argv[1] == "loss_and_gradient":
        return seg_loss.loss_and_gradient(logits, labels)
    if sys.argv[1] == "in place":
        return seg_loss.loss_and_gradient(logits, labels, out=logits)
    if sys.argv[1] == "evaluate":
        return seg_loss.evaluate(logits, labels)
    loss = seg_loss.spatial_cross_entropy(logits.requires_grad_(), labels)
    loss.backward()
    return loss

dtype = getattr(torch, sys.argv[2])
shape = (1, 21, 1024, 2048)
small = torch.zeros(1, 21, 256, 256, dtype=dtype)
run(small, torch.zeros(1, 256, 256, dtype=torch.uint8))  # compiled, threads started
logits, labels = torch.ones(shape, dtype=dtype), torch.zeros(1, 1024, 2048, dtype=torch.uint8)
if sys.argv[3] == "channels_last":
    logits = logits.to(memory_format=torch.channels_last)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = status("VmRSS")
result = run(logits, labels)
print(json.dumps([status("VmHWM") - before, logits.nbytes]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("call", "gradients"),
    [("loss_and_gradient", 1), ("in place", 0), ("evaluate", 0), ("autograd", 1)],
)
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [("float32", "contiguous"), ("float32", "channels_last"), ("bfloat16", "contiguous")],
)
def test_peak_memory_beyond_input_and_gradient_is_below_two_percent_of_the_logits(
    call, gradients, dtype, layout
):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, call, dtype, layout],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak, logits = json.loads(done.stdout)
    beyond = peak - gradients * logits
    assert beyond < 0.02 * logits, f"{beyond / logits:.1%} of the logits, {beyond >> 10} KiB"
