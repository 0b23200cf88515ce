"""hat export of integers, and hat export --verify, by the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from packed import packed_streets
from street_net import write_street_config

from hatcli.cli import run
from hatcli.export.metadata import SEAL, append_metadata, seal

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a calibrated run, and its integers as ONNX."""
    folder = tmp_path_factory.mktemp("integers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = packed_streets(folder / "data", train=6, val=3)
        config = str(write_street_config(folder, data))
        assert run(["train", config, "epochs=2", "fit.val_every=2"]) == 0
        assert run(["train", config, "--step", "calibration"]) == 0
        assert run(["export", "--ckpt", "best.pth", "-o", "street.onnx"]) == 0
    return folder


@pytest.fixture
def street(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "runs", "runs")
    return shutil.copy(made / "street.onnx", "street.onnx")


def changed(path: str, change) -> None:
    """Change a file, and give it a seal that fits."""
    model = onnx.load(path)
    change(model)
    entries = [entry for entry in model.metadata_props if entry.key != SEAL]
    del model.metadata_props[:]
    model.metadata_props.extend(entries)
    Path(path).write_bytes(model.SerializeToString())
    append_metadata(Path(path), {})
    seal(Path(path))


def test_a_calibrated_checkpoint_becomes_integers(street, capsys):
    assert run(["export", "--ckpt", "best.pth", "-o", "again.onnx", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["step"] == "calibration"
    assert document["parity"]["promised"]
    assert document["parity"]["differing"] == 0
    assert document["parity"]["layers"] >= 8
    assert document["fusion"]["float_layers"] == []
    assert document["fusion"]["kernels"]["QLinearConv"] == 4
    stored = {entry.key: entry.value for entry in onnx.load("again.onnx").metadata_props}
    assert json.loads(stored["hat.parity"])["values"] == document["parity"]["values"]


def test_verify_repeats_the_comparison_from_the_file_alone(street, capsys):
    assert run(["export", "--verify", street, "--images", "3"]) == 0
    captured = capsys.readouterr()
    assert "equal to int_infer" in captured.out
    assert "comparing on 3 images of the validation set and 2 made-up ones" in captured.err


def test_verify_makes_images_up_where_there_is_no_data(street, capsys):
    assert run(["export", "--verify", street, "data_rootdir=elsewhere"]) == 0
    captured = capsys.readouterr()
    assert "the validation set can't be read" in captured.err
    assert "comparing on 3 made-up images" in captured.err


def test_verify_finds_a_changed_grid_and_names_the_layer(street, capsys):
    def change(model):
        (node,) = (n for n in model.graph.node if n.op_type == "QuantizeLinear" and
                   n.output[0] == "stem.0")  # fmt: skip
        scale = next(t for t in model.graph.initializer if t.name == node.input[1])
        other = onnx.TensorProto()
        other.CopyFrom(
            numpy_helper.from_array(np.float32(numpy_helper.to_array(scale) * 1.01), "other")
        )
        model.graph.initializer.append(other)
        node.input[1] = "other"

    changed(street, change)
    assert run(["export", "--verify", street]) == 3
    assert "differs from int_infer, first at stem.0" in capsys.readouterr().err


def test_verify_refuses_what_is_no_integer_model(street, capsys):
    assert run(["export", "--ckpt", "float-checkpoint-best.pth.tar", "-o", "float.onnx"]) == 0
    assert run(["export", "--verify", "float.onnx"]) == 1
    assert "not an integer model of hat" in capsys.readouterr().err
    assert run(["export", "--verify", "missing.onnx"]) == 2
    assert run(["export", "--verify", street, "--ckpt", "best.pth"]) == 2


def test_verify_refuses_a_damaged_integer_graph(street, capsys):
    def change(model):
        (entry,) = (e for e in model.metadata_props if e.key == "hat.integer_graph")
        entry.value = entry.value.replace("IntAdd", "IntBad")

    changed(street, change)
    assert run(["export", "--verify", street]) == 1
    assert "its integer graph is damaged" in capsys.readouterr().err


def test_preprocessing_inside_is_compared_behind_it(street, capsys):
    words = ["export", "--ckpt", "best.pth", "--with-preprocess", "-o", "uint8.onnx", "--json"]
    assert run(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["input"].startswith("images uint8 (batch, 3, ")
    assert document["parity"]["differing"] == 0
    assert run(["eval", "uint8.onnx", "--json"]) == 0
    inside = json.loads(capsys.readouterr().out)["metrics"]["mIoU"]
    assert run(["eval", "street.onnx", "--json"]) == 0
    assert abs(inside - json.loads(capsys.readouterr().out)["metrics"]["mIoU"]) < 0.5
    assert run(["export", "--verify", "uint8.onnx"]) == 0


def test_an_exception_in_float_is_named_and_nothing_is_promised(made, street, capsys):
    config = str(made / "street.py")
    exceptions = 'quantize.exceptions=[{"layers":"head","float":true}]'
    start = ["--ckpt", "float-checkpoint-best.pth.tar"]
    assert run(["train", config, "--step", "calibration", *start, exceptions]) == 0
    capsys.readouterr()
    assert run(["export", "--ckpt", "calibration-checkpoint-best.pth.tar", "-o", "f.onnx"]) == 0
    printed = capsys.readouterr().out
    assert "not promised: layers in float or of 16 bits" in printed
    assert "in float: head (Conv): an exception keeps it in float" in printed


def test_a_tensor_of_16_bits_is_named(made, street, capsys):
    config = str(made / "street.py")
    exceptions = 'quantize.exceptions=[{"layers":"stem.0","activation_bits":16}]'
    start = ["--ckpt", "float-checkpoint-best.pth.tar"]
    assert run(["train", config, "--step", "calibration", *start, exceptions]) == 0
    capsys.readouterr()
    words = ["export", "--ckpt", "calibration-checkpoint-best.pth.tar", "-o", "w.onnx", "--json"]
    assert run(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert not document["parity"]["promised"]
    assert document["parity"]["same_class"] > 0.99
    assert document["opset"] == 21
    assert any("16 bits" in layer["why"] for layer in document["fusion"]["float_layers"])


def test_figures_of_other_images_are_worth_a_warning(made, street, capsys):
    config = str(made / "street.py")
    other = 'val.transforms=[{"type":"PadToMultiple","divisor":16}]'
    assert run(["train", config, "--step", "int_infer", other]) == 0
    assert "their rows in the table can't be compared" in capsys.readouterr().err
