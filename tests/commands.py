"""Runs ``hat`` commands in processes of their own, which can be stopped and killed.

They are forked from a server that has imported what training needs, so that a start takes no
seconds; each leads a process group of its own, as a shell's jobs do.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["hatcli.recipes.training.journey", "hatcli.cli.train", "hatcli.cli.pack"]
_CONTEXT.set_forkserver_preload(PRELOADED)


def _serve(
    arguments: Sequence[str], folder: str, errors: str, environment: Mapping[str, str]
) -> None:
    os.setsid()
    os.environ.update(environment)
    os.chdir(folder)
    multiprocessing.set_start_method("fork", force=True)  # as in a shell; the server's would stay
    stream = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    import torch

    torch.set_num_threads(1)
    from hatcli.cli import run

    sys.argv = ["hat", *arguments]
    code = run(list(arguments))
    sys.stdout.flush()
    sys.exit(code)


class Command:
    """A command that runs in the present folder."""

    def __init__(
        self,
        *arguments: object,
        errors: str = "errors.txt",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._errors = Path(errors).resolve()
        self._errors.unlink(missing_ok=True)
        words = [str(argument) for argument in arguments]
        given = (words, str(Path.cwd()), str(self._errors), dict(environment or {}))
        self.process = _CONTEXT.Process(target=_serve, args=given)
        self.process.start()

    @property
    def errors(self) -> str:
        """What it wrote to stdout and stderr."""
        return self._errors.read_text() if self._errors.exists() else ""

    def wait_for(self, is_reached: Callable[[], bool], seconds: float = 120) -> bool:
        """Wait until something is so, or the command is over."""
        deadline = time.monotonic() + seconds
        while not is_reached():
            if self.process.exitcode is not None:
                return False
            assert time.monotonic() < deadline, self.errors
            time.sleep(0.005)
        return True

    def send(self, number: int, *, to_group: bool = True) -> None:
        """Send a signal to the process, or to it and its children."""
        (os.killpg if to_group else os.kill)(self.process.pid, number)

    def exit_code(self, seconds: float = 120) -> int:
        """Wait for the end; negative for a signal."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running: {self.errors}"
        return self.process.exitcode

    def kill(self) -> None:
        """SIGKILL to the process alone; its workers find out."""
        self.send(signal.SIGKILL, to_group=False)
        self.process.join()

    def children(self) -> list[int]:
        """Processes of its group that are still there."""
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self.process.pid and fields[0] != "Z":
                found.append(int(status.parent.name))
        return found
