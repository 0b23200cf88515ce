"""The page of a run: what stands on it, and that it is legal."""

import base64
import io
import math
import re

import numpy as np
import pytest
from html_walker import walk
from made_run import COUNTS, NAMES
from PIL import Image

from hatcli.errors import HatError
from hatcli.report.class_section import MOST_CELLS, MOST_ROWS, class_rows, class_section
from hatcli.report.confusion import worst_pairs
from hatcli.report.gallery import Shown, gallery, shrunk, shrunk_map
from hatcli.report.line_chart import line_chart
from hatcli.report.run import duration, write_run_report

HOSTILE = "\"><script>alert('1')</script><img src=http://evil.example/x>&amp;\x00\ud800"
PALETTE = ((128, 64, 128), (0, 0, 142), (70, 130, 180))


def shown(name="berlin_000", **more):
    return Shown(np.full((4, 8, 3), 100, np.uint8), name, ["mIoU 12.3"], **more)


def whole():
    label = np.array([[0, 1, 255, 2]], np.uint8)
    steps = [("float", 61.03), ("calibration", 60.5), ("qat", 61.87)]
    history = [
        {"epoch": 0, "val/mIoU": 60.5, "val/IoU.road": 95.0},
        {"epoch": 1, "train/loss": 2.5, "lr": 0.01, "val/mIoU": None},
        {"epoch": 2, "train/loss": 1.25, "lr": 0.005, "val/mIoU": 61.87},
    ]
    return {
        "name": "unet_small",
        "step": "qat",
        "folder": "runs/unet_small/2026-11-22_051519-qat",
        "about": "unet_small · step qat · cpu · float32 · batch 4",
        "best_by": "mIoU",
        "metrics": {"mIoU": 61.87, "aAcc": 90.75, "IoU.road": 95.43},
        "best_epoch": 2,
        "epochs": 2,
        "planned": None,
        "started": "2026-11-22 05:15",
        "ended": "2026-11-22 05:20",
        "seconds": 278.4,
        "history": history,
        "scored_again": {"mIoU": 61.86},
        "confusion": (COUNTS, NAMES),
        "pictures": {
            "worst": [shown("w1", label=label, prediction=label), shown("w2")],
            "best": [shown("b1", label=label, prediction=label)],
            "names": NAMES,
            "palette": PALETTE,
            "by": "mIoU of the picture",
            "of": 26,
        },
        "steps": [
            {"step": s, "metrics": {"mIoU": m, "aAcc": 90.0}, "file": f"r/1-{s}/x.pth.tar",
             "own": s == "qat"}
            for s, m in steps
        ],
        "quantization": {
            "link": "../q/report.html",
            "best_by": "mIoU",
            "steps": [{"step": "int_infer", "metrics": {"mIoU": 61.17}}],
            "layers": [{"name": "stem.conv", "alone_sqnr": 21.5, "cause": "one wide channel"}],
        },
        "exports": [
            {"file": "unet.onnx", "facts": [("compared", "104,448 values")], "is_fine": True,
             "verdict": "gives the same codes as int_infer"}
        ],
        "remarks": ["encoder.conv: all results are 0"],
        "commands": {"This run was made by": ["hat train unet_small --step qat"]},
        "environment": {"torch": "2.14.1", "host": None},
        "config": "task = 'segmentation'\nepochs = 2\n",
        "missing": {"something": "hat report"},
    }  # fmt: skip


def written(tmp_path, document) -> str:
    path = tmp_path / "new" / "report.html"
    write_run_report(path, document)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text("utf-8")


def test_a_whole_page_has_each_section_in_legal_html(tmp_path):
    page = walk(written(tmp_path, whole()))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert [attrs["id"] for attrs in page.of("section")] == [
        "curves", "steps", "classes", "confusion", "worst", "best", "quantization", "export",
        "remarks", "commands", "environment", "config", "missing",
    ]  # fmt: skip
    for _, attrs in page.elements:
        assert attrs.get("aria-labelledby", ids[0]) in ids


def test_the_lead_tells_the_result_when_and_how_long(tmp_path):
    text = walk(written(tmp_path, whole())).text
    assert "mIoU 61.87 % at epoch 2 of 2, 0.84 points more than in float." in text
    assert "Also: aAcc 90.75 %." in text
    assert "Started 2026-11-22 05:15, ended 2026-11-22 05:20; took 4 min 38 s for 2 epochs." in text
    assert "Scored again for the classes and pictures below: 61.86 %." in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"best_epoch": 0}, "which is that of the start: no epoch was better"),
        ({"step": "float"}, "mIoU 61.87 % at epoch 2 of 2."),
        ({"metrics": {"mIoU": 61.03}}, "the same as in float"),
        ({"metrics": {"mIoU": 60.0}}, "1.03 points less than in float"),
        ({"metrics": {"mIoU": None}}, "No mIoU was measured."),
        ({"planned": 30}, "at epoch 2 of 2 done, 30 planned"),
    ],
)
def test_the_verdict_fits_the_run(tmp_path, changes, words):
    assert words in walk(written(tmp_path, {**whole(), **changes})).text


def test_every_part_can_be_read(tmp_path):
    text = walk(written(tmp_path, whole())).text
    for words in ("+0.84", "−0.53", "qat (this run)", "1-calibration", "(no class)",
                  "road (30.0 %)", "Of 26 validation images",
                  "lowest mIoU of the picture", "one wide channel", "int_infer 61.17",
                  "gives the same codes", "104,448 values", "all results are 0", "2.14.1",
                  "hat train unet_small --step qat", "epochs = 2", "something: hat report",
                  "(2 lines of config.py)"):  # fmt: skip
        assert words in text, words


def test_a_page_asks_for_nothing_from_outside(tmp_path):
    text = written(tmp_path, whole())
    page = walk(text)
    assert not re.search(r"https?:|@import|url\(|\bfetch\(|XMLHttpRequest", text)
    links = [a[key] for _, a in page.elements for key in ("src", "href", "srcset") if key in a]
    assert all(link.startswith(("#", "data:", "../q/")) for link in links)
    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")


def test_no_text_of_a_run_becomes_markup(tmp_path):
    def poisoned(value):
        if isinstance(value, dict):
            return {key: poisoned(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(poisoned(one) for one in value)
        if isinstance(value, Shown):
            return Shown(value.image, HOSTILE, [HOSTILE], value.label, value.prediction)
        return HOSTILE + value if isinstance(value, str) and value != "float" else value

    document = poisoned(whole())
    document["best_by"] = "mIoU"
    page = walk(written(tmp_path, document))
    assert len(page.of("script")) == 1
    assert {image["src"][:11] for image in page.of("img")} == {"data:image/"}
    assert page.text.count(HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")) > 20


@pytest.mark.parametrize("part", sorted(whole()))
def test_a_part_that_is_missing_or_none_is_left_out(tmp_path, part):
    document = whole()
    del document[part]
    without = written(tmp_path, document)
    walk(without)
    assert written(tmp_path, {**document, part: None}) == without


def test_an_empty_document_gives_a_page(tmp_path):
    assert "No metric was measured." in walk(written(tmp_path, {})).text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, 0.0, -1e300, 1e300, 5e-324])
def test_any_number_goes_into_every_place(tmp_path, value):
    document = whole()
    document["metrics"] = {"mIoU": value, "aAcc": value, "IoU.road": value}
    document["confusion"] = None
    for name in ("train/loss", "lr", "val/mIoU"):
        document["history"].append({"epoch": 3, name: value})
    document["steps"].append({"step": "odd", "metrics": {"mIoU": value}, "file": "x/y"})
    page = walk(written(tmp_path, document))
    drawn = [v for tag, a in page.elements if tag in ("path", "rect", "text")
             for k, v in a.items() if k in ("d", "x", "y", "width")]  # fmt: skip
    assert drawn
    assert not any("nan" in v or "inf" in v for v in drawn)


def test_pictures_tables_and_charts_can_be_heard(tmp_path):
    page = walk(written(tmp_path, whole()))
    assert all(attrs["alt"] for attrs in page.of("img"))
    assert {a["alt"] for a in page.of("img")} >= {"prediction of sample w1", "label of sample b1"}
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.of("th"))
    named = len(page.of("caption")) + sum("aria-labelledby" in a for a in page.of("table"))
    assert named == len(page.of("table"))
    labels = [a["aria-label"] for a in page.of("svg") if "aria-label" in a]
    assert labels == [
        "training loss over epoch 1 to 2: loss from 2.5 to 1.25",
        "validation, % over epoch 0 to 2: mIoU from 60.5 to 61.87",
        "learning rate over epoch 1 to 2: lr from 0.01 to 0.005",
    ]


def test_a_line_that_hides_another_is_left_out(tmp_path):
    document = whole()
    for row in document["history"]:
        row["val/mIoU_present"] = row.get("val/mIoU")
    text = walk(written(tmp_path, document)).text
    assert "mIoU: 61.87 at the end" in text
    assert "mIoU_present: " not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "under 1 s"),
        (42.4, "42 s"),
        (278, "4 min 38 s"),
        (11100, "3 h 05 min"),
        (187300, "2 d 04 h"),
    ],
)
def test_durations_are_words(seconds, text):
    assert duration(seconds) == text


def test_a_log_scale_comes_where_it_may_and_where_it_helps():
    steep = {"loss": [(1.0, 100.0), (2.0, 1.0), (3.0, 0.5)]}
    assert "log scale" in line_chart(steep, label="loss", may_be_log=True)
    assert "log scale" not in line_chart(steep, label="loss")
    flat = {"loss": [(1.0, 2.0), (2.0, 1.0)]}
    assert "log scale" not in line_chart(flat, label="loss", may_be_log=True)
    below = {"loss": [(1.0, 2.0), (2.0, -1.0)]}
    assert "log scale" not in line_chart(below, label="loss", may_be_log=True)
    assert line_chart({"loss": [(1.0, math.nan)]}, label="loss") is None


def test_a_chart_puts_the_highest_value_highest():
    svg = line_chart({"a": [(0.0, 1.0), (1.0, 3.0), (2.0, 2.0)]}, label="a")
    path = re.search(r'd="M([^"]*)" class="line', svg).group(1)
    ups = [float(pair.split()[1]) for pair in path.split("L")]
    assert ups[1] < ups[2] < ups[0]


def test_classes_are_ordered_by_what_counts_and_have_their_confusions():
    rows = class_rows((COUNTS, NAMES), {})
    by_name = {row["class"]: row for row in rows}
    assert by_name["car"]["recall"] == 60.0
    assert by_name["road"]["IoU"] == pytest.approx(100 * 90 / 130, abs=1e-3)
    assert by_name["car"]["taken_for"] == "road"
    assert by_name["sky"]["recall"] is None
    assert class_rows(None, {"mIoU": 5.0, "IoU.road": 95.0, "acc.road": 99.0}) == [
        {"class": "road", "IoU": 95.0, "acc": 99.0}
    ]


def test_classes_that_are_labelled_nowhere_stand_behind_the_worst():
    rows = [
        {"class": "wall", "IoU": 0.0, "labelled": 0},
        {"class": "road", "IoU": 90.0, "labelled": 9},
        {"class": "rider", "IoU": 1.0, "labelled": 5},
    ]
    text = str(class_section(rows, "mIoU"))
    assert text.index("rider") < text.index("road") < text.index("wall")
    assert "those that are labelled nowhere come last." in text


def test_classes_that_never_occur_are_named_and_have_no_row(tmp_path):
    counts = COUNTS.copy()
    counts[1, 2] = 0
    text = walk(written(tmp_path, {**whole(), "confusion": (counts, NAMES)})).text
    assert "Neither labelled nor predicted: sky." in text
    assert "Neither labelled" not in walk(written(tmp_path, whole())).text


def test_the_worst_pairs_weigh_share_and_count():
    pairs = worst_pairs(COUNTS, [*NAMES, "none"], 9)
    assert [(p["class"], p["taken_for"], p["count"]) for p in pairs] == [
        ("car", "road", 30), ("road", "car", 10), ("car", "sky", 5), ("car", "none", 5),
    ]  # fmt: skip
    assert pairs[0]["share"] == 30.0


def test_a_matrix_of_many_classes_gives_way_to_the_worst_pairs(tmp_path):
    rng = np.random.default_rng(0)
    for classes in (MOST_CELLS, MOST_CELLS + 1, 200):
        counts = rng.integers(1, 9, (classes, classes + 1))
        counts[:, -1] = 0
        document = {**whole(), "confusion": (counts, [f"c{n}" for n in range(classes)])}
        text = written(tmp_path, document)
        page = walk(text)
        has_matrix = any(attrs.get("class") == "matrix" for attrs in page.of("table"))
        assert has_matrix == (classes <= MOST_CELLS)
        assert "The most frequent confusions" in page.text
        assert (f"The {MOST_ROWS} of 200 classes" in page.text) == (classes == 200)
        assert len(text) < 500_000


def data_of(page, alt):
    source = next(a["src"] for a in page.of("img") if a["alt"] == alt)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB"))


def test_label_maps_have_the_colours_of_their_classes(tmp_path):
    page = walk(written(tmp_path, whole()))
    colors = data_of(page, "label of sample w1")
    assert colors[0].tolist() == [list(PALETTE[0]), list(PALETTE[1]), [0, 0, 0], list(PALETTE[2])]
    assert data_of(page, "image of sample w1").mean() == pytest.approx(100, abs=2)


def test_pictures_are_shrunk_and_never_enlarged():
    assert shrunk(np.zeros((1024, 2048, 3), np.uint8)).shape == (224, 448, 3)
    assert shrunk_map(np.zeros((1024, 2048), np.uint8)).shape == (224, 448)
    assert shrunk(np.zeros((32, 64, 3), np.uint8)).shape == (32, 64, 3)
    assert "gallery" in gallery([shown()], PALETTE)


def test_a_page_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HatError, match="cannot write it"):
        write_run_report(tmp_path / "file" / "report.html", whole())
