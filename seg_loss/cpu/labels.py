"""The CPU kernel of a label check without a loss."""

import numpy as np
from numba import types

from seg_loss.cpu.compiler import inner
from seg_loss.cpu.region import make_region


@inner(types.void)
def _process_nothing(job, scratch, image, first, last, chunk):
    """Processes the one chunk of an image, which is empty."""


def make_check(*, element):
    """Returns a kernel that counts labels, and checks them and the weights of this dtype."""
    return make_region(_process_nothing, getattr(np, element), True)
