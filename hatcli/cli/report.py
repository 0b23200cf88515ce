"""hat report: one page of HTML about a run."""

from pathlib import Path
from typing import Annotated

import typer

from hatcli.cli._options import AsJson, Device, split_arguments
from hatcli.errors import UsageError


def main(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|CONFIG] [KEY=VALUE]...",
            help="A run folder, or a config's name for its newest run; the newest of all unless "
            "given. Settings such as data_rootdir=/data say where the pictures are now.",
            show_default=False,
        ),
    ] = None,
    ckpt: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The checkpoint whose pictures to show, and whose run; the best one by default.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The page; RUN/report.html.", show_default=False
        ),
    ] = None,
    pictures: Annotated[
        int,
        typer.Option(
            min=0,
            max=50,
            metavar="N",
            help="Best pictures, and worst ones, to show. It takes a pass over the validation "
            "set; 0 reads no data.",
        ),
    ] = 4,
    onnx: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="An exported file whose check to tell of; those of the run in its folder, or "
            "here under their usual name, are found.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Write one page about a run: curves, classes, confusions, pictures, steps, export.

    The page is one file that asks for nothing from outside. hat train leaves one
    without pictures at the end of each step.

    Example: hat report

    Example: hat report runs/unet/2026-11-22_051519-qat -o unet.html

    Example: hat report --ckpt best.pth data_rootdir=/data --pictures 8
    """
    targets, overrides = split_arguments(arguments)
    if len(targets) > 1:
        raise UsageError(f"one run is enough, got {' and '.join(map(repr, targets))}")
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{out}: a page is an .html file")
    from hatcli.cli import _screen
    from hatcli.recipes.runs.find import find_run, run_of_checkpoint

    target = targets[0] if targets else None
    file, found = None, None
    if ckpt is None:
        run = find_run(target)
    else:
        file, run, found = run_of_checkpoint(ckpt, target)
    if found or target is None or Path(target) != run:
        _screen.tell(found or f"run: {run} (the newest)")
    from hatcli.recipes.reporting.report import report_run

    result = _screen.follow(
        report_run(
            run,
            ckpt=file,
            out=out,
            onnx=onnx or (),
            pictures=pictures,
            overrides=overrides,
            device=device,
        )
    )
    if as_json:
        document = {"file": result.file, "run": result.run, "metrics": result.metrics}
        _screen.print_json(document)
    else:
        _screen.say(str(result.file))
    if result.checkpoint is not None:
        _screen.next_command(["hat", "predict", "--ckpt", result.checkpoint, "PICTURES"])
