"""hat bench: how fast something is here, and what would make it faster."""

from typing import TYPE_CHECKING, Annotated

import typer

from hatcli.cli._bench_infer import infer
from hatcli.cli._options import AsJson, ConfigFile, Device, TargetAndOverrides, read_config

if TYPE_CHECKING:
    from hatcli.recipes.bench.advice import BenchResult

app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)


app.command()(infer)


@app.command()
def train(
    arguments: TargetAndOverrides = None,
    config: ConfigFile = None,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", help="Steps that are measured of each way.")
    ] = 5,
    tries_compile: Annotated[
        bool,
        typer.Option("--compile", help="Try torch.compile too; on a CPU that takes minutes."),
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Say where the time of a recipe's training step goes, and what to change.

    Takes some steps of the recipe, on its data or, where there is none, on
    noise; then the same step in other number formats, layouts, batch sizes and
    threads, in turn. Nothing is saved.

    Example: hat bench train unet train.batch_size=2
    """
    chosen = read_config(arguments, config)
    from hatcli.recipes.check import check_config

    check_config(chosen)
    from hatcli.cli import _screen
    from hatcli.recipes.bench.train import bench_train

    result = _screen.follow(
        bench_train(chosen, device=device, steps=steps, tries_compile=tries_compile)
    )
    if as_json:
        _screen.print_json(_as_document(result))
    else:
        _show(result)


def _as_document(result: "BenchResult") -> dict[str, object]:
    from dataclasses import asdict

    whole = sum(part.seconds for part in result.parts)
    return {
        **asdict(result),
        "parts": [
            {"part": p.name, "seconds": p.seconds, "share": p.seconds / whole} for p in result.parts
        ],
    }


def _show(result: "BenchResult") -> None:
    from hatcli.cli import _screen

    height, width = result.size
    _screen.say(
        f"{result.config}: {result.batch} x {height} x {width} on {result.device}, "
        f"{result.images_per_s:.1f} images/s, {result.peak_memory / 2**30:.2f} GiB at most"
    )
    whole = sum(part.seconds for part in result.parts)
    rows = [
        (part.name, f"{1000 * part.seconds:.1f}", f"{100 * part.seconds / whole:.0f} %")
        for part in result.parts
    ]
    _screen.print_table("", ["a step", "ms", "share"], rows)
    if result.reading:
        _screen.print_table(
            "",
            ["reading, on one core", "ms an image"],
            [(part, f"{1000 * seconds:.2f}") for part, seconds in result.reading.items()],
        )
    _screen.print_table(
        "",
        ["computing", "ms an image", "ratio", ""],
        [
            (one.name, f"{1000 * one.seconds:.1f}", f"{one.ratio:.2f}", "yours" * one.is_own)
            for one in result.alternatives
        ],
    )
    for line in result.advice:
        _screen.say(f"- {line}")
