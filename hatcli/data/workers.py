"""The processes that read ahead, watched: what befalls them is one message, and stops no step.

torch raises for a dead worker from a signal handler, wherever the main process is: in the middle
of an optimiser step, too. Here that happens only where the main process waits for a batch.
"""

import multiprocessing
import signal
import threading
import traceback
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from hatcli.errors import DataError, HatError

_END = object()
_NOTICED_AFTER_S = 2.0  # from a broken connection to the end of the process behind it

_ADVICE = {
    signal.SIGKILL: "most likely this machine is out of memory: set fewer train.num_workers, "
    "smaller crops or a smaller train.batch_size",
    signal.SIGBUS: "/dev/shm is full (batches pass through it: set fewer train.num_workers), or a "
    "file was cut short while it was read: run hat pack verify",
    signal.SIGSEGV: "a decoder crashed on a sample: hat data check finds it; with "
    "train.num_workers=0 it crashes in sight",
}


class WorkerLost(HatError):  # noqa: N818 - what happened
    """A reading process has ended, or gives nothing any more."""


class Failed:
    """A failure on its way from a reading process, in the place of a batch."""

    def __init__(self, error: HatError) -> None:
        self.error = error


def unreadable(index: int, error: Exception) -> DataError:
    """What a user is told when the dataset or a transform raises something of its own.

    Args:
        index: of the sample.
        error: with its traceback, which goes along as a note: ``hat --debug`` shows it.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    told = DataError(
        f"sample {index} can't be read: {type(error).__name__}: {error} "
        f"({Path(last.filename).name}, line {last.lineno})",
        "'hat --debug ...' shows the whole traceback",
    )
    told.add_note("".join(traceback.format_exception(error)))
    return told


class Workers:
    """The reading processes of one loader."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._processes: list[BaseProcess] = []
        self._is_waited_for = False

    def join(self, processes: Sequence[BaseProcess]) -> None:
        """Watch these from now on, in place of others; none means those that are there."""
        if processes:
            self._processes = list(processes)
        if self._processes and threading.current_thread() is threading.main_thread():
            _watched.add(self)
            signal.signal(signal.SIGCHLD, _look_at_children)

    def batches(self, source: Iterator[Any]) -> Iterator[Any]:
        """What a source gives, whose failures are raised here as what they were.

        Raises:
            HatError: what befell a sample.
            WorkerLost: a process ended, or gave nothing for too long.
        """
        while True:
            with self.waiting():
                batch = next(source, _END)
            if batch is _END:
                return
            if isinstance(batch, Failed):
                raise batch.error
            yield batch

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Raise for a death at once while the block waits for the processes.

        Raises:
            WorkerLost: a process ended, or gave nothing for too long.
        """
        self._is_waited_for = True  # before the look: a death between the two would be missed
        try:
            self.require_alive()
            yield
        except (RuntimeError, OSError, EOFError) as error:
            self._is_waited_for = False
            raise self._explained(error) from error
        finally:
            self._is_waited_for = False

    def require_alive(self) -> None:
        """Look after the processes.

        Raises:
            WorkerLost: one has ended.
        """
        for number, process in enumerate(self._processes, start=1):
            if process.exitcode not in (None, 0):
                raise _lost(number, len(self._processes), process.pid, process.exitcode or 0)

    def look(self) -> None:
        """`require_alive` where the main process waits for a batch."""
        if self._is_waited_for:
            self.require_alive()

    def _explained(self, error: Exception) -> Exception:
        if "timed out" in str(error):
            return WorkerLost(
                f"the reading processes gave nothing for {self._timeout_s:g} s",
                "a network disk or a lock that they wait for? with train.num_workers=0 "
                "the wait is in sight",
            )
        for process in self._processes:
            process.join(_NOTICED_AFTER_S / len(self._processes))
        try:
            self.require_alive()
        except WorkerLost as lost:
            return lost
        return error


_watched: "weakref.WeakSet[Workers]" = weakref.WeakSet()


def children() -> list[BaseProcess]:
    """The processes that this one has started and that are there."""
    return list(multiprocessing.active_children())


def _look_at_children(_number: int, _frame: FrameType | None) -> None:
    for workers in list(_watched):
        workers.look()


def _lost(number: int, count: int, pid: int | None, code: int) -> WorkerLost:
    who = f"reading process {number} of {count} (process {pid})"
    if code > 0:
        return WorkerLost(f"{who} ended by itself with exit code {code}", "see its lines above")
    name = signal.Signals(-code).name
    return WorkerLost(
        f"{who} was killed by {name}", _ADVICE.get(signal.Signals(-code), "go on with --resume")
    )
