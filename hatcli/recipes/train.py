"""hat train: a training, of the float model or of a quantized one, from a start to a checkpoint."""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hatcli.config import Config, from_values
from hatcli.data.loader import SampleSource
from hatcli.engine import OPTIMIZERS, SCHEDULES
from hatcli.engine.checkpoint import load_checkpoint, load_weights, save_checkpoint
from hatcli.engine.device import pick_device, pick_dtype
from hatcli.engine.ema import Ema
from hatcli.engine.loop import FitSettings, Training, Validate, fit
from hatcli.engine.weights import fingerprint, load_foreign_weights
from hatcli.errors import CheckpointError, StoppedBySignal, UsageError
from hatcli.events import EpochDone, Event, Job, Note, Warned, headline
from hatcli.recipes.build import build_loader, build_loss, build_model, deployed
from hatcli.recipes.runs import RunFolder, read_metrics
from hatcli.recipes.workbench import (
    StepResult,
    Workbench,
    announcement,
    base_content,
    finish_step,
    new_run,
    open_training_set,
    open_workbench,
    recorded,
)
from hatcli.report.curves import write_curves


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Attributes:
        loss: raw scores and targets, and the teacher's scores if there is one, to a scalar.
        view: from the trained model to the one that is deployed and scored.
        dtype: the number format of the model's computations.
        teacher: a model on the device whose scores the loss takes as well.
        is_a_candidate: whether the model is worth keeping before its first epoch.
        lineage: of the steps before this one.
        content: what a checkpoint holds beside the usual.
        notes: what a reader of the log should know first.
    """

    step: str
    training: Training
    loss: nn.Module
    view: Callable[[nn.Module], nn.Module]
    dtype: torch.dtype = torch.float32
    teacher: Callable[[Tensor], Tensor] | None = None
    is_a_candidate: bool = False
    lineage: list[dict[str, Any]] = field(default_factory=list)
    content: Callable[[], dict[str, Any]] = dict
    notes: tuple[Event, ...] = ()


def train_float(
    config: Config,
    *,
    device: str = "auto",
    out: Path | None = None,
    weights: Path | None = None,
    resume_from: Path | None = None,
    command: list[str] | None = None,
) -> Job[StepResult]:
    """Train the float model of a config and return where its checkpoints are.

    Args:
        config: complete and checked.
        device: "auto", "cpu", "cuda" or "cuda:N".
        out: folder that holds the run folders; "runs" by default.
        weights: plain weights to start from instead of random ones.
        resume_from: a last checkpoint; the run goes on in its folder.
        command: the words of the command line, for args.txt.
    """
    place = pick_device(device)
    train_set = open_training_set(config)
    bench = open_workbench(config, place)
    model = build_model(config)
    notes = []
    if weights is not None:
        load_foreign_weights(model, weights)
        notes.append(Note(f"weights: {weights} (SHA-256 {fingerprint(weights)}...)"))
    start = Start(
        "float",
        new_training(config, model, place),
        build_loss(config, train_set).to(place),
        view=lambda trained: deployed(trained, config),
        dtype=pick_dtype(config["fit"].get("precision", "auto"), place),
        notes=tuple(notes),
    )
    return (
        yield from train(bench, train_set, start, out=out, resume_from=resume_from, command=command)
    )


def train(
    bench: Workbench,
    train_set: SampleSource,
    start: Start,
    *,
    out: Path | None = None,
    resume_from: Path | None = None,
    command: list[str] | None = None,
) -> Job[StepResult]:
    """Train from a start, and keep the best and the last checkpoint in a run folder.

    Args:
        bench: with the config of the step.
        resume_from: a last checkpoint of the same step; the run goes on in its folder.
    """
    config, training = bench.config, start.training
    batches = build_loader(config, "train", train_set)
    schedule = SCHEDULES.build(
        config["schedule"], steps_per_epoch=len(batches), epochs=config["epochs"]
    )
    if resume_from is None:
        run = new_run(config, start.step, out, command)
    else:
        run = RunFolder(resume_from.parent)
    with closing(run):
        if resume_from is not None:
            yield from restore(training, resume_from, digest=getattr(train_set, "digest", None))
            run.forget_after(training.epoch)
        details = _details(config, start, (train_set, bench.val_set))
        yield from recorded(run, announcement(bench, start.step, run, details, train_set))
        yield from recorded(run, start.notes)
        keeper = _Keeper(run, config, start, train_set)
        if start.is_a_candidate and resume_from is None:
            yield from _score_start(bench, start, keeper)
        events = fit(
            training,
            batches,
            _settings(config, start.dtype),
            loss=start.loss,
            prepare=bench.prepare,
            schedule=schedule,
            validate=_validation(bench, start.view),
            best_by=bench.metric.best_by,
            teacher=start.teacher,
        )
        try:
            for event in events:
                run.record(event)
                if isinstance(event, EpochDone):
                    keeper.keep(event.val, is_best=event.is_best)
                yield event
        except StoppedBySignal as stop:
            raise _with_way_on(stop, training, keeper.last, config) from None
        return (yield from _finish(bench, start, keeper))


def new_training(config: Config, model: nn.Module, device: torch.device) -> Training:
    """A model on its device, its optimiser, and its average if asked for."""
    model = model.to(device)
    if config["fit"].get("channels_last", True):
        model = model.to(memory_format=torch.channels_last)
    decay = config["fit"].get("ema_decay")
    optimizer = OPTIMIZERS.build(config["optim"], model=model)
    return Training(model, optimizer, Ema(model, decay) if decay is not None else None)


def restore(training: Training, checkpoint: Path, *, digest: str | None = None) -> Iterator[Event]:
    """Put a checkpoint's state into a training that was built from the same config.

    Args:
        digest: of the training set's content, where it has one.

    Raises:
        CheckpointError: it doesn't fit, holds only weights, or the data has changed since.
    """
    content = load_checkpoint(checkpoint)
    if "optimizer" not in content:
        raise CheckpointError(f"{checkpoint}: holds weights only; a run can't go on from it")
    if content["data_digest"] != digest:
        raise CheckpointError(
            f"{checkpoint}: the training data changed since",
            "restore the pack that the run was started with, or start a new run",
        )
    now = {"torch": str(torch.__version__), "threads": torch.get_num_threads()}
    for name, value in now.items():
        if content[name] != value:
            yield Warned(
                f"{name} was {content[name]} and is {value} now: the run goes on, "
                "but its weights won't be the same to the last bit"
            )
    load_weights(training.model, content["state_dict"], str(checkpoint))
    training.restore(content)


def run_to_resume(checkpoint: Path, overrides: list[str]) -> tuple[Config, str]:
    """The config and the step of the run that a checkpoint belongs to.

    Raises:
        UsageError: an override asks for something else than the run was started with.
    """
    content = load_checkpoint(checkpoint)
    saved = content["config"]
    config = from_values(saved["name"], saved["values"], where=str(checkpoint))
    wanted = config.with_overrides(overrides)
    changed = [key for key in config.values if wanted[key] != config[key]]
    if changed:
        raise UsageError(
            f"{checkpoint.parent}: this run was started with another {', '.join(changed)}",
            "leave the overrides out, or start a new run",
        )
    return config, str(content["step"])


class _Keeper:
    """Writes the checkpoints of one training.

    Attributes:
        best: path of the best checkpoint; so for ``last``.
    """

    def __init__(
        self, run: RunFolder, config: Config, start: Start, train_set: SampleSource
    ) -> None:
        self.run = run
        self.best = run.checkpoint_path(start.step, "best")
        self.last = run.checkpoint_path(start.step, "last")
        self._config = config
        self._start = start
        self._train_set = train_set

    def keep(self, metrics: Any, *, is_best: bool) -> None:
        """Save the training's state as the last checkpoint, and as the best if it is."""
        start, dataset = self._start, self._train_set
        content = {
            **base_content(self._config, start.step, dict(metrics), dataset),
            "data_digest": getattr(dataset, "digest", None),
            "lineage": start.lineage,
            **start.content(),
            **start.training.state(),
        }
        save_checkpoint(self.last, content)
        if is_best or not self.best.exists():
            save_checkpoint(self.best, content)


def _details(config: Config, start: Start, sets: tuple[Any, Any]) -> list[str]:
    return [
        str(start.dtype).removeprefix("torch."),
        f"batch {config['train'].get('batch_size', 1)}",
        f"{len(sets[0])}/{len(sets[1])} images",
        f"{config['epochs']} epochs",
    ]


def _settings(config: Config, dtype: torch.dtype) -> FitSettings:
    own = {"precision", "channels_last", "ema_decay"}  # these shape the model, not the loop
    given = {key: value for key, value in config["fit"].items() if key not in own}
    return FitSettings(epochs=config["epochs"], seed=config["seed"], dtype=dtype, **given)


def _validation(bench: Workbench, view: Callable[[nn.Module], nn.Module]) -> Validate:
    def validate(model: nn.Module) -> Generator[Event, None, dict[str, float]]:
        return (yield from bench.score(view(model).eval()))

    return validate


def _score_start(bench: Workbench, start: Start, keeper: _Keeper) -> Iterator[Event]:
    """Keep the model as it is before the first epoch: only a better one takes its place."""
    training, best_by = start.training, bench.metric.best_by
    metrics = yield from bench.score(start.view(training.deployed).eval())
    score = metrics.get(best_by, math.nan)
    training.best = -math.inf if math.isnan(score) else score
    keeper.run.record_start(metrics)
    keeper.keep(metrics, is_best=True)
    figures = "   ".join(f"{name} {value:.2f}" for name, value in headline(metrics).items())
    yield from recorded(keeper.run, [Note(f"at the start: {figures}")])


def _with_way_on(
    stop: StoppedBySignal, training: Training, last: Path, config: Config
) -> StoppedBySignal:
    if not last.exists():
        stop.message, stop.hint = "stopped in the first epoch; nothing is saved yet", None
        return stop
    stop.message = f"stopped; {training.epoch} of {config['epochs']} epochs are saved in {last}"
    stop.hint = f"go on with: hat train --resume-from {last.parent}"
    return stop


def _finish(bench: Workbench, start: Start, keeper: _Keeper) -> Generator[Event, None, StepResult]:
    """Curves and summary."""
    run, training, best_by = keeper.run, start.training, bench.metric.best_by
    write_curves(run.path / "plots" / "curves.png", training.history)
    scored = [row for row in read_metrics(run.path) if row.get(f"val/{best_by}") is not None]
    chosen = max(scored, key=lambda row: row[f"val/{best_by}"], default={})
    metrics = {
        name.removeprefix("val/"): math.nan if value is None else value
        for name, value in chosen.items()
        if name.startswith("val/")
    }
    if chosen.get("epoch") == 0:
        kept = Note("no epoch was better than the start, which stays the best checkpoint")
        yield from recorded(run, [kept])
    return finish_step(
        run,
        start.step,
        best_by,
        metrics,
        (keeper.best, keeper.last),
        lineage=start.lineage,
        more={"epochs": training.epoch, "best_epoch": chosen.get("epoch")},
    )
