"""What the measurements of ``hat bench train`` say, and what to change by them."""

import math
import os
from dataclasses import dataclass, field, replace
from typing import Any

from hatcli.config import Config

WORTH = 0.93  # of the time: what saves less is not worth a change
MUCH = 0.1  # of a step


@dataclass(frozen=True)
class Part:
    """A part of a step, in the mean of the steps."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Alternative:
    """Another way to compute the step.

    Attributes:
        seconds: an image, in the fastest step, without waiting for data.
        ratio: to float32 in NCHW layout, without compiling.
        is_own: whether it is the recipe's.
        changes: of the node ``fit``.
    """

    name: str
    seconds: float
    ratio: float
    is_own: bool
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchResult:
    """Where the time of a training step goes.

    Attributes:
        batch: images of a step.
        size: height and width of an image.
        images_per_s: of the recipe as it is, waiting for data included.
        peak_memory: bytes at most, of the GPU or of the process.
        parts: of a step.
        reading: part -> seconds that an image takes on one core; empty without data.
        alternatives: the first one is the base of the ratios.
        advice: what to change, with what it brings.
    """

    config: str
    device: str
    batch: int
    size: tuple[int, ...]
    images_per_s: float
    peak_memory: int
    parts: list[Part]
    reading: dict[str, float]
    alternatives: list[Alternative]
    advice: list[str]


def advice(result: BenchResult, config: Config, *, has_data: bool) -> BenchResult:
    """The result with its advice."""
    found = [*_compute(result, config)]
    if has_data:
        found += _read(result, config)
    return replace(result, advice=found or ["nothing that was tried is faster"])


def _compute(result: BenchResult, config: Config) -> list[str]:
    own = next(one for one in result.alternatives if one.is_own)
    found = []
    best = min((one for one in result.alternatives if one.changes), key=lambda one: one.seconds)
    if best.seconds < WORTH * own.seconds:
        words = [
            f"fit.{key}={value}"
            for key, value in best.changes.items()
            if key != "compile" and value != own.changes[key]
        ]
        found.append(f"{' '.join(words)}: {best.seconds / own.seconds:.2f} of the time")
    for one in result.alternatives:
        gain = one.seconds / own.seconds
        if one.changes or gain > WORTH:
            continue
        if one.name == "compile":
            found.append(f"fit.compile=True: {gain:.2f} of the time, once it is compiled")
        elif one.name.startswith("batch "):
            size = one.name.removeprefix("batch ")
            found.append(
                f"train.batch_size={size}: {gain:.2f} of the time an image; a larger batch wants "
                "a larger optim.lr"
            )
        else:
            count = one.name.partition(" ")[0]
            found.append(f"OMP_NUM_THREADS={count}: {gain:.2f} of the time")
    seconds = {part.name: part.seconds for part in result.parts}
    share = seconds.get("optimiser", 0.0) / sum(seconds.values())
    if share > MUCH and config["optim"].get("fused") is False:
        found.append(f"optim.fused=True: the optimiser takes {100 * share:.0f} % of a step")
    return found


def _read(result: BenchResult, config: Config) -> list[str]:
    seconds = {part.name: part.seconds for part in result.parts}
    waiting = seconds.get("waiting", 0.0)
    if waiting < MUCH * sum(seconds.values()):
        return []
    compute = sum(seconds.values()) - waiting
    image = sum(result.reading.values())
    needed = max(1, math.ceil(image * result.batch / max(compute, 1e-9)))
    cores = len(os.sched_getaffinity(0))
    has = config["train"].get("num_workers", 0)
    say = (
        f"a step waits {1000 * waiting:.0f} ms for data: an image takes {1000 * image:.1f} ms on "
        f"one core, and the step has {1000 * compute / result.batch:.1f} ms for each"
    )
    found = []
    if has < needed <= cores and (result.device != "cpu" or needed < cores):
        found.append(f"train.num_workers={needed}: {say}")
    else:
        found.append(f"{say}; more train.num_workers than {has} don't help on {cores} cores")
    slowest = max(result.reading, key=lambda part: result.reading[part])
    share = result.reading[slowest] / image
    if slowest.startswith("read"):
        found.append(
            f"{slowest!r} is {100 * share:.0f} % of reading an image: RandomScaleCropFlip in place "
            "of RandomScale, RandomCrop and RandomFlip, and packs with --image-format strips, "
            "decode only what a crop shows; smaller pictures in the pack help most"
        )
    else:
        found.append(
            f"{slowest} is {100 * share:.0f} % of reading an image: do without it, or weaken it"
        )
    return found
