"""A pack as a sequence of samples, from any process."""

import os
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from hatcli.data.packs.codec import decode
from hatcli.data.packs.container import open_reader
from hatcli.data.packs.frame import unseal
from hatcli.data.packs.joined_reader import shard_entries
from hatcli.data.packs.meta import (
    META_KEY,
    STATE_KEY,
    check_fields,
    check_meta,
    first_key_number,
    sample_key,
    unseal_map,
)
from hatcli.data.packs.protocol import Order, Reader
from hatcli.errors import DataError, PackError

T = TypeVar("T")


class Pack:
    """The samples of one pack, in order; made by `open_pack`.

    It may be pickled, and used in forked children: each process opens the files for itself at
    its first read. Threads may share it.

    Attributes:
        path: the pack's folder.
        meta: what the pack says of itself.
    """

    def __init__(
        self, path: Path, meta: dict[str, Any], *, check: bool = True, order: Order = "random"
    ) -> None:
        self.path = path
        self.meta = meta
        self._check, self._order = check, order
        self._starts, self._firsts = _key_ranges(meta)
        self._reader: Reader | None = None

    def __len__(self) -> int:
        return self.meta["length"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample, decoded; its arrays are the caller's own.

        Raises:
            IndexError: there is no such sample.
            PackError: the sample is damaged; the message names it and the pack.
        """
        return self.read(index, _itself)

    def read(self, index: int, use: Callable[[dict[str, Any]], T], *, views: bool = False) -> T:
        """What ``use`` makes of one sample while its record is at hand.

        Args:
            index: of the sample; negative ones count from the end.
            use: gets the decoded sample, whose arrays are its own.
            views: give "bytes" fields as views into the container instead, and arrays of the
                codec "strips" undecoded. They are valid during the call only: ``use`` must not
                keep them or anything made over them.

        Raises:
            IndexError: there is no such sample.
            PackError: the sample is damaged; the message names it and the pack.
        """
        key = self.key_of(index)
        reader = self._reader
        if reader is None or reader.pid != os.getpid():
            reader = self._reader = self._reopen()
        # What a reader returns for no record can't be told from what use returns, so it's wrapped.
        made = reader.read(key, lambda record: (use(self._decode(key, record, views=views)),))
        if made is None:
            raise PackError(f"sample {key.decode()} in {self.path} is missing", _HINT)
        return made[0]

    def key_of(self, index: int) -> bytes:
        """The key of a sample in the container.

        Raises:
            IndexError: there is no such sample.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: no sample {index}, there are {len(self)}")
        index %= len(self)
        place = bisect_right(self._starts, index) - 1
        return sample_key(self._firsts[place] + index - self._starts[place])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def __enter__(self) -> "Pack":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; a later read opens them again."""
        self._reader = None

    def _decode(self, key: bytes, record: memoryview, *, views: bool) -> dict[str, Any]:
        try:
            payload = unseal(key, record, check=self._check)
        except DataError as error:
            raise PackError(
                f"damaged sample {key.decode()}{_name_in(key, record)} in {self.path} ({error})",
                _HINT,
            ) from error
        try:
            sample = decode(payload, views=True) if views else decode(payload)
            check_fields(sample, self.meta["fields"])
        except DataError as error:
            raise PackError(
                f"sample {key.decode()} in {self.path} cannot be decoded: {error}", _HINT
            ) from error
        return sample

    def _reopen(self) -> Reader:
        reader, meta = _open(self.path, self._order)
        if meta["content_sha256"] != self.meta["content_sha256"]:
            raise PackError(f"{self.path}: another pack took this place while it was in use")
        return reader


_HINT = "copy the pack again, or pack the source again"


def open_pack(path: Path, *, check: bool = True, order: Order = "random") -> Pack:
    """The pack in a folder, of any container, a shard, or joined; nothing stays open until a read.

    Args:
        path: folder with data.mdb, e.g. data/cityscapes/train_lmdb, or with meta.rec.
        check: whether the checksum of each sample is compared when it is read.
        order: in which samples will be read; see `container.open_reader`.

    Raises:
        UsageError: there is no pack.
        PackError: it is damaged, unfinished or newer than this program.
    """
    _, meta = _open(path, order)
    return Pack(path, meta, check=check, order=order)


def _open(path: Path, order: Order) -> tuple[Reader, dict[str, Any]]:
    reader = open_reader(path, order)
    try:
        meta = reader.read(META_KEY, lambda record: unseal_map(META_KEY, record))
        if meta is None:
            raise _without_meta(path, reader)
    except PackError:
        raise
    except DataError as error:
        raise PackError(f"{path}: damaged pack (its metadata: {error})", _HINT) from error
    check_meta(path, meta)
    if reader.count() != meta["length"] + 1:
        found = reader.count() - 1
        raise PackError(f"{path}: metadata says {meta['length']} samples, found {found}", _HINT)
    return reader, meta


def _without_meta(path: Path, reader: Reader) -> PackError:
    state = reader.read(STATE_KEY, lambda record: unseal_map(STATE_KEY, record))
    if state is None:
        return PackError(
            f"{path}: not a hat pack (no metadata)",
            "'hat pack convert' makes one of an LMDB pack of msgpack records",
        )
    return PackError(
        f"{path}: pack is unfinished ({state.get('next')} of {state.get('length')})",
        f"finish it with 'hat pack {state.get('dataset')} --split {state.get('split')}'",
    )


def _key_ranges(meta: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Where the index of each run of keys begins, and the number of its first key."""
    if "shards" not in meta:
        return [0], [first_key_number(meta)]
    starts, firsts, start = [], [], 0
    for shard in shard_entries(meta["shards"]):
        starts.append(start)
        firsts.append(shard.first)
        start += shard.length
    return starts, firsts


def _itself(sample: dict[str, Any]) -> dict[str, Any]:
    return sample


def _name_in(key: bytes, record: memoryview) -> str:
    """The name in a damaged record, if it can still be read; only for the message."""
    try:
        # A record of a wrong length may reach beyond the file; it isn't touched.
        name = decode(unseal(key, record, check=False)).get("name")
    except DataError:
        return ""
    return f" ({name!r})" if isinstance(name, str) else ""
