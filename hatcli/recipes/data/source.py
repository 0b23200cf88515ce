"""The datasets that a command line names: those of a config, or packs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hatcli.config import Config, load_config, shipped_configs
from hatcli.data.classes import IGNORE
from hatcli.data.datasets import DATASETS
from hatcli.data.facts import Rules
from hatcli.data.loader import SampleSource
from hatcli.data.packs.reader import open_pack
from hatcli.errors import UsageError, did_you_mean
from hatcli.recipes.build import build_dataset
from hatcli.recipes.check import check_config

SPLITS = ("train", "val")

READERS = {
    ("cityscapes", "segmentation"): "Cityscapes",
    ("imagenet", "classification"): "ImageNet",
    ("voc", "detection"): "VOCDetection",
    ("voc", "segmentation"): "VOCSegmentation",
    ("mscoco", "detection"): "CocoDetection",
}
"""(dataset, task) of a pack -> the dataset that reads it."""


@dataclass(frozen=True)
class Source:
    """A dataset to look at.

    Attributes:
        split: "train" or "val" of a config; of a pack the split that it holds.
        where: what messages call it.
        rules: what its labels may be.
    """

    split: str
    where: str
    dataset: SampleSource
    rules: Rules

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, or their numbers."""
        names = getattr(self.dataset, "classes", None)
        return tuple(names or map(str, range(self.rules.num_classes or 0)))


def open_sources(
    targets: Sequence[str], overrides: Sequence[str], split: str | None
) -> tuple[Config | None, list[Source]]:
    """The datasets of one config, or of one or more packs.

    Args:
        targets: one config, or folders of packs.
        overrides: "key=value" changes of the config.
        split: which of them; None for all.

    Raises:
        UsageError: there is no such config, pack or split.
        PackError: a pack can't be trusted.
    """
    if not targets:
        raise UsageError("which data?", "name a config, e.g. unet, or a pack such as train_lmdb")
    if len(set(targets)) < len(targets):
        raise UsageError(f"{max(targets, key=list(targets).count)}: named twice")
    if any(is_pack(target) for target in targets):
        if overrides:
            raise UsageError(f"{overrides[0]!r}: a pack has no settings", "name a config instead")
        return None, _chosen([_open_pack(Path(target)) for target in targets], split)
    if len(targets) > 1:
        raise UsageError(f"one config is enough, got {' and '.join(targets)}")
    config = load_config(targets[0], overrides)
    check_config(config)
    if split is not None and split not in SPLITS:
        raise UsageError(f"a config has no split {split!r}", did_you_mean(split, SPLITS))
    return config, [_of_config(config, name) for name in SPLITS if split in (None, name)]


def is_pack(target: str) -> bool:
    """Whether a word names a folder and no config."""
    return Path(target).is_dir() and target not in shipped_configs()


def _of_config(config: Config, split: str) -> Source:
    dataset = build_dataset(config, split)
    classes = config["model"].get("num_classes", config["metric"].get("num_classes"))
    if classes is None:
        names = getattr(dataset, "classes", None)
        classes = len(names) if names else None
    ignored = config["metric"].get("ignore_index", IGNORE)
    return Source(split, f"{config.name}: {split}", dataset, Rules(classes, ignored))


def _open_pack(path: Path) -> Source:
    with open_pack(path) as pack:
        meta = pack.meta
    kind = meta.get("dataset"), meta.get("task")
    if kind not in READERS:
        raise UsageError(
            f"{path}: no dataset is known that reads {kind[0]!r} for {kind[1]!r}",
            "name a config whose dataset reads it",
        )
    dataset = DATASETS.build({"type": READERS[kind], "path": str(path)}, root=Path())
    rules = Rules(meta.get("num_classes"), meta.get("ignore_index", IGNORE))
    return Source(str(meta.get("split", path.name)), str(path), dataset, rules)


def _chosen(sources: list[Source], split: str | None) -> list[Source]:
    names = [source.split for source in sources]
    if len(set(names)) < len(names):  # two packs of one split go by their folders
        sources = [replace(one, split=one.where) for one in sources]
    if split is None:
        return sources
    found = [source for source, name in zip(sources, names, strict=True) if name == split]
    if not found:
        raise UsageError(f"no pack of split {split!r}: {', '.join(names)}")
    return found
