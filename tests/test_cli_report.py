"""hat report: the page that a training leaves, and what the command adds."""

import json
from pathlib import Path

import pytest
from html_walker import walk
from made_run import CHECK, exported_file
from packed import packed_blocks
from tiny import write_tiny_config

from hatcli.cli import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with data, a config and the run of one epoch."""
    root = tmp_path_factory.mktemp("report")
    data = packed_blocks(root / "data", train=2, val=3)
    config = str(write_tiny_config(root, data))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
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
    assert f"Scored again for the classes and pictures below: {reported:.2f} %." in page.text


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
    best = folder / "float-checkpoint-best.pth.tar"
    assert printed.err.splitlines()[-1] == f"next: hat predict --ckpt {best} PICTURES"
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
