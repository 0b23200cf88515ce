"""Which of several processes was lost, when the others notice that one of them doesn't answer."""

import json
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from hatcli.engine.place import Place
from hatcli.errors import HatError

PATIENCE_S = 3.0
"""How long a broken connection waits for the word of the process that broke it."""

_SIGNS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


class LostPeers(HatError):  # noqa: N818 - what happened
    """Another process ended, and so this one can't go on."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message, "the last checkpoint is intact: go on with hat train --resume")
        self.exit_code = exit_code


class Peers:
    """The processes that met, and where what they have to say is written.

    Args:
        records: of each process its kind of device, host and process id.
    """

    def __init__(self, store: Store, place: Place, records: list[dict[str, Any]]) -> None:
        self._store, self._place, self._records = store, place, records

    def tell(self, error: BaseException) -> None:
        """Leave word of why this process ends."""
        words = {"text": _in_one_line(error), "code": getattr(error, "exit_code", 1)}
        try:
            self._store.set(self._key(self._place.rank), json.dumps(words))
        except RuntimeError:  # whoever keeps the store is gone as well
            return

    def explain(self, error: BaseException) -> tuple[str, int]:
        """Which processes are lost, as far as it can be known, and the exit code that fits."""
        deadline = time.monotonic() + PATIENCE_S
        found = self._lost()
        while not found and time.monotonic() < deadline:
            time.sleep(0.1)
            found = self._lost()
        if found:
            return "; ".join(text for text, _ in found), found[0][1]
        others = ", ".join(
            f"rank {rank} on {record['host']}"
            for rank, record in enumerate(self._records)
            if record["host"] != self._records[self._place.rank]["host"]
        )
        where = f" (one of {others}?)" if others else ""
        return f"lost the connection to another process{where}: {_in_one_line(error)}", 1

    def require_main(self) -> None:
        """Look after the main process.

        Raises:
            LostPeers: it has ended.
        """
        for text, code in self._lost(only=0):
            raise LostPeers(text, code)

    def _lost(self, only: int | None = None) -> list[tuple[str, int]]:
        """A sentence and an exit code for each process that has said why it ends, or is gone."""
        found, here = [], self._records[self._place.rank]["host"]
        for rank, record in enumerate(self._records):
            if rank == self._place.rank or only not in (None, rank):
                continue
            is_gone = record["host"] == here and _is_gone(record["pid"])
            keeps_store = rank == 0 and not self._place.has_agent
            try:
                words = None if is_gone and keeps_store else self._words_of(rank)
            except RuntimeError:  # the store went with the process that kept it
                return [("rank 0 is gone, at which all processes meet", 1)]
            if words is not None:
                found.append((f"rank {rank} failed: {words['text']}", int(words["code"])))
            elif is_gone:
                text = f"rank {rank} (process {record['pid']}) is gone: it crashed or was killed"
                found.append((text, 1))
        return found

    def _words_of(self, rank: int) -> dict[str, Any] | None:
        key = self._key(rank)
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def _key(self, rank: int) -> str:
        return f"end/{self._place.attempt}/{rank}"


def meet(store: Store, place: Place, kind: str, timeout: timedelta) -> Peers:
    """Wait for all processes.

    Args:
        kind: of the device that this one computes on.

    Raises:
        HatError: some don't come, or they compute on devices of different kinds.
    """
    keys = [f"here/{place.attempt}/{rank}" for rank in range(place.processes)]
    mine = {"kind": kind, "host": socket.gethostname(), "pid": os.getpid()}
    store.set(keys[place.rank], json.dumps(mine))
    try:
        store.wait(keys, timeout)
    except dist.DistStoreError as error:
        late = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
        raise HatError(
            f"rank {place.rank} of {place.processes} waited {timeout.total_seconds():g} s for "
            f"rank {', '.join(late)}",
            "were all nodes started, with the same --nnodes and --rdzv-endpoint or --master-addr?",
        ) from error
    records = [json.loads(text) for text in store.multi_get(keys)]
    other = next((rank for rank, record in enumerate(records) if record["kind"] != kind), None)
    if other is not None:
        raise HatError(
            f"rank {place.rank} computes on {kind} and rank {other} on {records[other]['kind']}",
            "give --device cuda or --device cpu",
        )
    return Peers(store, place, records)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says that another process doesn't answer."""
    if not isinstance(error, RuntimeError) or isinstance(error, HatError):
        return False
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in _SIGNS)


def _in_one_line(error: BaseException) -> str:
    text = error.message if isinstance(error, HatError) else f"{type(error).__name__}: {error}"
    return text.partition("\n")[0].strip()


def _is_gone(pid: int) -> bool:
    """Whether a process of this machine has ended, waited for or not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return Path("/proc").is_dir()  # elsewhere than on Linux nobody knows
    return status.rpartition(")")[2].split()[0] in ("Z", "X")
