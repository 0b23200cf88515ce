"""Small data whose splits are packed, for tests that run whole commands."""

from pathlib import Path

from made_cityscapes import make_cityscapes, pack_cityscapes

from hatcli.data.scenes.draw import write_scenes


def packed_blocks(root: Path, *, train: int, val: int, size: tuple[int, int] = (128, 96)) -> Path:
    """Pictures of coloured blocks; gives the folder."""
    return _pack(make_cityscapes(root, train=train, val=val, size=size))


def packed_streets(root: Path, *, train: int, val: int, size: tuple[int, int] = (128, 64)) -> Path:
    """Drawn streets; gives the folder."""
    list(write_scenes(root, train=train, val=val, size=size))
    return _pack(root)


def _pack(root: Path) -> Path:
    for split in ("train", "val"):
        pack_cityscapes(root, split)
    return root
