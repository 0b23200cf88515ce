"""How a run goes on: from which checkpoint, with which settings, and what is not as it was."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hatcli.config import Config, from_values
from hatcli.engine.checkpoint import load_checkpoint, load_weights
from hatcli.engine.distributed import from_main, processes, remembered
from hatcli.engine.training import Training
from hatcli.errors import CheckpointError, UsageError
from hatcli.events import Event, Note, Warned
from hatcli.recipes.diff import Difference, differences
from hatcli.recipes.runs.folder import STEPS, checkpoint_in
from hatcli.recipes.training.keeper import numbered

FREE = {
    "data_rootdir", "train.num_workers", "train.workers", "val.num_workers", "val.workers",
    "val.batch_size", "fit.log_every", "fit.save_every", "fit.val_every", "fit.keep",
}  # fmt: skip
"""Settings that change no weight."""

LENGTH = {"epochs"}
"""Settings that only say when to stop; the schedule follows them."""


STEP_SIZE = {"train.batch_size", "fit.accumulate"}
"""Settings that may change together with the number of processes, if a step stays what it was."""


def restarted(step: str) -> tuple[Path, tuple[Event, ...]] | None:
    """The checkpoint of a run that torchrun started again, and what to say; None for a new run.

    Args:
        step: of the journey.
    """
    run = remembered(f"run of {step}")
    if run is None:
        return None
    found: tuple[Path, list[Warned]] | None = from_main(lambda: _find_if_any(Path(run), step))
    if found is None:
        return None
    note = Note(f"torchrun started the processes again: going on with {found[0].parent}")
    return found[0], (*found[1], note)


def _find_if_any(run: Path, step: str) -> tuple[Path, list[Warned]] | None:
    return find_in_run(run) if checkpoint_in(run, step, "last").exists() else None


def find_in_run(run: Path) -> tuple[Path, list[Warned]]:
    """The newest checkpoint of a run that is whole, and what is wrong with newer ones.

    Raises:
        UsageError: there is none.
        CheckpointError: all are damaged.
    """
    step = next((step for step in STEPS if checkpoint_in(run, step, "last").exists()), None)
    candidates = [] if step is None else [checkpoint_in(run, step, "last"), *numbered(run, step)]
    if step is not None and checkpoint_in(run, step, "best").exists():
        candidates.append(checkpoint_in(run, step, "best"))
    if not candidates:
        raise UsageError(f"{run}: no last checkpoint in this folder")
    skipped: list[Warned] = []
    for candidate in candidates:
        try:
            load_checkpoint(candidate)
        except CheckpointError as error:
            skipped.append(Warned(f"skipped {error.message}"))
        else:
            return candidate, skipped
    raise CheckpointError(
        f"{run}: no checkpoint is whole ({'; '.join(event.text for event in skipped)})",
        "start a new run",
    )


def run_to_resume(
    checkpoint: Path, overrides: list[str], *, allow_change: bool = False
) -> tuple[Config, str, list[Event]]:
    """The config and the step of the run that a checkpoint belongs to, and what is changed.

    Args:
        overrides: of the command line.
        allow_change: let them change what the weights depend on.

    Raises:
        UsageError: an override asks for something else than the run was started with.
    """
    content = load_checkpoint(checkpoint)
    saved = content["config"]
    config = from_values(saved["name"], saved["values"], where=str(checkpoint))
    wanted = config.with_overrides(overrides)
    changed = differences(config, wanted)
    free = FREE | LENGTH | (STEP_SIZE if _samples_a_step(wanted) == _saved_step(content) else set())
    others = [change.key for change in changed if change.key not in free]
    if others and not allow_change:
        raise UsageError(
            f"{checkpoint.parent}: this run was started with another {', '.join(others)}",
            "leave the overrides out, give --allow-config-change, or start a new run",
        )
    notes: list[Event] = [Note(_say(change)) for change in changed if change.key not in FREE]
    return wanted, str(content["step"]), notes


def _samples_a_step(config: Config) -> int:
    return config["train"].get("batch_size", 1) * config["fit"].get("accumulate", 1) * processes()


def _saved_step(content: dict[str, Any]) -> int | None:
    return content.get("samples_a_step")


def _say(change: Difference) -> str:
    text = f"{change.key} was {change.first} and is {change.second} from here on"
    return f"{text}: the schedule is computed anew" if change.key in LENGTH else text


def restore(
    training: Training,
    checkpoint: Path,
    *,
    digest: str | None,
    samples_a_step: int,
    allow_change: bool = False,
) -> Iterator[Event]:
    """Put a checkpoint's state into a training that was built from the same config.

    Args:
        digest: of the training set's content, where it has one.
        samples_a_step: that all processes together take in a step.
        allow_change: go on with another number.

    Raises:
        CheckpointError: it doesn't fit, holds only weights, or the data has changed since.
        UsageError: a step is of another size.
    """
    content = from_main(lambda: load_checkpoint(checkpoint))
    if "optimizer" not in content:
        raise CheckpointError(f"{checkpoint}: holds weights only; a run can't go on from it")
    if content["data_digest"] != digest:
        raise CheckpointError(
            f"{checkpoint}: the training data changed since",
            "restore the pack that the run was started with, or start a new run",
        )
    before = content.get("samples_a_step", samples_a_step)
    if before != samples_a_step and not allow_change:
        raise UsageError(
            f"{checkpoint.parent}: a step was {before} samples and is {samples_a_step} now",
            f"choose train.batch_size and fit.accumulate so that batch x accumulate x processes "
            f"is {before}, or give --allow-config-change",
        )
    if before != samples_a_step:
        yield Warned(
            f"a step was {before} samples and is {samples_a_step} from here on: "
            "the learning rate stays as the config says"
        )
    yield from _say_what_is_inexact(content)
    load_weights(training.model, content["state_dict"], str(checkpoint))
    training.restore(content)
    if training.samples:
        yield Note(f"going on in epoch {training.epoch + 1}, behind {training.samples} samples")


def _say_what_is_inexact(content: dict[str, Any]) -> Iterator[Event]:
    now = {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processes": processes(),
    }
    for name, value in now.items():
        if content.get(name, 1) != value:
            yield Warned(
                f"{name} was {content[name]} and is {value} now: the run goes on, "
                "but its weights won't be the same to the last bit"
            )
