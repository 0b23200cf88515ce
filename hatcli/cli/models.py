"""hat models: which networks there are."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from hatcli.cli._options import AsJson, complete_target

if TYPE_CHECKING:
    from hatcli.recipes.models import ModelRow


def main(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATTERN]",
            help="Part of a name, or a pattern such as 'efficientnet_lite[0-2]'.",
            show_default=False,
            autocompletion=complete_target,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the shipped networks: their cost, counted now, and their accuracy.

    The columns float and int8 are what the original toolkit publishes for its
    own networks, in its public J6 manual; "measured" is what was measured here,
    on the images that a footnote names.

    Example: hat models varg
    """
    from hatcli.cli import _screen
    from hatcli.recipes.models import list_models

    rows = _screen.follow(list_models(pattern or "*"))
    if as_json:
        _screen.print_json([asdict(row) for row in rows])
    else:
        notes = _footnotes(rows)
        for task in dict.fromkeys(row.task for row in rows):
            _screen.print_table(
                "",
                [task, "params", "MACs", "input", "float", "int8", "measured"],
                [_cells(row, notes) for row in rows if row.task == task],
            )
        for line in _footer(rows, notes):
            _screen.say(line)
    _screen.next_command(f"hat ops {rows[0].name}", f"hat train {rows[0].name}")


def _cells(row: "ModelRow", notes: list[str]) -> list[str]:
    published, measured = row.published, row.measured
    return [
        row.name,
        f"{row.params / 1e6:.3f} M",
        f"{row.macs / 1e9:.3f} G",
        "x".join(map(str, row.shape[2:])),
        f"{published.float32:.2f}" if published else "",
        f"{published.int8:.2f}" if published else "",
        f"{measured.value:.2f} ({notes.index(_note(row)) + 1})" if measured else "",
    ]


def _footnotes(rows: list["ModelRow"]) -> list[str]:
    """One for each kind of measurement, in the order of the rows."""
    return list(dict.fromkeys(_note(row) for row in rows if row.measured))


def _note(row: "ModelRow") -> str:
    assert row.measured is not None
    return f"{row.measured.metric} on {row.measured.on}"


def _footer(rows: list["ModelRow"], notes: list[str]) -> list[str]:
    """What the accuracies are, then the footnotes, then remarks."""
    lines = []
    if any(row.published for row in rows):
        metrics = ", ".join(dict.fromkeys(row.published.metric for row in rows if row.published))
        lines.append(
            f"float, int8: {metrics} in percent, published by the original toolkit for its own "
            "networks (public J6 manual)"
        )
    lines += [f"({number}) {note}" for number, note in enumerate(notes, 1)]
    lines += [f"{row.name}: {row.remark}" for row in rows if row.remark]
    return lines
