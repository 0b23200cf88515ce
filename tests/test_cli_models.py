import json
import os
import subprocess
import sys

import pytest

from hatcli.cli import run
from hatcli.cli._options import complete_target
from hatcli.config import load_config, shipped_configs
from hatcli.events import finish
from hatcli.recipes.published import MEASURED, PUBLISHED, REMARKS


@pytest.fixture
def hat(capsys):
    def call(*words):
        code = run(["models", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture(scope="module")
def listed():
    """The whole list, once."""
    from hatcli.recipes.models import list_models

    return finish(list_models())


def test_every_shipped_config_is_listed_by_task_and_name(listed):
    assert {row.name for row in listed} == set(shipped_configs())
    assert [(row.task, row.name) for row in listed] == sorted((r.task, r.name) for r in listed)


def test_costs_are_those_that_hat_ops_counts(listed, capsys):
    rows = {row.name: row for row in listed}
    for name in ("unet", "vargconvnet", "efficientnet_lite2"):
        assert run(["ops", name, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (rows[name].macs, rows[name].params) == (document["macs"], document["params"])
        assert list(rows[name].shape[1:]) == load_config(name)["deploy"]["shape"][1:]


def test_accuracies_belong_to_shipped_configs_and_are_shares():
    for table in (PUBLISHED, MEASURED, REMARKS):
        assert set(table) <= set(shipped_configs())
    for published in PUBLISHED.values():
        assert 50 < published.int8 <= published.float32 < 100
        assert "public J6 manual" in published.source
    assert all(0 < measured.value <= 100 and measured.on for measured in MEASURED.values())


def test_a_part_of_a_name_chooses(hat):
    code, out, err = hat("varg")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    columns = ["params", "MACs", "input", "float", "int8", "measured"]
    assert lines[0] == ["classification", *columns]
    assert lines[1] == [
        "vargconvnet", "9.475", "M", "4.512", "G", "224x224", "77.93", "77.64",
    ]  # fmt: skip
    assert [line[0] for line in lines[1:3]] == ["vargconvnet", "vargnetv2"]
    assert "published by the original toolkit for its own networks" in out
    assert "vargconvnet: the original's configuration is unpublished; this one is our own" in out
    assert "next: hat ops vargconvnet" in err


def test_a_pattern_chooses_and_a_measured_figure_says_on_what(hat):
    _, out, _ = hat("*lite[01]")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["efficientnet_lite0", "efficientnet_lite1"]
    assert lines[1].rstrip().endswith("(1)")
    assert any(line.startswith("(1) top-1 on 300 free pictures") for line in lines)


def test_json_is_one_document(hat):
    code, out, _ = hat("resnet50", "--json")
    (row,) = json.loads(out)
    assert code == 0
    assert (row["name"], row["params"], row["shape"]) == ("resnet50", 25557032, [1, 3, 224, 224])
    assert row["published"]["float32"] == 77.37
    assert row["measured"] is None


def test_no_match_names_the_nearest(hat):
    code, out, err = hat("resnet81")
    assert (code, out) == (2, "")
    assert "no model matches 'resnet81'" in err
    assert "did you mean 'resnet18'?" in err


def test_a_table_keeps_its_digits_in_a_narrow_pipe():
    code = (
        "from hatcli.cli._screen import print_table\n"
        "print_table('', ['a'] * 9, [['1.2345678901'] * 9])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "40"},
    )
    assert done.stdout.count("1.2345678901") == 9


def test_names_are_completed_in_the_shell():
    assert complete_target("resnet") == ["resnet18", "resnet50"]
    assert complete_target("x") == []
    environment = {
        **os.environ,
        "_HAT_COMPLETE": "complete_bash",
        "COMP_WORDS": "hat ops vargc",
        "COMP_CWORD": "2",
    }
    program = "import sys; sys.argv[:] = ['hat']; from hatcli.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.stdout.split() == ["vargconvnet"], done.stderr


def test_the_table_fits_into_eighty_columns(hat):
    _, out, _ = hat()
    tables = [line for line in out.splitlines() if " G " in line]
    assert len(tables) == len(shipped_configs())
    assert max(map(len, tables)) <= 80
