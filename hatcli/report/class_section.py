"""The classes on a page: a table, what is taken for what as a matrix, and the worst pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hatcli.report.charts import bar
from hatcli.report.confusion import Counts, class_table, row_shares, worst_pairs
from hatcli.report.page import Cell, Column, Markup, element, number, number_cell, table

MOST_ROWS = 60  # classes in the table
MOST_CELLS = 30  # classes in the matrix
PAIRS = 10
SHOWN_SHARE = 0.0005  # a smaller one would read 0.0

_ROWS = ("labelled", "recall", "precision", "IoU")


def class_rows(
    confusion: tuple[Counts, Sequence[str]] | None, metrics: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """What is known of each class: of the confusion, or else of metrics such as "IoU.road".

    Args:
        confusion: the counts, (C, C) or (C, C + 1), and the names of the C classes.

    Returns:
        A row for each class with "class" and the other keys of `class_table`, or with a key for
        each kind of metric.
    """
    if confusion is not None:
        return class_table(*confusion)
    rows: dict[str, dict[str, Any]] = {}
    for name, value in metrics.items():
        kind, dot, label = name.partition(".")
        if dot:
            rows.setdefault(label, {"class": label})[kind] = value
    return list(rows.values())


def class_section(rows: Sequence[Mapping[str, Any]], best_by: str) -> Markup | None:
    """The table of the classes, the worst first; of very many those alone.

    What is labelled nowhere, and only predicted, says less of the model and stands behind.

    Args:
        rows: as `class_rows` gives them.
        best_by: name of the metric that counts, which says whether IoU or recall does.
    """
    if not rows:
        return None
    keys = list(dict.fromkeys(key for row in rows for key in row))
    main = (
        "IoU" if "IoU" in keys and "IoU" in best_by else "recall" if "recall" in keys else keys[1]
    )
    numbers = [key for key in (*_ROWS, *keys[1:]) if key in keys and not key.startswith("taken")]
    numbers = [key for key in dict.fromkeys(numbers) if key not in (main, "predicted")]
    if main == "recall" and "IoU" in numbers:
        numbers.remove("IoU")
    known = [row for row in rows if row.get(main) is not None]
    ordered = sorted(known, key=lambda row: (row.get("labelled") == 0, float(row[main])))
    unknown = [str(row["class"]) for row in rows if row.get(main) is None]
    columns = [Column("class"), Column(f"{main}, %")]
    columns += [Column(_title(key), is_number=True) for key in numbers]
    columns += [Column("most often taken for")] if "taken_for" in keys else []
    lines = [_row(row, main, numbers, has_taken="taken_for" in keys) for row in ordered[:MOST_ROWS]]
    is_any_absent = any(row.get("labelled") == 0 for row in ordered)
    caption = f"Classes by {main}, the worst first"
    caption += "; those that are labelled nowhere come last." if is_any_absent else "."
    if len(ordered) > MOST_ROWS:
        caption = f"The {MOST_ROWS} of {len(ordered)} classes with the lowest {main}."
    parts = [table(columns, lines, caption=caption, is_long=True)] if lines else []
    if unknown:
        few = ", ".join(unknown[:30]) + (", ..." if len(unknown) > 30 else "")
        parts.append(element("p", f"Neither labelled nor predicted: {few}.", class_="quiet"))
    return Markup.joined(parts)


def confusion_section(confusion: tuple[Counts, Sequence[str]] | None) -> Markup | None:
    """The matrix where the classes are few enough to be read, and the worst pairs."""
    if confusion is None:
        return None
    counts, names = confusion
    columns = [*names, "(no class)"][: counts.shape[1]]
    rows = np.flatnonzero(counts.sum(1))
    seen = np.flatnonzero(counts.sum(0) + np.pad(counts.sum(1), (0, len(columns) - len(names))))
    if len(rows) == 0:
        return None
    parts = []
    if len(seen) <= MOST_CELLS:
        parts.append(_matrix(counts, names, columns, rows.tolist(), seen.tolist()))
    else:
        right = np.nanmean(row_shares(counts)[:, : len(names)].diagonal())
        text = (
            f"{len(rows)} classes; in the mean {number(100 * right, '.1f')} % of a class are right."
        )
        parts.append(element("p", f"{text} Of so many only the worst confusions are shown."))
    pairs = worst_pairs(counts, columns, PAIRS)
    if pairs:
        lines: list[list[Cell | str]] = [
            [
                str(pair["class"]),
                str(pair["taken_for"]),
                Cell(_with_bar(pair["share"], is_poor=True), pair["share"]),
                number_cell(pair["count"], ",.0f"),
            ]
            for pair in pairs
        ]
        shown = [Column("label"), Column("taken for"), Column("share, %"), Column("count", True)]
        caption = "The most frequent confusions; a share is of all that has the label."
        parts.append(table(shown, lines, caption=caption))
    return Markup.joined(parts)


def _row(
    row: Mapping[str, Any], main: str, numbers: Sequence[str], *, has_taken: bool
) -> list[Cell | str]:
    cells: list[Cell | str] = [str(row["class"]), Cell(_with_bar(row[main]), float(row[main]))]
    for key in numbers:
        form = ",.0f" if isinstance(row.get(key), int) else ".2f"
        cells.append(number_cell(row.get(key), form))
    if has_taken:
        other, share = row.get("taken_for"), row.get("taken_for_share")
        cells.append("" if other is None else f"{other} ({number(share, '.1f')} %)")
    return cells


def _with_bar(percent: float, *, is_poor: bool = False) -> Markup:
    return Markup.joined([number(percent, ".2f"), bar(percent, 100.0, is_poor=is_poor)])


def _title(key: str) -> str:
    return key if key == "labelled" else f"{key}, %"


def _matrix(
    counts: Counts,
    names: Sequence[str],
    columns: Sequence[str],
    rows: Sequence[int],
    seen: Sequence[int],
) -> Markup:
    """Rows are labels, columns predictions; a colour's depth is the root of the share."""
    shares = row_shares(counts)
    head = element(
        "tr",
        element("td", "", class_="corner"),
        *(element("th", element("span", columns[column]), scope="col") for column in seen),
    )
    lines = [
        element(
            "tr",
            element("th", names[row], scope="row"),
            *(_share(shares[row, column], is_hit=row == column) for column in seen),
        )
        for row in rows
    ]
    caption = (
        "Rows are labels, columns are predictions, in percent of the row. Blue is right, red is "
        "wrong; what is below 0.05 % is left empty."
    )
    # The text stands outside, so that on a phone it doesn't scroll away with the table.
    about = "confusion-about"
    matrix = element(
        "table",
        element("thead", head),
        element("tbody", *lines),
        class_="matrix",
        aria_labelledby=about,
    )
    return Markup.joined(
        [
            element("p", caption, class_="quiet", id=about),
            element("div", matrix, class_="wide", tabindex=0, role="region", aria_labelledby=about),
        ]
    )


def _share(share: float, *, is_hit: bool) -> Markup:
    if share < SHOWN_SHARE:
        return element("td", "")
    percent = 100 * share
    text = f"{percent:.0f}" if percent >= 9.95 else f"{percent:.1f}"
    depth = f"--share: {100 * share**0.5:.0f}%"
    return element("td", text, class_="hit" if is_hit else "miss", style=depth)
