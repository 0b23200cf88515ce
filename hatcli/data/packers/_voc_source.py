"""Where the files of a split of PASCAL VOC are: a devkit's folder, or a tar archive of one."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatcli.data.classes import VOC_CLASSES
from hatcli.data.packers._files import Entry, Files, Folder
from hatcli.data.packers._remarks import describe_missing
from hatcli.data.packers._tar import Tar
from hatcli.data.packers._tar_files import TarFiles, members_by_path
from hatcli.errors import DataError, UsageError

TRAINVAL_2007 = "VOCtrainval_06-Nov-2007.tar"
ARCHIVES = {
    ("2007", "train"): TRAINVAL_2007,
    ("2007", "val"): TRAINVAL_2007,
    ("2007", "trainval"): TRAINVAL_2007,
    ("2007", "test"): "VOCtest_06-Nov-2007.tar",
    ("2012", "train"): "VOCtrainval_11-May-2012.tar",
    ("2012", "val"): "VOCtrainval_11-May-2012.tar",
    ("2012", "trainval"): "VOCtrainval_11-May-2012.tar",
}
LISTS = {"detection": "ImageSets/Main/", "segmentation": "ImageSets/Segmentation/"}
IMAGES = ("JPEGImages", "jpg")

_DOWNLOADS = "http://host.robots.ox.ac.uk/pascal/VOC/"
_MAX_LIST_BYTES = 2**24
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class VocSplit:
    """The files of a split, looked through and paired; it can be pickled.

    Attributes:
        files: of the folder that holds JPEGImages and the others.
        names: '000005' and so on, in the order of the split's list.
        entries: for each kind such as "JPEGImages", the file of each name.
    """

    year: str
    split: str
    files: Files
    names: list[str]
    entries: Mapping[str, list[Entry]]

    def stamps(self) -> list[str]:
        """What tells one version of each sample from another."""
        rows = zip(*self.entries.values(), strict=True)
        return [
            f"{name} {' '.join(entry.stamp for entry in row)}"
            for name, row in zip(self.names, rows, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """What the metadata says of the source; no path, no time."""
        digest = hashlib.sha256()
        for name, row in zip(self.names, zip(*self.entries.values(), strict=True), strict=True):
            digest.update(f"{name} {' '.join(entry.content for entry in row)}\n".encode())
        return {
            "files": self.files.describe(),
            "year": self.year,
            "members": len(self.names),
            "fingerprint": digest.hexdigest(),
        }

    def size_bytes(self) -> int:
        """All files together."""
        return sum(entry.size_bytes for row in self.entries.values() for entry in row)

    def read(self, kind: str, index: int) -> tuple[bytes, str]:
        """One file of a sample, and what messages call it."""
        name = self.entries[kind][index].name
        return self.files.read(name), self.files.where(name)


def find_split(
    source_dir: Path, year: str, split: str, task: str, kinds: Iterable[tuple[str, str]]
) -> VocSplit:
    """Look through the source of a split; its images aren't read.

    Args:
        source_dir: holds VOCdevkit/VOC<year> or VOC<year>, is that folder, or holds an archive.
        year: "2007" or "2012".
        split: of which there is a list; "test" of 2012 has no published labels.
        task: whose lists are read, one of `LISTS`.
        kinds: (folder, ending) of the files that each sample has besides its image.

    Raises:
        UsageError: it isn't there.
        DataError: an archive is damaged, or files are missing.
    """
    list_name = f"{LISTS[task]}{split}.txt"
    files = _find_files(source_dir, year, split, list_name)
    names = _read_list(files, list_name)
    entries = {kind: _entries(files, names, kind, ending) for kind, ending in (IMAGES, *kinds)}
    return VocSplit(year, split, files, names, entries)


def _find_files(source_dir: Path, year: str, split: str, list_name: str) -> Files:
    """The devkit that has the list of the split: a folder, else an archive."""
    lacking = f"no VOCdevkit/VOC{year}/ and no archive of it"
    if not source_dir.is_dir():
        raise _missing(describe_missing(source_dir, lacking), year, split)
    inside = [source_dir / "VOCdevkit" / f"VOC{year}", source_dir / f"VOC{year}"]
    folders = [*inside, *([source_dir] if source_dir.name == f"VOC{year}" else [])]
    devkits: list[Files] = [Folder(folder) for folder in folders if folder.is_dir()]
    devkits = devkits or list(_in_archives(source_dir, year, ARCHIVES.get((year, split), "")))
    for devkit in devkits:
        if any(entry.name == list_name for entry in devkit.under(list_name.rpartition("/")[0])):
            return devkit
    if not devkits:
        raise _missing(describe_missing(source_dir, lacking), year, split)
    splits = sorted({name for devkit in devkits for name in _splits(devkit, list_name)})
    offered = f"; choose {', '.join(splits)}" if splits else ""
    what = f"split {split!r} unknown{offered} (no {list_name} in {devkits[0].where('')})"
    raise _missing(what, year, split)


def _in_archives(source_dir: Path, year: str, published: str) -> Iterator[Files]:
    """The devkits in the published archive, else in all whose names hold 'voc'."""
    named = [path for path in source_dir.glob("*.tar") if "voc" in path.name.lower()]
    for path in sorted(named, key=lambda path: (path.name != published, path.name)):
        tar = Tar(path)
        members = members_by_path(tar)
        places = (re.match(rf"((?:.*/)?VOC{year}/)(ImageSets/)", name) for name in members)
        roots = sorted({place[1] for place in places if place})
        if len(roots) > 1:
            raise DataError(f"{path}: holds VOC{year} twice: {', '.join(roots)}")
        if roots:
            yield TarFiles(tar, roots[0], members)
        if roots and path.name == published:
            return


def _splits(devkit: Files, list_name: str) -> Iterator[str]:
    """The splits that have a list; those of single classes are left out."""
    folder = list_name.rpartition("/")[0] + "/"
    for entry in devkit.under(folder):
        name = entry.name.removeprefix(folder).removesuffix(".txt")
        if "/" not in name and not ("_" in name and name.partition("_")[0] in VOC_CLASSES):
            yield name


def _missing(what: str, year: str, split: str) -> UsageError:
    if (year, split) == ("2012", "test"):
        hint = "the labels of VOC2012's test split aren't published; val is what is scored"
    else:
        archive = ARCHIVES.get((year, split), ARCHIVES[year, "train"])
        hint = f"needed is {archive}, or what is in it, from\n      {_DOWNLOADS}voc{year}/"
    return UsageError(what, hint)


def _read_list(files: Files, list_name: str) -> list[str]:
    """The names of a split, in the order of its list.

    Raises:
        UsageError: there are none.
        DataError: a line is no name, or one stands there twice.
    """
    where = files.where(list_name)
    try:
        text = files.read(list_name, _MAX_LIST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not a list of names ({error.reason})") from error
    names: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.strip()
        if not name:
            continue
        if not _NAME.fullmatch(name):
            raise DataError(f"{where}: line {number} is no name of an image: {line[:80]!r}")
        if name in names:
            raise DataError(
                f"duplicate sample name: {name} on lines {names[name]} and {number}: {where}"
            )
        names[name] = number
    if not names:
        raise UsageError(f"no names of images in {where}")
    return list(names)


def _entries(files: Files, names: list[str], kind: str, ending: str) -> list[Entry]:
    """The file of each name.

    Raises:
        DataError: some have none.
    """
    found = {entry.name: entry for entry in files.under(f"{kind}/")}
    paths = [f"{kind}/{name}.{ending}" for name in names]
    alone = [files.where(path) for path in paths if path not in found]
    if alone:
        raise DataError(
            f"{len(alone)} of {len(names)} samples have no {kind}/*.{ending}, "
            f"first: {', '.join(alone[:5])}"
        )
    return [found[path] for path in paths]
