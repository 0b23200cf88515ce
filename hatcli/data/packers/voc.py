"""PASCAL VOC 2007 and 2012: photos with boxes, or with a class and an object at each pixel."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hatcli.data.classes import IGNORE, VOC_CLASSES, VOC_PALETTE, VOC_SEGMENTATION_CLASSES
from hatcli.data.packers import PACKERS, Made
from hatcli.data.packers._images import (
    MAX_PIXELS,
    describe_image_fields,
    parse_image_format,
    read_label_png,
    take_image,
)
from hatcli.data.packers._remarks import compare_number, find_turned
from hatcli.data.packers._totals import section, spread_of_sides
from hatcli.data.packers._voc_source import VocSplit, find_split
from hatcli.data.packers._voc_xml import read_objects
from hatcli.errors import DataError

OFFICIAL_LENGTHS = {
    ("2007", "detection"): {"train": 2501, "val": 2510, "trainval": 5011, "test": 4952},
    ("2012", "detection"): {"train": 5717, "val": 5823, "trainval": 11540},
    ("2007", "segmentation"): {"train": 209, "val": 213, "trainval": 422, "test": 210},
    ("2012", "segmentation"): {"train": 1464, "val": 1449, "trainval": 2913},
}

_RAW_RATIO = 5  # bytes of pixels against those of their JPEG
_RECORD_BYTES = 2048  # what a record takes besides its files: half a page, mostly
_BOXES = {
    "boxes": {"type": "ndarray", "dtype": "<f4", "codec": "raw", "required": True},
    "classes": {"type": "ndarray", "dtype": "<i4", "codec": "raw", "required": True},
    "difficult": {"type": "ndarray", "dtype": "|u1", "codec": "raw", "required": True},
    "truncated": {"type": "ndarray", "dtype": "|u1", "codec": "raw", "required": True},
    "poses": {"type": "list", "required": True},
}
_MAP = {"type": "ndarray", "dtype": "|u1", "codec": "zstd", "required": True}


@PACKERS.register
def voc(
    source_dir: Path,
    split: str,
    *,
    year: Literal["2007", "2012"] = "2012",
    task: Literal["detection", "segmentation"] = "detection",
    boxes: Literal["fail", "clip"] = "fail",
    instances: Literal["keep", "drop"] = "keep",
    image_format: str = "source",
    check: Literal["decode", "header", "none"] = "decode",
    allow_16bit: bool = False,
    apply_exif: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> "VocBoxes | VocMaps":
    """Photos of 20 classes with boxes or label maps: VOCdevkit as a folder or as published tars.

    Args:
        source_dir: holds VOCdevkit/VOC2007 or VOC2007, is that folder, or holds the published
            archive, or another .tar with "voc" in its name; archives are read in place.
        split: train, val or trainval; test for 2007; or any other list in ImageSets/Main or
            ImageSets/Segmentation.
        year: 2012 unless given.
        task: detection (boxes) unless given, or segmentation (label maps; fewer images have them).
        boxes: what becomes of a box that reaches over its image's border; fail unless given, or
            clip, which cuts it off there.
        instances: whether the maps of single objects are packed with those of the classes, for
            segmentation; keep unless given.
        image_format: what is stored: source (the images' bytes) unless given, raw (pixels; five
            times as large), strips (the same pixels in three times the bytes), or jpeg:Q
            (lossy, of quality Q).
        check: how far each image is looked at; decode unless given. Maps are always decoded.
        allow_16bit: take images of 16 bits a channel, of which 8 are kept.
        apply_exif: turn images as their EXIF says; boxes and maps have to fit the turned image.
        max_pixels: larger images are refused; 100 million unless given.

    Raises:
        UsageError: the source or the split isn't there.
        DataError: an archive is damaged, or files are missing.
    """
    parse_image_format(image_format)
    options = {
        "year": year,
        "task": task,
        "image_format": image_format,
        "check": check,
        "allow_16bit": allow_16bit,
        "apply_exif": apply_exif,
        "max_pixels": max_pixels,
    }
    if task == "detection":
        found = find_split(source_dir, year, split, task, [("Annotations", "xml")])
        return VocBoxes({**options, "boxes": boxes}, found)
    kinds = [("SegmentationClass", "png")]
    if instances == "keep":
        kinds.append(("SegmentationObject", "png"))
    found = find_split(source_dir, year, split, task, kinds)
    return VocMaps({**options, "instances": instances}, found)


class _Voc:
    """What both tasks have in common; see `packers.Packer`."""

    dataset = "voc"
    unofficial = ()

    def __init__(self, options: dict[str, Any], found: VocSplit, fields: dict[str, Any]) -> None:
        self.split = found.split
        self.options = options
        self._found = found
        self.fields = {
            **describe_image_fields(options["image_format"]),
            **fields,
            "name": {"type": "str", "required": True},
        }
        self.stamps = found.stamps()
        self.source = found.describe()
        lengths = OFFICIAL_LENGTHS[options["year"], options["task"]]
        self.official_length = lengths.get(found.split)
        ratio = _RAW_RATIO if options["image_format"] in ("raw", "strips") else 1
        self.estimated_bytes = found.size_bytes() * ratio + len(found.names) * _RECORD_BYTES
        self.remarks = compare_number(len(found.names), found.split, self.official_length)

    def name(self, index: int) -> str:
        """'000005' or '2008_000002'."""
        return self._found.names[index]

    def find_remarks(self, meta: Mapping[str, Any]) -> list[str]:
        """Boxes that were cut off, and images that viewers would turn."""
        remarks = []
        if meta.get("boxes", {}).get("clipped"):
            remarks.append(f"{meta['boxes']['clipped']} boxes were cut off at an image's border")
        return [*remarks, *find_turned(meta, self.options)]

    def _take_image(self, index: int) -> tuple[dict[str, Any], Counter[str]]:
        image, totals = take_image(*self._found.read("JPEGImages", index), self.options)
        totals[f"width.{image['width']}"] = 1
        totals[f"height.{image['height']}"] = 1
        return image, totals

    def _describe(self, totals: Mapping[str, int], classes: tuple[str, ...]) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "split": self.split,
            "task": self.options["task"],
            "fields": self.fields,
            "image_format": self.options["image_format"],
            "classes": list(classes),
            "num_classes": len(classes),
            "palette": [list(color) for color in VOC_PALETTE[-len(classes) :]],
            "sizes": spread_of_sides(totals),
            "counts": section(totals, "count"),
            "source": self.source,
            "options": self.options,
        }


class VocBoxes(_Voc):
    """One split with boxes, looked through."""

    def __init__(self, options: dict[str, Any], found: VocSplit) -> None:
        super().__init__(options, found, _BOXES)

    def make(self, index: int) -> Made:
        """Read, check and convert one photo and its boxes."""
        image, totals = self._take_image(index)
        data, where = self._found.read("Annotations", index)
        objects = read_objects(data, where, clip=self.options["boxes"] == "clip")
        if objects.size != (image["width"], image["height"]):
            sizes = f"{objects.size[0]}x{objects.size[1]}"
            actual = f"{image['width']}x{image['height']}"
            raise DataError(f"{where}: size says {sizes} but the image is {actual}")
        totals.update(f"class.{number}" for number in objects.classes.tolist())
        totals["boxes.total"] = len(objects.boxes)
        totals["boxes.difficult"] = int(objects.difficult.sum())
        totals["boxes.truncated"] = int(objects.truncated.sum())
        totals["boxes.clipped"] = objects.clipped
        sample = {
            **image,
            "boxes": objects.boxes,
            "classes": objects.classes,
            "difficult": objects.difficult,
            "truncated": objects.truncated,
            "poses": objects.poses,
            "name": self.name(index),
        }
        return Made(sample, totals)

    def describe(self, totals: Mapping[str, int]) -> dict[str, Any]:
        """The metadata of the split."""
        counts = section(totals, "class")
        return {
            **self._describe(totals, VOC_CLASSES),
            "boxes": section(totals, "boxes"),
            "class_boxes": [counts.get(str(index), 0) for index in range(len(VOC_CLASSES))],
        }


class VocMaps(_Voc):
    """One split with label maps, looked through."""

    def __init__(self, options: dict[str, Any], found: VocSplit) -> None:
        maps = {"label": _MAP, "instance": _MAP}
        if options["instances"] == "drop":
            del maps["instance"]
        super().__init__(options, found, maps)

    def make(self, index: int) -> Made:
        """Read, check and convert one photo and its maps."""
        image, totals = self._take_image(index)
        size = image["height"], image["width"]
        legal = {*range(len(VOC_SEGMENTATION_CLASSES)), IGNORE}
        label = self._read_map("SegmentationClass", index, size, legal)
        counts = np.bincount(label.ravel(), minlength=256)
        totals.update({f"id.{value}": int(counts[value]) for value in np.flatnonzero(counts)})
        maps = {"label": label}
        if self.options["instances"] == "keep":
            maps["instance"] = self._read_map("SegmentationObject", index, size, set(range(256)))
        return Made({**image, **maps, "name": self.name(index)}, totals)

    def describe(self, totals: Mapping[str, int]) -> dict[str, Any]:
        """The metadata of the split."""
        pixels = section(totals, "id")
        return {
            **self._describe(totals, VOC_SEGMENTATION_CLASSES),
            "ignore_index": IGNORE,
            "class_pixels": [
                pixels.get(str(index), 0) for index in range(len(VOC_SEGMENTATION_CLASSES))
            ],
            "ignored_pixels": pixels.get(str(IGNORE), 0),
            "label_ids_seen": sorted(map(int, pixels)),
        }

    def _read_map(
        self, kind: str, index: int, size: tuple[int, int], legal: set[int]
    ) -> np.ndarray:
        """(H, W) uint8 palette indices."""
        data, where = self._found.read(kind, index)
        values = read_label_png(data, where, max_pixels=self.options["max_pixels"], palette=True)
        if values.shape != size:
            sizes = f"{values.shape[1]}x{values.shape[0]} but image {size[1]}x{size[0]}"
            raise DataError(f"label {sizes}: {where}")
        unknown = sorted({int(value) for value in np.unique(values)} - legal)
        if unknown:
            listed = ", ".join(map(str, unknown[:8]))
            last = max(legal - {IGNORE})
            raise DataError(f"ids outside 0..{last} and 255: {{{listed}}}: {where}")
        return values.astype(np.uint8)
