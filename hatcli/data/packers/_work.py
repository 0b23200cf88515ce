"""Makes samples in order, here or in worker processes, until it is done or asked to stop."""

import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from hatcli.data.packers import Packer
from hatcli.data.packs.codec import encode
from hatcli.data.packs.frame import seal
from hatcli.data.packs.meta import check_fields, sample_key
from hatcli.errors import DataError, HatError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

MAX_WORKERS = 256

_AHEAD_PER_WORKER = 4  # made and not yet taken; bounds the memory
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SIGNAL_ARRIVES_S = 0.3  # at most, between the death of a worker and our own signal
_SAME_SIGNAL_S = 1.0  # 'timeout' and batch systems send one twice: to the process and its group


class Record(NamedTuple):
    """A sample, framed and ready to be stored under its key.

    Attributes:
        totals: what it adds to the sums over the split.
    """

    data: bytes
    totals: Counter[str]


class StopRequest:
    """Whether a signal asked the job to stop."""

    def __init__(self) -> None:
        self.signal_number = 0

    def __bool__(self) -> bool:
        return self.signal_number != 0


@contextmanager
def watch_stop_signals() -> Iterator[StopRequest]:
    """Note the first SIGINT, SIGTERM or SIGHUP while the block runs; the second stops at once.

    Outside the main thread signals can't be watched, and the request stays unset.
    """
    request = StopRequest()
    first_at = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(signal_number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if not request:
            request.signal_number, first_at = signal_number, time.monotonic()
        elif time.monotonic() - first_at > _SAME_SIGNAL_S:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in _STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_records(
    packer: Packer, start: int, num_workers: int, stop: StopRequest
) -> Iterator[Record]:
    """The records from ``start`` on, in order; ends early when a stop is asked.

    Args:
        packer: makes the samples.
        start: index of the first.
        num_workers: processes; 0 works in this one. The records don't depend on it.
        stop: looked at before each record.

    Raises:
        DataError: a sample is damaged or not legal; those before it were yielded.
        HatError: a worker died.
    """
    if num_workers == 0:
        for index in range(start, len(packer.stamps)):
            if stop:
                return
            yield make_record(packer, index)
    else:
        yield from _make_in_processes(packer, start, num_workers, stop)


def make_record(packer: Packer, index: int) -> Record:
    """One sample, from its source files to the bytes that are stored.

    Raises:
        DataError: the sample is damaged or not legal.
    """
    sample, totals = packer.make(index)
    try:
        check_fields(sample, packer.fields)
        packed = [name for name, field in packer.fields.items() if field.get("codec") == "zstd"]
        return Record(seal(sample_key(index), encode(sample, zstd=packed)), totals)
    except DataError as error:
        raise DataError(f"{packer.name(index)}: {error.message}", error.hint) from error


def _make_in_processes(
    packer: Packer, start: int, num_workers: int, stop: StopRequest
) -> Iterator[Record]:
    """Deals the samples out in turn; each worker has a pipe of its own.

    With queues that workers share, as in the standard library's pools, a worker that is killed
    while it hands over a large record leaves the main process waiting for ever.
    """
    total = len(packer.stamps)
    workers = [
        _Worker(packer, range(start + place, total, num_workers))
        for place in range(min(num_workers, total - start))
    ]
    try:
        for index in range(start, total):
            if stop:
                return
            record = workers[(index - start) % len(workers)].take()
            if record is None:
                time.sleep(_SIGNAL_ARRIVES_S)  # a signal to the whole group kills workers first
                if stop:
                    return
                raise HatError(
                    f"a packing worker died at {packer.name(index)} or soon after",
                    "often it ran out of memory: give a smaller --num-workers; "
                    "the same command then goes on where it stopped",
                )
            yield record
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """One process that makes some of the samples, in order."""

    def __init__(self, packer: Packer, indices: Iterable[int]) -> None:
        # Started afresh, it inherits neither the lock nor the open pack nor threads.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe(duplex=False)
        self._process: SpawnProcess = context.Process(
            target=_work, args=(packer, indices, theirs), daemon=True
        )
        # A terminal sends Ctrl-C to the workers as well, and only the main process decides what
        # to do: they are born deaf to it. (The tracker unblocks the signal when it starts.)
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # now the end of the worker is the end of the pipe

    def take(self) -> Record | None:
        """The next record; None when the worker died. What it raised is raised here."""
        try:
            made = self._connection.recv()
        except (EOFError, OSError):  # the pipe ends between two records, or in one
            return None
        if isinstance(made, BaseException):
            raise made
        return made

    def end(self) -> None:
        """Stop at once; what is made and not taken will be made again."""
        self._process.terminate()
        self._process.join()
        self._connection.close()


def _work(packer: Packer, indices: Iterable[int], connection: Connection) -> None:
    """In a worker: make the samples while a thread hands over those before."""
    made: queue.Queue[Record | Exception | None] = queue.Queue(_AHEAD_PER_WORKER)
    sender = threading.Thread(target=_send_all, args=(made, connection))
    sender.start()
    try:
        for index in indices:
            made.put(make_record(packer, index))
    except Exception as error:  # noqa: BLE001 - it goes to the main process, whatever it is
        if not isinstance(error, HatError):
            error.add_note(traceback.format_exc())
        made.put(error)
    finally:
        made.put(None)
        sender.join()


def _send_all(made: "queue.Queue[Record | Exception | None]", connection: Connection) -> None:
    try:
        while (one := made.get()) is not None:
            connection.send(one)
    except BrokenPipeError:
        os._exit(1)  # the main process was killed
