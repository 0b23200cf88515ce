"""A command that runs in several processes: who speaks, and how they meet."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import typer

from hatcli.errors import ToldElsewhere, UsageError

T = TypeVar("T")

TOGETHER = ("train", "eval")
"""The commands that several processes run together; the main one runs all others alone."""


def are_several() -> bool:
    """Whether torchrun started other processes beside this one."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def rank() -> int:
    """Number of this process; 0, that of the main one, for a process on its own."""
    text = os.environ.get("RANK", "0")
    return int(text) if are_several() and text.isdecimal() else 0


def start_for_each(device: str) -> None:
    """Run the command line in one process for each device of "0,1,2,3", and exit as they do.

    Does nothing where one device is meant.

    Raises:
        UsageError: this is one of several processes already, or there are no such devices.
        ToldElsewhere: they ended with an error, or were stopped, and have said so.
    """
    from hatcli.recipes.training.launch import is_several, launch

    if is_several(device) and "RANK" in os.environ:
        raise UsageError(
            f"--device {device} starts torchrun, and RANK says that it runs already",
            "give --device cuda or cpu, or unset RANK and WORLD_SIZE",
        )
    if is_several(device):
        code = launch(device, sys.argv[1:])
        raise ToldElsewhere(code) if code else typer.Exit


@contextmanager
def together(device: str) -> Iterator[None]:
    """Run a block in all processes that torchrun started; only the main one speaks."""
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        yield
        return
    from hatcli.cli import _screen
    from hatcli.engine.distributed import joined
    from hatcli.stopping import stop_signals

    if rank() > 0:
        _screen.be_silent()
    with stop_signals(), joined(device):
        yield


def from_main(make: Callable[[], T]) -> T:
    """What a function gives in the main process, on all of them."""
    if not are_several():
        return make()
    from hatcli.engine.distributed import from_main as tell

    return tell(make)
