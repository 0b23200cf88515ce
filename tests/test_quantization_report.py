import json
import math
import re

import pytest
from html_walker import walk

from hatcli.errors import HatError
from hatcli.report.quantization import write_report

HOSTILE = "\"><script>alert('1')</script><img src=http://evil.example/x>&amp;\x00\ud800"
HISTOGRAM = {"edges": [-2.0, -1.0, 0.0, 1.0, 2.0], "counts": [1, 50, 40, 9]}


def layer(name="stem.conv", **more):
    values = {
        "name": name,
        "kind": "Conv2d",
        "sqnr": 21.5,
        "alone_sqnr": 30.25,
        "alone_metric": 53.14,
        "low": -2.0,
        "high": 2.0,
        "bits": 8,
        "is_float": False,
        "cause": "one channel spans 1000 times the range of the others",
        "remedy": "equalize the channels",
        "weight_low": -0.5,
        "weight_high": 0.75,
        "weight_hist": {"edges": [-0.5, 0.0, 0.75], "counts": [3, 4]},
        "activation_hist": HISTOGRAM,
    }
    return {**values, **more}


def whole():
    steps = [("float", 55.64), ("calibration", 46.0), ("int_infer", 55.24)]
    return {
        "config": "unet",
        "target": "ort",
        "steps": [{"step": s, "metrics": {"mIoU": m, "aAcc": 90.0}} for s, m in steps],
        "best_by": "mIoU",
        "layers": [
            layer(),
            layer("head.add", kind="Add", weight_low=None, weight_high=None, weight_hist=None),
        ],
        "scatter": {"stem.conv": {"float": [-1.0, 0.0, 1.5], "integer": [-1.0, 0.25, 1.5]}},
        "search": {
            "max_drop": 1.0,
            "raised": [
                {"layers": "stem.conv", "activation_bits": 16},
                {"layers": "head.add", "float": True},
            ],
            "tried": 14,
            "metric": 55.24,
            "met": True,
        },
        "override": 'quantize.exceptions=[{"layers": "stem.conv", "activation_bits": 16}]',
        "findings": [{"layer": "head.add", "text": "all results are 0"}],
        "fusion": {
            "kernels": {"QLinearConv": 49},
            "float_layers": [
                {"layer": "head.act", "operator": "HardSwish", "why": "no kernel", "remedy": "ReLU"}
            ],
        },
        "parity": {
            "promised": True,
            "images": 100,
            "layers": 57,
            "values": 1900000,
            "differing": 0,
            "largest": 0.0,
            "same_class": 1.0,
        },
        "latency": [
            {"operator": "Resize", "ms": 0.5, "count": 1},
            {"operator": "QLinearConv", "ms": 12.345, "count": 49},
        ],
        "environment": {"torch": "2.14.1", "processor": "with avx512_vnni"},
    }


def written(tmp_path, document) -> str:
    path = tmp_path / "new" / "report.html"
    write_report(path, document)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text("utf-8")


def test_a_whole_report_has_each_section_in_legal_html(tmp_path):
    text = written(tmp_path, whole())
    page = walk(text)
    assert text.startswith("<!doctype html>")
    assert page.of("html") == [{"lang": "en"}]
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    anchors = [attrs["href"].removeprefix("#") for attrs in page.of("a")]
    assert anchors == [attrs["id"] for attrs in page.of("section")]
    assert anchors == [
        "steps", "search", "layers", "worst", "ranges", "fusion", "remarks", "latency",
        "parity", "environment",
    ]  # fmt: skip


def test_the_lead_tells_loss_budget_worst_layer_and_remedy(tmp_path):
    text = walk(written(tmp_path, whole())).text
    assert (
        "mIoU goes from 55.64 % in float to 55.24 % at the step int_infer: 0.40 points lost" in text
    )
    assert "within the 1.00 allowed" in text
    assert "The layer that costs the most: stem.conv. One channel spans 1000 times" in text
    assert "What to do: equalize the channels." in text


def test_the_lead_tells_that_the_budget_is_missed_or_that_nothing_is_lost(tmp_path):
    document = whole()
    document["search"]["max_drop"] = 0.25
    assert "0.40 points lost, more than the 0.25 allowed" in walk(written(tmp_path, document)).text
    document["steps"][-1]["metrics"]["mIoU"] = 55.7
    text = walk(written(tmp_path, document)).text
    assert "nothing lost against 55.64 % in float" in text
    assert "No layer needs more bits." in text
    assert "What to do: equalize" not in text


def test_every_number_of_the_document_can_be_read(tmp_path):
    text = walk(written(tmp_path, whole())).text
    for number_ in ("46.00", "−9.64", "21.5", "30.2", "53.14", "−2.50", "−0.5 to 0.75", "12.345",
                    "96.1", "1,900,000", "100.00 %", "models tried: 14", "activation_bits 16",
                    "head.add float", "all results are 0", 'exceptions=[{"layers": "stem.conv"',
                    "QLinearConv × 49", "HardSwish", "no kernel", "avx512_vnni"):  # fmt: skip
        assert number_ in text, number_


def test_a_page_asks_for_nothing_from_outside(tmp_path):
    text = written(tmp_path, whole())
    page = walk(text)
    assert not re.search(r"https?:|@import|url\(|\bfetch\(|XMLHttpRequest", text)
    links = [a[key] for _, a in page.elements for key in ("src", "href", "srcset") if key in a]
    assert all(link.startswith("#") or link == "data:," for link in links)
    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")


def test_the_policy_allows_the_script_that_is_there(tmp_path):
    import base64
    import hashlib

    text = written(tmp_path, whole())
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in walk(text).of("meta")[1]["content"]


def test_no_text_of_a_document_becomes_markup(tmp_path):
    def poisoned(value):
        if isinstance(value, dict):
            return {
                HOSTILE + key if key in ("QLinearConv", "torch", "aAcc") else key: poisoned(v)
                for key, v in value.items()
            }
        if isinstance(value, list):
            return [poisoned(one) for one in value]
        return HOSTILE + value if isinstance(value, str) and value != "float" else value

    document = poisoned(whole())
    document["best_by"] = "mIoU"
    document["scatter"] = {HOSTILE + "stem.conv": document["scatter"]["stem.conv"]}
    page = walk(written(tmp_path, document))
    assert len(page.of("script")) == 1
    assert page.of("img") == []
    shown = HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert page.text.count(shown) > 20
    assert any(shown in svg.get("aria-label", "") for svg in page.of("svg"))


@pytest.mark.parametrize("part", sorted(whole()))
def test_a_part_that_is_missing_or_none_is_left_out(tmp_path, part):
    document = whole()
    del document[part]
    without = written(tmp_path, document)
    walk(without)
    assert written(tmp_path, {**document, part: None}) == without


def test_what_is_missing_is_named(tmp_path):
    document = whole()
    del document["latency"], document["parity"]
    page = walk(written(tmp_path, document))
    assert "nothing to tell: latency by operator, same result as int_infer." in page.text
    assert "latency" not in [section["id"] for section in page.of("section")]


def test_why_there_is_no_onnx_file_is_said(tmp_path):
    document = {**whole(), "fusion": None, "export_error": "opset too old <1>"}
    assert "There is no ONNX file: opset too old <1>" in walk(written(tmp_path, document)).text


@pytest.mark.parametrize(
    ("met", "words"), [(True, "No layer has to be raised"), (False, "No set of layers was found")]
)
def test_a_search_that_raises_nothing_says_why(tmp_path, met, words):
    document = whole()
    document["search"].update(raised=[], met=met, tried=0)
    text = walk(written(tmp_path, document)).text
    assert f"Allowed loss: 1.00 points. {words}." in text
    assert "before any layer was raised" not in text
    assert "before any layer was raised" in walk(written(tmp_path, whole())).text


def test_an_empty_document_gives_a_page_that_says_so(tmp_path):
    text = walk(written(tmp_path, {})).text
    assert "The loss of metric from float to integer wasn't measured." in text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, 0.0, -1e300, 1e300, 5e-324])
def test_any_number_goes_into_every_place(tmp_path, value):
    names = ("sqnr", "alone_sqnr", "alone_metric", "low", "high", "weight_low", "weight_high",
             "code_low", "code_high")  # fmt: skip
    document = whole()
    for name in names:
        document["layers"].append(layer(f"other.{name}", **{name: value}))
    document["layers"].append(layer("other.all", **dict.fromkeys(names, value)))
    document["latency"].append({"operator": "Odd", "ms": value})
    document["steps"].append({"step": "odd", "metrics": {"mIoU": value}})
    if value is not None:
        document["scatter"]["head.add"] = {"float": [value, 1.0], "integer": [value, 2.0]}
        edges = [-1.0, 0.0, value] if value > 0 else [value, 1.0, 2.0]
        document["layers"].insert(
            0, layer("odd.hist", weight_hist={"edges": edges, "counts": [1, 2]})
        )
    page = walk(written(tmp_path, document))
    drawn = [v for tag, a in page.elements if tag in ("path", "rect", "text")
             for k, v in a.items() if k in ("d", "x", "y", "width")]  # fmt: skip
    assert drawn
    assert not any("nan" in v or "inf" in v for v in drawn)


def test_a_document_is_shown_alike_before_and_after_json(tmp_path):
    document = whole()
    document["layers"][0]["alone_sqnr"] = math.inf
    again = json.loads(json.dumps(document))
    assert written(tmp_path, again) == written(tmp_path, document)


def test_layers_keep_the_order_of_the_document_and_all_of_them_are_there(tmp_path):
    document = whole()
    document["layers"] = [layer(f"l{index}", cause=None) for index in (3, 1, 2)]
    page = walk(written(tmp_path, document))
    names = re.findall(r"l\d", page.text)
    assert names == ["l3", *("l3", "l1", "l2") * 2]  # the lead, the table, the ranges


def test_only_the_worst_layers_are_drawn(tmp_path):
    document = whole()
    document["layers"] = [layer(f"l{index}") for index in range(50)]
    page = walk(written(tmp_path, document))
    assert len(page.of("article")) == 10
    assert len(page.of("tr")) == 3 + 1 + 51 + 51 + 2 + 3


def test_a_layer_in_float_and_one_with_a_float_result_say_so(tmp_path):
    document = whole()
    document["layers"] = [layer("a", is_float=True, bits=32), layer("b", bits=32)]
    text = walk(written(tmp_path, document)).text
    assert "2 layers, 1 of them in float" in text
    assert "float result" in text
    assert "32 bits" not in text


def test_a_parity_that_differs_or_is_not_promised_says_so(tmp_path):
    document = whole()
    document["parity"].update(promised=False, differing=7, largest=1.0, same_class=0.9991)
    text = walk(written(tmp_path, document)).text
    assert "differ in 7 of 1,900,000 values. Equality isn't promised" in text
    assert "99.91 %" in text


def test_each_table_has_scopes_and_each_chart_says_its_numbers(tmp_path):
    page = walk(written(tmp_path, whole()))
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.of("th"))
    assert len(page.of("caption")) == len(page.of("table"))
    pictures = page.of("svg")
    assert all(a.get("aria-hidden") == "true" or a.get("aria-label") for a in pictures)
    labels = [attrs["aria-label"] for attrs in pictures if "aria-label" in attrs]
    assert labels == [
        "weights of stem.conv: histogram of 7 values from −0.5 to 0.75, "
        "99 % of them from −0.4942 to 0.7434",
        "activations of stem.conv: histogram of 100 values from −2 to 2, "
        "99 % of them from −1.5 to 1.944",
        "results of stem.conv: 3 values from −1 to 1.5, integer against float; "
        "the farthest pair is 0.25 apart",
        "activations of head.add: histogram of 100 values from −2 to 2, "
        "99 % of them from −1.5 to 1.944",
    ]


def test_a_file_that_cannot_be_written_is_an_error_that_leaves_nothing(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(HatError, match="cannot write it"):
        write_report(blocker / "report.html", whole())
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
