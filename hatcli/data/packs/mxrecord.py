"""The MXRecord container: data.rec holds the records, data.idx says where, meta.rec what they are.

``data.rec`` is RecordIO (see `recordio`), ``data.idx`` has a line ``key<tab>offset`` of 27 bytes
for each record, so that the line of a record is found without reading the others.

meta.rec (see `contents`) is replaced in one step after the bytes of a batch are on the disk, and
says how far data.rec counts: what a stop left behind that is cut off. Nothing is mapped into
memory, so a file that gets shorter under a reader is an error and not the end of the process.
"""

import os
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from hatcli.data.packs.contents import (
    CONTENTS_FILE,
    NEW_CONTENTS_FILE,
    Contents,
    read_contents,
    write_contents,
)
from hatcli.data.packs.frame import unseal
from hatcli.data.packs.meta import META_KEY, sample_key
from hatcli.data.packs.recordio import MAX_STORED_BYTES, find_end, restore, store
from hatcli.disk import HINT_RESUME, check_free_space, size_text
from hatcli.errors import DataError, HatError, PackError

T = TypeVar("T")

DATA_FILE = "data.rec"
INDEX_FILE = "data.idx"

_LINE = b"%s\t%015d\n"
_LINE_BYTES = 27
_LINES = re.compile(rb"(\d{10})\t(\d{15})\n(?:(\d{10})\t(\d{15})\n)?")
_SLACK_BYTES = 2**20  # index, named records


class MxRecordWriter:
    """Puts records into a folder's data.rec; a batch is stored as a whole or not at all.

    Args:
        folder: exists; unfinished files in it are gone on with.

    Raises:
        PackError: the unfinished files are damaged.
        HatError: the folder can't be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = self._index = -1
        try:
            self._data = os.open(folder / DATA_FILE, os.O_RDWR | os.O_CREAT, 0o666)
            self._index = os.open(folder / INDEX_FILE, os.O_RDWR | os.O_CREAT, 0o666)
            self._contents = self._go_on()
        except OSError as error:
            self.close()
            raise _cannot_write(folder, error) from error
        except HatError:
            self.close()
            raise

    @classmethod
    def for_size(cls, folder: Path, size_bytes: int) -> "MxRecordWriter":
        """The writer of a folder; how much will come doesn't matter to it."""
        return cls(folder)

    def get(self, key: bytes) -> bytes | None:
        """The record under a key."""
        record = _read(self._folder, self._data, self._index, self._contents, key)
        return None if record is None else bytes(record)

    def count(self) -> int:
        """Number of records, those with names included."""
        return self._contents.records + len(self._contents.named)

    def commit(
        self, records: Sequence[tuple[bytes, bytes]], named: Mapping[bytes, bytes | None]
    ) -> None:
        """Store a batch durably: data, then index, then what says that they are there.

        Args:
            records: (key, record) in key order without gaps, behind those stored before.
            named: records by another key, stored anew; None removes one.

        Raises:
            PackError: a key stands already, or the order is wrong.
            HatError: the disk is full or fails; what was committed before stays.
        """
        first = self._check_keys([key for key, _ in records])
        size = sum(len(record) for _, record in records) + _SLACK_BYTES
        check_free_space(self._folder, size, HINT_RESUME)
        merged = {**self._contents.named, **named}
        kept = {key: value for key, value in merged.items() if value is not None}
        try:
            data_bytes = self._append(records) if records else self._contents.data_bytes
            total = self._contents.records + len(records)
            contents = Contents(total, first, data_bytes, kept)
            write_contents(self._folder, contents)
        except OSError as error:
            check_free_space(self._folder, size, HINT_RESUME)
            raise _cannot_write(self._folder, error) from error
        self._contents = contents

    def seal_file(self) -> None:
        """Make the finished files durable and leave nothing but them."""
        try:
            self._cut_tails(self._contents)
            os.fsync(self._data)
            os.fsync(self._index)
        except OSError as error:
            raise _cannot_write(self._folder, error) from error
        self.close()
        (self._folder / NEW_CONTENTS_FILE).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the files; commits are on the disk already."""
        for descriptor in (self._data, self._index):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._index = -1

    def _go_on(self) -> Contents:
        """What an earlier run committed, with what it didn't commit cut off."""
        size = os.fstat(self._data).st_size
        if not size and not (self._folder / CONTENTS_FILE).exists():
            contents = Contents(0, 0, 0, {})
            write_contents(self._folder, contents)
            return contents
        contents = read_contents(self._folder)
        if size < contents.data_bytes:
            raise _truncated(self._folder, size, contents.data_bytes)
        self._cut_tails(contents)
        if not self._is_index_whole(contents):
            self._rebuild_index(contents)
        return contents

    def _cut_tails(self, contents: Contents) -> None:
        os.ftruncate(self._data, contents.data_bytes)
        if os.fstat(self._index).st_size > contents.records * _LINE_BYTES:
            os.ftruncate(self._index, contents.records * _LINE_BYTES)

    def _is_index_whole(self, contents: Contents) -> bool:
        """Whether the index has all lines and the last one leads to the last record."""
        if os.fstat(self._index).st_size != contents.records * _LINE_BYTES:
            return False
        if not contents.records:
            return True
        last = sample_key(contents.first + contents.records - 1)
        try:
            return _read(self._folder, self._data, self._index, contents, last) is not None
        except PackError:
            return False

    def _rebuild_index(self, contents: Contents) -> None:
        """Walk through the data, each record's checksum compared, and write the lines anew."""
        os.ftruncate(self._index, 0)
        start = position = 0
        lines = []
        for number in range(contents.records):
            key = sample_key(contents.first + number)
            try:
                end = find_end(lambda at, size: os.pread(self._data, size, at), start, contents[2])
                unseal(key, restore(_read_exactly(self._data, start, end - start)))
            except DataError as error:
                raise _damaged(self._folder, key, start, error) from error
            lines.append(_LINE % (key, start))
            start = end
            if len(lines) == 4096 or number == contents.records - 1:
                _write_all(self._index, [b"".join(lines)], position)
                position += len(lines) * _LINE_BYTES
                lines.clear()
        if start != contents.data_bytes:
            raise PackError(f"{self._folder}: damaged pack (more data than records)")
        os.fsync(self._index)

    def _check_keys(self, keys: Sequence[bytes]) -> int:
        """The number of the first record ever stored; the keys must follow those stored."""
        contents = self._contents
        if not keys:
            return contents.first
        start = contents.first + contents.records if contents.records else _number(keys[0])
        for number, key in enumerate(keys, start or 0):
            if start is None or key != sample_key(number):
                raise PackError(f"{self._folder}: record {key!r} is there, or out of order")
        return contents.first if contents.records else start or 0

    def _append(self, records: Sequence[tuple[bytes, bytes]]) -> int:
        """Write records and their lines behind those that count; the new size of the data."""
        end = self._contents.data_bytes
        lines = []
        for key, record in records:
            lines.append(_LINE % (key, end))
            end += _write_all(self._data, store(record), end)
        os.fsync(self._data)
        _write_all(self._index, [b"".join(lines)], self._contents.records * _LINE_BYTES)
        os.fsync(self._index)
        return end


class MxRecordReader:
    """The files of a published pack, opened by one process; threads may share it.

    Args:
        folder: of the pack.
        order: in which records will be read; tells the system whether to read ahead.

    Raises:
        PackError: a file is missing, cut, or can't be read.
    """

    def __init__(self, folder: Path, order: str = "random") -> None:
        self.pid = os.getpid()
        self._folder = folder
        self._finalizers: list[weakref.finalize[..., MxRecordReader]] = []
        self._contents = read_contents(folder)
        self._data = self._open(DATA_FILE, self._contents.data_bytes)
        self._index = self._open(INDEX_FILE, self._contents.records * _LINE_BYTES)
        if hasattr(os, "posix_fadvise"):
            advice = os.POSIX_FADV_SEQUENTIAL if order == "sequential" else os.POSIX_FADV_RANDOM
            os.posix_fadvise(self._data, 0, 0, advice)

    def read(self, key: bytes, use: Callable[[memoryview], T]) -> T | None:
        """What ``use`` makes of the record under a key; None when there is none.

        Args:
            key: of the record.
            use: gets a view of memory that stays as long as a view of it does.

        Raises:
            PackError: index and data don't fit at this record, or can't be read.
        """
        record = _read(self._folder, self._data, self._index, self._contents, key)
        return None if record is None else use(record)

    def count(self) -> int:
        """Number of records, those with names included."""
        return self._contents.records + len(self._contents.named)

    def close(self) -> None:
        """Let go of the files."""
        for finalizer in self._finalizers:
            finalizer()

    def _open(self, name: str, expected_bytes: int) -> int:
        path = self._folder / name
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise PackError(f"{path}: cannot be read ({error.strerror})", _HINT) from error
        # The descriptor goes with the last reference, even while another thread closes the pack.
        self._finalizers.append(weakref.finalize(self, os.close, descriptor))
        size = os.fstat(descriptor).st_size
        if size < expected_bytes:
            raise _truncated(path, size, expected_bytes)
        # In an unfinished pack what a stop left may follow; that it's unfinished is told later.
        if size > expected_bytes and META_KEY in self._contents.named:
            raise PackError(f"{path}: has {size} bytes, {expected_bytes} were written", _HINT)
        return descriptor


_HINT = "copy the pack again, or pack the source again"


def _read(folder: Path, data: int, index: int, contents: Contents, key: bytes) -> memoryview | None:
    """The record under a key, by way of its line in the index."""
    if key in contents.named:
        return memoryview(contents.named[key])
    number = _number(key)
    if number is None or not 0 <= number - contents.first < contents.records:
        return None
    try:
        line = (number - contents.first) * _LINE_BYTES
        start, end = _span(os.pread(index, 2 * _LINE_BYTES, line), key, contents.data_bytes)
        try:
            return restore(_read_exactly(data, start, end - start))
        except DataError as error:
            raise _damaged(folder, key, start, error) from error
    except PackError:
        raise
    except DataError as error:
        message = f"{folder / INDEX_FILE}: damaged pack (line {line // _LINE_BYTES + 1}: {error})"
        raise PackError(message, _HINT) from error
    except OSError as error:
        raise PackError(f"{folder}: cannot be read ({error.strerror})", _HINT) from error


def _span(lines: bytes, key: bytes, data_bytes: int) -> tuple[int, int]:
    """From a record's line, and the next one where there is one: where it begins and ends."""
    match = _LINES.fullmatch(lines)
    if match is None:
        raise DataError(f"{lines[:_LINE_BYTES]!r} isn't a key and an offset")
    if match[1] != key:
        raise DataError(f"it is of {match[1].decode()}, not of {key.decode()}")
    start = int(match[2])
    end = data_bytes if match[4] is None else int(match[4])
    if start % 4 or not start < end <= data_bytes or end - start > MAX_STORED_BYTES:
        where = f"bytes {start} to {end} of {data_bytes}"
        raise DataError(f"its record can't be at {where}")
    return start, end


def _number(key: bytes) -> int | None:
    return int(key) if len(key) == 10 and key.isdigit() else None


def _read_exactly(descriptor: int, start: int, size: int) -> bytes:
    """So many bytes; one call gives at most 2 GiB, more than a record has."""
    found = os.pread(descriptor, size, start)
    if len(found) != size:
        raise DataError(f"file ends {size - len(found)} bytes early")
    return found


def _write_all(descriptor: int, pieces: Sequence[bytes | memoryview], start: int) -> int:
    """Write pieces one behind the other; their bytes together."""
    total = sum(len(piece) for piece in pieces)
    if len(pieces) <= 3 and os.pwritev(descriptor, pieces, start) == total:
        return total  # by far the most records
    whole = memoryview(b"".join(pieces))
    done = 0
    while done < total:
        done += os.pwrite(descriptor, whole[done:], start + done)
    return total


def _cannot_write(folder: Path, error: OSError) -> HatError:
    reason = (error.strerror or str(error)).lower()
    return HatError(f"cannot write to {folder}: {reason}", HINT_RESUME)


def _truncated(path: Path, size: int, expected: int) -> PackError:
    sizes = f"{size_text(size)} of {size_text(expected)}"
    return PackError(f"{path}: pack is truncated: {sizes}", _HINT)


def _damaged(folder: Path, key: bytes, start: int, error: DataError) -> PackError:
    return PackError(
        f"{folder}: damaged pack (sample {key.decode()} at byte {start}: {error})", _HINT
    )
