"""PASCAL VOC for detection and segmentation: packed, and their raw twins.

Detection gives {"image": (H, W, 3) uint8 RGB, "boxes": (N, 4) float32 of left, top, right and
bottom edges in pixels from the upper left corner, "classes": (N,) int64, "difficult" and
"truncated": (N,) uint8, "name": "000005"}. VOC's own numbers count pixels from 1 and include the
last one; here a box of the whole image is (0, 0, W, H).

Segmentation gives {"image", "label": (H, W) uint8 of 0 for the background, classes 1 to 20 and
255 for ignored pixels, "name"}, and "instance" on request: (H, W) uint8 of 0 for the background,
the objects 1, 2, ... and 255.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hatcli.data.classes import VOC_CLASSES, VOC_SEGMENTATION_CLASSES
from hatcli.data.datasets import DATASETS
from hatcli.data.datasets._decode import stored_image, with_maps
from hatcli.data.datasets._twins import PackedDataset, RawDataset
from hatcli.data.packers.voc import voc
from hatcli.data.packs.reader import Pack, open_pack
from hatcli.errors import UsageError


@DATASETS.register
class VOCDetection(PackedDataset):
    """A pack that ``hat pack voc`` made.

    Args:
        path: the pack's folder, e.g. "train_lmdb".
        root: what a relative path is joined to.

    Raises:
        PackError: there is no pack, or it can't be trusted.
    """

    def __init__(self, path: str, root: Path | None = None) -> None:
        super().__init__(_open(Path(root or ".", path), "detection"), _with_boxes)


@DATASETS.register
class VOCDetectionRaw(RawDataset):
    """The devkit or its archive as it was downloaded: slower, and not checked beforehand.

    Args:
        split: "train", "val", "trainval", or "test" of 2007.
        path: the folder that holds VOCdevkit, or its archives.
        year: of the set.
        root: what a relative path is joined to.
    """

    def __init__(
        self,
        split: str,
        path: str = ".",
        year: Literal["2007", "2012"] = "2012",
        root: Path | None = None,
    ) -> None:
        source = voc(Path(root or ".", path), split, year=year, check="none")
        super().__init__(source, VOC_CLASSES, _with_boxes)


@DATASETS.register
class VOCSegmentation(PackedDataset):
    """A pack that ``hat pack voc --task segmentation`` made.

    Args:
        path: the pack's folder, e.g. "train_lmdb".
        instances: whether samples hold "instance" too.
        root: what a relative path is joined to.

    Raises:
        PackError: there is no pack, or it can't be trusted.
        UsageError: it holds no instances.
    """

    def __init__(self, path: str, instances: bool = False, root: Path | None = None) -> None:
        pack = _open(Path(root or ".", path), "segmentation")
        if instances and "instance" not in pack.meta["fields"]:
            raise UsageError(f"{pack.path}: holds no instances", "pack it without --instances drop")
        super().__init__(pack, partial(with_maps, instances=instances))
        self.class_pixels: tuple[int, ...] = tuple(pack.meta["class_pixels"])


@DATASETS.register
class VOCSegmentationRaw(RawDataset):
    """The devkit or its archive as it was downloaded: slower, and not checked beforehand.

    Args:
        split: "train", "val", "trainval", or "test" of 2007.
        path: the folder that holds VOCdevkit, or its archives.
        year: of the set.
        instances: whether samples hold "instance" too.
        root: what a relative path is joined to.
    """

    def __init__(
        self,
        split: str,
        path: str = ".",
        year: Literal["2007", "2012"] = "2012",
        instances: bool = False,
        root: Path | None = None,
    ) -> None:
        source = voc(
            Path(root or ".", path),
            split,
            year=year,
            task="segmentation",
            instances="keep" if instances else "drop",
            check="none",
        )
        super().__init__(source, VOC_SEGMENTATION_CLASSES, partial(with_maps, instances=instances))


def _open(path: Path, task: str) -> Pack:
    """A pack of VOC for this task.

    Raises:
        UsageError: it is another one.
    """
    pack = open_pack(path)
    field = "difficult" if task == "detection" else "label"
    if pack.meta.get("task") != task or field not in pack.meta["fields"]:
        found = f"{pack.meta.get('dataset')} for {pack.meta.get('task')}"
        raise UsageError(
            f"{path}: a pack of {found}, not of voc for {task}",
            f"make one with 'hat pack voc --task {task}'",
        )
    return pack


def _with_boxes(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image": stored_image(record),
        "boxes": record["boxes"],
        "classes": record["classes"].astype(np.int64),
        "difficult": record["difficult"],
        "truncated": record["truncated"],
        "name": record["name"],
    }
