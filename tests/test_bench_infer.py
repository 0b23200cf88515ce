import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from color_net import write_checkpoint, write_integers

from hatcli.cli import run
from hatcli.cli._bench_infer import _show
from hatcli.errors import HatError
from hatcli.recipes.bench_infer import BenchRow, InferBench, _Child, _spread
from hatcli.recipes.model_file import open_model_file

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


def test_a_process_that_dies_is_an_error_with_its_last_words(folder, monkeypatch):
    opened = open_model_file(folder / "net.onnx", device=CPU)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(HatError, match=r"net\.onnx: the process that times it died: exit code 1"):
        _Child(opened, (1, 3, 32, 48), 1)


def test_the_spread_is_that_of_the_middle_half():
    assert _spread([1.0] * 7 + [50.0]) == 0
    assert _spread([1.0, 2.0, 3.0, 4.0]) == pytest.approx(2.5 / 2.5)
