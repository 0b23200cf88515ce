"""Two processes train as one does: the same samples, the same steps, the same figures."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import shared_training as shared
from commands import Command
from left_behind import last_in, steps_logged
from packed import packed_blocks
from ranks import Raised, commands, free_port, on_ranks
from torch.distributed import TCPStore

from hatcli.cli import run
from hatcli.engine.checkpoint import load_checkpoint
from hatcli.engine.distributed import joined
from hatcli.engine.evaluation import require_merging
from hatcli.engine.place import find_place
from hatcli.errors import HatError, UsageError
from hatcli.recipes.faults import explain
from hatcli.recipes.training.launch import _code_of, _for_one, devices_in

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("one_thread")]
SETTINGS = ["fit.log_every=1", "fit.ema_decay=0.9"]
TWO = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return packed_blocks(tmp_path_factory.mktemp("cityscapes"), train=9, val=3)


def in_turn(first: list[list[str]], second: list[list[str]]) -> list[list[str]]:
    return [one + other for one, other in zip(first, second, strict=True)]


def difference(one: dict, other: dict) -> float:
    assert one.keys() == other.keys()
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("nearest", "two heads"),
        ("agree", "two heads"),
        pytest.param("nearest", "unet", marks=pytest.mark.slow),
    ],
)
def test_two_processes_with_half_the_batch_take_the_steps_of_one(kind, name):
    state, losses, names = shared.ten_steps(kind, name)
    first, second = on_ranks(shared.ten_steps, kind, name)
    assert names == in_turn(first[2], second[2])
    assert len(names) == 10
    assert first[1] == pytest.approx(losses, rel=1e-12)
    assert first[1] == second[1]
    assert difference(first[0], second[0]) == 0
    assert difference(state, first[0]) <= 1e-9
    assert difference(state, shared.state_of(shared.new_training(shared.network(name)))) > 1e-4


def test_batch_norms_and_averages_are_the_same_in_all_processes():
    first, second = on_ranks(shared.with_living_norms)
    assert difference(first[0], second[0]) == 0
    start = shared.state_of(shared.new_training(shared.network()))
    assert (first[0]["stem.1.running_mean"] - start["stem.1.running_mean"]).abs().max() > 1e-3


def test_a_model_that_loses_parameters_goes_on_in_step():
    first, second = on_ranks(shared.with_a_part_frozen)
    assert difference(first, second) == 0
    assert difference(first, shared.with_a_part_frozen()) <= 1e-9


def test_parameters_without_a_gradient_are_found_if_asked_for():
    first, second = on_ranks(shared.with_an_unused_part, True)
    assert difference(first, second) == 0
    assert difference(first, shared.with_an_unused_part(True)) <= 1e-9
    failed = on_ranks(shared.with_an_unused_part, False)[0]
    explained = explain(RuntimeError(failed.message), Path(), 1)
    assert "some parameters of the model got no gradient" in explained.message
    assert "fit.find_unused=True" in explained.hint


def test_no_sample_is_repeated_or_missed_from_two_processes_to_one_to_two():
    state, names = shared.some_steps(None, 10)
    assert sorted(name for step in names[:5] for name in step) == sorted(map(str, range(20)))
    (first, mine), (_, theirs) = on_ranks(shared.some_steps, None, 3)
    second, alone = shared.some_steps(first, 4)
    (third, mine_again), (_, theirs_again) = on_ranks(shared.some_steps, second, 3)
    assert in_turn(mine, theirs) + alone + in_turn(mine_again, theirs_again) == names
    assert difference(third["state_dict"], state["state_dict"]) <= 1e-9
    assert (third["epoch"], third["samples"]) == (state["epoch"], state["samples"])


@pytest.mark.parametrize("length", [7, 1])
def test_an_evaluation_by_two_processes_has_the_figures_of_one(length):
    expected = shared.scored(length)
    first, second = on_ranks(shared.scored, length)
    assert str(first) == str(second) == str(expected)  # nan isn't equal to nan
    assert expected["aAcc"] > 0


def test_a_loss_that_is_not_finite_in_one_process_stops_all_at_the_same_step():
    first, second = on_ranks(shared.a_bad_sample)
    assert (first.kind, second.kind) == ("NonFinite", "NonFinite")
    assert "the loss is nan" in first.message


def test_processes_tell_each_other():
    everyone = [{"rank": 0}, {"rank": 1}, {"rank": 2}]
    expected = [
        (0, 3, True, 10, everyone),
        (1, 3, False, 10, everyone),
        (2, 3, False, 10, everyone),
    ]
    assert on_ranks(shared.told, processes=3) == expected


def test_what_fails_in_one_process_ends_all_with_its_exit_code():
    first, second = on_ranks(shared.main_fails)
    assert first == Raised("DataError", "no run here", 1)
    assert (second.kind, second.exit_code) == ("ToldElsewhere", 1)
    first, second = on_ranks(shared.one_fails)
    assert first == Raised("LostPeers", "rank 1 failed: image 7 is damaged", 1)
    assert second == Raised("DataError", "image 7 is damaged", 1)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "RANK set, but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({**TWO, "RANK": "2"}, "RANK=2 of WORLD_SIZE=2 processes"),
        ({**TWO, "WORLD_SIZE": "two"}, "WORLD_SIZE='two' is no number"),
        ({**TWO, "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
    ],
)
def test_an_environment_that_can_not_be_is_refused(environment, message):
    with pytest.raises(UsageError, match=message):
        find_place(environment)
    assert find_place({}) is None


@pytest.mark.parametrize("device", ["cuda:1", "cuda"])
def test_a_device_that_processes_can_not_share_is_refused(device, monkeypatch):
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"cuda:1|GPUs"), joined(device):
        pass


def test_who_does_not_come_is_named(monkeypatch):
    place = {**TWO, "RANK": "0", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "3"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    waiting = pytest.raises(HatError, match=r"rank 0 of 3 waited 0\.5 s for rank 1, 2")
    with waiting, joined("cpu", timeout_s=0.5):
        pass


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for name, value in {**TWO, "RANK": "0", "MASTER_PORT": str(port)}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(HatError, match=f"127.0.0.1:{port}"), joined("cpu", timeout_s=2):
            pass


def test_a_metric_that_can_not_be_put_together_is_refused(monkeypatch):
    class Plain:
        best_by = "x"

    require_merging(Plain())
    monkeypatch.setattr("hatcli.engine.evaluation.processes", lambda: 2)
    with pytest.raises(UsageError, match="'Plain': 2 processes can't put together"):
        require_merging(Plain())


def orphans(jobs: list[Command]) -> list[int]:
    """What is left of some commands after six seconds."""
    deadline = time.monotonic() + 6
    while any(job.children() for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [child for job in jobs for child in job.children()]


@pytest.mark.parametrize(
    ("number", "to_all", "workers"),
    [
        (signal.SIGTERM, True, 2),
        (signal.SIGINT, False, 0),
        pytest.param(signal.SIGHUP, True, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, True, 0, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_or_all_stops_them_at_one_step(config, number, to_all, workers, capsys):
    command = ["train", config, *SETTINGS, "epochs=40", f"train.num_workers={workers}"]
    jobs = commands(*command)
    assert jobs[0].wait_for(lambda: steps_logged("runs") >= 2)
    for job in jobs if to_all else jobs[1:]:
        job.send(number, to_group=to_all)
    assert [job.exit_code() for job in jobs] == [128 + number] * 2, jobs[0].errors
    assert "go on with: hat train --resume-from runs" in jobs[0].errors
    assert "error" not in jobs[1].errors
    assert "Traceback" not in jobs[0].errors + jobs[1].errors
    assert orphans(jobs) == []
    content = load_checkpoint(last_in("runs"))
    assert (content["processes"], content["samples_a_step"]) == (2, 4)
    if to_all:  # the step is of four samples: of one process, too
        more = [f"epochs={content['epoch'] + 1}", "train.batch_size=4"]
        assert run(["train", config, "--resume", *more]) == 0
        assert "processes was 2 and is 1 now" in capsys.readouterr().err
        assert run(["train", config, "--resume", "train.batch_size=2"]) == 2
        assert load_checkpoint(last_in("runs"))["samples_a_step"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_others_which_name_it(config, victim):
    jobs = commands("train", config, *SETTINGS, "epochs=40", "train.num_workers=1")
    assert jobs[0].wait_for(lambda: steps_logged("runs") >= 5)
    jobs[victim].kill()
    survivor = jobs[1 - victim]
    assert survivor.exit_code(20) == 1
    assert f"rank {victim} (process {jobs[victim].process.pid}) is gone" in survivor.errors
    assert "Traceback" not in survivor.errors
    assert orphans(jobs) == []
    assert load_checkpoint(last_in("runs"))["epoch"] >= 1


def test_a_run_that_torchrun_starts_again_goes_on_by_itself(config):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = {"port": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    command = ["train", config, "fit.log_every=1", "fit.save_every=1", "epochs=2"]
    jobs = commands(*command, **agent, TORCHELASTIC_RESTART_COUNT="0")
    assert jobs[0].wait_for(lambda: steps_logged("runs") >= 2)
    jobs[1].kill()
    assert jobs[0].exit_code(20) == 1
    assert f"rank 1 (process {jobs[1].process.pid}) is gone" in jobs[0].errors
    assert "Traceback" not in jobs[0].errors
    before = load_checkpoint(last_in("runs"))
    again = commands(*command, **agent, TORCHELASTIC_RESTART_COUNT="1")
    assert [job.exit_code() for job in again] == [0, 0], again[0].errors
    assert "torchrun started the processes again: going on with runs" in again[0].errors
    assert before["epoch"] < load_checkpoint(last_in("runs"))["epoch"] == 2
    del store


def checkpoint_in(folder: str, step: str, which: str = "best") -> dict:
    (found,) = Path(folder).rglob(f"{step}-checkpoint-{which}.pth.tar")
    return load_checkpoint(found)


def require_same_calibration(folder: str, other: str) -> None:
    first, second = checkpoint_in(folder, "calibration"), checkpoint_in(other, "calibration")
    assert difference(first["state_dict"], second["state_dict"]) == 0
    assert first["metrics"] == second["metrics"]
    assert first["findings"] == second["findings"]


def test_two_processes_calibrate_as_one_does(config):
    assert run(["train", config, "epochs=1"]) == 0
    (best,) = Path("runs").rglob("float-checkpoint-best.pth.tar")
    calibrate = ["train", config, "--step", "calibration", "quantize.images=3", "--ckpt", best]
    jobs = commands(*calibrate, "--out", "two")
    assert run([*map(str, calibrate), "--out", "one"]) == 0
    assert [job.exit_code() for job in jobs] == [0, 0], jobs[0].errors
    require_same_calibration("two", "one")


@pytest.mark.slow
def test_all_steps_by_two_processes(config):
    steps = ["steps.qat.epochs=2", "quantize.images=5", "quantize.qat.batch_norm=kept"]
    quantized = [*steps, "quantize.qat.freeze_after=1"]
    jobs = commands("train", config, "--step", "all", *quantized, "epochs=1", "--out", "two")
    assert [job.exit_code() for job in jobs] == [0, 0], jobs[0].errors + jobs[1].errors
    assert jobs[1].errors == ""
    (best,) = Path("two").rglob("float-checkpoint-best.pth.tar")
    alone = ["train", config, "--step", "calibration", *quantized[1:], "--ckpt", str(best)]
    assert run([*alone, "--out", "one"]) == 0
    require_same_calibration("two", "one")
    assert checkpoint_in("two", "qat", "last")["batch_norm"] == "folded"
    (integers,) = Path("two").rglob("int_infer-checkpoint-best.pth.tar")
    evaluated = commands("eval", "--ckpt", integers)
    assert [job.exit_code() for job in evaluated] == [0, 0]
    (figures,) = Path("two").rglob("*.metrics.json")
    assert json.loads(figures.read_text())["metrics"] == load_checkpoint(integers)["metrics"]


def test_other_commands_run_in_the_main_process_alone(config):
    jobs = commands("config", "check", config)
    assert [job.exit_code() for job in jobs] == [0, 0]
    assert "runs in rank 0 alone" not in jobs[0].errors
    assert jobs[1].errors == "rank 1: 'hat config' runs in rank 0 alone\n"


def test_torchrun_is_not_started_within_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    assert run(["train", "unet", "--device", "0,1"]) == 2
    assert "RANK says that it runs already" in capsys.readouterr().err


def test_several_devices_are_parsed():
    assert devices_in("0,1, cuda:3") == ("cuda", ["0", "1", "3"])
    assert devices_in("cpu,cpu") == ("cpu", ["cpu", "cpu"])
    for text in ("0,cpu", "0,0", "0,", "a,b"):
        with pytest.raises(UsageError, match="devices"):
            devices_in(text)
    words = ["train", "unet", "--device", "0,1", "--device=0,1"]
    expected = ["train", "unet", "--device", "cuda", "--device=cuda"]
    assert _for_one(words, "0,1", "cuda") == expected
    assert _code_of(1, 143, []) == 143
    assert _code_of(1, -signal.SIGTERM, [signal.SIGTERM]) == 143
    with pytest.raises(HatError, match="rank 1 was killed by SIGKILL"):
        _code_of(1, -signal.SIGKILL, [])


def test_gpus_that_are_not_here_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run(["train", "unet", "--device", "0,1"]) == 2
    assert "devices 0,1: this machine has 0 GPUs" in capsys.readouterr().err


def hat(*words: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "hatcli", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_device_cpu_cpu_starts_torchrun_and_hands_signals_on(config, number):
    job = hat("train", config, *SETTINGS, "epochs=40", "train.num_workers=1", "--device", "cpu,cpu")
    deadline = time.monotonic() + 100
    while steps_logged("runs") < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(number)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 128 + number, errors
    assert "batch 2 x 2 processes" in errors
    assert errors.count("error:") == 1
    assert "Traceback" not in errors
    assert load_checkpoint(last_in("runs"))["processes"] == 2


@pytest.mark.slow
def test_device_cpu_cpu_names_a_process_that_is_killed(config):
    job = hat("train", config, *SETTINGS, "epochs=40", "--device=cpu,cpu")
    deadline = time.monotonic() + 100
    while steps_logged("runs") < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 1, errors
    assert "was killed by SIGKILL" in errors
