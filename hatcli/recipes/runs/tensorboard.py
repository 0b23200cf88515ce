"""The figures of a training for TensorBoard, where that is installed."""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatcli.events import EpochDone, Event, StepDone, headline


class Board:
    """Writes scalars into a folder for ``tensorboard --logdir``.

    Nothing is imported or written before there is a figure; and nothing at all without the
    package tensorboard (``pip install 'hatcli[log]'``).

    Args:
        folder: made with the first figure.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._steps = 0  # of an epoch, as far as they are known

    def record(self, event: Event) -> None:
        """Write the figures of an event, at the number of steps since the start of the run."""
        if not isinstance(event, StepDone | EpochDone) or not is_installed():
            return
        if isinstance(event, StepDone):
            self._steps = event.steps
        if self._writer is None:
            from tensorboard.summary import Writer

            self._writer = Writer(str(self._folder))
        step = at(event, self._steps)
        for name, value in figures(event):
            self._writer.add_scalar(name, value, step)
        if isinstance(event, EpochDone):
            self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


def is_installed() -> bool:
    """Whether TensorBoard is there."""
    return find_spec("tensorboard") is not None


def at(event: StepDone | EpochDone, steps: int) -> int:
    """Steps since the start of the run.

    Args:
        steps: of an epoch; 0 if unknown.
    """
    if isinstance(event, StepDone):
        return (event.epoch - 1) * event.steps + event.step
    return event.epoch * steps


def figures(event: StepDone | EpochDone) -> Iterator[tuple[str, float]]:
    """Name and value of what an event tells, without what isn't finite."""
    if isinstance(event, StepDone):
        named = {"train/loss": event.loss, "train/lr": event.lr,
                 "train/images_per_s": event.images_per_s}  # fmt: skip
    else:
        named = {f"val/{name}": value for name, value in headline(event.val).items()}
        named |= {f"epoch/{name}": value for name, value in event.train.items()}
    yield from ((name, value) for name, value in named.items() if math.isfinite(value))
