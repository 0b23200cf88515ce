"""Draws events and results; the only file that imports Rich.

stdout carries a command's result and nothing else; progress, notes and warnings go to stderr.
Without a terminal there are no bars, but a plain line every so often.
"""

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as ProgressBar,
)
from rich.table import Table

from hatcli.errors import StoppedBySignal
from hatcli.events import EpochDone, Event, Job, Progress, StepDone, Warned, headline

T = TypeVar("T")

PLAIN_LINE_EVERY_S = 10.0

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def follow(job: Job[T]) -> T:
    """Run a recipe to its end, drawing each event, and return its result.

    A signal that comes while an event is drawn goes to the recipe, which saves what it has.
    """
    drawing = _Bars() if err.is_terminal else _PlainLines()
    with drawing:
        try:
            event = next(job)
            while True:
                try:
                    drawing.show(event)
                except StoppedBySignal as stop:
                    event = job.throw(stop)
                else:
                    event = next(job)
        except StopIteration as finished:
            return finished.value


def print_json(document: Any) -> None:
    """The result as one JSON document on stdout."""
    out.print(json.dumps(_json_value(document), indent=2), markup=False)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, footer: str = ""
) -> None:
    """The result as a table on stdout; all columns after the first are right-aligned."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*[escape(str(cell)) for cell in row])
    # As wide as it is: in a pipe, or a narrow terminal, digits would give way to dots.
    table.width = out.measure(table, options=out.options.update(max_width=10_000)).maximum
    out.print(table)
    if footer:
        out.print(footer, markup=False)


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
        print_table("", ["class", *kinds, *extra], rows)
    say("   ".join(f"{name} {_percent(value)}" for name, value in headline(metrics).items()))
    if official:
        say(f"official scripts: mIoU {_percent(official['mIoU'])}")


def print_accuracies(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """The steps' metrics as a table on stdout; the last column is a difference."""
    cells = [
        [step, *map(_percent, metrics), "-" if difference is None else f"{difference:+.2f}"]
        for step, *metrics, difference in rows
    ]
    print_table("", columns, cells)


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def say(text: str) -> None:
    """A line of the result on stdout."""
    out.print(text, markup=False)


def next_command(*commands: str) -> None:
    """The line that a user would type next, on stderr."""
    for position, command in enumerate(commands):
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


class _PlainLines:
    """For logs and pipes: whole lines only, and few of them."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._header = ""

    def __enter__(self) -> "_PlainLines":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, event: Event) -> None:
        if isinstance(event, Progress | StepDone):
            now = time.monotonic()
            at_end = isinstance(event, Progress) and event.done == event.total
            if not at_end and now - self._last < PLAIN_LINE_EVERY_S:
                return
            self._last = now
        if isinstance(event, EpochDone) and len(event.header()) > len(self._header):
            self._header = event.header()
            print(self._header, file=sys.stderr, flush=True)
        print(event, file=sys.stderr, flush=True)


class _Bars:
    """For a terminal: one bar that moves, above it the lines that stay."""

    def __init__(self) -> None:
        self._bars = ProgressBar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}"),
            console=err,
            transient=True,
        )
        self._task: TaskID | None = None
        self._activity = ""
        self._started = 0.0
        self._header = ""

    def __enter__(self) -> "_Bars":
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def show(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._advance(event)
        elif isinstance(event, StepDone):
            activity = f"epoch {event.epoch}/{event.epochs}"
            detail = f"loss {event.loss:.4g}"
            self._advance(Progress(activity, event.step, event.steps, "steps", detail))
        else:
            if isinstance(event, EpochDone) and len(event.header()) > len(self._header):
                self._header = event.header()
                self._bars.console.print(self._header, markup=False)
            style = "yellow" if isinstance(event, Warned) else None
            self._bars.console.print(str(event), markup=False, style=style)

    def _advance(self, event: Progress) -> None:
        if event.activity != self._activity or self._task is None:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._activity, self._started = event.activity, time.monotonic()
            self._task = self._bars.add_task(event.activity, total=event.total, rate="", detail="")
        elapsed = time.monotonic() - self._started
        rate = f"{event.done / elapsed:.1f} {event.unit}/s" if elapsed > 0.5 else ""
        self._bars.update(
            self._task, completed=event.done, total=event.total, rate=rate, detail=event.detail
        )
