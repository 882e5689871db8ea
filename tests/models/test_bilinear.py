"""The filter against fractions computed by hand, and against Caffe's filler."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bilinear import bilinear_kernel

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "bilinear_filler"


def test_size_four_has_quarters_along_each_axis() -> None:
    axis = torch.tensor([0.25, 0.75, 0.75, 0.25])
    assert torch.equal(bilinear_kernel(4), torch.outer(axis, axis))


def test_an_odd_size_has_its_peak_in_the_middle() -> None:
    kernel = bilinear_kernel(3)
    assert kernel[1, 1] == 1
    assert torch.equal(kernel[1], torch.tensor([0.5, 1.0, 0.5]))


@pytest.mark.parametrize("kernel_size", [2, 4, 16, 32, 64])
def test_weights_of_a_stride_of_half_the_size_sum_to_one(
    kernel_size: int,
) -> None:
    stride = kernel_size // 2
    kernel = bilinear_kernel(kernel_size).double()
    sums = kernel.reshape(2, stride, 2, stride).sum(dim=(0, 2))
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-7, rtol=0)


def test_a_size_below_one_raises() -> None:
    with pytest.raises(ValueError, match="kernel_size: expected at least 1, got 0"):
        bilinear_kernel(0)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not on this machine")
def test_caffes_filler_is_the_same() -> None:
    cases = json.loads((GOLDEN / "cases.json").read_text())["cases"]
    present = [case for case in cases if (GOLDEN.parent / case["file"]).is_file()]
    assert present
    for case in present:
        arrays = np.load(GOLDEN.parent / case["file"])
        for name in arrays.files:
            array = arrays[name]
            if array.ndim >= 2 and array.shape[-1] == array.shape[-2] > 1:
                expected = torch.from_numpy(array.reshape(-1, *array.shape[-2:]))[0]
                got = bilinear_kernel(array.shape[-1])
                assert torch.allclose(got, expected, atol=1e-7, rtol=0), (case["name"], name)
