import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hatcli.data.classes import CITYSCAPES, CITYSCAPES_CLASSES
from hatcli.data.scenes.draw import draw_scene, write_scenes
from hatcli.data.scenes.layout import look_ahead
from hatcli.data.scenes.parts import Picture, Walls, paint_walls
from hatcli.data.scenes.things import Brush, draw_person, draw_tree, draw_vehicle
from hatcli.errors import UsageError

SIZE = (160, 80)


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.png"))
    }


def empty_picture(size: tuple[int, int] = (200, 100)) -> Picture:
    view = look_ahead(np.random.default_rng(0), size)
    shape = (size[1], size[0])
    return Picture(np.zeros((*shape, 3), np.float32), np.zeros(shape, np.uint8), view)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        list(write_scenes(tmp_path / name, train=2, val=1, size=SIZE, seed=seed))
    first, again, other = (digests(tmp_path / name) for name in "abc")
    assert len(first) == 6
    assert first == again
    assert not set(first.values()) & set(other.values())


def test_a_scene_does_not_depend_on_how_many_are_asked_for(tmp_path):
    list(write_scenes(tmp_path / "few", train=1, val=1, size=SIZE))
    list(write_scenes(tmp_path / "more", train=2, val=1, size=SIZE))
    few, more = digests(tmp_path / "few"), digests(tmp_path / "more")
    assert len(more) == len(few) + 2
    assert few.items() <= more.items()


def test_all_scenes_differ(tmp_path):
    list(write_scenes(tmp_path, train=3, val=3, size=SIZE))
    assert len(set(digests(tmp_path).values())) == 12


def test_files_lie_as_in_cityscapes(tmp_path):
    paths = list(write_scenes(tmp_path, train=1, val=1, size=SIZE))
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "leftImg8bit/train/ostmark/ostmark_000000_000019_leftImg8bit.png",
        "leftImg8bit/val/westhaven/westhaven_000000_000019_leftImg8bit.png",
    ]
    for path in paths:
        name = path.name.replace("leftImg8bit", "gtFine_labelIds")
        label = tmp_path / "gtFine" / path.parent.relative_to(tmp_path / "leftImg8bit") / name
        with Image.open(path) as image, Image.open(label) as ids:
            assert (image.mode, image.size) == ("RGB", SIZE)
            assert (ids.mode, ids.size) == ("L", SIZE)


def test_a_split_of_no_scenes_has_no_folder(tmp_path):
    list(write_scenes(tmp_path, train=1, val=0, size=SIZE))
    assert [path.name for path in (tmp_path / "gtFine").iterdir()] == ["train"]


def test_every_driving_class_occurs_and_no_unknown_id():
    seen: set[int] = set()
    for index in range(24):
        _, labels = draw_scene(np.random.default_rng([0, index]), (256, 128))
        seen |= set(np.unique(labels).tolist())
    train_ids = {row.id: row.train_id for row in CITYSCAPES}
    assert seen <= set(train_ids)
    found = {train_ids[value] for value in seen}
    assert found == {*range(len(CITYSCAPES_CLASSES)), 255}


@pytest.mark.parametrize("size", [(64, 32), (100, 99), (97, 161)])
def test_any_size_from_the_smallest_on_is_drawn(size):
    for seed in range(4):
        image, labels = draw_scene(np.random.default_rng(seed), size)
        assert (image.shape, image.dtype) == ((size[1], size[0], 3), np.uint8)
        assert (labels.shape, labels.dtype) == ((size[1], size[0]), np.uint8)
        assert image.std() > 10  # not one flat colour


@pytest.mark.parametrize("draw", [draw_person, draw_vehicle, draw_tree])
def test_a_thing_changes_the_pixels_that_it_labels_and_no_others(draw):
    for seed in range(5):
        picture = empty_picture()
        picture.pixels[:] = (0, 255, 0)
        brush = Brush(picture, np.random.default_rng(seed))
        draw(brush, x=1.5, z=9.0)
        changed = (np.asarray(brush.image) != (0, 255, 0)).any(-1)
        labelled = np.asarray(brush.labels) > 0
        assert labelled.sum() > 50
        assert np.array_equal(changed, labelled)


def test_walls_change_the_pixels_that_they_label_and_no_others():
    picture = empty_picture()
    picture.pixels[:] = -1000
    ends = (np.float32([2, 12]), np.float32([9, 30]), np.float32([5, 9]))
    look = np.random.default_rng(0).random((2, 8), dtype=np.float32)
    paint_walls(picture, Walls(4.0, *ends, look, 10.0, 11, "facade"))
    painted = picture.pixels[..., 0] > -1000
    assert 500 < painted.sum() < painted.size
    assert np.array_equal(painted, picture.labels == 11)


def test_things_get_smaller_with_distance():
    heights = []
    for z in (10.0, 40.0):
        brush = Brush(empty_picture((1000, 500)), np.random.default_rng(0))
        draw_person(brush, x=1.0, z=z)
        heights.append(np.asarray(brush.labels).any(1).sum())
    assert heights[0] == pytest.approx(4 * heights[1], rel=0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": -1, "val": 1}, "can't draw -1"),
        ({"train": 1, "val": 1, "size": (63, 32)}, "size 63x32 is too small"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(UsageError, match=message):
        list(write_scenes(tmp_path, **wrong))
    assert not list(tmp_path.iterdir())


def test_drawing_needs_no_torch():
    program = "import sys, hatcli.data.scenes.draw; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
