import pytest
from tiny import write_tiny_config

from hatcli.config import (
    KEYS,
    find_config,
    from_values,
    load_config,
    override,
    shipped_configs,
    show_config,
)
from hatcli.errors import ConfigError
from hatcli.recipes.check import check_config


@pytest.fixture
def tiny(tmp_path):
    return write_tiny_config(tmp_path, tmp_path / "data")


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_is_complete_and_names_only_what_exists(name):
    check_config(load_config(name))


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shown_config_loads_back_equal(name, tmp_path):
    config = load_config(name)
    copy = tmp_path / f"{name}.py"
    copy.write_text(show_config(config))
    assert load_config(str(copy)) == config


def test_a_shipped_path_is_found_where_no_local_file_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/segmentation/unet.py") == shipped_configs()["unet"]
    local = tmp_path / "configs" / "segmentation" / "unet.py"
    local.parent.mkdir(parents=True)
    local.write_text("")
    assert find_config("configs/segmentation/unet.py").resolve() == local


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("optim.lr=0.02", ("optim", "lr"), 0.02),
        ("optim.type=adamw", ("optim", "type"), "adamw"),
        ("optim.nesterov=true", ("optim", "nesterov"), True),
        ("fit.clip_grad_norm=None", ("fit", "clip_grad_norm"), None),
        ("train.transforms.1.height=96", ("train", "transforms", 1, "height"), 96),
        ("model.name='5'", ("model", "name"), "5"),
        ("data_rootdir=/data/a=b", ("data_rootdir",), "/data/a=b"),
        ("loss.stride_weights=[1, 2]", ("loss", "stride_weights"), [1, 2]),
        ("steps.qat.epochs=3", ("steps", "qat", "epochs"), 3),
    ],
)
def test_an_override_needs_no_nested_quotes(tiny, text, path, value):
    node = load_config(str(tiny), [text]).values
    for key in path:
        node = node[key]
    assert node == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim", "looks like key.sub=value"),
        ("optim.=1", "looks like key.sub=value"),
        ("optimm.lr=1", "unknown name 'optimm'"),
        ("epochs.lr=1", "epochs has no entries"),
        ("train.transforms.7.p=1", "'7' is no position in a list of 3"),
        ("train.transforms.x.p=1", "'x' is no position in a list of 3"),
    ],
)
def test_an_override_that_leads_nowhere_is_an_error(tiny, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(str(tiny), [text])


def test_an_override_leaves_the_config_it_came_from_alone(tiny):
    config = load_config(str(tiny))
    changed = config.with_overrides(["optim.lr=9"])
    assert (config["optim"]["lr"], changed["optim"]["lr"]) == (0.05, 9)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = (", "line 1"),
        ("\0", "null bytes"),
        ("task = 1\nraise KeyError('data_rootdir')", "line 2: KeyError: 'data_rootdir'"),
        ("import sys\nsys.exit(0)", "line 2: called sys.exit"),
        ("task = 'segmentation'", "lacks 'model', 'train', 'val'"),
        ("epoks = 3", "unknown name 'epoks'"),
        ("epochs = '3'", "epochs must be of type int, got '3'"),
        ("model = {'a': object()}", "model.a is a object; a config holds plain data only"),
        ("model = {1: 2}", "has the key 1, which is no string"),
    ],
)
def test_a_broken_config_is_explained(tmp_path, source, message):
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert message in caught.value.message
    assert "broken" in caught.value.message


@pytest.mark.parametrize("target", ["unett", "missing.py", "configs/no.py", "."])
def test_a_target_that_is_not_there_is_an_error(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        load_config(target + ("/" if target == "." else ""))


def test_what_a_config_prints_does_not_reach_stdout(tiny, capsys):
    tiny.write_text("print('hello')\n" + tiny.read_text())
    load_config(str(tiny))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("optim.lrr=0.1", "optim: optimizer 'sgd' has no argument 'lrr'", "did you mean 'lr'?"),
        ("model.type=unett", "model: no model 'unett'", "did you mean 'unet'?"),
        ("optim.lr=high", "optim: optimizer 'sgd': lr must be float, got 'high'", ""),
        ("train.batch=2", "train: no setting 'batch'", "did you mean 'batch_size'?"),
        ("train.batch_size=0", "train.batch_size: must be at least 1, got 0", ""),
        ("epochs=0", "epochs: must be at least 1, got 0", ""),
        ("fit.precision=int4", "fit.precision: must be Literal", ""),
        ("task=detecting", "task: unknown 'detecting'", "did you mean 'detection'?"),
        ("val.transforms=[3]", "val.transforms.0: must be a dict with a 'type', got 3", ""),
        ("steps.quat.epochs=1", "steps: no step 'quat'", "did you mean 'qat'?"),
        ("imports=['no_such_module']", "imports: 'no_such_module' fails", ""),
        ("imports=['missing.py']", "imports: no such file: missing.py", ""),
    ],
)
def test_a_check_names_the_place_and_the_nearest(tiny, text, message, hint):
    with pytest.raises(ConfigError) as caught:
        check_config(load_config(str(tiny), [text]))
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_an_installed_package_joins_through_its_entry_point(tiny, monkeypatch):
    loaded = []

    class Plugin:
        def load(self) -> None:
            loaded.append("plugin")

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Plugin()])
    check_config(load_config(str(tiny)))
    assert loaded == ["plugin"]


def test_defaults_are_not_shared_between_configs(tiny):
    first = load_config(str(tiny))
    override(first.values, "quantize.target=ort")
    assert load_config(str(tiny))["quantize"] == {}
    assert KEYS["quantize"].default == {}


def test_a_checkpoints_config_is_data_and_is_never_run(tiny):
    config = load_config(str(tiny))
    assert from_values("tiny", dict(config.values)) == config
