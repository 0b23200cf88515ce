"""hat demo: see the whole journey work, on data that it makes itself."""

from pathlib import Path
from typing import Annotated

import typer

from hatcli.cli._options import AsJson
from hatcli.errors import UsageError


def main(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. epochs=4."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Everything goes here.")] = Path("demo"),
    train: Annotated[int, typer.Option(min=8, help="Scenes to train on.")] = 160,
    val: Annotated[int, typer.Option(min=1, help="Scenes to score on.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Draw street scenes, pack them, train a UNet, score it, export it, check the export.

    Takes up to three minutes on two cores. An earlier demo in the folder is replaced.

    Example: hat demo --out demo epochs=4
    """
    for word in overrides or []:
        if "=" not in word:
            raise UsageError(f"hat demo takes settings only, got {word!r}", "e.g. epochs=4")
    from hatcli.cli import _screen
    from hatcli.recipes.demo import demo

    result = _screen.follow(demo(out, overrides=overrides or [], train=train, val=val))
    scores = {"checkpoint": result.checkpoint_scores, "onnx": result.onnx_scores}
    if as_json:
        _screen.print_json({name: {"metrics": s.metrics} for name, s in scores.items()})
        return
    _screen.print_metrics(result.checkpoint_scores.metrics)
    _screen.say("")
    for what, where in {
        "predictions beside labels": result.pictures,
        "curves": result.curves,
        "checkpoint": result.trained.best,
        "ONNX, compared with torch": result.exported.file,
    }.items():
        _screen.say(f"{what:28}{where}")
    onnx_miou = result.onnx_scores.metrics["mIoU"]
    _screen.say(f"{'its mIoU in onnxruntime':28}{onnx_miou:.2f}")
    _screen.next_command(
        f"hat eval {result.exported.file}",
        "hat ops unet --shape 1,3,1024,2048",
        "hat pack cityscapes --split train    (your own data: docs/tutorials/unet-cityscapes.md)",
    )
