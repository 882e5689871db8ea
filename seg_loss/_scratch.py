"""`scratch_bytes`: the memory that the functions of upsampled scores need beside their tensors."""

from collections.abc import Sequence

from torch import Tensor

from seg_loss._backends import backend_of
from seg_loss._inputs import check_device, check_memory, check_tensor
from seg_loss.upsampling import Upsampling, axes, check_upsampling


def scratch_bytes(scores: Tensor, size: Sequence[int], *, upsampling: Upsampling) -> int:
    """Returns the bytes of temporary memory that a loss of upsampled scores allocates.

    `evaluate` and `predict` allocate at most as many.

    Most of it is proportional to the width of the scores, so that wide scores of few rows, or wide
    labels of few scores, need many times the memory of their tensors. A service can refuse them
    before the computation starts.

    Args:
        scores: [N, C, h, w].
        size: height and width of the labels, or of the maps of `predict`.
        upsampling: as in `upsampled_cross_entropy`.

    Raises:
        InvalidInput: if the sizes do not fit the upsampling.
    """
    check_tensor("scores", scores)
    check_device("scores", scores)
    check_memory(scores=scores)
    check_upsampling(upsampling)
    num_bytes: int = backend_of(scores).scratch_bytes(
        scores, axes(upsampling, scores.shape[2:], [int(length) for length in size])
    )
    return num_bytes
