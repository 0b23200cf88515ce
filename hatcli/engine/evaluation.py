"""The evaluation loop: a generator of events that returns a metric's values."""

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from hatcli.engine.device import move
from hatcli.engine.distributed import gather, processes
from hatcli.errors import ConfigError, DataError, did_you_mean
from hatcli.events import Event, Progress, headline

LoadedBatch = tuple[Tensor, Any, list[str]]
"""uint8 images (N, 3, H, W), targets and the names of the samples.

Targets are a tensor, or with boxes a list of dicts of tensors."""


class Metric(Protocol):
    """Collects scores over a dataset.

    To be used by several processes, of which each takes every n-th sample, it has two more
    methods: ``counted()`` gives all that was taken in, of any type that pickles, and
    ``merge(parts)`` puts what all processes counted, by rank, in the place of its own.

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
        total: images in all, of which each of several processes has its part.
        on_scores: gets the images, scores, targets and names of each batch, for pictures.

    Raises:
        DataError: there are no images.
        ConfigError: the metric doesn't give the value that picks the best checkpoint.
    """
    done = 0
    for images, targets, names in batches:
        scores = model(prepare(images.to(device, non_blocking=True)))
        metric.update(scores, move(targets, device))
        if on_scores is not None:
            on_scores(images, scores, targets, names)
        done += len(names)
        yield Progress(activity, min(done * processes(), total), total)
    if done == 0 and (total == 0 or processes() == 1):
        raise DataError("nothing to evaluate: the dataset is empty")
    if processes() > 1:
        require_merging(metric)
        shared: Any = metric
        shared.merge(gather(shared.counted()))
    values = metric.compute()
    require_best_by(metric, values)
    return values


def require_best_by(metric: Metric, values: Mapping[str, float]) -> None:
    """Refuse values by which no checkpoint could ever be the best.

    Raises:
        ConfigError: the one that ``best_by`` names isn't among them; the others are told.
    """
    if metric.best_by not in values:
        raise ConfigError(
            f"metric {type(metric).__name__!r}: best_by is {metric.best_by!r}, "
            "which compute() doesn't give",
            did_you_mean(metric.best_by, headline(values)),
        )


def require_merging(metric: Metric) -> None:
    """Refuse a metric that several processes can't use.

    Raises:
        ConfigError: it has no ``counted`` and ``merge``.
    """
    if processes() > 1 and not (hasattr(metric, "counted") and hasattr(metric, "merge")):
        raise ConfigError(
            f"metric {type(metric).__name__!r}: {processes()} processes can't put together what "
            "they counted",
            "give it the methods counted() and merge(parts), or train with one process",
        )
