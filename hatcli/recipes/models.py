"""hat models: the shipped networks, what they cost and how well they do."""

import fnmatch
from dataclasses import dataclass

import torch

from hatcli.config import Config, load_config, shipped_configs
from hatcli.errors import UsageError, did_you_mean
from hatcli.events import Job, Progress
from hatcli.opcount import count
from hatcli.recipes.build import build_model, deployed
from hatcli.recipes.published import MEASURED, PUBLISHED, REMARKS, Measured, Published


@dataclass(frozen=True)
class ModelRow:
    """One shipped config's network, as it is deployed.

    Attributes:
        name: of the config, which is what commands take as TARGET.
        model: name of the network in it.
        shape: (N, C, H, W) of the input.
        params: number of parameters.
        macs: multiply-adds of one image.
        published: by the original toolkit, if it is.
        measured: here, if it is.
        remark: what a reader of the accuracies has to know.
    """

    name: str
    task: str
    model: str
    shape: tuple[int, ...]
    params: int
    macs: int
    published: Published | None
    measured: Measured | None
    remark: str | None


def list_models(pattern: str = "*") -> Job[list[ModelRow]]:
    """The shipped networks whose name matches, by task and name.

    Args:
        pattern: a name with shell wildcards; without any, a part of the name.

    Raises:
        UsageError: nothing matches.
    """
    names = list(shipped_configs())
    wild = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    chosen = [name for name in names if fnmatch.fnmatchcase(name.lower(), wild.lower())]
    if not chosen:
        raise UsageError(f"no model matches {pattern!r}", did_you_mean(pattern, names))
    rows = []
    for done, name in enumerate(chosen):
        yield Progress("counting", done, len(chosen), "models")
        rows.append(_row(load_config(name)))
    return sorted(rows, key=lambda row: (row.task, row.name))


def _row(config: Config) -> ModelRow:
    name = config.name
    with torch.device("meta"):  # shapes without numbers: nothing is drawn or stored
        model = deployed(build_model(config), config)
    cost = count(model, (1, *config["deploy"]["shape"][1:]))
    return ModelRow(
        name,
        config["task"],
        config["model"]["type"],
        cost.shape,
        cost.params,
        cost.macs,
        PUBLISHED.get(name),
        MEASURED.get(name),
        REMARKS.get(name),
    )
