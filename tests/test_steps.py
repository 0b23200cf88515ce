"""What a step starts from, its config, and the table of accuracies: nothing of it loads torch."""

import os
import sys
from pathlib import Path

import pytest

from hatcli.cli import run
from hatcli.config import from_values, load_config
from hatcli.errors import ConfigError, UsageError
from hatcli.recipes.check import check_config
from hatcli.recipes.runs.folder import find_checkpoint, newest_run
from hatcli.recipes.steps import (
    accuracy_table,
    config_of_step,
    find_predecessor,
    step_entry,
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_run(stamp: str, step: str, name: str = "unet", root: str = "runs") -> Path:
    folder = Path(root) / name / f"2026-01-01_{stamp}-{step}"
    folder.mkdir(parents=True)
    (folder / "config.py").touch()
    (folder / f"{step}-checkpoint-best.pth.tar").touch()
    return folder


def start_of(step: str, **settings: object) -> str:
    """The step of the checkpoint that a step would start from, and its time."""
    file, line = find_predecessor("unet", step, target="unet", **settings)
    assert str(file) in line
    return f"{file.name.partition('-')[0]} {file.parent.name[11:17]}"


def test_calibration_takes_the_newest_float_run():
    make_run("100000", "float")
    make_run("110000", "float")
    make_run("120000", "qat")
    make_run("130000", "float", name="other")
    assert start_of("calibration") == "float 110000"


def test_qat_takes_a_calibration_unless_a_float_run_is_newer():
    make_run("100000", "float")
    make_run("110000", "calibration")
    assert start_of("qat") == "calibration 110000"
    make_run("120000", "float")
    assert start_of("qat") == "float 120000"
    make_run("130000", "calibration")
    assert start_of("qat") == "calibration 130000"


def test_int_infer_takes_the_newest_of_qat_and_calibration():
    make_run("100000", "calibration")
    assert start_of("int_infer") == "calibration 100000"
    make_run("110000", "qat")
    assert start_of("int_infer") == "qat 110000"
    make_run("120000", "calibration")
    make_run("130000", "float")
    assert start_of("int_infer") == "calibration 120000"


def test_of_two_runs_of_one_second_the_later_is_the_newest_even_when_the_other_is_touched():
    early, late = make_run("100000", "float"), make_run("100000", "calibration")
    os.utime(early / "config.py", (1, 1))
    os.utime(late / "config.py", (2, 2))
    (early / "float-checkpoint-best.metrics.json").touch()
    assert newest_run("unet") == late
    assert start_of("qat") == "calibration 100000"


def test_a_newest_run_that_has_no_best_yet_is_named():
    make_run("100000", "float")
    run_folder = make_run("110000", "float")
    best = run_folder / "float-checkpoint-best.pth.tar"
    best.rename(run_folder / "float-checkpoint-last.pth.tar")
    with pytest.raises(UsageError, match="has no best checkpoint yet") as found:
        start_of("calibration")
    assert f"hat train --resume-from {run_folder}" in found.value.hint


def test_runs_are_looked_for_where_they_were_put():
    make_run("100000", "float", root="elsewhere")
    assert start_of("calibration", root=Path("elsewhere")) == "float 100000"
    with pytest.raises(UsageError, match="no float checkpoint of unet in runs/"):
        start_of("calibration")


def test_a_named_checkpoint_is_taken_whatever_is_newer():
    make_run("100000", "calibration")
    float_run = make_run("110000", "float")
    named = str(float_run / "float-checkpoint-best.pth.tar")
    assert start_of("qat", ckpt=named) == "float 110000"
    assert start_of("qat", ckpt="calibration-checkpoint-best.pth.tar") == "calibration 100000"
    assert start_of("qat", ckpt="best.pth") == "float 110000"
    with pytest.raises(UsageError, match=r"checkpoint not found: gone/best\.pth"):
        start_of("qat", ckpt="gone/best.pth")


@pytest.mark.parametrize("step", ["calibration", "qat", "int_infer"])
def test_without_a_float_checkpoint_the_hint_is_to_train_one(step, capsys):
    assert run(["train", "unet", "--step", step]) == 2
    assert capsys.readouterr().err == (
        f"error: {step}: no float checkpoint of unet in runs/\n"
        "hint: train one first: hat train unet --step float\n"
    )
    assert not Path("runs").exists()


def test_int_infer_of_a_float_checkpoint_alone_is_refused(capsys):
    file = make_run("100000", "float") / "float-checkpoint-best.pth.tar"
    assert run(["train", "unet", "--step", "int_infer"]) == 2
    assert capsys.readouterr().err == (
        f"error: int_infer starts from a qat or calibration checkpoint; {file} is a float one\n"
        f"hint: run first: hat train unet --step calibration --ckpt {file}\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "all", "--resume"], "--step all can't be resumed"),
        (["--step", "calibration", "--resume"], "--step calibration can't be resumed"),
        (["--step", "qat", "--resume"], "no qat run of unet in runs/ to go on with"),
        (["--ckpt", "best.pth"], "--step float starts a new float run"),
        (["--step", "qat", "--ckpt", "a.pth", "--resume"], "give one of them"),
        (["--step", "qat", "--ckpt", "a.pth", "--weights", "b.pth"], "give --ckpt or --weights"),
        (["--step", "all", "--val-only"], "--val-only scores one checkpoint"),
        (["--step", "qat", "--val-only"], "no qat-checkpoint-best.pth.tar here, and no run"),
        (["--step", "qat", "steps.calibration.model={}"], "a step can't change 'model'"),
        (["--step", "qat", "optim.lr=high"], "lr must be float"),
        (["--step", "qat", "quantize.weight_bits=9"], "9 bits are not supported"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_made(words, message, capsys):
    assert run(["train", "unet", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_last_pth_of_a_step_that_trains_nothing_is_its_best():
    folder = make_run("100000", "int_infer")
    file, line = find_checkpoint("last.pth")
    assert file == folder / "int_infer-checkpoint-best.pth.tar"
    assert "of the newest run" in line


def small_config(**values: object):
    node = {"type": "x"}
    optim = {"type": "sgd", "lr": 0.5, "momentum": 0.8}
    fit = {"val_every": 30, "ema_decay": 0.9}
    parts = dict.fromkeys(("model", "loss", "metric"), node)
    split = {"dataset": node, "batch_size": 4}
    given = {"optim": optim, "fit": fit, "epochs": 42, "train": split, "val": split, **values}
    return from_values("small", {"task": "segmentation", **parts, **given})


def test_qat_trains_a_tenth_of_the_epochs_at_a_hundredth_of_the_rate():
    config = config_of_step(small_config(), "qat")
    assert config["epochs"] == 4
    assert config["optim"] == {"type": "sgd", "lr": pytest.approx(0.005), "momentum": 0.8}
    assert config["schedule"] == {"type": "cosine"}
    assert config["fit"] == {"val_every": 3, "ema_decay": 0.9}
    assert config_of_step(small_config(epochs=3), "qat")["epochs"] == 1


def test_a_step_changes_entries_and_replaces_parts():
    changes = {
        "epochs": 7,
        "optim": {"type": "adamw", "lr": 0.1},
        "train": {"batch_size": 2},
        "fit": {"ema_decay": None},
    }
    config = config_of_step(small_config(steps={"qat": changes}), "qat")
    assert config["epochs"] == 7
    assert config["optim"] == {"type": "adamw", "lr": 0.1}
    assert config["train"] == {"dataset": {"type": "x"}, "batch_size": 2}
    assert config["fit"] == {"val_every": 3, "ema_decay": None}
    partly = config_of_step(small_config(steps={"qat": {"optim": {"lr": 0.1}}}), "qat")
    assert partly["optim"] == {"type": "sgd", "lr": 0.1, "momentum": 0.8}


def test_settings_of_the_command_line_win_and_are_those_of_the_step():
    config = small_config(steps={"qat": {"epochs": 7, "optim": {"lr": 0.1}}})
    overridden = config_of_step(config, "qat", ["epochs=2", "optim.lr=0.3"])
    assert (overridden["epochs"], overridden["optim"]["lr"]) == (2, 0.3)
    by_path = config_of_step(config, "qat", ["steps.qat.epochs=2", "steps.qat.optim.lr=0.3"])
    assert (by_path["epochs"], by_path["optim"]) == (2, overridden["optim"])


@pytest.mark.parametrize("changes", [{}, {"qat": {"epochs": 7, "train": {"batch_size": 2}}}])
def test_the_config_of_a_run_gives_itself_when_the_step_is_run_by_it(changes):
    first = config_of_step(small_config(steps=changes), "qat", ["epochs=2", "optim.lr=0.3"])
    assert config_of_step(first, "qat") == first


@pytest.mark.parametrize("step", ["float", "calibration", "int_infer"])
def test_other_steps_keep_the_config(step):
    config = small_config(steps={"qat": {"epochs": 7}})
    assert config_of_step(config, step) == config
    assert config_of_step(config, step, ["epochs=9"])["epochs"] == 9


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"qat": {"model": {}}}, "a step can't change 'model'"),
        ({"qat": {"quantize": {}}}, "a step can't change 'quantize'"),
        ({"qat": 3}, "must be a dict"),
        ({"qat": {"epoch": 3}}, "unknown name 'epoch'"),
        ({"qat": {"epochs": "3"}}, "epochs must be of type int"),
    ],
)
def test_a_step_that_changes_what_it_cannot_is_an_error(steps, message):
    with pytest.raises(ConfigError, match=message):
        config_of_step(small_config(steps=steps), "qat")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps.qat.optim.lrr=1", "steps.qat: .*has no argument 'lrr'"),
        ("steps.qat.epochs=0", "steps.qat: epochs: must be at least 1"),
        ("steps.qat.fit.val_evry=1", "steps.qat: fit: no setting 'val_evry'"),
        ("steps.int_infer.epochs=1", "steps: no step 'int_infer'"),
        ("quantize.goal=ort", "quantize: no setting 'goal'"),
        ("quantize.qat.scales=fix", "quantize.qat.scales"),
    ],
)
def test_what_steps_and_quantize_say_is_checked_with_the_config(override, message):
    with pytest.raises(ConfigError, match=message):
        check_config(load_config("unet", [override]))


def test_the_table_shows_each_step_and_its_distance_from_float():
    Path("a.pth").touch()
    scores = {"float": 50.0, "calibration": 48.5, "qat": float("nan")}
    steps = [
        step_entry(step, {"mIoU": score, "aAcc": 90.0, "IoU.road": 1.0}, Path("a.pth"))
        for step, score in scores.items()
    ]
    columns, rows = accuracy_table(steps, "mIoU")
    assert columns == ["step", "mIoU", "aAcc", "mIoU - float"]
    assert rows[:2] == [["float", 50.0, 90.0, 0.0], ["calibration", 48.5, 90.0, -1.5]]
    no_float_score = [{**steps[0], "metrics": {}}, steps[1]]
    assert accuracy_table(no_float_score, "mIoU")[1][0] == ["float", None, None, None]


def test_nothing_here_needs_torch():
    modules = "hatcli.recipes.steps, hatcli.recipes.check, hatcli.quantize.spec"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code) == 0
