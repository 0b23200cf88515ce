"""What ends a training, or doesn't: one message, and a checkpoint to go on from."""

import errno
import io
import json
import shutil
import signal
from pathlib import Path

import pytest
from commands import Command
from faulty import BATCH, LENGTH, write_faulty_config

from hatcli.cli import run
from hatcli.cli._screen import follow
from hatcli.config import load_config
from hatcli.engine.checkpoint import load_checkpoint
from hatcli.errors import CheckpointError
from hatcli.metrics.accuracy import Accuracy
from hatcli.recipes.check import check_config
from hatcli.recipes.runs import folder as run_folder
from hatcli.recipes.runs.folder import read_metrics
from hatcli.recipes.training import keeper
from hatcli.recipes.training.train import train_float

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def config(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(write_faulty_config(tmp_path))


def last() -> dict:
    (found,) = Path("runs").rglob("float-checkpoint-last.pth.tar")
    return load_checkpoint(found)


WORKER = "reading process 1 of 1 (process "
FAULTS = {
    "SIGKILL": (f"{WORKER}", "was killed by SIGKILL", "out of memory"),
    "SIGBUS": (f"{WORKER}", "was killed by SIGBUS", "/dev/shm"),
    "SIGSEGV": (f"{WORKER}", "was killed by SIGSEGV", "hat data check"),
    "exit": (f"{WORKER}", "ended by itself with exit code 3", ""),
    "exception": ("can't be read: KeyError: 'left out' (faulty.py, line ", "--debug", ""),
    "hang": ("the reading processes gave nothing for 1 s", "train.num_workers=0", ""),
    "label": ("label 7 is neither one of the 4 classes of the model nor 255", "num_classes", ""),
}


QUICK = ("SIGKILL", "exception", "label")


@pytest.mark.parametrize(
    "fault", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAULTS]
)
def test_a_fault_of_a_reading_process_is_one_message_behind_a_checkpoint(config, fault):
    job = Command("train", config, f"train.dataset.fault={fault}", "train.num_workers=1")
    assert job.exit_code() == 1, job.errors
    for part in FAULTS[fault]:
        assert part in job.errors
    assert "Traceback" not in job.errors
    assert job.errors.count("error: ") == 1
    assert "go on with: hat train --resume-from runs/" in job.errors
    content = last()
    assert content["epoch"] == 0
    assert 0 < content["samples"] <= LENGTH - BATCH
    assert content["samples"] % BATCH == 0
    assert job.children() == []


def test_the_run_goes_on_where_its_reading_process_was_lost(config):
    fault = "train.dataset.fault=SIGKILL"
    assert Command("train", config, fault, "train.num_workers=1").exit_code() == 1
    whole = ["train.dataset.fault=", "--allow-config-change"]
    job = Command("train", config, "--resume", *whole)
    assert job.exit_code() == 0, job.errors
    assert last()["epoch"] == 2


@pytest.mark.parametrize("fault", ["exception", "label"])
def test_a_bad_sample_is_the_same_message_without_reading_processes(config, fault, capsys):
    assert run(["train", config, f"train.dataset.fault={fault}"]) == 1
    errors = capsys.readouterr().err
    assert all(part in errors for part in FAULTS[fault])
    assert "Traceback" not in errors
    assert last()["samples"] == LENGTH - BATCH


def test_the_traceback_of_a_users_data_set_is_there_to_debug(config, monkeypatch, capsys):
    monkeypatch.setenv("HAT_DEBUG", "1")
    fault = "train.dataset.fault=exception"
    assert Command("train", config, fault, "train.num_workers=1").exit_code() == 1
    assert run(["train", config, fault]) == 1
    errors = capsys.readouterr().err
    assert 'raise KeyError("left out")' in errors


def test_an_illegal_label_in_the_first_batch_ends_before_a_step(config, capsys, monkeypatch):
    assert run(["train", config, "train.dataset.fault=label", "model.num_classes=3"]) == 2
    assert "the training set has 4 classes" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_loss_that_is_nan_leaves_the_last_checkpoint_and_the_names(config, capsys):
    assert run(["train", config, "loss.nan_at=7", "fit.save_every=1"]) == 1
    errors = capsys.readouterr().err
    assert "the loss is nan" in errors
    assert "earlier checkpoints, if any, are whole" in errors
    content = last()
    assert content["samples"] == 6 * BATCH
    (report,) = Path("runs").rglob("nonfinite-*.json")
    document = json.loads(report.read_text())
    assert document["what"] == "loss"
    assert len(document["names"]) == BATCH
    assert str(report) in errors


def test_an_error_in_a_step_leaves_the_checkpoint_before_it(config, capsys):
    assert run(["train", config, "loss.error_at=7", "fit.save_every=1"]) == 1
    errors = capsys.readouterr().err
    assert "ZeroDivisionError: sick" in errors
    assert "that line of your own file says" in errors  # and not that hat has a defect
    assert last()["samples"] == 6 * BATCH


def test_out_of_memory_says_how_to_keep_the_recipe(config):
    job = Command("train", config, "train.dataset.fault=memory")
    assert job.exit_code() == 1, job.errors
    assert "this machine is out of memory" in job.errors
    assert "halve train.batch_size and set fit.accumulate=2" in job.errors
    assert "Traceback" not in job.errors


def failing_saves(monkeypatch, bad: set[int]) -> None:
    """Let saves of these numbers, from 0, meet a full disk."""
    save, number = keeper.save_checkpoint, [-1]

    def instead(path, content):
        if path.name.endswith("-last.pth.tar"):
            number[0] += 1
            if number[0] in bad:
                raise CheckpointError(f"disk full at {path.parent}")
        save(path, content)

    monkeypatch.setattr(keeper, "save_checkpoint", instead)


def test_a_full_disk_is_a_warning_and_the_training_goes_on(config, monkeypatch, capsys):
    failing_saves(monkeypatch, {2, 3})
    assert run(["train", config, "fit.save_every=1"]) == 0
    errors = capsys.readouterr().err
    assert errors.count("warning: disk full") == 2
    assert last()["epoch"] == 2


def test_a_disk_that_stays_full_ends_the_training_at_the_third_miss(config, monkeypatch, capsys):
    failing_saves(monkeypatch, {2, 3, 4, 5})
    assert run(["train", config, "fit.save_every=1"]) == 1
    errors = capsys.readouterr().err
    assert "(3 times in a row)" in errors
    assert "go on with: hat train --resume-from runs/" in errors
    assert last()["samples"] == 2 * BATCH


def test_a_training_whose_last_save_failed_ends_with_an_error(config, monkeypatch, capsys):
    failing_saves(monkeypatch, {0, 1})
    assert run(["train", config, "fit.save_every=None"]) == 1
    errors = capsys.readouterr().err
    assert "error: disk full" in errors
    assert "the training is over" in errors
    assert "nothing is saved yet" in errors


def scores_of_epochs(monkeypatch, *values: float) -> None:
    """Let the validations score these, one after the other."""
    left = iter(values)
    monkeypatch.setattr(Accuracy, "compute", lambda _self: {"top1": next(left)})


@pytest.mark.parametrize(("third", "epoch"), [(30.0, 3), (5.0, 1)])
def test_a_best_epoch_that_could_not_be_saved_is_not_the_best(config, monkeypatch, third, epoch):
    scores_of_epochs(monkeypatch, 10.0, 50.0, third)
    save = keeper.save_checkpoint

    def fails_at_the_second_epoch(path, content):
        if content["epoch"] == 2:
            raise CheckpointError(f"disk full at {path.parent}")
        save(path, content)

    monkeypatch.setattr(keeper, "save_checkpoint", fails_at_the_second_epoch)
    assert run(["train", config, "epochs=3"]) == 0
    (best,) = Path("runs").rglob("float-checkpoint-best.pth.tar")
    content = load_checkpoint(best)
    summary = json.loads((best.parent / "summary.json").read_text())
    assert (content["epoch"], summary["best_epoch"]) == (epoch, epoch)
    assert content["metrics"] == summary["metrics"] == {"top1": 10.0 if epoch == 1 else third}
    assert last()["best"] == content["metrics"]["top1"]


def test_the_best_checkpoint_is_saved_before_the_last_one(config, monkeypatch):
    saved = []
    save = keeper.save_checkpoint
    monkeypatch.setattr(keeper, "save_checkpoint", lambda *a: (saved.append(a[0].name), save(*a)))
    assert run(["train", config, "epochs=1"]) == 0
    assert saved == [f"float-checkpoint-{which}.pth.tar" for which in ("best", "last")]


def test_a_file_system_without_links_gets_copies(config, monkeypatch):
    def refused(*_paths):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(keeper.os, "link", refused)
    assert run(["train", config, "fit.keep=2", "epochs=2"]) == 0
    kept = sorted(Path("runs").rglob("float-checkpoint-[0-9]*.pth.tar"))
    assert [load_checkpoint(path)["epoch"] for path in kept] == [1, 2]


def test_a_metric_without_its_best_value_ends_at_the_first_validation(config, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(Accuracy, "compute", lambda _self: {"top2": 1.0, "recall.a": 1.0})
        assert run(["config", "check", config, "--data"]) == 2
        told = "metric 'Accuracy': best_by is 'top1', which compute() doesn't give"
        assert told in capsys.readouterr().err
        assert run(["train", config]) == 2
    errors = capsys.readouterr().err
    assert told in errors
    assert "did you mean 'top2'?; go on with: hat train --resume-from runs/" in errors
    assert (last()["epoch"], last()["samples"]) == (0, LENGTH)
    (best,) = Path("runs").rglob("*-last.pth.tar")  # the metric is mended: no step is lost
    assert run(["train", "--resume-from", str(best.parent)]) == 0
    assert last()["epoch"] == 2


def test_a_metric_that_names_no_value_is_refused_before_a_run(config, monkeypatch, capsys):
    init = Accuracy.__init__

    def without(self, *args, **settings):
        init(self, *args, **settings)
        del self.best_by

    monkeypatch.setattr(Accuracy, "__init__", without)
    assert run(["train", config]) == 2
    assert "metric 'Accuracy': has no best_by" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_run_folder_that_cannot_be_written_ends_the_run(config, is_gone, monkeypatch, capsys):
    write = run_folder.write_table

    def instead(folder):
        if read_metrics(folder)[-1]["epoch"] < 2:
            write(folder)
        elif is_gone:
            shutil.rmtree(folder)
        if read_metrics(folder) == [] or read_metrics(folder)[-1]["epoch"] == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "results.csv"))

    monkeypatch.setattr(run_folder, "write_table", instead)
    assert run(["train", config]) == 1
    errors = capsys.readouterr().err
    what = "is gone while the run writes" if is_gone else "cannot write to it: No space left"
    assert what in errors
    assert "Traceback" not in errors


def test_no_gpu_is_said_before_the_data_is_looked_for(config, capsys):
    assert run(["train", config, "--device", "cuda", "train.dataset.fault=memory"]) == 2
    assert "no CUDA device found here" in capsys.readouterr().err
    assert not Path("runs").exists()


class Closed(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_training_outlives_the_reader_of_its_progress(config, monkeypatch):
    chosen = load_config(config)
    check_config(chosen)
    job = train_float(chosen, out=Path("runs"))
    with monkeypatch.context() as patched:
        patched.setattr("sys.stderr", Closed())
        result = follow(job)
    assert result.step == "float"
    assert last()["epoch"] == 2
    (log,) = Path("runs").rglob("train.log")
    assert log.read_text().count("images/s") >= 20


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2]


def test_durations_come_from_a_clock_that_nobody_sets():
    root = Path(keeper.__file__).parent.parent
    for folder in ("engine", "recipes", "data"):
        for file in (root / folder).rglob("*.py"):
            assert "time.time()" not in file.read_text(), file


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGTERM])
def test_other_ends_of_a_reading_process_are_told_as_well(config, number):
    fault = f"train.dataset.fault={number.name}"
    job = Command("train", config, fault, "train.num_workers=1")
    assert job.exit_code() == 1, job.errors
    assert f"was killed by {number.name}" in job.errors
