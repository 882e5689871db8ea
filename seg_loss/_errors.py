"""`InvalidInput` and the wording that its messages share."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class InvalidInput(ValueError, IndexError, RuntimeError, TypeError):
    """An input that no loss is defined for: `{where}: expected {expected}, got {got}. {fix}`.

    It is a ValueError. torch raises IndexError, RuntimeError or TypeError for some of these inputs,
    so that code written for torch catches it too.

    Attributes:
        where: the argument, such as "labels".
        expected: what would have been accepted.
        got: what was passed.
        fix: a likely remedy, or an empty string.
    """

    def __init__(self, where: str, expected: str, got: str, fix: str = "") -> None:
        # Not by `super().__init__`, which torch's compiler cannot trace: its own error would hide
        # this one.
        self.args = (f"{where}: expected {expected}, got {got}. {fix}".rstrip(),)
        self.where = where
        self.expected = expected
        self.got = got
        self.fix = fix

    def renamed(self, names: Mapping[str, str]) -> "InvalidInput":
        """Returns the error of a function whose arguments have other names."""
        fix = self.fix
        for name, other in names.items():
            fix = fix.replace(name, other)
        return type(self)(names.get(self.where, self.where), self.expected, self.got, fix)

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str]]:
        # Exceptions are pickled by their `args`, which hold the whole sentence.
        return type(self), (self.where, self.expected, self.got, self.fix)


def dtype_name(dtype: torch.dtype) -> str:
    """Returns "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def shape_text(shape: Sequence[int]) -> str:
    """Returns a shape or an index as Python writes a tuple: "(2, 3)", "(2,)"."""
    return "(" + ", ".join(str(size) for size in shape) + ("," if len(shape) == 1 else "") + ")"


def shape_of(tensor: Tensor) -> str:
    """Returns the text of a tensor's shape."""
    return shape_text(tensor.shape)


def more_pixels(count: int) -> str:
    """Returns " and 2 more pixels" for a count of 3 pixels of which the message names one."""
    others = count - 1
    return f" and {others} more pixel{'' if others == 1 else 's'}" if others else ""
