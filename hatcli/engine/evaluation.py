"""The evaluation loop: a generator of events that returns a metric's values."""

from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from hatcli.engine.device import move
from hatcli.errors import DataError
from hatcli.events import Event, Progress

LoadedBatch = tuple[Tensor, Any, list[str]]
"""uint8 images (N, 3, H, W), targets and the names of the samples.

Targets are a tensor, or with boxes a list of dicts of tensors."""


class Metric(Protocol):
    """Collects scores over a data set.

    Attributes:
        best_by: name of the value that picks the best checkpoint; higher is better.
    """

    best_by: str

    def update(self, scores: Any, targets: Any) -> None:
        """Take in a batch of raw scores (or index maps) and its targets."""

    def compute(self) -> dict[str, float]:
        """Name -> value of all that was taken in, in percent where it is a share."""
        ...

    def reset(self) -> None:
        """Forget what was taken in."""


@torch.inference_mode()
def evaluate(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[LoadedBatch],
    metric: Metric,
    *,
    prepare: Callable[[Tensor], Tensor],
    device: torch.device,
    total: int,
    activity: str = "evaluating",
    on_scores: Callable[[Tensor, Any, Any, list[str]], None] | None = None,
) -> Generator[Event, None, dict[str, float]]:
    """Score a model on all batches and return the metric's values.

    Args:
        model: images to raw scores, or to an index map; it must be in evaluation mode.
        total: images in all, for the progress.
        on_scores: gets the images, scores, targets and names of each batch, for pictures.
    """
    done = 0
    for images, targets, names in batches:
        scores = model(prepare(images.to(device, non_blocking=True)))
        metric.update(scores, move(targets, device))
        if on_scores is not None:
            on_scores(images, scores, targets, names)
        done += len(names)
        yield Progress(activity, done, total)
    if done == 0:
        raise DataError("nothing to evaluate: the data set is empty")
    return metric.compute()
