"""hat predict: what a model sees in pictures, folders, packs and videos."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hatcli.config import Config
from hatcli.data.picture_source import Files, PictureSource, open_pictures
from hatcli.engine.device import pick_device
from hatcli.errors import HatError, UsageError
from hatcli.events import Job, Note, Progress, Warned
from hatcli.recipes.build import build_dataset
from hatcli.recipes.predicting.run import Prediction, PredictRun, PredictSettings
from hatcli.recipes.runs.folder import write_json
from hatcli.recipes.scoring.model_file import ModelFile, open_model_file

OUT = Path("predictions")
TASKS = ("segmentation", "classification")


@dataclass(frozen=True)
class PredictResult:
    """Predictions, and what they took.

    Attributes:
        task: "segmentation" or "classification".
        failed: what is wrong with each picture that was left out.
        speed: milliseconds a picture to "read" and transform it, in the "model" with the batch
            transforms, and to "draw" and write it; the first batch doesn't count, if there is
            a second one.
        folder: where files went, if there are any.
        written: files, the document last.
    """

    model: Path
    task: str
    pictures: tuple[Prediction, ...]
    failed: tuple[str, ...]
    speed: dict[str, float]
    batch_size: int
    folder: Path
    written: tuple[Path, ...]


def predict(
    file: Path,
    sources: Sequence[Path],
    settings: PredictSettings,
    *,
    config: Config | None = None,
    is_weights: bool = False,
    overrides: Sequence[str] = (),
    device: str = "auto",
) -> Job[PredictResult]:
    """Run a model on pictures, and draw or name what it sees.

    Pictures go through the transforms of validation; what these pad is cut off again, and the
    result has the size of the picture.

    Args:
        file: a checkpoint of any step, or an .onnx file.
        sources: pictures, folders of pictures, packs and videos.
        config: what to use the file with; by default its own.
        is_weights: the file holds the plain weights of ``config``'s network.
        overrides: "key=value" changes of the file's own config.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        DataError: a picture is damaged, and isn't to be left out.
        HatError: the model or a source can't be opened, or the disk is full.
    """
    place = pick_device(device)
    opened = open_model_file(file, config, overrides, device=place, is_weights=is_weights)
    task = opened.config["task"]
    if task not in TASKS:
        raise UsageError(f"{file}: made for {task}; only {' and '.join(TASKS)} can be predicted")
    out = settings.out or (OUT if task == "segmentation" and settings.form != "json" else None)
    chosen = [open_pictures(path, every=settings.every, leave_out=out) for path in sources]
    classes = _class_names(opened, chosen)
    if not classes:
        yield Note("nobody says what the classes are called: they go by their numbers")
    total = _total(chosen)
    yield Note(f"predicting with {file.name} on {_counted(total)}")
    run = PredictRun(opened, place, settings, classes)
    files = [path for source in chosen for path in _paths(source)]
    with run.writer(out or OUT, files) as writer:
        for source in chosen:
            for done in run.take(source, writer):
                yield Progress("predicting", done, max(total, done), "pictures")
    for failure in run.failed:
        yield Warned(failure)
    result = PredictResult(
        file,
        task,
        tuple(run.found),
        tuple(run.failed),
        run.clock.means(),
        settings.batch_size,
        out or OUT,
        tuple(dict.fromkeys(one.file for one in run.found if one.file is not None)),
    )
    return result if settings.out is None else _with_document(result, settings.out)


def _class_names(opened: ModelFile, sources: Sequence[PictureSource]) -> tuple[str, ...]:
    """As the file says, or a pack among the sources, or the validation set where there is one."""
    known = [opened.classes, *(source.classes for source in sources)]
    for names in known:
        if names:
            return names
    try:
        dataset = build_dataset(opened.config, "val")
    except HatError:  # it is only asked for names
        return ()
    return tuple(getattr(dataset, "classes", None) or ())


def _total(sources: Sequence[PictureSource]) -> int:
    """Pictures in all; 0 where a video doesn't say."""
    counts = [source.count for source in sources]
    return 0 if None in counts else sum(count or 0 for count in counts)


def _counted(total: int) -> str:
    return {0: "pictures", 1: "1 picture"}.get(total, f"{total} pictures")


def _paths(source: PictureSource) -> list[Path]:
    return list(source.files) if isinstance(source, Files) else [source.path]


def _with_document(result: PredictResult, out: Path) -> PredictResult:
    """The result with predictions.json beside the pictures."""
    path = out / "predictions.json"
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, as_document(result))
    return replace(result, written=(*result.written, path))


def as_document(result: PredictResult) -> dict[str, Any]:
    """The result as plain values."""
    unit = "probability" if result.task == "classification" else "share of the pixels"
    pictures = []
    for one in result.pictures:
        classes = [{"name": name, "percent": percent} for name, percent in one.classes]
        file = None if one.file is None else str(one.file)
        pictures.append({**asdict(one), "classes": classes, "file": file})
    return {
        "model": str(result.model),
        "task": result.task,
        "percent": unit,
        "pictures": pictures,
        "failed": list(result.failed),
        "ms_a_picture": result.speed,
        "batch_size": result.batch_size,
    }
