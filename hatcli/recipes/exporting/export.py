"""hat export: a checkpoint's deployed model as an ONNX file, checked before it gets its name."""

import json
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from hatcli import __version__
from hatcli.config import Config, from_values
from hatcli.data.classes import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE
from hatcli.errors import CheckpointError, UsageError
from hatcli.events import Job, Note
from hatcli.export.check import TOLERANCE, Comparison, check_onnx, program_values, random_images
from hatcli.export.fusion import Fusion
from hatcli.export.metadata import append_metadata
from hatcli.export.onnx import OPSET, Deployed, Dynamic, export_onnx, second_shape
from hatcli.export.parity import Parity
from hatcli.export.publish import unpublished
from hatcli.opcount import count
from hatcli.recipes.build import (
    build_batch_transforms,
    build_model,
    deployed,
    model_from_checkpoint,
    open_checkpoint,
)
from hatcli.recipes.check import check_config
from hatcli.recipes.exporting.integer import Images, integer_graph, parity_entry, write_integer

COLORS = 3


@dataclass(frozen=True)
class ExportSettings:
    """How to export a checkpoint; what is None follows the config.

    Attributes:
        path: the file to write; by default the config's name in the current folder, with the
            step in it where that isn't float.
        shape: (N, C, H, W) of the images; None takes deploy.shape.
        dynamic: which of the sizes the file leaves open.
        with_preprocess: whether the file takes uint8 RGB images and prepares them itself.
        argmax: whether the file gives labels instead of scores; None takes deploy.argmax.
        tolerance: largest difference to torch, as a share of the largest score.
    """

    path: Path | None = None
    shape: tuple[int, int, int, int] | None = None
    dynamic: Dynamic = "both"
    opset: int = OPSET
    with_preprocess: bool = False
    argmax: bool | None = None
    tolerance: float = TOLERANCE
    overwrite: bool = False


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        step: of the checkpoint, e.g. "float".
        nodes: operator -> how many of it, the most frequent first.
        input: name, dtype and shape; so for ``output``.
        batch_transforms: what prepares the images, by name.
        with_preprocess: whether these are inside the file.
        checks: comparisons with torch, one a batch of images.
        metrics: those of the checkpoint.
        seconds: for the export and the check.
        parity: of an integer model: its codes beside those of int_infer.
        fusion: of an integer model: what onnxruntime makes of it.
    """

    file: Path
    size_bytes: int
    step: str
    opset: int
    nodes: dict[str, int]
    input: str
    output: str
    batch_transforms: tuple[str, ...]
    with_preprocess: bool
    checks: tuple[Comparison, ...]
    tolerance: float
    metrics: dict[str, float]
    seconds: float
    parity: Parity | None = None
    fusion: Fusion | None = None


def export_checkpoint(
    file: Path,
    settings: ExportSettings,
    *,
    config: Config | None = None,
    is_weights: bool = False,
    overrides: list[str] | None = None,
) -> Job[ExportResult]:
    """Export the deployed model of a checkpoint, and compare the file with what it came from.

    A float model is compared with torch, within a tolerance. One of calibration, qat or int_infer
    becomes a model of integers, and is compared with int_infer, code by code.

    Args:
        config: whose deploy settings to use; by default the checkpoint's own.
        is_weights: the file holds the plain weights of ``config``'s network.
        overrides: "key=value" changes of the checkpoint's own config.

    Raises:
        CheckpointError: ``config`` describes another model than the checkpoint's.
        CheckFailed: onnxruntime differs; no file is left.
        HatError: the model can't be exported like this, or the file not be written.
    """
    started = time.perf_counter()
    opened = open_checkpoint(file, config if is_weights else None)
    checkpoint = _with_config(opened, config, overrides or [], file)
    config, model = model_from_checkpoint(checkpoint)
    request = _Request(
        checkpoint,
        config,
        model,
        settings,
        _shape(config, settings),
        int(getattr(build_model(config), "size_divisor", 1)),
        settings.path or _default_path(config, checkpoint["step"]),
    )
    write = _write_float if checkpoint["step"] == "float" else _write_integer
    with unpublished(request.path, overwrite=settings.overwrite) as temporary:
        yield Note(f"exporting {file.name} as {request.path}")
        written = yield from write(request, temporary)
    graph = written.model.graph
    return ExportResult(
        request.path,
        request.path.stat().st_size,
        checkpoint["step"],
        next(entry.version for entry in written.model.opset_import if entry.domain == ""),
        dict(Counter(node.op_type for node in graph.node).most_common()),
        _described(graph.input[0]),
        _described(graph.output[0]),
        tuple(node["type"] for node in config["batch_transforms"]),
        settings.with_preprocess,
        written.checks,
        settings.tolerance,
        checkpoint["metrics"] or {},
        time.perf_counter() - started,
        written.parity,
        written.fusion,
    )


@dataclass(frozen=True)
class _Request:
    """What is written, and how."""

    checkpoint: dict[str, Any]
    config: Config
    model: nn.Module
    settings: ExportSettings
    shape: tuple[int, ...]
    size_divisor: int
    path: Path

    @property
    def argmax(self) -> bool:
        """Whether the file gives labels."""
        if self.settings.argmax is None:
            return bool(self.config["deploy"].get("argmax", False))
        return self.settings.argmax

    def metadata(self) -> dict[str, str]:
        """Everything that the user of the file may ask."""
        return _metadata(self)


@dataclass(frozen=True)
class _Written:
    """A file under its temporary name, and what its check found."""

    model: onnx.ModelProto
    checks: tuple[Comparison, ...] = ()
    parity: Parity | None = None
    fusion: Fusion | None = None


def _write_float(request: _Request, temporary: Path) -> Job[_Written]:
    """Write the float model, and compare it with torch."""
    settings = request.settings
    prepare = build_batch_transforms(request.config).eval()
    inside = prepare if settings.with_preprocess else None
    deployed = Deployed(request.model, inside, argmax=request.argmax)
    exported = export_onnx(
        deployed,
        request.shape,
        dynamic=settings.dynamic,
        size_divisor=request.size_divisor,
        opset=settings.opset,
        metadata=request.metadata(),
    )
    temporary.write_bytes(exported.model.SerializeToString())
    yield Note(f"comparing it with torch in onnxruntime {onnxruntime.__version__}")
    shapes = [request.shape, second_shape(request.shape, settings.dynamic, request.size_divisor)]
    checks = check_onnx(
        temporary,
        deployed.scores,
        _batches(shapes, deployed, prepare),
        tolerance=settings.tolerance,
        values=program_values(exported.program),
        name=str(request.path),
    )
    append_metadata(temporary, {"hat.check": _check_entry(checks, settings.tolerance)})
    return _Written(exported.model, tuple(checks))


def _write_integer(request: _Request, temporary: Path) -> Job[_Written]:
    """Write the integer model, and compare it with int_infer."""
    settings = request.settings
    network = deployed(build_model(request.config), request.config)
    count(network, request.shape)  # refuses a shape in one line, where integers would crash
    prepare = build_batch_transforms(request.config).eval() if settings.with_preprocess else None
    model, parity, fusion = yield from write_integer(
        temporary,
        integer_graph(request.checkpoint, request.model),
        Images(request.shape, dynamic=settings.dynamic, size_divisor=request.size_divisor),
        request.config,
        prepare=prepare,
        argmax=request.argmax,
        opset=settings.opset,
        metadata=request.metadata(),
        name=str(request.path),
    )
    append_metadata(temporary, {"hat.parity": parity_entry(parity, fusion)})
    return _Written(model, (), parity, fusion)


def _with_config(
    checkpoint: dict[str, Any], given: Config | None, overrides: list[str], file: Path
) -> dict[str, Any]:
    """The checkpoint with the config to export by."""
    saved = checkpoint["config"]
    own = from_values(saved["name"], saved["values"], where=f"the config of {file}")
    if given is None:
        chosen = own.with_overrides(overrides)
        check_config(chosen)
    else:
        chosen = given
    for key in ("model", "batch_transforms"):
        if own[key] != chosen[key]:
            raise CheckpointError(
                f"{file}: trained with {key} {own[key]}, the config asks for {chosen[key]}",
                "export it with its own config: leave TARGET out",
            )
    return {**checkpoint, "config": {"name": chosen.name, "values": dict(chosen.values)}}


def _shape(config: Config, settings: ExportSettings) -> tuple[int, ...]:
    shape = settings.shape or config["deploy"].get("shape")
    if not shape:
        raise UsageError("which size?", "give --shape N,C,H,W, or deploy.shape in the config")
    if len(shape) == 4 and shape[1] != COLORS:
        sizes = "x".join(map(str, shape))
        raise UsageError(f"shape {sizes}: images have {COLORS} channels, not {shape[1]}")
    return tuple(shape)


def _default_path(config: Config, step: str) -> Path:
    return Path(f"{config.name}.onnx" if step == "float" else f"{config.name}-{step}.onnx")


def _batches(shapes: list[tuple[int, ...]], deployed: Deployed, prepare: nn.Module) -> list[Tensor]:
    """Made-up images as the file takes them."""
    images = [random_images(shape, seed) for seed, shape in enumerate(shapes)]
    if deployed.preprocess is not None:
        return images
    with torch.no_grad():
        return [prepare(batch) for batch in images]


def _metadata(request: _Request) -> dict[str, str]:
    """Numbers, lists and truth values are JSON."""
    checkpoint, config = request.checkpoint, request.config
    classes = list(checkpoint["classes"] or [])
    is_cityscapes = tuple(classes) == CITYSCAPES_CLASSES
    metrics = checkpoint["metrics"] or {}
    deploy = {**config["deploy"], "shape": list(request.shape)}  # of this file, whatever was asked
    values = {
        "hat.config": {"name": config.name, "values": {**config.values, "deploy": deploy}},
        "hat.task": config["task"],
        "hat.step": checkpoint["step"],
        "hat.epoch": checkpoint["epoch"],
        "hat.metrics": {name: v if math.isfinite(v) else None for name, v in metrics.items()},
        "hat.classes": classes,
        "hat.palette": CITYSCAPES_PALETTE if is_cityscapes else [],
        "hat.preprocess": request.settings.with_preprocess,
        "hat.argmax": request.argmax,
        "hat.color_order": "RGB",
        "hat.color_matrix": _color_matrix(config),
        "hat.transforms": config["val"].get("transforms", []),
        "hat.size_divisor": request.size_divisor,
        "hat.version": __version__,
        "hat.trained_with": checkpoint["hat_version"],
    }
    return {key: v if isinstance(v, str) else json.dumps(v) for key, v in values.items()}


def _color_matrix(config: Config) -> list[list[float]]:
    """Each channel of the input in red, green, blue and 1; empty where it is no such sum."""
    transforms = list(build_batch_transforms(config).children())
    matrix = getattr(transforms[0], "matrix", None) if len(transforms) == 1 else None
    return [] if matrix is None else matrix().tolist()


def _check_entry(checks: list[Comparison], tolerance: float) -> str:
    return json.dumps(
        {
            "onnxruntime": onnxruntime.__version__,
            "torch": torch.__version__,
            "tolerance": tolerance,
            "comparisons": [asdict(check) for check in checks],
        }
    )


def _described(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    sizes = [str(size.dim_param or size.dim_value) for size in tensor.shape.dim]
    return f"{value.name} {dtype} ({', '.join(sizes)})"
