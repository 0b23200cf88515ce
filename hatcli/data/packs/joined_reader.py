"""Reads a joined pack: a folder of metadata that names the packs in which the samples are."""

import os
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from hatcli.data.packs.contents import CONTENTS_FILE, read_contents
from hatcli.data.packs.meta import META_KEY, unseal_map
from hatcli.errors import DataError, PackError, UsageError

if TYPE_CHECKING:
    from hatcli.data.packs.protocol import Reader

T = TypeVar("T")

_HINT = "bring the shards back to their place, or join them again"


class ShardEntry(NamedTuple):
    """A shard, as the joined pack's metadata names it.

    Attributes:
        path: of the shard, relative to the joined pack's folder, with slashes.
        first: number of the shard's first key. Where a shard left samples out, the next one's
            keys don't follow without a gap.
    """

    path: str
    first: int
    length: int
    content_sha256: str


class JoinedReader:
    """The shards of one joined pack as one container; each is opened at its first record.

    Args:
        folder: of the joined pack.
        open_shard: opens the container of a pack that isn't joined.

    Raises:
        PackError: a shard is missing, cut, or not the one that was joined.
    """

    def __init__(self, folder: Path, open_shard: Callable[[Path], "Reader"]) -> None:
        self.pid = os.getpid()
        self._folder = folder
        self._meta_record, self._shards = _read_entries(folder)
        self._open_shard = open_shard
        for shard in self._shards:  # opened and dropped: there may be more than one may keep open
            self._open(shard)
        self._readers: list[Reader | None] = [None] * len(self._shards)
        self._firsts = [shard.first for shard in self._shards]

    def read(self, key: bytes, use: Callable[[memoryview], T]) -> T | None:
        """What ``use`` makes of the record under a key; None when there is none."""
        if key == META_KEY:
            return use(memoryview(self._meta_record))
        if not key.isdigit():
            return None
        place = bisect_right(self._firsts, int(key)) - 1
        reader = self._readers[place]
        if reader is None:
            reader = self._readers[place] = self._open(self._shards[place])
        return reader.read(key, use)

    def count(self) -> int:
        """Number of records, the one with the metadata included."""
        return sum(shard.length for shard in self._shards) + 1

    def close(self) -> None:
        """Let go of the files of all shards."""
        for reader in self._readers:
            if reader is not None:
                reader.close()
        self._readers = [None] * len(self._shards)

    def _open(self, shard: ShardEntry) -> "Reader":
        path = self._folder / shard.path
        try:
            reader = self._open_shard(path)
        except UsageError as error:
            raise PackError(f"{self._folder}: shard {shard.path} is missing", _HINT) from error
        try:
            meta = reader.read(META_KEY, lambda record: unseal_map(META_KEY, record)) or {}
        except PackError:
            raise
        except DataError as error:
            raise PackError(f"{path}: damaged pack (its metadata: {error})", _HINT) from error
        if meta.get("content_sha256") != shard.content_sha256:
            raise PackError(f"{self._folder}: shard {shard.path} isn't the one joined", _HINT)
        if reader.count() != shard.length + 1:
            found = reader.count() - 1
            raise PackError(f"{path}: metadata says {shard.length} samples, found {found}", _HINT)
        return reader


def is_joined(folder: Path) -> bool:
    """Whether a folder holds metadata and no samples, as a joined pack does."""
    return (folder / CONTENTS_FILE).is_file()


def shard_entries(listed: object) -> list[ShardEntry]:
    """The shards that a joined pack's metadata lists.

    Raises:
        DataError: it isn't such a list.
    """
    if type(listed) is not list or not listed:
        raise DataError("it names no shards")
    shards = [_as_entry(entry) for entry in listed]
    following = 0
    for shard in shards:
        if shard.first < following:
            raise DataError(f"shard {shard.path} begins at {shard.first}, before {following}")
        following = shard.first + shard.length
    return shards


def shard_folders(folder: Path) -> list[Path]:
    """Where the shards of a joined pack are.

    Raises:
        PackError: its metadata is damaged.
    """
    return [folder / shard.path for shard in _read_entries(folder)[1]]


def _read_entries(folder: Path) -> tuple[bytes, list[ShardEntry]]:
    """The framed metadata, and the shards in order, which leave no gap."""
    record = read_contents(folder).named.get(META_KEY, b"")
    try:
        listed = unseal_map(META_KEY, record).get("shards") if record else None
        if listed is None:
            raise PackError(f"{folder}/data.rec: missing, and the pack isn't a joined one")
        shards = shard_entries(listed)
    except PackError:
        raise
    except DataError as error:
        raise PackError(f"{folder}: damaged pack (its metadata: {error})", _HINT) from error
    return record, shards


def _as_entry(entry: object) -> ShardEntry:
    if type(entry) is not dict or not entry.keys() >= set(ShardEntry._fields):
        raise DataError(f"a shard is {entry!r}")
    shard = ShardEntry(*(entry[name] for name in ShardEntry._fields))
    if [type(value) for value in shard] != [str, int, int, str] or shard.length < 0:
        raise DataError(f"a shard is {entry!r}")
    if PurePosixPath(shard.path).is_absolute() or "\0" in shard.path:
        raise DataError(f"the path of a shard is {shard.path!r}")
    return shard
