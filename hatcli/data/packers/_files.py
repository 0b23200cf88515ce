"""Files of a raw dataset, in a folder or in a zip archive that is read in place."""

import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from hatcli.disk import size_text
from hatcli.errors import DataError, start_of

MAX_FILE_BYTES = 256 * 2**20
MAX_ZIP_RATIO = 200  # pictures hardly shrink; a bomb does by 1000
_BOMB_BYTES = 16 * 2**20  # smaller members may shrink as they like

_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,  # an encrypted member; NotImplementedError, an unknown compression
    ValueError,
)


class Entry(NamedTuple):
    """One file.

    Attributes:
        name: path inside the dataset, with slashes.
        content: its size, and its checksum where that is known without reading.
        stamp: differs when the file was changed; for folders by its time.
    """

    name: str
    size_bytes: int
    content: str
    stamp: str


class Files(Protocol):
    """Where the files of a dataset are; it can be pickled."""

    def under(self, prefix: str) -> Iterator[Entry]:
        """The files whose path starts with a prefix such as 'gtFine/train/', in any order."""
        ...

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """The whole file.

        Raises:
            DataError: it can't be read, or is too large.
        """
        ...

    def where(self, name: str) -> str:
        """The file as messages name it."""
        ...

    def describe(self) -> dict[str, str | int]:
        """What metadata says of this place; no path, no time."""
        ...


class Folder:
    """Files under a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def under(self, prefix: str) -> Iterator[Entry]:
        """The files below a folder, in any order; none if it isn't there. No hidden ones."""
        if not (self._root / prefix).exists():
            return
        try:
            for folder, folders, names in os.walk(
                self._root / prefix, onerror=_raise, followlinks=True
            ):
                folders[:] = [name for name in folders if not name.startswith(".")]
                for name in names:
                    if not name.startswith("."):
                        yield self._entry(Path(folder) / name)
        except OSError as error:
            where = shown(str(error.filename))
            raise DataError(f"cannot read {where}: {error.strerror}") from error

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """The whole file."""
        try:
            with (self._root / name).open("rb") as file:
                # No more than is there, since so many bytes are allocated.
                data = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
        except OSError as error:
            raise DataError(f"cannot read {self.where(name)}: {error.strerror}") from error
        return _not_too_large(data, self.where(name), max_bytes)

    def where(self, name: str) -> str:
        """The file's path."""
        return shown(str(self._root / name))

    def describe(self) -> dict[str, str | int]:
        """That it is a folder."""
        return {"kind": "folder"}

    def _entry(self, path: Path) -> Entry:
        status = path.stat()
        size = status.st_size
        name = path.relative_to(self._root).as_posix()
        return Entry(name, size, f"{size}", f"{size} {status.st_mtime_ns}")


class Archive:
    """Members of a zip archive; nothing is ever extracted.

    Raises:
        DataError: it isn't a zip archive, is cut, or names one member twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        self._open()

    def under(self, prefix: str) -> Iterator[Entry]:
        """The members whose path starts with a prefix, in any order; hidden ones are left out."""
        for member in self._open().infolist():
            name = member.filename
            if name.startswith(prefix) and not name.endswith("/") and "/." not in name:
                content = f"{member.file_size} {member.CRC:08x}"
                yield Entry(name, member.file_size, content, content)

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """The whole member; its checksum is compared."""
        archive = self._open()
        member = archive.getinfo(name)
        self._check(member, max_bytes)
        try:
            with archive.open(member) as file:
                data = file.read(member.file_size + 1)
        except _ZIP_ERRORS as error:
            raise DataError(f"{self.where(name)}: damaged archive member ({error})") from error
        if len(data) != member.file_size:
            sizes = f"{len(data)} of {member.file_size} bytes"
            raise DataError(f"{self.where(name)}: damaged archive member ({sizes})")
        return data

    def where(self, name: str) -> str:
        """ARCHIVE::MEMBER."""
        return f"{self._path}::{shown(name)}"

    def describe(self) -> dict[str, str | int]:
        """The archive's name and size."""
        return {"kind": "zip", "name": self._path.name, "bytes": self._path.stat().st_size}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}

    def _open(self) -> zipfile.ZipFile:
        """This process's own open archive; file positions can't be shared."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                archive = zipfile.ZipFile(self._path)
            except _ZIP_ERRORS as error:
                raise DataError(f"{self._path}: {_what_instead_of_zip(self._path)}") from error
            if len(archive.namelist()) != len(archive.NameToInfo):
                names = archive.namelist()
                twice = next(name for name in names if names.count(name) > 1)
                raise DataError(f"{self.where(twice)}: archive has two members of this name")
            self._opened = (os.getpid(), archive)
        return self._opened[1]

    def _check(self, member: zipfile.ZipInfo, max_bytes: int) -> None:
        where, size = self.where(member.filename), member.file_size
        if member.flag_bits & 1:
            raise DataError(f"{where}: member is encrypted")
        if size > max_bytes:
            raise DataError(f"{where}: {size_text(size)}; limit {size_text(max_bytes)}")
        if size > _BOMB_BYTES and size > MAX_ZIP_RATIO * member.compress_size:
            sizes = f"{size_text(size)} from {size_text(member.compress_size)}"
            raise DataError(f"{where}: refused, {sizes} (possible bomb)")


def _raise(error: OSError) -> None:
    """For os.walk, which passes over folders that it can't read unless told."""
    raise error


def _not_too_large(data: bytes, where: str, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise DataError(f"{where}: file is larger than {size_text(max_bytes)}")
    return data


def _what_instead_of_zip(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if head.startswith(b"PK"):
        return "zip archive is cut or damaged; download it again"
    return f"not a zip archive ({start_of(head)})" if head else "not a zip archive (empty)"


def shown(name: str) -> str:
    """A foreign name, safe to print."""
    return name if name.isprintable() else repr(name)
