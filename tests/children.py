"""Runs a function in a forked child, for what may kill a process or needs one of its own."""

import os
import sys
import traceback
import warnings

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
