"""The checkpoint that a step starts from: opened, checked, and traced back to the float model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hatcli.config import Config, from_values
from hatcli.engine.weights import fingerprint
from hatcli.errors import CheckpointError
from hatcli.events import Event, Warned
from hatcli.recipes.build import model_from_checkpoint, open_checkpoint
from hatcli.recipes.diff import ABSENT, differences
from hatcli.recipes.runs.folder import newest_run
from hatcli.recipes.steps import COMES_FROM, step_entry, wrong_step

SHOWN = 3  # differences between two configs; the rest are counted


@dataclass(frozen=True)
class Predecessor:
    """A checkpoint that a step starts from.

    Attributes:
        step: of the checkpoint.
        content: what it holds.
        lineage: entries of the steps up to it, itself included.
    """

    file: Path
    step: str
    content: dict[str, Any]
    lineage: list[dict[str, Any]]

    def model(self) -> nn.Module:
        """Its deployed model, in evaluation mode."""
        return model_from_checkpoint(self.content)[1]


def open_predecessor(
    file: Path, step: str, config: Config, *, target: str, is_weights: bool = False
) -> Predecessor:
    """Open the checkpoint that a step is to start from.

    Args:
        config: that the step will run by.
        target: what the user calls the config, for the hints.
        is_weights: the file holds the plain weights of ``config``'s network.

    Raises:
        UsageError: it is of a step that this one can't start from.
        CheckpointError: it can't be used, or holds another model than the config asks for.
    """
    content = open_checkpoint(file, config if is_weights else None)
    its_step = content["step"]
    if its_step not in COMES_FROM[step]:
        raise wrong_step(step, file, its_step, target)
    saved = content["config"]
    own = from_values(saved["name"], saved["values"], where=f"the config of {file}")
    _require_same_model(own, config, file)
    if its_step != "float":
        _require_same_quantization(own, config, file, target)
    entry = step_entry(its_step, content["metrics"], file, fingerprint(file))
    if is_weights:
        entry["is_weights"] = True
    return Predecessor(file, its_step, content, [*content.get("lineage", []), entry])


def warn_of_newer_float(before: Predecessor, name: str, root: Path) -> Iterator[Event]:
    """A warning when the newest float run isn't the one that a checkpoint goes back to."""
    newest = newest_run(name, "float", root)
    source = Path(before.lineage[0]["file"])
    if newest is not None and source.parent.name != newest.name:
        yield Warned(f"{before.file} goes back to {source}, not to the newest float run {newest}")


def warn_of_other_scoring(before: Predecessor, config: Config) -> Iterator[Event]:
    """A warning when the predecessor was scored on other images, or otherwise prepared ones."""
    saved = before.content["config"]
    own = from_values(saved["name"], saved["values"], where=f"the config of {before.file}")
    found = [
        f"{change.key} {_shown(change.first)}, now {_shown(change.second)}"
        for change in differences(own, config)
        if change.key.startswith(("val.dataset", "val.transforms"))
    ]
    if before.content["metrics"] and found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        yield Warned(
            f"{before.file} was scored with {'; '.join(found[:SHOWN])}{more}: "
            "their rows in the table can't be compared"
        )


def open_float(lineage: list[dict[str, Any]], config: Config, root: Path) -> Predecessor:
    """The float checkpoint at the beginning of a lineage.

    Args:
        root: folder that holds the run folders, where the file is looked for if it isn't at
            the path that it had.

    Raises:
        CheckpointError: the file is gone, or isn't the same any more.
    """
    entry = lineage[0]
    named = Path(entry["file"])
    moved = root / config.name / named.parent.name / named.name
    file = next((path for path in (named, moved) if path.is_file()), None)
    if file is None:
        raise CheckpointError(
            f"the float checkpoint {named} is gone, and this step needs it",
            "bring it back, or start again: hat train ... --step calibration",
        )
    if fingerprint(file) != entry["sha256"]:
        raise CheckpointError(
            f"{file}: changed since the calibration, and this step needs it as it was",
            "calibrate again: hat train ... --step calibration",
        )
    content = open_checkpoint(file, config if entry.get("is_weights") else None)
    return Predecessor(file, "float", content, [entry])


def _shown(value: Any) -> str:
    return "unset" if value is ABSENT else repr(value)


def _require_same_model(own: Config, chosen: Config, file: Path) -> None:
    for key in ("model", "batch_transforms"):
        if own[key] != chosen[key]:
            raise CheckpointError(
                f"{file}: made with {key} {own[key]}, the config asks for {chosen[key]}",
                "name its checkpoint by --ckpt, or give the config that it was made with",
            )
    heads = own["deploy"].get("head"), chosen["deploy"].get("head")
    if heads[0] != heads[1]:
        raise CheckpointError(
            f"{file}: deploys head {heads[0]}, the config asks for {heads[1]}",
            f"take its weights alone: --step calibration --weights {file}",
        )


def _require_same_quantization(own: Config, chosen: Config, file: Path, target: str) -> None:
    """The settings of QAT may differ; all others are in the calibrated graph already."""
    one, other = (
        {key: value for key, value in config["quantize"].items() if key != "qat"}
        for config in (own, chosen)
    )
    if one != other:
        raise CheckpointError(
            f"{file}: made with quantize {one}, the config asks for {other}",
            f"calibrate again: hat train {target} --step calibration",
        )
