"""Open whatever holds a model, as something to call: a checkpoint of any step, or an ONNX file."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hatcli.config import Config
from hatcli.engine.distributed import from_main
from hatcli.errors import CheckpointError, ModelFileError
from hatcli.export.session import OnnxModel
from hatcli.recipes.build import build_batch_transforms, model_from_checkpoint, open_checkpoint
from hatcli.recipes.check import check_config


@dataclass(frozen=True)
class ModelFile:
    """A model that is ready to run.

    Attributes:
        config: what it was made with, or is to be used with.
        step: "float", "calibration", "qat" or "int_infer"; "" of an ONNX file of others.
        classes: names of its classes; empty where the file doesn't say.
        prepare: from uint8 RGB images (N, 3, H, W) on the device to what ``model`` takes.
        model: from that to raw scores (N, classes, ...), or to labels (N, 1, ...) int64.
        onnx: of an ONNX file, what it says of itself.
        is_weights: the file holds plain weights, and no config.
    """

    path: Path
    config: Config
    step: str
    classes: tuple[str, ...]
    prepare: Callable[[Tensor], Tensor]
    model: Callable[[Tensor], Tensor]
    onnx: OnnxModel | None = None
    is_weights: bool = False


def open_model_file(
    file: Path,
    config: Config | None = None,
    overrides: Sequence[str] = (),
    *,
    device: torch.device,
    is_weights: bool = False,
) -> ModelFile:
    """The model of a file, in evaluation mode.

    Args:
        config: what to use it with; by default the file's own.
        overrides: "key=value" changes of the file's own config.
        device: where a checkpoint computes; onnxruntime computes on the CPU.
        is_weights: the file holds the plain weights of ``config``'s network.

    Raises:
        ModelFileError: the ONNX file can't be used, or no config is known.
        CheckpointError: the checkpoint can't be used, or ``config`` describes another model.
    """
    if file.suffix == ".onnx" and not is_weights:
        return _open_onnx(file, config, overrides, device)
    checkpoint = from_main(lambda: open_checkpoint(file, config if is_weights else None))
    own, network = model_from_checkpoint(checkpoint)
    chosen = _choose(own, config, overrides, file)
    network = network.to(device).to(memory_format=torch.channels_last)
    return ModelFile(
        file,
        chosen,
        checkpoint["step"],
        tuple(checkpoint["classes"] or ()),
        build_batch_transforms(chosen).to(device),
        network,
        is_weights=is_weights,
    )


def _open_onnx(
    file: Path, config: Config | None, overrides: Sequence[str], device: torch.device
) -> ModelFile:
    model = OnnxModel(file)
    if model.config is None and config is None:
        raise ModelFileError(f"{file}: carries no config", "name one as TARGET, e.g. unet")
    chosen = _choose(model.config, config, overrides, file)
    prepare = nn.Identity() if model.preprocess else build_batch_transforms(chosen).to(device)
    classes = json.loads(model.metadata.get("hat.classes", "[]")) if model.config else []
    step = model.metadata.get("hat.step", "") if model.config else ""
    return ModelFile(file, chosen, step, tuple(classes), prepare, model, model)


def _choose(
    own: Config | None, given: Config | None, overrides: Sequence[str], file: Path
) -> Config:
    if given is None:
        assert own is not None
        chosen = own.with_overrides(overrides)
        check_config(chosen)
    else:
        chosen = given
    if own is not None and own["model"] != chosen["model"]:
        raise CheckpointError(
            f"{file}: holds the model {own['model']}, the config asks for {chosen['model']}",
            "use it with its own config: leave TARGET out",
        )
    return chosen
