"""hat eval: the metric of a checkpoint or an ONNX file, with the loader of training."""

import csv
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatcli.config import Config
from hatcli.engine.device import pick_device
from hatcli.engine.distributed import from_main, processes
from hatcli.engine.evaluation import Metric, evaluate, require_merging
from hatcli.errors import CheckFailed, UsageError, did_you_mean
from hatcli.events import Job, Note
from hatcli.recipes.build import build_dataset, build_loader, build_metric
from hatcli.recipes.runs.confusion import confusion_of, write_class_table
from hatcli.recipes.runs.folder import write_json
from hatcli.recipes.scoring.model_file import open_model_file
from hatcli.recipes.scoring.official import LabelImageWriter, official_scores, require_official


@dataclass(frozen=True)
class EvalResult:
    """Scores of one file on one dataset.

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
    if processes() > 1 and (gt_dir is not None or save_predictions is not None):
        raise UsageError(
            "--official and --save-predictions need all pictures in one process",
            "run it without torchrun",
        )
    if gt_dir is not None:
        require_official()
    opened = open_model_file(file, config, overrides or [], device=place, is_weights=is_weights)
    config = opened.config
    dataset = build_dataset(config, "val")
    metric = build_metric(config, dataset)
    require_merging(metric)
    _require_known(bounds or {}, metric)
    loader = build_loader(config, "val", dataset)
    yield Note(f"evaluating {file.name} on {len(dataset)} images")
    with tempfile.TemporaryDirectory() as folder:
        writer = None
        if gt_dir is not None or save_predictions is not None:
            upsample: Any = getattr(metric, "upsample", "nearest")
            writer = LabelImageWriter(save_predictions or Path(folder), gt_dir, upsample)
        metrics = yield from evaluate(
            opened.model,
            loader.epoch(0),
            metric,
            prepare=opened.prepare,
            device=place,
            total=len(dataset),
            on_scores=writer,
        )
        official = official_scores(writer.pairs) if writer and gt_dir is not None else {}
    written = from_main(lambda: _write(file, out, metric, metrics, official))
    from_main(lambda: _require_bounds(file, bounds or {}, metrics, written))
    return EvalResult(file, len(dataset), metrics, official, written)


def _require_bounds(
    file: Path, bounds: dict[str, float], metrics: dict[str, float], written: tuple[Path, ...]
) -> None:
    low = {name: least for name, least in bounds.items() if not metrics[name] >= least}
    if low:
        misses = ", ".join(f"{name} {metrics[name]:.2f} < {least:g}" for name, least in low.items())
        raise CheckFailed(f"{file}: below the bound: {misses}", f"all figures: {written[0]}")


def _require_known(bounds: dict[str, float], metric: Metric) -> None:
    names = metric.compute()
    for name in bounds:
        if name not in names:
            raise UsageError(f"--min: no metric {name!r}", did_you_mean(name, names))


def _write(
    file: Path,
    out: Path | None,
    metric: Metric,
    metrics: dict[str, float],
    official: dict[str, float],
) -> tuple[Path, ...]:
    """metrics.json, and per_class.csv where the metric tells of classes; named after the file."""
    folder = out or file.parent
    folder.mkdir(parents=True, exist_ok=True)
    stem = file.name.removesuffix(".onnx").removesuffix(".pth.tar").removesuffix(".pth")
    figures = folder / f"{stem}.metrics.json"
    document = {"file": str(file), "unit": "percent", "metrics": metrics}
    write_json(figures, {**document, "official": official} if official else document)
    table = folder / f"{stem}.per_class.csv"
    counts = confusion_of(metric)
    if counts is not None:
        write_class_table(table, *counts)
        return figures, table
    parts = ((name.partition("."), value) for name, value in metrics.items())
    rows = [(label, kind, value) for (kind, dot, label), value in parts if dot]
    if not rows:
        return (figures,)
    with table.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("class", "metric", "value"), *rows])
    return figures, table
