"""Where the images of a large dataset are: a million of them in some tens of megabytes."""

from array import array
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, overload

from hatcli.data.packers._files import MAX_FILE_BYTES, shown
from hatcli.data.packers._on_demand import OnDemand
from hatcli.disk import size_text
from hatcli.errors import DataError


class Member(NamedTuple):
    """One image file.

    Attributes:
        path: in its folder or archive, with slashes.
        offset: of its first byte in its archive; 0 in a folder.
        mtime: when it was changed, in whatever unit the source has; only compared.
        label: index of its class.
    """

    path: str
    size_bytes: int
    offset: int
    mtime: int
    label: int = 0


class Members(Sequence[Member]):
    """Image files by number, in 34 bytes each and their file names; they can be pickled."""

    def __init__(self) -> None:
        self._folders: list[str] = []
        self._folder_numbers: dict[str, int] = {}
        self._folder_of = array("I")
        self._names = bytearray()  # in their folders, one behind the other
        self._ends = array("Q")  # of each in `_names`
        self._sizes = array("I")
        self._offsets = array("Q")
        self._mtimes = array("Q")
        self._labels = array("H")

    def append(self, member: Member) -> None:
        """Add a file at the end.

        Raises:
            DataError: it is too large, or its path can't be stored.
        """
        if member.size_bytes > MAX_FILE_BYTES:
            sizes = f"{size_text(member.size_bytes)}; limit {size_text(MAX_FILE_BYTES)}"
            raise DataError(f"{shown(member.path)}: {sizes}")
        folder, slash, name = member.path.rpartition("/")
        try:
            self._names += name.encode()
            folder.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"file name is not UTF-8: {member.path!r}") from error
        number = self._folder_numbers.setdefault(folder + slash, len(self._folders))
        if number == len(self._folders):
            self._folders.append(folder + slash)
        self._folder_of.append(number)
        self._ends.append(len(self._names))
        self._sizes.append(member.size_bytes)
        self._offsets.append(member.offset)
        self._mtimes.append(member.mtime % 2**64)  # foreign archives may claim any time
        self._labels.append(member.label)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Member: ...

    @overload
    def __getitem__(self, index: slice) -> list[Member]: ...

    def __getitem__(self, index: int | slice) -> Member | list[Member]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # counts from the end as well, or raises IndexError
        start = self._ends[place - 1] if place else 0
        name = self._names[start : self._ends[place]].decode()
        return Member(
            self._folders[self._folder_of[place]] + name,
            self._sizes[place],
            self._offsets[place],
            self._mtimes[place],
            self._labels[place],
        )

    def total_bytes(self) -> int:
        """The sizes of all files together."""
        return sum(self._sizes)

    def count_labels(self, num_classes: int) -> list[int]:
        """The number of files of each class."""
        counts = [0] * num_classes
        for label in self._labels:
            counts[label] += 1
        return counts


def stamps_of(members: Members) -> Sequence[str]:
    """What tells one version of each file from another; made when it is asked for."""
    return OnDemand(range(len(members)), partial(_stamp, members))


def _stamp(members: Members, index: int) -> str:
    path, size_bytes, _, mtime, label = members[index]
    return f"{path} {label} {size_bytes} {mtime}"
