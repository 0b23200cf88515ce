"""Where a process stands among those that torchrun started; nothing here loads torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hatcli.errors import UsageError

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
BY_TORCHRUN = "start the processes by torchrun, or unset RANK and WORLD_SIZE for one alone"


@dataclass(frozen=True)
class Place:
    """What torchrun tells a process by its environment.

    Attributes:
        rank: number of this process, from 0.
        processes: how many there are, on all nodes.
        local: number of this process on its node; None where nobody tells.
        address: of the node where all meet.
        port: likewise.
        attempt: how often they were started again.
        has_agent: whether torchrun itself keeps the meeting place, so that what is written there
            is still there when it starts them again.
    """

    rank: int
    processes: int
    local: int | None
    address: str
    port: int
    attempt: str = "0"
    has_agent: bool = False


def find_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place that the environment tells; None for a process on its own.

    Raises:
        UsageError: it tells a part of it, or what can't be.
    """
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return None
    missing = [name for name in NAMES if name not in environment]
    if missing:
        given = [name for name in NAMES if name in environment]
        raise UsageError(
            f"environment: {', '.join(given)} set, but not {', '.join(missing)}", BY_TORCHRUN
        )
    local = _number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else None
    place = Place(
        rank=_number(environment, "RANK"),
        processes=_number(environment, "WORLD_SIZE"),
        local=local,
        address=environment["MASTER_ADDR"],
        port=_number(environment, "MASTER_PORT"),
        attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
        has_agent=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )
    if place.rank >= place.processes:
        raise UsageError(
            f"environment: RANK={place.rank} of WORLD_SIZE={place.processes} processes",
            BY_TORCHRUN,
        )
    if not 0 < place.port < 1 << 16:
        raise UsageError(f"environment: MASTER_PORT={place.port} is no port", BY_TORCHRUN)
    return place


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise UsageError(f"environment: {name}={text!r} is no number from 0 up", BY_TORCHRUN)
    return int(text)
