"""hat export --format safetensors: the weights of a checkpoint alone, for other programs."""

import json
from dataclasses import dataclass
from pathlib import Path

from hatcli import __version__
from hatcli.engine.checkpoint import load_checkpoint
from hatcli.engine.weights import save_safetensors
from hatcli.errors import UsageError
from hatcli.events import Job, Note
from hatcli.export.publish import unpublished


@dataclass(frozen=True)
class WeightsResult:
    """What was written.

    Attributes:
        step: of the checkpoint, e.g. "float".
        averaged: whether the weights are the moving average of the training.
    """

    file: Path
    size_bytes: int
    step: str
    tensors: int
    parameters: int
    averaged: bool


def export_weights(
    file: Path, path: Path | None = None, *, overwrite: bool = False
) -> Job[WeightsResult]:
    """Write a checkpoint's weights under the names of its model, all heads included.

    The averaged weights are taken where the checkpoint has them. ``hat train --weights`` and
    ``hat eval --weights`` read the file.

    Args:
        file: a checkpoint.
        path: the file to write; by default the config's name in the current folder.
        overwrite: replace it if it exists.

    Raises:
        UsageError: the checkpoint is one of integers, or the file exists.
        CheckpointError: the checkpoint can't be used.
    """
    checkpoint = load_checkpoint(file)
    step, config = checkpoint["step"], checkpoint["config"]
    if step == "int_infer":
        raise UsageError(
            f"{file}: holds integers, not weights",
            "export it as ONNX, or the checkpoint that it was made from",
        )
    weights = checkpoint["ema_state_dict"] or checkpoint["state_dict"]
    suffix = "" if step == "float" else f"-{step}"
    path = path or Path(f"{config['name']}{suffix}.safetensors")
    about = {
        "hat.config": json.dumps(config),
        "hat.step": step,
        "hat.classes": json.dumps(list(checkpoint["classes"])),
        "hat.metrics": json.dumps(checkpoint["metrics"]),
        "hat.version": __version__,
    }
    yield Note(f"writing the weights of {file.name} as {path}")
    with unpublished(path, overwrite=overwrite, finish=None) as temporary:
        save_safetensors(temporary, weights, about)
    parameters = sum(w.numel() for w in weights.values() if w.is_floating_point())
    averaged = bool(checkpoint["ema_state_dict"])
    return WeightsResult(path, path.stat().st_size, step, len(weights), parameters, averaged)
