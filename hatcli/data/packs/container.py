"""Which containers of records there are, and who opens one.

One more is a module like `lmdb` or `mxrecord`, which do what `protocol` says, and a line in
`_TYPES`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hatcli.data.packs import lmdb, mxrecord
from hatcli.data.packs.joined_reader import JoinedReader, is_joined, shard_folders
from hatcli.data.packs.lmdb_file import DATA_FILE as LMDB_DATA_FILE
from hatcli.data.packs.meta import no_pack
from hatcli.data.packs.protocol import Order, Reader, Writer
from hatcli.errors import UsageError, did_you_mean


class PackType(NamedTuple):
    """One kind of container.

    Attributes:
        data_file: name of the file that holds the samples, and tells this kind from others.
        open_writer: for an empty or unfinished folder and the expected bytes of all records.
        open_reader: for a published folder and the order of reading.
    """

    data_file: str
    open_writer: Callable[[Path, int], Writer]
    open_reader: Callable[[Path, Order], Reader]


_TYPES = {
    "lmdb": PackType(LMDB_DATA_FILE, lmdb.LmdbWriter.for_size, lmdb.share_environment),
    "mxrecord": PackType(
        mxrecord.DATA_FILE, mxrecord.MxRecordWriter.for_size, mxrecord.MxRecordReader
    ),
}
PACK_TYPES: tuple[str, ...] = tuple(_TYPES)


def find_container(pack_type: str) -> PackType:
    """The kind of container of a name.

    Raises:
        UsageError: there is none of this name.
    """
    if pack_type not in _TYPES:
        raise UsageError(
            f"pack type {pack_type!r} unknown; choose {', '.join(PACK_TYPES)}",
            did_you_mean(pack_type, PACK_TYPES),
        )
    return _TYPES[pack_type]


def find_pack_type(folder: Path) -> str | None:
    """The kind of container in a folder, "joined" for a joined pack, None for no pack."""
    for name, kind in _TYPES.items():
        if (folder / kind.data_file).is_file():
            return name
    return "joined" if is_joined(folder) else None


def data_size(folder: Path) -> int:
    """Exact bytes of the file that holds a pack's samples; of a joined pack those of its shards.

    Raises:
        UsageError: there is no pack.
    """
    if find_pack_type(folder) == "joined":
        return sum(
            (path / _kind_in(path).data_file).stat().st_size for path in shard_folders(folder)
        )
    return (folder / _kind_in(folder).data_file).stat().st_size


def open_reader(folder: Path, order: Order = "random") -> Reader:
    """A published pack's container, whatever kind it is.

    Args:
        folder: of the pack.
        order: in which records will be read; "sequential" lets the system read ahead. Readers of
            one LMDB file in one process share what the first of them asked for.

    Raises:
        UsageError: there is no pack.
        PackError: it is cut, or can't be read.
    """
    if find_pack_type(folder) == "joined":
        return JoinedReader(folder, lambda path: _kind_in(path).open_reader(path, order))
    return _kind_in(folder).open_reader(folder, order)


def _kind_in(folder: Path) -> PackType:
    """The kind of container of a pack that isn't joined."""
    name = find_pack_type(folder)
    if name is None or name == "joined":  # a joined pack of joined ones might hold itself
        raise no_pack(folder)
    return _TYPES[name]
