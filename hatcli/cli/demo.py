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
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Everything goes here.")
    ] = Path("demo"),
    train: Annotated[int, typer.Option(min=8, help="Scenes to train on.")] = 160,
    val: Annotated[int, typer.Option(min=1, help="Scenes to score on.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Draw street scenes, train a UNet on them, make it integers, export and check both.

    Takes up to five minutes on two cores. An earlier demo in the folder is replaced.

    Example: hat demo --out demo epochs=4
    """
    for word in overrides or []:
        if "=" not in word:
            raise UsageError(f"hat demo takes settings only, got {word!r}", "e.g. epochs=4")
    from hatcli.cli import _screen
    from hatcli.recipes.demo import demo
    from hatcli.recipes.reporting.page import FILE
    from hatcli.recipes.steps import accuracy_table

    result = _screen.follow(demo(out, overrides=overrides or [], train=train, val=val))
    last = result.steps[-1]
    if as_json:
        scores = {
            step: {
                "checkpoint": {"metrics": model.checkpoint_scores.metrics},
                "onnx": {"metrics": model.onnx_scores.metrics},
            }
            for step, model in result.models.items()
        }
        _screen.print_json({**scores, "unit": "percent", "steps": last.steps})
        return
    _screen.print_metrics(last.metrics)
    _screen.print_accuracies(*accuracy_table(last.steps, last.best_by))
    _screen.say("")
    for what, where in {
        "predictions beside labels": result.pictures,
        "curves": result.curves,
        "page about the last step": last.run / FILE,
        "run folders": result.steps[0].run.parent,
    }.items():
        _screen.say(f"{what:28}{where}")
    for step, model in result.models.items():
        scored = f"mIoU {model.onnx_scores.metrics['mIoU']:.2f} % in onnxruntime"
        _screen.say(f"{f'ONNX of {step}':28}{model.exported.file}   {scored}")
    _screen.next_command(
        ["hat", "eval", result.models[last.step].exported.file],
        "hat ops unet --shape 1,3,1024,2048",
        "hat pack cityscapes --split train    (your own data: docs/tutorials/unet-cityscapes.md)",
    )
