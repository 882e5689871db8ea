"""Signals end a training after the step that is running, with a checkpoint.

Ctrl-C sends SIGINT; torchrun, containers and batch systems send SIGTERM; a terminal that is closed
sends SIGHUP, which nohup makes the process ignore.
"""

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

_STDERR = 2
HANG_UP = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()  # Windows has none
SIGNALS = (signal.SIGINT, signal.SIGTERM, *HANG_UP)


class Interrupts:
    """Notes the first signal; a second Ctrl-C aborts, as Ctrl-C does without this class.

    A second SIGTERM does not: torchrun sends one after the terminal has sent SIGINT.

    Args:
        notice: is written to standard error at the first signal; None in quiet processes.

    Attributes:
        received: the number of the first signal, or 0.
    """

    def __init__(self, notice: str | None = None) -> None:
        self.received = 0
        self._notice = notice
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                is_ignored = signal.getsignal(number) is signal.SIG_IGN
                if number not in HANG_UP or not is_ignored:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = number
        if self._notice is not None:
            # Not print, which the signal may have interrupted.
            with suppress(OSError):
                os.write(_STDERR, f"\n{self._notice}\n".encode())
