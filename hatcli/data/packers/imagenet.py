"""ImageNet (ILSVRC2012): photos of one class each, from the three archives or from folders."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hatcli.data.packers import PACKERS, Made
from hatcli.data.packers._ilsvrc_images import Found, find_images, name_sample
from hatcli.data.packers._images import (
    MAX_PIXELS,
    describe_image_fields,
    parse_image_format,
    take_image,
)
from hatcli.data.packers._members import stamps_of
from hatcli.data.packers._remarks import compare_number, find_turned
from hatcli.data.packers._totals import section, spread_of_sides
from hatcli.errors import UsageError

OFFICIAL_LENGTHS = {"train": 1281167, "val": 50000}
OFFICIAL_CLASSES = 1000

_RAW_RATIO = 5  # bytes of pixels against those of their JPEG
_RECORD_BYTES = 2048  # what a record takes besides its image: half a page, mostly


@PACKERS.register
def imagenet(
    source_dir: Path,
    split: str,
    *,
    image_format: str = "source",
    check: Literal["decode", "header", "none"] = "decode",
    allow_16bit: bool = False,
    apply_exif: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> "ImageNet":
    """Photos of 1000 classes: the three published archives, or folders nXXXXXXXX.

    Args:
        source_dir: holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
            ILSVRC2012_devkit_t12.tar.gz, which are read in place; or train/nXXXXXXXX/*.JPEG and
            val/nXXXXXXXX/*.JPEG, or val/*.JPEG with the development kit; a mix is fine.
        split: train or val.
        image_format: what is stored: source (the images' bytes) unless given, raw (pixels; five
            times as large), strips (the same pixels in three times the bytes), or jpeg:Q
            (lossy, of quality Q).
        check: how far each image is looked at; decode unless given.
        allow_16bit: take images of 16 bits a channel, of which 8 are kept.
        apply_exif: turn images as their EXIF says, which others don't do with ImageNet.
        max_pixels: larger images are refused; 100 million unless given.

    Raises:
        UsageError: the source or the split isn't there.
        DataError: an archive is damaged, or images and classes don't fit together.
    """
    if split not in OFFICIAL_LENGTHS:
        raise UsageError(f"split {split!r} unknown; choose {', '.join(OFFICIAL_LENGTHS)}")
    parse_image_format(image_format)
    options = {
        "image_format": image_format,
        "check": check,
        "allow_16bit": allow_16bit,
        "apply_exif": apply_exif,
        "max_pixels": max_pixels,
    }
    return ImageNet(split, options, find_images(source_dir, split))


class ImageNet:
    """One split of ImageNet, looked through; see `packers.Packer`.

    Attributes:
        classes: a name for each index.
    """

    dataset = "imagenet"

    def __init__(self, split: str, options: dict[str, Any], found: Found) -> None:
        self.split = split
        self.options = options
        self._files, self._members, classes = found
        self._wnids, self._words = classes.wnids, classes.words
        self.classes = tuple(classes.short_names())
        self.official_length = OFFICIAL_LENGTHS[split]
        self.fields = {
            **describe_image_fields(options["image_format"]),
            "label": {"type": "int", "required": True},
            "name": {"type": "str", "required": True},
        }
        self.stamps = stamps_of(self._members)
        self._class_images = self._members.count_labels(len(self._wnids))
        ratio = _RAW_RATIO if options["image_format"] in ("raw", "strips") else 1
        self.estimated_bytes = (
            self._members.total_bytes() * ratio + len(self._members) * _RECORD_BYTES
        )
        self.source = {
            "images": self._files.describe(),
            "classes": classes.origin,
            "members": len(self._members),
            "fingerprint": self._fingerprint(),
        }
        self.unofficial = self._compare_classes(classes.origin)
        self.remarks = [*self._compare_images(), *self.unofficial]

    def make(self, index: int) -> Made:
        """Read, check and convert one photo."""
        member = self._members[index]
        where = self._files.where(member.path)
        image, totals = take_image(self._files.read(member), where, self.options)
        totals[f"width.{image['width']}"] = 1
        totals[f"height.{image['height']}"] = 1
        totals[f"class.{member.label}"] = 1
        return Made({**image, "label": member.label, "name": self.name(index)}, totals)

    def name(self, index: int) -> str:
        """'n01440764_10026'."""
        return name_sample(self._members[index].path, self.split)

    def describe(self, totals: Mapping[str, int]) -> dict[str, Any]:
        """The metadata of the split."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "task": "classification",
            "fields": self.fields,
            "image_format": self.options["image_format"],
            "classes": list(self.classes),
            "num_classes": len(self.classes),
            "wnids": list(self._wnids),
            "class_words": list(self._words),
            "class_images": [totals.get(f"class.{index}", 0) for index in range(len(self.classes))],
            "sizes": spread_of_sides(totals),
            "counts": section(totals, "count"),
            "source": self.source,
            "options": self.options,
        }

    def find_remarks(self, meta: Mapping[str, Any]) -> list[str]:
        """Images that viewers would turn."""
        return find_turned(meta, self.options, ", as usual here")

    def _compare_images(self) -> list[str]:
        """What is to say of the number of images, and of other files."""
        remarks = compare_number(len(self._members), self.split, self.official_length)
        others = self._files.others
        if others:
            remarks.append(f"{len(others)} other files were passed over, first: {others[0]}")
        return remarks

    def _compare_classes(self, origin: str) -> list[str]:
        """What is to say of the classes."""
        remarks = []
        if len(self._wnids) != OFFICIAL_CLASSES:
            remarks.append(
                f"{len(self._wnids)} classes by {origin}; ImageNet has {OFFICIAL_CLASSES}, "
                "where these have other indexes"
            )
        empty = self._class_images.count(0)
        if empty:
            remarks.append(f"{empty} of {len(self._wnids)} classes have no images")
        return remarks

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for member in self._members:
            digest.update(f"{member.path} {member.size_bytes} {member.label}\n".encode())
        return digest.hexdigest()
