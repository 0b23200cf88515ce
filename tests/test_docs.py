"""Every command in the documents runs, or says in its line why it doesn't."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_cityscapes import make_cityscapes
from made_coco import make_coco
from made_imagenet import make_imagenet
from made_voc import make_voc
from PIL import Image
from street_net import write_street_config
from tiny import write_tiny_config

from hatcli.cli import run
from hatcli.config import from_values, load_config
from hatcli.data.scenes.draw import write_scenes
from hatcli.engine.checkpoint import load_checkpoint
from hatcli.models import MODELS
from hatcli.quantize import OBSERVERS
from hatcli.quantize.prepare import prepare
from hatcli.quantize.spec import read_spec
from hatcli.recipes.check import check_config

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [path for path in DOCUMENTS if path.parent.name != "zh"]  # twins: see test_tutorials.py
QUANTIZATION = ROOT / "docs" / "guide" / "quantization.md"
BLOCK = re.compile(r"^```(console|bash|python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MARK = "# not run by the tests"
MAKE = {
    "make demo", "make test", "make test-full", "make check", "make bench", "make dist",
    "make docs",
}  # fmt: skip
# What the shipped recipes need to train in seconds on tiny pictures; nothing else is changed.
SMALL_STEPS = ["epochs=1", "steps.qat.epochs=1", "quantize.images=4"]
SMALL_CLASSES = [
    *SMALL_STEPS,
    "schedule.warmup_epochs=0",
    "train.transforms.0.size=32",
    "val.transforms.0.size=40",
    "val.transforms.1.size=32",
    "train.batch_size=4",
    "train.num_workers=0",
    "val.num_workers=0",
]
SMALL_MAPS = [
    *SMALL_STEPS,
    "schedule.warmup_epochs=0",
    "train.transforms.0.height=64",
    "train.transforms.0.width=64",
    "train.batch_size=2",
    "train.num_workers=0",
    "val.num_workers=0",
]


def blocks(document: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(document.read_text()) if kind == language]


def commands(document: Path) -> list[str]:
    lines = [line for text in blocks(document, "console") for line in text.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def run_line(line: str) -> None:
    """Run a command; a training of a shipped recipe on little data of its kind."""
    words = shlex.split(line)
    target = words.index(">") if ">" in words else None
    arguments = words[1:target]
    other = {"--val-only", "--resume", "--compare"} & set(arguments)
    trains_shipped = arguments[0] in ("train", "quantize") and not other
    trains_shipped = trains_shipped and "my_config.py" not in arguments
    small = SMALL_CLASSES if "vargconvnet" in line else SMALL_MAPS
    if arguments[1:2] == ["demo"]:
        small = [*small, "deploy.shape=[1,3,64,128]"]
    # They come first, so that what the document says wins.
    code = run([arguments[0], *(small if trains_shipped else []), *arguments[1:]])
    # Whether a network of one epoch meets a budget is chance; both are documented results.
    assert code in ((0, 3) if "--max-drop" in words else (0,)), line


def write_inputs(document: Path, folder: Path) -> None:
    """Make the data that the commands of a document read, and the files that they name."""
    data = folder / "data"
    make_cityscapes(data / "cityscapes", train=4, val=2)
    if "imagenet" in document.name:
        make_imagenet(data / "imagenet", train=4, val=2, num_classes=1000)
    elif document.name == "quickstart.md":
        list(write_scenes(folder / "demo" / "scenes", train=8, val=2, size=(128, 64)))
    elif document.name == "voc.md":
        make_voc(data / "voc", year="2012")
    elif document.name == "mscoco.md":
        make_coco(data / "mscoco")
    elif document.name == "add-your-own.md":
        make_roads(data / "my_roads")
        assert len(write_parts(document, folder)) == 3
    elif document.parent.name == "how-to":
        write_parts(document, folder)


def make_roads(root: Path) -> None:
    """Photos that are dark where there is road, and their masks."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(4):
            mask = np.zeros((64, 96), np.uint8)
            mask[:, 10 * number : 10 * number + 40] = 255
            noise = rng.integers(0, 60, (64, 96, 3), np.uint8)
            for folder, pixels in (
                ("images", noise + (255 - mask)[..., None] // 2),
                ("masks", mask),
            ):
                path = root / folder / split / f"road{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)


@pytest.mark.usefixtures("own_parts")
@pytest.mark.parametrize("document", RUN, ids=lambda path: path.name)
def test_every_command_of_a_document_runs(document, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_inputs(document, tmp_path)
    for line in commands(document):
        if MARK in line:
            continue
        capsys.readouterr()
        assert line.startswith("hat "), f"{document.name}: can't run {line!r}"
        run_line(line)
        if "> my_unet.py" in line:
            Path("my_unet.py").write_text(capsys.readouterr().out)
    for source in blocks(document, "python"):
        if "register" not in source:  # a part to copy; it has a test of its own
            exec(compile(source, document.name, "exec"), {"__name__": document.stem})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_shell_blocks_hold_make_targets_or_marked_lines(document):
    makefile = (ROOT / "Makefile").read_text()
    for text in blocks(document, "bash"):
        for line in text.splitlines():
            command = line.partition("#")[0].strip()
            assert command in MAKE or MARK.removeprefix("# ") in line, line
            if command in MAKE:
                assert f"\n{command.removeprefix('make ')}:" in makefile


def test_marks_are_few_and_give_a_reason():
    marked = [
        line
        for document in DOCUMENTS
        for line in document.read_text().splitlines()
        if "not run by the tests" in line
    ]
    assert len(marked) <= 12
    assert all(re.search(r"not run by the tests( here)?: \w+", line) for line in marked)


def test_every_link_to_a_file_leads_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def write_parts(document: Path, folder: Path) -> list[str]:
    """Write the files that a document shows, ready to copy; their names."""
    shown = re.compile(
        r"`(my_\w+\.py)`:\n\n```(?:python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL
    )
    files = shown.findall(document.read_text())
    for name, source in files:
        (folder / name).write_text(source)
    return [name for name, _ in files]


@pytest.mark.usefixtures("own_parts")
def test_the_parts_shown_in_contributing_drop_in(tmp_path, monkeypatch, capsys):
    names = write_parts(ROOT / "docs" / "project" / "contributing.md", tmp_path)
    assert names == ["my_model.py", "my_loss.py", "my_dataset.py"]
    shown = next(
        b for b in blocks(ROOT / "docs" / "project" / "contributing.md", "text") if "imports" in b
    )
    config = write_tiny_config(tmp_path, tmp_path)
    changes = shown + 'val = {**train, "dataset": {"type": "HalfRoad", "length": 4}}\n'
    config.write_text(f"{config.read_text()}\n{changes}deploy = {{'shape': [1, 3, 64, 128]}}\n")
    monkeypatch.chdir(tmp_path)
    assert run(["config", "check", str(config), "--data"]) == 0
    assert run(["train", str(config), "epochs=6", "optim.lr=0.2"]) == 0
    assert run(["ops", str(config)]) == 0
    assert run(["export", "--ckpt", "best.pth"]) == 0
    capsys.readouterr()
    assert run(["eval", "tiny.onnx", "--min", "aAcc=80"]) == 0


@pytest.mark.usefixtures("own_parts")
def test_the_observer_shown_drops_in(tmp_path, monkeypatch, capsys):
    assert write_parts(QUANTIZATION, tmp_path) == ["my_observer.py"]
    shown = next(b for b in blocks(QUANTIZATION, "text") if "imports" in b)
    monkeypatch.chdir(tmp_path)
    list(write_scenes(tmp_path / "data", train=8, val=2, size=(128, 64)))
    for split in ("train", "val"):
        assert run(["pack", "cityscapes", "--src", "data", "--split", split]) == 0
    config = write_street_config(tmp_path, tmp_path / "data")
    module = load_config(str(config))["imports"]
    config.write_text(f"{config.read_text()}\n{shown}imports += {module!r}\n")
    for step in ("float", "calibration", "int_infer"):
        capsys.readouterr()
        assert run(["train", str(config), "--step", step, "--json"]) == 0
    trained, calibrated, integers = json.loads(capsys.readouterr().out)["steps"]
    assert trained["metrics"]["mIoU"] > 10
    assert integers["metrics"]["mIoU"] > trained["metrics"]["mIoU"] - 2
    chosen = load_checkpoint(Path(calibrated["file"]))["config"]["values"]["quantize"]
    assert chosen["observer"] == {"type": "StandardDeviations", "number": 5.0}
    observer = OBSERVERS.build({"type": "StandardDeviations", "number": 2.0})
    observer.observe(torch.tensor([-9.0, *[0.0] * 16, 9.0]))  # a standard deviation of 3
    assert observer.range(8) == pytest.approx((-6, 6))
    assert run(["export", "--ckpt", "best.pth"]) == 0
    assert run(["export", "--verify", "street-int_infer.onnx"]) == 0
    assert run(["train", str(config), "--step", "calibration", "quantize.observer.number=0.0"]) == 2
    assert "number: must be above 0, got 0.0" in capsys.readouterr().err


def test_the_settings_shown_for_integers_fit_the_network_that_they_name():
    for text in blocks(QUANTIZATION, "text"):
        if text.startswith(("quantize", "steps")):
            values: dict[str, Any] = {}
            exec(text, values)
            del values["__builtins__"]
            config = from_values("shown", {**load_config("unet_small").values, **values})
            check_config(config)
            network = MODELS.build(config["model"]).keep_head(config["deploy"]["head"])
            prepare(network, read_spec(config["quantize"]))
