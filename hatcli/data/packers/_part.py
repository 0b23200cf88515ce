"""One of several equal parts of a split, for packing on several machines."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hatcli.data.packers import Made, Packer
from hatcli.data.packers._on_demand import OnDemand
from hatcli.errors import UsageError

MAX_SHARDS = 100_000


@dataclass(frozen=True)
class Shard:
    """Which part.

    Attributes:
        index: counted from 1.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


def parse_shard(text: str) -> Shard:
    """Read '2/8' as the second of eight parts.

    Raises:
        UsageError: it is something else.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]) <= MAX_SHARDS:
        raise UsageError(f"--shard {text!r}: give I/N with I from 1 to N, e.g. 2/8")
    return Shard(int(match[1]), int(match[2]))


class Part:
    """The samples of one shard; see `packers.Packer`.

    Attributes:
        first: index of its first sample in the whole split.

    Raises:
        UsageError: there are more shards than samples.
    """

    def __init__(self, packer: Packer, shard: Shard) -> None:
        total = len(packer.stamps)
        if shard.count > total:
            raise UsageError(f"{shard.count} shards of {total} samples: give fewer")
        self.first = total * (shard.index - 1) // shard.count
        length = total * shard.index // shard.count - self.first
        self.dataset, self.split = packer.dataset, packer.split
        self.options, self.fields, self.source = packer.options, packer.fields, packer.source
        stamp: Callable[[int], str] = packer.stamps.__getitem__
        self.stamps: Sequence[str] = OnDemand(range(self.first, self.first + length), stamp)
        self.official_length: int | None = None
        self.estimated_bytes = packer.estimated_bytes * length // total
        self.remarks, self.unofficial = packer.remarks, packer.unofficial
        self._packer, self._shard, self._total = packer, shard, total

    def make(self, index: int) -> Made:
        """The sample of this number, counted in the shard."""
        return self._packer.make(self.first + index)

    def name(self, index: int) -> str:
        """Its name."""
        return self._packer.name(self.first + index)

    def describe(self, totals: Mapping[str, int]) -> dict[str, Any]:
        """What the whole would say of these samples, and which part they are."""
        shard = {
            "index": self._shard.index,
            "count": self._shard.count,
            "first": self.first,
            "total": self._total,
            "totals": {name: totals[name] for name in sorted(totals)},
        }
        return {**self._packer.describe(totals), "shard": shard}

    def find_remarks(self, meta: Mapping[str, Any]) -> list[str]:
        """What may be wrong with these samples."""
        return self._packer.find_remarks(meta)
