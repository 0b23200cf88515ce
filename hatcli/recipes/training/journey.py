"""hat train --step ...: one step of the journey, or all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hatcli.config import Config
from hatcli.engine.distributed import from_main
from hatcli.errors import ConfigError
from hatcli.events import Job, Note
from hatcli.recipes.build import HEAD_HINT, SEVERAL_HEADS, build_model, lacks_head
from hatcli.recipes.runs.folder import RUNS, STEPS
from hatcli.recipes.training.calibrate import calibrate_float
from hatcli.recipes.training.int_infer import infer_integers
from hatcli.recipes.training.predecessor import (
    open_predecessor,
    warn_of_newer_float,
    warn_of_other_scoring,
)
from hatcli.recipes.training.qat import train_qat
from hatcli.recipes.training.train import train_float
from hatcli.recipes.training.workbench import StepResult


@dataclass(frozen=True)
class Journey:
    """What the steps of one command have in common.

    Attributes:
        configs: step -> the config that it runs by, complete and checked; for qat that of
            calibration as well.
        target: what the user calls the config, for the hints.
        device: "auto", "cpu", "cuda" or "cuda:N".
        out: folder that holds the run folders; "runs" by default.
        command: the words of the command line, for args.txt.
    """

    configs: Mapping[str, Config]
    target: str
    device: str = "auto"
    out: Path | None = None
    command: list[str] | None = None

    @property
    def runs(self) -> Path:
        """The folder that holds the run folders."""
        return self.out or RUNS


def take_step(
    journey: Journey,
    step: str,
    file: Path,
    *,
    is_weights: bool = False,
    was_looked_for: bool = False,
) -> Job[list[StepResult]]:
    """Take one step behind float; qat from a float checkpoint calibrates it first.

    Args:
        file: the checkpoint to start from.
        is_weights: it holds plain weights of the network.
        was_looked_for: the user hasn't named it, so that a newer float run is worth a warning.

    Returns:
        The result of each step that was taken.

    Raises:
        UsageError: the step can't start from this checkpoint.
    """
    config = journey.configs[step]
    before = from_main(
        lambda: open_predecessor(file, step, config, target=journey.target, is_weights=is_weights)
    )
    if was_looked_for:
        yield from warn_of_newer_float(before, config.name, journey.runs)
    yield from warn_of_other_scoring(before, config)
    if step == "qat" and before.step == "float":
        yield Note("qat starts from a calibration: that comes first")
        first = yield from take_step(journey, "calibration", file, is_weights=is_weights)
        second = yield from take_step(journey, step, first[-1].best)
        return [*first, *second]
    run = {"calibration": calibrate_float, "qat": train_qat, "int_infer": infer_integers}[step]
    result = yield from run(
        config, before, device=journey.device, out=journey.out, command=journey.command
    )
    return [result]


def take_all_steps(journey: Journey, *, weights: Path | None = None) -> Job[list[StepResult]]:
    """A new float training, then each step from the one before it.

    Args:
        weights: plain weights that the float training starts from.

    Raises:
        ConfigError: the network has several heads, of which none is chosen.
    """
    config = journey.configs["float"]
    if lacks_head(build_model(config), config):
        raise ConfigError(SEVERAL_HEADS, HEAD_HINT)
    yield Note(f"$ hat train {journey.target} --step float")
    trained = yield from train_float(
        config,
        device=journey.device,
        out=journey.out,
        weights=weights,
        command=journey.command,
    )
    results = [trained]
    for step in STEPS[1:]:
        yield Note(f"$ hat train {journey.target} --step {step} --ckpt {results[-1].best}")
        results += yield from take_step(journey, step, results[-1].best)
    return results
