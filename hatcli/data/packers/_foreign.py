"""LMDB packs of other programs: msgpack maps or lists, with msgpack-numpy's arrays of numbers.

Nothing in them is ever run: pickles, and arrays that hold pickles, are refused by name.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
from lmdb.verify import VerifyError
from lmdb.verify import verify as verify_lmdb

from hatcli.data.packs.frame import MAX_PAYLOAD_BYTES
from hatcli.disk import size_text
from hatcli.errors import DataError, PackError, UsageError

_NUMBERS = "biuf"  # kinds of numpy dtypes that hold plain numbers
_MOST_PROBLEMS = 3


class ForeignLmdb:
    """The records of a foreign LMDB file, by key; it can be pickled, and opens at the first read.

    Args:
        path: a folder with data.mdb, or the file itself.

    Raises:
        UsageError: there is no such file.
        PackError: it is damaged; its structure is walked through before LMDB may map it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "data.mdb" if path.is_dir() else path
        if not self.file.is_file():
            raise UsageError(f"no LMDB file at {path}")
        check_structure(self.file)
        self._opened: tuple[int, lmdb.Environment] | None = None

    def scan(self) -> Iterator[tuple[bytes, int]]:
        """Each key, in byte order, and the size of its value."""
        with self._open().begin(buffers=True) as transaction:
            for key, value in transaction.cursor():
                yield bytes(key), len(value)

    def read(self, key: bytes) -> bytes:
        """The value under a key."""
        with self._open().begin() as transaction:
            value = transaction.get(key)
        if value is None:
            raise PackError(f"{self.file}: record {key!r} is gone")
        return value

    def close(self) -> None:
        """Let go of the file."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self._opened[1].close()
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _open(self) -> lmdb.Environment:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                environment = lmdb.open(
                    str(self.file), subdir=False, readonly=True, lock=False, create=False
                )
            except lmdb.Error as error:
                raise PackError(f"{self.file}: not a readable LMDB file ({error})") from error
            self._opened = (os.getpid(), environment)
        return self._opened[1]


def check_structure(file: Path) -> None:
    """Walk through an LMDB file without LMDB, which trusts it.

    Raises:
        PackError: it is no LMDB file, or damaged.
    """
    try:
        problems = verify_lmdb(str(file), subdir=False)  # type: ignore[no-untyped-call]
    except VerifyError as error:
        raise PackError(f"{file}: not an LMDB file ({error})") from error
    if problems:
        raise PackError(f"{file}: damaged ({'; '.join(problems[:_MOST_PROBLEMS])})")


def unpack(value: bytes, where: str) -> Any:
    """What a foreign record holds: plain values and arrays of numbers.

    Args:
        value: as it is stored.
        where: what messages call it.

    Raises:
        DataError: no msgpack, or something in it that isn't plain values and numbers.
    """
    if value[:1] == b"\x80" and value[1:2] in (b"\2", b"\3", b"\4", b"\5") and value[-1:] == b".":
        raise DataError(f"refused: {where} is a pickle, which may run code")
    if len(value) > MAX_PAYLOAD_BYTES:
        limit = size_text(MAX_PAYLOAD_BYTES)
        raise DataError(f"{where} has {size_text(len(value))}; limit {limit}")
    try:
        return msgpack.unpackb(
            value,
            raw=False,
            strict_map_key=False,
            object_pairs_hook=lambda pairs: _revive(pairs, where),
            ext_hook=lambda code, _: _refuse(f"{where} holds the unknown ext type {code}"),
        )
    except DataError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise DataError(f"{where} isn't msgpack ({type(error).__name__}: {error})") from error


def _revive(pairs: list[tuple[Any, Any]], where: str) -> Any:
    """A map with text keys, or the array that msgpack-numpy stored as such a map."""
    entries: dict[str, Any] = {}
    for key, value in pairs:
        entries[_name(key, where)] = value
    if "nd" not in entries:
        if entries.keys() == {"complex", "data"}:
            _refuse(f"{where} holds a complex number")
        return entries
    kind = entries.get("kind", b"")
    kind = kind.decode("latin-1") if isinstance(kind, bytes) else kind
    if kind == "O" or entries.get("type") in ("|O", "O", b"|O", b"O"):
        _refuse(f"refused: {where} holds a pickled object (msgpack-numpy kind 'O')")
    if kind not in ("", None):
        _refuse(f"{where} holds an array of kind {kind!r}; only numbers can be converted")
    return _array(entries, where)


def _array(entries: Mapping[str, Any], where: str) -> Any:
    descr: Any = entries.get("type")
    data: Any = entries.get("data")
    descr = descr.decode("latin-1") if isinstance(descr, bytes) else descr
    if not isinstance(descr, str) or not isinstance(data, bytes):
        _refuse(f"{where} holds an array without type or data")
    try:
        dtype: np.dtype[Any] = np.dtype(descr)
    except (TypeError, ValueError, SyntaxError) as error:
        raise DataError(f"{where} holds an array of type {descr!r}") from error
    if dtype.kind not in _NUMBERS:
        _refuse(f"{where} holds an array of type {descr!r}; only numbers can be converted")
    shape = entries.get("shape", ()) if entries["nd"] else ()
    if not isinstance(shape, list | tuple) or not all(
        type(side) is int and side >= 0 for side in shape
    ):
        _refuse(f"{where} holds an array of shape {shape!r}")
    if len(shape) > 8 or math.prod(shape) * dtype.itemsize != len(data):
        _refuse(f"{where} holds an array of shape {shape!r} in {len(data)} bytes")
    array: np.ndarray = np.frombuffer(data, dtype=dtype).reshape(shape)
    return array if entries["nd"] else array[()].item()


def _name(key: Any, where: str) -> str:
    if isinstance(key, bytes):
        try:
            return key.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{where} has the key {key!r}") from error
    if isinstance(key, str | int):
        return str(key)
    raise DataError(f"{where} has the key {key!r}")


def _refuse(text: str) -> Any:
    raise DataError(text)
