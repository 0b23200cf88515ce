"""Processes that compute together: how they meet, and what they tell each other.

Each is started by torchrun, or by anything that sets RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT. One of them, the main one, writes files and speaks. For a process on its own every
function here gives what is there without any other.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import active_children
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from hatcli.engine.lost import LostPeers, Peers, is_lost_connection, meet
from hatcli.engine.place import Place, find_place
from hatcli.errors import HatError, StoppedBySignal, ToldElsewhere, UsageError
from hatcli.stopping import STOP_SIGNALS, uninterrupted

T = TypeVar("T")

JOIN_S = 300.0
"""How long a process waits for the others to start."""

SILENCE = timedelta(minutes=30)
"""How long one of them may let the others wait in the middle of a computation."""

_LOOK = timedelta(seconds=2)


@dataclass
class _Link:
    """What connects this process with the others.

    Attributes:
        turn: how often the main process has told something.
    """

    place: Place
    store: Store
    peers: Peers | None = None
    turn: int = 0


_links: list[_Link] = []  # one at most


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes compute together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return rank() == 0


@contextmanager
def joined(device: str, *, timeout_s: float = JOIN_S) -> Iterator[None]:
    """Compute with the processes that torchrun started beside this one, while the block runs.

    What ends the block of one of them ends all: the others raise an error that names it.

    Args:
        device: "auto", "cpu" or "cuda"; each process takes the GPU of its number on the node.
        timeout_s: to wait for the others.

    Raises:
        UsageError: the environment or the device can't be.
        HatError: they don't all meet, or one is lost later.
    """
    place = find_place(os.environ)
    if place is None or (place.processes == 1 and not place.has_agent):
        yield
        return
    kind = _device_of(place, device)
    try:
        link = _connect(place, kind, timeout_s)
    except RuntimeError as error:
        raise HatError(
            f"rank {place.rank} can't meet the others at {place.address}:{place.port}: "
            f"{_first_line(error)}",
            "is the address that of the first node, and the port free? "
            "torchrun --master-addr HOST --master-port PORT",
        ) from error
    _links.append(link)
    try:
        yield
        barrier()
    except BaseException as error:
        _end(link, error)
        raise
    else:
        if dist.is_initialized():
            dist.destroy_process_group()
    finally:
        _links.clear()
        for worker in active_children():  # which don't listen to signals: see `Loader`
            worker.kill()


def gather(value: T) -> list[T]:
    """What each process gives, by rank, on all of them; values of any type that pickles."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    dist.all_gather_object(values, value)
    return values


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of what each process gives, on all of them; in place."""
    if processes() > 1:
        dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait until all processes are here."""
    sum_over_processes(torch.zeros(1))


def from_main(make: Callable[[], T]) -> T:
    """What a function gives in the main process, on all of them; the others don't call it.

    They wait for as long as it takes.

    Raises:
        HatError: the function's own; on the others one that is silent, with its exit code.
    """
    if processes() == 1:
        return make()
    (link,) = _links
    link.turn += 1
    name = f"turn/{link.place.attempt}/{link.turn}"
    box: list[Any] = [None, None]
    failure: HatError | None = None
    if is_main():
        try:
            box[0] = make()
        except HatError as error:
            failure, box[1] = error, error.exit_code
        link.store.set(name, "")
    else:
        _wait_for_main(link, name)
    dist.broadcast_object_list(box)
    if failure is not None:
        raise failure
    if box[1] is not None:
        raise ToldElsewhere(box[1])
    return box[0]


def remember(name: str, text: str) -> None:
    """Keep a text for as long as torchrun runs, over its restarts of the processes."""
    if is_main() and _links and _links[0].place.has_agent:
        _links[0].store.set(f"remembered/{name}", text)


def remembered(name: str) -> str | None:
    """What `remember` kept before torchrun started the processes again; None for nothing."""
    if not _links or not _links[0].place.has_agent:
        return None
    store, key = _links[0].store, f"remembered/{name}"
    return from_main(lambda: store.get(key).decode() if store.check([key]) else None)


def stop_counts(device: torch.device | None = None) -> Tensor:
    """(3,) float64: a one where this process was asked to stop by that of `STOP_SIGNALS`."""
    counts = torch.zeros(len(STOP_SIGNALS), dtype=torch.float64, device=device)
    if uninterrupted.is_asked:
        counts[STOP_SIGNALS.index(signal.Signals(uninterrupted.asked))] = 1
    return counts


def stop_if_asked(counts: Tensor) -> None:
    """End this process if one of all was asked to stop; as the others do, with the same counts.

    Args:
        counts: the sum of all processes' `stop_counts`.

    Raises:
        StoppedBySignal: on all processes at the same place.
    """
    asked = [number for number, count in zip(STOP_SIGNALS, counts.tolist(), strict=True) if count]
    if asked:
        raise StoppedBySignal(asked[0], f"stopped by {asked[0].name}", is_agreed=True)


def stopping_together(batches: Iterator[T], rounds: int) -> Iterator[T]:
    """The same batches, between which all processes agree on whether to stop.

    Args:
        rounds: how often, at most the number of batches that each process has.

    Raises:
        StoppedBySignal: on all processes at the same batch.
    """
    for number, batch in enumerate(batches):
        if number < rounds:
            stop_if_asked(sum_over_processes(stop_counts()))
        yield batch


def _device_of(place: Place, device: str) -> str:
    """Either "cpu" or "cuda", whose GPU is made this process's own."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if device not in ("auto", "cuda"):
        raise UsageError(
            f"device {device!r} for {place.processes} processes",
            "each takes the GPU of its own number: give --device cuda or cpu",
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = place.local
    if local is None and count > 1:
        raise UsageError(
            f"rank {place.rank}: LOCAL_RANK isn't set, and there are {count} GPUs to choose from",
            "start the processes by torchrun",
        )
    if (local or 0) >= count:
        raise UsageError(
            f"rank {place.rank} is process {local or 0} of its node, which has {count} GPUs",
            f"torchrun --nproc-per-node={count}, or --device cpu",
        )
    torch.cuda.set_device(local or 0)
    return "cuda"


def _connect(place: Place, kind: str, timeout_s: float) -> _Link:
    timeout = timedelta(seconds=timeout_s)
    store = TCPStore(
        place.address,
        place.port,
        place.processes,
        is_master=place.rank == 0 and not place.has_agent,
        timeout=timeout,
        wait_for_workers=False,
    )
    if place.processes == 1:
        return _Link(place, store)
    peers = meet(store, place, kind, timeout)
    # Tensors on the CPU, such as counts and objects, go by gloo beside NCCL.
    dist.init_process_group(
        "gloo" if kind == "cpu" else "cpu:gloo,cuda:nccl",
        store=PrefixStore(f"group/{place.attempt}", store),
        rank=place.rank,
        world_size=place.processes,
        timeout=SILENCE,
    )
    return _Link(place, store, peers)


def _wait_for_main(link: _Link, name: str) -> None:
    assert link.peers is not None
    while True:
        try:
            link.store.wait([name], _LOOK)
        except dist.DistStoreError:
            link.peers.require_main()
        else:
            return


def _end(link: _Link, error: BaseException) -> None:
    """Tell the others why this process ends, or find out which of them made it end.

    Raises:
        LostPeers: another one did.
    """
    uninterrupted.leave()
    if link.peers is None:
        return
    if is_lost_connection(error):
        raise LostPeers(*link.peers.explain(error)) from error
    if not isinstance(error, LostPeers | ToldElsewhere):
        link.peers.tell(error)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
