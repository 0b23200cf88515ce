"""COCO 2017 and 2014: photos with boxes, polygons and masks of 80 classes, and sets in its form."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hatcli.data.packers import PACKERS, Made
from hatcli.data.packers._coco_boxes import read_boxes
from hatcli.data.packers._coco_document import (
    MAX_JSON_BYTES,
    CocoDocument,
    read_coco,
)
from hatcli.data.packers._files import Archive, Entry, Files, Folder, shown
from hatcli.data.packers._images import (
    MAX_PIXELS,
    describe_image_fields,
    parse_image_format,
    take_image,
)
from hatcli.data.packers._remarks import compare_number, describe_missing, find_turned
from hatcli.data.packers._strict_json import check_finite, parse_json
from hatcli.data.packers._totals import section, spread_of_sides
from hatcli.errors import DataError, UsageError

SPLITS = ("train", "val")
# Of all images, and of those that have annotations.
OFFICIAL_LENGTHS = {
    ("2017", "keep"): {"train": 118287, "val": 5000},
    ("2017", "drop"): {"train": 117266, "val": 4952},
    ("2014", "keep"): {"train": 82783, "val": 40504},
    ("2014", "drop"): {"train": 82081, "val": 40137},
}

_DOWNLOADS = "https://cocodataset.org/#download"
_RAW_RATIO = 6  # bytes of pixels against those of their JPEG
_RECORD_BYTES = 6144  # what a record takes besides its image: annotations and half a page, mostly


@PACKERS.register
def mscoco(
    source_dir: Path,
    split: str,
    *,
    year: Literal["2017", "2014"] = "2017",
    empty: Literal["keep", "drop"] = "keep",
    boxes: Literal["fail", "clip"] = "fail",
    image_format: str = "source",
    check: Literal["decode", "header", "none"] = "decode",
    allow_16bit: bool = False,
    apply_exif: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> "MsCoco":
    """Photos with the objects in them: COCO as folders or as published zips, or a set in its form.

    Args:
        source_dir: holds train2017/, val2017/ and annotations/instances_train2017.json and so on,
            or train2017.zip, val2017.zip and annotations_trainval2017.zip; a mix is fine.
        split: train or val.
        year: 2017 unless given.
        empty: what becomes of images without annotations; keep unless given, or drop.
        boxes: what becomes of a box that reaches over its image's border by more than a pixel;
            fail unless given, or clip, which cuts it off there. The annotation itself is stored
            unchanged.
        image_format: what is stored: source (the images' bytes) unless given, raw (pixels; six
            times as large), strips (the same pixels in three times the bytes), or jpeg:Q
            (lossy, of quality Q).
        check: how far each image is looked at; decode unless given.
        allow_16bit: take images of 16 bits a channel, of which 8 are kept.
        apply_exif: turn images as their EXIF says; their annotations have to fit the turned image.
        max_pixels: larger images are refused; 100 million unless given.

    Raises:
        UsageError: the source or the split isn't there.
        DataError: the annotations contradict themselves, or images are missing.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split!r} unknown; choose {', '.join(SPLITS)}", _test_hint(split))
    parse_image_format(image_format)
    options = {
        "year": year,
        "empty": empty,
        "boxes": boxes,
        "image_format": image_format,
        "check": check,
        "allow_16bit": allow_16bit,
        "apply_exif": apply_exif,
        "max_pixels": max_pixels,
    }
    images, json_files, json_name = _find(source_dir, f"{split}{year}", year)
    where = json_files.where(json_name)
    document = read_coco(json_files.read(json_name, MAX_JSON_BYTES), where)
    return MsCoco(split, options, images, document)


class MsCoco:
    """One split of COCO, looked through; see `packers.Packer`.

    Attributes:
        classes: a name for each index; the categories sorted by their ids.
        class_ids: the id of the category of each index.
    """

    dataset = "mscoco"
    unofficial = ()

    def __init__(
        self, split: str, options: dict[str, Any], images: Files, document: CocoDocument
    ) -> None:
        self.split = split
        self.options = options
        self._images, self._document = images, document
        self._folder = f"{split}{options['year']}/"
        names = {category["id"]: category["name"] for category in document.categories}
        self.class_ids = tuple(sorted(names))
        self.classes = tuple(names[number] for number in self.class_ids)
        self._index_of = {number: index for index, number in enumerate(self.class_ids)}
        self.official_length = OFFICIAL_LENGTHS[options["year"], options["empty"]][split]
        self.fields = _fields(options["image_format"])
        self.remarks: list[str] = []
        self._drop_empty()
        self._entries = self._pair()
        self.stamps = [
            f"{info.file_name} {entry.stamp} {document.digest(index)}"
            for index, (info, entry) in enumerate(zip(document.images, self._entries, strict=True))
        ]
        self.source = self._describe_source()
        size = sum(entry.size_bytes for entry in self._entries)
        ratio = _RAW_RATIO if options["image_format"] in ("raw", "strips") else 1
        self.estimated_bytes = size * ratio + len(self._entries) * _RECORD_BYTES
        self.remarks[:0] = compare_number(len(self._entries), split, self.official_length)

    def make(self, index: int) -> Made:
        """Read, check and convert one photo and its annotations."""
        document, info, entry = self._document, self._document.images[index], self._entries[index]
        image_text, text = document.texts(index)
        check_finite(
            parse_json(image_text.decode(), document.where), f"images[{info.place}]", document.where
        )
        data = self._images.read(entry.name)
        image, totals = take_image(data, self._images.where(entry.name), self.options)
        if (image["width"], image["height"]) != (info.width, info.height):
            raise DataError(
                f"{document.where}: images[{info.place}] (id {info.id}) is {info.width}x"
                f"{info.height}, but the image has {image['width']}x{image['height']}"
            )
        places = document.annotation_places(index)
        found = read_boxes(
            parse_json(text.decode(), document.where),
            places,
            info,
            self._index_of,
            where=document.where,
            clip=self.options["boxes"] == "clip",
        )
        totals.update(f"class.{number}" for number in found.classes.tolist())
        totals.update({f"boxes.{kind}": count for kind, count in found.kinds.items()})
        totals["boxes.total"] = len(places)
        totals["boxes.crowd"] = int(found.crowd.sum())
        totals["empty.images"] = int(not places)
        totals[f"width.{image['width']}"] = 1
        totals[f"height.{image['height']}"] = 1
        sample = {
            **image,
            "boxes": found.boxes,
            "classes": found.classes,
            "crowd": found.crowd,
            "areas": found.areas,
            "annotation_ids": found.annotation_ids,
            "annotation_places": np.array(places, dtype=np.int64),
            "annotations": text,
            "image_info": image_text,
            "image_id": info.id,
            "name": self.name(index),
        }
        return Made(sample, totals)

    def name(self, index: int) -> str:
        """'000000000139', the file's name without its ending."""
        return _without_ending(self._document.images[index].file_name)

    def describe(self, totals: Mapping[str, int]) -> dict[str, Any]:
        """The metadata of the split."""
        counts = section(totals, "class")
        return {
            "dataset": self.dataset,
            "split": self.split,
            "task": "detection",
            "fields": self.fields,
            "image_format": self.options["image_format"],
            "classes": list(self.classes),
            "num_classes": len(self.classes),
            "class_ids": list(self.class_ids),
            "categories": self._document.categories,
            "document": self._document.rest,
            "boxes": section(totals, "boxes"),
            "class_boxes": [counts.get(str(index), 0) for index in range(len(self.classes))],
            "images_without_boxes": totals["empty.images"],
            "sizes": spread_of_sides(totals),
            "counts": section(totals, "count"),
            "source": self.source,
            "options": self.options,
        }

    def find_remarks(self, meta: Mapping[str, Any]) -> list[str]:
        """Boxes that are odd, and images that viewers would turn."""
        remarks = []
        for kind, what in (
            ("flat", "have no width or no height; they are kept"),
            ("clipped", "were cut off at an image's border"),
        ):
            if meta["boxes"].get(kind):
                remarks.append(f"{meta['boxes'][kind]} boxes {what}")
        return [*remarks, *find_turned(meta, self.options)]

    def _drop_empty(self) -> None:
        document = self._document
        if self.options["empty"] == "keep":
            return
        kept = [i for i in range(len(document.images)) if document.count_annotations(i)]
        if not kept:
            raise DataError(f"{document.where}: no image has annotations")
        dropped = len(document.images) - len(kept)
        if dropped:
            self.remarks.append(f"{dropped} images without annotations were left out")
        document.keep(kept)

    def _pair(self) -> list[Entry]:
        """The file of each image."""
        document, folder = self._document, self._folder
        found = {entry.name: entry for entry in self._images.under(folder)}
        wanted = [folder + info.file_name for info in document.images]
        missing = [self._images.where(name) for name in wanted if name not in found]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(wanted)} images of {document.where} have no file, "
                f"first: {', '.join(missing[:5])}"
            )
        _check_names([info.file_name for info in document.images])
        others = sorted(found.keys() - set(wanted))
        if others and self.options["empty"] == "keep":
            first = self._images.where(others[0])
            self.remarks.append(f"{len(others)} other files were passed over, first: {first}")
        return [found[name] for name in wanted]

    def _describe_source(self) -> dict[str, Any]:
        digest = hashlib.sha256(self._document.sha256.encode())
        for info, entry in zip(self._document.images, self._entries, strict=True):
            digest.update(f"{info.file_name} {entry.content}\n".encode())
        return {
            "images": self._images.describe(),
            "annotations_sha256": self._document.sha256,
            "members": len(self._entries),
            "fingerprint": digest.hexdigest(),
        }


def _fields(image_format: str) -> dict[str, dict[str, Any]]:
    arrays = {
        "boxes": "<f4",
        "classes": "<i4",
        "crowd": "|u1",
        "areas": "<f8",
        "annotation_ids": "<i8",
        "annotation_places": "<i8",
    }
    return {
        **describe_image_fields(image_format),
        **{
            name: {"type": "ndarray", "dtype": dtype, "codec": "raw", "required": True}
            for name, dtype in arrays.items()
        },
        "annotations": {"type": "bytes", "required": True},
        "image_info": {"type": "bytes", "required": True},
        "image_id": {"type": "int", "required": True},
        "name": {"type": "str", "required": True},
    }


def _check_names(file_names: list[str]) -> None:
    """Refuse two files that differ only in their endings."""
    known: dict[str, str] = {}
    for file_name in file_names:
        other = known.setdefault(_without_ending(file_name), file_name)
        if other != file_name:
            both = f"{shown(other)} and {shown(file_name)}"
            raise DataError(f"duplicate sample name: {both}")


def _without_ending(file_name: str) -> str:
    folder, slash, name = file_name.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)


def _find(source_dir: Path, part: str, year: str) -> tuple[Files, Files, str]:
    """Where the images are, where the annotations are, and the name of their file there."""
    json_name = f"annotations/instances_{part}.json"
    json_archive = source_dir / f"annotations_trainval{year}.zip"
    images: Files
    if (source_dir / part).is_dir():
        images = Folder(source_dir)
    elif (source_dir / f"{part}.zip").is_file():
        images = Archive(source_dir / f"{part}.zip")
    else:
        raise _missing(source_dir, f"no {part}/ and no {part}.zip", part, year)
    annotations: Files
    if (source_dir / json_name).is_file():
        annotations = Folder(source_dir)
    elif json_archive.is_file():
        annotations = Archive(json_archive)
    else:
        raise _missing(source_dir, f"no {json_name} and no {json_archive.name}", part, year)
    if not any(entry.name == json_name for entry in annotations.under("annotations/")):
        raise _missing(source_dir, f"no {json_name} in {json_archive.name}", part, year)
    return images, annotations, json_name


def _missing(source_dir: Path, what: str, part: str, year: str) -> UsageError:
    return UsageError(
        describe_missing(source_dir, what),
        f"needed are {part}.zip and annotations_trainval{year}.zip, or what is in them, from\n"
        f"      {_DOWNLOADS}",
    )


def _test_hint(split: str) -> str | None:
    return "the annotations of COCO's test aren't published" if split == "test" else None
