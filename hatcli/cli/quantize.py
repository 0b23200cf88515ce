"""hat quantize: which layers cost the accuracy, and what to raise."""

import math
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hatcli.cli._options import (
    AsJson,
    ConfigFile,
    Device,
    RunsDir,
    TargetAndOverrides,
    Weights,
    one_target,
    split_arguments,
)
from hatcli.config import Config, load_config
from hatcli.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from hatcli.recipes.quantizing.quantize import QuantizeResult

WORST = 15  # layers in the table
TRIED, COMPARED = 256, 8  # images
WIDTH = 80
NAME_WIDTH = 40
KIND_WIDTH = 9


def main(
    arguments: TargetAndOverrides = None,
    config: ConfigFile = None,
    ckpt: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Float checkpoint; the newest float run's by default.",
            show_default=False,
        ),
    ] = None,
    weights: Weights = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            metavar="POINTS",
            help="Raise the fewest layers that keep the metric's loss to float within this.",
            show_default=False,
        ),
    ] = None,
    raise_to: Annotated[
        Literal["int16", "float"],
        typer.Option("--raise", help="What --max-drop raises layers to."),
    ] = "float",
    images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Validation images: 256 for each trial of --max-drop, 8 for --compare.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Quantize nothing: compare two checkpoints layer by layer, or of one the float, "
            "fake-quantized and integer forms and onnxruntime.",
        ),
    ] = False,
    out: RunsDir = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Find the layers that quantization hurts, and raise the fewest that it takes.

    Writes a run folder with quantize.json, report.html, a checkpoint of
    calibration and its ONNX file; with --max-drop the exceptions for the config,
    too, in override.txt.

    Example: hat quantize unet --ckpt best.pth

    Example: hat quantize efficientnet_lite0 --weights lite0.pth --max-drop 1.0

    Example: hat quantize --compare calibration-checkpoint-best.pth.tar
    """
    if compare:
        _compare(arguments, images or COMPARED, out, as_json=as_json)
        return
    target, overrides = one_target(arguments, config)
    if target is None:
        raise UsageError("which config?", "name one, e.g. unet, or give --config FILE")
    if ckpt is not None and weights is not None:
        raise UsageError(f"two files: {ckpt} and {weights}", "give --ckpt or --weights")
    if weights is not None and not weights.is_file():
        raise UsageError(f"weights not found: {weights}")
    if max_drop is not None and not (math.isfinite(max_drop) and max_drop >= 0):
        raise UsageError(f"--max-drop {max_drop}: give points from 0 up, e.g. 1.0")
    chosen, file = _start(target, overrides, ckpt, weights, out)
    from hatcli.cli import _screen
    from hatcli.recipes.quantizing.quantize import QuantizeSettings, quantize_model
    from hatcli.recipes.training.predecessor import open_predecessor

    before = open_predecessor(
        file, "calibration", chosen, target=target, is_weights=weights is not None
    )
    job = quantize_model(
        chosen,
        before,
        QuantizeSettings(max_drop, raise_to, images or TRIED),
        device=device,
        out=out,
        command=sys.argv[1:],
    )
    result = _screen.follow(job)
    if as_json:
        _screen.print_json({**result.document, "run": result.run})
    else:
        _show(result)
    _next(result, target, overrides, out)
    if result.met is False:
        best = "no set of layers" if raise_to == "float" else "no set of layers in 16 bits"
        raise CheckFailed(
            f"{best} keeps the loss within {max_drop:g}",
            "try --raise float, a larger --max-drop, or QAT: hat train TARGET --step qat",
        )


def _start(
    target: str, overrides: list[str], ckpt: str | None, weights: Path | None, out: Path | None
) -> tuple[Config, Path]:
    """The checked config, and the file to start from."""
    from hatcli.recipes.check import check_config
    from hatcli.recipes.runs.folder import RUNS
    from hatcli.recipes.steps import config_of_step, find_predecessor

    base = load_config(target)
    check_config(base)
    config = config_of_step(base, "calibration", overrides)
    check_config(config)
    if weights is not None:
        return config, weights
    file, found = find_predecessor(
        config.name, "calibration", target=target, ckpt=ckpt, root=out or RUNS
    )
    if ckpt is None:
        from hatcli.cli import _screen

        _screen.tell(found)
    return config, file


def _show(result: "QuantizeResult") -> None:
    from hatcli.cli import _screen
    from hatcli.recipes.steps import accuracy_table
    from hatcli.report.quantization import NOISE, lost_by_integers

    layers = [asdict(layer) for layer in result.layers]
    shown = layers[:WORST]
    rows = [_row(layer) for layer in shown]
    title = f"{len(layers)} layers, the {len(shown)} worst:" if len(layers) > WORST else ""
    columns = ["layer", "kind", "SQNR dB", "alone dB", f"{result.best_by} %"]
    _screen.print_table(title, columns, rows)
    for line in _wrapped(
        "SQNR: signal over noise of the layer's result, all layers quantized; alone: of the "
        f"scores, and {result.best_by}, when this layer alone is quantized; 6 dB more are half "
        "the error"
    ):
        _screen.say(line)
    lost = lost_by_integers(result.document)
    if lost is not None and lost < NOISE:
        _screen.say("")
        _screen.say(f"int_infer {-lost:+.2f} points against float: no layer needs more bits")
        shown = [layer for layer in shown if layer["is_fault"]]
    for advice, names in _advice(shown).items():
        _screen.say("")
        for line in _wrapped(f"{', '.join(names)}: {advice}"):
            _screen.say(line)
    _screen.say("")
    _screen.print_accuracies(*accuracy_table(result.document["steps"], result.best_by))
    search = result.document["search"]
    if search is not None:
        verdict = "within" if search["met"] else "NOT within"
        count = len(search["raised"])
        _screen.say(
            f"{count} {'layer' if count == 1 else 'layers'} raised to {search['how']}: "
            f"{verdict} {search['max_drop']:g} points ({search['tried']} trials)"
        )
    if result.override is not None:
        override = f"override: {shlex.quote(result.override)}"
        _screen.out.print(override, markup=False)  # in one line, so that it can be copied
    _screen.say(f"report: {result.run / 'report.html'}")
    if result.exported is not None:
        _screen.say(f"onnx: {result.exported.file}")


def _compare(arguments: list[str] | None, images: int, out: Path | None, *, as_json: bool) -> None:
    """Two checkpoints, or the forms of one, in a table."""
    from hatcli.recipes.runs.folder import RUNS, find_checkpoint

    words, overrides = split_arguments(arguments)
    if not 1 <= len(words) <= 2:
        raise UsageError("--compare: give one checkpoint or two", "hat quantize --compare A B")
    root = out or RUNS
    files = [find_checkpoint(word, root=root)[0] for word in words]
    for file in files:
        if not file.is_file():
            raise UsageError(f"checkpoint not found: {file}", f"runs are in {root}/")
    from hatcli.cli import _screen
    from hatcli.recipes.quantizing.compare import compare_files, compare_forms

    if len(files) == 2:
        job = compare_files(files[0], files[1], overrides=overrides, count=images)
    else:
        job = compare_forms(files[0], overrides=overrides, count=images, root=root)
    found = _screen.follow(job)
    if as_json:
        _screen.print_json(asdict(found))
        return
    has_codes = bool(found.differing)
    rows = [
        [
            _short(name),
            *(_decibels(row[column]) if column in row else "-" for column in found.columns),
            *([_codes(found.differing.get(name))] if has_codes else []),
        ]
        for name, row in found.rows.items()
    ]
    columns = ["layer", *found.columns, *(["onnxruntime differs"] if has_codes else [])]
    if len(files) == 2:
        columns[1] = "SQNR dB"
        _screen.say(f"{found.columns[0]} against {found.reference}, dB, {found.images} images")
    else:
        _screen.say(f"against {found.reference}, dB, {found.images} images")
    _screen.print_table("", columns, rows)


def _codes(counts: tuple[int, int] | None) -> str:
    return "-" if counts is None else f"{counts[0]} of {counts[1]}"


def _short(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else "..." + name[3 - NAME_WIDTH :]


def _advice(layers: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Each cause with its remedy, and the layers that it is about."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        if layer["remedy"]:
            advice = f"{layer['cause']}; to do: {layer['remedy']}"
            found.setdefault(advice, []).append(layer["name"])
    return found


def _row(layer: dict[str, Any]) -> list[str]:
    metric = layer["alone_metric"]
    return [
        _short(layer["name"]),
        layer["kind"][:KIND_WIDTH],
        _decibels(layer["sqnr"]),
        _decibels(layer["alone_sqnr"]),
        "-" if metric is None or math.isnan(metric) else f"{metric:.2f}",
    ]


def _decibels(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "exact" if value > 0 else "-"


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(
        text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _next(result: "QuantizeResult", target: str, overrides: list[str], out: Path | None) -> None:
    from hatcli.cli import _screen

    kept = [word for word in overrides if not word.startswith("quantize.exceptions")]
    if result.override is not None:
        kept.append(result.override)
    else:
        kept = overrides
    words = ["hat", "train", target, *kept, *(["--out", out] if out else [])]
    _screen.next_command(
        [*words, "--step", "int_infer", "--ckpt", result.best],
        [*words, "--step", "qat", "--ckpt", result.best],
        ["hat", "export", "--ckpt", result.best],
    )
