import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from hatcli.cli import doctor as command
from hatcli.cli import run
from hatcli.errors import CheckFailed, DataError
from hatcli.recipes import machine
from hatcli.recipes.doctor import checkup, process
from hatcli.recipes.doctor.checkup import GIB, Checkup, Package, SelfTest, _ask, _warnings
from hatcli.recipes.doctor.process import CUDA, IMPORT, SELF_TESTS

ROOT = Path(__file__).parent.parent
WELL = Checkup(
    {"hat": "1", "python": "3.11", "system": "Linux"},
    (Package("numpy", "2.0", ""), Package("av", None, "", "video", "videos")),
    {"built_for": None, "devices": [], "problems": []},
    "made",
    2.0,
    ["avx2", "avx_vnni"],
    True,
    (8 * GIB, 6 * GIB),
    {str(Path().resolve()): (99 * GIB, 50 * GIB), "/dev/shm": (4 * GIB, 4 * GIB)},
    {"open files": 4096, "file size, bytes": None},
    (SelfTest("pack and back", True, "equal", 0.1),),
    (),
)


@pytest.mark.slow  # the documents run it as well
def test_a_sound_machine_passes_and_the_self_tests_ran(capsys):
    assert run(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["faults"] == []
    assert {test["name"]: test["ok"] for test in document["tests"]} == dict.fromkeys(
        SELF_TESTS, True
    )
    integers = next(t for t in document["tests"] if t["name"] == "integers in onnxruntime")
    assert integers["text"].startswith("0 of 2560 codes differ")
    versions = {one["name"]: one["version"] for one in document["packages"]}
    assert versions["torch"].startswith("2.")
    assert document["memory_bytes"][0] >= document["memory_bytes"][1] > 0


def test_what_a_package_needs_is_what_pyproject_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def name(requirement):
        return requirement.partition(">")[0].partition("<")[0].strip()

    assert {name(one) for one in project["dependencies"]} == set(checkup.REQUIRED)
    extras = project["optional-dependencies"]
    extras = {extra: ones for extra, ones in extras.items() if extra not in {"all", "dev", "docs"}}
    named = {(name(one), extra) for extra, ones in extras.items() for one in ones}
    assert {(one, extra) for one, (_, extra, _) in checkup.OPTIONAL.items()} == named


def test_a_package_that_fails_or_kills_its_process_is_told_from_the_others(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("import json.nothing_of_that_name")
    (tmp_path / "deadly.py").write_text("import os\nos.abort()")
    (tmp_path / "talker.py").write_text("print('hello')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    modules = ["talker", "broken", "deadly", "json"]
    answers = list(_ask([IMPORT + module for module in modules]))
    assert [ok for ok, _, _ in answers] == [True, False, False, True]
    assert answers[1][1] == "ModuleNotFoundError: No module named 'json.nothing_of_that_name'"
    assert answers[2][1] == "crashed (SIGABRT)"


def test_a_check_that_never_ends_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(checkup, "LONGEST_S", 1.0)
    assert [answer[:2] for answer in _ask([IMPORT + "slow"])] == [(False, "not done after 1 s")]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"tests": (SelfTest("float export", False, "differs", 1.0),)}, "float export: differs"),
        ({"packages": (Package("numpy", "2", "ImportError: x"),)}, "package numpy: ImportError: x"),
        ({"packages": (Package("numpy", None, ""),)}, "package numpy: is not installed"),
    ],
)
def test_a_fault_makes_the_exit_code_3(monkeypatch, capsys, fault, message):
    def found():
        return replace(WELL, **fault)
        yield

    monkeypatch.setattr(checkup, "examine", found)
    assert run(["doctor"]) == 3
    out, errors = capsys.readouterr()
    assert f"error: 1 fault: {message}" in errors
    assert "not fit" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vnni": False}, "no VNNI"),
        ({"memory_bytes": (8 * GIB, GIB)}, "1.0 GiB of memory free"),
        ({"room": {"/dev/shm": (GIB, 64 << 20)}}, "--shm-size=2g"),
        ({"room": {str(Path().resolve()): (9 * GIB, GIB)}}, "1.0 GiB free on the disk"),
        ({"limits": {"open files": 256}}, "ulimit -n 4096"),
        ({"limits": {"file size, bytes": GIB}}, "ulimit -f unlimited"),
        ({"cuda": {"problems": ["driver too old"]}}, "CUDA: driver too old"),
        (
            {"packages": (Package("av", "1", "ImportError: x", "video", "videos"),)},
            "package av is broken: ImportError: x; pip install 'hatcli[video]'",
        ),
    ],
)
def test_what_may_hurt_is_a_warning_with_what_to_do(monkeypatch, change, message):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert list(_warnings(WELL)) == []
    (warning,) = _warnings(replace(WELL, **change))
    assert message in warning
    assert replace(WELL, **change).faults == []


def test_few_threads_of_many_cores_are_noticed(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (warning,) = _warnings(WELL)
    assert "1 of 2 cores" in warning


def test_the_lines_fit_80_columns_and_name_the_way_to_install():
    long = replace(WELL, warnings=("many words " * 20,), processor="a long name " * 4)
    lines = command._lines(long)
    assert max(map(len, lines)) <= 80
    assert any("av for videos: pip install 'hatcli[video]'" in line for line in lines)
    assert lines[-1] == "ok, 1 warning"


def test_devices_are_listed_with_their_memory():
    gpu = {"name": "H", "capability": "9.0", "memory_bytes": 80 * GIB, "free_bytes": GIB}
    cuda = {"built_for": "13.0", "problems": [], "devices": [{**gpu, "bf16": True}]}
    lines = command._lines(replace(WELL, cuda=cuda))
    assert "gpu      0: H (9.0), 1.0 GiB free of 80.0 GiB, bf16" in lines


# The self-tests would notice


def test_the_self_tests_fail_when_what_they_test_is_wrong(monkeypatch):
    from hatcli.data.packs import frame, reader
    from hatcli.export import parity
    from hatcli.quantize import fake_quantize

    right = fake_quantize.FakeQuantize.apply
    monkeypatch.setattr(fake_quantize.FakeQuantize, "apply", lambda x, *more: right(x, *more) * 1.5)
    with pytest.raises(CheckFailed, match="gives"):
        SELF_TESTS["fake quantization"]()
    monkeypatch.setattr(parity, "_distance", lambda found, expected, step: found * 0 + 1)
    with pytest.raises(CheckFailed):
        SELF_TESTS["integers in onnxruntime"]()
    unsealed = frame.unseal
    monkeypatch.setattr(
        reader, "unseal", lambda key, record, check=True: unsealed(key, record, check=False)
    )
    with pytest.raises(DataError):
        SELF_TESTS["pack and back"]()


def test_errors_become_one_line():
    assert process.one_line(ValueError("a\nb")) == "ValueError: a"
    assert process.one_line(CheckFailed("differs")) == "differs"
    assert json.loads(process.CHECKS[CUDA]())["problems"] == []


# The machine


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "sets", "vnni"),
    [
        ("model name : A\nflags : sse avx2 avx_vnni\n", ["avx2", "avx_vnni"], True),
        ("flags : sse avx2\n", ["avx2"], False),
        ("Features : fp asimddp i8mm\n", ["asimddp", "i8mm"], None),
        ("", None, None),
    ],
)
def test_instruction_sets_are_read_of_the_processor(tmp_path, monkeypatch, text, sets, vnni):
    monkeypatch.setattr(machine, "_CPU", write(tmp_path / "cpuinfo", text))
    assert machine.instruction_sets() == sets
    assert machine.has_vnni() is vnni


def test_a_control_group_limits_cores_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    whole = machine.memory()
    for name, text in (("cpu.max", "50000 100000"), ("memory.max", "1000000"),
                       ("memory.current", "400000")):  # fmt: skip
        write(tmp_path / name, text + "\n")
    assert machine.usable_cores() == 0.5
    assert machine.memory() == (1000000, 600000)
    write(tmp_path / "memory.max", "max\n")
    assert machine.memory()[0] == whole[0]


def test_looking_at_the_machine_loads_nothing_heavy():
    code = "import hatcli.recipes.doctor.checkup, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "PIL", "lmdb"} & set(done.stdout.split())
