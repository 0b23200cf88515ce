"""The how-to pages: their programs give what `hat` gives, and their parts drop in."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from color_net import write_checkpoint, write_picture
from PIL import Image
from street_net import write_street_config
from test_docs import write_parts

from hatcli.cli import run
from hatcli.data.datasets.cityscapes import Cityscapes
from hatcli.data.scenes.draw import write_scenes
from hatcli.export.metadata import read_metadata
from hatcli.metrics.mean_iou import MeanIoU

DOCS = Path(__file__).parent.parent / "docs"
DEPLOY = DOCS / "how-to" / "deploy"
ALONE = """
import runpy, sys
for name in ("hatcli", "torch", "onnx"):
    sys.modules[name] = None  # importing it fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FILES = {
    "float.onnx": ("float", []),
    "scores.onnx": ("float", ["--no-argmax", "--dynamic", "none", "--shape", "1,3,96,144"]),
    "int8.onnx": ("calibration", []),
    "int8_rgb.onnx": ("calibration", ["--with-preprocess"]),
}
SIDES = (140, 90)  # no multiples of what the network takes


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Path:
    """Drawn scenes, and a network of them exported in several ways."""
    folder = tmp_path_factory.mktemp("streets")
    before = Path.cwd()
    os.chdir(folder)
    try:
        list(write_scenes(folder / "data", train=12, val=3, size=SIDES))
        for split in ("train", "val"):
            assert run(["pack", "cityscapes", "--src", "data", "--split", split]) == 0
        pad = '"transforms": [{"type": "PadToMultiple", "divisor": 16}], "batch_size"'
        config = write_street_config(folder, folder / "data")
        text = config.read_text().replace('"batch_size": 2', f"{pad}: 2")
        crop = '[{"type": "RandomCrop", "height": 80, "width": 128}]'
        config.write_text(text.replace('[{"type": "RandomFlip"}]', crop))
        for step in ("float", "calibration"):
            assert run(["train", "street.py", "--step", step]) == 0
        for name, (step, options) in FILES.items():
            ckpt = f"{step}-checkpoint-best.pth.tar"
            assert run(["export", "--ckpt", ckpt, "-o", name, *options]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The C++ program; needs a compiler and the headers of onnxruntime."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    places = [os.environ.get("ONNXRUNTIME_INCLUDE"), "/usr/include", "/usr/local/include"]
    found = (p for place in places if place for p in Path(place).rglob("onnxruntime_cxx_api.h"))
    header = next(found, None)
    libraries = list(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))
    if header is None or not libraries:
        pytest.skip("needs the headers of onnxruntime: ONNXRUNTIME_INCLUDE=FOLDER names them")
    folder = tmp_path_factory.mktemp("program")
    (folder / "lib").mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(libraries[0])
    settings = [f"-DONNXRUNTIME={folder}", f"-DONNXRUNTIME_INCLUDE={header.parent}"]
    make = ["cmake", "-S", str(DEPLOY), "-B", str(folder / "build"), *settings]
    subprocess.run([*make, "-DCMAKE_CXX_FLAGS=-Werror -O1"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(folder / "build")], check=True)
    return folder / "build" / "predict"


def predict_py(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ALONE, DEPLOY / "predict.py", *words]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def pictures(folder: Path) -> list[Path]:
    found = sorted((folder / "data" / "leftImg8bit" / "val").rglob("*.png"))
    assert len(found) == 3
    return found


def labels_of_hat(folder: Path, model: str, out: Path) -> dict[str, np.ndarray]:
    source = str(folder / "data" / "leftImg8bit" / "val")
    words = ["predict", "--ckpt", str(folder / model), source, "--format", "ids", "-o", str(out)]
    assert run(words) == 0
    return {path.stem: read(path) for path in out.rglob("*.png")}


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("model", FILES)
def test_the_python_program_gives_each_pixel_the_class_that_hat_gives(streets, model, tmp_path):
    if model == "scores.onnx":  # of one size
        assert {read(path).shape[:2] for path in pictures(streets)} == {(90, 140)}
    expected = labels_of_hat(streets, model, tmp_path / "hat")
    done = predict_py(streets / model, *pictures(streets), "-o", tmp_path / "own")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    found = {path.stem: read(path) for path in (tmp_path / "own").iterdir()}
    assert found.keys() == expected.keys()
    for name, labels in expected.items():
        assert labels.shape == (90, 140)
        assert len(np.unique(labels)) > 3
        np.testing.assert_array_equal(found[name], labels)


def test_the_python_programs_labels_have_the_score_of_hat_eval(streets, tmp_path, capsys):
    capsys.readouterr()
    assert run(["eval", str(streets / "int8.onnx"), "--json", "--out", str(tmp_path)]) == 0
    scores = json.loads(capsys.readouterr().out)["metrics"]
    predict_py(streets / "int8.onnx", *pictures(streets), "-o", tmp_path / "own")
    metric = MeanIoU(num_classes=19)
    for sample in Cityscapes("val_lmdb", root=streets / "data"):
        (path,) = (tmp_path / "own").glob(f"{sample['name']}*.png")
        indices = torch.from_numpy(read(path).copy())[None]
        metric.update(indices, torch.from_numpy(sample["label"])[None])
    assert metric.compute()["mIoU"] == scores["mIoU"]


@pytest.mark.parametrize("model", FILES)
def test_the_cpp_program_gives_each_pixel_the_class_that_hat_gives(
    streets, model, program, tmp_path
):
    expected = labels_of_hat(streets, model, tmp_path / "hat")
    for path in pictures(streets):
        with Image.open(path) as image:
            image.convert("RGB").save(tmp_path / "a.ppm")
        words = [program, streets / model, tmp_path / "a.ppm", tmp_path / "a.pgm"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(read(tmp_path / "a.pgm"), expected[path.stem])
        shares = [float(line.rsplit(" ", 2)[1]) for line in done.stdout.splitlines()]
        assert sum(shares) == pytest.approx(100, abs=0.01)


CLASSES = {
    "task": "classification",
    "model": {"type": "ColorClass"},
    "val": {"dataset": {"type": "ColorStripes"}},
    "metric": {"type": "Accuracy"},
    "deploy": {"argmax": False, "shape": [1, 3, 8, 8]},
}
MIDDLE = [{"type": "Resize", "size": 12}, {"type": "CenterCrop", "size": 8}]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    val = {**CLASSES["val"], "transforms": MIDDLE}
    ckpt = write_checkpoint(folder / "c.pth.tar", **{**CLASSES, "val": val})
    assert run(["export", "--ckpt", str(ckpt), "-o", str(folder / "c.onnx")]) == 0
    return folder / "c.onnx"


def percents_of_hat(model: Path, picture: Path, capsys) -> dict[str, float]:
    capsys.readouterr()
    assert run(["predict", "--ckpt", str(model), str(picture), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["pictures"]
    return {one["name"]: one["percent"] for one in found["classes"]}


def test_the_color_matrix_of_a_file_is_that_of_its_batch_transforms(streets, classifier):
    found = {}
    for path in (streets / "float.onnx", classifier):
        found[path.name] = json.loads(read_metadata(onnx.load(path))["hat.color_matrix"])
    assert found["float.onnx"][0] == [77 / 2**15, 150 / 2**15, 29 / 2**15, -1.0]
    assert np.float32(found["c.onnx"]).tolist() == np.float32(np.eye(3, 4) / 51).tolist()


def test_the_python_program_classifies_as_hat_does(classifier, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 3, (31, 40)).astype(np.uint8)
    picture = write_picture(tmp_path / "noise.png", noise)
    program = runpy.run_path(str(DEPLOY / "predict.py"))
    found = program["probabilities"](program["Model"](classifier), read(picture))
    expected = percents_of_hat(classifier, picture, capsys)
    assert [*found] == [*expected]
    assert [100 * share for share in found.values()] == pytest.approx([*expected.values()], 1e-9)
    best = next(iter(expected))
    assert predict_py(classifier, picture).stdout.startswith(f"noise.png {best} ")


def test_the_cpp_program_classifies_a_picture_of_the_networks_size(
    classifier, program, tmp_path, capsys
):
    noise = np.random.default_rng(0).integers(0, 3, (12, 12)).astype(np.uint8)
    picture = write_picture(tmp_path / "noise.png", noise)
    expected = percents_of_hat(classifier, picture, capsys)
    with Image.open(picture) as image:
        image.crop((2, 2, 10, 10)).save(tmp_path / "a.ppm")
    words = [program, classifier, tmp_path / "a.ppm", "--threads", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [*expected]
    assert [float(line[1]) for line in lines] == pytest.approx([*expected.values()], rel=1e-4)
    assert "prepared already as this says" in done.stderr


def test_the_programs_say_what_they_cant_use(streets, tmp_path, program):
    broken = tmp_path / "a.ppm"
    broken.write_text("P6 4 4 255\n")
    done = subprocess.run(
        [program, streets / "int8.onnx", broken], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, f"error: {broken}: cut\n")


def test_the_python_program_says_what_it_cant_use(streets, tmp_path):

    model = onnx.load(streets / "float.onnx")
    assert "hat.color_matrix" in read_metadata(model)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    done = predict_py(tmp_path / "bare.onnx", pictures(streets)[0])
    assert done.returncode == 1
    assert "export it again" in done.stderr
    assert "Traceback" not in done.stderr


# A network of one's own


PAGE = DOCS / "how-to" / "own-model.md"
MISTAKES = {
    "a wrong argument": ("", "", ["config", "check", "my_config.py", "model.widths=24"]),
    "no import": ("", "", ["config", "check", "my_config.py", "imports=[]"]),
    "no such head": ("", "", ["train", "my_config.py", "deploy.head=3"]),
    "a crop of no multiple": (
        "",
        "",
        ["train", "my_config.py", "epochs=1", "train.transforms.0.width=100"],
    ),
    "no head": ("", "", ["train", "my_config.py", "--step", "all", "deploy={}"]),
    "an error in the file": (
        "fine + self.upsample(coarse)",
        "fine + self.upsample(fine)",
        ["train", "my_config.py", "epochs=1"],
    ),
    "a branch": (
        "        coarse = to_8(fine)\n",
        "        coarse = to_8(fine)\n        if coarse.mean() > 1:\n            coarse = fine\n",
        ["train", "my_config.py", "--step", "calibration"],
    ),
    "an activation": (
        "nn.ReLU(inplace=True)",
        "nn.LeakyReLU(0.1)",
        ["train", "my_config.py", "--step", "calibration"],
    ),
    "a constant": (
        "        coarse = to_8(fine)\n",
        "        coarse = to_8(fine)\n        coarse = coarse * 0.5\n",
        ["train", "my_config.py", "--step", "calibration"],
    ),
}


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    """The files of the page, and data, packed."""
    folder = tmp_path_factory.mktemp("network")
    assert write_parts(PAGE, folder) == ["my_net.py", "my_config.py"]
    root = folder / "data" / "cityscapes"
    list(write_scenes(root, train=4, val=2, size=(256, 128)))
    for split in ("train", "val"):
        assert run(["pack", "cityscapes", "--src", str(root), "--split", split]) == 0
    return folder


@pytest.mark.usefixtures("own_parts")
@pytest.mark.parametrize("name", MISTAKES)
def test_a_beginners_mistake_looks_as_the_page_says(network, name, tmp_path, monkeypatch, capsys):
    old, new, command = MISTAKES[name]
    shutil.copytree(network, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    source = Path("my_net.py").read_text()
    assert old in source
    Path("my_net.py").write_text(source.replace(old, new))
    if "calibration" in command:
        assert run(["train", "my_config.py", "epochs=1"]) == 0
    capsys.readouterr()
    assert run(command) in (1, 2)
    errors = capsys.readouterr().err
    assert "defect of hat" not in errors
    shown = [line for line in PAGE.read_text().splitlines() if line.startswith("error: ")]
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    if name == "no head":  # of the one step that goes on it is a warning
        line = f"warning: {line.removeprefix('error: ')}; {_hint(errors)}"
        shown = PAGE.read_text().splitlines()
    assert line in shown


def _hint(errors: str) -> str:
    return errors.splitlines()[-1].removeprefix("hint: ")


# A metric of one's own


@pytest.mark.usefixtures("own_parts")
def test_the_metric_shown_counts_as_numpy_does_and_merges(tmp_path):
    assert write_parts(DOCS / "how-to" / "own-metric.md", tmp_path) == ["my_metric.py"]
    shown = runpy.run_path(str(tmp_path / "my_metric.py"))["DistantPixels"]
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((5, 4, 3, 4)).astype(np.float32)
    labels = rng.choice([0, 1, 2, 3, 255], (5, 12, 8)).astype(np.uint8)
    whole, first, second = shown(horizon=0.25), shown(horizon=0.25), shown(horizon=0.25)
    for metric, part in ((whole, slice(None)), (first, slice(2)), (second, slice(2, None))):
        metric.update(torch.from_numpy(scores[part]), torch.from_numpy(labels[part]))
    chosen = scores.argmax(1).repeat(4, 1).repeat(2, 2)
    expected = {}
    for name, rows in (("above", slice(3)), ("below", slice(3, None))):
        known = labels[:, rows] != 255
        expected[name] = 100 * (chosen == labels)[:, rows][known].mean()
    assert whole.compute() == pytest.approx(expected)
    first.merge([first.counted(), second.counted()])
    assert first.compute() == whole.compute()
    indices = torch.from_numpy(scores).argmax(1, keepdim=True)
    second.reset()
    second.update(indices, torch.from_numpy(labels))
    assert second.compute() == whole.compute()


# The Python API


def test_the_example_of_the_python_api_runs(monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    source = (DOCS / "examples" / "python_api.py").read_text()
    short = source.replace('"epochs=16"', '"epochs=2"').replace("train=48", "train=8")
    short = short.replace("event.epoch % 4 == 0", "True")
    assert short.count("epochs=2") == 1
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(short, "python_api.py", "exec"), names)
    printed = capsys.readouterr().out
    assert "epoch 2: loss" in printed
    assert "0 of " in printed
    assert " codes differ" in printed
    plt.close("all")
    private = [line for line in source.splitlines() if "import _" in line or "._" in line]
    assert not private
