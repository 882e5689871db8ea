"""Peak memory beyond input and result, measured in processes of their own."""

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

def autograd(logits, labels):
    loss = seg_loss.spatial_cross_entropy(logits.requires_grad_(), labels)
    loss.backward()
    return loss

CALLS = {
    "evaluate": seg_loss.evaluate,
    "in place": lambda x, y: seg_loss.loss_and_gradient(x, y, out=x),
    "gradient": seg_loss.loss_and_gradient,
    "autograd": autograd,
}
dtype, layout, *names = sys.argv[1:]
dtype = getattr(torch, dtype)
small = torch.zeros(1, 21, 256, 256, dtype=dtype)
for name in names:  # compiled, threads started
    CALLS[name](small.clone(), torch.zeros(1, 256, 256, dtype=torch.uint8))
logits = torch.ones(1, 21, 1024, 2048, dtype=dtype)
labels = torch.zeros(1, 1024, 2048, dtype=torch.uint8)
if layout == "channels_last":
    logits = logits.to(memory_format=torch.channels_last)
peaks = {}
for name in names:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = status("VmRSS")
    CALLS[name](logits, labels)
    peaks[name] = (status("VmHWM") - before) / logits.nbytes
print(json.dumps(peaks))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("dtype", "layout", "calls"),
    [
        # A gradient's memory is kept for the next: only the last call of a process may make one.
        ("float32", "contiguous", ("evaluate", "in place", "gradient")),
        ("float32", "contiguous", ("autograd",)),
        ("float32", "channels_last", ("evaluate", "in place", "gradient")),
        ("bfloat16", "contiguous", ("evaluate", "in place", "gradient")),
    ],
    ids=str,
)
def test_peak_memory_beyond_input_and_gradient_is_below_two_percent_of_the_logits(
    dtype, layout, calls
):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, dtype, layout, *calls],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for call, peak in json.loads(done.stdout).items():
        gradients = 1 if call in ("gradient", "autograd") else 0
        assert peak - gradients < 0.02, f"{call}: {peak - gradients:.1%} of the logits"
