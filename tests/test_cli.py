"""What holds for every command."""

import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.rich_utils

import hatcli.cli
from hatcli.cli import run

COMMANDS = [
    [module.name]
    for module in pkgutil.iter_modules(hatcli.cli.__path__)
    if not module.name.startswith("_")
]
COMMANDS += [
    ["bench", "train"],
    ["data", "check"],
    ["data", "show"],
    ["config", "show"],
    ["config", "check"],
    ["config", "list"],
    ["pack", "cityscapes"],
]
HEAVY = {
    "torch",
    "torchvision",
    "numpy",
    "PIL",
    "lmdb",
    "msgpack",
    "zstandard",
    "onnx",
    "onnxruntime",
    "thop",
    "matplotlib",
}

PROBE = """
import sys
from hatcli.cli import run
code = run({arguments!r})
loaded = sorted({heavy!r} & set(sys.modules))
print("PROBE", code, *loaded, file=sys.stderr)
"""


def probe(*arguments: str) -> tuple[int, list[str], str, str]:
    """Exit code, heavy modules loaded, stdout and stderr of a command in a fresh interpreter."""
    code = PROBE.format(arguments=list(arguments), heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    *errors, line = done.stderr.splitlines()
    _, exit_code, *loaded = line.split()
    return int(exit_code), loaded, done.stdout, "\n".join(errors)


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_help_shows_an_example_and_loads_nothing_heavy(command):
    code, loaded, out, _ = probe(*command, "--help")
    assert (code, loaded) == (0, [])
    is_group = command in ([], ["bench"], ["config"], ["data"], ["pack"])
    assert is_group or f"hat {command[0]}" in out.replace("Usage: hat", ""), out


@pytest.mark.parametrize(
    "command", [["export"], ["train"], ["eval"], ["predict"], ["pack", "voc"]], ids=" ".join
)
def test_eighty_columns_of_help_show_every_option_whole(command, monkeypatch, capsys):
    monkeypatch.setattr(typer.rich_utils, "MAX_WIDTH", 80)
    assert run([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--help" in shown
    assert "…" not in shown


def test_the_help_lists_commands_in_the_order_of_the_journey(capsys):
    assert run(["--help"]) == 0
    words = re.findall(r"^[│|] (\w+) ", capsys.readouterr().out, re.MULTILINE)
    journey = ["pack", "train", "eval", "export", "predict"]
    assert [word for word in words if word in journey] == journey
    assert {command[0] for command in COMMANDS} <= set(words)


def test_an_interrupt_says_that_it_stopped(monkeypatch, capsys):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hatcli.config.show_config", interrupt)
    assert run(["config", "show", "unet"]) == 130
    assert capsys.readouterr().err == "error: stopped\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainn"], "No such command 'trainn'"),
        (["train"], "which config?"),
        (["train", "unett"], "no config 'unett'"),
        (["train", "unet", "unet"], "one target is enough"),
        (["train", "unet", "optim.lr"], "settings are written key=value"),
        (["eval", "no/such.onnx"], "no such file: no/such.onnx"),
        (["train", "unet", "optim.lrr=0.1"], "has no argument 'lrr'"),
        (["train", "unet", "--step", "foat"], "step 'foat' unknown"),
        (["train", "unet", "--step", "qat"], "qat: no float checkpoint of unet in runs/"),
        (["train", "unet", "--step", "all", "quantize.images=0"], "images: must be at least 1"),
        (["train", "unet", "--epochs", "x"], "Invalid value"),
        (["train", "unet", "--val-only"], "no float-checkpoint-best.pth.tar here"),
        (["train", "unet", "-b", "0"], "train.batch_size: must be at least 1"),
        (["eval", "unet"], "which file?"),
        (["eval", "unet", "--official"], "--official and --gt-dir go together"),
        (["eval", "--ckpt", "x.pth", "--min", "mIoU"], "give NAME=VALUE"),
        (["eval", "--ckpt", "no/such.pth"], "checkpoint not found: no/such.pth"),
        (["quantize", "unet"], "calibration: no float checkpoint of unet in runs/"),
        (["config", "check", "unet", "fit.precisio=1"], "fit: no setting 'precisio'"),
    ],
)
def test_wrong_usage_is_one_line_and_a_hint_and_loads_nothing_heavy(arguments, message):
    code, loaded, out, errors = probe(*arguments)
    assert (code, loaded, out) == (2, [], "")
    assert message in errors
    assert len(errors.splitlines()) <= 3
    assert "Traceback" not in errors


def test_version():
    code, loaded, out, _ = probe("--version")
    assert (code, loaded, out) == (0, [], f"hat {hatcli.__version__}\n")


def test_a_shown_config_is_the_result_and_nothing_else(capsys):
    assert run(["config", "show", "unet", "optim.lr=0.5", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["optim"]["lr"] == 0.5
    assert captured.err == ""


def test_a_defect_keeps_its_traceback_and_exits_70(monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("hatcli.config.show_config", fail)
    assert run(["config", "show", "unet"]) == 70
    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert "this is a defect of hat" in errors


def test_a_closed_pipe_is_no_noise():
    command = f"{sys.executable} -m hatcli config show unet | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_full_output_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hatcli", "config", "show", "unet"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: cannot write the output: No space left on device\n"


def test_other_scripts_survive_an_ascii_terminal(tmp_path):
    config = tmp_path / "configs"
    config.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "hatcli", "config", "check", "路.py"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no such config file" in done.stderr
