"""hat demo: the whole journey on street scenes that it draws itself."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hatcli.config import Config, load_config
from hatcli.data.classes import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE
from hatcli.data.scenes.draw import write_scenes
from hatcli.engine.checkpoint import load_checkpoint
from hatcli.engine.evaluation import evaluate
from hatcli.errors import UsageError
from hatcli.events import Event, Job, Note, Progress
from hatcli.metrics.mean_iou import predictions
from hatcli.recipes.build import (
    build_batch_transforms,
    build_dataset,
    build_loader,
    build_metric,
    model_from_checkpoint,
)
from hatcli.recipes.check import check_config
from hatcli.recipes.exporting.export import ExportResult, ExportSettings, export_checkpoint
from hatcli.recipes.packing.pack import pack
from hatcli.recipes.runs.folder import STEPS
from hatcli.recipes.scoring.evaluate import EvalResult, evaluate_file
from hatcli.recipes.steps import config_of_step
from hatcli.recipes.training.journey import Journey, take_all_steps
from hatcli.recipes.training.workbench import StepResult
from hatcli.report.pictures import side_by_side, write_png

MARK = "made-by-hat-demo"
SIZE = (512, 256)


@dataclass(frozen=True)
class DemoResult:
    """What the demo left behind.

    Attributes:
        steps: float, calibration, qat, int_infer.
        models: of the float and of the integer model, each exported and scored.
        pictures: folder of predictions beside images and labels.
        curves: loss and metrics over the float epochs.
    """

    folder: Path
    steps: list[StepResult]
    models: dict[str, "DemoModel"]
    pictures: Path
    curves: Path


@dataclass(frozen=True)
class DemoModel:
    """A checkpoint and the ONNX file made of it, both scored."""

    checkpoint: Path
    exported: ExportResult
    checkpoint_scores: EvalResult
    onnx_scores: EvalResult


def demo(folder: Path, *, overrides: list[str], train: int = 160, val: int = 24) -> Job[DemoResult]:
    """Draw, pack, take all steps, export and score float and integers, and show predictions.

    Args:
        folder: everything goes here; an earlier demo in it is replaced.
        overrides: "key=value" changes of the demo's config.
        train: scenes to train on.
        val: scenes to score on.

    Raises:
        UsageError: the folder holds something else.
    """
    scenes = folder / "scenes"
    config = load_config("demo", [f"data_rootdir={scenes}", *overrides])
    check_config(config)
    _make_room(folder)
    yield from _draw(scenes, train, val)
    for split in ("train", "val"):
        yield Note(f"$ hat pack cityscapes --src {scenes} --split {split}")
        yield from pack("cityscapes", scenes, None, split, num_workers=0)
    configs = {step: config_of_step(config, step) for step in STEPS}
    journey = Journey(configs, "demo", out=folder / "runs", command=["demo"])
    steps = yield from take_all_steps(journey)
    models = {}
    for result, file in ((steps[0], "unet.onnx"), (steps[-1], "unet-int8.onnx")):
        models[result.step] = yield from _export(result.best, folder / file)
    pictures = folder / "predictions"
    yield from _draw_predictions(config, steps[-1].best, pictures)
    curves = steps[0].run / "plots" / "curves.png"
    return DemoResult(folder, steps, models, pictures, curves)


def _export(checkpoint: Path, onnx_file: Path) -> Job[DemoModel]:
    yield Note(f"$ hat eval --ckpt {checkpoint}")
    scores = yield from evaluate_file(checkpoint)
    yield Note(f"$ hat export --ckpt {checkpoint} -o {onnx_file}")
    exported = yield from export_checkpoint(checkpoint, ExportSettings(path=onnx_file))
    yield Note(f"$ hat eval {onnx_file}")
    onnx_scores = yield from evaluate_file(onnx_file)
    return DemoModel(checkpoint, exported, scores, onnx_scores)


def _make_room(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise UsageError(f"{folder}: holds something else", "give another --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("hat demo may delete this folder when it runs again\n")


def _draw(scenes: Path, train: int, val: int) -> Iterator[Event]:
    total = train + val
    for done, _ in enumerate(write_scenes(scenes, train=train, val=val, size=SIZE), start=1):
        yield Progress("drawing street scenes", done, total)


def _draw_predictions(config: Config, checkpoint: Path, folder: Path) -> Job[None]:
    """A picture a validation image: image, prediction, label."""
    folder.mkdir()
    _, model = model_from_checkpoint(load_checkpoint(checkpoint))
    dataset = build_dataset(config, "val")

    def draw(images: Tensor, scores: Tensor, targets: Tensor, names: list[str]) -> None:
        height, width = targets.shape[-2:]
        maps = predictions(scores, (height, width)).numpy()
        for image, prediction, label, name in zip(
            images.permute(0, 2, 3, 1).numpy(), maps, targets.numpy(), names, strict=True
        ):
            picture = side_by_side(
                image, prediction, label, CITYSCAPES_PALETTE, names=CITYSCAPES_CLASSES
            )
            write_png(folder / f"{name}.png", picture)

    yield from evaluate(
        model,
        build_loader(config, "val", dataset).epoch(0),
        build_metric(config, dataset),
        prepare=build_batch_transforms(config),
        device=torch.device("cpu"),
        total=len(dataset),
        activity="drawing predictions",
        on_scores=draw,
    )
