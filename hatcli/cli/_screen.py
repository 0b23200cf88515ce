"""Draws events and results; with `_drawing` the only file that imports Rich.

stdout carries a command's result and nothing else; progress, notes and warnings go to stderr.
Without a terminal there are no bars, but a plain line every so often.
"""

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from hatcli.cli._drawing import Bars, PlainLines, Silence
from hatcli.cli._encoding import writable
from hatcli.cli._line import wrapped
from hatcli.errors import StoppedBySignal
from hatcli.events import Event, Job, percent_heads, percents

T = TypeVar("T")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def follow(job: Job[T]) -> T:
    """Run a recipe to its end, drawing each event, and return its result.

    A signal that comes while an event is drawn goes to the recipe, which saves what it has. A
    stderr that is closed or full silences the drawing and doesn't end the recipe.
    """
    event: Event | None = None
    drawing = _drawing()
    with drawing:
        while True:
            try:
                try:
                    if event is not None:
                        drawing.show(event)
                    event = next(job)
                except StoppedBySignal as stop:
                    _raise_own(job, stop)
                    event = job.throw(stop)
                except OSError as error:  # nobody reads it; a long job has a log
                    _raise_own(job, error)
                    drawing, event = Silence(), None
            except StopIteration as finished:
                return finished.value


def _drawing() -> "Silence | Bars | PlainLines":
    if err.quiet:
        return Silence()
    if err.file.isatty() and err.is_interactive:  # FORCE_COLOR makes a terminal of a pipe
        return Bars(err)
    return PlainLines()


def _raise_own(job: Job[Any], error: Exception) -> None:
    """Raise what came out of a job, which is over by it; not what came while it stood still."""
    if getattr(job, "gi_frame", None) is None:
        raise error


def be_silent() -> None:
    """Print nothing from here on: another process does. Errors are seen all the same."""
    out.quiet = err.quiet = True


def print_json(document: Any) -> None:
    """The result as one JSON document on stdout."""
    out.print(json.dumps(_json_value(document), indent=2), markup=False)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    footer: str = "",
    texts: int = 1,
) -> None:
    """The result as a table on stdout; all columns after the first ``texts`` are right-aligned."""

    def cell(text: Any) -> str:  # as wide as it will be where there is no Unicode
        return escape(writable(str(text), out.encoding))

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for position, column in enumerate(columns):
        side: Any = "left" if position < texts else "right"
        table.add_column(cell(column), justify=side, no_wrap=True)
    for row in rows:
        table.add_row(*map(cell, row))
    # As wide as it is: in a pipe, or a narrow terminal, digits would give way to dots.
    table.width = out.measure(table, options=out.options.update(max_width=10_000)).maximum
    lines = out.render_lines(table, out.options.update(width=table.width), pad=False)
    for line in lines:
        out.print(_stripped(line))
    if footer:
        say(footer)


def _stripped(line: list[Segment]) -> Text:
    """Without the blanks at its end, which a narrow terminal shows as an empty line."""
    text = Text.assemble(*[(segment.text, segment.style or "") for segment in line])
    text.rstrip()
    return text


def print_metrics(
    metrics: Mapping[str, float], official: Mapping[str, float] = MappingProxyType({})
) -> None:
    """Metrics on stdout: the headline ones in a line, those of single classes in a table."""
    classes: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        kind, dot, label = name.partition(".")
        if dot:
            classes.setdefault(label, {})[kind] = value
    if classes:
        kinds = list(dict.fromkeys(kind for row in classes.values() for kind in row))
        extra = ["official"] if official else []
        rows = [
            [label, *[_percent(row.get(kind)) for kind in kinds]]
            + ([_percent(official.get(f"{kinds[0]}.{label}"))] if official else [])
            for label, row in classes.items()
        ]
        print_table("", ["class", *percent_heads(kinds), *extra], rows)
    say(percents(metrics))
    if official:
        say(f"official scripts: {percents({'mIoU': official['mIoU']})}")


def print_accuracies(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """The steps' metrics as a table on stdout; the last column is a difference in points."""
    step, *names, points = columns
    cells = [
        [name, *map(_percent, metrics), "-" if difference is None else f"{difference:+.2f}"]
        for name, *metrics, difference in rows
    ]
    print_table("", [step, *percent_heads(names), points], cells)


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def say(text: str) -> None:
    """A line of the result on stdout; on a terminal broken at blanks where it is too long."""
    out.print(_fitted(out, text), markup=False)


def tell(text: str) -> None:
    """A line beside the result, on stderr."""
    err.print(_fitted(err, text), markup=False)


def _fitted(console: Console, text: str) -> str:
    return wrapped(text, console.width, cell_len) if console.is_terminal else text


def next_command(*commands: str | Sequence[Any]) -> None:
    """The lines that a user would type next, on stderr.

    Args:
        commands: each a text, or its words, of which those with blanks are quoted.
    """
    for position, given in enumerate(commands):
        command = given if isinstance(given, str) else shlex.join(map(str, given))
        err.print(f"{'next:' if position == 0 else '     '} {command}", markup=False)


def _json_value(value: Any) -> Any:
    """Paths become strings and NaN, which JSON has not, null."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
