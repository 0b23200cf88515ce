"""hat data show: samples of a dataset on one sheet, raw or as training gets them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hatcli.config import Config
from hatcli.data.classes import palette_of
from hatcli.data.loader import Batch, Loader
from hatcli.data.transforms import MIXES, TRANSFORMS
from hatcli.errors import UsageError
from hatcli.events import Job, Progress
from hatcli.recipes.data.source import SPLITS, Source, is_pack, open_sources
from hatcli.report.boxes import distinct_palette
from hatcli.report.pictures import write_png
from hatcli.report.sheet import Tile, contact_sheet

MOST = 100
BACKGROUND = "background"
MARKS = ("crowd", "difficult")


@dataclass(frozen=True)
class ShowResult:
    """A sheet.

    Attributes:
        file: where it is.
        split: of the samples.
        names: of the samples, in the order of the sheet.
    """

    file: Path
    split: str
    names: list[str]


def show_data(
    targets: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    split: str | None = None,
    count: int = 16,
    augmented: bool = False,
    seed: int | None = None,
    out: Path | None = None,
) -> Job[ShowResult]:
    """Draw samples on a sheet.

    They are the first of the first epoch of a training of that seed. Augmented, they are also
    transformed, and mixed, with the random numbers of that epoch; what follows on the device (the
    batch transforms: colour space, normalisation) makes no picture and is left out.

    Args:
        targets: one config, or the folder of a pack.
        overrides: "key=value" changes of the config.
        split: "train" or "val" of a config; "train" unless given.
        count: of samples, 1 to 100.
        augmented: whether they go through the transforms of their split.
        seed: of the choice and of the transforms; None for that of the config, or 0.
        out: the .png file; None for one in this folder, named after the dataset.

    Raises:
        HatError: the data can't be opened, a sample is damaged, or the file can't be written.
    """
    _require(targets, count, augmented, out)
    wanted = split if is_pack(targets[0]) else split or SPLITS[0]
    config, sources = open_sources(targets, overrides, wanted)
    source = sources[0]
    if seed is None:
        seed = config["seed"] if config else 0
    count = min(count, len(source.dataset))
    tiles: list[Tile] = []
    names: list[str] = []
    for batch in _batches(config if augmented else None, source, seed):
        for tile, name in zip(tiles_of(batch, source), batch.names, strict=True):
            tiles.append(tile)
            names.append(name)
        yield Progress("drawing", min(len(tiles), count), count, "samples")
        if len(tiles) >= count:
            break
    tiles, names = tiles[:count], names[:count]
    file = out or Path(_file_name(config, targets[0], source, augmented=augmented))
    title = _title(config if augmented else None, source, count, seed)
    write_png(file, sheet_of(tiles, source, title))
    return ShowResult(file, source.split, names)


def _require(targets: Sequence[str], count: int, augmented: bool, out: Path | None) -> None:
    if len(targets) != 1:
        raise UsageError("which data?", "name one config, e.g. unet, or one pack")
    if not 1 <= count <= MOST:
        raise UsageError(f"--count {count}: give 1 to {MOST}")
    if augmented and is_pack(targets[0]):
        raise UsageError(
            f"{targets[0]}: a pack has no transforms",
            "name the config that has: hat data show unet",
        )
    if out is not None and out.suffix.lower() != ".png":
        raise UsageError(f"{out}: a sheet is a .png file")


def _batches(config: Config | None, source: Source, seed: int) -> Iterator[Batch]:
    """Batches of the first epoch, with the config's transforms where there is one."""
    node: Any = config[source.split] if config else {}
    mix = node.get("mix")
    loader = Loader(
        source.dataset,
        [TRANSFORMS.build(transform) for transform in node.get("transforms", [])],
        mix=None if mix is None else MIXES.build(mix),
        batch_size=1 if mix is None else node.get("batch_size", 1),
        shuffle=True,
        seed=seed,
    )
    return loader.epoch(0)


def tiles_of(batch: Batch, source: Source) -> Iterator[Tile]:
    """A tile for each sample of a batch, with its label, boxes or class."""
    images = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
    for image, target, name in zip(images, batch.targets, batch.names, strict=True):
        if isinstance(target, dict):
            yield _boxes_tile(image, target, name)
        elif target.ndim == 2:
            yield Tile(image, [name], label=target.numpy())
        else:
            yield Tile(image, [_class_text(target, source.classes), name])


def _boxes_tile(image: np.ndarray, target: dict[str, torch.Tensor], name: str) -> Tile:
    boxes, classes = target["boxes"].numpy(), target["classes"].numpy()
    marks = [""] * len(boxes)
    for word in MARKS:
        for index in np.flatnonzero(target[word].numpy()) if word in target else ():
            marks[index] = word
    height, width = target["size"].tolist()
    lines = [name] if len(boxes) else [name, "no boxes"]
    return Tile(image[:height, :width], lines, boxes=boxes, classes=classes, marks=marks)


def _class_text(target: torch.Tensor, classes: Sequence[str]) -> str:
    """'tench', or of a mixed image '60 % tench + 40 % church'."""
    if target.ndim == 0:
        return _name(int(target), classes)
    shares = {int(label): float(target[label]) for label in target.nonzero()}
    if len(shares) == 1:
        return _name(next(iter(shares)), classes)
    parts = sorted(shares.items(), key=lambda part: -part[1])
    return " + ".join(f"{100 * share:.0f} % {_name(label, classes)}" for label, share in parts)


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if 0 <= label < len(classes) else f"class {label}"


def sheet_of(tiles: Sequence[Tile], source: Source, title: str) -> np.ndarray:
    """The tiles on one sheet, (H, W, 3) uint8, with the colours of the source's classes."""
    classes = list(source.classes)
    highest = max((int(tile.classes.max()) for tile in tiles if len(tile.classes)), default=-1)
    classes += [f"class {label}" for label in range(len(classes), highest + 1)]
    seen = Counter(label for tile in tiles for label in tile.classes.tolist())
    shown = [label for label, _ in seen.most_common()]
    palette = palette_of(source.classes) or distinct_palette(len(classes), shown)
    hidden = classes.index(BACKGROUND) if BACKGROUND in classes else None
    return contact_sheet(tiles, classes, palette, title=title, hidden=hidden)


def _title(config: Config | None, source: Source, count: int, seed: int) -> str:
    title = f"{source.where}, {count} of {len(source.dataset)} samples, seed {seed}"
    if config is None:
        return title
    node = config[source.split]
    parts = [part["type"] for part in node.get("transforms", [])]
    if node.get("mix") is not None:
        parts.append(node["mix"]["type"])
    return f"{title}, after {', '.join(parts) or 'no transform'}"


def _file_name(config: Config | None, target: str, source: Source, *, augmented: bool) -> str:
    """'unet-train-augmented.png', or 'train_lmdb.png' of a pack."""
    if config is None:
        return f"{Path(target).resolve().name}.png"
    return f"{config.name}-{source.split}{'-augmented' if augmented else ''}.png"
