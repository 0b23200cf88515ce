"""Runs a function in a forked child, for what may kill a process or needs one of its own."""

import os
import shutil
import signal
import sys
import traceback
import warnings
from pathlib import Path

from hatcli.errors import HatError

REFUSED = 50  # the child ended with a HatError


def in_child(function, *arguments):
    """Exit status of the child: 0, `REFUSED`, 1 for another exception, negative for a signal."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads
        pid = os.fork()
    if pid == 0:
        try:
            function(*arguments)
            code = 0
        except HatError:
            code = REFUSED
        except BaseException:  # noqa: BLE001 - the child has nobody to tell but the terminal
            traceback.print_exc()
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at_call(call, *more):
    """Arrange that of all calls that change files, this one ends the process like a power cut.

    Args:
        call: counted from 0.
        more: (owner, name) of further functions that count.
    """
    left = [call]

    def fatal(real):
        def instead(*arguments, **named):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return instead

    of_os = [(os, name) for name in ("fsync", "pwritev", "ftruncate")]
    of_path = [(Path, name) for name in ("rename", "unlink", "mkdir")]
    for owner, name in [*of_os, *of_path, (shutil, "rmtree"), *more]:
        setattr(owner, name, fatal(getattr(owner, name)))
