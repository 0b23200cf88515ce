"""Runs a job in a process of its own, so that whatever kills it is only a result here."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from hatcli.errors import HatError
from hatcli.events import Job

T = TypeVar("T")


class Died(Exception):  # noqa: N818 - what became of the process
    """The process ended before its job did.

    Args:
        exit_code: of the process; below 0 for a signal.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        if self.exit_code < 0:
            return signal.Signals(-self.exit_code).name
        return f"exit code {self.exit_code}"


def run_isolated(job: Callable[..., Job[T]], *arguments: Any) -> Job[T]:
    """Run a job in a fresh process; its events, result and exceptions come out here.

    Args:
        job: a function at the top of a module.
        arguments: of the job; they can be pickled.

    Raises:
        Died: the process was killed, mostly by what it read.
    """
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(job, arguments, theirs), daemon=True)
    # Ctrl-C reaches the whole group, and here it is decided what it means: the child is deaf.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    try:
        while True:
            kind, value = mine.recv()
            if kind == "event":
                yield value
            elif kind == "error":
                raise value
            else:
                return value
    except (EOFError, ConnectionResetError) as error:
        process.join()
        raise Died(process.exitcode or 0) from error
    finally:
        process.terminate()
        process.join()
        mine.close()


def _run(job: Callable[..., Job[Any]], arguments: tuple[Any, ...], connection: Connection) -> None:
    running = job(*arguments)
    try:
        while True:
            try:
                connection.send(("event", next(running)))
            except StopIteration as finished:
                connection.send(("result", finished.value))
                return
    except BrokenPipeError:
        os._exit(1)  # nobody waits for it any more
    except Exception as error:  # noqa: BLE001 - it goes to the process that waits for it
        if not isinstance(error, HatError):
            error.add_note("".join(traceback.format_exception(*sys.exc_info())))
        connection.send(("error", error))
