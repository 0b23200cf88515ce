"""Signals that ask a job to stop, and the moments at which it must not be stopped.

While `stop_signals` is entered, the first SIGINT, SIGTERM or SIGHUP raises `StoppedBySignal`
where the program happens to be; inside ``with uninterrupted:`` it waits for the end of the block.
So whatever must change together changes in such a block, and what is left when the exception
comes can be saved. A second signal raises at once, wherever it comes.

While `Uninterrupted.noting` is entered the first signal is only noted: for a job that looks for
itself, between two samples, whether it has to end, and for several processes that compute
together, of which none may stop until all have agreed.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from hatcli.errors import StoppedBySignal

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_SAME_SIGNAL_S = 1.0  # 'timeout' and batch systems send one twice: to the process and its group


class Uninterrupted:
    """A block that the first signal lets finish; blocks may be nested. One for the process."""

    def __init__(self) -> None:
        self._depth = 0
        self._asked = self._last = 0
        self._first_at: float | None = None
        self._is_noting = self._is_leaving = False

    def __enter__(self) -> None:
        if self._last and not self._depth:
            # Python drops what is raised within a destructor or a callback of its own.
            raise self._stop(self._last)
        self._depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._asked and not self._depth and kind is None and not self._is_noting:
            raise self._take()

    @property
    def is_asked(self) -> bool:
        """Whether a signal waits: for the end of the block, or for its owner to look."""
        return self._asked != 0

    @property
    def asked(self) -> int:
        """The signal that waits; 0 for none."""
        return self._asked

    @property
    def is_noting(self) -> bool:
        """Whether the first signal only shows in `asked`."""
        return self._is_noting

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Only note the first signal: the block's owner looks whether one is `asked`, and ends."""
        self._is_noting = True
        try:
            yield
        finally:
            self._is_noting = False

    @property
    def is_leaving(self) -> bool:
        """Whether signals have no meaning any more: this process is at its end."""
        return self._is_leaving

    def leave(self) -> None:
        """Let no signal change how this process ends.

        When the first of several processes has ended, those that started them send the others a
        signal, which must find them ending as they were about to.
        """
        self._is_leaving = True

    def ask(self, number: int) -> None:
        """Note a signal, or raise for it where nothing forbids it.

        Raises:
            StoppedBySignal: at once outside a block, and for the second signal.
        """
        now = time.monotonic()
        if self._is_leaving:
            return
        if self._first_at is None:
            self._first_at = now
            self._asked = number
            if self._depth == 0 and not self._is_noting:
                raise self._take()
        elif now - self._first_at > _SAME_SIGNAL_S:
            self._asked = number
            raise self._take()

    def reset(self) -> None:
        """Forget what was asked: another job begins."""
        self._depth, self._asked, self._last, self._first_at = 0, 0, 0, None
        self._is_noting = self._is_leaving = False

    def _take(self) -> StoppedBySignal:
        self._last, self._asked = self._asked, 0
        return self._stop(self._last)

    def _stop(self, number: int) -> StoppedBySignal:
        return StoppedBySignal(number, f"stopped by {signal.Signals(number).name}")


uninterrupted = Uninterrupted()


@contextmanager
def stop_signals() -> Iterator[None]:
    """Turn the stop signals into `StoppedBySignal` while the block runs.

    Outside the main thread signals can't be watched, and nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        # A signal to the whole group ends the data workers as well, and torch's handler raises
        # at their end. A function takes its place, since Python complains of a pending signal
        # whose handler has become the default.
        signal.signal(signal.SIGCHLD, _do_nothing)
        uninterrupted.ask(number)

    uninterrupted.reset()
    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if uninterrupted.is_leaving else handler)
        if not uninterrupted.is_leaving:
            uninterrupted.reset()


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    pass
