"""The checkpoints of one training run: the best, the last, and some before it."""

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hatcli.config import Config
from hatcli.data.loader import SampleSource
from hatcli.data.workers import WorkerLost
from hatcli.disk import size_text
from hatcli.engine.checkpoint import load_checkpoint, save_checkpoint
from hatcli.engine.distributed import is_main, processes
from hatcli.engine.training import Training
from hatcli.errors import CheckpointError, ConfigError, DataError, HatError
from hatcli.events import Event, Warned
from hatcli.recipes.runs.folder import SUFFIX, RunFolder
from hatcli.recipes.training.workbench import base_content

MAX_MISSES = 3


class Keeper:
    """Writes the checkpoints of one training.

    A save that fails is a warning, since the disk may have room again at the next one; the third
    in a row ends the training. The checkpoint before it stays whole in any case. An epoch that
    couldn't be saved is not the best one: the next that is better than the saved best takes
    its place.

    Args:
        step: of the journey.
        more: further entries of each checkpoint, asked for at each save.

    Attributes:
        best: path of the best checkpoint; so for ``last``.
    """

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        step: str,
        training: Training,
        train_set: SampleSource,
        more: Mapping[str, Any],
    ) -> None:
        self.run = run
        self.best = run.checkpoint_path(step, "best")
        self.last = run.checkpoint_path(step, "last")
        self._config, self._step = config, step
        self._training, self._train_set, self._more = training, train_set, more
        self._keep = config["fit"].get("keep", 1)
        self._metrics: dict[str, float] = {}
        self._misses = 0
        self._missed = ""
        self._saved_best = training.best
        self._saved_epoch: int | None = None

    def keep(
        self,
        metrics: Mapping[str, float] | None = None,
        *,
        is_best: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> Iterator[Event]:
        """Save the training's state as the best checkpoint if it is that, and as the last one.

        The best comes first: a run that is killed between the two does the epoch again.

        Of several processes, whose state is the same, the main one does.

        Args:
            metrics: of the epoch that is over; None in the middle of one.
            is_best: whether they are the best so far.
            extra: entries that change in the course of the training.

        Raises:
            HatError: the weights aren't finite, or nothing could be saved three times.
        """
        if not is_main():
            return
        if metrics is not None:
            self._metrics = dict(metrics)
        content = {
            **base_content(self._config, self._step, self._metrics, self._train_set),
            "data_digest": getattr(self._train_set, "digest", None),
            **self._more,
            **(extra or {}),
            **self._training.state(),
        }
        _require_finite(content["state_dict"])
        try:
            self._require_room()
            if metrics is not None and (is_best or not self.best.exists()):
                save_checkpoint(self.best, content)
                self._saved_best = self._training.best
                self._saved_epoch = self._training.epoch
            save_checkpoint(self.last, content)
            self._rotate(content)
        except CheckpointError as error:
            self._training.best = self._saved_best
            self._misses += 1
            self._missed = error.message
            if self._misses >= MAX_MISSES:
                message = f"{error.message} ({self._misses} times in a row)"
                raise HatError(message, self._last_good()) from error
            yield Warned(f"{error.message}; the training goes on")
        else:
            self._misses = 0

    def has_saved_as_best(self, epoch: int) -> bool:
        """Whether the best checkpoint is that of an epoch."""
        return self._saved_epoch == epoch

    def require_saved(self) -> None:
        """Refuse to end a training whose last save failed.

        Raises:
            HatError: with what stood in the way.
        """
        if self._misses:
            raise HatError(f"{self._missed}; the training is over", self._last_good())

    @property
    def has_begun(self) -> bool:
        """Whether the training has taken a step."""
        return bool(self._training.epoch or self._training.samples)

    def _require_room(self) -> None:
        """Twice what the last one took: the new one stands beside it for a moment."""
        if not self.last.exists():
            return
        needed, free = 2 * self.last.stat().st_size, shutil.disk_usage(self.run.path).free
        if free < needed:
            raise CheckpointError(
                f"disk full at {self.run.path}: need about {size_text(needed)}, "
                f"{size_text(free)} free"
            )

    def _rotate(self, content: Mapping[str, Any]) -> None:
        """Give the last checkpoint a name of its own too, and forget the oldest of these."""
        if self._keep < 2:
            return
        place = f"{self._training.epoch:04d}-{self._training.samples:09d}"
        own = self.last.with_name(f"{self._step}-checkpoint-{place}{SUFFIX}")
        own.unlink(missing_ok=True)
        try:
            os.link(self.last, own)
        except OSError:  # not every file system has links
            save_checkpoint(own, content)
        for old in numbered(self.run.path, self._step)[self._keep :]:
            old.unlink()

    def _last_good(self) -> str:
        if not self.last.exists():
            return "free some space and start again; nothing is saved yet"
        return f"free some space; go on with: hat train --resume-from {self.run.path}"


def saved_if_data_fails(
    events: Iterator[Event], keeper: Keeper, content: Callable[[], Mapping[str, Any]]
) -> Iterator[Event]:
    """The events of a training; an error of a user's part comes behind a save of the steps before.

    That is one of the data, or of a part that is found wrong only where it is used.

    Args:
        content: what a checkpoint holds beside the usual.
    """
    try:
        yield from events
    except (DataError, WorkerLost, ConfigError) as error:
        # Of several processes the others know nothing of it, and a checkpoint is of all.
        if processes() == 1 and keeper.has_begun:
            warnings = [str(event) for event in keeper.keep(extra=content())]
            go_on = f"go on with: hat train --resume-from {keeper.run.path}"
            error.hint = f"{error.hint or ''}; {warnings[0] if warnings else go_on}".lstrip("; ")
        raise


def scored_best(best: Path, best_by: str) -> tuple[int | None, dict[str, float]]:
    """The epoch of a best checkpoint and its metrics; (None, {}) if it isn't the best by any.

    Args:
        best_by: the metric that picks it.
    """
    content = load_checkpoint(best)
    metrics: dict[str, float] = content["metrics"]
    if math.isnan(metrics.get(best_by, math.nan)):
        return None, {}
    return int(content["epoch"]), metrics


def numbered(run: Path, step: str) -> list[Path]:
    """The checkpoints that were kept by epoch and sample, newest first."""
    return sorted(run.glob(f"{step}-checkpoint-[0-9]*{SUFFIX}"), reverse=True)


def _require_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Keep a spoilt model from taking the place of a whole one."""
    bad = [
        name
        for name, tensor in weights.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if bad:
        raise HatError(
            f"{len(bad)} tensors of the model are not finite, first: {bad[0]}",
            "lower optim.lr, or set fit.clip_grad_norm=1.0; earlier checkpoints, if any, are whole",
        )
