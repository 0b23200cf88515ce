import json

import numpy as np
import pytest
from made_cityscapes import make_cityscapes, pack_cityscapes
from made_imagenet import make_imagenet, pack_imagenet
from made_voc import make_voc
from PIL import Image, ImageFont
from tiny import write_tiny_config

from hatcli.cli import run
from hatcli.data.datasets.cityscapes import Cityscapes
from hatcli.data.loader import Batch, Loader
from hatcli.data.transforms.flip import RandomFlip
from hatcli.events import finish
from hatcli.recipes.data.show import tiles_of
from hatcli.recipes.packing.pack import pack
from hatcli.report.boxes import DISTINCT, _find_room, distinct_palette, draw_boxes, ink_on
from hatcli.report.sheet import WIDTH, Tile, contact_sheet, shortened

GREY = np.full((40, 60, 3), 128, np.uint8)
PALETTE = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
NAMES = ["road", "sky", "car"]


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def has(sheet: np.ndarray, color) -> bool:
    return bool((sheet == np.array(color, np.uint8)).all(2).any())


def colors_in(sheet: np.ndarray) -> set:
    return {tuple(color) for color in np.unique(sheet.reshape(-1, 3), axis=0).tolist()}


# The sheet


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (16, 4), (60, 6)])
def test_a_sheet_has_about_as_many_rows_as_columns_and_one_width(count, columns):
    sheet = contact_sheet([Tile(GREY, ["a"])] * count, NAMES, PALETTE, title="made")
    assert sheet.shape[1] == WIDTH
    grey = (sheet == 128).all(2)
    row = np.flatnonzero(grey.any(1))[10]
    edges = np.flatnonzero(np.diff(grey[row].astype(int)) == 1)
    assert len(edges) == min(columns, count)


def test_a_label_is_laid_over_the_image_and_its_classes_are_in_the_legend():
    label = np.zeros((40, 60), np.uint8)
    label[:, 30:] = 2
    sheet = contact_sheet([Tile(GREY, ["a"], label=label)], NAMES, PALETTE, title="t", strength=1)
    tall = np.flatnonzero((sheet == PALETTE[0]).all(2).any(1))
    assert len(tall) > 300  # the tile, enlarged, and the square of the legend
    assert has(sheet, PALETTE[2])
    assert not has(sheet, PALETTE[1])


def test_ignored_pixels_are_striped_and_a_hidden_class_is_clear():
    label = np.full((40, 60), 255, np.uint8)
    striped = contact_sheet([Tile(GREY, ["a"], label=label)], NAMES, PALETTE, title="t")
    assert has(striped, (128 // 3,) * 3)
    clear = contact_sheet([Tile(GREY, ["a"], label=label * 0)], NAMES, PALETTE, title="t", hidden=0)
    assert not has(clear, (128 // 3,) * 3)
    assert not has(clear, PALETTE[0])
    assert (clear == 128).all(2).sum() > 300 * 300


def test_boxes_are_drawn_at_the_scale_of_their_picture():
    tile = Tile(GREY, ["a"], boxes=np.array([[6.0, 10, 54, 30]]), classes=np.array([1]), marks=[""])
    sheet = contact_sheet([tile], NAMES, PALETTE, title="t")
    rows, columns = np.nonzero((sheet == PALETTE[1]).all(2))
    grey_rows, grey_columns = np.nonzero((sheet == 128).all(2))
    left, width = grey_columns.min(), grey_columns.max() - grey_columns.min() + 1
    assert (columns.max() - left + 1) / width == pytest.approx(54 / 60, abs=0.01)
    in_tile = rows < grey_rows.max()
    assert (columns[in_tile].min() - left) / width == pytest.approx(6 / 60, abs=0.01)


def test_tags_of_boxes_cover_no_other_and_stay_inside():
    rng = np.random.default_rng(0)
    taken: list = []
    size = (200, 150)
    for _ in range(200):
        left, top = (int(edge) for edge in rng.integers(0, [190, 140]))
        box = (left, top, left + 9, top + 9)
        tag = (int(rng.integers(10, 80)), 16)
        place = _find_room(box, tag, size, taken)
        if place is None:
            continue
        assert place[0] >= 0
        assert place[1] >= 0
        assert place[2] <= size[0]
        assert place[3] <= size[1]
        for other in taken:
            apart = place[2] <= other[0] or other[2] <= place[0]
            assert apart or place[3] <= other[1] or other[3] <= place[1]
        assert abs(place[0] - left) <= tag[0] + 10  # it touches its box
        taken.append(place)
    assert 20 < len(taken) < 150


def test_boxes_at_and_beyond_the_border_are_drawn_within():
    image = Image.new("RGB", (30, 20))
    boxes = np.array([[-5, -5, 99, 99], [30, 20, 30, 20], [4, 4, 4, 4]], float)
    draw_boxes(image, boxes, [(255, 0, 0)] * 3, ["a"] * 3, [False, True, False])
    assert has(np.asarray(image), (255, 0, 0))


def test_the_colours_of_classes_are_distinct():
    assert distinct_palette(20, []) == list(DISTINCT)
    palette = distinct_palette(80, [70, 3])
    assert (palette[70], palette[3]) == DISTINCT[:2]
    assert len(set(palette)) >= 60
    assert all(0 <= part <= 255 for color in palette for part in color)
    assert ink_on((255, 255, 25)) == (0, 0, 0)
    assert ink_on((0, 0, 128)) == (255, 255, 255)


def test_long_names_lose_their_middle():
    font = ImageFont.load_default(13)
    text = shortened("frankfurt_000001_012345_a_very_long_name_000019", font, 150)
    assert text.startswith("frank")
    assert text.endswith("19")
    assert font.getlength(text) <= 150
    assert shortened("short", font, 150) == "short"
    narrow = contact_sheet([Tile(GREY, ["x" * 500])] * 2, NAMES, PALETTE, title="word " * 90)
    assert narrow.shape[1] == WIDTH


# The command


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    root = tmp_path_factory.mktemp("streets")
    make_cityscapes(root, train=5, val=2)
    for split in ("train", "val"):
        pack_cityscapes(root, split)
    return root


def test_a_sheet_of_a_config_shows_what_training_reads_first(
    streets, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    config = str(write_tiny_config(tmp_path, streets))
    assert run(["data", "show", config, "--count", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["file"] == "tiny-train.png"
    dataset = Cityscapes("train_lmdb", root=streets)
    order = [batch.names[0] for batch in Loader(dataset, [], batch_size=1, shuffle=True).epoch(0)]
    assert document["samples"] == order[:3]
    assert read("tiny-train.png").shape[1:] == (WIDTH, 3)
    assert run(["data", "show", config, "--count", "3", "--augmented"]) == 0
    assert capsys.readouterr().out == "tiny-train-augmented.png\n"
    assert read("tiny-train-augmented.png").shape != read("tiny-train.png").shape  # square crops


def test_the_same_seed_gives_the_same_sheet_and_another_another(streets, tmp_path, capsys):
    config = str(write_tiny_config(tmp_path, streets))
    sheets = []
    for number, seed in enumerate(("4", "4", "5")):
        file = tmp_path / f"{number}.png"
        assert run(["data", "show", config, "--augmented", "--seed", seed, "-o", str(file)]) == 0
        sheets.append(file.read_bytes())
    assert sheets[0] == sheets[1]
    assert sheets[0] != sheets[2]


def test_a_pack_is_shown_with_all_its_samples_if_they_are_few(
    streets, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run(["data", "show", str(streets / "val_lmdb"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["file"], document["split"], len(document["samples"])) == (
        "val_lmdb.png", "val", 2
    )  # fmt: skip


def test_boxes_and_background_of_voc(tmp_path, capsys):
    make_voc(tmp_path)
    for task in ("detection", "segmentation"):
        out = tmp_path / task
        finish(pack("voc", tmp_path, out, "train", num_workers=0, year="2007", task=task))
        file = tmp_path / f"{task}.png"
        assert run(["data", "show", str(out / "train_lmdb"), "-o", str(file)]) == 0
    boxes = colors_in(read(tmp_path / "detection.png"))
    assert boxes & set(DISTINCT)


def test_augmented_boxes_move_with_the_pixels(tmp_path, capsys):
    """Objects have one colour each: inside of a mirrored box there is that colour."""
    make_voc(tmp_path)
    finish(pack("voc", tmp_path, tmp_path, "train", num_workers=0, year="2007"))
    from hatcli.data.classes import VOC_CLASSES, voc_color
    from hatcli.data.datasets.voc import VOCDetection
    from hatcli.recipes.data.source import open_sources

    _, (source,) = open_sources([str(tmp_path / "train_lmdb")], [], None)
    dataset = VOCDetection("train_lmdb", root=tmp_path)
    for batch in Loader(dataset, [RandomFlip(1.0)], batch_size=1).epoch(0):
        (tile,) = tiles_of(batch, source)
        assert set(tile.marks) <= {"", "difficult"}
        for box, label in zip(tile.boxes.astype(int), tile.classes, strict=True):
            inside = tile.image[box[1] + 3 : box[3] - 3, box[0] + 3 : box[2] - 3]
            color = voc_color(VOC_CLASSES.index(source.classes[label]) + 1)
            assert np.abs(inside.mean((0, 1)) - color).max() < 25


def test_mixed_images_name_both_classes(tmp_path, capsys):
    make_imagenet(tmp_path, train=4, val=1, num_classes=3)
    pack_imagenet(tmp_path, "train")
    config = write_tiny_config(tmp_path, tmp_path)
    changes = [
        "task=classification",
        'train.dataset={"type": "ImageNet", "path": "train_lmdb"}',
        'train.transforms=[{"type": "RandomResizedCrop", "size": 32}]',
        'train.mix={"type": "Mixup", "num_classes": 1000}',
        "train.batch_size=6",
        "model.num_classes=1000",
    ]
    file = tmp_path / "mixed.png"
    assert run(["data", "show", str(config), "--augmented", "-o", str(file), *changes]) == 0
    assert read(file).shape[1] == WIDTH


def test_shares_are_told_in_percent():
    import torch

    class Two:
        classes = ("cat", "dog")

    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    targets = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    tiles = list(tiles_of(Batch(images, targets, ["a", "b"]), Two()))
    assert [tile.lines[0] for tile in tiles] == ["75 % dog + 25 % cat", "cat"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which data?"),
        (["{train}", "{val}"], "which data?"),
        (["{train}", "--count", "0"], "--count 0: give 1 to 100"),
        (["{train}", "--augmented"], "a pack has no transforms"),
        (["{train}", "--split", "val"], "no pack of split 'val'"),
        (["{train}", "-o", "sheet.jpg"], "a sheet is a .png file"),
        (["unet", "--split", "both"], "a config has no split 'both'"),
    ],
)
def test_wrong_usage_is_explained(streets, tmp_path, monkeypatch, arguments, message, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"train": str(streets / "train_lmdb"), "val": str(streets / "val_lmdb")}
    assert run(["data", "show", *[word.format(**places) for word in arguments]]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_damaged_sample_leaves_no_sheet(tmp_path, capsys):
    from made_voc import file_of

    make_voc(tmp_path)
    for number in range(1, 5):
        image = file_of(tmp_path, "JPEGImages", f"{number:06d}")
        image.write_bytes(image.read_bytes()[:-200])
    options = {"year": "2007", "check": "none", "num_workers": 0}
    finish(pack("voc", tmp_path, tmp_path, "train", **options))
    file = tmp_path / "sheet.png"
    assert run(["data", "show", str(tmp_path / "train_lmdb"), "-o", str(file)]) == 1
    assert "truncated" in capsys.readouterr().err
    assert not file.exists()
