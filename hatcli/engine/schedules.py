"""Learning-rate schedules: from the number of steps done to a factor of the base rate."""

import math
from collections.abc import Callable

from hatcli.engine import SCHEDULES
from hatcli.errors import ConfigError

Schedule = Callable[[int], float]


@SCHEDULES.register
def constant(steps_per_epoch: int, warmup_epochs: float = 0.0) -> Schedule:
    """The base rate throughout."""
    return _with_warmup(lambda step: 1.0, warmup_epochs * steps_per_epoch)


@SCHEDULES.register
def step(
    steps_per_epoch: int,
    milestones: list[int],
    gamma: float = 0.1,
    warmup_epochs: float = 0.0,
) -> Schedule:
    """The base rate times gamma for each milestone (in epochs) that has passed."""

    def factor(step: int) -> float:
        epoch = step // steps_per_epoch
        return gamma ** sum(epoch >= milestone for milestone in milestones)

    return _with_warmup(factor, warmup_epochs * steps_per_epoch)


@SCHEDULES.register
def poly(
    steps_per_epoch: int,
    epochs: int,
    power: float = 0.9,
    final: float = 0.0,
    warmup_epochs: float = 0.0,
) -> Schedule:
    """(1 - progress) ** power, down to ``final`` of the base rate (Chen et al., 1606.00915)."""

    def factor(step: int) -> float:
        remaining = 1 - min(1.0, step / (steps_per_epoch * epochs))
        return final + (1 - final) * remaining**power

    return _with_warmup(factor, warmup_epochs * steps_per_epoch)


@SCHEDULES.register
def cosine(
    steps_per_epoch: int, epochs: int, final: float = 0.0, warmup_epochs: float = 0.0
) -> Schedule:
    """Half a cosine from the base rate to ``final`` of it (Loshchilov and Hutter, 1608.03983)."""
    warmup_steps = warmup_epochs * steps_per_epoch
    total = steps_per_epoch * epochs - warmup_steps
    if total <= 0:
        raise ConfigError(
            f"schedule 'cosine': {warmup_epochs} epochs of warm-up leave none of the {epochs}",
            "lower schedule.warmup_epochs, e.g. schedule.warmup_epochs=0, or train longer",
        )

    def factor(step: int) -> float:
        progress = min(1.0, max(0.0, step - warmup_steps) / total)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return _with_warmup(factor, warmup_steps)


def _with_warmup(factor: Schedule, warmup_steps: float) -> Schedule:
    """A linear rise over the first steps; the first step already moves."""

    def warmed(step: int) -> float:
        rise = (step + 1) / (warmup_steps + 1) if step < warmup_steps else 1.0
        return rise * factor(step)

    return warmed
