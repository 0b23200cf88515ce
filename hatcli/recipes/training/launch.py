"""Starts one process for each of several devices of this machine, by torchrun."""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from hatcli.errors import HatError, UsageError
from hatcli.stopping import STOP_SIGNALS

SEPARATOR = ","


def is_several(device: str) -> bool:
    """Whether a text such as "0,1,2,3" or "cpu,cpu" means several devices."""
    return SEPARATOR in device


def devices_in(text: str) -> tuple[str, list[str]]:
    """The kind of several devices, "cuda" or "cpu", and their numbers.

    Raises:
        UsageError: they aren't GPUs that differ, nor the CPU several times.
    """
    names = [name.strip().removeprefix("cuda:") for name in text.split(SEPARATOR)]
    if all(name == "cpu" for name in names):
        return "cpu", names
    if not all(name.isdecimal() for name in names):
        raise UsageError(
            f"devices {text!r}", "give GPUs by number, such as 0,1,2,3, or cpu,cpu for processes"
        )
    if len(set(names)) < len(names):
        raise UsageError(f"devices {text!r}: one process for each GPU, and each GPU once")
    return "cuda", names


def launch(device: str, words: Sequence[str]) -> int:
    """Run a command line of hat once for each device, and return the exit code of all.

    The processes get the signals that this one gets, and take their time to save.

    Args:
        device: the devices, as in ``words``.
        words: of the command line, without "hat".

    Raises:
        UsageError: there are no such devices.
        HatError: a process was killed.
    """
    kind, numbers = devices_in(device)
    if kind == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = SEPARATOR.join(_visible(numbers))
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // len(numbers))))
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # Its lines about each signal and exit code are told here, in one.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    own = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={len(numbers)}"]
    own += ["--signals-to-handle=SIGQUIT", "--module", "hatcli"]  # the others are forwarded below
    with _forwarded() as asked:
        try:
            given = parse_args([*own, *_for_one(words, device, kind)])  # type: ignore[no-untyped-call]
            run(given)  # type: ignore[no-untyped-call]
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            return _code_of(rank, failure.exitcode, asked)
    return 0


def _code_of(rank: int, code: int, asked: Sequence[int]) -> int:
    if code >= 0:  # it has said why
        return code
    if -code in asked:  # before it had a handler
        return 128 - code
    name = signal.Signals(-code).name
    raise HatError(
        f"rank {rank} was killed by {name}",
        "out of memory? set smaller batches or fewer workers, then go on with --resume"
        if name == "SIGKILL"
        else "go on with --resume",
    )


def _for_one(words: Sequence[str], device: str, kind: str) -> list[str]:
    """The words for one process, whose device is its own."""
    changed = [kind if word == device else word for word in words]
    return [f"--device={kind}" if word == f"--device={device}" else word for word in changed]


def _visible(numbers: Sequence[str]) -> list[str]:
    """What CUDA calls the GPUs of these numbers, which count those that are visible now.

    Raises:
        UsageError: there are fewer.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if max(map(int, numbers)) >= count:
        raise UsageError(
            f"devices {SEPARATOR.join(numbers)}: this machine has {count} GPUs",
            f"choose from 0 to {count - 1}" if count else "give --device cpu,cpu for two processes",
        )
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return list(numbers)
    visible = names.split(SEPARATOR)
    return [visible[int(number)] for number in numbers]


@contextmanager
def _forwarded() -> Iterator[list[int]]:
    """Pass the stop signals on to the processes, and give the list of those that came."""
    asked: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        for process in _children():
            os.killpg(process, number)  # each leads a group of its own, its readers with it

    before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children() -> list[int]:
    """The processes that this one has started and that lead a group."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        process = int(status.parent.name)
        state, parent, group = fields[0], int(fields[1]), int(fields[2])
        if parent == os.getpid() and group == process and state != "Z":
            found.append(process)
    return found
