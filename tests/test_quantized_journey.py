"""float -> calibration -> qat -> int_infer, by the command line, on drawn streets."""

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from packed import packed_streets
from street_net import write_street_config

from hatcli.cli import run
from hatcli.config import load_config
from hatcli.engine.checkpoint import load_checkpoint
from hatcli.events import EpochDone
from hatcli.recipes.steps import config_of_step
from hatcli.recipes.training.calibrate import EvenSubset
from hatcli.recipes.training.predecessor import open_predecessor
from hatcli.recipes.training.qat import train_qat

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with street.py, its data, and runs of float and calibration."""
    folder = tmp_path_factory.mktemp("streets")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = packed_streets(folder / "data", train=9, val=4)
        config = str(write_street_config(folder, data))
        assert run(["train", config]) == 0
        assert run(["train", config, "--step", "calibration"]) == 0
    return folder


@pytest.fixture
def street(made, tmp_path, monkeypatch) -> str:
    """The config, in a folder of its own with copies of the runs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "runs", "runs")
    return shutil.copy(made / "street.py", "street.py")


def best_of(step: str) -> Path:
    """The best checkpoint of the newest run of a step."""
    return sorted(Path("runs/street").glob(f"*-{step}*/{step}-checkpoint-best.pth.tar"))[-1]


def headline_of(checkpoint: Path) -> float:
    return load_checkpoint(checkpoint)["metrics"]["mIoU"]


def test_a_calibration_leaves_a_run_folder_like_the_others(made):
    (folder,) = (made / "runs" / "street").glob("*-calibration")
    names = {path.name for path in folder.iterdir()}
    files = {"config.py", "args.txt", "env.json", "train.log", "summary.json"}
    assert names >= {*files, "calibration-checkpoint-best.pth.tar"}
    summary = json.loads((folder / "summary.json").read_text())
    assert [entry["step"] for entry in summary["steps"]] == ["float", "calibration"]
    assert summary["steps"][1]["metrics"] == summary["headline"]
    log = (folder / "train.log").read_text()
    assert "5 of 9 training images" in log
    assert f"at the end: mIoU {summary['headline']['mIoU']:.2f}" in log.splitlines()[-1]


def test_the_steps_follow_each_other_and_each_checkpoint_scores_what_it_says(street, capsys):
    assert run(["train", street, "--step", "qat", "epochs=2"]) == 0
    errors = capsys.readouterr().err
    assert f"starting from {best_of('calibration')} (the newest calibration or float run)" in errors
    assert "next: hat train street.py --step int_infer" in errors
    assert run(["train", street, "--step", "int_infer"]) == 0
    captured = capsys.readouterr()
    table = [line.split() for line in captured.out.splitlines()[-7:-2]]
    assert [row[0] for row in table] == ["step", "float", "calibration", "qat", "int_infer"]
    assert f"hat export --ckpt {best_of('int_infer')}" in captured.err
    for step in ("float", "calibration", "qat", "int_infer"):
        best = best_of(step)
        assert run(["eval", "--ckpt", str(best), "--json"]) == 0
        scored = json.loads(capsys.readouterr().out)["metrics"]
        reported = load_checkpoint(best)["metrics"]
        assert {k: v for k, v in scored.items() if v is not None} == {
            k: v for k, v in reported.items() if v == v
        }, step
    lineage = load_checkpoint(best_of("int_infer"))["lineage"]
    assert [entry["step"] for entry in lineage] == ["float", "calibration", "qat"]
    assert [Path(entry["file"]) for entry in lineage] == [
        best_of(entry["step"]) for entry in lineage
    ]
    assert headline_of(best_of("float")) > 10  # or the rest means nothing
    assert headline_of(best_of("int_infer")) > headline_of(best_of("float")) - 2


def test_the_exported_integers_score_what_int_infer_scored(street, capsys):
    assert run(["train", street, "--step", "int_infer"]) == 0
    assert run(["export", "--ckpt", str(best_of("int_infer")), "-o", "street.onnx"]) == 0
    capsys.readouterr()
    assert run(["eval", "street.onnx", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)["metrics"]
    assert scored["mIoU"] == headline_of(best_of("int_infer"))


def test_the_step_all_is_one_command(street, capsys):
    settings = ["epochs=2", "fit.val_every=1", "steps.qat.epochs=1"]
    assert run(["train", street, "--step", "all", *settings, "--out", "all", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [made["step"] for made in document["runs"]] == [
        "float", "calibration", "qat", "int_infer",
    ]  # fmt: skip
    assert document["step"] == "int_infer"
    assert document["steps"] == document["runs"][-1]["steps"]
    configs = [load_config(f"{made['run']}/config.py") for made in document["runs"]]
    assert [config["epochs"] for config in configs] == [2, 2, 1, 2]


def test_the_tutorials_spelling_scores_the_newest_checkpoint_of_the_step(street, capsys):
    words = ["train", "--step", "calibration", "--config", street, "--val-only"]
    assert run(words) == 0
    assert f"checkpoint: {best_of('calibration')} (of the newest run)" in capsys.readouterr().err
    assert run([*words, "--val-ckpt", "calibration-checkpoint-best.pth.tar"]) == 0


def test_qat_of_a_newer_float_run_calibrates_that_first(street, capsys):
    assert run(["train", street, "epochs=1"]) == 0
    newest = best_of("float")
    capsys.readouterr()
    assert run(["train", street, "--step", "qat", "epochs=1"]) == 0
    errors = capsys.readouterr().err
    assert f"starting from {newest}" in errors
    assert "qat starts from a calibration: that comes first" in errors
    lineage = load_checkpoint(best_of("qat"))["lineage"]
    assert [Path(entry["file"]) for entry in lineage] == [newest, best_of("calibration")]


def test_integers_of_an_older_float_run_are_worth_a_warning(street, capsys):
    older = best_of("float")
    assert run(["train", street, "epochs=1"]) == 0
    newest = best_of("float").parent
    capsys.readouterr()
    assert run(["train", street, "--step", "int_infer"]) == 0
    assert f"goes back to {older}, not to the newest float run {newest}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("step", "start", "code", "message"),
    [
        ("calibration", "calibration", 2, "calibration starts from a float checkpoint; "),
        ("int_infer", "float", 2, "int_infer starts from a qat or calibration checkpoint; "),
    ],
)
def test_a_checkpoint_of_the_wrong_step_is_refused(street, step, start, code, message, capsys):
    assert run(["train", street, "--step", step, "--ckpt", str(best_of(start))]) == code
    assert message in capsys.readouterr().err
    assert len(list(Path("runs/street").iterdir())) == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.width=4", "made with model {'type': 'street_net'}, the config asks for"),
        ("quantize.weight_bits=4", "made with quantize {'images': 5}, the config asks for"),
        ("batch_transforms=[]", "made with batch_transforms"),
    ],
)
def test_another_models_checkpoint_is_refused(street, setting, message, capsys):
    assert run(["train", street, "--step", "int_infer", setting]) == 1
    assert message in capsys.readouterr().err


def test_qat_is_never_worse_than_its_start(street, capsys):
    settings = ["epochs=2", "optim.lr=3.0", "fit.val_every=1"]
    assert run(["train", street, "--step", "qat", *settings]) == 0
    assert "no epoch was better than the start" in capsys.readouterr().err
    best, start = load_checkpoint(best_of("qat")), load_checkpoint(best_of("calibration"))
    assert best["epoch"] == 0
    assert best["metrics"]["mIoU"] == start["metrics"]["mIoU"]
    last = load_checkpoint(best_of("qat").with_name("qat-checkpoint-last.pth.tar"))
    assert last["epoch"] == 2
    assert last["metrics"]["mIoU"] < best["metrics"]["mIoU"]
    summary = json.loads((best_of("qat").parent / "summary.json").read_text())
    assert (summary["best_epoch"], summary["epochs"]) == (0, 2)


def test_learned_scales_move_and_fixed_ones_stay(street):
    moved = {}
    for scales in ("fixed", "learned"):
        settings = [f"quantize.qat.scales={scales}", "epochs=1", "optim.lr=0.001"]
        assert run(["train", street, "--step", "qat", *settings, "--out", scales,
                    "--ckpt", str(best_of("calibration"))]) == 0  # fmt: skip
        (last,) = Path(scales).rglob("qat-checkpoint-last.pth.tar")
        before = load_checkpoint(best_of("calibration"))["state_dict"]
        after = load_checkpoint(last)["state_dict"]
        assert before.keys() == after.keys()
        names = [name for name in before if name.endswith("scale")]
        moved[scales] = [name for name in names if not torch.equal(before[name], after[name])]
        assert run(["eval", "--ckpt", str(last)]) == 0
        assert run(["train", street, "--step", "int_infer", "--ckpt", str(last)]) == 0
    assert moved["fixed"] == []
    assert len(moved["learned"]) > 4


def test_kept_batch_norms_learn_and_are_folded_when_asked(street):
    settings = ["quantize.qat.batch_norm=kept", "quantize.qat.freeze_after=1", "fit.val_every=1"]
    calibration = ["--ckpt", str(best_of("calibration"))]
    for epochs, has_norms in ((1, True), (2, False)):
        out = f"kept{epochs}"
        words = [*settings, f"epochs={epochs}", "optim.lr=0.001", "--out", out, *calibration]
        assert run(["train", street, "--step", "qat", *words]) == 0
        (last,) = Path(out).rglob("qat-checkpoint-last.pth.tar")
        content = load_checkpoint(last)
        names = [name for name in content["state_dict"] if ".bn." in name]
        assert bool(names) is has_norms
        assert content["batch_norm"] == ("kept" if has_norms else "folded")
        words = ["--step", "int_infer", "--ckpt", str(last), "--out", out]
        assert run(["train", street, *words]) == 0
        (integers,) = Path(out).rglob("int_infer-checkpoint-best.pth.tar")
        assert headline_of(integers) == pytest.approx(content["metrics"]["mIoU"], abs=1)


def test_a_student_learns_from_the_float_model(street, capsys):
    settings = ["epochs=1", "optim.lr=0.001", "--ckpt", str(best_of("calibration"))]
    states = []
    for weight in (0, 5):
        words = [*settings, f"quantize.qat.distill={weight}", "--out", f"distilled{weight}"]
        assert run(["train", street, "--step", "qat", *words]) == 0
        (last,) = Path(f"distilled{weight}").rglob("qat-checkpoint-last.pth.tar")
        states.append(load_checkpoint(last)["state_dict"]["head.weight"])
    assert not torch.equal(*states)
    assert "distilled by 5 at temperature 1" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["quantize.qat.distill=1.0", "quantize.qat.batch_norm=kept"])
def test_a_float_model_that_is_gone_or_changed_is_named(street, setting, capsys):
    words = ["train", street, "--step", "qat", setting, "--ckpt", str(best_of("calibration"))]
    float_file = best_of("float")
    content = float_file.read_bytes()
    float_file.write_bytes(content + b"x")
    assert run(words) == 1
    assert f"{float_file}: changed since the calibration" in capsys.readouterr().err
    float_file.unlink()
    assert run(words) == 1
    assert f"the float checkpoint {float_file} is gone" in capsys.readouterr().err
    assert not list(Path("runs/street").glob("*-qat"))


def test_runs_that_moved_still_find_their_float_model(street):
    shutil.move("runs", "moved")
    words = ["--out", "moved", "epochs=1", "quantize.qat.distill=1.0"]
    assert run(["train", street, "--step", "qat", *words]) == 0


def test_plain_weights_are_calibrated_too(street, capsys):
    weights = load_checkpoint(best_of("float"))["state_dict"]
    torch.save(weights, "plain.pth")
    words = ["--weights", "plain.pth", "--out", "plain"]
    assert run(["train", street, "--step", "qat", "epochs=1", *words]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-5:-2]] == [
        ["float", f"{headline_of(best_of('float')):.2f}"],
        ["calibration", f"{headline_of(best_of('calibration')):.2f}"],
        ["qat", f"{headline_of(next(Path('plain').rglob('qat-*-best.pth.tar'))):.2f}"],
    ]
    words = ["epochs=1", "quantize.qat.distill=1.0", "--out", "plain"]
    assert run(["train", street, "--step", "qat", *words]) == 0


SETTINGS = {
    "fixed": [],
    "average and teacher": ["fit.ema_decay=0.9", "quantize.qat.distill=1.0"],
    "learned": ["quantize.qat.scales=learned"],
    "norms folded before": ["quantize.qat.batch_norm=kept", "quantize.qat.freeze_after=1"],
    "norms folded there": [
        "quantize.qat.batch_norm=kept", "quantize.qat.freeze_after=2", "fit.ema_decay=0.9",
    ],
    "norms folded later": ["quantize.qat.batch_norm=kept", "quantize.qat.freeze_after=3"],
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_qat_ends_with_the_same_state(street, name):
    settings = [*SETTINGS[name], "epochs=4", "optim.lr=0.001", "fit.val_every=1"]
    words = [*settings, "--ckpt", str(best_of("calibration"))]
    assert run(["train", street, "--step", "qat", *words, "--out", "whole"]) == 0
    config = config_of_step(load_config(street), "qat", settings)
    before = open_predecessor(best_of("calibration"), "qat", config, target=street)
    stop_after(2, train_qat(config, before, out=Path("runs")))
    assert run(["train", street, "--step", "qat", "--resume"]) == 0
    (whole,), (resumed,) = (
        list(Path(folder).rglob("qat-checkpoint-last.pth.tar")) for folder in ("whole", "runs")
    )
    states = flat(load_checkpoint(whole)), flat(load_checkpoint(resumed))
    assert states[0].keys() == states[1].keys()
    different = [key for key in states[0] if not same(states[0][key], states[1][key])]
    assert different == []
    assert len((resumed.parent / "results.csv").read_text().splitlines()) == 6  # and epoch 0


def stop_after(epoch: int, job: Iterator[object]) -> None:
    for event in job:
        if isinstance(event, EpochDone) and event.epoch == epoch:
            break
    job.close()


def flat(content: object, name: str = "") -> dict[str, object]:
    """All that a run goes on with, by its path."""
    if name == "":
        keys = ("state_dict", "ema_state_dict", "ema_updates", "optimizer", "epoch", "best",
                "history", "batch_norm", "lineage")  # fmt: skip
        content = {key: content[key] for key in keys}
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        return {k: v for key, item in items for k, v in flat(item, f"{name}.{key}").items()}
    return {name: content}


def same(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_calibration_images_lie_evenly_and_so_does_any_beginning():
    images = EvenSubset(range(1000), 100)
    indices = [images[number] for number in range(len(images))]
    assert sorted(indices) == list(range(0, 1000, 10))
    beginning = sorted(indices[:10])
    assert max(b - a for a, b in pairwise(beginning)) <= 200
    assert sorted(EvenSubset(range(3), 100).indices) == [0, 1, 2]
    assert EvenSubset(range(3), 1).indices == [0]
    for count in range(1, 60):
        assert sorted(EvenSubset(range(60), count).indices) == [
            i * 60 // count for i in range(count)
        ]
