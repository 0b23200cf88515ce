"""hat data: look through the data that a training would read."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hatcli.cli._options import AsJson, ConfigFile, complete_target, split_arguments
from hatcli.errors import CheckFailed

if TYPE_CHECKING:
    from hatcli.recipes.data.check import CheckResult
    from hatcli.recipes.data.findings import Checked

app = typer.Typer(help="Check and show data: that of a config, or packs.", no_args_is_help=True)

MOST_ROWS = 100
"""Classes of a table; of more only the rarest are named."""

DataAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TARGET|PACK]... [KEY=VALUE]...",
        help="A config (unet) and settings of it, or the folders of packs (train_lmdb).",
        show_default=False,
        autocompletion=complete_target,
    ),
]


@app.command()
def check(
    arguments: DataAndOverrides = None,
    config: ConfigFile = None,
    split: Annotated[
        str | None, typer.Option(metavar="train|val", help="One split alone.", show_default=False)
    ] = None,
    num_workers: Annotated[
        int | None,
        typer.Option(
            "--num-workers",
            "--workers",
            "-j",
            metavar="N",
            help="Processes that read; one a core unless given.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Decode every sample; count classes and sizes; find what is wrong, and images in two splits.

    The exit code is 3 where something is wrong.

    Example: hat data check unet

    Example: hat data check data/voc/train_lmdb data/voc/val_lmdb
    """
    from hatcli.cli import _screen
    from hatcli.recipes.data.check import check_data

    targets, overrides = _targets(arguments, config)
    result = _screen.follow(check_data(targets, overrides, split=split, num_workers=num_workers))
    if as_json:
        _screen.print_json(_as_document(result))
    else:
        _show_check(result)
    wrong = sum(finding.is_wrong for finding in result.findings)
    if wrong:
        kinds = "1 kind of fault" if wrong == 1 else f"{wrong} kinds of faults"
        raise CheckFailed(f"{' '.join(targets)}: {kinds}")
    _screen.next_command(["hat", "data", "show", targets[0]])


@app.command()
def show(
    arguments: DataAndOverrides = None,
    config: ConfigFile = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="train|val", help="Of a config: train unless given."),
    ] = None,
    count: Annotated[int, typer.Option(metavar="N", help="Samples on the sheet.")] = 16,
    augmented: Annotated[
        bool,
        typer.Option("--augmented", help="After the transforms of the config, as in training."),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the choice and the transforms; the config's unless given."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The sheet, a .png; named after the data by default.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw samples with their labels or boxes on one sheet.

    Example: hat data show unet --augmented

    Example: hat data show data/voc/train_lmdb --count 9 -o voc.png
    """
    from hatcli.cli import _screen
    from hatcli.recipes.data.show import show_data

    targets, overrides = _targets(arguments, config)
    result = _screen.follow(
        show_data(
            targets,
            overrides,
            split=split,
            count=count,
            augmented=augmented,
            seed=seed,
            out=out,
        )
    )
    if as_json:
        document = {"file": result.file, "split": result.split, "samples": result.names}
        _screen.print_json(document)
    else:
        _screen.say(str(result.file))


def _targets(arguments: list[str] | None, config: str | None) -> tuple[list[str], list[str]]:
    targets, overrides = split_arguments(arguments)
    return ([*targets, config] if config else targets), overrides


def _show_check(result: "CheckResult") -> None:
    from hatcli.cli import _screen

    names = list(result.sets)
    rows = zip(*[_overview(one) for one in result.sets.values()], strict=True)
    cells = [[cell[0][0], *(value for _, value in cell)] for cell in rows]
    _screen.print_table("", ["", *names], cells)
    _show_classes(result)
    for finding in result.findings:
        _screen.say(str(finding))
        for example in finding.examples:
            _screen.say(f"    {example}")
    if result.is_right:
        _screen.say("ok: nothing is wrong")


def _overview(one: "Checked") -> list[tuple[str, str]]:
    totals = one.totals
    mean, std = totals.mean_and_std()
    return [
        ("samples", f"{totals.samples}"),
        ("readable", f"{totals.read}"),
        ("image sizes", _sizes_text(totals.sizes)),
        ("mean of R, G, B", ", ".join(f"{level:.1f}" for level in mean)),
        ("std of R, G, B", ", ".join(f"{level:.1f}" for level in std)),
        (totals.unit or "labels", f"{sum(totals.counts.values())}"),
        ("ignored pixels", f"{totals.ignored}" if totals.unit == "pixels" else "-"),
        (f"images without {'boxes' if totals.unit == 'boxes' else 'labels'}", f"{totals.empty}"),
    ]


def _sizes_text(sizes: Mapping[tuple[int, int], int]) -> str:
    if len(sizes) <= 2:
        return ", ".join(f"{w}x{h} ({n})" for (w, h), n in sorted(sizes.items())) or "-"
    widths, heights = zip(*sizes, strict=True)
    return f"{min(widths)} to {max(widths)} x {min(heights)} to {max(heights)}"


def _show_classes(result: "CheckResult") -> None:
    from hatcli.cli import _screen

    sets = result.sets
    classes = max((one.source.classes for one in sets.values()), key=len)
    columns = ["class"]
    for name, one in sets.items():
        columns += [f"{name} {one.totals.unit}", "%"]
        columns += [] if one.totals.unit == "images" else ["images"]
    rows = []
    for label, class_name in enumerate(classes):
        row = [class_name]
        for one in sets.values():
            row += _class_cells(one, label)
        rows.append(row)
    if len(rows) > MOST_ROWS:
        rows.sort(key=lambda row: int(row[1]))
        _screen.say(f"the {MOST_ROWS // 5} rarest of {len(rows)} classes; --json has all")
        rows = rows[: MOST_ROWS // 5]
    if rows:
        _screen.print_table("", columns, rows)


def _class_cells(one: "Checked", label: int) -> list[str]:
    totals = one.totals
    count, total = totals.counts[label], sum(totals.counts.values())
    cells = [f"{count}", f"{100 * count / total:.2f}" if total else "-"]
    return cells if totals.unit == "images" else [*cells, f"{totals.images[label]}"]


def _as_document(result: "CheckResult") -> dict[str, Any]:
    return {
        "ok": result.is_right,
        "splits": {name: _set_document(one) for name, one in result.sets.items()},
        "findings": [
            {
                "split": finding.split,
                "wrong": finding.is_wrong,
                "kind": finding.kind,
                "count": finding.count,
                "text": finding.text,
                "examples": finding.examples,
            }
            for finding in result.findings
        ],
    }


def _set_document(one: "Checked") -> dict[str, Any]:
    totals = one.totals
    mean, std = totals.mean_and_std()
    classes = [
        {"name": name, totals.unit: totals.counts[label], "images": totals.images[label]}
        for label, name in enumerate(one.source.classes)
    ]
    return {
        "where": one.source.where,
        "samples": totals.samples,
        "readable": totals.read,
        "sizes": {f"{w}x{h}": count for (w, h), count in sorted(totals.sizes.items())},
        "mean": mean,
        "std": std,
        "unit": totals.unit,
        "ignored": totals.ignored,
        "empty": totals.empty,
        "classes": classes if totals.unit else [],
    }
