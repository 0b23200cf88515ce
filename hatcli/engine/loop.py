"""The training loop: a generator of events.

``for event in fit(...)`` runs a training; it stands still at each event, so that its caller
may save, log or change something between two of them. Whatever ends it, an exception or a
signal, ``training`` is then as it was after the last whole step.
"""

import time
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from hatcli.engine.data_parallel import DataParallel
from hatcli.engine.distributed import processes
from hatcli.engine.evaluation import LoadedBatch
from hatcli.engine.prefetch import prefetched
from hatcli.engine.random_state import seed_epoch, seed_step
from hatcli.engine.step import Stepper, grouped, names_of
from hatcli.engine.training import FitSettings, Training
from hatcli.events import EpochDone, Event
from hatcli.stopping import uninterrupted

Validate = Callable[[nn.Module], Generator[Event, None, dict[str, float]]]


class Batches(Protocol):
    """Batches by epoch: the same epoch gives the same batches in the same order.

    Attributes:
        samples_a_batch: that all processes together take with one batch of each.
        process: rank of this process among them.
    """

    samples_a_batch: int
    process: int

    def __len__(self) -> int: ...

    def epoch(self, number: int, start: int = 0) -> Iterator[LoadedBatch]:
        """The batches of one epoch, counted from 0, behind its first ``start`` samples."""


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
    forward: Callable[..., Tensor] | None = None,
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
        forward: calls the model; None calls it as it is. A `DataParallel` lets all processes
            take each step together.
        teacher: gives its scores of the same input to the loss, as a third argument.

    Yields:
        StepDone, EpochDone after each epoch, and what ``validate`` yields.

    Raises:
        NonFinite: the loss or the gradient is not finite; the samples are named.
        StoppedBySignal: of several processes one was asked to stop: on all, behind the same step.
    """
    step = Stepper(training, settings, loss=loss, prepare=prepare, forward=forward, teacher=teacher)
    meter = training.meter
    meter.processes = processes()
    while training.epoch < settings.epochs:
        epoch, started = training.epoch, time.perf_counter()
        _start_epoch(training, settings, batches.process, forward)
        yield from _steps(training, batches, settings, step, schedule, forward)
        train_seconds = time.perf_counter() - started
        metrics: dict[str, float] = {}
        number, is_last = epoch + 1, epoch + 1 == settings.epochs
        if validate is not None and (number % settings.val_every == 0 or is_last):
            metrics = yield from validate(training.deployed)
        with uninterrupted:
            is_best = training.finish_epoch(metrics, best_by)
            # Within the block: its caller saves what the event tells.
            yield EpochDone(
                number,
                settings.epochs,
                {"loss": meter.epoch_mean()},
                metrics,
                training.lr,
                meter.images / train_seconds,
                time.perf_counter() - started,
                is_best,
            )


def _steps(
    training: Training,
    batches: Batches,
    settings: FitSettings,
    step: Stepper,
    schedule: Callable[[int], float],
    forward: Callable[..., Tensor] | None,
) -> Iterator[Event]:
    """Take the steps of an epoch that aren't taken yet."""
    epoch, steps = training.epoch, len(batches) // settings.accumulate
    samples_a_step = batches.samples_a_batch * settings.accumulate
    meter, device, process = training.meter, training.device, batches.process
    has_clock = _goes_by_clock(device, forward)
    done = training.samples // samples_a_step
    stream = batches.epoch(epoch, training.samples) if done < steps else iter(())
    stream = prefetched(stream, device)
    for number, group in enumerate(grouped(stream, settings.accumulate), start=done + 1):
        report = None
        with uninterrupted:
            seed_step(settings.seed, epoch, training.samples, process, device)
            value = step(group, schedule(epoch * steps + number - 1))
            training.samples += samples_a_step
            if value is not None:
                meter.add(value, names_of(group))
            is_due = _is_due(number, steps, settings)
            if is_due or (has_clock and meter.is_overdue()):
                report = meter.report(epoch + 1, settings.epochs, number, steps, training.lr)
            # By the count of steps alone: all processes ask each other at the same one.
            if isinstance(forward, DataParallel) and (is_due or device.type == "cpu"):
                forward.stop_if_asked()
        if report is not None:
            yield report
        if number == steps:
            break


def _start_epoch(
    training: Training,
    settings: FitSettings,
    process: int,
    forward: Callable[..., Tensor] | None,
) -> None:
    """Make ready for an epoch, or for the rest of one."""
    training.meter.restart_clock()
    if isinstance(forward, DataParallel):
        forward.renew()
    if training.samples == 0:
        training.meter.start_epoch()
    if training.samples == 0 or process > 0:  # a checkpoint has the state of the main process
        seed_epoch(settings.seed, training.epoch, process)
    training.model.train()


def _goes_by_clock(device: torch.device, forward: Callable[..., Tensor] | None) -> bool:
    """Whether a step that takes long is reported by itself.

    A report reads the losses that wait on a GPU, and one that isn't finite ends the training: of
    several processes all behind the same step, so none of them may go by its own clock.
    """
    return device.type == "cpu" or not isinstance(forward, DataParallel)


def _is_due(number: int, steps: int, settings: FitSettings) -> bool:
    """Whether a step is reported, however long it took."""
    return number % settings.log_every == 0 or number == steps or settings.is_saved_at(number)
