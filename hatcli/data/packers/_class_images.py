"""Image files sorted into class folders, or into an archive of class archives, and loose ones."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from hatcli.data.packers._files import Folder, shown
from hatcli.data.packers._members import Member
from hatcli.data.packers._tar import Tar
from hatcli.errors import DataError

IMAGE = re.compile(r".+\.(jpe?g|png)", re.IGNORECASE | re.DOTALL)


class ClassImages(Protocol):
    """The images of one split; it can be pickled.

    Attributes:
        others: files that were passed over, each as messages name it.
    """

    others: list[str]

    def class_names(self) -> list[str]:
        """The names of the class folders or archives, sorted; what isn't one is passed over."""
        ...

    def images(self, class_name: str = "") -> Iterator[Member]:
        """The images of one class, in any order, or those without; other files are passed over."""
        ...

    def read(self, member: Member) -> bytes:
        """The whole file.

        Raises:
            DataError: it can't be read.
        """
        ...

    def where(self, path: str) -> str:
        """A file as messages name it."""
        ...

    def describe(self) -> dict[str, str | int]:
        """What metadata says of this place; no path, no time."""
        ...


class ClassFolders:
    """A folder of class folders.

    Args:
        root: the folder.
        class_name: the names that class folders have.
    """

    def __init__(self, root: Path, class_name: re.Pattern[str]) -> None:
        self.others: list[str] = []
        self._root, self._class_name = root, class_name
        self._folder = Folder(root)

    def class_names(self) -> list[str]:
        """The names of the class folders, sorted."""
        names = []
        for name, status in self._scan(""):
            if stat.S_ISDIR(status.st_mode) and self._class_name.fullmatch(name):
                names.append(name)
            elif stat.S_ISDIR(status.st_mode):
                self.others.append(self.where(name))
        return sorted(names)

    def images(self, class_name: str = "") -> Iterator[Member]:
        """The images right in a class folder, or right in the root."""
        prefix = f"{class_name}/" if class_name else ""
        for name, status in self._scan(class_name):
            if stat.S_ISREG(status.st_mode) and IMAGE.fullmatch(name):
                yield Member(prefix + name, status.st_size, 0, status.st_mtime_ns)
            elif class_name or not stat.S_ISDIR(status.st_mode):
                self.others.append(self.where(prefix + name))

    def read(self, member: Member) -> bytes:
        """The whole file."""
        return self._folder.read(member.path)

    def where(self, path: str) -> str:
        """The file's path."""
        return self._folder.where(path)

    def describe(self) -> dict[str, str | int]:
        """That it is a folder."""
        return self._folder.describe()

    def _scan(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        """The names in a folder that aren't hidden, and what they are; links are followed."""
        try:
            with os.scandir(self._root / folder) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        yield entry.name, entry.stat()
        except OSError as error:
            where = shown(str(error.filename))
            raise DataError(f"cannot read {where}: {error.strerror}") from error


class ClassTars:
    """A tar archive of class archives, or of images.

    Args:
        path: of the archive.
        class_archive: the paths that class archives have in it; group 1 is the class's name.
    """

    def __init__(self, path: Path, class_archive: re.Pattern[str]) -> None:
        self.others: list[str] = []
        self._tar = Tar(path)
        self._class_archive = class_archive
        self._archives: dict[str, Member] = {}

    def class_names(self) -> list[str]:
        """The names of the classes that have an archive, sorted."""
        for member in self._tar.members():
            match = self._class_archive.fullmatch(member.path)
            if match is None:
                if not IMAGE.fullmatch(member.path):
                    self._pass_over(member.path)
            elif match[1] in self._archives:
                where = self._tar.where(member.path)
                raise DataError(f"{where}: archive has two members of this name")
            else:
                self._archives[match[1]] = member
        return sorted(self._archives)

    def images(self, class_name: str = "") -> Iterator[Member]:
        """The images of a class archive, or those right in the whole one."""
        inside = self._archives[class_name] if class_name else None
        prefix = f"{inside.path}/" if inside else ""
        for member in self._tar.members(inside):
            if IMAGE.fullmatch(member.path):
                yield member._replace(path=prefix + member.path)
            elif inside:
                self._pass_over(prefix + member.path)

    def read(self, member: Member) -> bytes:
        """The whole member."""
        where = self.where(member.path)
        return self._tar.read(member.offset, member.size_bytes, where)

    def where(self, path: str) -> str:
        """ARCHIVE::MEMBER."""
        return self._tar.where(path)

    def describe(self) -> dict[str, str | int]:
        """The archive's name and size."""
        return self._tar.describe()

    def _pass_over(self, path: str) -> None:
        if not path.rpartition("/")[2].startswith("."):
            self.others.append(self._tar.where(path))
