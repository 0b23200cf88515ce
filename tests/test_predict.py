import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from color_net import (
    COLORS,
    CONFIG,
    NAMES,
    stripes,
    write_checkpoint,
    write_integers,
    write_picture,
)
from made_cityscapes import make_cityscapes, pack_cityscapes
from PIL import Image

from hatcli.cli import run
from hatcli.data.picture_source import _plain
from hatcli.engine.checkpoint import load_checkpoint, save_checkpoint

LABEL = stripes(37, 50)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """One network as a checkpoint, as integers, and both as ONNX."""
    folder = tmp_path_factory.mktemp("color")
    found = {"checkpoint": write_checkpoint(folder / "float.pth.tar")}
    found["integers"] = write_integers(folder / "int.pth.tar", found["checkpoint"])
    for name, source, *more in (
        ("onnx", "checkpoint"),
        ("scores", "checkpoint", "--with-preprocess", "--no-argmax"),
        ("integer onnx", "integers"),
    ):
        found[name] = folder / f"{name}.onnx"
        words = ["export", "--ckpt", str(found[source]), "-o", str(found[name]), *more]
        assert run([*words, "--dynamic", "both"]) == 0
    return found


@pytest.fixture
def hat(tmp_path, monkeypatch, files, capsys):
    """Runs hat predict in an empty folder; gives its exit code, and keeps what it said."""
    monkeypatch.chdir(tmp_path)

    def call(*words, ckpt="checkpoint"):
        capsys.readouterr()
        model = ["--ckpt", str(files[ckpt])] if ckpt else []
        code = run(["predict", *model, *map(str, words)])
        call.out, call.err = capsys.readouterr()
        return code

    return call


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("ckpt", ["checkpoint", "integers", "onnx", "scores", "integer onnx"])
def test_any_model_file_gives_the_classes_at_the_size_of_the_picture(hat, ckpt):
    write_picture(Path("a.png"), LABEL)
    assert hat("a.png", "--format", "ids", ckpt=ckpt) == 0
    np.testing.assert_array_equal(read("predictions/a.png"), LABEL)


def test_an_overlay_has_the_colors_of_the_classes_and_a_table_their_shares(hat):
    write_picture(Path("a.png"), LABEL)
    assert hat("a.png") == 0
    picture = read("predictions/a.png")
    assert picture.shape == (37, 50, 3)
    pixels = [picture[0, column].tolist() for column in (0, 8, 16)]
    mixed = [(COLORS[0] + np.array([230.0, 25, 75])) / 2]
    np.testing.assert_allclose(pixels[0], mixed[0], atol=1)
    assert pixels[0] != pixels[1] != pixels[2]
    share = 100 * (LABEL == 0).mean()
    assert f"red {share:.0f} %" in hat.out
    assert "ms a picture: read" in hat.err
    assert "written: predictions/a.png" in hat.err
    assert "ms a picture" not in hat.out


def test_beside_the_picture_stands_the_overlay_and_a_legend_below(hat):
    write_picture(Path("a.png"), LABEL)
    assert hat("a.png", "--format", "side", "--jpeg", "-o", "out") == 0
    with Image.open("out/a.jpg") as image:
        assert image.format == "JPEG"
        assert image.width == 2 * 50 + 4
        assert image.height > 37
    document = json.loads(Path("out/predictions.json").read_text())
    assert document["pictures"][0]["file"] == "out/a.jpg"


def test_a_palette_png_holds_indices_and_colors(hat):
    write_picture(Path("a.png"), LABEL)
    assert hat("a.png", "--format", "palette") == 0
    with Image.open("predictions/a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), LABEL)
        assert image.getpalette()[:3] == [230, 25, 75]


def test_a_crop_of_the_config_leaves_the_rest_without_a_class(hat):
    write_picture(Path("a.png"), LABEL)
    crop = 'val.transforms=[{"type": "CenterCrop", "size": [16, 32]}]'
    assert hat("a.png", crop, "--format", "ids") == 0
    found = read("predictions/a.png")
    assert (found[0] == 255).all()
    np.testing.assert_array_equal(found[12:24, 10:40], LABEL[12:24, 10:40])


def test_json_writes_no_picture(hat):
    write_picture(Path("a.png"), LABEL)
    assert hat("a.png", "--format", "json") == 0
    (picture,) = json.loads(hat.out)["pictures"]
    assert (picture["width"], picture["height"], picture["file"]) == (50, 37, None)
    assert sum(one["percent"] for one in picture["classes"]) == pytest.approx(100)
    assert not Path("predictions").exists()


def test_pictures_of_many_sizes_go_in_batches_and_in_order(hat):
    sizes = [(32, 48), (20, 33), (32, 48), (32, 48), (17, 16), (31, 40)]
    for number, size in enumerate(sizes):
        write_picture(Path(f"in/{number}.png"), stripes(*size, shift=number))
    assert hat("in", "--format", "ids", "-b", "3", "--json") == 0
    names = [one["name"] for one in json.loads(hat.out)["pictures"]]
    assert names == [f"{number}.png" for number in range(6)]
    for number, size in enumerate(sizes):
        found = read(f"predictions/{number}.png")
        np.testing.assert_array_equal(found, stripes(*size, shift=number))


def test_a_damaged_picture_is_named_or_left_out_and_counted(hat):
    write_picture(Path("in/a.png"), LABEL)
    data = write_picture(Path("in/deep/b.png"), LABEL).read_bytes()
    Path("in/deep/b.png").write_bytes(data[:60])
    write_picture(Path("in/c.jpg"), LABEL)
    assert hat("in") == 1
    assert "truncated" in hat.err
    assert "in/deep/b.png" in hat.err
    assert "--on-error skip" in hat.err
    assert hat("in", "--on-error", "skip", "-o", "out", "--json") == 1
    assert "error: 1 picture was left out" in hat.err
    document = json.loads(hat.out)
    assert [one["name"] for one in document["pictures"]] == ["a.png", "c.jpg"]
    assert "in/deep/b.png" in document["failed"][0]
    assert {path.name for path in Path("out").iterdir()} == {"a.png", "c.png", "predictions.json"}


def test_two_pictures_of_one_name_get_two_files_and_sources_stay(hat):
    for name in ("a.png", "a.jpg"):
        write_picture(Path(name), LABEL)
    before = Path("a.png").read_bytes()
    assert hat("a.png", "a.jpg", "-o", "out") == 0
    assert {path.name for path in Path("out").glob("*.png")} == {"a.png", "a-2.png"}
    assert hat("a.png", "-o", ".") == 2
    assert "would be written over" in hat.err
    assert hat(".", "-o", ".") == 2
    assert Path("a.png").read_bytes() == before


def test_results_within_a_folder_of_pictures_are_no_pictures(hat):
    write_picture(Path("a.png"), LABEL)
    for _ in range(2):
        assert hat(".", "--json") == 0
        assert len(json.loads(hat.out)["pictures"]) == 1


def test_a_picture_is_turned_as_its_exif_says(hat):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    Image.fromarray(COLORS[np.rot90(LABEL)]).save("a.png", exif=exif)
    assert hat("a.png", "--format", "ids") == 0
    np.testing.assert_array_equal(read("predictions/a.png"), LABEL)


@pytest.mark.parametrize("kind", ["lmdb", "mxrecord"])
def test_a_pack_gives_what_its_pictures_give(hat, kind, tmp_path):
    root = make_cityscapes(tmp_path / "city", train=1, val=2)
    pack_cityscapes(root, "val", pack_type=kind)
    assert hat(root / f"val_{kind}", "--format", "json") == 0
    packed = {one["name"]: one["classes"] for one in json.loads(hat.out)["pictures"]}
    assert hat(root / "leftImg8bit" / "val", "--format", "json") == 0
    raw = {
        Path(one["name"]).name.removesuffix("_leftImg8bit.png"): one["classes"]
        for one in json.loads(hat.out)["pictures"]
    }
    assert len(raw) == 2
    assert packed == raw


def test_a_damaged_sample_of_a_pack_is_left_out(hat, tmp_path):
    root = make_cityscapes(tmp_path / "city", train=1, val=2)
    pack_cityscapes(root, "val", pack_type="mxrecord")
    data = root / "val_mxrecord" / "meta.rec"
    data = next(p for p in (root / "val_mxrecord").iterdir() if b"IDAT" in p.read_bytes())
    content = bytearray(data.read_bytes())
    content[content.index(b"IDAT") + 9] ^= 1
    data.write_bytes(content)
    assert hat(root / "val_mxrecord", "--format", "json", "--on-error", "skip") == 1
    document = json.loads(hat.out)
    assert (len(document["pictures"]), len(document["failed"])) == (1, 1)
    assert hat(root / "val_mxrecord") == 1


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..\\..\\etc\\passwd"])
def test_the_name_of_a_sample_leads_nowhere_else(name):
    assert _plain(name) == "etc/passwd"


# Classification


CLASSES = {
    "task": "classification",
    "model": {"type": "ColorClass"},
    "val": {"dataset": {"type": "ColorStripes"}, "transforms": [{"type": "CenterCrop", "size": 8}]},
    "metric": {"type": "Accuracy"},
    "deploy": {"argmax": False, "shape": [1, 3, 8, 8]},
}


def test_a_picture_is_named_with_its_probability(hat, tmp_path):
    ckpt = write_checkpoint(tmp_path / "c.pth.tar", **CLASSES)
    write_picture(Path("in/green.png"), np.full((20, 30), 1, np.uint8))
    write_picture(Path("in/blue.png"), np.full((9, 9), 2, np.uint8))
    assert hat(ckpt, "in", "--top", "2", "--json", ckpt=None) == 0
    blue, green = json.loads(hat.out)["pictures"]
    assert [one["name"] for one in green["classes"]] == ["green", "red"]
    scores = np.exp(COLORS[1] / 51.0)
    assert green["classes"][0]["percent"] == pytest.approx(100 * scores[1] / scores.sum(), 1e-5)
    assert blue["classes"][0]["name"] == "blue"
    assert not Path("predictions").exists()
    assert hat(ckpt, "in", "--top", "2", ckpt=None) == 0
    lines = [line.split() for line in hat.out.splitlines()]
    assert lines[0] == ["picture", "class", "%"]
    assert [line[0] for line in lines[1:]] == ["blue.png", "green", "green.png", "red"]


# Video


def write_video(path: Path, labels, size=(32, 48)) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5, options={"qscale": "1"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for label in labels:
            frame = av.VideoFrame.from_ndarray(COLORS[label], format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_video_is_drawn_frame_by_frame(hat):
    av = pytest.importorskip("av")
    labels = [np.full((32, 48), shift, np.uint8) for shift in (0, 1, 2, 0, 1)]
    write_video(Path("drive.mp4"), labels)
    assert hat("drive.mp4", "--format", "side", "--json", "--every", "2") == 0
    document = json.loads(hat.out)["pictures"]
    assert [one["name"] for one in document] == [f"drive-00000{n}" for n in (0, 2, 4)]
    assert [one["classes"][0]["name"] for one in document] == ["red", "blue", "green"]
    assert {one["file"] for one in document} == {"predictions/drive.mp4"}
    with av.open("predictions/drive.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate * 2 == 5
    assert len(frames) == 3
    assert frames[0].shape[1] == 2 * 48 + 4
    np.testing.assert_allclose(frames[1][36, 10], COLORS[2], atol=12)


def test_frames_of_indices_are_pictures_and_a_cut_video_is_named(hat):
    pytest.importorskip("av")
    write_video(Path("drive.mp4"), [stripes(32, 48)] * 3)
    assert hat("drive.mp4", "--format", "ids") == 0
    assert len(list(Path("predictions").glob("drive-*.png"))) == 3
    data = Path("drive.mp4").read_bytes()
    Path("cut.mp4").write_bytes(data[: len(data) // 3])
    assert hat("cut.mp4") == 1
    assert "cut.mp4" in hat.err
    assert hat("drive.mp4", "-o", ".") == 2
    assert Path("drive.mp4").read_bytes() == data


def test_a_video_that_was_filmed_upright_is_turned(hat):
    pytest.importorskip("av")
    label = np.zeros((32, 48), np.uint8)
    label[:, :24] = 1
    write_video(Path("a.mp4"), [label])
    data = bytearray(Path("a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one, none = (65536).to_bytes(4, "big"), bytes(4)
    quarter = [none, one, none, (-65536).to_bytes(4, "big", signed=True), none, none]
    data[matrix : matrix + 24] = b"".join(quarter)  # shown a quarter clockwise
    Path("a.mp4").write_bytes(data)
    assert hat("a.mp4", "--format", "ids") == 0
    found = read("predictions/a-000000.png")
    assert found.shape == (48, 32)
    assert (found[:20] == 1).all()
    assert (found[28:] == 0).all()


def test_a_video_without_its_package_says_how_to_get_it(hat, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    Path("drive.mp4").write_bytes(b"x")
    assert hat("drive.mp4") == 2
    assert "hint: pip install 'hatcli[video]'" in hat.err


# Words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which pictures?"),
        (["nowhere.png"], "no picture, folder, pack or video: nowhere.png"),
        (["empty"], "empty: holds no pictures"),
        (["unet", "a.png"], "holds the model"),
    ],
)
def test_what_is_missing_is_said(hat, words, message):
    Path("empty").mkdir()
    write_picture(Path("a.png"), LABEL)
    assert hat(*words) in (1, 2)
    assert message in hat.err
    assert "Traceback" not in hat.err


def test_a_model_is_needed_and_may_come_first(hat, files):
    write_picture(Path("a=b.png"), LABEL)
    assert hat("a=b.png", ckpt=None) == 2
    assert "which model?" in hat.err
    assert hat(files["onnx"], "a=b.png", ckpt=None) == 0
    assert "a=b.png" in hat.out


def test_a_text_is_no_picture(hat):
    Path("a.png").write_text("hello")
    assert hat("a.png") == 1
    assert "not an image (starts with 'hello'): a.png" in hat.err


def test_classes_without_names_go_by_their_numbers(hat, tmp_path, files):
    content = {**load_checkpoint(files["checkpoint"]), "classes": []}
    values = {**CONFIG, "val": {"dataset": {"type": "Cityscapes", "path": "nowhere"}}}
    content["config"] = {"name": "color", "values": values}
    save_checkpoint(tmp_path / "plain.pth.tar", content)
    write_picture(Path("a.png"), LABEL)
    assert hat("plain.pth.tar", "a.png", "--json", ckpt=None) == 0
    classes = json.loads(hat.out)["pictures"][0]["classes"]
    assert {one["name"] for one in classes} == {"0", "1", "2"}
    assert "they go by their numbers" in hat.err
    shutil.copy(files["checkpoint"], "named.pth.tar")
    assert hat("named.pth.tar", "a.png", "--json", ckpt=None) == 0
    classes = json.loads(hat.out)["pictures"][0]["classes"]
    assert {one["name"] for one in classes} == set(NAMES)
