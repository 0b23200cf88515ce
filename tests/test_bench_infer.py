import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from color_net import ColorMap, write_checkpoint, write_integers

from hatcli.cli import run
from hatcli.cli._bench_infer import _show
from hatcli.engine.checkpoint import load_checkpoint
from hatcli.errors import HatError
from hatcli.recipes.bench.infer import BenchRow, InferBench, _Child, _spread
from hatcli.recipes.scoring.model_file import open_model_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    integers = write_integers(folder / "int.pth.tar", write_checkpoint(folder / "float.pth.tar"))
    words = ["export", "--ckpt", str(integers), "-o", str(folder / "net.onnx")]
    assert run([*words, "--dynamic", "none"]) == 0
    return folder


def test_files_are_timed_scored_and_weighed_each_in_a_process_of_its_own(
    folder, monkeypatch, capsys
):
    monkeypatch.chdir(folder)
    files = ["float.pth.tar", "net.onnx"]
    assert run(["bench", "infer", *files, "--rounds", "4", "--threads", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    first, second = document["rows"]
    assert [first["kind"], second["kind"]] == ["PyTorch float", "ONNX int8"]
    assert document["shape"] == [1, 3, 32, 48]
    for row, name in ((first, files[0]), (second, files[1])):
        assert row["size_bytes"] == Path(name).stat().st_size
        assert (row["metric"], row["score"]) == ("mIoU", 100)  # it sees colours without training
        assert 0 < row["ms"]["1"] < 1000
        assert row["images_per_s"] == pytest.approx(1000 / row["ms"]["1"])
        assert 1 << 20 < row["start_bytes"] < row["peak_bytes"]
    assert second["peak_bytes"] < first["peak_bytes"] / 2  # it needs no torch
    assert document["images"] == 4


SIZES = {
    "what a file is exported for": (["open.onnx"], [1, 3, 64, 80]),
    "the only size that one takes": (["float.pth.tar", "open.onnx", "fixed.onnx"], [1, 3, 48, 64]),
    "what the first is made for": (["float.pth.tar", "open.onnx"], [1, 3, 32, 48]),
}


@pytest.mark.parametrize("name", SIZES)
def test_files_are_timed_at_a_size_that_all_of_them_take(folder, monkeypatch, capsys, name):
    monkeypatch.chdir(folder)
    for file, shape, dynamic in (("open", "1,3,64,80", "both"), ("fixed", "1,3,48,64", "none")):
        words = ["export", "--ckpt", "float.pth.tar", "-o", f"{file}.onnx"]
        if not Path(f"{file}.onnx").exists():
            assert run([*words, "--shape", shape, "--dynamic", dynamic]) == 0
    files, shape = SIZES[name]
    capsys.readouterr()
    short = ["--rounds", "1", "--threads", "1", "--images", "0", "--json"]
    assert run(["bench", "infer", *files, *short]) == 0
    assert json.loads(capsys.readouterr().out)["shape"] == shape
    assert run(["bench", "infer", "fixed.onnx", "net.onnx", *short]) == 2
    assert "net.onnx takes images of 1x3x32x48 alone, fixed.onnx of 1x3x48x64" in (
        capsys.readouterr().err
    )


def test_plain_weights_of_a_network_are_timed_beside_a_file(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    checkpoint = load_checkpoint(Path("float.pth.tar"))
    torch.save(checkpoint["state_dict"], "plain.pth")
    values = checkpoint["config"]["values"]
    Path("color.py").write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()))
    words = ["color.py", "net.onnx", "--rounds", "1", "--threads", "1", "--json"]
    assert run(["bench", "infer", *words, "--weights", "plain.pth"]) == 0
    first, second = json.loads(capsys.readouterr().out)["rows"]
    assert [Path(row["file"]).name for row in (first, second)] == ["plain.pth", "net.onnx"]
    assert (first["kind"], first["score"]) == ("PyTorch float", 100)
    assert run(["bench", "infer", "--weights", "plain.pth"]) == 2
    assert "--weights: of which network?" in capsys.readouterr().err


def row(place: int) -> BenchRow:
    return BenchRow(
        Path(f"{place}.onnx"), "ONNX int8", place == 2, 4_000_000 // place, "mIoU", 50.0 + place,
        {1: 40.0 / place, 2: 20.0 / place}, {1: 0.0, 2: 0.0}, 50.0 * place, 100 << 20, 50 << 20,
    )  # fmt: skip


def test_the_table_has_ratios_to_the_first_row_and_fits_80_columns(capsys):
    _show(InferBench((row(1), row(2)), (1, 3, 8, 8), (1, 2), "val", 9, "made"))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    table = [line.split() for line in lines]
    assert table[1][:3] == ["MB", "mIoU", "%"]
    assert ["1", "ONNX", "int8", "4.00", "51.00", "40.0", "20.0", "50.0", "100"] in table
    ratios = ["2", "ONNX", "int8", "0.50x", "+1.00", "0.50x", "0.50x", "2.00x", "1.00x"]
    assert ratios in table
    assert "2  2.onnx   (prepares the images itself)" in lines
    _show(InferBench((replace(row(1), metric="", score=None),), (1, 3, 8, 8), (1,), "val", 0, "m"))
    alone = capsys.readouterr().out
    assert "mIoU" not in alone
    assert "against" not in alone


def test_without_data_there_is_no_score_but_a_reason(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    changes = [
        'val.dataset={"type": "Cityscapes", "path": "nowhere"}',
        'val.transforms=[{"type": "PadToMultiple"}]',
    ]
    words = ["--rounds", "1", "--threads", "1", "--json"]
    assert run(["bench", "infer", str(folder / "net.onnx"), *changes, *words]) == 0
    out, errors = capsys.readouterr()
    assert json.loads(out)["rows"][0]["score"] is None
    assert "no score: " in errors
    assert "nowhere" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which files?"),
        (["nothing.onnx"], "no such file: nothing.onnx"),
        (["net.onnx", "--shape", "1,3,64,64"], "expects float32 (1, 3, 32, 48)"),
        (["net.onnx", "--shape", "2,3,32,48"], "takes 1 images at a time, not 2"),
        (["net.onnx", "--threads", "1,x"], "--threads '1,x'"),
        (["foreign.onnx"], "carries no config"),
    ],
)
def test_what_cannot_be_timed_is_said(folder, monkeypatch, capsys, words, message):
    monkeypatch.chdir(folder)
    if words == ["foreign.onnx"]:
        model = onnx.load("net.onnx")
        del model.metadata_props[:]
        onnx.save(model, "foreign.onnx")
    assert run(["bench", "infer", *words]) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_size_that_a_network_does_not_take_is_said(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(ColorMap, "size_divisor", 16, raising=False)
    assert run(["bench", "infer", "float.pth.tar", "--shape", "1,3,40,48"]) == 2
    assert "float.pth.tar: takes multiples of 16, not 40x48" in capsys.readouterr().err


def test_a_process_that_dies_is_an_error_with_its_last_words(folder, monkeypatch):
    opened = open_model_file(folder / "net.onnx", device=CPU)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(HatError, match=r"net\.onnx: the process that times it died: exit code 1"):
        _Child(opened, (1, 3, 32, 48), 1)


def test_the_spread_is_that_of_the_middle_half():
    assert _spread([1.0] * 7 + [50.0]) == 0
    assert _spread([1.0, 2.0, 3.0, 4.0]) == pytest.approx(2.5 / 2.5)
