"""The trained model that a float training may learn from, beside the labels."""

from pathlib import Path

import torch
from torch import nn

from hatcli.config import Config
from hatcli.engine.checkpoint import load_checkpoint
from hatcli.engine.weights import fingerprint
from hatcli.errors import ConfigError, UsageError
from hatcli.events import Note
from hatcli.losses.distillation import Distilled
from hatcli.recipes.build import model_from_checkpoint


def with_teacher(
    config: Config, loss: nn.Module, device: torch.device
) -> tuple[nn.Module, nn.Module | None, tuple[Note, ...]]:
    """The loss that a config's node ``teacher`` asks for, the teacher, and a note that says so.

    Args:
        loss: of the task.
        device: where the teacher computes.

    Raises:
        UsageError: there is no such checkpoint.
        CheckpointError: it can't be used.
        ConfigError: the teacher takes other images, or a number of the node is out of range.
    """
    node = config["teacher"]
    if not node:
        return loss, None, ()
    weight, temperature = node.get("weight", 1.0), node.get("temperature", 4.0)
    if not weight > 0 or not temperature > 0:
        raise ConfigError(
            f"teacher: weight and temperature must be above 0, got {weight} and {temperature}"
        )
    if "ckpt" not in node:
        raise ConfigError("teacher: lacks 'ckpt'", "name the checkpoint of a trained model")
    file = Path(node["ckpt"])
    if not file.is_file():
        raise UsageError(f"teacher.ckpt: no checkpoint {file}", "give the path of one")
    content = load_checkpoint(file)
    theirs, model = model_from_checkpoint(content)
    if content["step"] == "int_infer":
        raise ConfigError(f"teacher.ckpt: {file} computes with integers", "give one of step float")
    if theirs["batch_transforms"] != config["batch_transforms"]:
        raise ConfigError(
            f"teacher.ckpt: {file} was trained with other batch_transforms, and both see one input",
            "take over the teacher's batch_transforms",
        )
    model = model.requires_grad_(False).to(device)
    if config["fit"].get("channels_last", True):
        model = model.to(memory_format=torch.channels_last)
    note = Note(
        f"taught by {file} ({theirs['model']['type']}, SHA-256 {fingerprint(file)}...) "
        f"with weight {weight:g} at temperature {temperature:g}"
    )
    return Distilled(loss, weight, temperature), model, (note,)
