"""Cityscapes: street scenes with a class at each pixel, from its folders or its two archives."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from hatcli.data.classes import CITYSCAPES, CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, IGNORE
from hatcli.data.packers import PACKERS, Made
from hatcli.data.packers._files import Archive, Entry, Files, Folder
from hatcli.data.packers._images import (
    MAX_PIXELS,
    describe_image_fields,
    parse_image_format,
    read_label_png,
    take_image,
)
from hatcli.data.packers._remarks import compare_number, describe_missing, find_turned
from hatcli.data.packers._totals import section
from hatcli.errors import DataError, UsageError

OFFICIAL_LENGTHS = {"train": 2975, "val": 500, "test": 1525}
IMAGES, LABELS = "leftImg8bit", "gtFine"
ARCHIVES = {IMAGES: "leftImg8bit_trainvaltest.zip", LABELS: "gtFine_trainvaltest.zip"}

_DOWNLOADS = "https://www.cityscapes-dataset.com/downloads/"
_TRAIN_ID_OF = {label.id: label.train_id for label in CITYSCAPES if label.id >= 0}
_SAME_ID = {index: index for index in (*range(len(CITYSCAPES_CLASSES)), IGNORE)}
_RAW_IMAGE_BYTES = 3 * 2048 * 1024
_INSTANCE_STEP = 1000  # an object's value in instanceIds is its class times this + its number
_INSTANCE_FIELD = {"type": "ndarray", "dtype": "<u2", "codec": "zstd", "required": True}
_TRAIN_IDS_ARE_MADE = "labelIds will do: packing makes train ids of them; leave --labels out"
_LABEL_SHARE = 60  # part of an image's bytes that a compressed label takes


class _Frame(NamedTuple):
    """One image, its label and its instances.

    Attributes:
        label: None where the split is published without.
        instance: None where they weren't asked for.
    """

    name: str
    image: Entry
    label: Entry | None
    instance: Entry | None

    def entries(self) -> list[Entry]:
        """The files that are there."""
        return [entry for entry in (self.image, self.label, self.instance) if entry]


@PACKERS.register
def cityscapes(
    source_dir: Path,
    split: str,
    *,
    labels: Literal["labelIds", "labelTrainIds"] = "labelIds",
    instances: bool = False,
    image_format: str = "source",
    check: Literal["decode", "header", "none"] = "decode",
    allow_16bit: bool = False,
    apply_exif: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> "Cityscapes":
    """Street scenes with 19 classes: leftImg8bit and gtFine, as folders or as published zips.

    Args:
        source_dir: holds leftImg8bit/ and gtFine/, or their archives; a mix is fine.
        split: train, val or test.
        labels: which label files are read; labelIds, mapped to train ids, unless given.
        instances: pack the maps of single objects (instanceIds) as well.
        image_format: what is stored: source (the images' bytes) unless given, raw (pixels; large
            and fast), strips (lossless; about as large as PNG, fast), or jpeg:Q (lossy, of
            quality Q).
        check: how far each image is looked at; decode unless given. Labels are always decoded.
        allow_16bit: take images of 16 bits a channel, of which 8 are kept.
        apply_exif: turn images as their EXIF says; labels have to fit the turned image.
        max_pixels: larger images are refused; 100 million unless given.

    Raises:
        UsageError: the source or the split isn't there.
        DataError: images and labels don't pair up, or an archive is damaged.
    """
    if split not in OFFICIAL_LENGTHS:
        raise UsageError(f"split {split!r} unknown; choose {', '.join(OFFICIAL_LENGTHS)}")
    parse_image_format(image_format)
    options = {
        "labels": labels,
        "instances": instances,
        "image_format": image_format,
        "check": check,
        "allow_16bit": allow_16bit,
        "apply_exif": apply_exif,
        "max_pixels": max_pixels,
    }
    images = _find(source_dir, IMAGES, split)
    without_labels = split == "test" and not _has_labels(source_dir)
    label_files = None if without_labels else _find(source_dir, LABELS, split)
    if label_files is None and instances:
        raise UsageError(f"no labels for {split}, and so no instances", "leave out --instances")
    kinds = (labels, "instanceIds") if instances else (labels,)
    frames = _pair(images, label_files, split, kinds)
    return Cityscapes(split, options, images, label_files, frames)


class Cityscapes:
    """One split of Cityscapes, looked through; see `packers.Packer`."""

    dataset = "cityscapes"
    unofficial = ()

    def __init__(
        self,
        split: str,
        options: dict[str, Any],
        images: Files,
        labels: Files | None,
        frames: list[_Frame],
    ) -> None:
        self.split = split
        self.options = options
        self._images, self._labels, self._frames = images, labels, frames
        self._train_id_of = _TRAIN_ID_OF if options["labels"] == "labelIds" else _SAME_ID
        self.official_length = OFFICIAL_LENGTHS[split]
        self.fields = {
            **describe_image_fields(options["image_format"]),
            "label": {"type": "ndarray", "dtype": "|u1", "codec": "zstd", "required": True},
            **({"instance": _INSTANCE_FIELD} if options["instances"] else {}),
            "name": {"type": "str", "required": True},
        }
        self.stamps = [
            f"{frame.name} {' '.join(entry.stamp for entry in frame.entries())}" for frame in frames
        ]
        self.source = self._describe_source()
        size = sum(frame.image.size_bytes for frame in frames)
        if options["image_format"] == "raw":
            size = len(frames) * _RAW_IMAGE_BYTES
        elif options["image_format"] == "strips":
            size = size * 5 // 4
        self.estimated_bytes = size + size // _LABEL_SHARE
        self.remarks = compare_number(len(frames), split, self.official_length)
        if labels is None:
            self.remarks.append(f"no labels for {split}: every pixel is stored as ignored")

    def make(self, index: int) -> Made:
        """Read, check and convert one frame."""
        frame = self._frames[index]
        data = self._images.read(frame.image.name)
        image, totals = take_image(data, self._images.where(frame.image.name), self.options)
        height, width = image["height"], image["width"]
        totals[f"size.{width}x{height}"] = 1
        if frame.label is None:
            label = np.full((height, width), IGNORE, dtype=np.uint8)
            totals[f"id.{IGNORE}"] += label.size
        else:
            label = self._take_label(frame.label.name, (height, width), totals)
        maps = {"label": label}
        if frame.instance is not None:
            maps["instance"] = self._take_instances(frame.instance.name, (height, width))
        return Made({**image, **maps, "name": frame.name}, totals)

    def name(self, index: int) -> str:
        """'aachen_000000_000019'."""
        return self._frames[index].name

    def describe(self, totals: Mapping[str, int]) -> dict[str, Any]:
        """The metadata of the split."""
        pixels = self._class_pixels(totals)
        return {
            "dataset": self.dataset,
            "split": self.split,
            "task": "segmentation",
            "fields": self.fields,
            "image_format": self.options["image_format"],
            "classes": list(CITYSCAPES_CLASSES),
            "num_classes": len(CITYSCAPES_CLASSES),
            "ignore_index": IGNORE,
            "palette": [list(color) for color in CITYSCAPES_PALETTE],
            "class_pixels": [pixels[index] for index in range(len(CITYSCAPES_CLASSES))],
            "ignored_pixels": pixels[IGNORE],
            "id_map": {str(key): value for key, value in self._train_id_of.items()},
            "label_ids_seen": sorted(int(key) for key in section(totals, "id")),
            "sizes": section(totals, "size"),
            "counts": section(totals, "count"),
            "source": self.source,
            "options": self.options,
        }

    def find_remarks(self, meta: Mapping[str, Any]) -> list[str]:
        """Splits without true labels, and images that viewers would turn."""
        remarks = []
        if self._labels is not None and not any(meta["class_pixels"]):
            remarks.append(
                f"the labels of {self.split} are placeholders: every pixel is ignored, "
                "so nothing can be scored on it"
            )
        return [*remarks, *find_turned(meta, self.options)]

    def _take_label(self, name: str, size: tuple[int, int], totals: Counter[str]) -> np.ndarray:
        """(H, W) uint8 train ids; the pixels of each id in the file are added to the totals."""
        values, where = self._read_map(name, size)
        counts = np.bincount(values.ravel(), minlength=256)
        seen = {int(value) for value in np.flatnonzero(counts)}
        unknown = sorted(seen - self._train_id_of.keys())
        if unknown:
            raise DataError(*self._unknown_ids(unknown, where))
        totals.update({f"id.{value}": int(counts[value]) for value in seen})
        table = np.full(256, IGNORE, dtype=np.uint8)
        table[list(self._train_id_of)] = list(self._train_id_of.values())
        return table[values]

    def _take_instances(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """(H, W) uint16: an id of the label table, or for single objects 1000 times it + number."""
        values, where = self._read_map(name, size)
        seen = np.unique(values)
        classes = np.where(seen < _INSTANCE_STEP, seen, seen // _INSTANCE_STEP)
        unknown = seen[~np.isin(classes, list(_TRAIN_ID_OF))]
        if unknown.size:
            raise DataError(
                f"instances of no class: {_listed(unknown[:8].tolist())}: {where}",
                f"each has to be an id from 0 to {max(_TRAIN_ID_OF)}, or 1000 times it + a number",
            )
        return values.astype(np.uint16)

    def _read_map(self, name: str, size: tuple[int, int]) -> tuple[np.ndarray, str]:
        """The values of a map, and what messages call it."""
        assert self._labels is not None
        where = self._labels.where(name)
        data = self._labels.read(name)
        values = read_label_png(data, where, max_pixels=self.options["max_pixels"])
        if values.shape != size:
            sizes = f"{values.shape[1]}x{values.shape[0]} but image {size[1]}x{size[0]}"
            raise DataError(f"label {sizes}: {where}")
        return values, where

    def _unknown_ids(self, unknown: list[int], where: str) -> tuple[str, str]:
        if self.options["labels"] == "labelTrainIds":
            return (
                f"ids outside 0..18 and 255: {_listed(unknown)}: {where}",
                "this looks like labelIds; give --labels labelIds",
            )
        hint = "mend the label image, or leave such samples out: --on-error quarantine"
        if IGNORE in unknown:
            hint = "labelTrainIds need --labels labelTrainIds"
        return f"ids outside 0..{max(_TRAIN_ID_OF)}: {_listed(unknown)}: {where}", hint

    def _class_pixels(self, totals: Mapping[str, int]) -> Counter[int]:
        """Pixels of each train id."""
        pixels: Counter[int] = Counter()
        for value, count in section(totals, "id").items():
            pixels[self._train_id_of.get(int(value), IGNORE)] += count
        return pixels

    def _describe_source(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for frame in self._frames:
            content = " ".join(entry.content for entry in frame.entries())
            digest.update(f"{frame.name} {content}\n".encode())
        return {
            "images": self._images.describe(),
            "labels": self._labels.describe() if self._labels else None,
            "members": len(self._frames),
            "fingerprint": digest.hexdigest(),
        }


def _find(source_dir: Path, part: str, split: str) -> Files:
    """Where the images or the labels of a split are: the folder, else the archive."""
    archive = source_dir / ARCHIVES[part]
    if (source_dir / part / split).is_dir():
        return Folder(source_dir)
    if archive.is_file():
        return Archive(archive)
    raise _missing(source_dir, part, split)


def _has_labels(source_dir: Path) -> bool:
    """Whether there are labels of the test split, which may be left out."""
    return (source_dir / LABELS / "test").is_dir() or (source_dir / ARCHIVES[LABELS]).is_file()


def _missing(source_dir: Path, part: str, split: str) -> UsageError:
    archives = f"{ARCHIVES[LABELS]} {ARCHIVES[IMAGES]}"
    return UsageError(
        describe_missing(source_dir, f"no {part}/{split}/ and no {ARCHIVES[part]}"),
        f"needed are {ARCHIVES[IMAGES]} and {ARCHIVES[LABELS]} (or their folders), after a free "
        f"registration at {_DOWNLOADS}\n      csDownload -d {source_dir} {archives}",
    )


def _pair(images: Files, labels: Files | None, split: str, kinds: Sequence[str]) -> list[_Frame]:
    """The frames of a split, sorted by city and frame; each image with its label files."""
    found = _by_name(images, images.under(f"{IMAGES}/{split}/"), f"{IMAGES}.png")
    if not found:
        where = images.where(f"{IMAGES}/{split}/")
        raise UsageError(f"no images CITY/*_{IMAGES}.png in {where}")
    if labels is None:
        return [_Frame(name, entry, None, None) for name, entry in sorted(found.items())]
    maps = [_find_maps(found, images, labels, split, kind) for kind in kinds]
    return [
        _Frame(name, entry, maps[0][name], maps[1][name] if maps[1:] else None)
        for name, entry in sorted(found.items())
    ]


def _find_maps(
    found_images: Mapping[str, Entry], images: Files, labels: Files, split: str, kind: str
) -> dict[str, Entry]:
    """The label file of each image.

    Raises:
        DataError: an image has none, or one has no image.
    """
    suffix = f"{LABELS}_{kind}.png"
    found_labels = _by_name(labels, labels.under(f"{LABELS}/{split}/"), suffix)
    alone = [images.where(entry.name) for name, entry in _only_in(found_images, found_labels)]
    if alone:
        raise DataError(
            f"{len(alone)} of {len(found_images)} images have no label *_{suffix}, "
            f"first: {', '.join(alone[:5])}",
            _TRAIN_IDS_ARE_MADE if "TrainIds" in suffix else None,
        )
    alone = [labels.where(entry.name) for name, entry in _only_in(found_labels, found_images)]
    if alone:
        raise DataError(
            f"{len(alone)} of {len(found_labels)} labels have no image, "
            f"first: {', '.join(alone[:5])}"
        )
    return found_labels


def _by_name(files: Files, entries: Iterable[Entry], suffix: str) -> dict[str, Entry]:
    """'CITY_SEQUENCE_FRAME' -> file, for the files of that suffix."""
    pattern = re.compile(rf"[^/]+/[^/]+/[^/]+/([^/]+)_{re.escape(suffix)}")
    found: dict[str, Entry] = {}
    for entry in entries:
        match = pattern.fullmatch(entry.name)
        if match is None:
            continue
        other = found.setdefault(match[1], entry)
        if other is not entry:
            both = sorted(files.where(one.name) for one in (other, entry))
            raise DataError(f"duplicate sample name: {both[0]} and {both[1]}")
    return found


def _only_in(these: Mapping[str, Entry], those: Mapping[str, Entry]) -> list[tuple[str, Entry]]:
    return sorted((name, entry) for name, entry in these.items() if name not in those)


def _listed(ids: Iterable[int]) -> str:
    return "{" + ", ".join(map(str, ids)) + "}"
