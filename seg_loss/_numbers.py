"""Options that are numbers, in each form in which NumPy and torch pass them."""

import numpy as np
from torch import Tensor

_ARRAYS = np.generic, np.ndarray, Tensor


def plain_number(value: object) -> object:
    """Returns a NumPy scalar, or an array or tensor of no axes, as Python's number.

    Any other value is returned as it is, to be checked by the caller. The operators of torch and
    the cache of options require Python's numbers.
    """
    if isinstance(value, _ARRAYS) and value.ndim == 0:
        number: object = value.item()
        return number
    return value
