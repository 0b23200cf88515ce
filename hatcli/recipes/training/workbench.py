"""What every step works with: the data and the metric to score by, and a run folder."""

import shlex
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hatcli import __version__
from hatcli.config import Config
from hatcli.data.loader import Loader, SampleSource
from hatcli.engine.distributed import from_main, processes, stopping_together
from hatcli.engine.evaluation import Metric, evaluate, require_merging
from hatcli.errors import ConfigError
from hatcli.events import Event, Note, Warned, headline
from hatcli.recipes.build import (
    build_batch_transforms,
    build_dataset,
    build_loader,
    build_metric,
)
from hatcli.recipes.reporting.page import write_run_page
from hatcli.recipes.runs.confusion import save_confusion
from hatcli.recipes.runs.folder import RunFolder, WatchedRun, environment, write_json
from hatcli.recipes.steps import step_entry
from hatcli.stopping import uninterrupted


@dataclass(frozen=True)
class StepResult:
    """What a step left behind.

    Attributes:
        metrics: of the best epoch, in percent; of a step that doesn't train, its own.
        best: checkpoint of the best epoch; the last one where nothing was validated.
        last: checkpoint of the last epoch; ``best`` again of a step that doesn't train.
        steps: the accuracies of the steps up to this one, as `step_entry` makes them.
        best_by: name of the metric that picks the best checkpoint.
        findings: remarks about single layers.
    """

    run: Path
    step: str
    metrics: dict[str, float]
    best: Path
    last: Path
    steps: list[dict[str, Any]]
    best_by: str
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workbench:
    """The validation set with its loader and metric, on a device.

    Attributes:
        prepare: uint8 images (N, 3, H, W) on the device to the model's float32 input.
    """

    config: Config
    device: torch.device
    val_set: SampleSource
    loader: Loader
    metric: Metric
    prepare: nn.Module

    def score(self, model: nn.Module) -> Generator[Event, None, dict[str, float]]:
        """The metrics of a model that is deployed and in evaluation mode.

        Raises:
            StoppedBySignal: on all of several processes that train.
        """
        self.metric.reset()
        batches: Iterator[Any] = self.loader.epoch(0)
        if uninterrupted.is_noting:
            least = len(self.val_set) // processes() * processes() // self.loader.samples_a_batch
            batches = stopping_together(batches, least)
        return (
            yield from evaluate(
                model,
                batches,
                self.metric,
                prepare=self.prepare,
                device=self.device,
                total=len(self.val_set),
                activity="validating",
            )
        )


def open_workbench(config: Config, device: torch.device) -> Workbench:
    """Open the validation set of a config.

    Raises:
        HatError: a part can't be built or the data not be opened.
    """
    val_set = build_dataset(config, "val")
    metric = build_metric(config, val_set)
    require_merging(metric)
    return Workbench(
        config,
        device,
        val_set,
        build_loader(config, "val", val_set),
        metric,
        build_batch_transforms(config).to(device),
    )


def open_training_set(config: Config) -> SampleSource:
    """The training set of a config.

    Raises:
        ConfigError: the model hasn't one score a class; a label that the model has no score for
            would end a CUDA program without a word.
    """
    dataset = build_dataset(config, "train")
    classes = getattr(dataset, "classes", None)
    scores = config["model"].get("num_classes")
    if classes is not None and scores is not None and len(classes) != scores:
        raise ConfigError(
            f"model.num_classes is {scores}, the training set has {len(classes)} classes: "
            + ", ".join(map(str, classes[:3]))
            + (", ..." if len(classes) > 3 else ""),
            f"set model.num_classes={len(classes)}; if these aren't your classes, "
            "train.dataset or data_rootdir names another dataset",
        )
    return dataset


def new_run(config: Config, step: str, out: Path | None, command: list[str] | None) -> RunFolder:
    """A new run folder with its config, command and environment; one for all processes."""

    def create() -> RunFolder:
        run = RunFolder.create(config, step, out)
        words = ["hat", *map(shlex.quote, command or [])]
        run.describe(config, words, {**environment(), "processes": processes()})
        return run

    return _written_by_main(create)


def run_again(path: Path) -> RunFolder:
    """A run folder that is there already."""
    return _written_by_main(lambda: RunFolder(path))


def _written_by_main(open_folder: Callable[[], RunFolder]) -> RunFolder:
    opened: list[RunFolder] = []

    def open_and_tell() -> Path:
        opened.append(open_folder())
        return opened[0].path

    path = from_main(open_and_tell)
    return opened[0] if opened else WatchedRun(path)


def recorded(run: RunFolder, events: Iterable[Event]) -> Iterator[Event]:
    """The events, each written to the run's log first."""
    for event in events:
        run.record(event)
        yield event


def announcement(
    bench: Workbench, step: str, run: RunFolder, details: list[str], train_set: SampleSource | None
) -> Iterator[Event]:
    """What the step is, where it writes, and what looks wrong about its data."""
    config = bench.config
    words = [config.name, f"step {step}", str(bench.device), *details]
    yield Note(" · ".join([*words, f"seed {config['seed']}"]))
    yield Note(f"run folder: {run.path}")
    sets = (
        {"val": bench.val_set} if train_set is None else {"train": train_set, "val": bench.val_set}
    )
    if len({tuple(getattr(data, "classes", ())) for data in sets.values()}) > 1:
        yield Warned("the classes of the training and the validation set differ")
    for role, data in sets.items():
        split = getattr(data, "split", role)
        if split != role:
            yield Warned(f"{role}.dataset is a pack of the {split} split")


def base_content(
    config: Config, step: str, metrics: dict[str, float], dataset: SampleSource
) -> dict[str, Any]:
    """The part of a checkpoint that is the same for all steps.

    Args:
        dataset: whose classes they are.
    """
    return {
        "hat_version": __version__,
        "step": step,
        "config": {"name": config.name, "values": dict(config.values)},
        "classes": list(getattr(dataset, "classes", [])),
        "metrics": dict(metrics),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processes": processes(),
        "lineage": [],
    }


def finish_step(
    run: RunFolder,
    step: str,
    best_by: str,
    metrics: dict[str, float],
    checkpoints: tuple[Path, Path],
    *,
    lineage: list[dict[str, Any]],
    findings: Iterable[object] = (),
    more: dict[str, Any] | None = None,
    metric: Metric | None = None,
    has_page: bool = True,
) -> StepResult:
    """Write summary.json and report.html; the main process does, and tells the others.

    Args:
        checkpoints: the best and the last one, which exist.
        lineage: entries of the steps before this one.
        more: further entries of the summary.
        metric: still holding what the best checkpoint was scored by, for the page.
        has_page: whether report.html is about the run; not where it is a page of its own.
    """
    best, last = checkpoints
    steps = [*lineage, from_main(lambda: step_entry(step, metrics, best))]
    remarks = tuple(map(str, findings))
    summary = {
        "step": step,
        **(more or {}),
        "best_by": best_by,
        "metrics": metrics,
        "headline": headline(metrics),
        "checkpoints": {"best": best.name, "last": last.name},
        "steps": steps,
        "findings": list(remarks),
    }
    from_main(lambda: write_json(run.path / "summary.json", summary))
    if metric is not None:
        from_main(lambda: save_confusion(run.path, metric))
    if has_page:
        from_main(lambda: write_run_page(run.path))
    return StepResult(run.path, step, metrics, best, last, steps, best_by, remarks)
