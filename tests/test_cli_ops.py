import json
import subprocess
import sys

import pytest

from hatcli.cli import run
from hatcli.config import Config, load_config, show_config
from hatcli.models import MODELS

UNET = "configs/segmentation/unet.py"

OWN_MODEL = """
from torch import nn
from hatcli.models import MODELS


@MODELS.register
def one_convolution(channels: int = 4) -> nn.Module:
    "A 1x1 convolution."
    return nn.Conv2d(3, channels, 1)
"""


@pytest.fixture
def hat(capsys):
    def call(*words):
        code = run(["ops", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def own_config(tmp_path, monkeypatch):
    """A config file with a model of the user's own and nothing to deploy."""
    (tmp_path / "own_model.py").write_text(OWN_MODEL)
    values = {**load_config("unet").values, "model": {"type": "one_convolution"}, "deploy": {}}
    path = tmp_path / "own.py"
    path.write_text(show_config(Config("own", {**values, "imports": ["own_model.py"]})))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(MODELS, "_joined", dict(MODELS._joined))
    monkeypatch.setattr(MODELS, "_imported", dict(MODELS._imported))
    yield str(path)
    sys.modules.pop("own_model", None)


def test_the_deployed_unet_is_counted_by_default(hat):
    code, out, err = hat("unet")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][:4] == ["unet", "·", "input", "1x3x1024x2048"]
    assert lines[1] == ["stage", "output", "params", "MACs", "share"]
    assert [line[0] for line in lines[2:6]] == ["encoder", "decoder", "heads", "total"]
    assert lines[4] == ["heads", "19x256x512", "0.002", "M", "0.252", "G", "7", "%"]
    assert lines[5] == ["total", "0.999", "M", "3.680", "G", "100", "%"]
    assert out.splitlines()[6] == "1 MAC = 2 operations: 3.680 GMACs = 7.36 GOPs"
    assert len(lines) == 7
    assert "head 4 alone, as deployed" in err
    assert err.splitlines()[-1] == "next: hat train unet"


def test_the_spelling_of_the_tutorial_gives_the_same_table(hat):
    _, expected, _ = hat("unet", "--shape", "1,3,1024,2048")
    code, out, err = hat("--config", UNET, "--input-shape", "1,3,1024,2048")
    assert code == 0
    assert out == expected
    assert err.splitlines()[-1] == f"next: hat train {UNET}"


def test_all_heads_can_be_counted(hat):
    code, out, _ = hat("unet", "--heads", "all")
    assert code == 0
    assert "1.380 M  4.327 G" in out


def test_depth_shows_the_layers(hat):
    code, out, _ = hat("unet", "--depth", "4", "--shape", "1,3,64,64")
    names = [line.split()[0] for line in out.splitlines()[2:-2]]
    assert code == 0
    assert out.splitlines()[1].startswith("layer")
    assert "encoder.stages.2.0" in names
    assert "decoder.stages.32.above" in names
    assert "heads.4.scores.conv" in names


def test_json_is_one_document_with_every_module(hat):
    code, out, _ = hat("unet", "--json", "--shape", "2,3,64,128")
    document = json.loads(out)
    assert code == 0
    assert document["shape"] == [2, 3, 64, 128]
    assert document["ops"] == 2 * document["macs"]
    assert document["params"] == 999001
    assert document["heads"] == "deploy"
    rows = {row["name"]: row for row in document["rows"]}
    assert rows["heads.4"]["outputs"] == [[2, 19, 16, 32]]
    assert sum(rows[name]["macs"] for name in ("encoder", "decoder", "heads")) == document["macs"]


def test_overrides_change_the_model(hat):
    _, out, _ = hat("unet", "model.alpha=0.5", "--shape", "1,3,64,64", "--json")
    assert json.loads(out)["params"] > 3e6


def test_thop_counts_in_its_own_way(hat):
    code, out, _ = hat("unet", "--counter", "thop", "--json", "--shape", "1,3,64,64")
    _, exact, _ = hat("unet", "--json", "--shape", "1,3,64,64")
    assert code == 0
    assert json.loads(out)["macs"] > json.loads(exact)["macs"]
    assert json.loads(out)["params"] == 999001


def test_a_model_of_the_users_own_is_counted(hat, own_config):
    code, out, err = hat(own_config, "--shape", "1,3,10,10", "--json")
    assert code == 0
    assert json.loads(out)["macs"] == 3 * 4 * 100
    assert "as deployed" not in err


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("1,3,224", "shape '1,3,224': give four sizes N,C,H,W"),
        ("1,3,0,64", "shape '1,3,0,64': give four sizes"),
        ("a,b,c,d", "shape 'a,b,c,d': give four sizes"),
        ("1,3,100,64", "model 'unet' takes heights and widths that are multiples of 64"),
        (
            "1,1,64,64",
            "shape 1x1x64x64: the model can't run on it, near encoder.stages.2.0.conv, Conv2d(3, 8",
        ),
    ],
)
def test_a_wrong_shape_is_a_usage_error(hat, shape, message):
    code, out, err = hat("unet", "--shape", shape)
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) <= 3


def test_a_shape_that_does_not_divide_comes_with_the_next_one_that_does(hat):
    _, _, err = hat("unet", "--shape", "1,3,1080,1920")
    assert "hint: the next larger shape is 1,3,1088,1920" in err


def test_without_any_shape_one_is_asked_for(hat):
    code, _, err = hat("unet", "deploy={}")
    assert code == 2
    assert "which input shape? the config has no deploy.shape" in err


@pytest.mark.parametrize("shape", ["[1,3,64]", "[1,3,64,-64]", "[1,3,64,64.0]"])
def test_a_wrong_shape_in_the_config_is_named(hat, shape):
    code, _, err = hat("unet", f"deploy.shape={shape}")
    assert code == 2
    assert "deploy.shape: give four sizes [N, C, H, W]" in err


def test_a_head_that_the_model_has_not_is_refused(hat):
    code, _, err = hat("unet", "deploy.head=fine")
    assert code == 2
    assert "unet has no head 'fine'" in err


@pytest.mark.parametrize("words", [["--depth", "0"], ["--heads", "none"], ["--counter", "mine"]])
def test_wrong_choices_are_usage_errors(hat, words):
    assert hat("unet", *words)[0] == 2


def test_no_target_asks_for_one(hat):
    code, _, err = hat()
    assert code == 2
    assert "which config?" in err


def test_help_and_usage_errors_load_no_torch():
    program = (
        "import sys; from hatcli.cli import run\n"
        "codes = [run(words.split()) for words in "
        "('ops --help', 'ops', 'ops unet --shape 1,2', 'ops unet model.alfa=1')]\n"
        "assert codes == [0, 2, 2, 2], codes\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "did you mean 'alpha'" in done.stderr
