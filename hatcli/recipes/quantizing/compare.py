"""hat quantize --compare: layer by layer, what two checkpoints, or the forms of one, give."""

import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from hatcli.config import Config
from hatcli.errors import CheckpointError, UsageError
from hatcli.events import Job, Note, Progress
from hatcli.export.parity import differing_layers
from hatcli.export.quantized import export_quantized
from hatcli.quantize.analysis.layer_results import layer_results
from hatcli.quantize.analysis.layer_statistics import decibels, power
from hatcli.quantize.prepare import prepare
from hatcli.quantize.quantizers import set_mode
from hatcli.quantize.spec import read_spec
from hatcli.recipes.build import (
    build_batch_transforms,
    build_dataset,
    build_loader,
    model_from_checkpoint,
    open_checkpoint,
)
from hatcli.recipes.check import check_config
from hatcli.recipes.exporting.integer import integer_graph
from hatcli.recipes.runs.folder import RUNS
from hatcli.recipes.training.calibrate import EvenSubset
from hatcli.recipes.training.predecessor import open_float

FAKE, INTEGER = "fake-quantized", "integer"


@dataclass(frozen=True)
class Comparison:
    """Layers in the order in which they run.

    Attributes:
        reference: what the columns are compared with.
        columns: SQNR in dB of each form's result against the reference; inf where equal.
        rows: layer -> column -> value; a column is missing where a form has no such layer.
        differing: layer -> (codes that differ between integers and onnxruntime, codes).
        images: compared.
    """

    reference: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, float]]
    differing: dict[str, tuple[int, int]]
    images: int


def compare_forms(
    file: Path, *, overrides: Sequence[str] = (), count: int = 8, root: Path = RUNS
) -> Job[Comparison]:
    """The float, fake-quantized and integer forms of one checkpoint, and onnxruntime's codes.

    Args:
        file: a checkpoint of calibration, qat or int_infer.
        overrides: "key=value" changes of its config, e.g. where the data is.
        count: validation images.
        root: folder with the run folders, where the float checkpoint is looked for.

    Raises:
        CheckpointError: the float checkpoint that it goes back to is gone.
        UsageError: it is a float checkpoint.
    """
    opened = _open(file, overrides)
    if opened.step == "float":
        raise UsageError(
            f"{file}: is a float checkpoint, which has one form",
            "give one of calibration, qat or int_infer, or two files",
        )
    integers = integer_graph(opened.content, opened.graph)
    models: dict[str, fx.GraphModule] = {INTEGER: integers}
    if opened.step != "int_infer":
        models = {FAKE: opened.graph, INTEGER: integers}
    reference = yield from _float_form(opened, root)
    batches = _batches(opened.config, count)
    rows = yield from _compare(reference, models, batches)
    yield Note("comparing the integers with onnxruntime")
    differing = _against_onnxruntime(integers, batches[0])
    return Comparison("float", tuple(models), rows, differing, sum(map(len, batches)))


def compare_files(
    first: Path, second: Path, *, overrides: Sequence[str] = (), count: int = 8
) -> Job[Comparison]:
    """The results of two checkpoints of the same network, of any steps.

    Args:
        first: the reference.
        overrides: "key=value" changes of the first one's config.
        count: validation images of the first one's config.

    Raises:
        CheckpointError: they are of different networks.
    """
    one, other = _open(first, overrides), _open(second, ())
    for key in ("model", "batch_transforms"):
        if one.config[key] != other.config[key]:
            raise CheckpointError(
                f"{second}: made with {key} {other.config[key]}, {first} with {one.config[key]}"
            )
    name = f"{second.name} of {second.parent.name}" if second.name == first.name else second.name
    batches = _batches(one.config, count)
    rows = yield from _compare(one.graph, {name: other.graph}, batches)
    return Comparison(str(first), (name,), rows, {}, sum(map(len, batches)))


@dataclass(frozen=True)
class _Opened:
    """A checkpoint.

    Attributes:
        graph: prepared or of integers; of a float one prepared, in mode "float".
    """

    file: Path
    step: str
    content: dict[str, Any]
    config: Config
    graph: fx.GraphModule


def _open(file: Path, overrides: Sequence[str]) -> _Opened:
    content = open_checkpoint(file)
    config, model = model_from_checkpoint(content)
    chosen = config.with_overrides(overrides)
    check_config(chosen)
    if content["step"] == "float":
        model = prepare(model, read_spec(config["quantize"]))
    assert isinstance(model, fx.GraphModule)
    return _Opened(file, content["step"], content, chosen, model)


def _float_form(opened: _Opened, root: Path) -> Job[fx.GraphModule]:
    """The float model that a checkpoint goes back to, as a graph."""
    spec = read_spec(opened.content["config"]["values"]["quantize"])
    if spec.equalize and opened.step != "int_infer":
        yield Note("equalised channels have other ranges: compared with the graph's float form")
        graph = deepcopy(opened.graph)
        set_mode(graph, "float")
        return graph
    before = open_float(opened.content["lineage"], opened.config, root)
    model: nn.Module = before.model()
    return prepare(model, spec)


def _batches(config: Config, count: int) -> list[Tensor]:
    """The model's input of some validation images, one by one."""
    config = config.with_overrides(["val.num_workers=0", "val.batch_size=1"])
    subset = EvenSubset(build_dataset(config, "val"), count)
    prepare_images = build_batch_transforms(config).eval()
    with torch.no_grad():
        return [
            prepare_images(batch[0]).contiguous()
            for batch in build_loader(config, "val", subset).epoch(0)
        ]


@dataclass
class _Powers:
    signal: float = 0.0
    noise: dict[str, float] = field(default_factory=dict)


def _compare(
    reference: fx.GraphModule, models: Mapping[str, fx.GraphModule], batches: Sequence[Tensor]
) -> Job[dict[str, dict[str, float]]]:
    """Layer -> column -> SQNR."""
    powers: dict[str, _Powers] = {}
    for done, batch in enumerate(batches):
        yield Progress("comparing", done, len(batches))
        exact = layer_results(reference, batch)
        for name, result in exact.items():
            powers.setdefault(name, _Powers()).signal += power(result)
        for column, model in models.items():
            for name, result in layer_results(model, batch).items():
                if name in exact and (error := _difference(result, exact[name])) is not None:
                    noise = powers[name].noise
                    noise[column] = noise.get(column, 0.0) + power(error)
    yield Progress("comparing", len(batches), len(batches))
    return {
        name: {column: decibels(one.signal, noise) for column, noise in one.noise.items()}
        for name, one in powers.items()
        if one.noise
    }


def _difference(found: Tensor, exact: Tensor) -> Tensor | None:
    """None where the shapes differ but for channels of zeros that integers add."""
    if found.ndim != exact.ndim or found.shape[1] < exact.shape[1]:
        return None
    found = found[:, : exact.shape[1]]
    return found - exact if found.shape == exact.shape else None


def _against_onnxruntime(graph: fx.GraphModule, batch: Tensor) -> dict[str, tuple[int, int]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(export_quantized(graph, tuple(batch.shape)).SerializeToString())
        found = differing_layers(path, graph, batch, where="the exported model")
        return {_layer(name): (wrong, total) for name, wrong, total in found}


def _layer(name: str) -> str:
    return "input" if name == "input_quantizer" else name.removesuffix(".output_quantizer")
