"""The example of docs/how-to/own-dataset.md, on drawn digits and on real ones."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from test_docs import ROOT, blocks, write_parts

from hatcli.cli import run

DOCUMENT = ROOT / "docs" / "how-to" / "own-dataset.md"
real = pytest.mark.skipif("HAT_TEST_DATA" not in os.environ, reason="needs HAT_TEST_DATA")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    assert write_parts(DOCUMENT, tmp_path) == ["my_images.py", "my_digits.py"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_images", raising=False)
    return tmp_path


def draw_classes(file: Path, count: int = 200) -> None:
    """Images with a bright bar at one of ten places."""
    generator = np.random.default_rng(0)
    y = np.arange(count) // 5 % 10
    x = generator.integers(0, 60, (count, 10, 10), np.uint8)
    x[np.arange(count), y] += 180
    np.savez(file, x=x, y=y)


def test_the_example_goes_from_data_to_integers(folder, capsys):
    draw_classes(folder / "digits.npz")
    (text,) = (block for block in blocks(DOCUMENT, "text") if "$ hat" in block)
    lines = [line.removeprefix("$ hat ") for line in text.splitlines()]
    short = {"train my_digits.py": ["epochs=3", "model.type=mobilenetv1"]}
    model = ["model.type=mobilenetv1"]
    for line in lines:
        words = line.split()
        more = short.get(line, model if "--step" in words else [])
        assert run([*words, *more]) == 0, line
    assert len(lines) == 6
    assert list(folder.glob("*.onnx"))


def test_the_data_sets_own_errors_are_told(folder, capsys):
    assert run(["train", "my_digits.py"]) == 2
    assert "no file digits.npz" in capsys.readouterr().err
    np.savez(folder / "digits.npz", x=np.zeros((4, 8, 8)), y=np.zeros(4))
    assert run(["train", "my_digits.py"]) == 1
    assert "x is float64 (4, 8, 8), y (4,)" in capsys.readouterr().err


@real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "bound"),
    [("digits_8x8", [], 97), ("mnist5k_28x28", ["epochs=6", "fit.val_every=2"], 95)],
)
def test_real_digits_are_told_apart(folder, name, settings, bound, capsys):
    source = Path(os.environ["HAT_TEST_DATA"], "classic", f"{name}.npz")
    shutil.copy(source, folder / "digits.npz")
    assert run(["train", "my_digits.py", *settings, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["top1"] >= bound
