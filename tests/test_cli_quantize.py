"""The command hat quantize: what it refuses, prints, and exits with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_cli import probe
from test_quantize_recipe import street  # noqa: F401 - a fixture

from hatcli.cli import run
from hatcli.cli.quantize import _advice, _show
from hatcli.engine.checkpoint import load_checkpoint
from hatcli.quantize.analysis.sensitivity import LayerDamage
from hatcli.recipes.quantizing.quantize import QuantizeResult

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def here(street, tmp_path, monkeypatch) -> Path:  # noqa: F811 - the fixture
    """The folder of the street config; what is written goes elsewhere."""
    monkeypatch.chdir(street)
    return tmp_path / "out"


def float_file() -> str:
    (file,) = Path("runs").rglob("float-checkpoint-best.pth.tar")
    return str(file)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which config?"),
        (["unett"], "no config 'unett'"),
        (["unet"], "calibration: no float checkpoint of unet in runs/"),
        (["unet", "--ckpt", "no/such.pth"], "checkpoint not found: no/such.pth"),
        (["unet", "--weights", "no/such.pth"], "weights not found: no/such.pth"),
        (["unet", "--weights", "a.pth", "--ckpt", "b.pth"], "two files: b.pth and a.pth"),
        (["unet", "--max-drop", "-1"], "--max-drop -1.0: give points from 0 up"),
        (["unet", "--max-drop", "nan"], "--max-drop nan: give points from 0 up"),
        (["unet", "--raise", "int4"], "Invalid value"),
        (["unet", "--images", "0"], "Invalid value"),
        (["unet", "quantize.imges=3"], "quantize: no setting 'imges'"),
    ],
)
def test_wrong_usage_is_one_line_and_a_hint_and_loads_nothing_heavy(words, message, tmp_path):
    code, loaded, out, errors = probe("quantize", *words)
    assert (code, loaded, out) == (2, [], "")
    assert message in errors
    assert len(errors.splitlines()) <= 3


def test_layers_and_steps_fit_80_columns_and_the_next_command_follows(here, capsys):
    assert run(["quantize", "street.py", "--out", str(here), "--ckpt", float_file()]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    tables = [line for line in lines if not line.startswith(("report: ", "onnx: "))]
    assert max(map(len, tables)) <= 80
    heads = ["layer", "kind", "SQNR", "dB", "alone", "dB", "mIoU", "%"]
    assert lines[0].split() == heads
    told = " ".join(captured.out.split())
    assert "alone: of the scores, and mIoU, when this layer alone is quantized" in told
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["depthwise.0"][1] == "depthwise"
    assert [name in rows for name in ("float", "calibration", "int_infer")] == [True] * 3
    assert "next: hat train street.py --out" in captured.err
    assert "--step int_infer --ckpt" in captured.err
    assert "hat export --ckpt" in captured.err
    assert "starting from" not in captured.err


def test_the_newest_float_run_is_taken_and_raised_layers_are_an_override(here, capsys):
    words = ["quantize.weight_bits=2", "--max-drop", "0.5", "--out", "runs"]
    try:
        assert run(["quantize", "street.py", *words]) == 0
        captured = capsys.readouterr()
        assert f"starting from {float_file()} (the newest float run)" in captured.err
        assert "raised to float: within 0.5 points (" in captured.out
        (line,) = [x for x in captured.out.splitlines() if x.startswith("override: ")]
        assert line.startswith("""override: 'quantize.exceptions=[{"layers": """)
        assert line.removeprefix("override: ") in captured.err
        unwrapped = " ".join(captured.out.split())
        assert "its weights have 2 bits alone; to do: quantize.adaround" in unwrapped
    finally:
        for run_folder in Path("runs/street").glob("*-quantize"):
            run_folder.rename(here.parent / run_folder.name)


@pytest.mark.parametrize(("integers", "is_advised"), [(60.5, False), (59.95, False), (59.8, True)])
def test_a_model_that_loses_nothing_but_noise_gets_no_advice(integers, is_advised, capsys):
    layer = LayerDamage(
        "stem", "Conv2d", 30.0, 20.0, 59.0, 0.5, 0.0, 1.0, 8, False, "why", "raise it"
    )
    steps = [
        {"step": step, "metrics": {"mIoU": value}}
        for step, value in {"float": 60.0, "int_infer": integers}.items()
    ]
    document = {"best_by": "mIoU", "steps": steps, "search": None}
    layers = [layer, replace(layer, name="odd", cause="a dead channel", is_fault=True)]
    best = Path("best.pth")
    _show(QuantizeResult(Path("run"), document, layers, best, "mIoU", None, None, None))
    out = capsys.readouterr().out
    assert "odd: a dead channel; to do: raise it" in out
    assert ("stem: why; to do: raise it" in out) == is_advised
    harmless = f"int_infer {integers - 60:+.2f} points against float: no layer needs more bits"
    assert (harmless in out) != is_advised


def test_json_is_the_document_and_nothing_else(here, capsys):
    words = ["--ckpt", float_file(), "--out", str(here), "--json"]
    assert run(["quantize", "street.py", *words]) == 0
    document = json.loads(capsys.readouterr().out)
    written = json.loads((Path(document.pop("run")) / "quantize.json").read_text())
    assert document == written


def test_a_budget_that_is_missed_exits_3_with_everything_written(here, capsys):
    words = ["quantize.weight_bits=2", "--max-drop", "0", "--raise", "int16"]
    code = run(["quantize", "street.py", *words, "--ckpt", float_file(), "--out", str(here)])
    captured = capsys.readouterr()
    assert code == 3
    assert "error: no set of layers in 16 bits keeps the loss within 0" in captured.err
    assert "hint: try --raise float" in captured.err
    assert "NOT within 0 points" in captured.out
    assert list(here.rglob("report.html"))


def test_a_checkpoint_of_another_step_is_refused(here, capsys):
    assert run(["train", "street.py", "--step", "calibration", "--out", str(here),
                "--ckpt", float_file()]) == 0  # fmt: skip
    (calibrated,) = here.rglob("calibration-checkpoint-best.pth.tar")
    assert run(["quantize", "street.py", "--ckpt", str(calibrated), "--out", str(here)]) == 2
    assert "calibration starts from a float checkpoint; " in capsys.readouterr().err
    assert not list(here.rglob("quantize.json"))


@pytest.fixture
def calibrated(here, capsys) -> str:
    words = ["--step", "calibration", "--out", str(here), "--ckpt", float_file()]
    assert run(["train", "street.py", *words]) == 0
    (file,) = here.rglob("calibration-checkpoint-best.pth.tar")
    capsys.readouterr()
    return str(file)


LAYERS = ["input", "stem.0", "down.0", "depthwise.0", "add", "add_1", "head"]


def test_the_forms_of_one_checkpoint_are_compared_layer_by_layer(calibrated, here, capsys):
    assert run(["quantize", "--compare", calibrated, "--images", "2"]) == 0
    head, columns, *rows = capsys.readouterr().out.splitlines()
    assert head == "against float, dB, 2 images"
    assert columns.split() == ["layer", "fake-quantized", "integer", "onnxruntime", "differs"]
    assert [row.split()[0] for row in rows] == LAYERS
    for row in rows:
        name, fake, integer, differing, _, total = row.split()
        assert float(fake) > 25, name
        assert float(integer) == pytest.approx(float(fake), abs=0.5), name
        assert (differing, int(total) > 0) == ("0", True), name
    assert run(["quantize", "--compare", calibrated, "--images", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["rows"]) == LAYERS
    assert document["images"] == 2


def test_two_checkpoints_are_compared_layer_by_layer(calibrated, here, capsys):
    assert run(["quantize", "--compare", float_file(), calibrated]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith(f"calibration-checkpoint-best.pth.tar against {float_file()}, dB, ")
    assert [row.split()[0] for row in rows] == LAYERS
    assert all(20 < float(row.split()[1]) < 60 for row in rows)
    assert run(["quantize", "--compare", calibrated, calibrated]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[1] for row in rows] == ["exact"] * len(LAYERS)


def test_integers_are_compared_with_float_and_onnxruntime(calibrated, here, capsys):
    words = ["--step", "int_infer", "--ckpt", calibrated, "--out", str(here)]
    assert run(["train", "street.py", *words]) == 0
    (integers,) = here.rglob("int_infer-checkpoint-best.pth.tar")
    capsys.readouterr()
    assert run(["quantize", "--compare", str(integers)]) == 0
    _, columns, *rows = capsys.readouterr().out.splitlines()
    assert columns.split() == ["layer", "integer", "onnxruntime", "differs"]
    assert [row.split()[0] for row in rows] == LAYERS
    assert run(["quantize", "--compare", calibrated, str(integers)]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert all(row.split()[1] == "exact" or float(row.split()[1]) > 40 for row in rows)


@pytest.mark.parametrize(
    ("files", "code", "message"),
    [
        ([], 2, "--compare: give one checkpoint or two"),
        (["a", "b", "c"], 2, "--compare: give one checkpoint or two"),
        (["no.pth.tar"], 2, "checkpoint not found: no.pth.tar"),
        (["FLOAT"], 2, "is a float checkpoint, which has one form"),
        (["FLOAT", "OTHER"], 1, "made with batch_transforms "),
    ],
)
def test_what_cannot_be_compared_is_refused(here, files, code, message, capsys):
    if "OTHER" in files:
        numbers = [9.0, 9.0, 9.0]
        node = {"type": "Normalize", "mean": numbers, "std": numbers}
        scaled = f"batch_transforms={[node]}"
        words = ["--step", "calibration", "--out", str(here), scaled]
        state = load_checkpoint(Path(float_file()))["state_dict"]
        here.mkdir()
        torch.save(state, here / "plain.pth")
        assert run(["train", "street.py", *words, "--weights", str(here / "plain.pth")]) == 0
    names = {"FLOAT": [float_file()], "OTHER": list(map(str, here.rglob("*-best.pth.tar")))}
    files = [path for file in files for path in names.get(file, [file])]
    assert run(["quantize", "--compare", *files]) == code
    assert message in capsys.readouterr().err


def test_layers_of_the_same_trouble_share_an_advice():
    trouble = {"cause": "rounding of its result", "remedy": "activation_bits 16"}
    layers = [
        {"name": "stem", **trouble},
        {"name": "fine", "cause": "", "remedy": ""},
        {"name": "head", **trouble},
    ]
    assert _advice(layers) == {
        "rounding of its result; to do: activation_bits 16": ["stem", "head"]
    }
