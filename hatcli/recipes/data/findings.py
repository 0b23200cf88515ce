"""What is wrong in datasets that were looked through, and what is worth knowing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hatcli.data.facts import EXAMPLES, Totals
from hatcli.recipes.data.source import Source

WRONG = {
    "unreadable": "can't be read",
    "no label": "have no label",
    "label of another size": "have a label of another size",
    "illegal label": "have a label that is no class",
    "boxes without classes": "have boxes and classes that don't pair up",
    "box that isn't finite": "have a box with an edge that is NaN or infinite",
    "box without area": "have a box without area",
    "box outside its image": "have a box that reaches out of the image",
}
REPEATED = {
    "leak": "images are shared",
    "contradiction": "images are there more than once, with different labels",
    "duplicate": "images are there more than once",
}
NOTED = {"nothing labelled": "have no labelled pixel"}


@dataclass(frozen=True)
class Finding:
    """One kind of thing that is wrong, or worth knowing.

    Attributes:
        split: where; "train, val" for what is between two.
        is_wrong: whether it is an error, and not only worth knowing.
        kind: a few fixed words.
        count: samples, or classes.
        text: what it is, in one line.
        examples: the first few.
    """

    split: str
    is_wrong: bool
    kind: str
    count: int
    text: str
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{'wrong' if self.is_wrong else 'note'}: {self.split}: {self.text}"


@dataclass(frozen=True)
class Checked:
    """One dataset, looked through."""

    source: Source
    totals: Totals


def find_all(sets: dict[str, Checked]) -> list[Finding]:
    """All findings of datasets, by the name of their split; what is wrong comes first."""
    findings = [finding for name, one in sets.items() for finding in _of_set(name, one)]
    findings += _of_images(sets)
    findings += _of_classes(sets)
    return sorted(findings, key=lambda finding: not finding.is_wrong)


def _of_set(name: str, one: Checked) -> Iterator[Finding]:
    totals = one.totals
    for kind, (count, examples) in totals.problems.items():
        text = f"{count} of {totals.samples} samples {(WRONG | NOTED)[kind]}"
        yield Finding(name, kind in WRONG, kind, count, text, tuple(examples))
    if totals.read and totals.empty == totals.read:
        text = f"nothing is labelled in any of {totals.read} samples"
        yield Finding(name, True, "no labels at all", totals.read, text)
    names = getattr(one.source.dataset, "classes", None)
    wanted = one.source.rules.num_classes
    if names and wanted is not None and len(names) != wanted:
        text = f"the dataset has {len(names)} classes, the model {wanted}"
        yield Finding(name, True, "number of classes", len(names), text)
    held = getattr(one.source.dataset, "split", name)
    if {held, name} == {"train", "val"}:
        yield Finding(name, True, "split", 1, f"the pack says that it holds the split {held!r}")


def _of_classes(sets: dict[str, Checked]) -> Iterator[Finding]:
    """Classes that don't occur, and those that training never sees."""
    for name, one in sets.items():
        counts = one.totals.counts
        absent = [label for index, label in enumerate(one.source.classes) if not counts[index]]
        if absent and one.totals.unit:
            text = f"{len(absent)} of {len(one.source.classes)} classes don't occur"
            yield Finding(name, False, "absent class", len(absent), f"{text}: {_few(absent)}")
        if name == "train":
            continue
        trained = sets["train"].totals.counts if "train" in sets else counts
        classes = one.source.classes
        new = [classes[index] for index in sorted(counts) if not trained[index]]
        if new:
            text = f"{len(new)} classes occur here and not in train: {_few(new)}"
            yield Finding(name, False, "class that isn't in train", len(new), text)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")


def _of_images(sets: dict[str, Checked]) -> Iterator[Finding]:
    """Images that are there more than once, to the pixel; across two sets they are leaks."""
    keys = np.concatenate([_keys(one.totals) for one in sets.values()])
    places = [(name, index) for name, one in sets.items() for index in range(one.totals.samples)]
    kinds: dict[tuple[str, str], list[list[int]]] = {}
    for group in _equal_rows(keys):
        splits = list(dict.fromkeys(places[row][0] for row in group))
        where = ", ".join(splits)
        if len(splits) > 1:
            kinds.setdefault((where, "leak"), []).append(group)
        if len({keys[row, 2:].tobytes() for row in group}) > 1:
            kinds.setdefault((where, "contradiction"), []).append(group)
        elif len(splits) == 1:
            kinds.setdefault((where, "duplicate"), []).append(group)
    for (where, kind), groups in kinds.items():
        examples = tuple(
            _names(sets, [places[row] for row in group]) for group in groups[:EXAMPLES]
        )
        text = f"{len(groups)} {REPEATED[kind]}"
        yield Finding(where, kind != "duplicate", kind, len(groups), text, examples)


def _keys(totals: Totals) -> NDArray[np.uint64]:
    """Two numbers of each image and two of its label."""
    return np.frombuffer(bytes(totals.digests), np.uint64).reshape(-1, 4)


def _equal_rows(keys: NDArray[np.uint64]) -> list[list[int]]:
    """Rows of which the first two numbers are equal and not 0, in groups of two or more."""
    if len(keys) == 0:
        return []
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ordered = keys[order, :2]
    starts = np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]).any(1)])
    lengths = np.diff(np.r_[starts, len(order)])
    several = (lengths > 1) & ordered[starts].any(1)
    return [
        sorted(order[start : start + length].tolist())
        for start, length in zip(starts[several], lengths[several], strict=True)
    ]


def _names(sets: dict[str, Checked], places: list[tuple[str, int]]) -> str:
    """'train aachen_000001, val bonn_000002'; they are few, so their samples are read again."""
    shown = [f"{name} {sets[name].source.dataset[index]['name']}" for name, index in places[:4]]
    return ", ".join(shown) + (", ..." if len(places) > 4 else "")
