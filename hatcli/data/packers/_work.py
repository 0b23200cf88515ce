"""Makes samples in order, here or in worker processes, until it is done or asked to stop."""

import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NamedTuple

from hatcli.data.packers import Packer
from hatcli.data.packers._memory import keep_freed_memory
from hatcli.data.packs.codec import encode
from hatcli.data.packs.frame import seal, unseal
from hatcli.data.packs.meta import check_fields, sample_key
from hatcli.errors import DataError, HatError
from hatcli.stopping import uninterrupted

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

MAX_WORKERS = 256

_AHEAD_PER_WORKER = 4  # made and not yet taken; bounds the memory
_SIGNAL_ARRIVES_S = 0.3  # at most, between the death of a worker and our own signal


class Record(NamedTuple):
    """A sample, framed and ready to be stored under its key.

    Attributes:
        totals: what it adds to the sums over the split.
    """

    data: bytes
    totals: Counter[str]


class Refused(NamedTuple):
    """A sample that is damaged or not legal, and is left out.

    Attributes:
        name: what messages call the sample.
        error: what is wrong with it.
    """

    name: str
    error: str


_Made = Record | Refused | Exception


def make_records(
    packer: Packer,
    start: int,
    num_workers: int,
    *,
    first_key: int | None = None,
    leave_out: bool = False,
) -> Iterator[Record | Refused]:
    """The records from ``start`` on, in order; ends early where a signal is noted.

    Args:
        packer: makes the samples.
        start: index of the first.
        num_workers: processes; 0 works in this one. The records don't depend on it.
        first_key: number of the first record's key; ``start`` unless given. Keys have no gaps.
        leave_out: give `Refused` for a sample that is damaged instead of raising for it.

    Raises:
        DataError: a sample is damaged or not legal; those before it were yielded.
        HatError: a worker died.
    """
    shift = 0 if first_key is None else first_key - start
    task = _Task(packer, shift, leave_out)
    refused = 0
    made = _make_in_processes(task, start, num_workers) if num_workers else _make_here(task, start)
    with closing(made):  # ends the workers, whoever still holds this frame
        for index, one in enumerate(made, start + shift):
            if isinstance(one, Refused):
                refused += 1
                yield one
            else:
                yield _move(one, index, index - refused) if refused else one


def make_record(packer: Packer, index: int, key_number: int | None = None) -> Record:
    """One sample, from its source files to the bytes that are stored.

    Args:
        packer: makes the sample.
        index: of the sample.
        key_number: of the record's key; the index unless given.

    Raises:
        DataError: the sample is damaged or not legal.
    """
    key = sample_key(index if key_number is None else key_number)
    sample, totals = packer.make(index)
    try:
        check_fields(sample, packer.fields)
        packed, strips = _stored_as(packer, "zstd"), _stored_as(packer, "strips")
        return Record(seal(key, encode(sample, zstd=packed, strips=strips)), totals)
    except DataError as error:
        raise DataError(f"{packer.name(index)}: {error.message}", error.hint) from error


def _stored_as(packer: Packer, codec: str) -> list[str]:
    return [name for name, field in packer.fields.items() if field.get("codec") == codec]


class _Task(NamedTuple):
    """What a worker has to do with each sample.

    Attributes:
        shift: key numbers are so much larger than indices.
        leave_out: whether a damaged sample is no end of the work.
    """

    packer: Packer
    shift: int
    leave_out: bool

    def make(self, index: int) -> Record | Refused:
        try:
            return make_record(self.packer, index, index + self.shift)
        except DataError as error:
            if not self.leave_out:
                raise
            return Refused(self.packer.name(index), error.message)


def _make_here(task: _Task, start: int) -> Generator[Record | Refused, None, None]:
    for index in range(start, len(task.packer.stamps)):
        if uninterrupted.is_asked:
            return
        yield task.make(index)


def _move(record: Record, old: int, new: int) -> Record:
    """The record framed under another key; workers can't know what others left out."""
    payload = unseal(sample_key(old), record.data, check=False)
    return record._replace(data=seal(sample_key(new), bytes(payload)))


def _make_in_processes(
    task: _Task, start: int, num_workers: int
) -> Generator[Record | Refused, None, None]:
    """Deals the samples out in turn; each worker has a pipe of its own.

    With queues that workers share, as in the standard library's pools, a worker that is killed
    while it hands over a large record leaves the main process waiting for ever.
    """
    total = len(task.packer.stamps)
    workers = [_Worker() for _ in range(min(num_workers, total - start))]
    try:
        for place, worker in enumerate(workers):
            worker.give(task, range(start + place, total, num_workers))
        for index in range(start, total):
            if uninterrupted.is_asked:
                return
            record = workers[(index - start) % len(workers)].take()
            if record is None:
                if _is_asked_soon():
                    return
                raise HatError(
                    f"a packing worker died at {task.packer.name(index)} or soon after",
                    "often it ran out of memory: give a smaller --num-workers; "
                    "the same command then goes on where it stopped",
                )
            yield record
    finally:
        for worker in workers:
            worker.end()


def _is_asked_soon() -> bool:
    """Whether a signal is noted in a moment: one to the whole group may kill workers first."""
    time.sleep(_SIGNAL_ARRIVES_S)
    return uninterrupted.is_asked


class _Worker:
    """One process that makes some of the samples, in order."""

    def __init__(self) -> None:
        # Started afresh, it inherits neither the lock nor the open pack nor threads.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe(duplex=False)
        given, self._task = context.Pipe(duplex=False)
        self._process: SpawnProcess = context.Process(
            target=_work, args=(given, theirs), daemon=True
        )
        # A terminal sends Ctrl-C to the workers as well, and only the main process decides what
        # to do: they are born deaf to it. (The tracker unblocks the signal when it starts.)
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        given.close()
        theirs.close()  # now the end of the worker is the end of both pipes

    def give(self, task: _Task, indices: Iterable[int]) -> None:
        """Hand over what is to be done, once.

        A large task that a process is started with keeps its starter waiting for ever if the
        process is killed before it has read it all.
        """
        with suppress(OSError):  # the worker died; `take` tells
            self._task.send((task, indices))
        self._task.close()

    def take(self) -> Record | Refused | None:
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
        self._task.close()


def _work(given: Connection, connection: Connection) -> None:
    """In a worker: make the samples while a thread hands over those before."""
    keep_freed_memory()
    try:
        task, indices = given.recv()
    except (EOFError, OSError):  # nothing of it came, or a part
        os._exit(1)  # the main process was killed, or couldn't hand it over
    made: queue.Queue[_Made | None] = queue.Queue(_AHEAD_PER_WORKER)
    sender = threading.Thread(target=_send_all, args=(made, connection))
    sender.start()
    try:
        for index in indices:
            made.put(task.make(index))
    except Exception as error:  # noqa: BLE001 - it goes to the main process, whatever it is
        if not isinstance(error, HatError):
            error.add_note(traceback.format_exc())
        made.put(error)
    finally:
        made.put(None)
        sender.join()


def _send_all(made: "queue.Queue[_Made | None]", connection: Connection) -> None:
    try:
        while (one := made.get()) is not None:
            connection.send(one)
    except BrokenPipeError:
        os._exit(1)  # the main process was killed
