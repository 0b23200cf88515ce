"""The step qat: the training of a quantized model, in the same loop as that of a float one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from hatcli.config import Config
from hatcli.data.loader import SampleSource
from hatcli.engine.checkpoint import load_checkpoint
from hatcli.engine.device import pick_device
from hatcli.engine.distributed import from_main
from hatcli.engine.training import Training
from hatcli.errors import ConfigError
from hatcli.events import Job, Note, Warned
from hatcli.losses.distillation import Distilled
from hatcli.quantize.layers import QuantConv2d
from hatcli.quantize.prepare import prepare
from hatcli.quantize.qat import freeze_batch_norms, start_qat, transfer_ranges
from hatcli.quantize.spec import QatSpec, read_spec
from hatcli.recipes.build import build_loss, build_model, prepare_deployed
from hatcli.recipes.runs.folder import RUNS
from hatcli.recipes.training.predecessor import Predecessor, open_float
from hatcli.recipes.training.train import Resume, Start, new_training, resumed_by_torchrun, train
from hatcli.recipes.training.workbench import StepResult, open_training_set, open_workbench

STEP = "qat"

Lineage = list[dict[str, Any]]


@dataclass(frozen=True)
class _Origin:
    """Where a QAT begins, or goes on.

    Attributes:
        graph: ready for training.
        is_folded: whether it must have its batch norms folded before its weights are loaded.
        name: of the file, for the log.
    """

    graph: GraphModule
    lineage: Lineage
    is_folded: bool
    name: Path


def train_qat(
    config: Config,
    before: Predecessor | None,
    *,
    device: str = "auto",
    out: Path | None = None,
    resume: Resume | None = None,
    command: list[str] | None = None,
) -> Job[StepResult]:
    """Train a calibrated model with its quantizers; the start itself is the first candidate.

    Args:
        config: complete and checked; of the same model.
        before: a calibration checkpoint; None with ``resume``.
        device: "auto", "cpu", "cuda" or "cuda:N".
        out: folder that holds the run folders; "runs" by default.
        resume: the run goes on in the folder of its checkpoint.
        command: the words of the command line, for args.txt.

    Raises:
        CheckpointError: the float checkpoint is needed and isn't there any more.
    """
    place = pick_device(device)
    if config["fit"].get("compile"):
        raise ConfigError(
            "fit.compile: qat trains in its own kernels, which torch.compile makes slower",
            "leave it out of steps.qat; the float step may have it",
        )
    resume = resumed_by_torchrun(STEP, asked=resume)
    qat = read_spec(config["quantize"]).qat
    train_set = open_training_set(config)
    bench = open_workbench(config, place)
    root = (out or RUNS) if resume is None else resume.checkpoint.parent.parent.parent
    if resume is not None:
        origin = _origin_of_run(config, qat, resume.checkpoint)
    else:
        assert before is not None
        origin = _origin(config, qat, before, root)
    training = new_training(config, origin.graph, place)
    if origin.is_folded:
        _freeze(training)
    loss, teacher = _loss(config, qat, train_set, origin.lineage, root)
    start = Start(
        STEP,
        training,
        loss.to(place),
        view=lambda graph: graph,
        teacher=None if teacher is None else teacher.to(place),
        is_a_candidate=True,
        lineage=origin.lineage,
        content=lambda: {"batch_norm": "kept" if _has_norms(training.model) else "folded"},
        notes=tuple(_notes(config, qat, origin.name)),
        between_epochs=lambda: _freeze_after(training, qat.freeze_after),
    )
    result = yield from train(bench, train_set, start, out=out, resume=resume, command=command)
    yield from _comparison(result)
    return result


def _origin(config: Config, qat: QatSpec, before: Predecessor, root: Path) -> _Origin:
    """The calibrated graph; with batch norms kept, the float model's with the same ranges."""
    graph = before.model()
    assert isinstance(graph, GraphModule)
    if qat.batch_norm == "kept":
        network = from_main(lambda: open_float(before.lineage, config, root)).model()
        calibrated = graph
        graph = prepare(network, read_spec(config["quantize"]), fold_batch_norm=False)
        transfer_ranges(calibrated, graph)
    start_qat(graph, qat)
    return _Origin(graph, before.lineage, False, before.file)


def _origin_of_run(config: Config, qat: QatSpec, last: Path) -> _Origin:
    """A graph of the same form, whose weights and ranges the checkpoint will bring."""
    content = from_main(lambda: load_checkpoint(last))
    graph = prepare_deployed(build_model(config), config, batch_norm=qat.batch_norm)
    start_qat(graph, qat)
    is_folded = qat.batch_norm == "kept" and content["batch_norm"] == "folded"
    return _Origin(graph, content["lineage"], is_folded, last)


def _loss(
    config: Config, qat: QatSpec, train_set: SampleSource, lineage: Lineage, root: Path
) -> tuple[nn.Module, nn.Module | None]:
    """The task's loss, and with distillation the float model as a teacher."""
    loss = build_loss(config, train_set)
    if qat.distill == 0:
        return loss, None
    before = from_main(lambda: open_float(lineage, config, root))
    teacher = before.model().requires_grad_(False)
    if config["fit"].get("channels_last", True):
        teacher = teacher.to(memory_format=torch.channels_last)
    return Distilled(loss, qat.distill, qat.temperature), teacher


def _notes(config: Config, qat: QatSpec, origin: Path) -> list[Note]:
    norms = (
        "batch norms folded"
        if qat.batch_norm == "folded"
        else f"batch norms kept, folded and frozen after epoch {qat.freeze_after}"
    )
    words = [f"starting from {origin}", f"scales {qat.scales}", norms]
    if qat.distill > 0:
        words.append(f"distilled by {qat.distill:g} at temperature {qat.temperature:g}")
    notes = [Note(" · ".join(words))]
    if config["fit"].get("precision") == "bf16":
        notes.append(Note("fit.precision=bf16 is for float alone: qat computes in float32"))
    return notes


def _freeze_after(training: Training, epochs: int) -> None:
    """Fold the batch norms when that many epochs are over."""
    if training.epoch >= epochs and _has_norms(training.model):
        _freeze(training)


def _freeze(training: Training) -> None:
    """Fold the norms into the weights; those of the average into the average's."""
    models = [training.model] if training.ema is None else [training.model, training.ema.model]
    for model in models:
        assert isinstance(model, GraphModule)
        freeze_batch_norms(model)


def _has_norms(graph: nn.Module) -> bool:
    layers = (module for module in graph.modules() if isinstance(module, QuantConv2d))
    return any(layer.bn is not None for layer in layers)


def _comparison(result: StepResult) -> Job[None]:
    """A warning when QAT didn't reach its predecessor, as with kept batch norms it may happen."""
    *_, before, own = (entry["metrics"].get(result.best_by) for entry in result.steps)
    if before is not None and own is not None and own < before:
        yield Warned(
            f"{result.best_by} {own:.2f} is below the {before:.2f} of the calibration; "
            "a lower optim.lr or more epochs may help"
        )
