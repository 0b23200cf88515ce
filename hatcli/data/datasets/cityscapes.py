"""Cityscapes for semantic segmentation: packed, and its raw twin.

Both give {"image": (H, W, 3) uint8 RGB, "label": (H, W) uint8 of train ids 0 to 18 and 255 for
ignored pixels, "name": "aachen_000000_000019"}, in the same order. On request they hold "instance"
too, (H, W) uint16: a label id, or for single objects 1000 times it + the object's number.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from hatcli.data.classes import CITYSCAPES_CLASSES
from hatcli.data.datasets import DATASETS
from hatcli.data.datasets._decode import stored_image
from hatcli.data.packers.cityscapes import cityscapes
from hatcli.data.packs.reader import open_pack
from hatcli.errors import UsageError

T = TypeVar("T")


@DATASETS.register
class Cityscapes:
    """A pack that ``hat pack cityscapes`` made.

    Args:
        path: the pack's folder, e.g. "train_lmdb".
        instances: whether samples hold "instance" too.
        root: what a relative path is joined to.

    Raises:
        PackError: there is no pack, or it can't be trusted.
        UsageError: it holds no instances.
    """

    def __init__(self, path: str, instances: bool = False, root: Path | None = None) -> None:
        self._pack = open_pack(Path(root or ".", path))
        self._keys = _map_keys(instances)
        if instances and "instance" not in self._pack.meta["fields"]:
            raise UsageError(f"{self._pack.path}: holds no instances", "pack it with --instances")
        self.classes: tuple[str, ...] = tuple(self._pack.meta["classes"])
        self.class_pixels: tuple[int, ...] = tuple(self._pack.meta["class_pixels"])
        self.split: str = self._pack.meta["split"]
        self.digest: str = self._pack.meta["content_sha256"]

    def __len__(self) -> int:
        return len(self._pack)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _as_sample(self._pack[index], self._keys)

    def read(self, index: int, use: Callable[[dict[str, Any]], T]) -> T:
        """What ``use`` makes of a sample whose image is a `StoredImage`, valid meanwhile."""
        return self._pack.read(
            index, lambda record: use(_as_sample(record, self._keys)), views=True
        )

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
        self._source = cityscapes(folder, split, labels=labels, instances=instances, check="none")
        self._keys = _map_keys(instances)
        self.classes = CITYSCAPES_CLASSES

    def __len__(self) -> int:
        return len(self._source.stamps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _as_sample(self._source.make(index).sample, self._keys)


def _map_keys(instances: bool) -> tuple[str, ...]:
    return ("label", "instance") if instances else ("label",)


def _as_sample(record: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    maps = {key: record[key] for key in keys}
    return {"image": stored_image(record), **maps, "name": record["name"]}
