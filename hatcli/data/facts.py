"""What one sample holds and what is wrong with it, and the sums over a dataset."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hatcli.errors import HatError

OVER_BORDER = 1.0
"""Pixels by which a box may reach over the border: what rounding does."""

EXAMPLES = 5


@dataclass(frozen=True)
class Rules:
    """What a label may be.

    Attributes:
        num_classes: labels are 0 to one less; None where that isn't known.
        ignore_index: value of pixels without a class.
    """

    num_classes: int | None
    ignore_index: int = 255


@dataclass
class Facts:
    """One sample, looked at.

    Attributes:
        unit: what is counted of each class: "pixels", "boxes" or "images".
        counts: class -> how many.
        ignored: pixels without a class.
        pixels: of the image.
        sums: (3,) levels of red, green and blue, added up.
        squares: (3,) the same of their squares.
        digest: 16 bytes, equal where the pixels are.
        label_digest: 16 bytes, equal where all that is known of the image is.
        problems: (kind, what it is in this sample).
    """

    name: str
    size: tuple[int, int] = (0, 0)
    unit: str = ""
    counts: dict[int, int] = field(default_factory=dict)
    ignored: int = 0
    sums: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(3, np.uint64))
    squares: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(3, np.uint64))
    digest: bytes = b""
    label_digest: bytes = b""
    problems: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Totals:
    """Facts added up over a dataset.

    Attributes:
        samples: looked at.
        read: of them, those that could be.
        sizes: (width, height) -> images.
        images: class -> images in which it occurs.
        empty: images without a box, or without a labelled pixel.
        problems: kind -> how many samples have it, and the first few by index and text.
        digests: 32 bytes a sample: of the pixels, then of the label; zeros where it can't be read.
    """

    samples: int = 0
    read: int = 0
    unit: str = ""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    counts: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    ignored: int = 0
    empty: int = 0
    sums: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(3, np.uint64))
    squares: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(3, np.uint64))
    problems: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    digests: bytearray = field(default_factory=bytearray)

    def add(self, facts: Facts) -> None:
        """Take in the next sample."""
        self.samples += 1
        self.digests += (facts.digest + facts.label_digest) or bytes(32)
        for kind, text in facts.problems:
            count, examples = self.problems.get(kind, (0, []))
            if len(examples) < EXAMPLES:
                examples = [*examples, f"{facts.name}: {text}" if text else facts.name]
            self.problems[kind] = count + 1, examples
        if not facts.digest:
            return
        self.read += 1
        self.unit = facts.unit or self.unit
        self.sizes[facts.size] += 1
        self.counts.update(facts.counts)
        self.images.update(facts.counts.keys())
        self.ignored += facts.ignored
        self.empty += not facts.counts
        self.sums += facts.sums
        self.squares += facts.squares

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Of red, green and blue over all pixels, in levels from 0 to 255."""
        pixels = sum(width * height * n for (width, height), n in self.sizes.items())
        mean = self.sums / max(pixels, 1)
        variance = self.squares / max(pixels, 1) - mean**2
        return mean.tolist(), np.sqrt(np.maximum(variance, 0)).tolist()


def look_at(dataset: Any, index: int, rules: Rules) -> Facts:
    """What a sample holds; one that can't be read is a problem and no error."""
    try:
        sample = dataset[index]
    except HatError as error:
        return Facts(f"sample {index}", problems=[("unreadable", error.message)])
    return facts_of(sample, rules)


def facts_of(sample: Mapping[str, Any], rules: Rules) -> Facts:
    """What a decoded sample holds, and what of it is against the rules."""
    image: NDArray[np.uint8] = sample["image"]
    facts = Facts(str(sample["name"]), size=(image.shape[1], image.shape[0]))
    facts.sums, facts.squares = _sums(image), _sums(np.square(image, dtype=np.uint16))
    facts.digest = _digest(image)
    label = sample.get("label")
    if "boxes" in sample:
        facts.label_digest = _digest(np.asarray(sample["boxes"]), np.asarray(sample["classes"]))
        _look_at_boxes(sample, rules, facts)
    elif isinstance(label, np.ndarray) and label.ndim > 0:
        facts.label_digest = _digest(label)
        _look_at_map(label, rules, facts)
    elif label is None:
        facts.label_digest = _digest()
        facts.problems.append(("no label", ""))
    else:
        facts.label_digest = _digest(np.asarray(label))
        _look_at_class(int(label), rules, facts)
    return facts


def _look_at_map(label: NDArray[np.integer], rules: Rules, facts: Facts) -> None:
    facts.unit = "pixels"
    if label.shape != facts.size[::-1]:
        sizes = (
            f"{'x'.join(map(str, label.shape[::-1]))}, its image {facts.size[0]}x{facts.size[1]}"
        )
        facts.problems.append(("label of another size", sizes))
    found = _counted(label)
    facts.ignored = found.pop(rules.ignore_index, 0)
    illegal = [value for value in found if not _is_legal(value, rules)]
    if illegal:
        listed = ", ".join(map(str, illegal[:8])) + (", ..." if len(illegal) > 8 else "")
        facts.problems.append(("illegal label", f"ids {listed}"))
    facts.counts = {value: n for value, n in found.items() if value not in illegal}
    if not found:
        facts.problems.append(("nothing labelled", ""))


def _look_at_class(label: int, rules: Rules, facts: Facts) -> None:
    facts.unit = "images"
    if _is_legal(label, rules):
        facts.counts = {label: 1}
    else:
        facts.problems.append(("illegal label", f"class {label}"))


def _look_at_boxes(sample: Mapping[str, Any], rules: Rules, facts: Facts) -> None:
    facts.unit = "boxes"
    boxes, classes = np.asarray(sample["boxes"], np.float64), np.asarray(sample["classes"])
    if boxes.ndim != 2 or boxes.shape[1] != 4 or classes.shape != boxes.shape[:1]:
        shapes = f"boxes {boxes.shape}, classes {classes.shape}"
        facts.problems.append(("boxes without classes", shapes))
        return
    illegal = [value for value in classes.tolist() if not _is_legal(value, rules)]
    if illegal:
        facts.problems.append(("illegal label", f"class {illegal[0]}"))
    facts.counts = dict(Counter(value for value in classes.tolist() if _is_legal(value, rules)))
    width, height = facts.size
    low, high = boxes[:, :2], boxes[:, 2:]
    wrong = {
        "box that isn't finite": ~np.isfinite(boxes).all(1),
        "box without area": ~(high > low).all(1) & np.isfinite(boxes).all(1),
        "box outside its image": (low < -OVER_BORDER).any(1)
        | (high > np.array([width, height]) + OVER_BORDER).any(1),
    }
    for kind, which in wrong.items():
        if which.any():
            first = ", ".join(f"{edge:g}" for edge in boxes[which][0])
            facts.problems.append((kind, f"{first} in {width}x{height}"))


def _is_legal(value: int, rules: Rules) -> bool:
    return value >= 0 and (rules.num_classes is None or value < rules.num_classes)


def _counted(label: NDArray[np.integer]) -> dict[int, int]:
    """Value -> pixels."""
    if label.dtype == np.uint8:  # ten times as fast as sorting
        counts = np.bincount(label.ravel(), minlength=256)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(label, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _sums(values: NDArray[np.unsignedinteger]) -> NDArray[np.uint64]:
    """(3,) sums of (H, W, 3) numbers of up to 16 bits; down the columns first, which is faster."""
    height, width = values.shape[:2]
    kind = np.uint32 if height < 65536 else np.uint64
    return values.reshape(height, -1).sum(0, dtype=kind).reshape(width, 3).sum(0, dtype=np.uint64)


def _digest(*arrays: NDArray[Any]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
