import sys

import numpy as np
import pytest
from PIL import Image

from hatcli.errors import HatError
from hatcli.report.curves import write_curves
from hatcli.report.pictures import (
    colorize,
    overlay,
    side_by_side,
    with_legend,
    with_titles,
    write_png,
)

PALETTE = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
NAMES = ["road", "sky", "car"]
LABEL = np.array([[0, 1, 2], [255, 0, 3]], np.uint8)
IMAGE = np.full((2, 3, 3), 100, np.uint8)


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_colorize_gives_each_class_its_color_and_black_to_what_is_none(kind):
    colors = colorize(LABEL.astype(kind), PALETTE)
    assert colors.dtype == np.uint8
    assert colors[0].tolist() == [list(color) for color in PALETTE]
    assert colors[1].tolist() == [[0, 0, 0], [250, 0, 0], [0, 0, 0]]


def test_colorize_takes_minus_one_as_no_class():
    assert colorize(np.array([[-1]]), PALETTE).tolist() == [[[0, 0, 0]]]


def test_overlay_mixes_known_classes_and_leaves_the_rest_clear():
    mixed = overlay(IMAGE, LABEL, PALETTE, strength=0.5)
    assert mixed.dtype == np.uint8
    assert mixed[0, 0].tolist() == [175, 50, 50]
    assert mixed[1, 0].tolist() == [100, 100, 100]
    assert np.array_equal(overlay(IMAGE, LABEL, PALETTE, strength=0), IMAGE)


def test_panels_stand_side_by_side():
    prediction = np.zeros((2, 3), np.uint8)
    picture = side_by_side(IMAGE, prediction, LABEL, PALETTE)
    assert picture.shape == (2, 3 * 3 + 2 * 4, 3)
    assert np.array_equal(picture[:, :3], IMAGE)
    assert np.array_equal(picture[:, 7:10], colorize(prediction, PALETTE))
    assert np.array_equal(picture[:, 14:], colorize(LABEL, PALETTE))
    assert side_by_side(IMAGE, prediction, None, PALETTE).shape == (2, 3 * 2 + 4, 3)


def test_a_coarse_prediction_is_enlarged_to_the_image():
    image = np.zeros((4, 8, 3), np.uint8)
    coarse = np.array([[0, 1], [2, 0]], np.uint8)
    picture = side_by_side(image, coarse, None, PALETTE)
    fine = coarse.repeat(2, 0).repeat(4, 1)
    assert np.array_equal(picture[:, 12:], colorize(fine, PALETTE))


def test_a_legend_shows_the_classes_that_occur():
    image = np.zeros((40, 200, 3), np.uint8)
    label = np.zeros((40, 200), np.uint8)
    label[:, 100:] = 2
    picture = side_by_side(image, label, label, PALETTE, names=NAMES)
    assert np.array_equal(picture[26:66], side_by_side(image, label, label, PALETTE))
    colors = set(map(tuple, picture[66:].reshape(-1, 3).tolist()))
    assert {PALETTE[0], PALETTE[2]} <= colors
    assert PALETTE[1] not in colors
    plain = np.full_like(label, 0)
    ignored = np.full_like(label, 255)
    squares = [
        side_by_side(image, plain, other, PALETTE, names=NAMES)[66:] for other in (plain, ignored)
    ]
    black = [(square == 0).all(2).sum() for square in squares]
    assert black[1] > black[0] + 150  # a black square, and its name


def test_each_panel_has_its_own_title():
    panels = np.zeros((30, 3 * 100 + 2 * 4, 3), np.uint8)
    both = with_titles(panels, ["image", "prediction", "label"])
    assert np.array_equal(both[26:], panels)
    columns = np.flatnonzero((both[:26] < 255).any((0, 2)))
    starts = [columns[columns >= part * 104].min() - part * 104 for part in range(3)]
    assert all(start < 10 for start in starts)
    narrow = with_titles(np.zeros((5, 2 * 20 + 4, 3), np.uint8), ["prediction", "label"])
    assert (narrow[:26, 20:24] == 255).all()  # a title that is too long ends with its panel


def test_a_narrow_legend_takes_more_rows():
    wide = with_legend(np.zeros((5, 400, 3), np.uint8), PALETTE, NAMES)
    narrow = with_legend(np.zeros((5, 70, 3), np.uint8), PALETTE, NAMES)
    assert wide.shape[1] == 400
    assert narrow.shape[1] == 70
    assert narrow.shape[0] > wide.shape[0] > 5
    colors = set(map(tuple, narrow[5:].reshape(-1, 3).tolist()))
    assert set(PALETTE) <= colors


def test_a_png_holds_the_picture_and_its_folder_is_made(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / "new" / "folder" / "a.png"
    write_png(path, picture)
    assert np.array_equal(read(path), picture)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HatError, match=r"file/a\.png: cannot write it"):
        write_png(tmp_path / "file" / "a.png", IMAGE)


def test_a_failed_write_leaves_the_older_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_png(path, IMAGE)
    older = path.read_bytes()

    def fill_the_disk(self, file, format):  # noqa: A002 - Pillow's name
        file.write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(HatError, match="No space left on device"):
        write_png(path, np.zeros_like(IMAGE))
    assert path.read_bytes() == older
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def history(**last) -> list[dict]:
    rows = [
        {"epoch": n, "loss": 2 / n, "mIoU": 60 - 40 / n, "aAcc": 90 - 30 / n} for n in (1, 2, 3)
    ]
    return [*rows, {"epoch": 4, "loss": 0.5, **last}]


def draw(tmp_path, rows, **options) -> np.ndarray:
    write_curves(tmp_path / "plots" / "curves.png", rows, **options)
    return read(tmp_path / "plots" / "curves.png")


def test_curves_are_a_picture_that_follows_the_numbers(tmp_path):
    picture = draw(tmp_path, history(mIoU=52.0))
    assert picture.shape == (480, 1200, 3)
    assert np.array_equal(picture, draw(tmp_path, history(mIoU=52.0)))
    other = draw(tmp_path, history(mIoU=20.0))
    assert np.array_equal(picture[:, :580], other[:, :580])  # the loss is the same
    assert not np.array_equal(picture[:, 620:], other[:, 620:])


def test_metrics_of_single_classes_are_drawn_only_when_asked_for(tmp_path):
    rows = history(mIoU=52.0, **{"IoU.road": 97.0})
    assert np.array_equal(draw(tmp_path, rows), draw(tmp_path, history(mIoU=52.0)))
    asked = draw(tmp_path, rows, metrics=["mIoU", "IoU.road"])
    assert not np.array_equal(asked, draw(tmp_path, rows, metrics=["mIoU"]))


def test_a_metric_that_hides_another_is_left_out(tmp_path):
    rows = history(mIoU=52.0)
    twins = [{**row, "mIoU_present": row["mIoU"]} for row in rows]
    assert np.array_equal(draw(tmp_path, twins), draw(tmp_path, rows))
    twins[1]["mIoU_present"] += 1
    assert not np.array_equal(draw(tmp_path, twins), draw(tmp_path, rows))


@pytest.mark.parametrize(("low", "is_from_0"), [(20.0, True), (60.0, False), (-5.0, False)])
def test_percents_begin_at_0_where_they_span_much_and_epochs_always(low, is_from_0):
    from matplotlib.figure import Figure

    from hatcli.report import curves

    axes = Figure().subplots()
    rows = [{"epoch": 7, "mIoU": low}, {"epoch": 28, "mIoU": 90.0}]
    curves._draw(axes, rows, ["mIoU"], "validation", ".2f")
    assert (axes.get_ylim()[0] == 0) == is_from_0
    assert axes.get_xlim()[0] == 0


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_left_out(tmp_path, value):
    assert np.array_equal(draw(tmp_path, history(mIoU=value)), draw(tmp_path, history()))


def test_no_history_is_a_picture_too(tmp_path):
    assert draw(tmp_path, []).shape == (480, 1200, 3)


def test_drawing_curves_leaves_pyplot_alone(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    draw(tmp_path, history())
    assert ("matplotlib.pyplot" in sys.modules) == before
