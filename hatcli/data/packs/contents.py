"""The file meta.rec: which records a pack has, and those that have names instead of numbers.

It is RecordIO (see `recordio`): first the framed map ``__contents__`` (number of samples, first
key, exact bytes of data.rec, names of what follows), then the named records.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hatcli.data.packs.meta import seal_map, unseal_map
from hatcli.data.packs.recordio import MAX_STORED_BYTES, find_end, restore, store
from hatcli.disk import sync_to_disk
from hatcli.errors import DataError, PackError

CONTENTS_FILE = "meta.rec"
NEW_CONTENTS_FILE = "meta.rec.new"  # until it has its name

_CONTENTS_KEY = b"__contents__"
_HINT = "copy the pack again, or pack the source again"


class Contents(NamedTuple):
    """What meta.rec says.

    Attributes:
        records: samples in data.rec.
        first: number of the first of them.
        data_bytes: of data.rec; what stands behind them doesn't count.
        named: the named records by key, framed.
    """

    records: int
    first: int
    data_bytes: int
    named: Mapping[bytes, bytes]


def read_contents(folder: Path) -> Contents:
    """What a folder's meta.rec says.

    Raises:
        PackError: it is missing or damaged.
    """
    path = folder / CONTENTS_FILE
    try:
        with path.open("rb") as file:
            stored = file.read(MAX_STORED_BYTES)
    except OSError as error:
        raise PackError(f"{path}: cannot be read ({error.strerror})", _HINT) from error
    try:
        records = list(_walk(stored))
        if not records:
            raise DataError("it is empty")
        return _unpack_contents(unseal_map(_CONTENTS_KEY, records[0]), records[1:])
    except DataError as error:
        raise PackError(f"{path}: damaged pack ({error})", _HINT) from error


def _unpack_contents(entries: Mapping[str, Any], named: Sequence[memoryview]) -> Contents:
    numbers: list[Any] = [entries.get(name) for name in ("records", "first", "data_bytes")]
    names = entries.get("named")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise DataError(f"its numbers are {numbers}")
    if type(names) is not list or len(names) != len(named):
        raise DataError(f"it names {names} before {len(named)} records")
    keys = [str(name).encode() for name in names]
    records, first, data_bytes = numbers
    return Contents(records, first, data_bytes, dict(zip(keys, map(bytes, named), strict=True)))


def write_contents(folder: Path, contents: Contents) -> None:
    """Replace meta.rec in one step, durably; what it tells of must be on the disk before."""
    entries = {
        "records": contents.records,
        "first": contents.first,
        "data_bytes": contents.data_bytes,
        "named": [key.decode() for key in contents.named],
    }
    new = folder / NEW_CONTENTS_FILE
    with new.open("wb") as file:
        for record in (seal_map(_CONTENTS_KEY, entries), *contents.named.values()):
            file.writelines(store(record))
        file.flush()
        os.fsync(file.fileno())
    new.rename(folder / CONTENTS_FILE)
    sync_to_disk(folder)


def _walk(stored: bytes) -> Iterable[memoryview]:
    """The records that stand one behind the other in these bytes."""
    view, start = memoryview(stored), 0
    while start < len(stored):
        end = find_end(lambda at, size: stored[at : at + size], start, len(stored))
        yield restore(view[start:end])
        start = end
