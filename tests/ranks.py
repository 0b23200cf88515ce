"""Runs a function, or a ``hat`` command, in several processes that compute together."""

import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from commands import _CONTEXT, PRELOADED, Command

# What a wrapper of a model imports when it is first made takes seconds, too.
_CONTEXT.set_forkserver_preload([*PRELOADED, "torch._dynamo"])


class Raised(NamedTuple):
    """What a function raised in a process."""

    kind: str
    message: str
    exit_code: int


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    numbers = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in numbers.items()}}


def _serve(
    function: Callable[..., Any], arguments: bytes, place: dict[str, str], to: Connection
) -> None:
    os.environ.update(place)
    import torch

    from hatcli.engine.distributed import joined

    torch.set_num_threads(1)
    try:
        with joined("cpu", timeout_s=30):
            result = function(*pickle.loads(arguments))  # noqa: S301 - of this test
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        result = Raised(type(error).__name__, str(error), getattr(error, "exit_code", 70))
    to.send_bytes(pickle.dumps(result))  # whole: tensors by 'send' would stay in this process
    os._exit(0)


def on_ranks(function: Callable[..., Any], *arguments: Any, processes: int = 2) -> list[Any]:
    """What a function of a test module returns, or raises, in each of some processes."""
    port, results = free_port(), []
    given = pickle.dumps(arguments)  # whole: tensors would be in memory that all processes share
    for rank in range(processes):
        ours, theirs = _CONTEXT.Pipe()
        place = environment(rank, processes, port)
        process = _CONTEXT.Process(target=_serve, args=(function, given, place, theirs))
        process.start()
        theirs.close()
        results.append((process, ours))
    found = []
    for process, ours in results:
        assert ours.poll(100), "a process gives no answer"
        found.append(pickle.loads(ours.recv_bytes()))  # noqa: S301 - of this test
        process.join(20)
        assert process.exitcode == 0
    return found


def commands(*arguments: object, processes: int = 2, **more: str) -> list[Command]:
    """The processes of a command that computes in several, in the present folder."""
    port = int(more.pop("port", free_port()))
    return [
        Command(
            *arguments,
            errors=f"errors-{rank}.txt",
            environment={**environment(rank, processes, port), **more},
        )
        for rank in range(processes)
    ]
