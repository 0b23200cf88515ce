import json

import pytest

from hatcli.cli import run
from hatcli.config import Config, load_config, shipped_configs
from hatcli.recipes.diff import ABSENT, differences


@pytest.fixture
def hat(capsys):
    def call(*words):
        code = run(["config", "diff", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def changed(**values):
    """Two configs, the second with other values of some names."""
    config = load_config("unet")
    return config, Config("b", {**config.values, **values})


def found(**values):
    return {row.key: (row.first, row.second) for row in differences(*changed(**values))}


@pytest.mark.parametrize("name", shipped_configs())
def test_a_config_does_not_differ_from_itself(name):
    assert differences(load_config(name), load_config(name)) == []


def test_only_what_differs_is_listed_by_the_path_that_an_override_takes():
    config = load_config("unet")
    other = config.with_overrides(["optim.lr=0.5", "train.transforms.0.height=64", "epochs=3"])
    rows = differences(config, other)
    assert [(row.key, row.first, row.second) for row in rows] == [
        ("train.transforms.0.height", 1024, 64),
        ("optim.lr", 0.01, 0.5),
        ("epochs", 300, 3),
    ]
    overrides = [f"{row.key}={row.second!r}" for row in rows]
    assert config.with_overrides(overrides) == other


def test_an_entry_of_one_config_alone_is_absent_in_the_other():
    assert found(optim={"type": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": None}) == {
        "optim.weight_decay": (5e-3, ABSENT),
        "optim.nesterov": (ABSENT, None),
    }
    assert found(batch_transforms=[]) == {
        "batch_transforms.0.type": ("RgbToYuv444", ABSENT),
        "batch_transforms": (ABSENT, []),
    }


def test_lists_of_plain_values_are_one_value_and_tuples_are_lists():
    values = load_config("unet").values
    assert found(deploy={**values["deploy"], "shape": (1, 3, 1024, 2048)}) == {}
    assert found(deploy={**values["deploy"], "shape": [1, 3, 64, 2048]}) == {
        "deploy.shape": ([1, 3, 1024, 2048], [1, 3, 64, 2048])
    }
    assert found(quantize={"a": [[1, 2], [3]]})["quantize.a.0"] == (ABSENT, [1, 2])


def test_a_truth_value_is_no_number():
    first = Config("a", {"fit": {"channels_last": True}})
    second = Config("b", {"fit": {"channels_last": 1}})
    assert [row.key for row in differences(first, second)] == ["fit.channels_last"]
    assert differences(first, Config("c", {"fit": {"channels_last": True}})) == []


def test_two_shipped_configs_are_compared_side_by_side(hat):
    code, out, err = hat("resnet18", "resnet50")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["key", "resnet18", "resnet50"]
    assert ["model.type", "'resnet18'", "'resnet50'"] in rows
    assert ["train.batch_size", "128", "64"] in rows


def test_settings_change_the_second_config(hat):
    for words in (["unet", "unet", "epochs=3"], ["unet", "epochs=3"]):
        code, out, _ = hat(*words)
        assert code == 0
        assert [line.split() for line in out.splitlines()] == [
            ["key", "unet", "unet", "epochs=3"],
            ["epochs", "300", "3"],
        ]


def test_equal_configs_exit_0_too(hat):
    assert hat("unet", "configs/segmentation/unet.py") == (
        0,
        "unet and configs/segmentation/unet.py: no difference\n",
        "",
    )


def test_json_leaves_out_what_a_config_has_not(hat):
    code, out, _ = hat("unet", "optim={'type': 'sgd', 'lr': 0.01}", "--json")
    assert code == 0
    assert json.loads(out) == {
        "a": "unet",
        "b": "unet optim={'type': 'sgd', 'lr': 0.01}",
        "differences": [
            {"key": "optim.momentum", "a": 0.9},
            {"key": "optim.weight_decay", "a": 0.005},
        ],
    }
    assert json.loads(hat("unet", "unet", "--json")[1])["differences"] == []


def test_what_looks_like_markup_is_shown_as_it_is(hat):
    _, out, _ = hat("unet", "data_rootdir=[red]a[/]")
    assert out.splitlines()[1].split() == ["data_rootdir", "'data/cityscapes'", "'[red]a[/]'"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "two configs to compare, got none"),
        (["unet"], "two configs to compare, got unet"),
        (["unet", "demo", "unet"], "got unet and demo and unet"),
        (["unet", "unett"], "no config 'unett'"),
        (["unet", "epok=3"], "unknown name 'epok'"),
    ],
)
def test_wrong_words_are_usage_errors(hat, words, message):
    code, out, err = hat(*words)
    assert (code, out) == (2, "")
    assert message in err


def test_values_too_wide_for_columns_stand_in_lines(hat):
    code, out, _ = hat("unet", "unet_small")
    assert code == 0
    assert out.splitlines()[0] == "unet -> unet_small"
    assert "optim.lr: 0.01 -> 0.008" in out
    assert "loss.alpha: 0.25 -> -" in out
