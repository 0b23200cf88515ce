"""A tiny made-up Cityscapes: the real folders and file names, pictures of a few blocks.

Each pixel has the colour of its class and some noise, so that even a tiny model can learn it.
"""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from hatcli.data.classes import CITYSCAPES
from hatcli.events import finish
from hatcli.recipes.packing.pack import PackResult, pack

CITIES = {
    "train": ("aachen", "bochum", "zurich"),
    "val": ("frankfurt", "munster"),
    "test": ("berlin", "bonn"),
}
IMAGES_ZIP = "leftImg8bit_trainvaltest.zip"
LABELS_ZIP = "gtFine_trainvaltest.zip"
ARCHIVES_OF = (("leftImg8bit", IMAGES_ZIP), ("gtFine", LABELS_ZIP))
BLOCK = 8  # side of a block of one class, in pixels

_LABELS = [label for label in CITYSCAPES if label.id > 0]


def make_cityscapes(
    root: Path,
    *,
    train: int = 4,
    val: int = 2,
    test: int = 0,
    size: tuple[int, int] = (64, 32),
    seed: int = 0,
) -> Path:
    """Write leftImg8bit/ and gtFine/ under a folder and return that folder.

    Args:
        root: made when it is missing.
        train: pictures in the split, dealt out to its cities in turn.
        val: the same; a split of 0 pictures has no folder.
        test: the same; all its label pixels are 0, as in the published set.
        size: (width, height) in pixels.
        seed: of everything drawn; equal seeds give equal files.
    """
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val), ("test", test)):
        for index in range(count):
            city = CITIES[split][index % len(CITIES[split])]
            image, label_ids = draw_scene(rng, size)
            if split == "test":
                label_ids[:] = 0
            save_pair(root, split, frame_name(city, index), image, label_ids)
    return root


def pack_cityscapes(
    source: Path, split: str = "train", target: Path | None = None, **options: object
) -> PackResult:
    """Pack a split into ``<target or source>/<split>_lmdb``, in this process unless told."""
    options.setdefault("num_workers", 0)
    return finish(pack("cityscapes", source, target, split, **options))


def frame_name(city: str, index: int) -> str:
    """'aachen_000007_000019', the part that an image's and its label's file names share."""
    return f"{city}_{index:06d}_000019"


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One picture.

    Returns:
        (H, W, 3) uint8 RGB, and (H, W) uint8 labelIds 1..33.
    """
    width, height = size
    blocks = rng.integers(0, len(_LABELS), size=(-(-height // BLOCK), -(-width // BLOCK)))
    rows = np.kron(blocks, np.ones((BLOCK, BLOCK), dtype=np.int64))[:height, :width]
    colors = np.array([label.color for label in _LABELS], dtype=np.int64)[rows]
    noise = rng.integers(-12, 13, size=colors.shape)
    image = np.clip(colors + noise, 0, 255).astype(np.uint8)
    label_ids = np.array([label.id for label in _LABELS], dtype=np.uint8)[rows]
    return image, label_ids


def save_pair(
    root: Path, split: str, name: str, image: np.ndarray, label_ids: np.ndarray
) -> tuple[Path, Path]:
    """Write one image and its label where the real set has them; return both paths."""
    image_path = image_file(root, split, name)
    label_path = label_file(root, split, name)
    for path, array in ((image_path, image), (label_path, label_ids)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return image_path, label_path


def image_file(root: Path, split: str, name: str) -> Path:
    """Where the image of a frame lies."""
    return root / "leftImg8bit" / split / name.split("_")[0] / f"{name}_leftImg8bit.png"


def label_file(root: Path, split: str, name: str, kind: str = "labelIds") -> Path:
    """Where the label of a frame lies."""
    return root / "gtFine" / split / name.split("_")[0] / f"{name}_gtFine_{kind}.png"


def zip_cityscapes(root: Path, target: Path, *, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write the two published archives from a made folder into ``target`` and return it."""
    target.mkdir(parents=True, exist_ok=True)
    for folder, archive in ARCHIVES_OF:
        with zipfile.ZipFile(target / archive, "w", compression) as packed:
            packed.writestr("README", "made up")
            for path in sorted((root / folder).rglob("*.png")):
                packed.write(path, path.relative_to(root).as_posix())
    return target
