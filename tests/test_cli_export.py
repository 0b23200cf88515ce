import json
import re

import onnx
import pytest
import torch
from test_cli import probe
from tiny_nets import Halve, randomize_norms
from torch import nn

import hatcli.recipes.exporting.export
from hatcli import __version__
from hatcli.cli import run
from hatcli.config import from_values, show_config
from hatcli.data.classes import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE
from hatcli.engine.checkpoint import load_checkpoint, save_checkpoint
from hatcli.events import size_text
from hatcli.export.check import random_images
from hatcli.export.session import OnnxModel
from hatcli.recipes.build import build_model, model_from_checkpoint
from hatcli.recipes.check import import_user_modules

VALUES = {
    "task": "segmentation",
    "model": {"type": "tiny_registered"},
    "train": {"dataset": {"type": "Cityscapes", "path": "train_lmdb"}},
    "val": {"dataset": {"type": "Cityscapes", "path": "val_lmdb"}, "batch_size": 2},
    "loss": {"type": "CrossEntropy"},
    "metric": {"type": "MeanIoU", "num_classes": 5},
    "epochs": 1,
    "deploy": {"argmax": True, "shape": [1, 3, 16, 24]},
    "imports": ["tiny_registered"],
}
CONFIG = from_values("tiny", VALUES)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder, and batch transforms that don't depend on the shipped ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        hatcli.recipes.exporting.export, "build_batch_transforms", lambda _: nn.Sequential(Halve())
    )
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["-o", "a.txt"], "-o a.txt: the name of an ONNX file ends in .onnx", "hint: -o a.onnx"),
        (["-o", "v1.2"], "ends in .onnx", "hint: -o v1.2.onnx"),
        (["-o", "a.safetensors"], "ends in .onnx", "--format safetensors, or -o a.onnx"),
        (
            ["-o", "a.pth", "--format", "safetensors"],
            "-o a.pth: the name of a file of weights ends in .safetensors",
            "hint: -o a.safetensors",
        ),
        (
            ["-o", "a.onnx", "--format", "safetensors"],
            "ends in .safetensors",
            "give --format onnx, or -o a.safetensors",
        ),
    ],
)
def test_a_name_of_another_format_is_refused(words, message, hint, capsys):
    assert run(["export", "--ckpt", "best.pth", *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert hint in errors


@pytest.mark.parametrize(
    "words", [["--ckpt", "a.onnx"], ["a.onnx"], ["demo", "--weights", "a.onnx"]]
)
def test_an_onnx_file_is_not_exported_again(words, capsys):
    assert run(["export", *words]) == 2
    errors = capsys.readouterr().err
    assert "a.onnx: is an ONNX file already" in errors
    assert "hint: score it: hat eval a.onnx; compare it anew: hat export --verify" in errors


def test_small_files_are_told_in_kilobytes():
    assert size_text(8_049) == "8.0 kB"
    assert size_text(99_999) == "100.0 kB"
    assert size_text(100_000) == "0.1 MB"


def checkpoint(folder, step="float", classes=("a", "b", "c", "d", "e"), name="float.pth.tar"):
    import_user_modules(CONFIG)
    model = build_model(CONFIG)
    randomize_norms(model)
    path = folder / name
    content = {
        "step": step,
        "epoch": 3,
        "config": {"name": "tiny", "values": dict(CONFIG.values)},
        "state_dict": model.state_dict(),
        "ema_state_dict": None,
        "metrics": {"mIoU": 41.5, "IoU.a": float("nan")},
        "classes": list(classes),
        "hat_version": "0.0.1",
    }
    save_checkpoint(path, content)
    return path


def test_a_checkpoint_alone_is_enough(folder, capsys):
    path = checkpoint(folder)
    assert run(["export", "--ckpt", str(path), "--dynamic", "none"]) == 0
    captured = capsys.readouterr()
    first, *rest = captured.out.splitlines()
    assert re.match(r"tiny\.onnx   \d\.\d kB   float   opset 18   7 nodes: 3 Conv, 1 Relu", first)
    assert rest[:2] == [
        "  input   images float32 (1, 3, 16, 24) after no batch transforms",
        "  output  labels int64 (1, 1, 8, 12)",
    ]
    assert [line.split(" differs")[0] for line in rest[2:]] == ["  check   1x3x16x24:"] * 2
    assert all("same class on 100.000 %" in line for line in rest[2:])
    assert captured.err.splitlines()[-1] == "next: hat eval tiny.onnx"
    assert sorted(p.name for p in folder.iterdir()) == ["float.pth.tar", "tiny.onnx"]


def test_any_size_and_batch_is_open_by_default_and_two_shapes_are_checked(folder, capsys):
    assert run(["export", "--ckpt", str(checkpoint(folder)), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    first, second = (check["shape"] for check in document["checks"])
    assert first == [1, 3, 16, 24]
    assert all(a != b for a, b in zip(first, second, strict=True) if a != 3)
    assert OnnxModel(folder / "tiny.onnx").input_shape == ("batch", 3, "4*h", "4*w")


def test_the_file_computes_what_the_checkpoint_computes(folder):
    path = checkpoint(folder)
    arguments = ["--no-argmax", "--with-preprocess", "--dynamic", "both", "-o", "a.onnx"]
    assert run(["export", str(path), *arguments]) == 0
    onnx_model, images = OnnxModel(folder / "a.onnx"), random_images((2, 3, 20, 12), seed=1)
    model = model_from_checkpoint(load_checkpoint(path))[1]
    torch.testing.assert_close(onnx_model(images), model(Halve()(images)), rtol=0, atol=1e-5)
    assert onnx_model.config == CONFIG


def test_the_json_is_the_result_alone(folder, capsys):
    arguments = ["--shape", "2,3,32,16", "--opset", "20", "--tolerance", "1e-3", "--json"]
    arguments += ["--dynamic", "none"]
    assert run(["export", "--ckpt", str(checkpoint(folder)), *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["file"] == "tiny.onnx"
    assert document["size_bytes"] == (folder / "tiny.onnx").stat().st_size
    assert (document["opset"], document["step"], document["tolerance"]) == (20, "float", 1e-3)
    assert document["input"] == "images float32 (2, 3, 32, 16)"
    assert [check["shape"] for check in document["checks"]] == [[2, 3, 32, 16]] * 2
    assert all(0 < check["relative"] < 1e-5 for check in document["checks"])


def test_the_file_tells_what_its_user_may_ask(folder):
    path = checkpoint(folder, classes=CITYSCAPES_CLASSES)
    assert run(["export", "--ckpt", str(path)]) == 0
    metadata = OnnxModel(folder / "tiny.onnx").metadata
    assert metadata["hat.step"] == "float"
    assert metadata["hat.color_order"] == "RGB"
    assert metadata["hat.task"] == "segmentation"
    assert json.loads(metadata["hat.transforms"]) == CONFIG["val"].get("transforms", [])
    assert json.loads(metadata["hat.color_matrix"]) == []  # Halve is no transform of ours
    assert (metadata["hat.version"], metadata["hat.trained_with"]) == (__version__, "0.0.1")
    values = {
        key: json.loads(metadata[f"hat.{key}"])
        for key in (
            "classes",
            "palette",
            "metrics",
            "preprocess",
            "argmax",
            "size_divisor",
            "epoch",
        )
    }
    assert values["classes"] == list(CITYSCAPES_CLASSES)
    assert values["palette"] == [list(color) for color in CITYSCAPES_PALETTE]
    assert values["metrics"] == {"mIoU": 41.5, "IoU.a": None}
    assert (values["preprocess"], values["argmax"]) == (False, True)
    assert (values["size_divisor"], values["epoch"]) == (4, 3)
    check = json.loads(metadata["hat.check"])
    assert check["tolerance"] == 1e-4
    assert len(check["comparisons"]) == 2


def test_the_newest_run_is_found_and_named(folder, capsys):
    run_folder = folder / "runs" / "tiny" / "2026-11-21_153012-float"
    run_folder.mkdir(parents=True)
    checkpoint(run_folder, name="float-checkpoint-best.pth.tar")
    assert run(["export", "--ckpt", "best.pth"]) == 0
    assert "2026-11-21_153012-float" in capsys.readouterr().err.splitlines()[0]
    assert (folder / "tiny.onnx").exists()


def test_settings_follow_the_config_file_or_the_overrides(folder):
    path = checkpoint(folder)
    changed = CONFIG.with_overrides(["deploy.argmax=False", "deploy.shape=[1,3,8,8]"])
    (folder / "mine.py").write_text(show_config(changed))
    fixed = ["--ckpt", str(path), "--dynamic", "none"]
    assert run(["export", "--config", "mine.py", *fixed]) == 0
    assert run(["export", *fixed, "deploy.argmax=False"]) == 0
    assert OnnxModel(folder / "mine.onnx").input_shape == (1, 3, 8, 8)
    assert not OnnxModel(folder / "mine.onnx").argmax
    assert OnnxModel(folder / "tiny.onnx").input_shape == (1, 3, 16, 24)
    assert not OnnxModel(folder / "tiny.onnx").argmax


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["other.py"], 1, "trained with model {'type': 'tiny_registered'}, the config asks for"),
        (["model.num_classes=7"], 1, "the config asks for {'type': 'tiny_registered', 'num_cla"),
        (["model.num_clases=7"], 2, "has no argument 'num_clases'"),
        (["--onnx-name", "no/such/a.onnx"], 1, "no/such/a.onnx: no such folder: no/such"),
        (["--onnx-name", "taken.onnx"], 2, "taken.onnx: exists already"),
        (["--shape", "1,3,18,24"], 2, "shape 18x24: this model takes multiples of 4"),
        (["--opset", "12"], 2, "opset 12: choose 18 to 25"),
        (["--tolerance", "1e-12"], 3, "tiny.onnx: differs from torch by"),
    ],
)
def test_a_refusal_is_short_and_leaves_no_file(arguments, code, message, folder, capsys):
    path = checkpoint(folder)
    (folder / "taken.onnx").write_bytes(b"taken")
    other = from_values("other", {**VALUES, "model": {"type": "unet"}})
    (folder / "other.py").write_text(show_config(other))
    before = sorted(folder.rglob("*"))
    assert run(["export", "--ckpt", str(path), *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    error = captured.err[captured.err.index("error: ") :]
    assert message in error
    assert len(error.splitlines()) <= 2
    assert sorted(folder.rglob("*")) == before
    assert (folder / "taken.onnx").read_bytes() == b"taken"


def test_a_file_is_replaced_when_asked_for(folder):
    (folder / "tiny.onnx").write_bytes(b"old")
    assert run(["export", "--ckpt", str(checkpoint(folder)), "--overwrite"]) == 0
    assert OnnxModel(folder / "tiny.onnx").argmax


def test_a_wrong_weight_in_the_graph_exits_3_and_keeps_the_old_file(folder, monkeypatch, capsys):
    export = hatcli.recipes.exporting.export.export_onnx

    def export_wrongly(*arguments, **settings):
        exported = export(*arguments, **settings)
        bias = next(t for t in exported.model.graph.initializer if t.name == "down.bias")
        wrong = onnx.numpy_helper.to_array(bias) + 0.5
        bias.CopyFrom(onnx.numpy_helper.from_array(wrong, bias.name))
        return exported

    monkeypatch.setattr(hatcli.recipes.exporting.export, "export_onnx", export_wrongly)
    (folder / "tiny.onnx").write_bytes(b"old")
    assert run(["export", "--ckpt", str(checkpoint(folder)), "--overwrite"]) == 3
    assert "first at node down/Conv" in capsys.readouterr().err
    assert (folder / "tiny.onnx").read_bytes() == b"old"
    assert sorted(p.name for p in folder.iterdir()) == ["float.pth.tar", "tiny.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which checkpoint?"),
        (["--ckpt", "no.pth"], "checkpoint not found: no.pth"),
        (["--ckpt", "no.pth", "--shape", "1,3"], "give four sizes"),
        (["a.pth", "--ckpt", "b.pth"], "two files to export: a.pth and b.pth"),
        (["--dynamic", "all", "--ckpt", "a.pth"], "Invalid value"),
    ],
)
def test_wrong_usage_loads_nothing_heavy(arguments, message):
    code, loaded, out, errors = probe("export", *arguments)
    assert (code, loaded, out) == (2, [], "")
    assert message in errors
