"""hat bench infer: model files side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hatcli.cli._options import AsJson, Weights, parse_shape, read_config
from hatcli.errors import UsageError
from hatcli.events import percent_heads

if TYPE_CHECKING:
    from hatcli.recipes.bench.infer import BenchRow, InferBench


def infer(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE... [KEY=VALUE]...",
            help="Checkpoints of any step and .onnx files; the others are compared with the "
            "first. Settings are for all of them, such as data_rootdir=data/cityscapes. With "
            "--weights, which come first, the first word is their TARGET.",
            show_default=False,
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="N,C,H,W",
            help="Of the images; unless given the only one that a file takes, or the first's.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        Literal["train", "val"], typer.Option(help="What the metric is measured on.")
    ] = "val",
    threads: Annotated[
        str | None,
        typer.Option(metavar="N,...", help="1 and one a core unless given.", show_default=False),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Of the split; all unless given, 0: no metric.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Measurements a file.")] = 20,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Compare model files on the CPU: size, metric, time, memory.

    Files are timed in turn, each in a process of its own; the median counts.

    Example: hat bench infer best.pth unet.onnx unet-int_infer.onnx

    Example: hat bench infer unet.onnx --shape 1,3,512,1024 --threads 1,2,4 --images 0
    """
    from hatcli.recipes.runs.folder import RUNS, find_checkpoint

    words = arguments or []
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    named = [word for word in words if word not in overrides]
    target = None
    if weights is not None:
        if not named:
            raise UsageError("--weights: of which network?", "give its TARGET, e.g. unet")
        target, named = read_config([named[0], *overrides], None), [str(weights), *named[1:]]
    if not named:
        raise UsageError("which files?", "e.g. hat bench infer best.pth unet.onnx")
    sizes = None if shape is None else parse_shape(shape)
    counts = () if threads is None else _parse_threads(threads)
    files = [find_checkpoint(word)[0] for word in named]
    for file in files:
        if not file.is_file():
            raise UsageError(f"no such file: {file}", f"runs are in {RUNS}/")
    from hatcli.cli import _screen
    from hatcli.recipes.bench.infer import bench_infer
    from hatcli.recipes.check import check_config

    if target is not None:
        check_config(target)
    job = bench_infer(
        files,
        overrides=overrides,
        weights_of=target,
        shape=sizes,
        split=split,
        threads=counts,
        images=images,
        rounds=rounds,
    )
    result = _screen.follow(job)
    if as_json:
        from dataclasses import asdict

        _screen.print_json(asdict(result))
    else:
        _show(result)


def _parse_threads(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 1 <= int(part) <= 1024 for part in parts):
        raise UsageError(f"--threads {text!r}: give numbers such as 1,2")
    return tuple(int(part) for part in parts)


def _show(result: "InferBench") -> None:
    from hatcli.cli import _screen

    rows, metric = result.rows, next((row.metric for row in result.rows if row.metric), "")
    _screen.say(f"{'x'.join(map(str, result.shape))} on {result.processor}")
    timed = [*_thread_heads(result), "images/s", "MiB"]
    _screen.print_table(
        "",
        ["", "MB", *percent_heads([metric] if metric else []), *timed],
        [[_title(place, row), *_cells(row, bool(metric))] for place, row in enumerate(rows, 1)],
    )
    if len(rows) > 1:
        _screen.say("")
        _screen.print_table(
            "",
            ["against 1", "MB", *([metric] if metric else []), *timed],
            [
                [_title(place, row), *_ratios(row, rows[0], bool(metric))]
                for place, row in enumerate(rows[1:], 2)
            ],
        )
    _screen.say("")
    for place, row in enumerate(rows, 1):
        inside = "   (prepares the images itself)" if row.preprocess else ""
        _screen.say(f"{place}  {row.file}{inside}")
    if metric:
        _screen.say(f"{metric}: {result.images} images of {result.split}")
    _screen.say("ms: a picture; MiB: the most memory of a process, on the fewest threads")


def _title(place: int, row: "BenchRow") -> str:
    return f"{place} {row.kind}"


def _thread_heads(result: "InferBench") -> list[str]:
    return [f"ms, {n} thread{'s' if n > 1 else ''}" for n in result.threads]


def _cells(row: "BenchRow", has_metric: bool) -> list[str]:
    score = "-" if row.score is None else f"{row.score:.2f}"
    return [
        f"{row.size_bytes / 1e6:.2f}",
        *([score] if has_metric else []),
        *(_three_digits(value) for value in row.ms.values()),
        _three_digits(row.images_per_s),
        f"{row.peak_bytes / 2**20:.0f}",
    ]


def _ratios(row: "BenchRow", first: "BenchRow", has_metric: bool) -> list[str]:
    score = "-"
    if row.score is not None and first.score is not None and row.metric == first.metric:
        score = f"{row.score - first.score:+.2f}"
    return [
        f"{row.size_bytes / first.size_bytes:.2f}x",
        *([score] if has_metric else []),
        *(f"{value / first.ms[n]:.2f}x" for n, value in row.ms.items()),
        f"{row.images_per_s / first.images_per_s:.2f}x",
        f"{row.peak_bytes / first.peak_bytes:.2f}x",
    ]


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
