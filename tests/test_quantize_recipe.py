"""What hat quantize finds out and leaves behind, on drawn streets."""

import json
import math
from pathlib import Path

import onnx
import pytest
import torch
from packed import packed_streets
from small_graphs import finished
from street_net import write_street_config

import hatcli.recipes.quantizing.files
from hatcli.cli import run
from hatcli.config import load_config
from hatcli.engine.checkpoint import load_checkpoint
from hatcli.errors import CheckFailed
from hatcli.events import Note, Warned
from hatcli.recipes.build import model_from_checkpoint
from hatcli.recipes.check import check_config
from hatcli.recipes.quantizing.quantize import QuantizeSettings, quantize_model
from hatcli.recipes.training.predecessor import open_predecessor

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    """A folder with street.py, its data and a float run."""
    folder = tmp_path_factory.mktemp("streets")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = packed_streets(folder / "data", train=9, val=4)
        config = str(write_street_config(folder, data))
        assert run(["train", config]) == 0
    return folder


def analysed(street, tmp_path, *overrides, **settings):
    """The result and the events of one analysis, whose run folder is in tmp_path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(street)
        config = load_config("street.py", list(overrides))
        check_config(config)
        (file,) = (street / "runs").rglob("float-checkpoint-best.pth.tar")
        before = open_predecessor(file, "calibration", config, target="street.py")
        return finished(quantize_model(config, before, QuantizeSettings(**settings), out=tmp_path))


@pytest.fixture(scope="module")
def plain(street, tmp_path_factory):
    return analysed(street, tmp_path_factory.mktemp("plain"))[0]


@pytest.fixture(scope="module")
def raised(street, tmp_path_factory):
    folder = tmp_path_factory.mktemp("raised")
    return analysed(street, folder, "quantize.weight_bits=2", max_drop=0.5)[0]


def loaded(result):
    return json.loads((result.run / "quantize.json").read_text())


def test_an_analysis_leaves_a_run_folder_with_everything(plain):
    names = {path.name for path in plain.run.iterdir()}
    assert plain.run.name.endswith("-quantize")
    assert names >= {
        "config.py", "args.txt", "env.json", "train.log", "summary.json", "quantize.json",
        "report.html", "calibration-checkpoint-best.pth.tar", "street.onnx",
    }  # fmt: skip
    assert "override.txt" not in names
    assert plain.override is None
    assert plain.met is None
    assert "7 layers" in (plain.run / "report.html").read_text()


def test_the_document_has_steps_layers_pictures_parity_and_times(plain):
    document = loaded(plain)
    assert [step["step"] for step in document["steps"]] == ["float", "calibration", "int_infer"]
    assert (document["version"], document["config"], document["target"]) == (1, "street", "ort")
    assert document["best_by"] == "mIoU"
    first = document["steps"][0]["metrics"]["mIoU"]
    assert [layer["name"] for layer in document["layers"]] == [x.name for x in plain.layers]
    for layer in document["layers"]:
        assert abs(layer["alone_metric"] - first) < 5
        assert sum(layer["activation_hist"]["counts"]) > 0
    assert {name for name, points in document["scatter"].items() if len(points["float"]) > 100} == {
        layer["name"] for layer in document["layers"][:5]
    }
    assert document["parity"]["differing"] == 0
    assert document["fusion"]["kernels"]["QLinearConv"] == 4
    operators = {row["operator"]: row["count"] for row in document["latency"]}
    assert operators["QLinearConv"] == 4
    assert all(row["ms"] >= 0 for row in document["latency"])
    assert document["search"] is document["override"] is None
    assert document["seconds"] > 0


def test_the_checkpoint_is_a_calibration_that_scores_what_the_document_says(plain, capsys):
    document = loaded(plain)
    for step, file in (("calibration", plain.best), ("int_infer", plain.exported.file)):
        assert run(["eval", "--ckpt", str(file), "--json"]) == 0
        scored = json.loads(capsys.readouterr().out)["metrics"]["mIoU"]
        expected = next(entry for entry in document["steps"] if entry["step"] == step)
        assert scored == pytest.approx(expected["metrics"]["mIoU"], abs=1e-6)
    content = load_checkpoint(plain.best)
    assert content["step"] == "calibration"
    assert [entry["step"] for entry in content["lineage"]] == ["float"]


def test_layers_are_raised_until_the_integers_are_within_the_budget(raised):
    document = loaded(raised)
    steps = {step["step"]: step["metrics"]["mIoU"] for step in document["steps"]}
    search = document["search"]
    assert steps["float"] - steps["int_infer"] > 0.5
    assert steps["float"] - steps["int_infer raised"] <= 0.5
    assert raised.met is True
    assert search["met"] is True
    assert 0 < len(search["raised"]) < len(raised.layers)
    assert search["tried"] == len(search["trials"]) > 1
    assert search["drop"] == pytest.approx(steps["float"] - steps["int_infer raised"])
    assert search["metric"] == steps["int_infer raised"]
    assert search["images"] == 4


def test_the_override_makes_the_config_that_the_checkpoint_holds(raised, street):
    override = (raised.run / "override.txt").read_text().strip()
    assert override == raised.override
    config = load_config(str(street / "street.py"), ["quantize.weight_bits=2", override])
    content = load_checkpoint(raised.best)
    assert content["config"]["values"]["quantize"] == config["quantize"]
    assert config["quantize"]["exceptions"] == loaded(raised)["search"]["raised"]
    assert load_config(str(raised.run / "config.py"))["quantize"] == config["quantize"]
    _, model = model_from_checkpoint(content)
    kept = [exception["layers"] for exception in config["quantize"]["exceptions"]]
    assert all(model.get_submodule(name).weight_quantizer is None for name in kept)


def test_the_raised_model_is_exported_and_scores_so(raised, capsys):
    assert run(["eval", str(raised.exported.file), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)["metrics"]["mIoU"]
    assert scored == pytest.approx(raised.document["search"]["metric"], abs=0.5)
    kinds = {node.op_type for node in onnx.load(str(raised.exported.file)).graph.node}
    assert "QuantizeLinear" in kinds
    assert raised.document["fusion"]["float_layers"]


def test_the_next_steps_start_from_it(raised, street, monkeypatch):
    monkeypatch.chdir(street)
    words = ["train", "street.py", "quantize.weight_bits=2", raised.override]
    last = [*words, "--ckpt", str(raised.best), "--out", str(raised.run.parent)]
    assert run([*last, "--step", "int_infer"]) == 0
    assert run([*last, "--step", "qat", "epochs=1"]) == 0
    (integers,) = raised.run.parent.rglob("int_infer-checkpoint-best.pth.tar")
    found = load_checkpoint(integers)["metrics"]["mIoU"]
    assert found == pytest.approx(raised.document["search"]["metric"], abs=1e-6)


def test_a_budget_that_is_met_raises_nothing(street, tmp_path):
    result, _ = analysed(street, tmp_path, max_drop=90.0)
    assert result.met is True
    assert result.document["search"]["raised"] == []
    assert result.document["search"]["tried"] == 0
    assert result.override is None


def test_16_bits_that_cannot_meet_it_say_so(street, tmp_path):
    words = ["quantize.weight_bits=2"]
    result, _ = analysed(street, tmp_path, *words, max_drop=0.0, how="int16")
    search = result.document["search"]
    assert result.met is search["met"] is False
    assert search["drop"] > 0
    assert all(set(one) == {"layers", "activation_bits"} for one in search["raised"])


def test_equalised_and_per_tensor_weights_are_analysed_too(street, tmp_path):
    words = ["quantize.equalize=true", "quantize.weight_granularity=tensor"]
    result, _ = analysed(street, tmp_path, *words)
    damages = {layer.name: layer.alone_sqnr for layer in result.layers}
    assert all(value > 15 for value in damages.values()), damages


def test_learned_rounding_keeps_its_biases_when_layers_are_raised(street, tmp_path):
    words = ["quantize.weight_bits=2", "quantize.adaround={'iterations': 20}"]
    result, _ = analysed(street, tmp_path, *words, max_drop=0.5)
    assert result.met is not None
    steps = {step["step"]: step["metrics"]["mIoU"] for step in result.document["steps"]}
    assert math.isfinite(steps["int_infer"])


def test_a_file_that_cannot_be_exported_leaves_the_rest(street, tmp_path, monkeypatch):
    def differ(*_, **__):  # as on a processor that computes int8 otherwise
        yield Note("comparing")
        raise CheckFailed("street.onnx: differs from int_infer", "see docs")

    monkeypatch.setattr(hatcli.recipes.quantizing.files, "export_checkpoint", differ)
    result, events = analysed(street, tmp_path)
    assert result.exported is None
    warnings = [str(event) for event in events if isinstance(event, Warned)]
    assert "warning: no ONNX file: street.onnx: differs from int_infer (see docs)" in warnings
    assert loaded(result)["parity"] is None
    assert loaded(result)["export_error"] == "street.onnx: differs from int_infer"
    assert (result.run / "report.html").exists()


def test_a_planted_fault_is_first_in_the_document(street, tmp_path, monkeypatch):
    monkeypatch.chdir(street)
    (file,) = (street / "runs").rglob("float-checkpoint-best.pth.tar")
    content = load_checkpoint(file)
    state = content["state_dict"]
    state["down.0.weight"][5] *= 1000
    torch.save(state, tmp_path / "faulty.pth")
    config = load_config("street.py")
    check_config(config)
    before = open_predecessor(
        tmp_path / "faulty.pth", "calibration", config, target="street.py", is_weights=True
    )
    result, _ = finished(quantize_model(config, before, QuantizeSettings(), out=tmp_path))
    first = loaded(result)["layers"][0]
    assert first["name"] == "down.0"
    assert first["cause"].startswith("one channel has a range ")
    assert first["cause"].endswith(": channel 5")
