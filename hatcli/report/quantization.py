"""The page of a quantization: what it cost, which layers cost it, and what to do about each."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatcli.report.charts import bar
from hatcli.report.layers import layer_table, range_table, worst_layers
from hatcli.report.page import (
    Cell,
    Column,
    Markup,
    Section,
    code,
    element,
    facts,
    number,
    number_cell,
    table,
    write_page,
)
from hatcli.report.steps import is_finite, steps_table

Document = Mapping[str, Any]

NOISE = 0.1  # points; a loss below it says nothing of a model

_FLOAT_LAYER = ("operator", "why", "remedy")


def write_report(path: Path, document: dict[str, Any]) -> None:
    """Write one self-contained page of HTML about a quantization.

    Args:
        path: its folder is made if it is missing.
        document: what quantize.json holds, with the layers in the order of their damage. Each
            part may be missing or None; the page then ends with a line that says what isn't there.

    Raises:
        HatError: the disk doesn't take it; an older file of that name is left as it was.
    """
    made = [
        ("steps", "Steps", _steps(document)),
        ("search", "Layers to raise", _search(document)),
        ("layers", "Layers by damage", layer_table(document)),
        ("worst", "The worst layers", worst_layers(document)),
        ("ranges", "Ranges", range_table(document)),
        ("fusion", "What runs in float", _fusion(document)),
        ("remarks", "Remarks of calibration", _remarks(document)),
        ("latency", "Latency by operator", _latency(document)),
        ("parity", "Same result as int_infer", _parity(document)),
        ("environment", "Figures and machine", _environment(document)),
    ]
    sections = [Section(anchor, title, body) for anchor, title, body in made if body]
    missing = [title.lower() for _, title, body in made if not body]
    if missing:
        text = f"Not measured, or nothing to tell: {', '.join(missing)}."
        error = document.get("export_error")
        why = element("p", f"There is no ONNX file: {error}") if error else ""
        body = Markup.joined([element("p", text), why])
        sections.append(Section("missing", "Not in this report", body))
    name = str(document.get("config") or "model")
    write_page(path, f"Quantization of {name}", _lead(document), sections)


def lost_by_integers(document: Document) -> float | None:
    """Points that the integers lose to float before any layer is raised; None = not measured.

    Args:
        document: what quantize.json holds.
    """
    best_by = document.get("best_by")
    scores = {s["step"]: s["metrics"].get(best_by) for s in document.get("steps") or []}
    before, after = scores.get("float"), scores.get("int_infer")
    return before - after if is_finite(before) and is_finite(after) else None


def _lead(document: Document) -> Markup:
    """What the model is, the verdict in a sentence, and the layer that costs the most."""
    target = document.get("target")
    layers = document.get("layers") or []
    kept = sum(1 for layer in layers if layer.get("is_float"))
    about = [f"for the target {target}"] if target else []
    if layers:
        about.append(f"{len(layers)} layers, {kept} of them in float")
    lines = [element("p", ", ".join(about), class_="quiet")] if about else []
    lines.append(element("p", *_verdict(document), class_="verdict"))
    if layers:
        lost = lost_by_integers(document)
        is_harmless = lost is not None and lost < NOISE
        lines.append(element("p", *_blame(layers[0], is_harmless=is_harmless)))
    return Markup.joined(lines)


def _verdict(document: Document) -> list[str]:
    best_by = str(document.get("best_by") or "metric")
    steps = document.get("steps") or []
    scored = [step for step in steps if is_finite(step["metrics"].get(best_by))]
    start = next((step for step in scored if step["step"] == "float"), None)
    end = scored[-1] if scored and scored[-1] is not start else None
    if start is None or end is None:
        return [f"The loss of {best_by} from float to integer wasn't measured."]
    before, after = start["metrics"][best_by], end["metrics"][best_by]
    lost = before - after
    if round(lost, 2) > 0:
        text = f"{best_by} goes from {number(before, '.2f')} % in float "
        text += f"to {number(after, '.2f')} % at the step {end['step']}: "
        said = [text, element("strong", f"{number(lost, '.2f')} points"), " lost"]
    else:
        text = f"{best_by} is {number(after, '.2f')} % at the step {end['step']}, "
        rest = f" against {number(before, '.2f')} % in float"
        said = [text, element("strong", "nothing lost"), rest]
    limit = (document.get("search") or {}).get("max_drop")
    if limit is None:
        return [*said, "."]
    fits = "within" if lost <= limit else "more than"
    return [*said, f", {fits} the {number(limit, '.2f')} allowed."]


def _blame(layer: Document, *, is_harmless: bool) -> list[str]:
    cause, remedy = layer.get("cause"), layer.get("remedy")
    if is_harmless and not layer.get("is_fault"):
        remedy = ""
    said = ["The layer that costs the most: ", code(layer["name"])]
    said.append(f". {_sentence(cause)}" if cause else ".")
    if remedy:
        said.append(f" What to do: {_sentence(remedy, capital=False)}")
    if is_harmless:
        said.append(" No layer needs more bits.")
    return said


def _steps(document: Document) -> Markup | None:
    return steps_table(document.get("steps") or [], str(document.get("best_by") or "metric"))


def _search(document: Document) -> Markup | None:
    search = document.get("search")
    if not search:
        return None
    raised = search.get("raised") or []
    limit, tried, metric = (search.get(name) for name in ("max_drop", "tried", "metric"))
    said = [f"Allowed loss: {number(limit, '.2f')} points. "] if limit is not None else []
    if raised:
        said.append(f"Raised to higher precision: {len(raised)}")
    else:
        met = search.get("met", True)
        said.append("No layer has to be raised" if met else "No set of layers was found")
    if metric is not None:
        said.append(f", which gives {number(metric, '.2f')} %" if raised else "")
    said.append(f" (models tried: {tried})." if tried else ".")
    items = [element("li", code(name), f" {how}".rstrip()) for name, how in map(_raised, raised)]
    parts = [element("p", *said), element("ol", *items) if items else ""]
    if document.get("override"):
        parts.append(element("p", "The same from now on, as a word of the command line:"))
        parts.append(element("pre", str(document["override"])))
    return Markup.joined(parts)


def _raised(one: Any) -> tuple[str, str]:
    """Layer and what it was raised to, of a name or of an entry such as exceptions are."""
    if not isinstance(one, Mapping):
        return str(one), ""
    how = [
        key if value is True else f"{key} {value}" for key, value in one.items() if key != "layers"
    ]
    return str(one.get("layers", "?")), ", ".join(how)


def _remarks(document: Document) -> Markup | None:
    findings = document.get("findings")
    if not findings:
        return None
    lines = [
        element("li", code(one["layer"]), f": {_sentence(one['text'], capital=False)}")
        for one in findings
    ]
    return element("ul", *lines)


def _fusion(document: Document) -> Markup | None:
    fusion = document.get("fusion")
    if not fusion:
        return None
    left = fusion.get("float_layers") or []
    parts = []
    if left:
        columns = [Column("layer"), Column("operator"), Column("why"), Column("what to do")]
        rows = [[code(one["layer"]), *(str(one[k]) for k in _FLOAT_LAYER)] for one in left]
        caption = f"Operators that onnxruntime computes in float: {len(left)}."
        parts.append(table(columns, rows, caption=caption, is_long=True))
    else:
        parts.append(element("p", "Nothing: onnxruntime has an integer kernel for every layer."))
    kernels = fusion.get("kernels") or {}
    if kernels:
        counts = ", ".join(f"{name} × {count}" for name, count in kernels.items())
        parts.append(element("p", f"Kernels that onnxruntime runs: {counts}.", class_="quiet"))
    return Markup.joined(parts)


def _latency(document: Document) -> Markup | None:
    rows = document.get("latency")
    if not rows:
        return None
    known = [row["ms"] for row in rows if is_finite(row["ms"])]
    total, top = sum(known), max(known, default=0.0)
    ordered = sorted(rows, key=lambda row: -row["ms"] if is_finite(row["ms"]) else math.inf)
    columns = [
        Column("operator"),
        Column("time"),
        Column("ms", True),
        Column("share, %", True),
        Column("count", True),
    ]
    lines: list[list[Cell | str]] = [
        [
            str(row["operator"]),
            Cell(bar(row["ms"], top), row["ms"]),
            number_cell(row["ms"], ".3f"),
            number_cell(100 * row["ms"] / total if total and is_finite(row["ms"]) else None, ".1f"),
            number_cell(row.get("count"), ".0f"),
        ]
        for row in ordered
    ]
    caption = f"{number(total, '.3f')} ms in all operators, the slowest first."
    return table(columns, lines, caption=caption, is_long=True)


def _parity(document: Document) -> Markup | None:
    parity = document.get("parity")
    if not parity:
        return None
    differing, values = parity.get("differing"), parity.get("values")
    if differing == 0:
        text = "onnxruntime and int_infer give the same codes."
    else:
        parts = (number(differing, ",.0f"), number(values, ",.0f"))
        text = "onnxruntime and int_infer differ in {} of {} values.".format(*parts)
    if not parity.get("promised"):
        text += (
            " Equality isn't promised for this model: it has layers in float or of 16 bits, "
            "or the arithmetic of another target."
        )
    same = parity.get("same_class")
    pairs = [
        ("images compared", number(parity.get("images"), ",.0f")),
        ("layers compared", number(parity.get("layers") or None, ",.0f")),
        ("values compared", number(values, ",.0f")),
        ("values differing", number(differing, ",.0f")),
        ("largest difference", f"{number(parity.get('largest'))} codes"),
        ("same class first", f"{number(None if same is None else 100 * same, '.2f')} %"),
    ]
    return Markup.joined([element("p", text), facts(pairs)])


def _environment(document: Document) -> Markup | None:
    """Where the figures come from."""
    known = dict(document.get("environment") or {})
    if document.get("seconds") is not None:
        known = {"took": f"{number(document['seconds'], ',.0f')} s", **known}
    if document.get("images") is not None:
        known = {"validation images": number(document["images"], ",.0f"), **known}
    if document.get("checkpoint"):
        known = {"checkpoint": document["checkpoint"], **known}
    return facts((str(k), str(v)) for k, v in known.items() if v is not None) if known else None


def _sentence(text: Any, *, capital: bool = True) -> str:
    text = str(text).strip().rstrip(".")
    return f"{text[:1].upper() + text[1:] if capital else text}."
