"""The layers of a quantized model on a page: all in a table, the worst ones in detail."""

import math
from collections.abc import Mapping
from typing import Any

from hatcli.report.charts import bar, bulk_of, histogram_chart, scatter_chart, strip
from hatcli.report.page import (
    Cell,
    Column,
    Markup,
    code,
    element,
    facts,
    number,
    number_cell,
    table,
)

WORST = 10  # layers that are shown in detail
POOR_DB = 15.0  # below it a sixth of the signal or more is error
FLOAT_BITS = 32

Layer = Mapping[str, Any]


def layer_table(document: Mapping[str, Any]) -> Markup | None:
    """Every layer, the most harmful first: how exact it is, its precision, what is wrong."""
    layers = document.get("layers")
    if not layers:
        return None
    start = _float_metric(document)
    exact = [layer.get(key) for layer in layers for key in ("sqnr", "alone_sqnr")]
    top = max([40.0, *filter(_finite, exact)])
    has_metric = any(layer.get("alone_metric") is not None for layer in layers)
    alone = f"{document.get('best_by') or 'metric'} alone, %"
    columns = [Column("rank", True), Column("layer"), Column("alone, dB"), Column("SQNR, dB")]
    columns += [Column(alone, True), Column("against float, points", True)] if has_metric else []
    columns += [Column("precision", True), Column("cause")]
    rows: list[list[Cell | str]] = []
    for rank, layer in enumerate(layers, 1):
        metric = layer.get("alone_metric")
        name = Markup.joined([code(layer["name"]), _kind(layer)])
        row: list[Cell | str] = [
            number_cell(rank, ".0f"),
            Cell(name, str(layer["name"])),
            _exactness(layer.get("alone_sqnr"), top),
            _exactness(layer.get("sqnr"), top),
        ]
        row += [number_cell(metric, ".2f"), differences(metric, start)] if has_metric else []
        rows.append([*row, _precision(layer), str(layer.get("cause") or "")])
    caption = (
        "SQNR: how far the layer's result is from float when all layers are quantized, as signal "
        "over noise; 6 dB more are half the error. Alone: how far the scores are when only this "
        f"layer is quantized. Bars end at {number(top, '.0f')} dB, and are red below "
        f"{number(POOR_DB)} dB."
    )
    if (document.get("search") or {}).get("raised"):
        caption += " All of it before any layer was raised."
    return table(columns, rows, caption=caption, is_long=True)


def worst_layers(document: Mapping[str, Any]) -> Markup | None:
    """Cause, remedy, ranges and charts of the first layers that have something to show."""
    scatter = document.get("scatter") or {}
    start = _float_metric(document)
    told = [
        (rank, layer)
        for rank, layer in enumerate(document.get("layers") or [], 1)
        if layer.get("cause") or layer["name"] in scatter
    ]
    if not told:
        return None
    return Markup.joined(
        _article(rank, layer, scatter.get(layer["name"]), start) for rank, layer in told[:WORST]
    )


def range_table(document: Mapping[str, Any]) -> Markup | None:
    """The range of each layer's weights and of its result, against the bulk of the values."""
    columns = [
        Column("layer"),
        Column("weights"),
        Column("bulk of weights, %", True),
        Column("activations"),
        Column("bulk of activations, %", True),
    ]
    rows: list[list[Cell | str]] = [
        [
            Cell(code(layer["name"]), str(layer["name"])),
            *_range(layer.get("weight_low"), layer.get("weight_high"), layer.get("weight_hist")),
            *_range(layer.get("low"), layer.get("high"), layer.get("activation_hist")),
        ]
        for layer in document.get("layers") or []
        if _finite(layer.get("low")) or _finite(layer.get("weight_low"))
    ]
    if not rows:
        return None
    caption = (
        "Thin: from the smallest to the largest value; thick: where the middle 99 % of the values "
        "lie; the upright line is 0. A bulk that takes up few percent of the range leaves it few "
        "codes."
    )
    return table(columns, rows, caption=caption, is_long=True)


def differences(value: float | None, start: float | None) -> Cell:
    """A cell with a metric's difference to float, signed; marked where points are lost."""
    if value is None or start is None or not math.isfinite(value - start):
        return Cell("", "")
    change = round(value - start, 2)
    if change == 0:
        return Cell("0.00", 0.0)
    mark = "bad" if change < 0 else "good"
    return Cell(element("span", number(change, "+.2f"), class_=mark), change)


def _article(
    rank: int, layer: Layer, scatter: Mapping[str, Any] | None, start: float | None
) -> Markup:
    name = str(layer["name"])
    heading = element("h3", f"{rank}. ", code(name), _kind(layer))
    pairs: list[tuple[str, str]] = [
        (title, str(layer[key]))
        for key, title in (("cause", "cause"), ("remedy", "what to do"))
        if layer.get(key)
    ]
    for title, key, what in (
        ("SQNR", "sqnr", "of its result, all layers quantized"),
        ("SQNR alone", "alone_sqnr", "of the scores, only this layer quantized"),
    ):
        if layer.get(key) is not None:
            pairs += [(title, f"{_decibels(layer[key])}, {what}")]
    if layer.get("alone_metric") is not None:
        cell = differences(layer["alone_metric"], start)
        change = (", ", cell.content, " points against float") if cell.content else ()
        text = (number(layer["alone_metric"], ".2f"), " %", *change)
        pairs += [("metric alone", Markup.joined(text))]
    pairs += [("precision", _precision(layer))]
    for title, low, high in (
        ("weights", layer.get("weight_low"), layer.get("weight_high")),
        ("activations", layer.get("low"), layer.get("high")),
    ):
        if low is not None and high is not None:
            pairs += [(title, f"{number(low)} to {number(high)}")]
    figures = element("div", *_figures(layer, scatter), class_="figures")
    return element("article", heading, facts(pairs), figures)


def _figures(layer: Layer, scatter: Mapping[str, Any] | None) -> list[Markup]:
    name = str(layer["name"])
    low, high = layer.get("code_low"), layer.get("code_high")
    bounds = None if low is None or high is None else (float(low), float(high))
    charts = []
    if layer.get("weight_hist"):
        label = f"weights of {name}"
        charts.append(("Weights", histogram_chart(layer["weight_hist"], label=label)))
    if layer.get("activation_hist"):
        label = f"activations of {name}"
        chart = histogram_chart(layer["activation_hist"], label=label, bounds=bounds)
        dashed = "; dashed: the ends of the codes" if chart and 'class="bound"' in chart else ""
        charts.append((f"Activations{dashed}", chart))
    if scatter:
        chart = scatter_chart(scatter["float"], scatter["integer"], label=f"results of {name}")
        charts.append(("Result; on the line both are equal", chart))
    return [
        element("figure", chart, element("figcaption", text)) for text, chart in charts if chart
    ]


def _range(low: Any, high: Any, histogram: Mapping[str, Any] | None) -> tuple[Cell, Cell]:
    """Numbers with a strip, and how much of the range the bulk takes."""
    if not (_finite(low) and _finite(high)):
        return Cell(""), Cell("", "")
    bulk = bulk_of(histogram) if histogram else None
    text = element("span", f"{number(low)} to {number(high)}")
    extent = high - low
    share = None
    if bulk is not None and extent > 0 and math.isfinite(extent):
        inside = max(min(bulk[1], high) - max(bulk[0], low), 0.0)
        share = 100 * inside / extent
    return Cell(Markup.joined([text, strip(low, high, bulk)]), extent), number_cell(share, ".1f")


def _kind(layer: Layer) -> Markup:
    kind = layer.get("kind")
    return element("span", f" {kind}", class_="quiet kind") if kind else Markup()


def _precision(layer: Layer) -> str:
    if layer.get("is_float"):
        return "float"
    if layer.get("bits") == FLOAT_BITS:
        return "float result"
    return f"{layer['bits']} bits" if layer.get("bits") is not None else ""


def _exactness(sqnr: float | None, top: float) -> Cell:
    if sqnr is None:
        return Cell("", "")
    text = _decibels(sqnr).removesuffix(" dB")
    picture = bar(sqnr, top, is_poor=sqnr < POOR_DB)
    return Cell(Markup.joined([text, picture]), number_cell(sqnr).sort)


def _decibels(value: float) -> str:
    return "exact" if value == math.inf else f"{number(value, '.1f')} dB"


def _float_metric(document: Mapping[str, Any]) -> float | None:
    """The metric before anything was quantized."""
    best_by = document.get("best_by")
    steps = document.get("steps") or []
    return next((s["metrics"].get(best_by) for s in steps if s["step"] == "float"), None)


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
