"""Messages that used to say what is wrong and not what to do."""

import sys

import pytest
from made_cityscapes import make_cityscapes
from PIL import Image
from street_net import write_street_config

from hatcli.cli import run
from hatcli.data.scenes.draw import write_scenes
from hatcli.engine import SCHEDULES
from hatcli.errors import ConfigError

EVEN_SIDES_ALONE = """
import torch.nn.functional as F
from torch import nn

from hatcli.models import MODELS


@MODELS.register
class EvenSidesAlone(nn.Module):
    def __init__(self, num_classes: int = 19) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, num_classes, 3, 2, 1)
        self.same = nn.Conv2d(3, num_classes, 3, 1, 1)

    def forward(self, x):
        return self.same(x) + F.interpolate(self.down(x), scale_factor=2, mode="nearest")
"""


def test_a_warm_up_as_long_as_the_training_says_what_to_lower():
    with pytest.raises(ConfigError, match="5 epochs of warm-up leave none of the 5") as found:
        SCHEDULES.build({"type": "cosine", "warmup_epochs": 5}, steps_per_epoch=2, epochs=5)
    assert "schedule.warmup_epochs=0" in found.value.hint


def test_a_label_of_no_class_says_what_can_be_done(tmp_path, capsys):
    make_cityscapes(tmp_path)
    label = next((tmp_path / "gtFine" / "train").rglob("*_labelIds.png"))
    with Image.open(label) as image:
        pixels = image.copy()
    pixels.putpixel((0, 0), 77)
    pixels.save(label)
    assert run(["pack", "cityscapes", "--src", str(tmp_path), "--split", "train"]) == 1
    told = capsys.readouterr().err
    assert "{77}" in told
    assert label.name in told
    assert "--on-error quarantine" in told


def test_missing_train_ids_are_said_to_be_made_by_packing(tmp_path, capsys):
    make_cityscapes(tmp_path)
    words = ["pack", "cityscapes", "--src", str(tmp_path), "--split", "val"]
    assert run([*words, "--labels", "labelTrainIds"]) == 1
    assert "leave --labels out" in capsys.readouterr().err


def test_a_shape_that_a_network_cannot_take_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    list(write_scenes(tmp_path / "data", train=4, val=2, size=(128, 64)))
    for split in ("train", "val"):
        assert run(["pack", "cityscapes", "--src", "data", "--split", split]) == 0
    config = write_street_config(tmp_path, tmp_path / "data")
    (tmp_path / "even.py").write_text(EVEN_SIDES_ALONE)
    network = "imports = ['even.py']\nmodel = {'type': 'EvenSidesAlone'}\n"
    config.write_text(f"{config.read_text()}\n{network}")
    assert run(["train", str(config), "epochs=1"]) == 0
    assert run(["train", str(config), "--step", "calibration"]) == 0
    for step, code, message in (
        ("float", 1, "tells whether it takes images of this shape"),
        ("calibration", 2, "shape 1x3x63x127: the model can't run on it"),
    ):
        words = ["export", "--ckpt", f"{step}-checkpoint-best.pth.tar", "-o", "x.onnx"]
        capsys.readouterr()
        assert run([*words, "--shape", "1,1,64,128"]) == 2
        assert "shape 1x1x64x128: images have 3 channels, not 1" in capsys.readouterr().err
        assert run([*words, "--shape", "1,3,63,127", "--dynamic", "none"]) == code
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.onnx*"))
