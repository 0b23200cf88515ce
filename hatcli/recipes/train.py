"""hat train: a step of the journey from a config to a checkpoint."""

import math
import shlex
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hatcli import __version__
from hatcli.config import Config, from_values
from hatcli.data.loader import Loader, SampleSource
from hatcli.engine import OPTIMIZERS, SCHEDULES
from hatcli.engine.checkpoint import load_checkpoint, load_weights, save_checkpoint
from hatcli.engine.device import pick_device, pick_dtype
from hatcli.engine.ema import Ema
from hatcli.engine.loop import FitSettings, Metric, Training, Validate, evaluate, fit
from hatcli.engine.weights import fingerprint, load_foreign_weights
from hatcli.errors import CheckpointError, ConfigError, StoppedBySignal, UsageError
from hatcli.events import EpochDone, Event, Job, Note, Warned, headline
from hatcli.recipes.build import (
    build_batch_transforms,
    build_dataset,
    build_loader,
    build_loss,
    build_metric,
    build_model,
    deployed,
)
from hatcli.recipes.runs import RunFolder, environment, read_metrics, write_json
from hatcli.report.curves import write_curves


@dataclass(frozen=True)
class TrainResult:
    """What a training run left behind.

    Attributes:
        metrics: of the best epoch, in percent.
        best: checkpoint of the best epoch; the last one where nothing was validated.
    """

    run: Path
    step: str
    metrics: dict[str, float]
    best: Path
    last: Path


def train_float(
    config: Config,
    *,
    device: str = "auto",
    out: Path | None = None,
    weights: Path | None = None,
    resume_from: Path | None = None,
    command: list[str] | None = None,
) -> Job[TrainResult]:
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
    dtype = pick_dtype(config["fit"].get("precision", "auto"), place)
    train_set, val_set = build_dataset(config, "train"), build_dataset(config, "val")
    batches = build_loader(config, "train", train_set)
    validation = build_loader(config, "val", val_set)
    metric = build_metric(config, val_set)
    _require_same_classes(config, train_set)
    loss = build_loss(config, train_set).to(place)
    prepare = build_batch_transforms(config).to(place)
    training = new_training(config, place, weights)
    schedule = SCHEDULES.build(
        config["schedule"], steps_per_epoch=len(batches), epochs=config["epochs"]
    )
    if resume_from is None:
        run = RunFolder.create(config, "float", out)
        run.describe(config, ["hat", *map(shlex.quote, command or [])], environment())
    else:
        run = RunFolder(resume_from.parent)
    with closing(run):
        if resume_from is not None:
            yield from restore(training, resume_from, digest=getattr(train_set, "digest", None))
            run.forget_after(training.epoch)
        yield from _record(run, _announce(config, run, place, dtype, (train_set, val_set)))
        if weights is not None:
            started_from = Note(f"weights: {weights} (SHA-256 {fingerprint(weights)}...)")
            yield from _record(run, iter([started_from]))
        events = fit(
            training,
            batches,
            _settings(config, dtype),
            loss=loss,
            prepare=prepare,
            schedule=schedule,
            validate=_validation(config, validation, metric, prepare, place),
            best_by=metric.best_by,
        )
        best = run.checkpoint_path("float", "best")
        last = run.checkpoint_path("float", "last")
        try:
            for event in events:
                run.record(event)
                if isinstance(event, EpochDone):
                    content = checkpoint_content(config, "float", training, event.val, train_set)
                    save_checkpoint(last, content)
                    if event.is_best or not best.exists():
                        save_checkpoint(best, content)
                yield event
        except StoppedBySignal as stop:
            raise _with_way_on(stop, training, last, config) from None
        return _finish(run, training, metric, (best, last))


def new_training(config: Config, device: torch.device, weights: Path | None = None) -> Training:
    """A model on its device, its optimiser, and its average if asked for.

    Args:
        weights: the file of its weights; fresh ones by default.
    """
    model = build_model(config)
    if weights is not None:
        load_foreign_weights(model, weights)
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


def config_to_resume(checkpoint: Path, overrides: list[str]) -> Config:
    """The config of the run that a checkpoint belongs to.

    Raises:
        UsageError: an override asks for something else than the run was started with.
    """
    saved = load_checkpoint(checkpoint)["config"]
    config = from_values(saved["name"], saved["values"], where=str(checkpoint))
    wanted = config.with_overrides(overrides)
    changed = [key for key in config.values if wanted[key] != config[key]]
    if changed:
        raise UsageError(
            f"{checkpoint.parent}: this run was started with another {', '.join(changed)}",
            "leave the overrides out, or start a new run",
        )
    return config


def checkpoint_content(
    config: Config, step: str, training: Training, metrics: Any, dataset: SampleSource
) -> dict[str, Any]:
    """A checkpoint: all that a later command, or the same run, needs to go on."""
    return {
        "hat_version": __version__,
        "step": step,
        "config": {"name": config.name, "values": dict(config.values)},
        "classes": list(getattr(dataset, "classes", [])),
        "data_digest": getattr(dataset, "digest", None),
        "metrics": dict(metrics),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        **training.state(),
    }


def _settings(config: Config, dtype: torch.dtype) -> FitSettings:
    own = {"precision", "channels_last", "ema_decay"}  # these shape the model, not the loop
    given = {key: value for key, value in config["fit"].items() if key not in own}
    return FitSettings(epochs=config["epochs"], seed=config["seed"], dtype=dtype, **given)


def _announce(
    config: Config, run: RunFolder, device: torch.device, dtype: torch.dtype, sets: tuple[Any, Any]
) -> Iterator[Event]:
    number_format = str(dtype).removeprefix("torch.")
    yield Note(
        f"{config.name} · step float · {device} · {number_format} · "
        f"batch {config['train'].get('batch_size', 1)} · {len(sets[0])}/{len(sets[1])} images · "
        f"{config['epochs']} epochs · seed {config['seed']}"
    )
    yield Note(f"run folder: {run.path}")
    names = [tuple(getattr(data, "classes", ())) for data in sets]
    if names[0] != names[1]:
        yield Warned("the classes of the training and the validation set differ")
    for role, data in zip(("train", "val"), sets, strict=True):
        split = getattr(data, "split", role)
        if split != role:
            yield Warned(f"{role}.dataset is a pack of the {split} split")


def _require_same_classes(config: Config, dataset: SampleSource) -> None:
    """A label that the model has no score for would end a CUDA program without a word."""
    classes = getattr(dataset, "classes", None)
    scores = config["model"].get("num_classes")
    if classes is not None and scores is not None and len(classes) != scores:
        raise ConfigError(
            f"model.num_classes is {scores}, the training set has {len(classes)} classes"
        )


def _record(run: RunFolder, events: Iterator[Event]) -> Iterator[Event]:
    for event in events:
        run.record(event)
        yield event


def _validation(
    config: Config, loader: Loader, metric: Metric, prepare: nn.Module, device: torch.device
) -> Validate:
    def validate(model: nn.Module) -> Generator[Event, None, dict[str, float]]:
        metric.reset()
        total = len(loader.dataset)
        view = deployed(model, config).eval()
        batches = loader.epoch(0)
        return (
            yield from evaluate(
                view,
                batches,
                metric,
                prepare=prepare,
                device=device,
                total=total,
                activity="validating",
            )
        )

    return validate


def _with_way_on(
    stop: StoppedBySignal, training: Training, last: Path, config: Config
) -> StoppedBySignal:
    if not last.exists():
        stop.message, stop.hint = "stopped in the first epoch; nothing is saved yet", None
        return stop
    stop.message = f"stopped; {training.epoch} of {config['epochs']} epochs are saved in {last}"
    stop.hint = f"go on with: hat train --resume-from {last.parent}"
    return stop


def _finish(
    run: RunFolder, training: Training, metric: Metric, checkpoints: tuple[Path, Path]
) -> TrainResult:
    """Curves and summary."""
    best, last = checkpoints
    write_curves(run.path / "plots" / "curves.png", training.history)
    rows = read_metrics(run.path)
    scored = [row for row in rows if row.get(f"val/{metric.best_by}") is not None]
    chosen = max(scored, key=lambda row: row[f"val/{metric.best_by}"], default={})
    metrics = {
        name.removeprefix("val/"): math.nan if value is None else value
        for name, value in chosen.items()
        if name.startswith("val/")
    }
    summary = {
        "step": "float",
        "epochs": training.epoch,
        "best_epoch": chosen.get("epoch"),
        "best_by": metric.best_by,
        "metrics": metrics,
        "headline": headline(metrics),
        "checkpoints": {"best": best.name, "last": last.name},
    }
    write_json(run.path / "summary.json", summary)
    return TrainResult(run.path, "float", metrics, best, last)
