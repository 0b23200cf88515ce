"""Files of what was taken for what: confusion.json of a run, and tables of its classes."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hatcli.report.confusion import Counts, class_table

FILE = "confusion.json"


def confusion_of(metric: Any) -> tuple[Counts, list[str]] | None:
    """The counts of a metric and the names of its classes; None of one that counts no pairs.

    Args:
        metric: with an attribute ``confusion``, (C, C + 1) counts, and one of the class names.
    """
    counted = getattr(metric, "confusion", None)
    if counted is None or len(counted) == 0:
        return None
    counts: Counts = np.asarray(counted)
    given = getattr(metric, "classes", None) or getattr(metric, "names", None)
    return counts, list(given or map(str, range(len(counts))))


def save_confusion(run: Path, metric: Any) -> None:
    """Write what a metric has counted, if it counts pairs of label and prediction.

    Pairs that never occur are left out: of a thousand classes most don't.
    """
    found = confusion_of(metric)
    if found is None:
        return
    counts, names = found
    pairs = np.argwhere(counts)
    cells = np.column_stack([pairs, counts[tuple(pairs.T)]]).tolist()
    document = {"classes": names, "columns": counts.shape[1], "pairs": cells}
    (run / FILE).write_text(json.dumps(document) + "\n", encoding="utf-8")


def load_confusion(run: Path) -> tuple[Counts, Sequence[str]] | None:
    """What `save_confusion` wrote into a run folder; None where it did not, or not to the end."""
    try:
        document = json.loads((run / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    names = document["classes"]
    counts = np.zeros((len(names), document["columns"]), np.int64)
    for label, prediction, count in document["pairs"]:
        counts[label, prediction] = count
    return counts, names


def write_class_table(path: Path, confusion: Counts, names: Sequence[str]) -> None:
    """A CSV with a row for each class: the columns of `class_table`."""
    rows = class_table(confusion, names)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
