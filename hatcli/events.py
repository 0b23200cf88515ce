"""What a long job reports while it runs; only the command line draws it.

A recipe is a generator: it yields these events and returns its result. ``str(event)`` is its
line in a log.
"""

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Note:
    """A line worth reading once."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Warned:
    """A line about something that may be wrong and didn't stop the job."""

    text: str

    def __str__(self) -> str:
        return f"warning: {self.text}"


@dataclass(frozen=True)
class Progress:
    """How far one activity has come.

    Attributes:
        activity: what is done, e.g. "packing train"; a new one starts a new bar.
        done: units done so far.
        total: units in all.
        unit: the plural noun counted, e.g. "images".
        detail: a short changing remark, e.g. "loss 1.23".
    """

    activity: str
    done: int
    total: int
    unit: str = "images"
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.activity}: {self.done}/{self.total} {self.unit}  {self.detail}".rstrip()


@dataclass(frozen=True)
class StepDone:
    """The optimiser has stepped; only every n-th step is reported.

    Attributes:
        epoch: counted from 1.
        step: within the epoch, counted from 1.
        steps: in the epoch.
        loss: mean since the last report.
        lr: learning rate of the first parameter group.
        images_per_s: since the last report.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    lr: float
    images_per_s: float

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch}/{self.epochs}  step {self.step}/{self.steps}  "
            f"loss {self.loss:.4g}  {self.images_per_s:.1f} images/s"
        )


@dataclass(frozen=True)
class EpochDone:
    """An epoch, its validation included, is over.

    Attributes:
        train: e.g. {"loss": 0.81}; a mean over the epoch's images.
        val: metric name -> value, in percent; empty when not validated.
        lr: learning rate of the first parameter group at the end.
        images_per_s: of training alone.
        seconds: wall time of the epoch, validation included.
        is_best: whether its validation is the best so far.
    """

    epoch: int
    epochs: int
    train: Mapping[str, float]
    val: Mapping[str, float]
    lr: float
    images_per_s: float
    seconds: float
    is_best: bool = False

    def __str__(self) -> str:
        cells = [f"{self.epoch:>5}", f"{self.train['loss']:>8.4f}", f"{self.lr:>8.2e}"]
        cells += [f"{self.images_per_s:>8.1f}", f"{self.seconds:>7.1f}"]
        values = headline(self.val)
        for head, value in zip(percent_heads(values), values.values(), strict=True):
            cells.append(f"{value:>{max(len(head), 6)}.2f}")
        return " ".join(cells) + ("  best" if self.is_best else "")

    def header(self) -> str:
        """The line above the first epoch's line; metrics stand last, not each epoch has them."""
        names = [f"{head:>6}" for head in percent_heads(headline(self.val))]
        return " ".join(
            [f"{'epoch':>5}", f"{'loss':>8}", f"{'lr':>8}", "images/s", "seconds", *names]
        )


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without those of single classes, whose names hold a dot."""
    return {name: value for name, value in metrics.items() if "." not in name}


def percent_heads(names: Iterable[str]) -> list[str]:
    """Column heads of metrics: the first one says that all are in percent."""
    return [name if place else f"{name} %" for place, name in enumerate(names)]


def percents(metrics: Mapping[str, float], between: str = "   ") -> str:
    """The headline metrics in a line: 'mIoU 61.03 %   aAcc 90.37 %'."""
    return between.join(
        f"{name} {'-' if math.isnan(value) else f'{value:.2f} %'}"
        for name, value in headline(metrics).items()
    )


def size_text(size_bytes: int) -> str:
    """'4.0 MB'; below 100 kB '24.7 kB'."""
    return f"{size_bytes / 1e3:.1f} kB" if size_bytes < 100_000 else f"{size_bytes / 1e6:.1f} MB"


Event = Note | Warned | Progress | StepDone | EpochDone
Job = Generator[Event, None, T]


def finish(job: Job[T], show: Callable[[Event], object] | None = None) -> T:
    """What a job returns, once it is done.

    Args:
        show: gets each event, e.g. ``print``.
    """
    while True:
        try:
            event = next(job)
        except StopIteration as finished:
            result: T = finished.value
            return result
        if show is not None:
            show(event)
