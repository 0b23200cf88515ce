"""Files of a raw dataset in a tar archive that is read in place."""

from collections.abc import Iterator, Mapping

from hatcli.data.packers._files import MAX_FILE_BYTES, Entry
from hatcli.data.packers._members import Member
from hatcli.data.packers._tar import Tar
from hatcli.disk import size_text
from hatcli.errors import DataError


class TarFiles:
    """The members below one folder of a tar archive, by their paths in it; it can be pickled.

    Args:
        tar: the archive.
        root: path of the folder in the archive, with a slash at its end.
        members: those of the archive that are wanted, in any order.

    Raises:
        DataError: two members have one path.
    """

    def __init__(self, tar: Tar, root: str, members: Mapping[str, Member]) -> None:
        self._tar, self._root = tar, root
        self._members = {
            path.removeprefix(root): member
            for path, member in members.items()
            if path.startswith(root)
        }

    def under(self, prefix: str) -> Iterator[Entry]:
        """The files whose path starts with a prefix, in any order; hidden ones are left out."""
        for name, member in self._members.items():
            if name.startswith(prefix) and "/." not in f"/{name}":
                size = member.size_bytes
                yield Entry(name, size, f"{size}", f"{size} {member.mtime}")

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """The whole member."""
        member, where = self._members[name], self.where(name)
        if member.size_bytes > max_bytes:
            sizes = f"{size_text(member.size_bytes)}; limit {size_text(max_bytes)}"
            raise DataError(f"{where}: {sizes}")
        return self._tar.read(member.offset, member.size_bytes, where)

    def where(self, name: str) -> str:
        """ARCHIVE::MEMBER."""
        return self._tar.where(self._root + name)

    def describe(self) -> dict[str, str | int]:
        """The archive's name and size."""
        return self._tar.describe()


def members_by_path(tar: Tar) -> dict[str, Member]:
    """All regular files of an archive; a leading './' is left out of their paths.

    Raises:
        DataError: it is damaged, or two members have one path.
    """
    members: dict[str, Member] = {}
    for member in tar.members():
        path = member.path.removeprefix("./")
        if members.setdefault(path, member) is not member:
            raise DataError(f"{tar.where(member.path)}: archive has two members of this name")
    return members
