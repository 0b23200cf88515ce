"""What a run shows, what a training may learn from, and where its time goes."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from faulty import write_faulty_config
from PIL import Image

from hatcli.cli import run
from hatcli.engine.checkpoint import load_checkpoint
from hatcli.events import EpochDone, StepDone
from hatcli.recipes.bench.advice import Alternative, BenchResult, Part, advice
from hatcli.recipes.runs import tensorboard
from hatcli.report.confusion import class_table, draw_confusion


@pytest.fixture
def config(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(write_faulty_config(tmp_path))


def the_run(root: str = "runs") -> Path:
    (found,) = (Path(root) / "faulty_config").iterdir()
    return found


def test_a_run_shows_its_first_batch_its_confusions_and_its_classes(config):
    assert run(["train", config, "train.transforms=[{'type': 'RandomFlip'}]"]) == 0
    plots = the_run() / "plots"
    with Image.open(plots / "first_batch.png") as sheet:
        assert sheet.width == 1200
    with Image.open(plots / "confusion_matrix.png") as matrix:
        assert np.unique(np.asarray(matrix)).size > 3
    rows = list(csv.DictReader((the_run() / "per_class.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["labelled"] for row in rows] == ["10"] * 4
    best = json.loads((the_run() / "summary.json").read_text())["metrics"]["top1"]
    assert np.mean([float(row["recall"]) for row in rows]) == pytest.approx(best)


def test_a_disk_that_takes_no_picture_ends_no_training(config, monkeypatch, capsys):
    def full(path, picture):
        from hatcli.errors import HatError

        raise HatError(f"{path}: cannot write it: No space left on device")

    monkeypatch.setattr("hatcli.recipes.training.pictures.write_png", full)
    assert run(["train", config, "epochs=1"]) == 0
    assert "first_batch.png: cannot write it" in capsys.readouterr().err


def test_a_class_table_by_hand():
    counts = np.array([[6, 2, 2, 0], [0, 5, 0, 5], [0, 0, 0, 0]])
    first, second, third = class_table(counts, ["road", "sky", "car"])
    assert (first["labelled"], first["predicted"], first["recall"]) == (10, 6, 60.0)
    assert (first["precision"], first["IoU"]) == (100.0, 60.0)
    assert (first["taken_for"], first["taken_for_share"]) == ("sky", 20.0)
    assert (second["recall"], second["taken_for"]) == (50.0, None)
    assert second["IoU"] == pytest.approx(100 * 5 / 12, abs=1e-3)
    assert (third["recall"], third["precision"], third["IoU"]) == (None, 0.0, 0.0)


@pytest.mark.parametrize("classes", [1, 2, 19, 41, 333, 1000])
def test_a_matrix_of_any_size_is_a_picture(classes):
    counts = np.eye(classes, classes + 1, dtype=np.int64) * 5
    counts[0, classes - 1] += 1
    names = [f"class {index}" for index in range(classes)]
    picture = draw_confusion(counts, names, "title " * 50)
    assert picture.dtype == np.uint8
    assert picture.shape[1] < 2000


def trained(config: str, *more: str, root: str = "runs") -> dict:
    assert run(["train", config, "epochs=1", *more, "--out", root]) == 0
    return load_checkpoint(the_run(root) / "float-checkpoint-last.pth.tar")


def test_a_training_learns_from_a_teachers_checkpoint(config, capsys):
    trained(config)
    teacher = the_run() / "float-checkpoint-best.pth.tar"
    alone = trained(config, "seed=5", root="alone")
    capsys.readouterr()
    node = f"teacher={{'ckpt': '{teacher}', 'weight': 3.0, 'temperature': 2.0}}"
    taught = trained(config, "seed=5", node, root="taught")
    assert "taught by" in capsys.readouterr().err
    assert alone["losses"] != taught["losses"]
    assert taught["config"]["values"]["teacher"]["weight"] == 3.0
    assert run(["train", "--resume-from", str(the_run("taught")), "epochs=2"]) == 0
    assert run(["eval", "--ckpt", str(the_run("taught") / "float-checkpoint-best.pth.tar")]) == 0


@pytest.mark.parametrize(
    ("node", "code", "message"),
    [
        ("{'ckpt': 'none.pth'}", 2, "teacher.ckpt: no checkpoint none.pth"),
        ("{'ckpt': 'none.pth', 'weigth': 1}", 2, "did you mean 'weight'?"),
        ("{'ckpt': 'none.pth', 'weight': 0}", 2, "weight and temperature must be above 0"),
        ("{'weight': 1.0}", 2, "teacher: lacks 'ckpt'"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused_before_a_run(config, node, code, message, capsys):
    assert run(["train", config, f"teacher={node}"]) == code
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_teacher_of_other_images_is_refused(config, capsys):
    trained(config)
    teacher = the_run() / "float-checkpoint-best.pth.tar"
    other = "batch_transforms=[{'type': 'RgbToYuv444'}]"
    assert run(["train", config, f"teacher={{'ckpt': '{teacher}'}}", other]) == 2
    assert "other batch_transforms" in capsys.readouterr().err


def test_qat_is_not_compiled(config, capsys):
    assert run(["train", config, "epochs=1"]) == 0
    capsys.readouterr()
    assert run(["train", config, "--step", "qat", "fit.compile=True", "quantize.images=4"]) == 2
    assert "fit.compile: qat trains in its own kernels" in capsys.readouterr().err


@pytest.fixture
def one_core(monkeypatch):
    """Other threads are not tried: while others compute they would only wait for each other."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})


@pytest.mark.usefixtures("one_core")
def test_bench_train_says_where_the_time_goes(config, capsys):
    assert run(["bench", "train", config, "--steps", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = [row["part"] for row in document["parts"]]
    assert names == [
        "waiting", "transfer", "batch transforms", "forward", "loss", "backward", "optimiser",
    ]  # fmt: skip
    assert sum(row["share"] for row in document["parts"]) == pytest.approx(1)
    assert set(document["reading"]) == {"read and decode", "stack a batch"}
    alternatives = {row["name"]: row for row in document["alternatives"]}
    assert alternatives["float32 NCHW"]["ratio"] == 1
    assert [name for name, row in alternatives.items() if row["is_own"]] == [
        "float32 channels_last"
    ]
    assert "bf16 channels_last" in alternatives
    assert "batch 8" in alternatives
    assert document["images_per_s"] > 0
    assert document["peak_memory"] > 2**26
    assert document["advice"]
    assert not Path("runs").exists()


@pytest.mark.usefixtures("one_core")
def test_bench_train_needs_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    size = ["train.transforms.0.height=64", "train.transforms.0.width=128", "train.batch_size=1"]
    assert run(["bench", "train", "unet", *size, "--steps", "1"]) == 0
    out, errors = capsys.readouterr()
    assert "random images take its place" in errors
    assert "unet: 1 x 64 x 128 on cpu" in out
    assert "reading" not in out


def result(waiting: float, alternatives: list[Alternative]) -> BenchResult:
    parts = [Part("waiting", waiting), Part("forward", 1.0), Part("backward", 2.0)]
    reading = {"read and decode": 0.9, "ColorJitter": 0.1}
    return BenchResult("a", "cuda", 4, (8, 8), 1.0, 1, parts, reading, alternatives, [])


class FakeConfig(dict):
    """Stands for a config: entries only."""


def test_the_advice_follows_from_the_figures():
    plain = {"precision": "float32", "channels_last": False, "compile": False}
    own = Alternative("float32 NCHW", 1.0, 1.0, True, plain)
    fast = Alternative("bf16 NCHW", 0.5, 0.5, False, {**plain, "precision": "bf16"})
    large = Alternative("batch 8", 0.8, 0.8, False)
    config = FakeConfig(train={"num_workers": 0}, optim={"fused": False})
    nothing = advice(result(0.0, [own]), config, has_data=True)
    assert nothing.advice == ["nothing that was tried is faster"]
    found = advice(result(3.0, [own, fast, large]), config, has_data=True).advice
    assert found[0] == "fit.precision=bf16: 0.50 of the time"
    assert found[1].startswith("train.batch_size=8: 0.80 of the time an image")
    assert "a step waits 3000 ms for data" in found[2]
    assert found[3].startswith("'read and decode' is 90 % of reading")


def test_figures_for_tensorboard_stand_at_the_steps_of_the_run():
    step = StepDone(2, 3, 5, 10, 0.5, 0.1, 8.0)
    assert tensorboard.at(step, 0) == 15
    assert dict(tensorboard.figures(step)) == {
        "train/loss": 0.5, "train/lr": 0.1, "train/images_per_s": 8.0,
    }  # fmt: skip
    values = {"top1": 50.0, "acc.a": 1.0, "bad": float("nan")}
    epoch = EpochDone(2, 3, {"loss": 0.4}, values, 0.1, 8.0, 1.0)
    assert tensorboard.at(epoch, 10) == 20
    assert dict(tensorboard.figures(epoch)) == {"val/top1": 50.0, "epoch/loss": 0.4}


def test_tensorboard_finds_its_file_where_it_is_installed(config):
    pytest.importorskip("tensorboard")
    assert run(["train", config, "epochs=1"]) == 0
    assert list((the_run() / "tensorboard").glob("events.out.tfevents.*"))
