"""ImageNet for classification: packed, and its raw twin; and class folders of any names.

All give {"image": (H, W, 3) uint8 RGB, "label": index of the class, "name": "n01440764_10026"}.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hatcli.data.datasets import DATASETS
from hatcli.data.datasets._decode import stored_image
from hatcli.data.datasets._twins import PackedDataset, RawDataset
from hatcli.data.packers._class_images import ClassFolders
from hatcli.data.packers._images import MAX_PIXELS
from hatcli.data.packers._members import Members
from hatcli.data.packers.imagenet import imagenet
from hatcli.data.packs.reader import open_pack
from hatcli.data.stored_image import StoredImage
from hatcli.errors import DataError, UsageError

T = TypeVar("T")


@DATASETS.register
class ImageNet(PackedDataset):
    """A pack that ``hat pack imagenet`` made.

    Args:
        path: the pack's folder, e.g. "train_lmdb".
        root: what a relative path is joined to.

    Raises:
        PackError: there is no pack, or it can't be trusted.
        UsageError: it is made for another task.
    """

    def __init__(self, path: str, root: Path | None = None) -> None:
        super().__init__(open_pack(Path(root or ".", path)), _as_sample, "classification")


@DATASETS.register
class ImageNetRaw(RawDataset):
    """The archives or folders as they were downloaded: slower, and not checked beforehand.

    Args:
        split: "train" or "val".
        path: the folder that holds the archives, or train/ and val/.
        root: what a relative path is joined to.
    """

    def __init__(self, split: str, path: str = ".", root: Path | None = None) -> None:
        source = imagenet(Path(root or ".", path), split, check="none")
        super().__init__(source, source.classes, _as_sample)


@DATASETS.register
class ImageFolder:
    """A folder for each class, of any name, with images in it; the classes are sorted by name.

    Args:
        path: the folder of the class folders.
        root: what a relative path is joined to.

    Raises:
        UsageError: there are no class folders.
        DataError: a class has no images.
    """

    def __init__(self, path: str, root: Path | None = None) -> None:
        folder = Path(root or ".", path)
        if not folder.is_dir():
            raise UsageError(f"no folder {folder}", "give a folder that holds one for each class")
        self._files = ClassFolders(folder, re.compile(".*", re.DOTALL))
        self.classes: tuple[str, ...] = tuple(self._files.class_names())
        self._members = Members()
        for label, name in enumerate(self.classes):
            before = len(self._members)
            for member in sorted(self._files.images(name)):
                self._members.append(member._replace(label=label))
            if len(self._members) == before:
                raise DataError(f"no images in {folder / name}")
        if not self.classes:
            raise UsageError(f"no class folders in {folder}")

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read(index, lambda sample: {**sample, "image": sample["image"].pixels()})

    def read(self, index: int, use: Callable[[dict[str, Any]], T]) -> T:
        """What ``use`` makes of a sample whose image is a `StoredImage`."""
        member = self._members[index]
        where = self._files.where(member.path)
        image = StoredImage(self._files.read(member), where, max_pixels=MAX_PIXELS)
        name = member.path.rpartition(".")[0]
        return use({"image": image, "label": member.label, "name": name})


def _as_sample(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"image": stored_image(record), "label": record["label"], "name": record["name"]}
