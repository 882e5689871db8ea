"""The bilinear filter that FCN writes into the weights of its upsampling layers."""

import torch
from torch import Tensor

from seg_loss.upsampling import bilinear_filter


def bilinear_kernel(kernel_size: int) -> Tensor:
    """The weights of bilinear upsampling by deconvolution, as FCN's `surgery.py` writes them.

    With f = (k + 1) // 2 and the centre c = f - 1 (k odd) or f - 0.5 (k even),

        w_ij = (1 - |i - c| / f) (1 - |j - c| / f).

    A deconvolution of stride f with this filter attenuates at the borders, where part of the filter
    falls outside, and is cropped afterwards; it is not `torch.nn.functional.interpolate`.

    Args:
        kernel_size: k, at least 1.

    Returns:
        float32 [k, k].

    >>> bilinear_kernel(4)[0].tolist()
    [0.0625, 0.1875, 0.1875, 0.0625]
    """
    if kernel_size < 1:
        raise ValueError(f"kernel_size: expected at least 1, got {kernel_size}.")
    # The product of float64 axes: thirds and fifths in float32 would square their rounding errors.
    axis = torch.from_numpy(bilinear_filter(kernel_size))
    return torch.outer(axis, axis).float()
