"""Score sets of raised layers on some images, and let the search choose among them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hatcli.engine.device import move
from hatcli.engine.evaluation import LoadedBatch
from hatcli.events import Event, Job, Note, Progress
from hatcli.quantize.analysis.raising import How, Raiser, exception_of, order_by_gain
from hatcli.quantize.analysis.search import Search, Trial
from hatcli.quantize.analysis.sensitivity import LayerDamage, Sensitivity
from hatcli.quantize.bias_correction import correct_biases
from hatcli.recipes.build import build_loader
from hatcli.recipes.training.calibrate import EvenSubset
from hatcli.recipes.training.workbench import Workbench

KEPT_BYTES = 1 << 30  # of images that stay in memory between trials
SURELY = 2.0  # times the budget, and as many points more, that end a trial early
FIRST_QUARTER = 4


@dataclass
class TrialImages:
    """Some of the validation images, the same for each trial.

    Attributes:
        exact: the float model's metric after each batch, in percent.
    """

    bench: Workbench
    count: int
    exact: list[float] = field(default_factory=list)
    _kept: list[LoadedBatch] = field(default_factory=list)

    def __post_init__(self) -> None:
        subset = EvenSubset(self.bench.val_set, self.count)
        self.total = len(subset)
        self._loader = build_loader(self.bench.config, "val", subset)

    def batches(self) -> Any:
        """The batches, out of memory where they fit."""
        if self._kept:
            yield from self._kept
            return
        kept: list[LoadedBatch] = []
        size = 0
        for batch in self._loader.epoch(0):
            size += batch[0].numel()
            kept.append(batch)
            if size > KEPT_BYTES:
                kept = []
            yield batch
        if kept and size <= KEPT_BYTES:
            self._kept = kept

    def prepared(self, images: Tensor) -> Tensor:
        """The model's input of uint8 images."""
        bench = self.bench
        with torch.no_grad():
            result: Tensor = bench.prepare(images.to(bench.device))
        return result

    def score_float(self, model: nn.Module) -> Job[float]:
        """The float model's metric, which the others are compared with."""
        return (yield from self._score(model, "scoring in float", None))

    def drop(self, model: nn.Module, activity: str, max_drop: float) -> Job[float]:
        """What a model loses to float, in points; of part of the images if it is far too much."""
        return (yield from self._score(model, activity, max_drop))

    @torch.no_grad()
    def _score(self, model: nn.Module, activity: str, max_drop: float | None) -> Job[float]:
        bench, exact, done = self.bench, [], 0
        bench.metric.reset()
        for position, (images, targets, names) in enumerate(self.batches()):
            bench.metric.update(model(self.prepared(images)), move(targets, bench.device))
            value = bench.metric.compute()[bench.metric.best_by]
            exact.append(value)
            done += len(names)
            yield Progress(activity, done, self.total)
            if max_drop is None or FIRST_QUARTER * done < self.total:
                continue
            drop = self.exact[position] - value
            if drop > SURELY * max_drop + SURELY:
                return drop
        if max_drop is None:
            self.exact = exact
            return exact[-1]
        return self.exact[-1] - exact[-1]


def score_alone(
    sensitivity: Sensitivity, images: TrialImages, layers: Sequence[LayerDamage], make_metric: Any
) -> Job[dict[str, float]]:
    """What the metric loses when one layer alone is quantized, in points."""
    names = [layer.name for layer in layers]
    places = [sensitivity.statistics[name].place for name in names]
    metrics = {name: make_metric() for name in [None, *names]}
    done = 0
    for batch, labels, sample_names in images.batches():
        targets = labels.to(images.bench.device)
        for place, scores in sensitivity.alone.run(images.prepared(batch), places):
            metrics[None if place is None else place.name].update(scores, targets)
        done += len(sample_names)
        yield Progress("scoring with one layer quantized", done, images.total)
    best_by = images.bench.metric.best_by
    exact = metrics[None].compute()[best_by]
    return {name: exact - metrics[name].compute()[best_by] for name in names}


@dataclass
class LayerSearch:
    """The search for layers to raise, on some images, which can go on.

    Attributes:
        layers: by damage.
        correction: images for the bias correction of each trial; empty where there is none.
    """

    raiser: Raiser
    images: TrialImages
    layers: Sequence[LayerDamage]
    how: How
    correction: Sequence[Tensor]

    def __post_init__(self) -> None:
        order = [layer.name for layer in order_by_gain(self.layers, self.how)]
        self._by_name = {layer.name: layer for layer in self.layers}
        self.search = Search(tuple(order), self._score)
        self._budget = 0.0

    def find(self, max_drop: float) -> Job[Trial]:
        """The smallest set found within a budget on the trial images."""
        self._budget = max_drop
        return (yield from self.search.find(max_drop))

    def exceptions(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Those that raise some layers."""
        return [exception_of(self._by_name[name], self.how) for name in names]

    def _score(self, names: frozenset[str]) -> Job[float]:
        ordered = [name for name in self.search.order if name in names]
        graph = self.raiser.build(self.exceptions(ordered))
        if self.correction:
            yield from _without_notes(correct_biases(graph, self.correction))
        activity = f"trial {len(self.search.trials) + 1}: {len(names)} raised"
        drop = yield from self.images.drop(graph, activity, self._budget)
        metric = self.images.bench.metric.best_by
        yield Note(f"{activity}, {metric} {-drop:+.2f}")
        return drop


def _without_notes(job: Job[Any]) -> Job[Any]:
    """The job's progress alone: its remarks would come again with each trial."""
    while True:
        try:
            event: Event = next(job)
        except StopIteration as finished:
            return finished.value
        if isinstance(event, Progress):
            yield event
