"""Makes samples of the records of a foreign LMDB pack: which field is what, and what it holds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hatcli.data.packers import Made
from hatcli.data.packers._files import shown
from hatcli.data.packers._foreign import ForeignLmdb, unpack
from hatcli.data.packers._images import MAX_PIXELS, describe_image_fields, take_image
from hatcli.data.packers._totals import section
from hatcli.errors import DataError, UsageError

IGNORE = 255

_IMAGE_NAMES = ("image", "img", "data", "jpg", "jpeg", "png", "x", "input", "0")
_LABEL_NAMES = ("label", "labels", "target", "gt", "mask", "seg", "cls", "class", "category", "y")
_NAMES = ("name", "filename", "file_name", "id", "path")
_OTHER_KEYS = (b"length", b"num-samples", b"num_samples")


@dataclass(frozen=True)
class Fields:
    """Which fields of a foreign record hold what; None where that is to be guessed.

    Attributes:
        image: encoded bytes, or an array (H, W, 3), (H, W) or (3, H, W) uint8.
        label: an integer, or an array (H, W) of integers 0 to 255.
        name: text; the record's key where there is no such field.
        channels: order of the channels in arrays, "rgb" or "bgr".
        num_classes: one more than the largest label unless given.
    """

    image: str | None = None
    label: str | None = None
    name: str | None = None
    channels: str = "rgb"
    num_classes: int | None = None


class ForeignSamples:
    """The samples of a foreign pack; see `packers.Packer`.

    Attributes:
        notes: what was guessed, and what was passed over.

    Raises:
        UsageError: a field isn't there, or can't be guessed.
        DataError: there are no samples, or the first one can't be understood.
    """

    dataset = "converted"
    official_length: int | None = None
    unofficial: Sequence[str] = ()
    remarks: Sequence[str] = ()
    options: Mapping[str, Any]
    fields: Mapping[str, Mapping[str, Any]]
    source: Mapping[str, Any]
    stamps: Sequence[str]

    def __init__(self, foreign: ForeignLmdb, split: str, fields: Fields) -> None:
        if fields.channels not in ("rgb", "bgr"):
            raise UsageError(f"--channels {fields.channels!r} unknown; choose rgb, bgr")
        self.split = split
        self._foreign = foreign
        self.notes: list[str] = []
        self._keys, sizes = self._find_keys()
        first = self._entries(0)
        self._image_key = self._find(first, fields.image, _IMAGE_NAMES, _is_image, "image")
        self._label_key = self._find(first, fields.label, _label_names(first), _is_label, "label")
        self._name_key = fields.name
        if fields.name is None:
            found = [name for name in _NAMES if isinstance(first.get(name), str)]
            self._name_key = found[0] if found else None
        self._channels = fields.channels
        self._num_classes = fields.num_classes
        image, label = first[self._image_key], first[self._label_key]
        self._is_raw = isinstance(image, np.ndarray) and image.ndim > 1
        self._is_map = isinstance(label, np.ndarray) and label.ndim > 1
        self.options = {
            "image_key": self._image_key,
            "label_key": self._label_key,
            "name_key": self._name_key,
            "channels": fields.channels,
            "num_classes": fields.num_classes,
        }
        label_map = {"type": "ndarray", "dtype": "|u1", "codec": "zstd", "required": True}
        self.fields = {
            **describe_image_fields("raw" if self._is_raw else "source"),
            "label": label_map if self._is_map else {"type": "int", "required": True},
            "name": {"type": "str", "required": True},
        }
        status = foreign.file.stat()
        self.source = {"kind": "lmdb", "bytes": status.st_size, "members": len(self._keys)}
        stamp = f"{status.st_size} {status.st_mtime_ns}"
        self.stamps = [f"{key!r} {stamp}" for key in self._keys]
        self.estimated_bytes = sum(sizes)

    def make(self, index: int) -> Made:
        """Decode, check and convert one record."""
        where = self._where(index)
        entries = self._entries(index)
        for key in (self._image_key, self._label_key):
            if key not in entries:
                raise DataError(f"{where} has no field {key!r}; it has {sorted(entries)}")
        totals: Counter[str] = Counter()
        image = self._take_image(entries[self._image_key], where, totals)
        label = self._take_label(entries[self._label_key], where, totals)
        if isinstance(label, np.ndarray) and label.shape != (image["height"], image["width"]):
            sizes = (
                f"{label.shape[1]}x{label.shape[0]} but image {image['width']}x{image['height']}"
            )
            raise DataError(f"label {sizes}: {where}")
        name = entries.get(self._name_key) if self._name_key else None
        return Made(
            {**image, "label": label, "name": name if isinstance(name, str) else self.name(index)},
            totals,
        )

    def name(self, index: int) -> str:
        """The record's key."""
        return shown(self._keys[index].decode("utf-8", "backslashreplace"))

    def describe(self, totals: Mapping[str, int]) -> dict[str, Any]:
        """The metadata of the split."""
        counts = {int(value): count for value, count in section(totals, "label").items()}
        highest = max(
            (value for value in counts if not self._is_map or value != IGNORE), default=-1
        )
        num_classes = self._num_classes or highest + 1
        per_class = [counts.get(value, 0) for value in range(num_classes)]
        common = {
            "dataset": self.dataset,
            "split": self.split,
            "task": "segmentation" if self._is_map else "classification",
            "fields": self.fields,
            "image_format": "raw" if self._is_raw else "source",
            "classes": [f"{value}" for value in range(num_classes)],
            "num_classes": num_classes,
            "counts": section(totals, "count"),
            "source": self.source,
            "options": self.options,
        }
        if not self._is_map:
            return {**common, "class_images": per_class}
        ignored = counts.get(IGNORE, 0)
        maps = {"ignore_index": IGNORE, "class_pixels": per_class, "ignored_pixels": ignored}
        return {**common, **maps}

    def find_remarks(self, meta: Mapping[str, Any]) -> list[str]:
        """Classes that never occur."""
        counts = meta.get("class_pixels", meta.get("class_images", []))
        empty = sum(1 for count in counts if not count)
        return [f"{empty} of {meta['num_classes']} classes never occur"] if empty else []

    def _find_keys(self) -> tuple[list[bytes], list[int]]:
        """The samples' keys, in numeric order where all are numbers, and the sizes of values."""
        found = []
        others = []
        for key, size in self._foreign.scan():
            if key.startswith(b"__") or key in _OTHER_KEYS:
                others.append(key)
            else:
                found.append((key, size))
        if not found:
            raise DataError(f"{self._foreign.path}: holds no samples")
        if all(key.isdigit() for key, _ in found):
            found.sort(key=lambda one: int(one[0]))
        if others:
            self.notes.append(f"passed over: {', '.join(map(repr, others[:5]))}")
        return [key for key, _ in found], [size for _, size in found]

    def _where(self, index: int) -> str:
        return f"{self._foreign.path}::{self.name(index)}"

    def _entries(self, index: int) -> dict[str, Any]:
        """The fields of a record; those of a list are called 0, 1 and so on."""
        where = self._where(index)
        value = unpack(self._foreign.read(self._keys[index]), where)
        if isinstance(value, list):
            return {f"{place}": item for place, item in enumerate(value)}
        if not isinstance(value, dict):
            raise DataError(f"{where} holds {type(value).__name__}, not a map or a list")
        return value

    def _find(
        self,
        first: Mapping[str, Any],
        given: str | None,
        names: tuple[str, ...],
        fits: Any,
        what: str,
    ) -> str:
        """The field that is given, or the first one whose name and value fit."""
        if given is not None:
            if given not in first:
                raise UsageError(f"--{what}-key {given!r}: the first record has {sorted(first)}")
            return given
        for name in names:
            if fits(first.get(name)):
                self.notes.append(f"{what}: field {name!r} ({_kind(first[name])})")
                return name
        raise UsageError(
            f"{self._foreign.path}: no field is plainly the {what}; found "
            + ", ".join(f"{name!r} ({_kind(value)})" for name, value in sorted(first.items())),
            f"name it with --{what}-key",
        )

    def _take_image(self, value: Any, where: str, totals: Counter[str]) -> dict[str, Any]:
        if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 1:
            value = value.tobytes()  # an encoded file in an array
        if isinstance(value, bytes) and not self._is_raw:
            options = {"image_format": "source", "check": "decode", "max_pixels": MAX_PIXELS}
            image, kinds = take_image(value, where, options)
            totals.update(kinds)
            return image
        if not isinstance(value, np.ndarray) or not self._is_raw:
            raise DataError(f"image is {_kind(value)}, other than in the first record: {where}")
        pixels = _as_rgb(value, where)
        if self._channels == "bgr":
            pixels = pixels[..., ::-1]
        totals["count.raw"] += 1
        return {
            "image": np.ascontiguousarray(pixels),
            "image_format": "raw",
            "height": pixels.shape[0],
            "width": pixels.shape[1],
        }

    def _take_label(self, value: Any, where: str, totals: Counter[str]) -> int | np.ndarray:
        if isinstance(value, np.ndarray) and value.size == 1 and not self._is_map:
            value = value.ravel()[0].item()
        if self._is_map:
            return self._take_map(value, where, totals)
        if type(value) is not int:
            raise DataError(f"label is {_kind(value)}, not an integer: {where}")
        limit = self._num_classes
        if value < 0 or (limit is not None and value >= limit):
            raise DataError(f"label {value} is outside 0..{(limit or 0) - 1}: {where}")
        totals[f"label.{value}"] += 1
        return value

    def _take_map(self, value: Any, where: str, totals: Counter[str]) -> np.ndarray:
        if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind not in "ui":
            raise DataError(f"label is {_kind(value)}, not (H, W) integers: {where}")
        counts = np.bincount(value.ravel()) if value.min(initial=0) >= 0 else np.zeros(0, int)
        seen = [int(label) for label in np.flatnonzero(counts)]
        limit = self._num_classes or IGNORE
        illegal = [label for label in seen if label >= limit and label != IGNORE]
        if illegal or (value.size and not seen):
            raise DataError(f"label values outside 0..{limit - 1} and 255: {where}")
        totals.update({f"label.{label}": int(counts[label]) for label in seen})
        return np.ascontiguousarray(value, dtype=np.uint8)


def _label_names(first: Mapping[str, Any]) -> tuple[str, ...]:
    """In records that are lists the second item is the label."""
    return ("1",) if "0" in first and "1" in first else _LABEL_NAMES


def _is_image(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim in (1, 2, 3)
    return isinstance(value, bytes)


def _is_label(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "ui" and (value.ndim == 2 or value.size == 1)
    return type(value) is int


def _as_rgb(value: np.ndarray, where: str) -> np.ndarray:
    """(H, W, 3) of an array in one of the usual layouts."""
    if value.dtype == np.uint8:
        if value.ndim == 3 and value.shape[2] == 3:
            return value
        if value.ndim == 3 and value.shape[0] == 3:
            return value.transpose(1, 2, 0)
        if value.ndim == 3 and value.shape[2] == 1:
            value = value[..., 0]
        if value.ndim == 2:
            return np.repeat(value[..., None], 3, axis=2)
    raise DataError(f"image is {_kind(value)}, not (H, W, 3) uint8: {where}")


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"array {value.shape} {value.dtype}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return type(value).__name__
