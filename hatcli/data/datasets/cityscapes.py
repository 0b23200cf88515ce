"""Cityscapes for semantic segmentation: packed, and its raw twin.

Both give {"image": (H, W, 3) uint8 RGB, "label": (H, W) uint8 of train ids 0 to 18 and 255 for
ignored pixels, "name": "aachen_000000_000019"}, in the same order. On request they hold "instance"
too, (H, W) uint16: a label id, or for single objects 1000 times it + the object's number.
"""

from functools import partial
from pathlib import Path
from typing import Literal

from hatcli.data.classes import CITYSCAPES_CLASSES
from hatcli.data.datasets import DATASETS
from hatcli.data.datasets._decode import with_maps
from hatcli.data.datasets._twins import PackedDataset, RawDataset
from hatcli.data.packers.cityscapes import cityscapes
from hatcli.data.packs.reader import open_pack
from hatcli.errors import UsageError


@DATASETS.register
class Cityscapes(PackedDataset):
    """A pack that ``hat pack cityscapes`` made.

    Args:
        path: the pack's folder, e.g. "train_lmdb".
        instances: whether samples hold "instance" too.
        root: what a relative path is joined to.

    Raises:
        PackError: there is no pack, or it can't be trusted.
        UsageError: it holds no instances, or is made for another task.
    """

    def __init__(self, path: str, instances: bool = False, root: Path | None = None) -> None:
        pack = open_pack(Path(root or ".", path))
        if instances and "instance" not in pack.meta["fields"]:
            raise UsageError(f"{pack.path}: holds no instances", "pack it with --instances")
        super().__init__(pack, partial(with_maps, instances=instances), "segmentation")
        self.class_pixels: tuple[int, ...] = tuple(pack.meta["class_pixels"])


@DATASETS.register
class CityscapesRaw(RawDataset):
    """The folders or archives as they were downloaded: slower, and not checked beforehand.

    Args:
        split: "train", "val" or "test".
        path: the folder that holds leftImg8bit and gtFine, or their archives.
        labels: which label images are read.
        instances: whether samples hold "instance" too.
        root: what a relative path is joined to.
    """

    def __init__(
        self,
        split: str,
        path: str = ".",
        labels: Literal["labelIds", "labelTrainIds"] = "labelIds",
        instances: bool = False,
        root: Path | None = None,
    ) -> None:
        folder = Path(root or ".", path)
        source = cityscapes(folder, split, labels=labels, instances=instances, check="none")
        super().__init__(source, CITYSCAPES_CLASSES, partial(with_maps, instances=instances))
