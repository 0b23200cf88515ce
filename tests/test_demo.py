import json
from pathlib import Path

import pytest
from PIL import Image

from hatcli.cli import run

SMALL = ["--train", "8", "--val", "2", "epochs=1", "schedule.warmup_epochs=0"]
SMALL += ["steps.qat.epochs=1", "quantize.images=4"]
SMALL += ["train.num_workers=0", "train.transforms.0.height=64", "train.transforms.0.width=64"]


def test_the_demo_goes_from_nothing_to_integers_in_onnx(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["demo", *SMALL, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    for step in ("float", "int_infer"):
        scores = document[step]
        assert scores["checkpoint"]["metrics"] == scores["onnx"]["metrics"]
    steps = [entry["step"] for entry in document["steps"]]
    assert steps == ["float", "calibration", "qat", "int_infer"]
    pictures = sorted(Path("demo/predictions").glob("*.png"))
    assert len(pictures) == 2
    with Image.open(pictures[0]) as picture:
        assert picture.width > 3 * 500
    assert Path("demo/unet.onnx").stat().st_size > 1_000_000
    assert Path("demo/unet-int8.onnx").stat().st_size > 200_000
    (run_folder,) = Path("demo/runs/demo").glob("*-float")
    assert (run_folder / "plots" / "curves.png").exists()


def test_the_demo_replaces_its_own_folder_and_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mine = Path("mine")
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert run(["demo", "--out", "mine"]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (mine / "thesis.txt").read_text() == "years of work"
    old = Path("demo")
    old.mkdir()
    (old / "made-by-hat-demo").touch()
    (old / "stale.txt").touch()
    assert run(["demo", *SMALL, "fit.precision=bf17"]) == 2  # found before the folder is touched
    assert (old / "stale.txt").exists()


@pytest.mark.parametrize("words", [["unet"], ["epochs"]])
def test_the_demo_takes_settings_only(words, capsys):
    assert run(["demo", *words]) == 2
    assert "takes settings only" in capsys.readouterr().err
