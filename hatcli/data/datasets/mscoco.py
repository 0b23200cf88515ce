"""COCO for detection: packed, its raw twin, and the annotation file as it was.

Both give {"image": (H, W, 3) uint8 RGB, "boxes": (N, 4) float32 of left, top, right and bottom
edges in pixels from the upper left corner, "classes": (N,) int64 from 0, "crowd": (N,) uint8,
"areas": (N,) float64 square pixels, "annotation_ids": (N,) int64, "image_id": int,
"name": "000000000139"}: a box for each annotation, crowds too. On request they hold
"segmentations", a list of what the annotation file says of each: polygons, an RLE, or None.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hatcli.data.datasets import DATASETS
from hatcli.data.datasets._decode import stored_image
from hatcli.data.datasets._twins import PackedDataset, RawDataset
from hatcli.data.packers.mscoco import mscoco
from hatcli.data.packs.reader import Pack, open_pack
from hatcli.errors import UsageError


@DATASETS.register
class CocoDetection(PackedDataset):
    """A pack that ``hat pack mscoco`` made.

    Args:
        path: the pack's folder, e.g. "train_lmdb".
        segmentations: whether samples hold "segmentations" too; no transform takes those.
        root: what a relative path is joined to.

    Attributes:
        classes: a name for each index.
        class_ids: the id of the category of each index, as results have to name it.

    Raises:
        PackError: there is no pack, or it can't be trusted.
        UsageError: it isn't one of COCO.
    """

    def __init__(self, path: str, segmentations: bool = False, root: Path | None = None) -> None:
        pack = open_pack(Path(root or ".", path))
        _check_is_coco(pack)
        super().__init__(pack, partial(_as_sample, segmentations=segmentations))
        self.class_ids: tuple[int, ...] = tuple(pack.meta["class_ids"])


@DATASETS.register
class CocoDetectionRaw(RawDataset):
    """The folders or archives as they were downloaded: slower, and not checked beforehand.

    Args:
        split: "train" or "val".
        path: the folder that holds train2017 and annotations, or their archives.
        year: of the set.
        empty: whether images without annotations are kept.
        segmentations: whether samples hold "segmentations" too.
        root: what a relative path is joined to.
    """

    def __init__(
        self,
        split: str,
        path: str = ".",
        year: Literal["2017", "2014"] = "2017",
        empty: Literal["keep", "drop"] = "keep",
        segmentations: bool = False,
        root: Path | None = None,
    ) -> None:
        folder = Path(root or ".", path)
        source = mscoco(folder, split, year=year, empty=empty, check="none")
        super().__init__(source, source.classes, partial(_as_sample, segmentations=segmentations))
        self.class_ids = source.class_ids


def annotation_document(pack: Pack) -> dict[str, Any]:
    """What the annotation file that a pack was made from says, in its order.

    Of images that were left out with ``--empty drop``, the entries are missing. With pycocotools:
    ``coco = COCO(); coco.dataset = annotation_document(pack); coco.createIndex()``.

    Args:
        pack: of COCO.

    Raises:
        PackError: a sample is damaged.
        UsageError: the pack isn't one of COCO.
    """
    _check_is_coco(pack)
    images: list[dict[str, Any]] = []
    annotations: list[tuple[int, dict[str, Any]]] = []

    def take(record: Mapping[str, Any]) -> None:
        images.append(json.loads(bytes(record["image_info"])))
        own = json.loads(bytes(record["annotations"]))
        annotations.extend(zip(record["annotation_places"].tolist(), own, strict=True))

    for index in range(len(pack)):
        pack.read(index, take, views=True)  # views: the images aren't copied
    annotations.sort(key=lambda placed: placed[0])
    return {
        **pack.meta["document"],
        "images": images,
        "annotations": [annotation for _, annotation in annotations],
        "categories": pack.meta["categories"],
    }


def _check_is_coco(pack: Pack) -> None:
    if "class_ids" not in pack.meta or "annotation_places" not in pack.meta["fields"]:
        raise UsageError(
            f"{pack.path}: not a pack of COCO", "make one with 'hat pack mscoco --split val'"
        )


def _as_sample(record: Mapping[str, Any], *, segmentations: bool) -> dict[str, Any]:
    sample = {
        "image": stored_image(record),
        "boxes": record["boxes"],
        "classes": record["classes"].astype(np.int64),
        "crowd": record["crowd"],
        "areas": record["areas"],
        "annotation_ids": record["annotation_ids"],
        "image_id": record["image_id"],
        "name": record["name"],
    }
    if segmentations:
        annotations = json.loads(bytes(record["annotations"]))
        sample["segmentations"] = [one.get("segmentation") for one in annotations]
    return sample
