"""The page of a run: what stands on it, that it is legal, and where its numbers come from."""

import base64
import io
import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from html_walker import walk
from made_cityscapes import make_cityscapes
from PIL import Image
from tiny import write_tiny_config

from hatcli.cli import run
from hatcli.errors import HatError, ModelFileError, UsageError
from hatcli.export.metadata import append_metadata, seal
from hatcli.metrics.accuracy import Accuracy
from hatcli.metrics.mean_iou import MeanIoU
from hatcli.recipes.confusion_file import FILE, load_confusion, save_confusion
from hatcli.recipes.exported import read_exported
from hatcli.recipes.find_run import find_run, run_of_checkpoint
from hatcli.recipes.run_page import describe_run, write_run_page
from hatcli.recipes.runs import checkpoint_in, write_json
from hatcli.recipes.showcase import Showcase
from hatcli.report.charts import line_chart
from hatcli.report.class_section import MOST_CELLS, MOST_ROWS, class_rows
from hatcli.report.confusion import worst_pairs
from hatcli.report.gallery import Shown, gallery, shrunk, shrunk_map
from hatcli.report.run import duration, write_run_report

HOSTILE = "\"><script>alert('1')</script><img src=http://evil.example/x>&amp;\x00\ud800"
NAMES = ["road", "car", "sky"]
COUNTS = np.array([[90, 10, 0, 0], [30, 60, 5, 5], [0, 0, 0, 0]])
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
    assert "mIoU 61.87 at epoch 2 of 2, 0.84 more than in float." in text
    assert "Also: aAcc 90.75." in text
    assert "Started 2026-11-22 05:15, ended 2026-11-22 05:20; took 4 min 38 s for 2 epochs." in text
    assert "Scored again for the classes and pictures below: 61.86." in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"best_epoch": 0}, "which is that of the start: no epoch was better"),
        ({"step": "float"}, "mIoU 61.87 at epoch 2 of 2."),
        ({"metrics": {"mIoU": 61.03}}, "the same as in float"),
        ({"metrics": {"mIoU": 60.0}}, "1.03 less than in float"),
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
    [(42.4, "42 s"), (278, "4 min 38 s"), (11100, "3 h 05 min"), (187300, "2 d 04 h")],
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


def metric_of(counts):
    metric = MeanIoU(3, NAMES)
    metric.confusion = torch.from_numpy(counts)
    return metric


def test_a_confusion_comes_back_as_it_was_saved(tmp_path):
    save_confusion(tmp_path, metric_of(COUNTS))
    counts, names = load_confusion(tmp_path)
    assert counts.tolist() == COUNTS.tolist()
    assert names == NAMES
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text()[:30])
    assert load_confusion(tmp_path) is None


def test_a_metric_that_counts_no_pairs_leaves_no_file(tmp_path):
    save_confusion(tmp_path, Accuracy())  # has seen nothing
    save_confusion(tmp_path, object())
    assert list(tmp_path.iterdir()) == []
    assert load_confusion(tmp_path) is None


def segmented(showcase, predicted, labels, names):
    images = torch.zeros(len(names), 3, *labels.shape[1:], dtype=torch.uint8)
    scores = torch.nn.functional.one_hot(predicted.long(), 3).permute(0, 3, 1, 2).float()
    showcase(images, scores, labels, names)


def test_the_best_and_worst_pictures_are_those_of_the_highest_and_lowest_miou():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (12, 8, 8), generator=generator).to(torch.uint8)
    predicted = labels.clone()
    wrong = torch.randperm(12, generator=generator).tolist()
    for number, count in enumerate(wrong):
        rows = predicted[number].view(-1)
        rows[:count] = (rows[:count] + 1) % 3
    labels[:, -2:] = 255  # doesn't count
    names = [f"s{number}" for number in range(12)]
    showcase = Showcase("segmentation", NAMES, 3)
    for start in (0, 5, 10):
        part = slice(start, start + 5)
        segmented(showcase, predicted[part], labels[part], names[part])

    def by_metric(number):
        metric = MeanIoU(3, NAMES)
        scores = torch.nn.functional.one_hot(predicted[number : number + 1].long(), 3)
        metric.update(scores.permute(0, 3, 1, 2).float(), labels[number : number + 1])
        return metric.compute()["mIoU"]

    order = sorted(range(12), key=by_metric)
    assert [one.name for one in showcase.worst] == [names[n] for n in order[:3]]
    assert [one.name for one in showcase.best] == [names[n] for n in order[:-4:-1]]
    assert showcase.seen == 12
    assert showcase.best[0].label.shape == (6, 8)  # the rows that don't count are cut off
    assert showcase.worst[0].lines[0].startswith(f"mIoU {by_metric(order[0]):.1f}, ")


def test_a_picture_of_a_small_set_is_shown_once():
    labels = torch.zeros(3, 4, 4, dtype=torch.uint8)
    showcase = Showcase("segmentation", NAMES, 2)
    segmented(showcase, labels, labels, ["a", "b", "c"])
    assert [one.name for one in showcase.best] == ["a", "b"]
    assert not {one.name for one in showcase.worst} & {"a", "b"}


def test_pictures_without_any_label_are_not_judged():
    labels = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    showcase = Showcase("segmentation", NAMES, 2)
    segmented(showcase, torch.zeros(1, 4, 4), labels, ["a"])
    assert (showcase.best, showcase.worst, showcase.seen) == ([], [], 0)


def test_classified_pictures_are_ordered_by_the_probability_of_the_label():
    scores = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [1.0, 0.5, 0.0], [math.nan, 0, 0]])
    showcase = Showcase("classification", NAMES, 2)
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    showcase(images, scores, torch.tensor([0, 0, 0, 0]), ["sure", "wrong", "close", "broken"])
    assert [one.name for one in showcase.best] == ["sure", "close"]
    assert [one.name for one in showcase.worst] == ["broken", "wrong"]
    assert showcase.worst[1].lines[0] == "road: wrong"
    assert showcase.worst[1].lines[1].startswith("predicted: car 98.7 %, ")


def exported_file(path: Path, **entries) -> Path:
    image = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [image], [output])
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    values = {"hat.step": "qat", "hat.metrics": json.dumps({"mIoU": 61.5}), **entries}
    append_metadata(path, values)
    seal(path)
    return path


PARITY = {"promised": True, "images": 10, "layers": 76, "values": 104448, "differing": 0,
          "largest": 0.0, "same_class": 1.0, "onnxruntime": "1.31.1"}  # fmt: skip
CHECK = {"tolerance": 1e-4, "comparisons": [
    {"shape": [1, 3, 64, 64], "largest": 8e-6, "relative": 6e-7, "same_class": 1.0}]}  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "verdict", "is_fine"),
    [
        ({"hat.parity": PARITY}, "gives the same codes as int_infer", True),
        ({"hat.parity": {**PARITY, "differing": 7}}, "in 7 of 104,448 values", False),
        ({"hat.parity": {**PARITY, "differing": 7, "promised": False}}, "in 7 of 104,448", True),
        ({"hat.check": CHECK}, "gives the same scores as torch", True),
        ({}, "not checked", False),
    ],
)
def test_an_exported_file_tells_of_its_check(tmp_path, entries, verdict, is_fine):
    texts = {key: json.dumps(value) for key, value in entries.items()}
    found = read_exported(exported_file(tmp_path / "m.onnx", **texts))
    assert (found.step, found.metrics, found.is_fine) == ("qat", {"mIoU": 61.5}, is_fine)
    assert verdict in found.verdict


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    path = exported_file(tmp_path / "m.onnx")
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelFileError, match=r"m\.onnx"):
        read_exported(path)
    path.write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match=r"not an ONNX model"):
        read_exported(path)
    with pytest.raises(ModelFileError, match=r"cannot read it"):
        read_exported(tmp_path / "none.onnx")
    model = onnx.load(exported_file(tmp_path / "n.onnx"))
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match=r"wasn't exported by hat"):
        read_exported(path)


def made_run(root: Path, name: str, step: str, *, before=(), summary=True, **more) -> Path:
    """A run folder such as a training leaves, with made-up numbers."""
    run_folder = root / "unet" / name
    run_folder.mkdir(parents=True)
    best = checkpoint_in(run_folder, step)
    best.write_bytes(b"")
    own = {"step": step, "metrics": {"mIoU": 60.0 + len(before)}, "file": str(best)}
    command = f"hat train unet --step {step} data_rootdir=/data optim.lr=0.1"
    (run_folder / "args.txt").write_text(command + "\n")
    (run_folder / "config.py").write_text("task = 'segmentation'\nepochs = 30\n")
    write_json(run_folder / "env.json", {"torch": "2.14.1"})
    (run_folder / "train.log").write_text(
        f"2026-11-22 05:15:19  unet · step {step} · cpu · batch 4\n"
        "2026-11-22 05:15:20  warning: layer a: all results are 0\n"
        "a second line of it\n"
        "2026-11-22 05:19:19  warning: layer a: all results are 0\n"
    )
    rows = [
        {"epoch": 1, "train/loss": 2.0, "lr": 0.1, "seconds": 10.0, "val/mIoU": 50.0},
        {"epoch": 2, "train/loss": 1.0, "lr": 0.1, "seconds": 20.0, "val/mIoU": 60.0},
        {"epoch": 3, "train/loss": 1.5, "lr": 0.1, "seconds": 12.5, "val/mIoU": 55.0},
    ]
    if step in ("float", "qat"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (run_folder / "metrics.jsonl").write_text(text)
    steps = [*before, own]
    if summary:
        document = {"step": step, "best_by": "mIoU", "metrics": {"mIoU": own["metrics"]["mIoU"]},
                    "checkpoints": {"best": best.name}, "steps": steps, "best_epoch": 2,
                    "epochs": 3, "findings": ["b: odd"], **more}  # fmt: skip
        write_json(run_folder / "summary.json", document)
    return run_folder


def steps_of(run_folder: Path) -> list:
    return json.loads((run_folder / "summary.json").read_text())["steps"]


def test_a_page_tells_what_the_folder_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = made_run(Path("runs"), "2026-11-22_051519-float", "float")
    save_confusion(folder, metric_of(COUNTS))
    document = describe_run(folder)
    assert (document["name"], document["step"], document["seconds"]) == ("unet", "float", 42.5)
    assert document["about"] == "unet · step float · cpu · batch 4"
    assert document["remarks"] == ["layer a: all results are 0", "b: odd"]
    assert document["confusion"][0].tolist() == COUNTS.tolist()
    assert document["missing"] == {}
    text = walk(write_run_page(folder).read_text()).text
    assert "mIoU 60.00 at epoch 2 of 3." in text
    assert f"hat report {folder}" in text


def test_the_commands_to_go_on_keep_what_holds_for_all_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = made_run(Path("runs"), "2026-11-22_051519-float", "float")
    best = checkpoint_in(folder, "float")
    lines = [line for part in describe_run(folder)["commands"].values() for line in part]
    assert f"hat train unet data_rootdir=/data --step calibration --ckpt {best}" in lines
    assert f"hat quantize unet data_rootdir=/data --ckpt {best}" in lines
    assert f"hat train --resume-from {folder}" in lines
    assert lines[0] == "hat train unet --step float data_rootdir=/data optim.lr=0.1"
    elsewhere = made_run(tmp_path / "other", "2026-11-22_051519-calibration", "calibration")
    (elsewhere / "args.txt").write_text("hat train --step calibration -c 'my unet.py' val.x=1\n")
    lines = [line for part in describe_run(elsewhere)["commands"].values() for line in part]
    words = [shlex.split(line) for line in lines if "--step qat" in line]
    assert words[0][2:6] == ["my unet.py", "val.x=1", "--out", str(tmp_path / "other")]


def test_steps_before_and_after_a_run_stand_side_by_side(tmp_path):
    first = made_run(tmp_path, "2026-11-22_010000-float", "float")
    second = made_run(
        tmp_path, "2026-11-22_020000-calibration", "calibration", before=steps_of(first)
    )
    third = made_run(tmp_path, "2026-11-22_030000-qat", "qat", before=steps_of(second))
    made_run(tmp_path, "2026-11-22_040000-float", "float")  # of another model
    for folder in (first, second, third):
        steps = describe_run(folder)["steps"]
        assert [one["step"] for one in steps] == ["float", "calibration", "qat"]
        assert [one["own"] for one in steps] == [f == folder for f in (first, second, third)]


def test_the_newest_quantization_of_the_same_float_model_is_linked(tmp_path):
    folder = made_run(tmp_path, "2026-11-22_010000-float", "float")
    other_float = tmp_path / "unet" / "2026-11-21_010000-float"
    for hour, source in ((2, folder), (3, folder), (4, other_float)):
        name = f"2026-11-22_0{hour}0000"
        other = made_run(tmp_path, f"{name}-calibration", "calibration", quantize="quantize.json")
        document = {"checkpoint": str(source / "x.pth.tar"), "best_by": "mIoU", "layers": []}
        write_json(other / "quantize.json", document)
        (other / "report.html").write_text("")
    found = describe_run(folder)["quantization"]
    assert found["link"] == "../2026-11-22_030000-calibration/report.html"
    assert [one["step"] for one in describe_run(folder)["steps"]] == ["float"]


def test_a_run_that_was_stopped_tells_how_far_it_came(tmp_path):
    folder = made_run(tmp_path, "2026-11-22_010000-float-2", "float", summary=False)
    document = describe_run(folder)
    assert (document["epochs"], document["planned"], document["best_epoch"]) == (3, 30, 2)
    assert document["metrics"] == {"mIoU": 60.0}
    page = walk(write_run_page(folder).read_text())
    assert "mIoU 60.00 at epoch 2 of 3 done, 30 planned." in page.text
    assert f"the end of the run: hat train --resume-from {folder}" in page.text


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no run folder"):
        describe_run(tmp_path)


def test_runs_are_found_by_folder_name_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = made_run(Path("runs"), "2026-11-22_010000-float", "float")
    new = made_run(Path("runs"), "2026-11-22_020000-qat", "qat")
    assert find_run(None) == find_run("unet") == new
    assert find_run(str(old)) == old
    assert run_of_checkpoint(str(checkpoint_in(old, "float")))[:2] == (
        checkpoint_in(old, "float"), old,
    )  # fmt: skip
    assert run_of_checkpoint("best.pth")[1] == new
    Path("lone.pth.tar").write_bytes(b"")
    for function, text, message in (
        (find_run, "unett", "no run of unett in runs/"),
        (find_run, str(tmp_path), "is no run folder"),
        (find_run, "runs/unet/none", "is no run folder"),
        (run_of_checkpoint, "none.pth.tar", "checkpoint not found"),
        (run_of_checkpoint, "lone.pth.tar", "doesn't lie in a run folder"),
    ):
        with pytest.raises(UsageError, match=message):
            function(text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with data, a config and the run of one epoch."""
    root = tmp_path_factory.mktemp("report")
    data = make_cityscapes(root / "data", train=2, val=3, size=(128, 96))
    config = str(write_tiny_config(root, data))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for split in ("train", "val"):
            assert run(["pack", "cityscapes", "--src", str(data), "--split", split]) == 0
        assert run(["train", config, "epochs=1"]) == 0
    return root


def test_a_training_leaves_a_page_and_hat_report_adds_pictures(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    (folder,) = Path("runs/tiny").iterdir()
    page = walk((folder / "report.html").read_text())
    assert "confusion" in [attrs["id"] for attrs in page.of("section")]
    assert page.of("img") == []
    assert f"best and worst pictures, exported files: hat report {folder}" in page.text
    capsys.readouterr()
    assert run(["report", "--pictures", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["file"] == str(folder / "report.html")
    page = walk((folder / "report.html").read_text())
    assert len(page.of("img")) == 6
    reported = json.loads((folder / "summary.json").read_text())["metrics"]["mIoU"]
    assert result["metrics"]["mIoU"] == pytest.approx(reported, abs=1e-6)
    assert f"Scored again for the classes and pictures below: {reported:.2f}." in page.text


def test_files_of_the_run_are_told_of_and_others_are_not(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    (folder,) = Path("runs/tiny").iterdir()
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    own = {"hat.step": "float", "hat.check": json.dumps(CHECK)}
    exported_file(folder / "own.onnx", **own, **{"hat.metrics": json.dumps(metrics)})
    exported_file(Path("tiny.onnx"), **own, **{"hat.metrics": json.dumps({"mIoU": 1.0})})
    (folder / "zz.onnx").write_bytes(b"not a model")
    try:
        assert run(["report", "-o", "page.html", "--pictures", "0"]) == 0
    finally:
        (folder / "zz.onnx").unlink()
        (folder / "own.onnx").unlink()
    printed = capsys.readouterr()
    assert printed.out == "page.html\n"
    assert "zz.onnx: not an ONNX model" in printed.err
    text = walk(Path("page.html").read_text()).text
    assert "own.onnx gives the same scores as torch" in text
    assert "tiny.onnx" not in text
    assert run(["report", "-o", "page.html", "--pictures", "0", "--onnx", "tiny.onnx"]) == 0
    assert "tiny.onnx gives the same scores" in walk(Path("page.html").read_text()).text


def test_data_that_is_gone_costs_the_pictures_and_not_the_page(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    assert run(["report", "-o", "gone.html", "data_rootdir=/nowhere"]) == 0
    assert "warning: no pictures: " in capsys.readouterr().err
    page = walk(Path("gone.html").read_text())
    assert page.of("img") == []
    assert "/nowhere" in page.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b"], "one run is enough, got 'a' and 'b'"),
        (["-o", "page.txt"], "a page is an .html file"),
        (["val.batch_sizee=2"], "batch_sizee"),
        (["--onnx", "none.onnx"], "none.onnx: cannot read it"),
        (["--ckpt", "none.pth.tar"], "checkpoint not found"),
    ],
)
def test_wrong_words_are_explained(trained, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(trained)
    before = sorted(Path("runs").rglob("*"))
    assert run(["report", *arguments]) in (1, 2)
    assert message in capsys.readouterr().err
    assert sorted(Path("runs").rglob("*")) == before


def test_a_page_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HatError, match="cannot write it"):
        write_run_report(tmp_path / "file" / "report.html", whole())
