"""The page of a run from its folder: where its numbers come from, and which run it is."""

import json
import shlex
from pathlib import Path

import pytest
from html_walker import walk
from made_run import COUNTS, made_run, metric_of

from hatcli.errors import UsageError
from hatcli.recipes.reporting.page import describe_run, write_run_page
from hatcli.recipes.runs.confusion import save_confusion
from hatcli.recipes.runs.find import find_run, run_of_checkpoint
from hatcli.recipes.runs.folder import checkpoint_in, write_json


def steps_of(run_folder: Path) -> list:
    return json.loads((run_folder / "summary.json").read_text())["steps"]


def test_a_page_tells_what_the_folder_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = made_run(Path("runs"), "2026-11-22_051519-float", "float")
    save_confusion(folder, metric_of(COUNTS))
    document = describe_run(folder)
    assert (document["name"], document["step"], document["seconds"]) == ("unet", "float", 42.5)
    assert document["about"] == "unet · step float · cpu · batch 4"
    assert document["remarks"] == ["layer a: all results are 0", "b: odd"]
    assert document["confusion"][0].tolist() == COUNTS.tolist()
    assert document["missing"] == {}
    text = walk(write_run_page(folder).read_text()).text
    assert "mIoU 60.00 % at epoch 2 of 3." in text
    assert f"hat report {folder}" in text


def test_the_commands_to_go_on_keep_what_holds_for_all_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = made_run(Path("runs"), "2026-11-22_051519-float", "float")
    best = checkpoint_in(folder, "float")
    lines = [line for part in describe_run(folder)["commands"].values() for line in part]
    assert f"hat train unet data_rootdir=/data --step calibration --ckpt {best}" in lines
    assert f"hat quantize unet data_rootdir=/data --ckpt {best}" in lines
    assert f"hat train --resume-from {folder}" in lines
    assert lines[0] == "hat train unet --step float data_rootdir=/data optim.lr=0.1"
    elsewhere = made_run(tmp_path / "other", "2026-11-22_051519-calibration", "calibration")
    (elsewhere / "args.txt").write_text("hat train --step calibration -c 'my unet.py' val.x=1\n")
    lines = [line for part in describe_run(elsewhere)["commands"].values() for line in part]
    words = [shlex.split(line) for line in lines if "--step qat" in line]
    assert words[0][2:6] == ["my unet.py", "val.x=1", "--out", str(tmp_path / "other")]


def test_steps_before_and_after_a_run_stand_side_by_side(tmp_path):
    first = made_run(tmp_path, "2026-11-22_010000-float", "float")
    second = made_run(
        tmp_path, "2026-11-22_020000-calibration", "calibration", before=steps_of(first)
    )
    third = made_run(tmp_path, "2026-11-22_030000-qat", "qat", before=steps_of(second))
    made_run(tmp_path, "2026-11-22_040000-float", "float")  # of another model
    for folder in (first, second, third):
        steps = describe_run(folder)["steps"]
        assert [one["step"] for one in steps] == ["float", "calibration", "qat"]
        assert [one["own"] for one in steps] == [f == folder for f in (first, second, third)]


def test_the_newest_quantization_of_the_same_float_model_is_linked(tmp_path):
    folder = made_run(tmp_path, "2026-11-22_010000-float", "float")
    other_float = tmp_path / "unet" / "2026-11-21_010000-float"
    for hour, source in ((2, folder), (3, folder), (4, other_float)):
        name = f"2026-11-22_0{hour}0000"
        other = made_run(tmp_path, f"{name}-calibration", "calibration", quantize="quantize.json")
        document = {"checkpoint": str(source / "x.pth.tar"), "best_by": "mIoU", "layers": []}
        write_json(other / "quantize.json", document)
        (other / "report.html").write_text("")
    found = describe_run(folder)["quantization"]
    assert found["link"] == "../2026-11-22_030000-calibration/report.html"
    assert [one["step"] for one in describe_run(folder)["steps"]] == ["float"]


def test_a_run_that_was_stopped_tells_how_far_it_came(tmp_path):
    folder = made_run(tmp_path, "2026-11-22_010000-float-2", "float", summary=False)
    document = describe_run(folder)
    assert (document["epochs"], document["planned"], document["best_epoch"]) == (3, 30, 2)
    assert document["metrics"] == {"mIoU": 60.0}
    page = walk(write_run_page(folder).read_text())
    assert "mIoU 60.00 % at epoch 2 of 3 done, 30 planned." in page.text
    assert f"the end of the run: hat train --resume-from {folder}" in page.text


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no run folder"):
        describe_run(tmp_path)


def test_runs_are_found_by_folder_name_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = made_run(Path("runs"), "2026-11-22_010000-float", "float")
    new = made_run(Path("runs"), "2026-11-22_020000-qat", "qat")
    assert find_run(None) == find_run("unet") == new
    assert find_run(str(old)) == old
    assert run_of_checkpoint(str(checkpoint_in(old, "float")))[:2] == (
        checkpoint_in(old, "float"), old,
    )  # fmt: skip
    assert run_of_checkpoint("best.pth")[1] == new
    Path("lone.pth.tar").write_bytes(b"")
    for function, text, message in (
        (find_run, "unett", "no run of unett in runs/"),
        (find_run, str(tmp_path), "is no run folder"),
        (find_run, "runs/unet/none", "is no run folder"),
        (run_of_checkpoint, "none.pth.tar", "checkpoint not found"),
        (run_of_checkpoint, "lone.pth.tar", "doesn't lie in a run folder"),
    ):
        with pytest.raises(UsageError, match=message):
            function(text)
