"""Options that are numbers, in each form in which NumPy and torch pass them."""

import numpy as np
import torch
from torch import Tensor

_ARRAYS = np.generic, np.ndarray, Tensor


def plain_number(value: object) -> object:
    """Returns a NumPy scalar, or an array or tensor of no axes, as Python's number.

    Any other value is returned as it is, to be checked by the caller. The operators of torch and
    the cache of options require Python's numbers.
    """
    if isinstance(value, _ARRAYS) and value.ndim == 0:
        if torch.compiler.is_compiling():
            # torch's compiler cannot read an integer of NumPy that the program itself makes.
            value = torch.as_tensor(value, device="cpu")
        number: object = value.item()
        return number
    return value
