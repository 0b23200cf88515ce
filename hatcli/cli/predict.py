"""hat predict: draw, or name, what a model sees in pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hatcli.cli._options import AsJson, ConfigFile, Device, Weights, find_model_file
from hatcli.config import Config, load_config, shipped_configs
from hatcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from hatcli.recipes.predicting.predict import PredictResult
    from hatcli.recipes.predicting.run import Prediction

MODEL_FILES = (".onnx", ".pth", ".tar", ".pt")


def main(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET] SOURCE... [KEY=VALUE]...",
            help="Pictures, folders of pictures, packs and videos; before them a config, or the "
            "checkpoint or .onnx file in place of --ckpt.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
    ckpt: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Checkpoint or .onnx file; best.pth: the newest run's."),
    ] = None,
    weights: Weights = None,
    form: Annotated[
        Literal["overlay", "side", "palette", "ids", "json"],
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Of a segmentation: overlay (the classes over the picture), side (beside it), "
            "palette or ids (a PNG of class indices, in colour or in grey), or json (no picture).",
        ),
    ] = "overlay",
    as_jpeg: Annotated[
        bool, typer.Option("--jpeg", help="Write drawn pictures as JPEG and not as PNG.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder to write to, predictions.json too; for a segmentation 'predictions' "
            "unless given.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Classes named a picture.")] = 3,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", "-b", min=1, metavar="N", help="Pictures of one size at a time."
        ),
    ] = 1,
    every: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of a video take each N-th frame.")
    ] = 1,
    on_error: Annotated[
        Literal["fail", "skip"],
        typer.Option(help="What a damaged picture does: end it, or be left out and counted."),
    ] = "fail",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Run a model on pictures: draw the classes of each pixel, or name the class of each picture.

    The exit code is 1 where pictures were left out.

    Example: hat predict --ckpt best.pth street.jpg

    Example: hat predict unet.onnx photos/ --format side -o seen

    Example: hat predict --ckpt best.pth data/cityscapes/val_lmdb --batch-size 4

    Example: hat predict --ckpt best.pth drive.mp4 --every 2
    """
    words, overrides = _split(arguments)
    target, ckpt, sources = _sort(words, config, ckpt, has_file=bool(ckpt or weights))
    if not sources:
        raise UsageError("which pictures?", "name a picture, a folder, a pack or a video")
    chosen = None if target is None else _read_config(target, overrides)
    file, found = find_model_file(ckpt, weights, chosen)
    from hatcli.cli import _screen
    from hatcli.recipes.predicting.predict import as_document, predict
    from hatcli.recipes.predicting.run import PredictSettings

    if found:
        _screen.tell(found)
    settings = PredictSettings(out, form, as_jpeg, batch_size, top, every, on_error)
    result = _screen.follow(
        predict(
            file,
            sources,
            settings,
            config=chosen,
            is_weights=weights is not None,
            overrides=overrides,
            device=device,
        )
    )
    if as_json or form == "json":
        _screen.print_json(as_document(result))
    else:
        _show(result)
    _tell(result)
    if result.failed:
        count = len(result.failed)
        what = "1 picture was" if count == 1 else f"{count} pictures were"
        raise DataError(f"{what} left out: {result.failed[0]}")


def _split(arguments: list[str] | None) -> tuple[list[str], list[str]]:
    """Words and "key=value" overrides; a file that is there may have a = in its name."""
    words: list[str] = []
    overrides: list[str] = []
    for word in arguments or []:
        (overrides if "=" in word and not Path(word).exists() else words).append(word)
    return words, overrides


def _sort(
    words: list[str], config: str | None, ckpt: str | None, *, has_file: bool
) -> tuple[str | None, str | None, list[Path]]:
    """TARGET, checkpoint and sources out of the words."""
    target = config
    if words and target is None and _names_config(words[0]):
        target, *words = words
    if not has_file and words and words[0].endswith(MODEL_FILES):
        ckpt, *words = words
        has_file = True
    if not has_file:
        raise UsageError("which model?", "give --ckpt FILE, e.g. --ckpt best.pth, or an .onnx file")
    return target, ckpt, [Path(word) for word in words]


def _names_config(word: str) -> bool:
    return word.endswith(".py") or (word in shipped_configs() and not Path(word).exists())


def _read_config(target: str, overrides: list[str]) -> Config:
    from hatcli.recipes.check import check_config

    config = load_config(target, overrides)
    check_config(config)
    return config


def _show(result: "PredictResult") -> None:
    from hatcli.cli import _screen

    is_map = result.task == "segmentation"
    rows = [row for one in result.pictures for row in (_shares(one) if is_map else _ranks(one))]
    columns = ["picture", "its pixels"] if is_map else ["picture", "class", "%"]
    _screen.print_table("", columns, rows, texts=2)


def _shares(one: "Prediction") -> list[list[str]]:
    shares = ", ".join(f"{name} {percent:.0f} %" for name, percent in one.classes)
    return [[one.name, shares or "no class"]]


def _ranks(one: "Prediction") -> list[list[str]]:
    rows = []
    for rank, (name, percent) in enumerate(one.classes):
        shown = "-" if percent is None else f"{percent:.2f}"
        rows.append(["" if rank else one.name, name, shown])
    return rows


def _tell(result: "PredictResult") -> None:
    """What it took, and what was written, on stderr."""
    from hatcli.cli import _screen

    speed = ", ".join(f"{phase} {ms:.1f}" for phase, ms in result.speed.items())
    _screen.tell(f"ms a picture: {speed} (batch {result.batch_size})")
    if result.written:
        pictures = [path for path in result.written if path.suffix != ".json"]
        names = [str(path) for path in result.written if path not in pictures]
        if len(pictures) == 1:
            names.insert(0, str(pictures[0]))
        elif pictures:
            names.insert(0, f"{len(pictures)} files in {result.folder}/")
        _screen.tell(f"written: {', '.join(names)}")
