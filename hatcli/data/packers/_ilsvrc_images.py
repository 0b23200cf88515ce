"""Where the images of a split of ILSVRC2012 are, and of which class each is."""

import bisect
import itertools
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from hatcli.data.packers._class_images import ClassFolders, ClassImages, ClassTars
from hatcli.data.packers._ilsvrc import (
    DEVKIT_ARCHIVE,
    WNID,
    Classes,
    Devkit,
    classes_of_folders,
    find_devkit,
)
from hatcli.data.packers._members import Member, Members
from hatcli.data.packers._remarks import describe_missing
from hatcli.errors import DataError, UsageError

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}

_DOWNLOADS = "https://image-net.org/download-images"
_CLASS_ARCHIVE = re.compile(r"(?:.*/)?(n\d{8})\.tar")
_WANTED = {"train": "nXXXXXXXX/*.JPEG", "val": "ILSVRC2012_val_*.JPEG or nXXXXXXXX/*.JPEG"}
_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")


class Found(NamedTuple):
    """A split that was looked through.

    Attributes:
        files: where the images are read.
        members: the images in pack order: by class and name in train, by name in val.
        classes: of the whole dataset, those without images too.
    """

    files: ClassImages
    members: Members
    classes: Classes


def find_images(source_dir: Path, split: str) -> Found:
    """Look through the source of a split; images aren't read.

    Raises:
        UsageError: it isn't there.
        DataError: an archive is damaged, or images and classes don't fit together.
    """
    files = _open(source_dir, split)
    devkit = find_devkit(source_dir)
    names = files.class_names()
    if names:
        classes, groups = _in_classes(source_dir, split, files, devkit, names)
    elif split == "val":
        classes, groups = _loose(source_dir, files, devkit)
    else:
        raise UsageError(f"no images {_WANTED[split]} in {files.where('')}")
    members = Members()
    for group in groups:
        _add(members, group, files, split)
    if not len(members):
        raise UsageError(f"no images {_WANTED[split]} in {files.where('')}")
    return Found(files, members, classes)


def name_sample(path: str, split: str) -> str:
    """'n01440764_10026', 'ILSVRC2012_val_00000001'; other names are preceded by their class."""
    folder, _, file_name = path.rpartition("/")
    stem = file_name.rpartition(".")[0]
    wnid = WNID.search(folder)
    if wnid is None or stem.startswith(f"{wnid[0]}_"):
        return stem
    return stem if split == "val" and _NUMBERED.fullmatch(stem) else f"{wnid[0]}/{stem}"


def _open(source_dir: Path, split: str) -> ClassImages:
    """Where a split is: the folder, else the archive."""
    folder, archive = source_dir / split, source_dir / ARCHIVES[split]
    if folder.is_dir():
        return ClassFolders(folder, WNID)
    if archive.is_file():
        return ClassTars(archive, _CLASS_ARCHIVE)
    raise UsageError(
        describe_missing(source_dir, f"no {split}/ and no {archive.name}"),
        f"needed are {ARCHIVES['train']}, {ARCHIVES['val']} and {DEVKIT_ARCHIVE}, free after a "
        f"registration at\n      {_DOWNLOADS}, or their images in folders {split}/nXXXXXXXX/",
    )


def _in_classes(
    source_dir: Path, split: str, files: ClassImages, devkit: Devkit | None, names: list[str]
) -> tuple[Classes, list[Iterable[Member]]]:
    """The classes, and the images in class folders or archives."""
    loose = next(files.images(), None)
    if loose is not None:
        raise DataError(f"an image outside the class folders: {files.where(loose.path)}")
    classes = _choose_classes(source_dir, split, devkit, names)
    groups: list[Iterable[Member]] = [_of_class(files, name, classes) for name in names]
    if split == "val":  # in the order of the numbers, as it is in the archive
        groups = [itertools.chain.from_iterable(groups)]
    return classes, groups


def _loose(
    source_dir: Path, files: ClassImages, devkit: Devkit | None
) -> tuple[Classes, list[Iterable[Member]]]:
    """The classes, and the validation images, whose classes the development kit tells."""
    if devkit is None:
        raise UsageError(
            f"without class folders, the validation images need {DEVKIT_ARCHIVE}, "
            f"which isn't in {source_dir}",
            f"it is on {_DOWNLOADS}",
        )
    classes = devkit.classes()
    return classes, [_numbered(files, devkit.validation_labels(classes))]


def _choose_classes(
    source_dir: Path, split: str, devkit: Devkit | None, names: list[str]
) -> Classes:
    """All classes: those of the development kit, else those that train has, else those here."""
    if devkit is not None:
        return devkit.classes()
    train = [source_dir / "train", source_dir / ARCHIVES["train"]]
    if split == "val" and any(path.exists() for path in train):
        return classes_of_folders(_open(source_dir, "train").class_names(), "train")
    return classes_of_folders(names, split)


def _of_class(files: ClassImages, name: str, classes: Classes) -> Iterator[Member]:
    """The images of a class, with its index.

    Raises:
        DataError: there is no such class.
    """
    place = bisect.bisect_left(classes.wnids, name)
    if place == len(classes.wnids) or classes.wnids[place] != name:
        raise DataError(f"{name} is no class of {classes.origin}: {files.where('')}")
    for member in files.images(name):
        yield member._replace(label=place)


def _numbered(files: ClassImages, labels: list[int]) -> Iterator[Member]:
    """The validation images with the class that the ground truth says.

    Raises:
        DataError: there are others, or another number, than the ground truth has.
    """
    found: list[tuple[int, Member]] = []
    for member in files.images():
        match = _NUMBERED.fullmatch(name_sample(member.path, "val"))
        if match is None:
            files.others.append(files.where(member.path))
        else:
            found.append((int(match[1]), member))
    if len(found) != len(labels):
        counts = f"{len(labels)} labels for {len(found)} images"
        raise DataError(f"ground truth has {counts}: {files.where('')}")
    missing = set(range(1, len(labels) + 1)) - {number for number, _ in found}
    if missing:
        name = f"ILSVRC2012_val_{min(missing):08d}"
        raise DataError(f"no image {name}, but one with another number: {files.where('')}")
    for number, member in found:
        yield member._replace(label=labels[number - 1])


def _add(members: Members, group: Iterable[Member], files: ClassImages, split: str) -> None:
    """Take images, sorted by name.

    Raises:
        DataError: two have one name.
    """
    named = sorted((name_sample(member.path, split), member) for member in group)
    for (name, one), (next_name, other) in pairwise(named):
        if name == next_name:
            both = f"{files.where(one.path)} and {files.where(other.path)}"
            raise DataError(f"duplicate sample name: {both}")
    for _, member in named:
        members.append(member)
