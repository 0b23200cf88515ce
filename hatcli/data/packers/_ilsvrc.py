"""The development kit of ILSVRC2012: which classes there are, and those of the validation images.

A class has three names: its WordNet id (n01440764), its ILSVRC2012_ID (1 to 1000, in no useful
order), and its index, which is what networks are trained on: the place of its WordNet id among
the sorted ids of all classes that have no classes below them.
"""

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from hatcli.data.packers._files import shown
from hatcli.data.packers._matlab import read_records
from hatcli.data.packers._tar import walk_tar
from hatcli.errors import DataError

DEVKIT = "ILSVRC2012_devkit_t12"
DEVKIT_ARCHIVE = f"{DEVKIT}.tar.gz"
WNID = re.compile(r"n\d{8}")

_META, _TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
_MAX_BYTES = 64 * 2**20  # of the unpacked kit; the published one has 3 MB
_FIELDS = ("ILSVRC2012_ID", "WNID", "words", "num_children")
_MAX_CLASSES = 2**16
_HINT = f"download {DEVKIT_ARCHIVE} again"


class Classes(NamedTuple):
    """The classes in the order of their indexes.

    Attributes:
        wnids: WordNet ids, sorted; of them, and so of the indexes, `origin` tells the source.
        words: all names of each class, e.g. "tench, Tinca tinca".
        ids: the ILSVRC2012_ID of each; empty without a development kit.
        origin: where they are from.
    """

    wnids: tuple[str, ...]
    words: tuple[str, ...]
    ids: tuple[int, ...]
    origin: str

    def short_names(self) -> list[str]:
        """The first name of each, with the WordNet id where two classes share it."""
        names = [words.partition(",")[0].strip() for words in self.words]
        known = Counter(names)
        return [
            name if known[name] == 1 else f"{name} {wnid}".strip()
            for name, wnid in zip(names, self.wnids, strict=True)
        ]


class Devkit:
    """The development kit, as it was downloaded or unpacked.

    Args:
        where: what messages call it.
        read: the bytes of one of its files, by its path; None when there is no such file.
    """

    def __init__(self, where: str, read: Callable[[str], bytes | None]) -> None:
        self.where = where
        self._read = read

    def classes(self) -> Classes:
        """The classes that have no classes below them.

        Raises:
            DataError: the kit is damaged or contradicts itself.
        """
        where = f"{self.where}::{_META}"
        records = read_records(self._need(_META), where, "synsets", _FIELDS)
        leaves = [record for record in records if record["num_children"] == 0]
        leaves.sort(key=lambda record: str(record["WNID"]))
        wnids = tuple(str(record["WNID"]) for record in leaves)
        ids = tuple(_as_id(record["ILSVRC2012_ID"], where) for record in leaves)
        bad = [wnid for wnid in wnids if not WNID.fullmatch(wnid)]
        if bad:
            raise DataError(f"{bad[0]!r} is no WordNet id: {where}")
        if not wnids or len(wnids) > _MAX_CLASSES:
            raise DataError(f"{len(wnids)} classes: {where}")
        for values in (wnids, ids):
            value, times = Counter[object](values).most_common(1)[0]
            if times > 1:
                raise DataError(f"{value} stands for {times} classes: {where}")
        return Classes(wnids, tuple(str(record["words"]) for record in leaves), ids, "devkit")

    def validation_labels(self, classes: Classes) -> list[int]:
        """The class index of each validation image, in the order of their numbers.

        Raises:
            DataError: the kit is damaged or contradicts itself.
        """
        where = f"{self.where}::{_TRUTH}"
        index_of = {str(number): index for index, number in enumerate(classes.ids)}
        labels = []
        for place, line in enumerate(self._need(_TRUTH).split(b"\n"), 1):
            text = line.decode("latin-1").strip()
            if text in index_of:
                labels.append(index_of[text])
            elif text or place == 1:
                raise DataError(f"line {place} is the id of no class ({text[:20]!r}): {where}")
        return labels

    def _need(self, path: str) -> bytes:
        data = self._read(path)
        if data is None:
            raise DataError(f"no {path} in {self.where}", _HINT)
        return data


def find_devkit(source_dir: Path) -> Devkit | None:
    """The development kit in a folder: its archive, or its folder; None without.

    Raises:
        DataError: the archive is damaged.
    """
    archive, folder = source_dir / DEVKIT_ARCHIVE, source_dir / DEVKIT
    if archive.is_file():
        files = _unpack(archive)
        return Devkit(str(archive), files.get)
    if folder.is_dir():
        return Devkit(str(folder), lambda path: _read_file(folder / path))
    return None


def classes_of_folders(wnids: Sequence[str], origin: str) -> Classes:
    """The classes of a source without a development kit."""
    return Classes(tuple(sorted(wnids)), tuple(sorted(wnids)), (), origin)


def _unpack(archive: Path) -> dict[str, bytes]:
    """The two files that matter, by their path in the kit; in memory."""
    try:
        with gzip.open(archive) as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: not a whole gzip archive ({error})", _HINT) from error
    if len(data) > _MAX_BYTES:
        raise DataError(f"{archive}: refused, unpacks to more than {_MAX_BYTES} bytes")
    members = walk_tar(
        lambda offset, size: data[offset : offset + size], 0, len(data), str(archive)
    )
    files: dict[str, bytes] = {}
    for member in members:
        path = next(
            (path for path in (_META, _TRUTH) if f"/{member.path}".endswith("/" + path)), ""
        )
        if path in files:
            raise DataError(
                f"{archive}::{shown(member.path)}: archive has two members of this name"
            )
        if path:
            files[path] = data[member.offset : member.offset + member.size_bytes]
    return files


def _read_file(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _as_id(number: float | str, where: str) -> int:
    if isinstance(number, str) or not 0 <= number < 2**31 or number != int(number):
        raise DataError(f"{number!r} is no ILSVRC2012_ID: {where}")
    return int(number)
