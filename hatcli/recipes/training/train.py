"""hat train: a training, of the float model or of a quantized one, from a start to a checkpoint."""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from hatcli.config import Config
from hatcli.data.loader import SampleSource
from hatcli.engine import OPTIMIZERS, SCHEDULES
from hatcli.engine.data_parallel import DataParallel, statistics_of
from hatcli.engine.device import pick_device, pick_dtype
from hatcli.engine.distributed import barrier, from_main, gather, processes, remember
from hatcli.engine.ema import Ema
from hatcli.engine.loop import Validate, fit
from hatcli.engine.meter import NonFinite
from hatcli.engine.training import FitSettings, Training
from hatcli.engine.weights import fingerprint, load_foreign_weights
from hatcli.errors import StoppedBySignal
from hatcli.events import EpochDone, Event, Job, Note, StepDone, Warned, percents
from hatcli.recipes.build import (
    HEAD_HINT,
    SEVERAL_HEADS,
    build_loader,
    build_loss,
    build_model,
    deployed,
    lacks_head,
)
from hatcli.recipes.crop_sizes import require_sizes
from hatcli.recipes.faults import explain
from hatcli.recipes.runs.confusion import save_confusion
from hatcli.recipes.runs.folder import RunFolder, write_json
from hatcli.recipes.training.keeper import Keeper, saved_if_data_fails, scored_best
from hatcli.recipes.training.pictures import RunPictures
from hatcli.recipes.training.resume import restarted, restore
from hatcli.recipes.training.teacher import with_teacher
from hatcli.recipes.training.workbench import (
    StepResult,
    Workbench,
    announcement,
    finish_step,
    new_run,
    open_training_set,
    open_workbench,
    recorded,
    run_again,
)
from hatcli.report.curves import write_curves
from hatcli.stopping import uninterrupted


@dataclass(frozen=True)
class Resume:
    """How a run goes on.

    Attributes:
        checkpoint: of the same step; the run goes on in its folder.
        allow_change: whether it may with other settings.
        notes: what a reader of the log should know first.
    """

    checkpoint: Path
    allow_change: bool = False
    notes: tuple[Event, ...] = ()


def resumed_by_torchrun(step: str, *, asked: Resume | None) -> Resume | None:
    """How the run of a step goes on if torchrun started it again, or else as was asked for."""
    found = restarted(step)
    if found is None:
        return asked
    checkpoint, notes = found
    return Resume(checkpoint, allow_change=asked is not None and asked.allow_change, notes=notes)


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
        between_epochs: changes the model, before the first epoch and when one is saved.
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
    between_epochs: Callable[[], None] = lambda: None


def train_float(
    config: Config,
    *,
    device: str = "auto",
    out: Path | None = None,
    weights: Path | None = None,
    resume: Resume | None = None,
    command: list[str] | None = None,
) -> Job[StepResult]:
    """Train the float model of a config and return where its checkpoints are.

    Args:
        config: complete and checked.
        device: "auto", "cpu", "cuda" or "cuda:N".
        out: folder that holds the run folders; "runs" by default.
        weights: plain weights to start from instead of random ones.
        resume: the run goes on in the folder of its checkpoint.
        command: the words of the command line, for args.txt.
    """
    place = pick_device(device)
    resume = resumed_by_torchrun("float", asked=resume)
    train_set = open_training_set(config)
    bench = open_workbench(config, place)
    model = build_model(config)
    deployed(model, config)  # a head that isn't there is refused now, not at the first validation
    require_sizes(config, model)
    notes: list[Event] = []
    if lacks_head(model, config):
        notes.append(Warned(f"{SEVERAL_HEADS}; {HEAD_HINT}"))
    if weights is not None:
        load_foreign_weights(model, weights)
        notes.append(Note(f"weights: {weights} (SHA-256 {fingerprint(weights)}...)"))
    dtype = pick_dtype(config["fit"].get("precision", "auto"), place)
    loss, teacher, taught = with_teacher(config, build_loss(config, train_set), place)
    start = Start(
        "float",
        new_training(config, model, place, dtype),
        loss.to(place),
        view=lambda trained: deployed(trained, config),
        dtype=dtype,
        teacher=teacher,
        notes=(*notes, *taught),
    )
    return (yield from train(bench, train_set, start, out=out, resume=resume, command=command))


def train(
    bench: Workbench,
    train_set: SampleSource,
    start: Start,
    *,
    out: Path | None = None,
    resume: Resume | None = None,
    command: list[str] | None = None,
) -> Job[StepResult]:
    """Train from a start, and keep the best and the last checkpoint in a run folder.

    Args:
        bench: with the config of the step.
        resume: the run goes on in the folder of its checkpoint.
    """
    config, training = bench.config, start.training
    batches = build_loader(config, "train", train_set)
    settings = _settings(config, start.dtype)
    samples_a_step = batches.samples_a_batch * settings.accumulate
    schedule = SCHEDULES.build(
        config["schedule"],
        steps_per_epoch=len(batches) // settings.accumulate,
        epochs=config["epochs"],
    )
    if resume is None:
        run = new_run(config, start.step, out, command)
    else:
        run = run_again(resume.checkpoint.parent)
    remember(f"run of {start.step}", str(run.path))
    with closing(run), uninterrupted.noting() if processes() > 1 else nullcontext():
        if resume is not None:
            yield from recorded(run, resume.notes)
            yield from recorded(
                run,
                restore(
                    training,
                    resume.checkpoint,
                    digest=getattr(train_set, "digest", None),
                    samples_a_step=samples_a_step,
                    allow_change=resume.allow_change,
                ),
            )
            run.forget_after(training.epoch)
        start.between_epochs()
        details = _details(config, start, (train_set, bench.val_set))
        yield from recorded(run, announcement(bench, start.step, run, details, train_set))
        yield from recorded(run, start.notes)
        yield from recorded(run, _notes_on_processes(config, training))
        more = {"lineage": start.lineage, "samples_a_step": samples_a_step}
        keeper = Keeper(run, config, start.step, training, train_set, more)
        if start.is_a_candidate and resume is None:
            yield from _score_start(bench, start, keeper)
        pictures = RunPictures(run, config, start.step, train_set, bench.metric)
        events = fit(
            training,
            pictures.watched(batches) if resume is None else batches,
            settings,
            loss=start.loss,
            prepare=bench.prepare,
            schedule=schedule,
            validate=_validation(bench, start.view),
            best_by=bench.metric.best_by,
            forward=_forward(config, training, settings),
            teacher=start.teacher,
        )
        events = pictures.following(events, keeper.has_saved_as_best)
        events = saved_if_data_fails(events, keeper, start.content)
        yield from _recorded_and_kept(events, run, keeper, start, settings)
        return (yield from _finish(bench, start, keeper))


def _recorded_and_kept(
    events: Iterator[Event], run: RunFolder, keeper: Keeper, start: Start, settings: FitSettings
) -> Iterator[Event]:
    """The events of a training, with a checkpoint at those that ask for one, and at its end."""
    training = start.training
    try:
        for event in events:
            run.record(event)
            if isinstance(event, EpochDone):
                kept = keeper.keep(event.val, is_best=event.is_best, extra=start.content())
                yield from recorded(run, kept)
                start.between_epochs()
            elif isinstance(event, StepDone) and settings.is_saved_at(event.step):
                yield from recorded(run, keeper.keep(extra=start.content()))
            yield event
    except StoppedBySignal as stop:
        if processes() > 1 and not stop.is_agreed:
            raise  # the second signal: the others know nothing of it
        raise _saved_for_later(stop, keeper, start, settings) from None
    except NonFinite as found:
        raise _reported(found, run, training) from None
    except (RuntimeError, MemoryError, ValueError) as error:
        explained = explain(error, run.path, settings.accumulate)
        if explained is None:
            raise
        raise explained from error


def _reported(found: NonFinite, run: RunFolder, training: Training) -> NonFinite:
    """Write down all samples of the step, those of all processes, and say where."""
    names = [name for each in gather(found.names) for name in each]
    where = {"epoch": training.epoch + 1, "samples": training.samples}
    report = run.path / f"nonfinite-{training.epoch + 1}-{training.samples}.json"
    document = {"what": found.what, "value": str(found.value), **where, "names": names}
    from_main(lambda: write_json(report, document))
    if processes() > 1:
        found = NonFinite(found.what, found.value, "", names)
    found.message += f" (all names: {report})"
    return found


def _saved_for_later(
    stop: StoppedBySignal, keeper: Keeper, start: Start, settings: FitSettings
) -> StoppedBySignal:
    """Save what is there, and say how to go on."""
    training = start.training
    warnings = [str(event) for event in keeper.keep(extra=start.content())]
    if processes() > 1:
        barrier()  # the first to end has the others ended: not while one of them saves
    where = f"{training.epoch} of {settings.epochs} epochs"
    if training.samples:
        where += f" and {training.samples} samples of the next"
    if warnings:
        return StoppedBySignal(stop.exit_code - 128, f"stopped after {where}; {warnings[0]}")
    return StoppedBySignal(
        stop.exit_code - 128,
        f"stopped; {where} are saved in {keeper.last}",
        f"go on with: hat train --resume-from {keeper.last.parent}",
    )


def new_training(
    config: Config, model: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32
) -> Training:
    """A model on its device, its optimiser, and its average if asked for.

    Args:
        dtype: float16 needs a scaler of the loss, whose gradients would vanish.
    """
    model = model.to(device)
    if config["fit"].get("channels_last", True):
        model = model.to(memory_format=torch.channels_last)
    if _synchronizes_norms(config, device):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    decay = config["fit"].get("ema_decay")
    optimizer = OPTIMIZERS.build(config["optim"], model=model)
    scaler = GradScaler(device.type) if dtype == torch.float16 else None
    return Training(model, optimizer, Ema(model, decay) if decay is not None else None, scaler)


def _synchronizes_norms(config: Config, device: torch.device) -> bool:
    """Whether batch norms see the images of all processes; by default where there are GPUs."""
    asked = config["fit"].get("sync_batch_norm")
    return processes() > 1 and device.type == "cuda" and asked is not False


def _notes_on_processes(config: Config, training: Training) -> Iterator[Event]:
    if processes() == 1 or _synchronizes_norms(config, training.device):
        return
    if next(statistics_of(training.model), None) is None:
        return
    why = "SyncBatchNorm needs GPUs: " if training.device.type == "cpu" else ""
    yield Note(
        f"{why}each process normalises its own {config['train'].get('batch_size', 1)} images; "
        "their running statistics are averaged after each step"
    )


def _forward(config: Config, training: Training, settings: FitSettings) -> DataParallel | None:
    """What calls the model where several processes train it."""
    if processes() == 1:
        return None
    return DataParallel(
        training.model,
        find_unused=config["fit"].get("find_unused", False),
        compile=settings.compile,
    )


def _details(config: Config, start: Start, sets: tuple[Any, Any]) -> list[str]:
    return [
        str(start.dtype).removeprefix("torch."),
        f"batch {config['train'].get('batch_size', 1)}"
        + (f" x {processes()} processes" if processes() > 1 else ""),
        f"{len(sets[0])}/{len(sets[1])} images",
        "1 epoch" if config["epochs"] == 1 else f"{config['epochs']} epochs",
    ]


def _settings(config: Config, dtype: torch.dtype) -> FitSettings:
    own = {  # these are not for the loop
        "precision", "channels_last", "ema_decay", "keep", "sync_batch_norm", "find_unused",
    }  # fmt: skip
    given = {key: value for key, value in config["fit"].items() if key not in own}
    return FitSettings(epochs=config["epochs"], seed=config["seed"], dtype=dtype, **given)


def _validation(bench: Workbench, view: Callable[[nn.Module], nn.Module]) -> Validate:
    def validate(model: nn.Module) -> Generator[Event, None, dict[str, float]]:
        return (yield from bench.score(view(model).eval()))

    return validate


def _score_start(bench: Workbench, start: Start, keeper: Keeper) -> Iterator[Event]:
    """Keep the model as it is before the first epoch: only a better one takes its place."""
    training, best_by = start.training, bench.metric.best_by
    metrics = yield from bench.score(start.view(training.deployed).eval())
    score = metrics.get(best_by, math.nan)
    training.best = -math.inf if math.isnan(score) else score
    keeper.run.record_start(metrics)
    from_main(lambda: save_confusion(keeper.run.path, bench.metric))
    yield from recorded(keeper.run, keeper.keep(metrics, is_best=True, extra=start.content()))
    yield from recorded(keeper.run, [Note(f"at the start: {percents(metrics)}")])


def _finish(bench: Workbench, start: Start, keeper: Keeper) -> Generator[Event, None, StepResult]:
    """Curves and summary.

    Raises:
        HatError: the last save failed.
    """
    run, training, best_by = keeper.run, start.training, bench.metric.best_by
    from_main(keeper.require_saved)
    from_main(lambda: write_curves(run.path / "plots" / "curves.png", training.history))
    epoch, metrics = from_main(lambda: scored_best(keeper.best, best_by))
    if epoch == 0:
        kept = Note("no epoch was better than the start, which stays the best checkpoint")
        yield from recorded(run, [kept])
    return finish_step(
        run,
        start.step,
        best_by,
        metrics,
        (keeper.best, keeper.last),
        lineage=start.lineage,
        more={"epochs": training.epoch, "best_epoch": epoch},
    )
