"""A training that is killed or stopped anywhere ends as if nothing had happened."""

import json
import random
import signal
import time
from pathlib import Path

import pytest
from commands import Command
from left_behind import last_in, same_state, steps_logged
from packed import packed_blocks
from tiny import write_tiny_config

from hatcli.cli import run
from hatcli.engine.checkpoint import load_checkpoint, save_checkpoint
from hatcli.recipes.training.resume import find_in_run

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("one_thread")]
SETTINGS = ["epochs=3", "fit.ema_decay=0.9", "fit.log_every=1", "fit.save_every=1"]
STEPS = 9


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return packed_blocks(tmp_path_factory.mktemp("cityscapes"), train=6, val=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data) -> dict:
    """The last checkpoint of a float run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_tiny_config(folder, data)
    assert run(["train", str(config), *SETTINGS, "--out", str(folder / "runs")]) == 0
    return load_checkpoint(last_in(folder / "runs"))


def kill_until_done(
    command: list[str], root: str, kills: int, seed: int, only_first: tuple[str, ...] = ()
) -> None:
    """Kill a training that many times, each a moment after one or more new steps.

    Args:
        only_first: words of the command that a resumed run doesn't take.
    """

    def next_run() -> Command:
        has_checkpoint = bool(list(Path(root).rglob("*-last.pth.tar")))
        return Command(*command, *(["--resume"] if has_checkpoint else only_first))

    rng = random.Random(seed)
    for number in range(kills):
        job = next_run()
        aim = steps_logged(root) + 1 + rng.randrange(2)
        if not job.wait_for(lambda aim=aim: steps_logged(root) >= aim):
            assert job.exit_code() == 0, job.errors
            assert number > 0
            break
        time.sleep(rng.random() * 0.05)
        job.kill()
    job = next_run()
    assert job.exit_code() == 0, job.errors


@pytest.mark.parametrize(
    ("workers", "kills"),
    [
        (0, 1),
        (2, 2),
        pytest.param(0, 10, marks=pytest.mark.slow),
        pytest.param(2, 10, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_anywhere_ends_with_the_same_state(config, whole, workers, kills):
    command = ["train", config, *SETTINGS, f"train.num_workers={workers}", "--out", "killed"]
    kill_until_done(command, "killed", kills, seed=kills + workers)
    killed = load_checkpoint(last_in("killed"))
    assert same_state(whole, killed) == []
    (metrics,) = Path("killed").rglob("metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize(("workers", "kills"), [(2, 1), pytest.param(0, 8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("batch_norm", ["folded", pytest.param("kept", marks=pytest.mark.slow)])
def test_a_qat_run_killed_anywhere_ends_with_the_same_state(config, workers, kills, batch_norm):
    norms = [f"quantize.qat.batch_norm={batch_norm}", "quantize.qat.freeze_after=1"]
    assert run(["train", config, "epochs=1"]) == 0
    assert run(["train", config, "--step", "calibration", "quantize.images=4"]) == 0
    (start,) = Path("runs").rglob("calibration-checkpoint-best.pth.tar")
    begin = ("--ckpt", str(start))
    command = ["train", config, "--step", "qat", *SETTINGS, *norms, "quantize.images=4"]
    if batch_norm == "kept":
        command.remove("fit.ema_decay=0.9")
    assert run([*command, *begin, "--out", "whole"]) == 0
    command += [f"train.num_workers={workers}", "--out", "killed"]
    kill_until_done(command, "killed", kills, seed=kills, only_first=begin)
    whole, killed = (load_checkpoint(last_in(folder, "qat")) for folder in ("whole", "killed"))
    assert same_state(whole, killed) == []


@pytest.mark.parametrize(
    ("number", "to_group"),
    [
        (signal.SIGTERM, True),
        (signal.SIGINT, False),
        (signal.SIGHUP, True),
        pytest.param(signal.SIGHUP, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, True, marks=pytest.mark.slow),
    ],
)
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(config, whole, number, to_group):
    command = ["train", config, *SETTINGS, "fit.save_every=None", "--out", "stopped"]
    job = Command(*command, f"train.num_workers={2 if to_group else 0}")
    assert job.wait_for(lambda: steps_logged("stopped") >= 2)
    job.send(number, to_group=to_group)
    assert job.exit_code() == 128 + number, job.errors
    assert "Traceback" not in job.errors
    assert "go on with: hat train --resume-from stopped" in job.errors
    deadline = time.monotonic() + 6
    while job.children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert job.children() == []
    if number != signal.SIGINT:
        assert Command("train", config, "--resume", "--out", "stopped").exit_code() == 0
        assert same_state(whole, load_checkpoint(last_in("stopped"))) == []


@pytest.mark.parametrize(
    ("number", "to_group"),
    [
        (signal.SIGTERM, True),
        *[
            pytest.param(number, to_group, marks=pytest.mark.slow)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            for to_group in (True, False)
            if (number, to_group) != (signal.SIGTERM, True)
        ],
    ],
)
def test_a_signal_in_validation_saves_the_whole_epoch(config, whole, number, to_group):
    command = ["train", config, *SETTINGS, "val.batch_size=1", "val.num_workers=2"]
    job = Command(*command, "--out", "stopped")
    assert job.wait_for(lambda: steps_logged("stopped") >= 3)
    job.send(number, to_group=to_group)
    assert job.exit_code() == 128 + number, job.errors
    assert "Traceback" not in job.errors
    content = load_checkpoint(last_in("stopped"))
    assert (content["epoch"], content["samples"]) in {(0, 6), (1, 0), (1, 2)}
    assert Command("train", config, "--resume", "--out", "stopped").exit_code() == 0
    assert same_state(whole, load_checkpoint(last_in("stopped"))) == []


def test_a_damaged_last_checkpoint_is_skipped_for_the_one_before(config, capsys):
    assert run(["train", config, *SETTINGS, "epochs=1", "fit.keep=3"]) == 0
    last = last_in("runs")
    kept = sorted(path.name for path in last.parent.glob("float-checkpoint-0*"))
    places = ("0000-000000004", "0000-000000006", "0001-000000000")
    assert kept == [f"float-checkpoint-{place}.pth.tar" for place in places]
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.unlink()
    last.write_bytes(data)
    found, skipped = find_in_run(last.parent)
    assert found.name == "float-checkpoint-0001-000000000.pth.tar"
    assert "fails its checksum" in str(skipped[0])
    capsys.readouterr()
    assert run(["train", config, "--resume", "epochs=2"]) == 0
    assert "warning: skipped" in capsys.readouterr().err
    assert load_checkpoint(last)["epoch"] == 2


LARGER_CROPS = ["train.transforms.1.height=128", "train.transforms.1.width=128"]


def test_another_batch_is_refused_unless_it_is_allowed(config, capsys):
    assert run(["train", config, *SETTINGS, *LARGER_CROPS, "epochs=1"]) == 0
    assert run(["train", config, "--resume", "train.batch_size=1", "epochs=2"]) == 2
    assert "started with another train.batch_size" in capsys.readouterr().err
    allowed = ["train.batch_size=1", "epochs=2", "--allow-config-change"]
    assert run(["train", config, "--resume", *allowed]) == 0
    errors = capsys.readouterr().err
    assert "a step was 2 samples and is 1 from here on" in errors
    assert "train.batch_size was 2 and is 1 from here on" in errors


def test_half_the_batch_twice_is_the_same_step_size(config):
    assert run(["train", config, *SETTINGS, *LARGER_CROPS, "epochs=1"]) == 0
    halves = ["train.batch_size=1", "fit.accumulate=2", "epochs=2", "--allow-config-change"]
    assert run(["train", config, "--resume", *halves]) == 0
    content = load_checkpoint(last_in("runs"))
    assert (content["epoch"], content["samples_a_step"]) == (2, 2)


def test_a_batch_that_is_too_small_for_batch_norm_is_explained(config, capsys):
    assert run(["train", config, "train.batch_size=1"]) == 2
    errors = capsys.readouterr().err
    assert "batch norm has a single value" in errors
    assert "Traceback" not in errors


def test_a_checkpoint_of_whole_epochs_from_before_can_be_gone_on_with(config):
    assert run(["train", config, *SETTINGS, "epochs=1"]) == 0
    last = last_in("runs")
    content = load_checkpoint(last)
    for name in ("samples", "skipped", "losses", "random", "samples_a_step", "scaler"):
        del content[name]
    save_checkpoint(last, content)
    assert run(["train", config, "--resume", "epochs=2"]) == 0
    assert load_checkpoint(last)["epoch"] == 2
