"""Looks at an LMDB file without LMDB, which would die of a cut one."""

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hatcli.disk import size_text
from hatcli.errors import PackError

DATA_FILE = "data.mdb"

_MAGIC = 0xBEEFC0DE
# A head of format 1, behind its 16-byte page header: magic, version, address, map size, the tree
# of free pages (starts with the page size), the tree of records (page size, flags), last page,
# transaction.
_HEAD = struct.Struct("=16x I I 8x 8x I 44x 4x H 42x Q Q")
_PAGE_BYTES = tuple(2**power for power in range(9, 17))
# A page of a tree: its number, flags, end of the list of node positions, start of the nodes.
_PAGE = struct.Struct("=Q 2x H H H")
_BRANCH, _LEAF = 1, 2
# A node: size of its data (two halves), flags, size of its key.
_NODE = struct.Struct("=H H H H")
_BIG_DATA = 1  # the node holds the number of the page where its data starts
_NODE_REACH = 2**17  # how far beyond its page a damaged position and key size can lead


class _Head(NamedTuple):
    """What LMDB keeps on each of the first two pages; the later transaction counts."""

    page_bytes: int
    last_page: int
    transaction: int


def check_file(folder: Path) -> None:
    """Refuse a folder's data.mdb that LMDB can't open, or that would make it read beyond the end.

    Damage elsewhere is found by LMDB or by the checksums of the records.

    Raises:
        PackError: one of these.
    """
    path = folder / DATA_FILE
    try:
        with path.open("rb") as file:
            head = _read_heads(path, file)
            check_size(folder, (head.last_page + 1) * head.page_bytes)
            _check_tail(path, file, head)
    except OSError as error:
        raise PackError(f"{path}: cannot be read ({error.strerror})") from error


def check_size(folder: Path, expected_bytes: int) -> None:
    """Refuse a data.mdb that is shorter than its pages.

    Raises:
        PackError: pages are missing; reading one would end the process.
    """
    size = (folder / DATA_FILE).stat().st_size
    if size < expected_bytes:
        raise PackError(
            f"{folder}: pack is truncated: {size_text(size)} of {size_text(expected_bytes)}",
            "copy it again, or pack the source again",
        )


def _read_heads(path: Path, file: BinaryIO) -> _Head:
    """The head that counts."""
    start = file.read(_HEAD.size)
    if not start.strip(b"\0"):
        raise PackError(f"{path}: not an LMDB file (empty)")
    first = _unpack_head(path, start)
    file.seek(first.page_bytes)
    second = _unpack_head(path, file.read(_HEAD.size))
    if first.page_bytes != second.page_bytes:
        raise PackError(f"{path}: not an LMDB file (its two heads differ)")
    return max(first, second, key=lambda head: head.transaction)


def _unpack_head(path: Path, start: bytes) -> _Head:
    if len(start) < _HEAD.size:
        raise PackError(f"{path}: not an LMDB file, or cut to almost nothing")
    magic, version, page_bytes, flags, last_page, transaction = _HEAD.unpack(start)
    if magic != _MAGIC:
        if struct.unpack_from("=I", start, 24)[0] == _MAGIC:
            raise PackError(f"{path}: written by LMDB 1.x (format 3)", "pack the source again")
        raise PackError(f"{path}: not an LMDB file (starts with {start[:8]!r})")
    if version != 1 or page_bytes not in _PAGE_BYTES or flags:
        what = f"format {version}, pages of {page_bytes} bytes, flags {flags:#x}"
        raise PackError(f"{path}: not an LMDB file that a pack can be ({what})")
    return _Head(page_bytes, last_page, transaction)


def _check_tail(path: Path, file: BinaryIO, head: _Head) -> None:
    """Look at the tree pages at the end: LMDB follows their positions without a check."""
    pages = head.last_page + 1
    first = max(2, pages - _NODE_REACH // head.page_bytes - 1)
    file.seek(first * head.page_bytes)
    for number in range(first, pages):
        page = file.read(head.page_bytes)
        own_number, flags, lower, upper = _PAGE.unpack_from(page)
        # Pages of data have neither; by chance these 10 bytes don't come together.
        if own_number == number and flags in (_BRANCH, _LEAF):
            if not _PAGE.size <= lower <= upper <= head.page_bytes or lower % 2:
                raise PackError(f"{path}: damaged pack (page {number})")
            for (position,) in struct.iter_unpack("=H", page[_PAGE.size : lower]):
                if position < upper or not _fits(page, position, flags):
                    raise PackError(f"{path}: damaged pack (page {number})")


def _fits(page: bytes, position: int, page_flags: int) -> bool:
    """Whether a node ends in its page."""
    if position + _NODE.size > len(page):
        return False
    low, high, node_flags, key_size = _NODE.unpack_from(page, position)
    end = position + _NODE.size + key_size
    if page_flags == _LEAF:
        end += 8 if node_flags & _BIG_DATA else low | high << 16
    return end <= len(page)
