"""Messages that used to say what is wrong and not what to do."""

import sys
from itertools import islice
from pathlib import Path

import pytest
from made_cityscapes import make_cityscapes
from PIL import Image
from street_net import write_street_config

from hatcli.cli import run
from hatcli.config import load_config
from hatcli.data.scenes.draw import write_scenes
from hatcli.data.transforms import TRANSFORMS
from hatcli.engine import SCHEDULES
from hatcli.errors import ConfigError
from hatcli.events import Warned
from hatcli.recipes.build import build_model
from hatcli.recipes.check import import_user_modules
from hatcli.recipes.crop_sizes import fixed_size, require_sizes
from hatcli.recipes.dry_run import dry_run
from hatcli.recipes.training.journey import Journey, take_all_steps
from hatcli.recipes.training.predecessor import Predecessor, warn_of_other_scoring
from hatcli.registry import import_file

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


def test_a_crop_that_the_network_cannot_take_is_named_with_those_beside_it():
    crop = {"type": "RandomCrop", "height": 512, "width": 1000}
    transforms = [{"type": "RandomScale"}, crop, {"type": "RandomFlip"}]
    config = load_config("unet", [f"train.transforms={transforms}"])
    with pytest.raises(ConfigError) as found:
        require_sizes(config, build_model(config))
    assert found.value.message == (
        "train.transforms.1: RandomCrop gives 512x1000, model 'unet' takes multiples of 64"
    )
    assert found.value.hint == "a size that it takes: 512x960 or 512x1024"


SIZES = {
    "a crop": ([{"type": "CenterCrop", "size": 96}], (96, 96)),
    "both sides": ([{"type": "Resize", "size": [30, 40]}], (30, 40)),
    "one side": ([{"type": "Resize", "size": 30}], None),
    "nothing": ([], None),
    "filled up": (
        [{"type": "RandomResizedCrop", "size": 100}, {"type": "PadToMultiple", "divisor": 64}],
        (128, 128),
    ),
    "filled up from anything": ([{"type": "PadToMultiple", "divisor": 64}], None),
    "scaled again": ([{"type": "CenterCrop", "size": 96}, {"type": "RandomScale"}], None),
    "another's": ([{"type": "CenterCrop", "size": 96}, None], None),
}


@pytest.mark.parametrize("name", SIZES)
def test_only_a_size_that_is_certain_is_known(name):
    nodes, expected = SIZES[name]
    built = [str.upper if node is None else TRANSFORMS.build(node) for node in nodes]
    assert fixed_size(built)[0] == expected


def test_what_a_network_fits_or_does_not_say_is_let_through():
    for name in ("unet", "unet_small", "mobilenetv2"):
        config = load_config(name)
        require_sizes(config, build_model(config))


def test_a_head_that_is_not_chosen_is_said_before_the_training(tmp_path):
    config = load_config("unet_small", ["deploy={}", f"data_rootdir={tmp_path}"])
    told = "several heads, and deploy.head names none"
    with pytest.raises(ConfigError, match=told):
        next(islice(take_all_steps(Journey({"float": config}, "unet_small")), 1, None))
    (warned,) = islice(dry_run(config), 1)
    assert isinstance(warned, Warned)
    assert told in warned.text


def test_a_float_training_of_all_heads_is_warned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    list(write_scenes(tmp_path / "data", train=2, val=1, size=(128, 64)))
    for split in ("train", "val"):
        assert run(["pack", "cityscapes", "--src", "data", "--split", split]) == 0
    small = [
        "data_rootdir=data", "epochs=1", "schedule.warmup_epochs=0", "train.batch_size=2",
        'train.transforms=[{"type": "RandomCrop", "height": 64, "width": 64}]',
        "train.num_workers=0", "val.num_workers=0",
    ]  # fmt: skip
    assert run(["train", "unet_small", *small, "deploy={}"]) == 0
    errors = capsys.readouterr().err
    assert errors.count("warning: the network has several heads") == 1
    assert "set deploy.head before the training" in errors
    (best,) = Path("runs").rglob("float-checkpoint-best.pth.tar")
    small = [*small, "--step", "calibration", "deploy.head=4"]
    assert run(["train", "unet_small", *small]) == 1
    assert f"hint: take its weights alone: --step calibration --weights {best}" in (
        capsys.readouterr().err
    )
    assert run(["train", "unet_small", *small, "--weights", str(best)]) == 0


def test_the_file_that_imports_meant_is_named(tmp_path):
    (tmp_path / "my_net.py").write_text("")
    with pytest.raises(ConfigError, match=r"no such file: .*my_nett\.py") as found:
        import_file(tmp_path / "my_nett.py", "imports")
    assert found.value.hint == f"did you mean {str(tmp_path / 'my_net.py')!r}?"
    with pytest.raises(ConfigError) as found:
        import_file(tmp_path / "else" / "my_net.py", "imports")
    assert found.value.hint is None
    with pytest.raises(ConfigError, match="ModuleNotFoundError") as found:
        import_user_modules(load_config("unet", ["imports=['my_nett']"]))
    assert "'my_nett.py'" in found.value.hint


def test_only_what_differs_of_two_validations_is_told():
    old = load_config("unet", ["val.dataset.path=old_lmdb"])
    content = {"config": {"name": "unet", "values": old.values}, "metrics": {"mIoU": 1.0}}
    before = Predecessor(Path("a.pth.tar"), "float", content, [])
    assert [*warn_of_other_scoring(before, old)] == []
    (warned,) = warn_of_other_scoring(before, load_config("unet", ["val.transforms.0.divisor=8"]))
    assert warned.text == (
        "a.pth.tar was scored with val.dataset.path 'old_lmdb', now 'val_lmdb'; "
        "val.transforms.0.divisor 64, now 8: their rows in the table can't be compared"
    )
    (warned,) = warn_of_other_scoring(before, load_config("unet", ["val.transforms=[]"]))
    assert "val.transforms.0.divisor 64, now unset; and 1 more: their rows" in warned.text
    content["metrics"] = {}
    assert [*warn_of_other_scoring(before, load_config("unet"))] == []


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
