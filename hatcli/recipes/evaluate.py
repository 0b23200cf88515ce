"""hat eval: the metric of a checkpoint or an ONNX file, with the loader of training."""

import csv
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hatcli.config import Config
from hatcli.engine.device import pick_device
from hatcli.engine.evaluation import Metric, evaluate
from hatcli.errors import CheckFailed, CheckpointError, ModelFileError, UsageError, did_you_mean
from hatcli.events import Job, Note
from hatcli.export.session import OnnxModel
from hatcli.recipes.build import (
    build_batch_transforms,
    build_dataset,
    build_loader,
    build_metric,
    model_from_checkpoint,
    open_checkpoint,
)
from hatcli.recipes.check import check_config
from hatcli.recipes.official import LabelImageWriter, official_scores, require_official
from hatcli.recipes.runs import write_json


@dataclass(frozen=True)
class EvalResult:
    """Scores of one file on one data set.

    Attributes:
        metrics: metric name -> value, in percent.
        official: the same names from the dataset's official scripts, where asked for.
        written: the files that hold these figures.
    """

    file: Path
    images: int
    metrics: dict[str, float]
    official: dict[str, float]
    written: tuple[Path, ...]


def evaluate_file(
    file: Path,
    *,
    config: Config | None = None,
    is_weights: bool = False,
    overrides: list[str] | None = None,
    device: str = "auto",
    bounds: dict[str, float] | None = None,
    gt_dir: Path | None = None,
    save_predictions: Path | None = None,
    out: Path | None = None,
) -> Job[EvalResult]:
    """Score a checkpoint or an .onnx file on the validation set.

    Args:
        file: a checkpoint, or an ONNX file that carries its config.
        config: whose data, transforms and metric to use; by default the file's own.
        is_weights: the file holds the plain weights of ``config``'s network.
        overrides: "key=value" changes of the file's own config.
        device: "auto", "cpu", "cuda" or "cuda:N".
        bounds: lowest value allowed of a metric.
        gt_dir: folder of the official label images; scores with the official scripts too.
        save_predictions: folder to keep the predicted label images in.
        out: folder for the figures; beside the file by default.

    Raises:
        CheckFailed: a metric is below its bound, after everything is written.
    """
    place = pick_device(device)
    if gt_dir is not None:
        require_official()
    config, model, prepare = _open(file, config, overrides or [], place, is_weights=is_weights)
    dataset = build_dataset(config, "val")
    metric = build_metric(config, dataset)
    _require_known(bounds or {}, metric)
    loader = build_loader(config, "val", dataset)
    yield Note(f"evaluating {file} on {len(dataset)} images")
    with tempfile.TemporaryDirectory() as folder:
        writer = None
        if gt_dir is not None or save_predictions is not None:
            upsample: Any = getattr(metric, "upsample", "nearest")
            writer = LabelImageWriter(save_predictions or Path(folder), gt_dir, upsample)
        metrics = yield from evaluate(
            model,
            loader.epoch(0),
            metric,
            prepare=prepare,
            device=place,
            total=len(dataset),
            on_scores=writer,
        )
        official = official_scores(writer.pairs) if writer and gt_dir is not None else {}
    written = _write(file, out, metrics, official)
    low = {name: least for name, least in (bounds or {}).items() if not metrics[name] >= least}
    if low:
        misses = ", ".join(f"{name} {metrics[name]:.2f} < {least:g}" for name, least in low.items())
        raise CheckFailed(f"{file}: below the bound: {misses}", f"all figures: {written[0]}")
    return EvalResult(file, len(dataset), metrics, official, written)


def _open(
    file: Path,
    config: Config | None,
    overrides: list[str],
    device: torch.device,
    *,
    is_weights: bool,
) -> tuple[Config, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The config to evaluate by, the model, and what makes its input."""
    if file.suffix == ".onnx" and not is_weights:
        onnx_model = OnnxModel(file)
        own = onnx_model.config
        if own is None and config is None:
            raise ModelFileError(
                f"{file}: carries no config", "name one: hat eval unet --ckpt FILE.onnx"
            )
        chosen = _choose(own, config, overrides, file)
        prepare = nn.Identity() if onnx_model.preprocess else build_batch_transforms(chosen)
        return chosen, onnx_model, prepare
    checkpoint = open_checkpoint(file, config if is_weights else None)
    own, network = model_from_checkpoint(checkpoint)
    chosen = _choose(own, config, overrides, file)
    network = network.to(device).to(memory_format=torch.channels_last)
    return chosen, network, build_batch_transforms(chosen).to(device)


def _choose(own: Config | None, given: Config | None, overrides: list[str], file: Path) -> Config:
    if given is None:
        assert own is not None
        chosen = own.with_overrides(overrides)
        check_config(chosen)
    else:
        chosen = given
    if own is not None and own["model"] != chosen["model"]:
        raise CheckpointError(
            f"{file}: holds the model {own['model']}, the config asks for {chosen['model']}",
            "evaluate it with its own config: leave TARGET out",
        )
    return chosen


def _require_known(bounds: dict[str, float], metric: Metric) -> None:
    names = metric.compute()
    for name in bounds:
        if name not in names:
            raise UsageError(f"--min: no metric {name!r}", did_you_mean(name, names))


def _write(
    file: Path, out: Path | None, metrics: dict[str, float], official: dict[str, float]
) -> tuple[Path, ...]:
    """metrics.json and per_class.csv, named after the file."""
    folder = out or file.parent
    folder.mkdir(parents=True, exist_ok=True)
    stem = file.name.removesuffix(".onnx").removesuffix(".pth.tar").removesuffix(".pth")
    figures = folder / f"{stem}.metrics.json"
    document = {"file": str(file), "unit": "percent", "metrics": metrics}
    write_json(figures, {**document, "official": official} if official else document)
    table = folder / f"{stem}.per_class.csv"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["class", "metric", "value"])
        for name, value in metrics.items():
            kind, dot, label = name.partition(".")
            if dot:
                writer.writerow([label, kind, value])
    return figures, table
