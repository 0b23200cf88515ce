"""The page of a run: what was trained, how well, where it fails, and how to go on."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hatcli.report.class_section import class_rows, class_section, confusion_section
from hatcli.report.gallery import Shown, gallery, legend
from hatcli.report.line_chart import MOST_LINES, line_chart
from hatcli.report.page import (
    Cell,
    Column,
    Markup,
    Section,
    code,
    element,
    facts,
    number,
    table,
    write_page,
)
from hatcli.report.steps import is_finite, steps_table

Document = Mapping[str, Any]

TRAINED = ("float", "qat")
_DAMAGE_ROWS = 5


def write_run_report(path: Path, document: Document) -> None:
    """Write one self-contained page of HTML about a run.

    Args:
        path: its folder is made if it is missing.
        document: plain numbers and texts, all of which may be missing or None:
            "name" of the config, "step", "folder", "about" (a line on device, precision, data);
            "best_by", "metrics" of the best epoch, "best_epoch", "epochs" done, "planned";
            "started" and "ended" (texts), "seconds";
            "history": an entry an epoch as in metrics.jsonl;
            "scored_again": metrics of the evaluation that gave confusion and pictures;
            "confusion": counts (C, C + 1) and the names of the C classes;
            "pictures": {"worst", "best": lists of `Shown`, "names", "palette", "by", "of"};
            "steps": entries with "step", "metrics", "file" and "own" (whether of this run);
            "quantization": {"link", "folder", "best_by", "steps", "layers"};
            "exports": entries with "file", "step", "facts" (pairs) and "is_fine";
            "remarks": lines; "environment": pairs; "config": its text;
            "commands": title -> lines;
            "missing": what isn't on the page -> how to get it.

    Raises:
        HatError: the disk doesn't take it; an older file of that name is left as it was.
    """
    confusion = document.get("confusion")
    rows = class_rows(confusion, document.get("metrics") or {})
    made = [
        ("curves", "Curves", _curves(document)),
        ("steps", "Steps side by side", _steps(document)),
        ("classes", "Classes", class_section(rows, str(document.get("best_by")))),
        ("confusion", "What is taken for what", confusion_section(confusion)),
        ("worst", "Worst pictures", _pictures(document, "worst")),
        ("best", "Best pictures", _pictures(document, "best")),
        ("quantization", "Quantization", _quantization(document)),
        ("export", "Exported files", _exports(document)),
        ("remarks", "Remarks", _remarks(document)),
        ("commands", "Commands", _commands(document)),
        ("environment", "Machine and versions", _environment(document)),
        ("config", "Config", _config(document)),
    ]
    sections = [Section(anchor, title, body) for anchor, title, body in made if body]
    missing = document.get("missing")
    if missing:
        items = [element("li", f"{what}: {how}") for what, how in missing.items()]
        sections.append(Section("missing", "Not on this page", element("ul", *items)))
    title = f"{document.get('name') or 'model'}, step {document.get('step') or '?'}"
    write_page(path, title, _lead(document), sections)


def duration(seconds: float) -> str:
    """'under 1 s', '42 s', '4 min 42 s', '3 h 05 min', '2 d 04 h'."""
    if seconds < 1:
        return "under 1 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole // 60 % 60:02d} min"
    return f"{whole // 86400} d {whole // 3600 % 24:02d} h"


def _lead(document: Document) -> Markup:
    lines = [element("p", *_verdict(document), class_="verdict")]
    others = {
        name: value
        for name, value in (document.get("metrics") or {}).items()
        if "." not in name and name != document.get("best_by")
    }
    if others:
        text = ", ".join(f"{name} {_percent(value)}" for name, value in others.items())
        lines.append(element("p", f"Also: {text}."))
    when = _when(document)
    if when:
        lines.append(element("p", when))
    again = (document.get("scored_again") or {}).get(document.get("best_by"))
    if is_finite(again):
        text = f"Scored again for the classes and pictures below: {_percent(again)}."
        lines.append(element("p", text, class_="quiet"))
    if document.get("about"):
        lines.append(element("p", str(document["about"]), class_="quiet"))
    if document.get("folder"):
        lines.append(element("p", "Run folder: ", code(document["folder"]), class_="quiet"))
    return Markup.joined(lines)


def _verdict(document: Document) -> list[str]:
    best_by = str(document.get("best_by") or "metric")
    value = (document.get("metrics") or {}).get(best_by)
    if not is_finite(value):
        return [f"No {best_by} was measured."]
    said = [f"{best_by} ", element("strong", _percent(value))]
    if document.get("best_epoch") == 0:
        said.append(", which is that of the start: no epoch was better")
    elif document.get("best_epoch") is not None:
        said.append(f" at epoch {document['best_epoch']} of {_planned(document)}")
    start = next((s for s in document.get("steps") or [] if s["step"] == "float"), None)
    before = start["metrics"].get(best_by) if start else None
    if document.get("step") != "float" and is_finite(before):
        change = value - before
        if abs(change) < 0.005:
            said.append(", the same as in float")
        else:
            how = "more" if change > 0 else "less"
            said.append(f", {number(abs(change), '.2f')} points {how} than in float")
    return [*said, "."]


def _percent(value: float | None) -> str:
    return number(value, ".2f") if value is None else f"{number(value, '.2f')} %"


def _planned(document: Document) -> str:
    done, planned = document.get("epochs"), document.get("planned")
    if planned is not None and done is not None and done < planned:
        return f"{done} done, {planned} planned"
    return str(planned if done is None else done)


def _when(document: Document) -> str:
    parts = []
    if document.get("started"):
        parts.append(f"Started {document['started']}")
    if document.get("ended"):
        parts.append(f"ended {document['ended']}")
    text = ", ".join(parts)
    if document.get("seconds") is not None:
        took = duration(document["seconds"])
        text += f"; took {took}" if text else f"Took {took}"
    if document.get("epochs") and document.get("step") in TRAINED:
        text += f" for {document['epochs']} epochs"
    return f"{text}." if text else ""


def _curves(document: Document) -> Markup | None:
    history = document.get("history")
    if not history:
        return None
    best_by = document.get("best_by")
    names = dict.fromkeys(key for row in history for key in row)
    metrics = [name for name in names if name.startswith("val/") and "." not in name]
    metrics.sort(key=lambda name: name != f"val/{best_by}")
    losses = [name for name in names if name.startswith("train/")]
    best = document.get("best_epoch")
    charts = [
        (_lines(history, losses), "training loss", None),
        (_lines(history, metrics), "validation, %", best),
        (_lines(history, ["lr"]), "learning rate", None),
    ]
    figures = []
    for lines, label, mark in charts:
        drawn = line_chart(lines, label=label, mark=mark, may_be_log=lines.keys() != {"lr"})
        if drawn is not None:
            figures.append(element("figure", drawn, _keys(lines)))
    if not figures:
        return None
    note = ""
    if best is not None and metrics:
        note = element("p", f"The upright dotted line is the best epoch, {best}.", class_="quiet")
    return Markup.joined([element("div", *figures, class_="figures"), note])


def _lines(
    history: Sequence[Document], names: Sequence[str]
) -> dict[str, list[tuple[float, float]]]:
    """Name -> points, of the first few names that have any; one that hides another is left out."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name in names:
        points = [(row["epoch"], row[name]) for row in history if is_finite(row.get(name))]
        if points and not any(_is_alike(points, others) for others in lines.values()):
            lines[name.rpartition("/")[2]] = points
    return dict(list(lines.items())[:MOST_LINES])


def _is_alike(points: list[tuple[float, float]], others: list[tuple[float, float]]) -> bool:
    return len(points) == len(others) and all(
        math.isclose(one[1], other[1], rel_tol=1e-9)
        for one, other in zip(points, others, strict=True)
    )


def _keys(lines: Mapping[str, list[tuple[float, float]]]) -> Markup:
    """Which line is which, and where each ended."""
    items = []
    for place, (name, points) in enumerate(lines.items()):
        stroke = element("path", d="M0 5H26", class_=f"line line-{place}")
        key = element("svg", stroke, viewBox="0 0 26 10", class_="key", aria_hidden="true")
        end = f" {name}: {number(points[-1][1])} at the end"
        items.append(element("li", key if len(lines) > 1 else "", end))
    return element("ul", *items, class_="keys")


def _steps(document: Document) -> Markup | None:
    best_by = str(document.get("best_by") or "metric")
    return steps_table(document.get("steps") or [], best_by, has_runs=True)


def _pictures(document: Document, which: str) -> Markup | None:
    pictures = document.get("pictures") or {}
    shown: Sequence[Shown] = pictures.get(which) or []
    if not shown:
        return None
    names, palette = pictures["names"], pictures["palette"]
    word = "lowest" if which == "worst" else "highest"
    said = f"Of {pictures['of']} validation images those of the {word} {pictures['by']}."
    parts = [element("p", said)]
    maps = [m for one in shown for m in (one.label, one.prediction) if m is not None]
    if maps:
        seen = sorted({int(index) for one in maps for index in set(one.ravel().tolist())})
        parts.append(legend(names, palette, [index for index in seen if index < len(names)]))
        if any(index >= len(names) for index in seen):
            parts.append(element("p", "Black in a label doesn't count.", class_="quiet"))
    return Markup.joined([*parts, gallery(shown, palette)])


def _quantization(document: Document) -> Markup | None:
    found = document.get("quantization")
    if not found:
        return None
    best_by = str(found.get("best_by") or "metric")
    scored = [s for s in found.get("steps") or [] if is_finite(s["metrics"].get(best_by))]
    parts = []
    if scored:
        text = ", ".join(f"{s['step']} {_percent(s['metrics'][best_by])}" for s in scored)
        parts.append(element("p", f"{best_by} of hat quantize: {text}."))
    worst = (found.get("layers") or [])[:_DAMAGE_ROWS]
    if worst:
        columns = [Column("layer"), Column("alone, dB", True), Column("cause")]
        rows: list[list[Cell | str]] = [
            [code(one["name"]), number(one.get("alone_sqnr"), ".1f"), str(one.get("cause") or "")]
            for one in worst
        ]
        caption = "The layers that cost the most: signal over noise when one alone is quantized."
        parts.append(table(columns, rows, caption=caption))
    if found.get("link"):
        link = element("a", str(found["link"]), href=str(found["link"]))
        parts.append(element("p", "All layers, ranges and times: ", link, " (a file beside this)."))
    return Markup.joined(parts)


def _exports(document: Document) -> Markup | None:
    exports = document.get("exports")
    if not exports:
        return None
    parts = []
    for one in exports:
        word = element("span", one["verdict"], class_="good" if one["is_fine"] else "bad")
        parts.append(element("h3", code(one["file"]), " ", word))
        parts.append(facts((str(k), str(v)) for k, v in one["facts"]))
    return Markup.joined(parts)


def _remarks(document: Document) -> Markup | None:
    remarks = document.get("remarks")
    return element("ul", *(element("li", str(line)) for line in remarks)) if remarks else None


def _commands(document: Document) -> Markup | None:
    commands = document.get("commands")
    if not commands:
        return None
    parts = []
    for title, lines in commands.items():
        parts.append(element("h3", str(title)))
        parts.append(element("pre", "\n".join(lines)))
    return Markup.joined(parts)


def _environment(document: Document) -> Markup | None:
    known = document.get("environment") or {}
    pairs = [(str(k), str(v)) for k, v in known.items() if v is not None]
    return facts(pairs) if pairs else None


def _config(document: Document) -> Markup | None:
    text = document.get("config")
    if not text:
        return None
    lines = str(text).count("\n")
    summary = element("summary", f"All settings of this run ({lines} lines of config.py)")
    return element("details", summary, element("pre", str(text)))
