"""When bad labels and weights are spoken of: at once, at the next call, or never.

On a GPU the labels are read by a kernel that the host does not wait for. "raise" waits for it at
the end of the call, "defer" leaves a report that the next call finds, or `check`. A pixel with a
bad label never harms anything: it counts as ignored.
"""

from collections import deque
from collections.abc import Callable

from seg_loss._inputs import InvalidInput

_deferred: deque[InvalidInput] = deque()
# Reports elsewhere, such as those of kernels: each gives what it has found and forgets it. The
# argument says whether to wait for what is still under way.
_sources: list[Callable[[bool], InvalidInput | None]] = []


def add_source(source: Callable[[bool], InvalidInput | None]) -> None:
    """Ask `source` too, whenever reports are looked for."""
    _sources.append(source)


def settle(refusal: InvalidInput | None, check_labels: str) -> None:
    """Raise, keep or drop what was found wrong."""
    if refusal is None or check_labels == "ignore":
        return
    if check_labels == "raise":
        raise refusal
    _deferred.append(refusal)


def raise_deferred(*, wait: bool = False) -> None:
    """Raise what earlier calls reported, the oldest first."""
    if _deferred:
        raise _deferred.popleft()
    for source in _sources:
        refusal = source(wait)
        if refusal is not None:
            raise refusal


def check() -> None:
    """Wait for all calls with `check_labels="defer"` and raise for bad labels among them.

    Raises:
        InvalidInput: as the call itself would have with `check_labels="raise"`. Each report is
            raised once; of several calls on a GPU, it is the last.
    """
    raise_deferred(wait=True)
