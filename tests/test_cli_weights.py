"""Plain weights on the command line: hat train, eval and export with --weights."""

import json
from pathlib import Path

import pytest
import torch
from packed import packed_blocks

from hatcli.cli import run
from hatcli.config import load_config
from hatcli.engine.checkpoint import load_checkpoint, save_checkpoint
from hatcli.export.session import OnnxModel
from hatcli.recipes.build import build_model

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return packed_blocks(tmp_path_factory.mktemp("cityscapes"), train=4, val=2, size=(128, 64))


@pytest.fixture
def weights(config) -> str:
    """The state of a network that differs from the one that the config's seed gives."""
    model = build_model(load_config(config, ["seed=5"]))
    torch.save(model.state_dict(), "net.pth")
    return "net.pth"


def as_checkpoint(config: str, weights: str) -> str:
    values = load_config(config).values
    content = {
        "hat_version": "0",
        "step": "float",
        "epoch": 1,
        "config": {"name": "tiny", "values": dict(values)},
        "classes": [],
        "metrics": {},
        "state_dict": torch.load(weights, weights_only=True),
        "ema_state_dict": None,
    }
    save_checkpoint(Path("net.pth.tar"), content)
    return "net.pth.tar"


def test_weights_are_evaluated_as_a_checkpoint_that_holds_them(config, weights, capsys):
    assert run(["eval", config, "--weights", weights, "--json"]) == 0
    printed = capsys.readouterr()
    assert f"next: hat export {config} --weights net.pth" in printed.err
    assert run(["eval", "--ckpt", as_checkpoint(config, weights), "--json", "--out", "c"]) == 0
    one, two = json.loads(printed.out), json.loads(capsys.readouterr().out)
    assert one["metrics"] == two["metrics"]
    assert Path("net.metrics.json").exists()


def test_weights_are_exported_and_the_file_says_from_what(config, weights, capsys):
    assert run(["export", config, "--weights", weights, "--dynamic", "none", "--no-argmax"]) == 0
    assert "tiny.onnx" in capsys.readouterr().out
    onnx_model = OnnxModel(Path("tiny.onnx"))
    assert onnx_model.config == load_config(config)
    assert onnx_model.metadata["hat.trained_with"].startswith("weights ")
    network = build_model(load_config(config)).keep_head("4").eval()
    whole = torch.load(weights, weights_only=True)
    network.load_state_dict({name: whole[name] for name in network.state_dict()})
    images = torch.rand(1, 3, 64, 128)
    torch.testing.assert_close(onnx_model(images), network(images), rtol=0, atol=1e-4)


def test_training_starts_from_the_weights_and_says_so(config, weights, capsys):
    words = ["train", config, "--weights", weights, "epochs=1", "optim.lr=0.0", "--json"]
    assert run([*words, "model.bn_momentum=0.0"]) == 0
    printed = capsys.readouterr()
    assert "weights: net.pth (SHA-256 " in printed.err
    document = json.loads(printed.out)
    assert document["unit"] == "percent"
    assert "weights: net.pth" in Path(document["run"], "train.log").read_text()
    trained = load_checkpoint(Path(document["last"]))["state_dict"]
    started = torch.load(weights, weights_only=True)
    fresh = build_model(load_config(config)).state_dict()
    for name, tensor in started.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(trained[name], tensor), name
    assert not all(torch.equal(fresh[name], tensor) for name, tensor in started.items())


def test_averaging_begins_at_the_weights_too(config, weights, capsys):
    words = ["train", config, "--weights", weights, "epochs=1", "optim.lr=0.0", "--json"]
    assert run([*words, "fit.ema_decay=0.5"]) == 0
    last = json.loads(capsys.readouterr().out)["last"]
    averaged = load_checkpoint(Path(last))["ema_state_dict"]
    name = "encoder.stages.2.0.conv.weight"
    assert torch.equal(averaged[name], torch.load(weights, weights_only=True)[name])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["eval", "--weights", "net.pth"], 2, "--weights: which network?"),
        (["export", "--weights", "net.pth"], 2, "--weights: which network?"),
        (["eval", "CONFIG", "--weights", "no.pth"], 2, "weights not found: no.pth"),
        (["export", "CONFIG", "--weights", "no.pth"], 2, "weights not found: no.pth"),
        (["train", "CONFIG", "--weights", "no.pth"], 2, "weights not found: no.pth"),
        (["eval", "CONFIG", "--weights", "net.pth", "--ckpt", "a.pth"], 2, "two files: a.pth and"),
        (["train", "CONFIG", "--weights", "net.pth", "--resume"], 2, "--resume goes on with one"),
        (["eval", "CONFIG", "--weights", "net.pth", "model.alpha=0.5"], 1, "doesn't fit the model"),
        (["export", "CONFIG", "--weights", "net.pth", "model.alpha=0.5"], 1, "doesn't fit"),
        (["train", "CONFIG", "--weights", "net.pth", "model.alpha=0.5"], 1, "doesn't fit"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(
    config, weights, words, code, message, capsys
):
    before = {path.name for path in Path().iterdir()}
    assert run([config if word == "CONFIG" else word for word in words]) == code
    assert message in capsys.readouterr().err
    assert {path.name for path in Path().iterdir()} == before
