"""Tar archives, read in place: members by offset, tars within tars, nothing extracted.

Python's own reader ends without a word at a damaged header and at a cut between two members, so
the walk is ours; each header is still parsed, and its checksum compared, by `tarfile`.
"""

import os
import tarfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from hatcli.data.packers._files import MAX_FILE_BYTES, shown
from hatcli.data.packers._members import Member
from hatcli.disk import size_text
from hatcli.errors import DataError, start_of

_BLOCK = 512
_MAX_NOTE_BYTES = 2**20  # a long name, or a pax header
_TAIL_CHUNK_BYTES = 2**20
_HINT = "download or copy it again"
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_NOTES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}

ReadAt = Callable[[int, int], bytes]


class Tar:
    """An archive that isn't compressed; it can be pickled.

    Args:
        path: of the archive.

    Raises:
        DataError: it can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._size = os.fstat(self._open()).st_size

    def members(self, inside: Member | None = None) -> Iterator[Member]:
        """The regular files, in the archive's order, as `walk_tar` gives them.

        Args:
            inside: a member that is a tar itself; None for the archive.
        """
        if inside is None:
            return walk_tar(self._read_at, 0, self._size, str(self._path))
        end = inside.offset + inside.size_bytes
        return walk_tar(self._read_at, inside.offset, end, self.where(inside.path))

    def read(self, offset: int, size_bytes: int, where: str) -> bytes:
        """The bytes of a member.

        Raises:
            DataError: they can't be read, or are too many.
        """
        if size_bytes > MAX_FILE_BYTES:
            limit = size_text(MAX_FILE_BYTES)
            raise DataError(f"{where}: {size_text(size_bytes)}; limit {limit}")
        data = self._read_at(offset, size_bytes)
        if len(data) != size_bytes:
            raise DataError(f"archive is cut inside {where}")
        return data

    def where(self, name: str) -> str:
        """ARCHIVE::MEMBER."""
        return f"{self._path}::{shown(name)}"

    def describe(self) -> dict[str, str | int]:
        """The archive's name and size."""
        return {"kind": "tar", "name": self._path.name, "bytes": self._size}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_descriptor": None}

    def _open(self) -> int:
        """The open file; it has no position of its own, so forked children may share it."""
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self._path, os.O_RDONLY)
            except OSError as error:
                raise DataError(f"cannot read {self._path}: {error.strerror}") from error
            weakref.finalize(self, os.close, self._descriptor)
        return self._descriptor

    def _read_at(self, offset: int, size_bytes: int) -> bytes:
        try:
            return os.pread(self._open(), size_bytes, offset)
        except OSError as error:
            raise DataError(f"cannot read {self._path}: {error.strerror}") from error


def walk_tar(read_at: ReadAt, start: int, end: int, where: str) -> Iterator[Member]:
    """The regular files of an archive, in its order; folders are passed over.

    Args:
        read_at: (offset, size) -> bytes, fewer at the end of the file.
        start: first byte of the archive.
        end: behind its last byte.
        where: what messages call it.

    Raises:
        DataError: no tar archive, cut, damaged, or with a member that is no regular file or
            whose path leads out of the archive.
    """
    walk = _Walk(read_at, start, end, where)
    while (header := walk.next_header()) is not None:
        name, size = walk.name, walk.size
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"member refused (path leaves the archive): {name!r} in {where}")
        if header.isdir():
            continue
        if header.type not in _REGULAR:
            kind = _KINDS.get(header.type, f"of type {header.type!r}")
            raise DataError(f"member refused ({kind}, not a regular file): {name!r} in {where}")
        if walk.position + size > end:
            raise DataError(f"archive is cut inside {shown(name)}: {where}", _HINT)
        yield Member(name, size, walk.position, int(header.mtime))
        walk.position += _padded(size)


class _Walk:
    """From header to header.

    Attributes:
        position: of the block that is read next.
        count: headers of members so far.
        name: of the member whose header was read last.
        size: of that member, in bytes.
    """

    def __init__(self, read_at: ReadAt, start: int, end: int, where: str) -> None:
        self.position = start
        self.count = 0
        self.name = ""
        self.size = 0
        self._read_at, self._start, self._end, self._where = read_at, start, end, where

    def next_header(self) -> tarfile.TarInfo | None:
        """The next member's header, what notes before it say taken in; None at the end."""
        long_name, pax = "", {}
        header = self._read_header()
        while header is not None and header.type in _NOTES:
            note = self._read_note(header)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = _text(note.rstrip(b"\0"), self._where)
            elif header.type == tarfile.XHDTYPE:
                pax = _parse_pax(note, self._where)
            header = self._read_header()
        if header is None:
            return None
        self.count += 1
        self.name = pax.get("path") or long_name or header.name
        self.size = _size_of(header, pax, self._where)
        return header

    def _read_header(self) -> tarfile.TarInfo | None:
        block = b""
        if self.position + _BLOCK <= self._end:
            block = self._read_at(self.position, _BLOCK)
        if len(block) < _BLOCK:
            raise self._without_end()
        if not any(block):
            self._check_end()
            return None
        header = _parse(block)
        if header is None:
            if self.position == self._start:
                raise self._no_tar()
            after = f" after {shown(self.name)}" if self.name else ""
            place = self.position - self._start
            raise DataError(f"bad header at byte {place}{after}: {self._where}", _HINT)
        self.position += _BLOCK
        return header

    def _read_note(self, header: tarfile.TarInfo) -> bytes:
        """What a header that is no member says of the next one."""
        if header.size > _MAX_NOTE_BYTES:
            raise DataError(f"member refused (its name has {header.size} bytes): {self._where}")
        note = self._read_at(self.position, header.size)
        if len(note) < header.size or self.position + header.size > self._end:
            raise DataError(f"archive is cut inside {shown(header.name)}: {self._where}", _HINT)
        self.position += _padded(header.size)
        return note

    def _check_end(self) -> None:
        """Two empty blocks end an archive, and nothing but zeros may follow."""
        if self.count == 0:
            raise DataError(f"archive has no members: {self._where}")
        second = self.position + _BLOCK
        if second + _BLOCK > self._end or any(self._read_at(second, _BLOCK)):
            raise self._without_end()
        for place in range(second, self._end, _TAIL_CHUNK_BYTES):
            if any(self._read_at(place, min(_TAIL_CHUNK_BYTES, self._end - place))):
                where = f"{place - self._start}: {self._where}"
                raise DataError(f"archive goes on after its end marker, behind byte {where}")

    def _without_end(self) -> DataError:
        """Of a file that ends where a header should be."""
        if self.position == self._start:
            return self._no_tar()
        members = f"{self.count} member{'' if self.count == 1 else 's'}"
        return DataError(
            f"archive ends without end marker after {members} (truncated?): {self._where}", _HINT
        )

    def _no_tar(self) -> DataError:
        head = self._read_at(self._start, min(8, self._end - self._start))
        what = start_of(head) if head else "empty"
        return DataError(f"not a tar archive ({what}): {self._where}", _HINT)


def _parse(block: bytes) -> tarfile.TarInfo | None:
    """A header, or None when it is none or its checksum is wrong."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None
    return header if header.size >= 0 else None


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _parse_pax(note: bytes, where: str) -> dict[str, str]:
    """'27 path=n01440764/1.JPEG' and so on, one record a line; each tells its own length."""
    records: dict[str, str] = {}
    position = 0
    while position < len(note) and note[position]:
        length, space, _ = note[position : position + 20].partition(b" ")
        if not space or not length.isdigit():
            raise DataError(f"bad pax header: {where}")
        record = note[position + len(length) + 1 : position + int(length)]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise DataError(f"bad pax header: {where}")
        records[_text(key, where)] = _text(value[:-1], where)
        position += int(length)
    if any(key.startswith("GNU.sparse.") for key in records):
        raise DataError(f"member refused (a sparse file, not a regular file): {where}")
    return records


def _size_of(header: tarfile.TarInfo, pax: dict[str, str], where: str) -> int:
    size = pax.get("size", "")
    if not size:
        return header.size
    if not size.isascii() or not size.isdigit() or len(size) > 18:
        raise DataError(f"bad pax header (size {size[:20]!r}): {where}")
    return int(size)


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"member refused (its name is not UTF-8): {data[:80]!r}: {where}"
        ) from error
