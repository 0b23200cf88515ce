"""Records out of MATLAB's MAT-files of level 5, such as the development kit's meta.mat.

Written after "MAT-File Format" (The MathWorks). Only numbers and text are read; every length is
compared with the bytes that are there, and what is compressed may grow to a limit only.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hatcli.errors import DataError, start_of

MAX_BYTES = 64 * 2**20  # of all that is decompressed; the published meta.mat has 1 MB

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_INT32, _UINT32 = 5, 6
_STRUCT_CLASS, _TEXT_CLASS = 2, 4
_NUMBER_CLASSES = range(6, 16)
_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}


def read_records(
    data: bytes, where: str, variable: str, fields: Sequence[str]
) -> list[dict[str, float | str]]:
    """The elements of a struct array, in MATLAB's order.

    Args:
        data: the whole file.
        where: what messages call it.
        variable: name of the struct array.
        fields: those that are read; each holds one number or one line of text.

    Returns:
        For each element, field -> number or text.

    Raises:
        DataError: no MAT-file of level 5, damaged, or without such a variable or field.
    """
    try:
        for matrix in _matrices(data):
            if matrix.name == variable:
                return _read_struct(matrix, fields)
    except _Damaged as error:
        raise DataError(f"{error}: {where}", "download or copy it again") from error
    raise DataError(f"no variable {variable!r}: {where}")


class _Damaged(Exception):  # noqa: N818 - becomes a DataError that says where
    """What is wrong with the file."""


class _Matrix(NamedTuple):
    """A matrix whose head was read.

    Attributes:
        kind: its class in MATLAB's numbering.
        shape: its sizes.
        body: what follows after the name.
        order: "<" or ">" for its numbers.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    body: memoryview
    order: str


def _matrices(data: bytes) -> Iterator[_Matrix]:
    """The variables of a file."""
    order = _byte_order(data)
    budget = MAX_BYTES
    for kind, body in _elements(memoryview(data)[_HEADER_BYTES:], order):
        inner = kind, body
        if kind == _COMPRESSED:
            plain = _decompress(body, budget)
            budget -= len(plain)
            inner = next(_elements(memoryview(plain), order), (0, body))
        if inner[0] == _MATRIX:
            yield _read_head(inner[1], order)


def _byte_order(data: bytes) -> str:
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise _Damaged(f"not a MAT-file of level 5 ({start_of(data[:8])})")
    version = struct.unpack_from(order + "H", data, 124)[0] >> 8
    if version != 1:
        raise _Damaged(f"not a MAT-file of level 5 (its version is {version})")
    return order


def _decompress(body: memoryview, limit: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise _Damaged(f"damaged MAT-file ({error})") from error
    if len(plain) > limit:
        raise _Damaged(f"MAT-file refused, more than {MAX_BYTES} bytes (possible bomb)")
    if not unpacker.eof:
        raise _Damaged("MAT-file is cut")
    return plain


def _elements(view: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The elements one after the other: the number of their type, and their bytes."""
    position = 0
    while position < len(view):
        if position + 8 > len(view):
            raise _Damaged("MAT-file is cut")
        kind, size = struct.unpack_from(order + "II", view, position)
        start, behind = position + 8, position + 8 + size
        if kind >> 16:  # small ones have their size there, and at most four bytes after it
            kind, size = kind & 0xFFFF, kind >> 16
            start, behind = position + 4, position + 8
        elif kind != _COMPRESSED:
            behind += -size % 8
        if start + size > min(behind, len(view)):
            raise _Damaged("MAT-file is cut, or a length in it is wrong")
        yield kind, view[start : start + size]
        position = behind


def _read_head(body: memoryview, order: str) -> _Matrix:
    """Class, sizes and name of a matrix; one without bytes is an empty array."""
    if not body:
        return _Matrix("", _NUMBER_CLASSES[0], (0, 0), body, order)
    elements = _elements(body, order)
    head = [next(elements, None) for _ in range(3)]
    flags, sizes, name = head
    if flags is None or sizes is None or name is None:
        raise _Damaged("damaged MAT-file (a matrix without a head)")
    if flags[0] != _UINT32 or len(flags[1]) != 8 or sizes[0] != _INT32 or len(sizes[1]) % 4:
        raise _Damaged("damaged MAT-file (flags or sizes of a matrix)")
    kind = struct.unpack_from(order + "I", flags[1])[0] & 0xFF
    shape = struct.unpack(f"{order}{len(sizes[1]) // 4}i", sizes[1])
    if min(shape, default=-1) < 0:
        raise _Damaged("damaged MAT-file (sizes of a matrix)")
    return _Matrix(bytes(name[1]).decode("latin-1"), kind, shape, _rest(body, 3, order), order)


def _rest(body: memoryview, skipped: int, order: str) -> memoryview:
    """What follows after some elements."""
    position = 0
    for _ in range(skipped):
        kind, size = struct.unpack_from(order + "II", body, position)
        position += 8 if kind >> 16 else 8 + size + -size % 8
    return body[position:]


def _read_struct(matrix: _Matrix, fields: Sequence[str]) -> list[dict[str, float | str]]:
    if matrix.kind != _STRUCT_CLASS:
        raise _Damaged(f"{matrix.name!r} is no struct array")
    names = _field_names(matrix)
    missing = [field for field in fields if field not in names]
    if missing:
        raise _Damaged(f"{matrix.name!r} has no field {missing[0]!r}")
    count = 1
    for size in matrix.shape:
        count *= size
    values = _elements(_rest(matrix.body, 2, matrix.order), matrix.order)
    if count * len(names) * 8 > len(matrix.body):
        raise _Damaged("MAT-file is cut, or a length in it is wrong")
    records = []
    for _ in range(count):
        record: dict[str, float | str] = {}
        for name in names:
            kind, body = next(values, (0, matrix.body))
            if kind != _MATRIX:
                raise _Damaged(f"damaged MAT-file (a field of {matrix.name!r})")
            if name in fields:
                record[name] = _read_value(_read_head(body, matrix.order), name)
        records.append(record)
    return records


def _field_names(matrix: _Matrix) -> list[str]:
    elements = _elements(matrix.body, matrix.order)
    (kind, length), (_, names) = next(elements, (0, b"")), next(elements, (0, b""))
    if kind != _INT32 or len(length) != 4:
        raise _Damaged(f"damaged MAT-file (field names of {matrix.name!r})")
    width = struct.unpack(matrix.order + "i", length)[0]
    if width < 1 or not names or len(names) % width:
        raise _Damaged(f"damaged MAT-file (field names of {matrix.name!r})")
    cells = [bytes(names[place : place + width]) for place in range(0, len(names), width)]
    return [cell.partition(b"\0")[0].decode("latin-1") for cell in cells]


def _read_value(matrix: _Matrix, field: str) -> float | str:
    """One number, or one line of text."""
    kind, data = next(_elements(matrix.body, matrix.order), (0, matrix.body[:0]))
    if matrix.kind == _TEXT_CLASS and len(matrix.shape) == 2 and matrix.shape[0] <= 1:
        if not data:
            return ""
        return _decode(kind, data, matrix.order, field)
    number = matrix.order + _NUMBERS.get(kind, "x")
    if matrix.kind in _NUMBER_CLASSES and set(matrix.shape) == {1} and kind in _NUMBERS:
        if len(data) != struct.calcsize(number):
            raise _Damaged(f"damaged MAT-file (field {field!r} of a record)")
        return struct.unpack(number, data)[0]
    raise _Damaged(f"field {field!r} of a record is neither one number nor one line of text")


def _decode(kind: int, data: memoryview, order: str, field: str) -> str:
    encoding = _ENCODINGS.get(kind, "")
    if encoding in ("utf-16", "utf-32"):
        encoding += "-le" if order == "<" else "-be"
    try:
        return bytes(data).decode(encoding)
    except (LookupError, UnicodeDecodeError) as error:
        raise _Damaged(f"text of field {field!r} can't be read") from error
