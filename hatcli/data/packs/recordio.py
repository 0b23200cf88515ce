"""RecordIO, the way dmlc and MXNet write it: records one behind the other, each found by a magic.

A stored record is one part, or several. A part is the magic, a word of flag << 29 | length (both
little endian), ``length`` bytes, and zeros up to a multiple of 4. Flag 0 is a whole record; a
record that holds the magic at a multiple of 4 from its start is cut there, the magic is left out,
and its parts have the flags 1, 2 ... 2, 3. So the magic at a multiple of 4 is always a part's
start, and a program may look for the next one after damage.
"""

import struct
from collections.abc import Callable

import numpy as np

from hatcli.data.packs.frame import MAX_PAYLOAD_BYTES
from hatcli.errors import DataError

MAGIC = struct.pack("<I", _MAGIC_NUMBER := 0xCED7230A)
MAX_RECORD_BYTES = MAX_PAYLOAD_BYTES + 64
MAX_STORED_BYTES = 2 * MAX_RECORD_BYTES + 16  # of nothing but magics, the heads of parts are twice

_HEAD = struct.Struct("<4sI")
_LENGTH_BITS = 29
_LENGTH_MASK = 2**_LENGTH_BITS - 1
_WHOLE, _FIRST, _MIDDLE, _LAST = 0, 1, 2, 3


def store(record: bytes) -> list[bytes | memoryview]:
    """The pieces that, one behind the other, are a stored record."""
    cuts = _aligned_magics(record)
    if not cuts:
        return [_head(_WHOLE, len(record)), record, _padding(len(record))]
    view = memoryview(record)
    pieces: list[bytes | memoryview] = []
    start = 0
    for cut in cuts:
        pieces += [_head(_MIDDLE if start else _FIRST, cut - start), view[start:cut]]
        start = cut + len(MAGIC)
    rest = len(record) - start
    return [*pieces, _head(_LAST, rest), view[start:], _padding(rest)]


def restore(stored: bytes | memoryview) -> memoryview:
    """The record in exactly these bytes; a view into them where it is one part.

    Raises:
        DataError: they aren't one stored record.
    """
    view = memoryview(stored)
    parts: list[memoryview] = []
    position = 0
    while True:
        flag, length = _unpack_head(view[position : position + _HEAD.size], bool(parts))
        start = position + _HEAD.size
        position = start + length + -length % 4
        if position > len(view):
            raise DataError(f"a part of {length} bytes reaches beyond its record")
        parts.append(view[start : start + length])
        if flag in (_WHOLE, _LAST):
            break
    if position != len(view):
        raise DataError(f"record takes {position} bytes where there are {len(view)}")
    return parts[0] if len(parts) == 1 else memoryview(MAGIC.join(parts))


def find_end(read: Callable[[int, int], bytes], start: int, size: int) -> int:
    """Where the stored record that begins at ``start`` ends; only the heads of parts are read.

    Args:
        read: gives so many bytes from a position on, fewer at the end of the file.
        start: byte where the record begins.
        size: bytes of the file.

    Raises:
        DataError: no record begins there, or it reaches beyond the end.
    """
    position, goes_on = start, False
    while True:
        flag, length = _unpack_head(memoryview(read(position, _HEAD.size)), goes_on)
        position += _HEAD.size + length + -length % 4
        if position > size:
            raise DataError(f"a part of {length} bytes reaches beyond the end of the file")
        if flag in (_WHOLE, _LAST):
            return position
        goes_on = True


def _aligned_magics(record: bytes) -> list[int]:
    """Where the magic stands at a multiple of 4."""
    words = np.frombuffer(record, dtype="<u4", count=len(record) // 4)
    found = words == _MAGIC_NUMBER
    return (4 * np.flatnonzero(found)).tolist() if found.any() else []  # next to never


def _head(flag: int, length: int) -> bytes:
    return _HEAD.pack(MAGIC, flag << _LENGTH_BITS | length)


def _padding(length: int) -> bytes:
    return bytes(-length % 4)


def _unpack_head(head: memoryview, goes_on: bool) -> tuple[int, int]:
    """Flag and length of a part; ``goes_on`` says whether its record began before it."""
    if len(head) < _HEAD.size:
        raise DataError("the head of a part is cut")
    magic, word = _HEAD.unpack(head)
    if magic != MAGIC:
        raise DataError(f"a part starts with {magic!r}, not with RecordIO's magic")
    flag = word >> _LENGTH_BITS
    if flag not in ((_MIDDLE, _LAST) if goes_on else (_WHOLE, _FIRST)):
        what = "inside" if goes_on else "at the start of"
        raise DataError(f"a part has the flag {flag} {what} a record")
    return flag, word & _LENGTH_MASK
