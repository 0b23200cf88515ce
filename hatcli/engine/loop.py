"""The training loop and the evaluation loop: generators of events.

``for event in fit(...)`` runs a training; it stands still at each event, so that its caller
may save, log or change something between two of them.
"""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hatcli.engine.device import autocast
from hatcli.engine.ema import Ema
from hatcli.errors import DataError, HatError
from hatcli.events import EpochDone, Event, Progress, StepDone, headline

Images = Tensor
LoadedBatch = tuple[Images, Tensor, list[str]]
Validate = Callable[[nn.Module], Generator[Event, None, dict[str, float]]]


class Batches(Protocol):
    """Batches by epoch: the same epoch gives the same batches in the same order."""

    def __len__(self) -> int: ...

    def epoch(self, number: int) -> Iterator[LoadedBatch]:
        """The batches of one epoch, counted from 0."""


class Metric(Protocol):
    """Collects scores over a data set.

    Attributes:
        best_by: name of the value that picks the best checkpoint; higher is better.
    """

    best_by: str

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Take in a batch of raw scores (or index maps) and its targets."""

    def compute(self) -> dict[str, float]:
        """Name -> value of all that was taken in, in percent where it is a share."""
        ...

    def reset(self) -> None:
        """Forget what was taken in."""


@dataclass(frozen=True)
class FitSettings:
    """How to train.

    Attributes:
        epochs: to finish, those that a resumed run brings along included.
        seed: with the epoch's number it seeds torch, so that a resumed run repeats itself.
        dtype: bfloat16 runs the model under autocast; weights, loss and optimiser stay float32.
        clip_grad_norm: largest global norm of the gradients.
        log_every: steps between two reports.
        val_every: epochs between two validations; the last epoch is always validated.
    """

    epochs: int
    seed: int = 0
    dtype: torch.dtype = torch.float32
    clip_grad_norm: float | None = None
    log_every: int = 20
    val_every: int = 1


@dataclass
class Training:
    """All that changes while training, and so all that a checkpoint must hold.

    Attributes:
        model: in training mode between events.
        ema: its moving average, which is validated and deployed in the model's place.
        epoch: how many are finished.
        best: highest validation metric so far.
        history: one {"epoch", "loss", metric...} for each finished epoch.
    """

    model: nn.Module
    optimizer: Optimizer
    ema: Ema | None = None
    epoch: int = 0
    best: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def deployed(self) -> nn.Module:
        """The model whose accuracy counts: the average where there is one."""
        return self.model if self.ema is None else self.ema.model

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        return self.optimizer.param_groups[0]["lr"]

    def finish_epoch(self, loss: float, metrics: dict[str, float], best_by: str) -> bool:
        """Remember an epoch's figures; tell whether it is the best so far (NaN never is)."""
        score = metrics.get(best_by, math.nan)
        is_best = score > self.best
        if is_best:
            self.best = score
        self.history.append({"epoch": self.epoch, "loss": loss, **headline(metrics)})
        return is_best

    def state(self) -> dict[str, Any]:
        """Everything as tensors and plain values."""
        return {
            "state_dict": self.model.state_dict(),
            "ema_state_dict": None if self.ema is None else self.ema.model.state_dict(),
            "ema_updates": 0 if self.ema is None else self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "best": self.best,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, bit for bit."""
        self.model.load_state_dict(state["state_dict"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.model.load_state_dict(state["ema_state_dict"] or state["state_dict"])
            self.ema.updates = state["ema_updates"]
        self.epoch, self.best = state["epoch"], state["best"]
        self.history = list(state["history"])


def fit(
    training: Training,
    batches: Batches,
    settings: FitSettings,
    *,
    loss: nn.Module,
    prepare: nn.Module,
    schedule: Callable[[int], float],
    validate: Validate | None = None,
    best_by: str = "",
    teacher: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Event]:
    """Train until ``settings.epochs`` are finished; change ``training`` in place.

    Args:
        batches: uint8 images (N, 3, H, W), targets and sample names.
        loss: raw scores and targets to a scalar.
        prepare: uint8 images to the model's float32 input, on the device.
        schedule: steps done to a factor of each group's base learning rate.
        validate: scores a model.
        best_by: metric by which an epoch is best, higher is better.
        teacher: gives its scores of the same input to the loss, as a third argument.

    Yields:
        StepDone, EpochDone after each epoch, and what ``validate`` yields.

    Raises:
        HatError: the loss or the gradient is not finite; the samples are named.
    """
    step = _step_function(training, settings, loss, prepare, teacher)
    steps = len(batches)
    while training.epoch < settings.epochs:
        epoch, started = training.epoch, time.perf_counter()
        torch.manual_seed(settings.seed * 1_000_003 + epoch)
        meter = _LossMeter(next(training.model.parameters()).device)
        training.model.train()
        for number, (images, targets, names) in enumerate(batches.epoch(epoch), start=1):
            value = step(images, targets, names, schedule(epoch * steps + number - 1))
            meter.add(value, names)
            if number % settings.log_every == 0 or number == steps:
                meter.read(epoch + 1, number)
                yield meter.report(epoch + 1, settings.epochs, number, steps, training.lr)
        train_seconds = time.perf_counter() - started
        training.epoch += 1
        metrics: dict[str, float] = {}
        is_last = training.epoch == settings.epochs
        if validate is not None and (training.epoch % settings.val_every == 0 or is_last):
            metrics = yield from validate(training.deployed)
        is_best = training.finish_epoch(meter.epoch_mean(), metrics, best_by)
        yield EpochDone(
            training.epoch,
            settings.epochs,
            {"loss": meter.epoch_mean()},
            metrics,
            training.lr,
            meter.images / train_seconds,
            time.perf_counter() - started,
            is_best,
        )


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
    on_scores: Callable[[Tensor, Tensor, Tensor, list[str]], None] | None = None,
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
        metric.update(scores, targets.to(device, non_blocking=True))
        if on_scores is not None:
            on_scores(images, scores, targets, names)
        done += len(names)
        yield Progress(activity, done, total)
    if done == 0:
        raise DataError("nothing to evaluate: the data set is empty")
    return metric.compute()


Step = Callable[[Tensor, Tensor, list[str], float], Tensor]


def _step_function(
    training: Training,
    settings: FitSettings,
    loss: nn.Module,
    prepare: nn.Module,
    teacher: Callable[[Tensor], Tensor] | None,
) -> Step:
    """One optimiser step as a function of a batch; all that stays the same is looked up once."""
    model, optimizer, ema = training.model, training.optimizer, training.ema
    device = next(model.parameters()).device
    groups = optimizer.param_groups
    rates = [group.setdefault("initial_lr", group["lr"]) for group in groups]
    parameters = [parameter for group in groups for parameter in group["params"]]

    def step(images: Tensor, targets: Tensor, names: list[str], factor: float) -> Tensor:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor
        inputs = prepare(images.to(device, non_blocking=True))
        with autocast(device, settings.dtype):
            scores = model(inputs)
            taught = () if teacher is None else (_scores_of(teacher, inputs),)
        value = loss(scores, targets.to(device, non_blocking=True), *taught)
        value.backward()
        if settings.clip_grad_norm is not None:
            _clip(parameters, settings.clip_grad_norm, names)
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.update()
        return value.detach()

    return step


@torch.no_grad()
def _scores_of(teacher: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return teacher(inputs)


def _clip(parameters: list[nn.Parameter], largest: float, names: Sequence[str]) -> None:
    norm = nn.utils.clip_grad_norm_(parameters, largest)
    if not torch.isfinite(norm):
        raise HatError(
            f"the gradient is not finite ({float(norm)}); samples: {', '.join(names[:8])}",
            "lower optim.lr, or set fit.precision=float32; the last checkpoint is intact",
        )


class _LossMeter:
    """Sums losses without waiting for the device, and finds the first that is not finite.

    Reading a value of a CUDA tensor makes the host wait, so there the losses since the last
    report are read together; on the CPU each is looked at when it comes.
    """

    def __init__(self, device: torch.device) -> None:
        self.images = 0
        self._reads_at_once = device.type == "cpu"
        self._pending: list[tuple[Tensor, list[str]]] = []
        self._epoch = [0.0, 0.0]  # weighted sum, images
        self._recent = [0.0, 0.0]
        self._since = time.perf_counter()

    def add(self, loss: Tensor, names: list[str]) -> None:
        """Take in a batch's mean loss."""
        self.images += len(names)
        self._pending.append((loss, names))
        if self._reads_at_once:
            self.read(None, None)

    def read(self, epoch: int | None, step: int | None) -> None:
        """Read what is pending.

        Raises:
            HatError: a loss is not finite.
        """
        for loss, names in self._pending:
            value = loss.item()
            if not math.isfinite(value):
                where = f" at epoch {epoch}, step {step} or shortly before" if epoch else ""
                raise HatError(
                    f"the loss is {value}{where}; samples: {', '.join(names[:8])}",
                    "lower optim.lr, set fit.clip_grad_norm=1.0 or fit.precision=float32; "
                    "the last checkpoint is intact",
                )
            for total in (self._epoch, self._recent):
                total[0] += value * len(names)
                total[1] += len(names)
        self._pending.clear()

    def report(self, epoch: int, epochs: int, step: int, steps: int, lr: float) -> StepDone:
        now = time.perf_counter()
        rate = self._recent[1] / max(now - self._since, 1e-9)
        mean = self._recent[0] / max(self._recent[1], 1)
        self._recent, self._since = [0.0, 0.0], now
        return StepDone(epoch, epochs, step, steps, mean, lr, rate)

    def epoch_mean(self) -> float:
        return self._epoch[0] / max(self._epoch[1], 1)
