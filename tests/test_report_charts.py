import math
import re

import numpy as np
import pytest
from html_walker import walk

from hatcli.report.charts import bar, bulk_of, histogram_chart, scatter_chart, strip
from hatcli.report.page import Column, Markup, code, element, number, number_cell, table
from hatcli.report.style import STYLE

HISTOGRAM = {"edges": [-2.0, -1.0, 0.0, 1.0, 2.0], "counts": [1, 50, 40, 9]}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(scheme):
    found = re.findall(r":root \{(.*?)\}", STYLE, re.S)
    colors = dict(re.findall(r"--(\w+): (#\w{6});", found[scheme == "dark"]))
    for ink in ("ink", "quiet", "blue", "red", "green"):
        for behind in ("paper", "panel"):
            assert contrast(colors[ink], colors[behind]) >= 4.5, (ink, behind)
    assert contrast(colors["ink"], colors["code"]) >= 4.5
    assert contrast(colors["bar"], colors["panel"]) >= 3.0  # of a picture WCAG asks for 3


def contrast(one, other):
    """The contrast ratio of WCAG 2, 1 to 21."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_bulk_is_the_middle_99_percent():
    edges = np.linspace(0, 100, 101)
    assert bulk_of({"edges": edges, "counts": np.ones(100)}) == pytest.approx((0.5, 99.5))
    outlier = {"edges": [0.0, 1.0, 999.0, 1000.0], "counts": [9990, 0, 1]}
    assert bulk_of(outlier)[1] < 1.0
    assert bulk_of({"edges": [0.0, 1.0], "counts": [0]}) is None


def test_a_histogram_of_many_bins_keeps_the_lone_outlier():
    counts = np.zeros(16384)
    counts[8000:8400], counts[-1] = 1000, 1
    chart = histogram_chart({"edges": np.linspace(-1, 1, 16385), "counts": counts}, label="w")
    path = next(a["d"] for a in walk(chart).of("path") if a["class"] == "bar")
    lefts = [float(x) for x in re.findall(r"M([\d.]+)", path)]
    assert len(lefts) < 10
    assert lefts[0] == 8.0
    assert lefts[-1] > 320


def test_a_bar_is_as_long_as_its_number_says():
    def width(*arguments):
        return float(walk(bar(*arguments)).of("rect")[1]["width"])

    assert width(25.0, 100.0) == 25.0
    assert width(math.inf, 40.0) == 100.0
    assert [width(v, 40.0) for v in (None, math.nan, -3.0, 0.0)] == [0.0] * 4


def test_a_strip_shows_the_bulk_within_the_range_and_zero():
    picture = walk(strip(-1.0, 3.0, (0.0, 1.0)))
    thin, thick = picture.of("rect")
    assert (thin["x"], thin["width"]) == ("0.0", "100.0")
    assert (thick["x"], thick["width"]) == ("25.0", "25.0")
    assert picture.of("path")[0]["d"] == "M25.0 0V10"


def test_equal_values_lie_on_the_line_of_a_scatter_plot():
    chart = walk(scatter_chart([0.0, 5.0, 10.0], [0.0, 5.0, 10.0], label="r"))
    dots = next(a["d"] for a in chart.of("path") if a["class"] == "dots")
    assert dots == "M8.0 176.0h0M170.0 97.0h0M332.0 18.0h0"


def test_a_scatter_plot_is_thinned_out_and_says_what_it_leaves_out():
    values = np.linspace(0, 1, 5000)
    chart = walk(scatter_chart([*values, math.nan], [*values, 1.0], label="r"))
    dots = next(a["d"] for a in chart.of("path") if a["class"] == "dots")
    assert 900 < dots.count("M") <= 1200
    assert "1 that aren't finite left out" in chart.of("svg")[0]["aria-label"]
    assert scatter_chart([math.nan], [1.0], label="r") is None


def test_the_ends_of_the_codes_are_drawn_where_they_cut_values_off():
    clipped = histogram_chart(HISTOGRAM, label="a", bounds=(-1.0, 1.0))
    assert sum(a["class"] == "bound" for a in walk(clipped).of("path")) == 2
    assert "codes reach −1 to 1" in walk(clipped).of("svg")[0]["aria-label"]
    whole_range = histogram_chart(HISTOGRAM, label="a", bounds=(-2.0, 2.0))
    assert not any(a["class"] == "bound" for a in walk(whole_range).of("path"))


def test_a_string_is_escaped_unless_it_is_markup():
    made = element("p", "<b>", Markup("<i></i>"), title='"&', aria_label=None, class_="x")
    assert made == '<p title="&quot;&amp;" class="x">&lt;b&gt;<i></i></p>'
    assert code("a.b<c") == "<code>a.<wbr>b&lt;c</code>"


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [(None, ".2f", "–"), (math.nan, ".2f", "not a number"), (-math.inf, ".2f", "−∞"),
     (-0.001, ".2f", "0.00"), (-3.14159, ".2f", "−3.14"), (1900000, ",.0f", "1,900,000"),
     (1e300, ".2f", "1e300"), (1.5e-7, ".4g", "1.5e-07"), (-1e9, ".2f", "−1e9"),
     (123456789, ",.0f", "123,456,789")],
)  # fmt: skip
def test_numbers_are_short_and_never_a_minus_zero(value, form, text):
    assert number(value, form) == text


def test_cells_are_sorted_by_what_a_browser_reads_as_a_number():
    columns = [Column("layer"), Column("dB", is_number=True)]
    values = [1.5, math.inf, -math.inf, math.nan, None]
    rows = [[f"l{i}", number_cell(value)] for i, value in enumerate(values)]
    cells = walk(table(columns, rows, caption="c", is_long=True)).of("td")
    assert [cell["data-sort"] for cell in cells] == ["1.5", "Infinity", "-Infinity", "", ""]
