"""hat eval: score a checkpoint or an ONNX file."""

from pathlib import Path
from typing import Annotated

import typer

from hatcli.cli._options import (
    AsJson,
    ConfigFile,
    Devices,
    TargetAndOverrides,
    Weights,
    find_model_file,
    one_target,
)
from hatcli.cli._processes import from_main, start_for_each, together
from hatcli.config import load_config
from hatcli.errors import UsageError

MODEL_FILES = (".onnx", ".pth", ".tar", ".pt")


def main(
    arguments: TargetAndOverrides = None,
    config: ConfigFile = None,
    ckpt: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Checkpoint or .onnx file; best.pth: the newest run's."),
    ] = None,
    weights: Weights = None,
    minimum: Annotated[
        list[str] | None,
        typer.Option("--min", metavar="NAME=X", help="Exit 3 if this metric is lower."),
    ] = None,
    official: Annotated[
        bool, typer.Option("--official", help="Score with cityscapesscripts too.")
    ] = False,
    gt_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="gtFine/val, for --official.")
    ] = None,
    save_predictions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the predicted label images.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Folder for the figures; beside the file by default."
        ),
    ] = None,
    device: Devices = "auto",
    as_json: AsJson = False,
) -> None:
    """Score a checkpoint or an .onnx file with the data and the metric of its config.

    Example: hat eval --ckpt best.pth --min mIoU=40

    Example: hat eval unet.onnx data_rootdir=data/cityscapes

    Example: hat eval efficientnet_lite0 --weights efficientnet-lite0.pth
    """
    if official != (gt_dir is not None):
        raise UsageError("--official and --gt-dir go together", "e.g. --gt-dir gtFine/val")
    run_eval(
        arguments,
        config,
        ckpt=ckpt,
        weights=weights,
        minimum=minimum,
        gt_dir=gt_dir,
        save_predictions=save_predictions,
        out=out,
        device=device,
        as_json=as_json,
    )


def run_eval(
    arguments: list[str] | None,
    config_file: str | None,
    *,
    ckpt: str | None,
    weights: Path | None = None,
    minimum: list[str] | None = None,
    gt_dir: Path | None = None,
    save_predictions: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
    as_json: bool = False,
) -> None:
    """What the command does, once its words are split."""
    start_for_each(device)
    bounds = dict(_bound(text) for text in minimum or [])
    target, overrides = one_target(arguments, config_file)
    config = None
    if target is not None and target.endswith(MODEL_FILES):
        if ckpt is not None:
            raise UsageError(f"two files to evaluate: {target} and {ckpt}")
        ckpt = target
    elif target is not None:
        from hatcli.recipes.check import check_config

        config = load_config(target, overrides)
        check_config(config)
    if ckpt is None and weights is None:
        raise UsageError("which file?", "give --ckpt FILE, or name an .onnx file")
    with together(device):
        file, found = from_main(lambda: find_model_file(ckpt, weights, config))
        from hatcli.cli import _screen
        from hatcli.recipes.scoring.evaluate import evaluate_file

        if found:
            _screen.tell(found)
        result = _screen.follow(
            evaluate_file(
                file,
                config=config,
                is_weights=weights is not None,
                overrides=overrides,
                device=device,
                bounds=bounds,
                gt_dir=gt_dir,
                save_predictions=save_predictions,
                out=out,
            )
        )
    if as_json:
        document = {
            "file": result.file,
            "images": result.images,
            "unit": "percent",
            "metrics": result.metrics,
        }
        _screen.print_json({**document, "official": result.official} if gt_dir else document)
    else:
        _screen.print_metrics(result.metrics, result.official)
    _screen.tell(f"written: {', '.join(map(str, result.written))}")
    if weights is not None:
        _screen.next_command(["hat", "export", target, "--weights", file])
    elif file.suffix == ".onnx":
        _screen.next_command(["hat", "bench", "infer", file])
    else:
        _screen.next_command(["hat", "export", "--ckpt", file])


def _bound(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        return name, float(value if equals else "x")
    except ValueError as error:
        raise UsageError(f"--min {text!r}: give NAME=VALUE, e.g. mIoU=40") from error
