"""Cityscapes for semantic segmentation: packed, and its raw twin.

Both give {"image": (H, W, 3) uint8 RGB, "label": (H, W) uint8 of train ids 0 to 18 and 255 for
ignored pixels, "name": "aachen_000000_000019"}, in the same order.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hatcli.data.classes import CITYSCAPES_CLASSES
from hatcli.data.datasets import DATASETS
from hatcli.data.datasets._decode import stored_image
from hatcli.data.packers.cityscapes import cityscapes
from hatcli.data.packs.reader import open_pack


@DATASETS.register
class Cityscapes:
    """A pack that ``hat pack cityscapes`` made.

    Args:
        path: the pack's folder, e.g. "train_lmdb".
        root: what a relative path is joined to.

    Raises:
        PackError: there is no pack, or it can't be trusted.
    """

    def __init__(self, path: str, root: Path | None = None) -> None:
        self._pack = open_pack(Path(root or ".", path))
        self.classes: tuple[str, ...] = tuple(self._pack.meta["classes"])
        self.class_pixels: tuple[int, ...] = tuple(self._pack.meta["class_pixels"])
        self.split: str = self._pack.meta["split"]
        self.digest: str = self._pack.meta["content_sha256"]

    def __len__(self) -> int:
        return len(self._pack)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _as_sample(self._pack[index])

    def close(self) -> None:
        """Let go of the database; the next read opens it again, in whatever process that is."""
        self._pack.close()


@DATASETS.register
class CityscapesRaw:
    """The folders or archives as they were downloaded: slower, and not checked beforehand.

    Args:
        split: "train", "val" or "test".
        path: the folder that holds leftImg8bit and gtFine, or their archives.
        labels: which label images are read.
        root: what a relative path is joined to.
    """

    def __init__(
        self,
        split: str,
        path: str = ".",
        labels: Literal["labelIds", "labelTrainIds"] = "labelIds",
        root: Path | None = None,
    ) -> None:
        self._source = cityscapes(Path(root or ".", path), split, labels=labels, check="none")
        self.classes = CITYSCAPES_CLASSES

    def __len__(self) -> int:
        return len(self._source.stamps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _as_sample(self._source.make(index).sample)


def _as_sample(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"image": stored_image(record), "label": record["label"], "name": record["name"]}
