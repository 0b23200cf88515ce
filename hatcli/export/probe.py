"""Opens an ONNX model, and runs it once on zeros, in a process of its own.

onnxruntime may crash on a malformed file, loop without end or take all memory; then only this
process goes. It is started as a script: ``python -P probe.py [DTYPE N C H W] < FILE``.
"""

import contextlib
import os
import sys

import numpy as np
import onnxruntime

with contextlib.suppress(ImportError):  # not on Windows
    import resource


def main(arguments: list[str]) -> int:
    """0 when all went well; else 1, with onnxruntime's message on stdout."""
    _limit_memory()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            sys.stdin.buffer.read(), options, providers=["CPUExecutionProvider"]
        )
        if arguments:
            shape = [int(size) for size in arguments[1:]]
            name = session.get_inputs()[0].name
            session.run(None, {name: np.zeros(shape, arguments[0])})
    except Exception as error:  # noqa: BLE001 - its exceptions have no base class of their own
        sys.stdout.write(str(error))
        return 1
    return 0


def _limit_memory() -> None:
    """No more address space than the machine has memory, and no core file."""
    if "resource" not in globals():
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
