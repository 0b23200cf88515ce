"""hat report: the page of a run, with pictures and what an exported file says of its check."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hatcli.data.classes import IGNORE, palette_of
from hatcli.engine.device import pick_device
from hatcli.engine.evaluation import evaluate
from hatcli.errors import DataError, ModelFileError, UsageError
from hatcli.events import Job, Note, Warned
from hatcli.recipes.build import build_dataset, build_loader, build_metric
from hatcli.recipes.reporting.exported import read_exported
from hatcli.recipes.reporting.page import FILE, QUANTIZE, best_checkpoint, describe_run
from hatcli.recipes.reporting.showcase import TASKS, Showcase
from hatcli.recipes.runs.confusion import confusion_of
from hatcli.recipes.scoring.model_file import ModelFile, open_model_file
from hatcli.report.boxes import distinct_palette
from hatcli.report.quantization import write_report
from hatcli.report.run import write_run_report

PICTURES = 4


@dataclass(frozen=True)
class ReportResult:
    """A page.

    Attributes:
        run: the run folder that it is about.
        metrics: of this evaluation, in percent; empty where nothing was evaluated.
        checkpoint: whose pictures and exported files it tells of; None where the run has none.
    """

    file: Path
    run: Path
    metrics: dict[str, float]
    checkpoint: Path | None


def report_run(
    run: Path,
    *,
    ckpt: Path | None = None,
    out: Path | None = None,
    onnx: Sequence[Path] = (),
    pictures: int = PICTURES,
    overrides: Sequence[str] = (),
    device: str = "auto",
) -> Job[ReportResult]:
    """Write the page of a run.

    That of a run of ``hat quantize`` is drawn again from its figures.

    Args:
        ckpt: the checkpoint whose pictures to show; the best of the run by default.
        out: the file to write; report.html in the run folder by default.
        onnx: exported files to tell of, beside those that are found.
        pictures: best ones, and worst ones, to show; 0 reads no data.
        overrides: "key=value" changes of the config, e.g. where the data is.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        HatError: the run or one of the files can't be read, or the page not be written.
    """
    file = out or run / FILE
    if (run / QUANTIZE).exists():
        yield Note(f"{run} is of hat quantize: its page is drawn again")
        write_report(file, json.loads((run / QUANTIZE).read_text(encoding="utf-8")))
        return ReportResult(file, run, {}, best_checkpoint(run, "calibration"))
    document = describe_run(run)
    checkpoint = ckpt or best_checkpoint(run, document["step"])
    document["exports"] = yield from _exports(run, document, onnx)
    if not document["exports"]:
        document["missing"]["a check of an exported file"] = "hat report --onnx FILE"
    metrics: dict[str, float] = {}
    if pictures and checkpoint is None:
        document["missing"]["pictures"] = "the run has no checkpoint"
    elif pictures:
        assert checkpoint is not None
        yield Note(f"scoring {checkpoint.name} for the best and the worst pictures")
        place = pick_device(device)
        opened = open_model_file(checkpoint, None, overrides, device=place)
        try:
            metrics = yield from _look_at(document, opened, pictures, place)
        except (DataError, UsageError) as error:  # damaged, or not here
            yield Warned(f"no pictures: {error.message}")
            document["missing"]["pictures"] = error.message
    write_run_report(file, document)
    return ReportResult(file, run, metrics, checkpoint)


def _look_at(
    document: dict[str, Any], opened: ModelFile, count: int, device: torch.device
) -> Job[dict[str, float]]:
    """Score a checkpoint on its validation set; what is seen goes into the document."""
    config = opened.config
    dataset = build_dataset(config, "val")
    metric: Any = build_metric(config, dataset)
    names = list(getattr(dataset, "classes", ())) or list(opened.classes)
    showcase = None
    if config["task"] in TASKS and names:
        showcase = Showcase(
            config["task"],
            names,
            count,
            ignore_index=getattr(metric, "ignore_index", IGNORE),
            upsample=getattr(metric, "upsample", "nearest"),
        )
    else:
        document["missing"]["pictures"] = f"not drawn for the task {config['task']}"
    metrics = yield from evaluate(
        opened.model,
        build_loader(config, "val", dataset).epoch(0),
        metric,
        prepare=opened.prepare,
        device=device,
        total=len(dataset),
        activity="looking at pictures",
        on_scores=showcase,
    )
    document["confusion"] = confusion_of(metric) or document["confusion"]
    document["scored_again"] = metrics
    document["metrics"] = document["metrics"] or metrics
    document["best_by"] = document["best_by"] or metric.best_by
    if showcase is not None:
        document["pictures"] = {
            "best": showcase.best,
            "worst": showcase.worst,
            "names": names,
            "palette": palette_of(names) or distinct_palette(len(names), range(len(names))),
            "by": showcase.by,
            "of": showcase.seen,
        }
    return metrics


def _exports(
    run: Path, document: dict[str, Any], named: Sequence[Path]
) -> Job[list[dict[str, Any]]]:
    """What the ONNX files of this run say of their check: those named, and those found."""
    name, step = document["name"], document["step"]
    usual = Path(f"{name}.onnx" if step == "float" else f"{name}-{step}.onnx")
    told = [read_exported(path) for path in named]
    for path in (*sorted(run.glob("*.onnx")), usual):
        if not path.is_file() or path.resolve() in {one.resolve() for one in named}:
            continue
        try:
            found = read_exported(path)
        except ModelFileError as error:
            yield Warned(error.message)
            continue
        if found.step == step and _is_same(found.metrics, document["metrics"]):
            told.append(found)
    return [{**asdict(one), "file": str(one.path)} for one in told]


def _is_same(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> bool:
    """Whether two sets of metrics are of the same checkpoint: they agree to the last digit."""
    return bool(one) and dict(one) == dict(other)
