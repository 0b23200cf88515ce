"""The steps of a model side by side, as a table on a page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from hatcli.report.charts import bar
from hatcli.report.layers import differences
from hatcli.report.page import Cell, Column, Markup, code, element, number, table


def steps_table(
    steps: Sequence[Mapping[str, Any]], best_by: str, *, has_runs: bool = False
) -> Markup | None:
    """Each step's metrics, and what it gained or lost to float.

    Args:
        steps: entries with "step", "metrics" and, for the runs, "file" and "own": whether it is
            the one that the page is about.
        best_by: the metric that has a bar and whose difference is shown.
        has_runs: whether a last column names the run folder of each.
    """
    if not steps:
        return None
    names = list(dict.fromkeys(name for step in steps for name in step["metrics"]))
    start = next((s["metrics"].get(best_by) for s in steps if s["step"] == "float"), None)
    known = [s["metrics"][best_by] for s in steps if is_finite(s["metrics"].get(best_by))]
    top = max([100.0, *known]) if known and max(known) > 1 else 1.0
    columns = [
        Column("step"),
        Column(f"{best_by}, %"),
        *(Column(f"{name}, %", is_number=True) for name in names if name != best_by),
        Column("against float, points", is_number=True),
        *([Column("run")] if has_runs else []),
    ]
    rows: list[list[Cell | str]] = []
    for step in steps:
        own = step["metrics"].get(best_by)
        name = str(step["step"])
        row: list[Cell | str] = [
            element("strong", f"{name} (this run)") if step.get("own") else name,
            Markup.joined([number(own, ".2f"), bar(own, top)]),
            *(number(step["metrics"].get(name), ".2f") for name in names if name != best_by),
            differences(own, start) if name != "float" else "",
        ]
        rows.append([*row, code(Path(str(step["file"])).parent.name)] if has_runs else row)
    caption = f"Accuracy after each step; a bar is {best_by} from 0 to {number(top)}."
    return table(columns, rows, caption=caption)


def is_finite(value: float | None) -> TypeGuard[float]:
    """Whether there is a number that can be shown."""
    return value is not None and math.isfinite(value)
