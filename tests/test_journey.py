"""Whole commands on small data: pack, train, resume, evaluate, export, evaluate the ONNX."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from left_behind import same_state
from made_cityscapes import make_cityscapes
from packed import packed_blocks
from tiny import write_tiny_config

from hatcli.cli import run
from hatcli.config import load_config
from hatcli.engine.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return packed_blocks(tmp_path_factory.mktemp("cityscapes"), train=6, val=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data) -> Path:
    """A run folder of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_tiny_config(folder, data)
    assert run(["train", str(config), "--out", str(folder / "runs")]) == 0
    (found,) = (folder / "runs" / "tiny").iterdir()
    return found


def test_a_run_folder_holds_what_a_reader_needs(trained, data):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.py", "args.txt", "env.json", "train.log", "metrics.jsonl", "results.csv",
        "summary.json", "plots", "float-checkpoint-best.pth.tar", "float-checkpoint-last.pth.tar",
    }  # fmt: skip
    assert load_config(str(trained / "config.py"))["data_rootdir"] == str(data)
    rows = epochs_in(trained / "results.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    summary = json.loads((trained / "summary.json").read_text())
    best = max(float(row["val/mIoU"]) for row in rows)
    assert summary["metrics"]["mIoU"] == pytest.approx(best)
    assert (trained / "plots" / "curves.png").stat().st_size > 1000
    lines = (trained / "train.log").read_text().splitlines()
    assert sum("images/s" in line for line in lines) >= 2


def test_evaluating_the_best_checkpoint_gives_what_training_reported(trained, config, capsys):
    best = trained / "float-checkpoint-best.pth.tar"
    assert run(["eval", "--ckpt", str(best), "--json", "--out", "figures"]) == 0
    document = json.loads(capsys.readouterr().out)
    reported = load_checkpoint(best)["metrics"]
    got = {name: value for name, value in document["metrics"].items() if value is not None}
    assert got == pytest.approx({k: v for k, v in reported.items() if v == v})
    written = json.loads(Path("figures/float-checkpoint-best.metrics.json").read_text())
    assert written["metrics"]["mIoU"] == document["metrics"]["mIoU"]
    assert (document["unit"], written["unit"]) == ("percent", "percent")


def test_a_metric_below_its_bound_exits_3_after_writing(trained, config, capsys):
    best = str(trained / "float-checkpoint-best.pth.tar")
    assert run(["eval", "--ckpt", best, "--min", "aAcc=0"]) == 0
    assert run(["eval", "--ckpt", best, "--min", "aAcc=101", "--out", "low"]) == 3
    assert "below the bound: aAcc" in capsys.readouterr().err
    assert Path("low/float-checkpoint-best.metrics.json").exists()
    assert run(["eval", "--ckpt", best, "--min", "mIuO=1"]) == 2
    assert "did you mean 'mIoU'?" in capsys.readouterr().err


def test_the_official_scripts_agree(trained, config, data, capsys):
    pytest.importorskip("cityscapesscripts")
    best = str(trained / "float-checkpoint-best.pth.tar")
    truth = str(data / "gtFine" / "val")
    assert run(["eval", "--ckpt", best, "--official", "--gt-dir", truth, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    for name, value in document["official"].items():
        ours = document["metrics"][name]
        assert ours == (value if value is None else pytest.approx(value, abs=1e-9)), name


def test_the_exported_model_scores_the_same(trained, config, capsys):
    best = str(trained / "float-checkpoint-best.pth.tar")
    assert run(["export", "--ckpt", best, "-o", "tiny.onnx", "--dynamic", "both"]) == 0
    capsys.readouterr()
    assert run(["eval", "tiny.onnx", "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert printed.err.splitlines()[-1] == "next: hat bench infer tiny.onnx"
    reported = load_checkpoint(Path(best))["metrics"]
    assert document["metrics"]["mIoU"] == pytest.approx(reported["mIoU"], abs=0.01)


def test_best_pth_means_that_of_the_newest_run(config, capsys):
    assert run(["eval", "--ckpt", "best.pth"]) == 2
    assert "no best.pth here" in capsys.readouterr().err
    assert run(["train", config, "epochs=1"]) == 0
    capsys.readouterr()
    assert run(["eval", "--ckpt", "best.pth"]) == 0
    found, evaluating, *_ = capsys.readouterr().err.splitlines()
    assert found.endswith("(of the newest run)")
    assert evaluating.startswith("evaluating float-checkpoint-best.pth.tar on ")


def test_the_tutorials_spelling_of_evaluation(config, capsys):
    assert run(["train", config, "epochs=1"]) == 0
    name = "float-checkpoint-best.pth.tar"
    arguments = ["train", "--step", "float", "--config", config, "--val-ckpt", name, "--val-only"]
    assert run(arguments) == 0
    assert "same as: hat eval" in capsys.readouterr().err


def test_another_models_checkpoint_is_refused(trained, config, capsys):
    best = str(trained / "float-checkpoint-best.pth.tar")
    assert run(["eval", config, "model.alpha=0.5", "--ckpt", best]) == 1
    assert "holds the model" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_between_epochs_ends_with_the_same_state(config, workers, capsys):
    settings = ["epochs=3", "fit.ema_decay=0.9", f"train.num_workers={workers}"]
    assert run(["train", config, *settings, "--out", "whole"]) == 0
    kill_after_epochs(config, settings, 2)
    assert run(["train", config, "--resume", "--out", "killed"]) == 0
    whole, killed = (load_checkpoint(last_of(folder)) for folder in ("whole", "killed"))
    assert killed["epoch"] == 3
    assert same_state(whole, killed) == []
    (table,) = Path("killed").rglob("results.csv")
    assert [row["epoch"] for row in epochs_in(table)] == ["1", "2", "3"]


def epochs_in(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines()))


def kill_after_epochs(config: str, settings: list[str], epochs: int) -> None:
    command = [sys.executable, "-m", "hatcli", "train", config, *settings, "--out", "killed"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found = list(Path("killed").rglob("metrics.jsonl"))
            last = list(Path("killed").rglob("*last.pth.tar"))
            if found and last and len(found[0].read_text().splitlines()) >= epochs:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)


def last_of(folder: str) -> Path:
    (found,) = Path(folder).rglob("float-checkpoint-last.pth.tar")
    return found


def test_a_resumed_run_takes_no_other_settings(config, capsys):
    assert run(["train", config, "epochs=1"]) == 0
    assert run(["train", config, "--resume", "optim.lr=5"]) == 2
    assert "started with another optim.lr" in capsys.readouterr().err


def test_a_resumed_run_may_go_on_longer_and_says_so(config, capsys):
    assert run(["train", config, "epochs=1"]) == 0
    assert run(["train", config, "--resume", "epochs=2"]) == 0
    assert "epochs was 1 and is 2 from here on" in capsys.readouterr().err
    assert load_checkpoint(last_of("runs"))["epoch"] == 2


def test_a_run_goes_on_with_the_data_it_was_started_with_or_not_at_all(config, data, capsys):
    assert run(["train", config, "epochs=1"]) == 0
    other = make_cityscapes(Path("other"), train=6, val=3, size=(128, 96), seed=1)
    packed = run(["pack", "cityscapes", "--src", str(other), "--split", "train"])
    (found,) = Path("runs/tiny").iterdir()
    last = found / "float-checkpoint-last.pth.tar"
    content = load_checkpoint(last)
    content["config"]["values"]["train"]["dataset"]["path"] = str(other.resolve() / "train_lmdb")
    save_checkpoint(last, content)
    capsys.readouterr()
    assert (packed, run(["train", "--resume-from", str(found)])) == (0, 1)
    assert "the training data changed since" in capsys.readouterr().err


def test_another_number_of_threads_is_said_when_a_run_goes_on(config, capsys):
    assert run(["train", config, "epochs=1"]) == 0
    (found,) = Path("runs/tiny").iterdir()
    last = found / "float-checkpoint-last.pth.tar"
    save_checkpoint(last, {**load_checkpoint(last), "threads": 99})
    capsys.readouterr()
    assert run(["train", "--resume-from", str(found)]) == 0
    assert "warning: threads was 99" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.num_classes=18", "model.num_classes is 18, the training set has 19 classes"),
        ("metric.num_classes=18", "num_classes is 18, the dataset has 19 classes"),
        ("train.batch_size=7", "no batch in an epoch: 6 samples, batch_size 7"),
        ("deploy.head=3", "3"),
        ("loss.class_weights=[1.0]", "1 class_weights for the 19 classes"),
    ],
)
def test_what_does_not_fit_together_is_said_before_a_checkpoint(config, setting, message, capsys):
    assert run(["train", config, setting]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_a_pack_of_the_other_split_is_a_warning(config, capsys):
    assert run(["train", config, "epochs=1", "val.dataset.path=train_lmdb"]) == 0
    assert "warning: val.dataset is a pack of the train split" in capsys.readouterr().err


# With workers it rests on when torch's own threads are hit: the full run tries it.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stopped_run_says_how_to_go_on(config, number, workers):
    settings = ["epochs=500", f"train.num_workers={workers}"]
    command = [sys.executable, "-m", "hatcli", "train", config, *settings, "--out", "stopped"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(Path("stopped").rglob("*best.pth.tar")):
            time.sleep(0.05)
        os.killpg(process.pid, number)  # as a terminal does, and as batch systems do
        errors = process.stderr.read()
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert "go on with: hat train --resume-from stopped" in errors
    assert load_checkpoint(last_of("stopped"))["epoch"] >= 1


def test_the_table_lines_up_when_only_some_epochs_are_validated(config):
    assert run(["train", config, "epochs=3", "fit.val_every=2"]) == 0
    (table,) = Path("runs").rglob("results.csv")
    rows = epochs_in(table)
    assert [row["val/mIoU"] != "" for row in rows] == [False, True, True]
    assert all(0 < float(row["lr"]) <= 0.05 for row in rows)


HOLD_LOCK = """
import sys, time
from pathlib import Path
from hatcli.recipes.runs.folder import RunFolder
run = RunFolder(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def test_a_folder_in_use_is_locked_until_its_owner_is_gone(trained, config, capsys):
    command = [sys.executable, "-c", HOLD_LOCK, str(trained)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "locked\n"
        assert run(["train", "--resume-from", str(trained)]) == 75
        assert f"process {owner.pid} on" in capsys.readouterr().err
        owner.kill()
    assert run(["train", "--resume-from", str(trained)]) == 0


def test_a_missing_pack_is_named_before_training(config, capsys):
    assert run(["train", config, "data_rootdir=nowhere"]) == 2
    errors = capsys.readouterr().err
    assert "nowhere/train_lmdb" in errors
    assert not Path("runs").exists()
