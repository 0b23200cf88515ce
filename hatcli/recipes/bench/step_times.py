"""Where the time of a training step goes, by watching the real step at work."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hatcli.data.loader import Sample, SampleSource, SampleTransform, collate, sample_generator
from hatcli.engine.evaluation import LoadedBatch
from hatcli.engine.step import Stepper
from hatcli.engine.training import FitSettings, Training

PARTS = ("waiting", "transfer", "batch transforms", "forward", "teacher", "loss", "backward",
         "optimiser")  # fmt: skip
"""Of a step, in their order; the optimiser's holds the average of the weights too."""


class Stopwatch:
    """Adds up the time between marks; on a GPU it waits for the work given before each."""

    def __init__(self, device: torch.device) -> None:
        self._waits = device.type == "cuda"
        self._last = 0.0
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.start()

    def start(self) -> None:
        """Begin anew behind what came before."""
        self._last = self._now()

    def mark(self, part: str) -> None:
        """Count the time since the last mark as that of a part."""
        now = self._now()
        self.seconds[part] += now - self._last
        self._last = now

    def reset(self) -> None:
        """Forget what was counted."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.start()

    def _now(self) -> float:
        if self._waits:
            torch.cuda.synchronize()
        return time.perf_counter()


def watched_step(
    training: Training,
    settings: FitSettings,
    watch: Stopwatch,
    *,
    loss: nn.Module,
    prepare: nn.Module,
    teacher: nn.Module | None,
) -> Callable[[LoadedBatch], None]:
    """A function that takes one step of a training on a batch, the parts of which are timed.

    It is the step of every training: only what it calls is wrapped.
    """
    model: Callable[..., Any] = (
        torch.compile(training.model) if settings.compile else training.model
    )
    plain = FitSettings(
        settings.epochs,
        dtype=settings.dtype,
        clip_grad_norm=settings.clip_grad_norm,
        on_nonfinite=settings.on_nonfinite,
    )
    step = Stepper(
        training,
        plain,
        loss=_Timed(loss, watch, "loss"),
        prepare=_Timed(prepare, watch, "batch transforms", before="transfer"),
        forward=_Timed(model, watch, "forward"),
        teacher=None if teacher is None else _Timed(teacher, watch, "teacher"),
    )
    training.optimizer.register_step_pre_hook(lambda *_: watch.mark("backward"))

    def take(batch: LoadedBatch) -> None:
        step([batch], 1.0)
        watch.mark("optimiser")

    return take


class _Timed(nn.Module):
    """Calls something and marks the time; of its own it has neither weights nor buffers."""

    def __init__(
        self, call: Callable[..., Any], watch: Stopwatch, part: str, before: str | None = None
    ) -> None:
        super().__init__()
        self._call = [call]  # in a list, so that it doesn't become a part of this module
        self._watch, self._part, self._before = watch, part, before

    def forward(self, *arguments: Tensor) -> Any:
        if self._before is not None:
            self._watch.mark(self._before)
        result = self._call[0](*arguments)
        self._watch.mark(self._part)
        return result


def reading_times(
    dataset: SampleSource, transforms: Sequence[SampleTransform], count: int
) -> dict[str, float]:
    """Seconds that an image takes on one core: its reading, each transform, and the stacking.

    Where the first transform decides what is decoded, both are one part.

    Args:
        count: of samples that are read; at least 1.
    """
    seconds: dict[str, float] = {}
    names = [type(transform).__name__ for transform in transforms]
    takes_stored = bool(transforms) and getattr(transforms[0], "takes_stored", False)
    stored: Any = getattr(dataset, "read", None) if takes_stored else None
    samples: list[Sample] = []
    for index in range(min(count, len(dataset))):
        generator = sample_generator(0, 0, index)
        started = time.perf_counter()
        if stored is None:
            sample, done, part = dataset[index], 0, "read and decode"
        else:
            sample = stored(index, lambda one: transforms[0](one, generator))  # noqa: B023
            done, part = 1, f"read, decode, {names[0]}"
        for name, transform in zip(names[done:], transforms[done:], strict=True):
            started = _add(seconds, part, started)
            sample, part = transform(sample, generator), name
        _add(seconds, part, started)
        samples.append(sample)
    started = time.perf_counter()
    collate(samples)
    _add(seconds, "stack a batch", started)
    return {part: value / len(samples) for part, value in seconds.items()}


def _add(seconds: dict[str, float], part: str, started: float) -> float:
    now = time.perf_counter()
    seconds[part] = seconds.get(part, 0.0) + now - started
    return now
