import math

import numpy as np
import pytest
import torch
import torchvision.transforms as reference
import torchvision.transforms.v2.functional as tensors
from PIL import Image
from torchvision.transforms import InterpolationMode

from hatcli.data.transforms.erase import RandomErasing
from hatcli.data.transforms.resized_crop import CenterCrop, RandomResizedCrop
from hatcli.data.transforms.scale import Resize
from hatcli.errors import ConfigError

SHAPES = [(375, 500), (500, 333), (256, 256), (300, 257), (120, 777), (61, 40)]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Edges and slopes, as a photo has them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    image[height // 3 : height // 2, width // 4 :] ^= 255
    return image


def run(transform, image: np.ndarray, label=0, seed: int = 0) -> dict:
    sample = {"image": image, "label": label, "name": "made"}
    return transform(sample, np.random.default_rng(seed))


def parts(transform: RandomResizedCrop, shape: tuple[int, int], count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([transform.window(*shape, rng) for _ in range(count)])


# The whole path of an evaluation


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_evaluation_image_equals_that_of_torchvision_bit_for_bit(shape, interpolation):
    image = picture(*shape)
    ours = run(CenterCrop(224), run(Resize(256, interpolation), image)["image"])["image"]
    theirs = reference.Compose(
        [reference.Resize(256, InterpolationMode(interpolation)), reference.CenterCrop(224)]
    )(Image.fromarray(image))
    assert np.array_equal(ours, np.asarray(theirs))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 8), (4, 4), (7, 7), (3, 20), (20, 3)])
@pytest.mark.parametrize("size", [(5, 8), (4, 7), (6, 6), (10, 11), 5])
def test_the_middle_equals_that_of_torchvision_also_where_it_is_filled_up(shape, size):
    image = picture(*shape)
    ours = run(CenterCrop(size if isinstance(size, int) else list(size)), image)["image"]
    theirs = reference.CenterCrop(size)(Image.fromarray(image))
    assert np.array_equal(ours, np.asarray(theirs))


def test_a_label_map_is_filled_up_with_ignore():
    result = run(CenterCrop([4, 2]), picture(2, 4), np.arange(8, dtype=np.uint8).reshape(2, 4))
    assert result["label"].tolist() == [[255, 255], [1, 2], [5, 6], [255, 255]]


# The image of a part


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_part_equals_torchvision_on_tensors_and_is_close_to_pillow(shape, interpolation):
    image, transform = picture(*shape), RandomResizedCrop(96, interpolation=interpolation)
    squares = []
    for seed in range(8):
        ours = run(transform, image, seed=seed)["image"]
        part = transform.window(*shape, np.random.default_rng(seed))
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        theirs = tensors.resized_crop(pixels, *part, [96, 96], InterpolationMode(interpolation))
        assert np.array_equal(ours, theirs.permute(1, 2, 0).numpy())
        top, left, height, width = part
        pillow = Image.fromarray(image).crop((left, top, left + width, top + height))
        pillow = pillow.resize((96, 96), Image.Resampling[interpolation.upper()])
        squares.append((ours - np.asarray(pillow, np.float64)) ** 2)
    assert np.mean(squares) < 0.2  # 55 dB
    assert interpolation == "bicubic" or np.max(squares) <= 4


def test_a_part_of_the_wanted_size_is_a_copy_of_it():
    image = picture(30, 40)
    result = run(RandomResizedCrop([30, 40], scale=[1, 1], ratio=[4 / 3, 4 / 3]), image)["image"]
    assert np.array_equal(result, image)
    assert not np.shares_memory(result, image)


def test_the_label_map_shows_the_same_part():
    label = np.zeros((80, 100), np.uint8)
    label[20:60, 30:70] = 1
    image = np.repeat(label[..., None] * 200, 3, 2)
    for seed in range(20):
        result = run(RandomResizedCrop([50, 60]), image, label, seed)
        differs = (result["image"][..., 0] > 100) != (result["label"] == 1)
        assert differs.mean() < 0.03  # along the edges
        assert set(np.unique(result["label"])) <= {0, 1}


# Where the parts are


@pytest.mark.parametrize("shape", [(375, 500), (224, 224), (200, 500)])
def test_parts_are_distributed_as_in_torchvision(shape):
    ours = parts(RandomResizedCrop(224), shape, 4000)
    blank = torch.empty(1, *shape)
    draw = reference.RandomResizedCrop.get_params
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array(
            [draw(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], np.float64
        )
    for column in range(4):
        assert largest_gap(ours[:, column], theirs[:, column]) < 0.04  # 1 in 300 by chance
    assert largest_gap(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]) < 0.04


def largest_gap(first: np.ndarray, second: np.ndarray) -> float:
    """Of two empirical distribution functions: the statistic of Kolmogorov and Smirnov."""
    values = np.concatenate([first, second])
    shares = [
        np.searchsorted(np.sort(data), values, "right") / len(data) for data in (first, second)
    ]
    return float(np.abs(shares[0] - shares[1]).max())


def test_parts_keep_to_the_image_the_scale_and_the_ratio():
    top, left, height, width = parts(RandomResizedCrop(8, [0.2, 0.5], [0.5, 2]), (300, 400), 500).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    shares, ratios = height * width / (300 * 400), width / height
    assert 0.19 < shares.min() < 0.23
    assert 0.47 < shares.max() < 0.51
    assert 0.49 < ratios.min() < 0.6
    assert 1.7 < ratios.max() < 2.03
    assert abs(np.mean(np.log(ratios))) < 0.06


@pytest.mark.parametrize("shape", [(20, 400), (400, 20), (31, 40)])
def test_where_no_part_fits_it_is_the_middle_as_in_torchvision(shape):
    blank = torch.empty(1, *shape)
    theirs = reference.RandomResizedCrop.get_params(blank, [1.0, 1.0], [0.9, 0.95])
    assert (parts(RandomResizedCrop(8, [1, 1], [0.9, 0.95]), shape, 3) == theirs).all()


@pytest.mark.parametrize(
    ("part", "argument", "arguments"),
    [
        (RandomResizedCrop, "size", {"size": 0}),
        (RandomResizedCrop, "size", {"size": [1, 2, 3]}),
        (RandomResizedCrop, "scale", {"size": 8, "scale": [0, 1]}),
        (RandomResizedCrop, "scale", {"size": 8, "scale": [0.5, 1.1]}),
        (RandomResizedCrop, "ratio", {"size": 8, "ratio": [2, 1]}),
        (RandomResizedCrop, "ratio", {"size": 8, "ratio": [1]}),
        (RandomResizedCrop, "interpolation", {"size": 8, "interpolation": "nearest"}),
        (CenterCrop, "size", {"size": [8, -8]}),
        (RandomErasing, "p", {"p": -0.1}),
        (RandomErasing, "scale", {"scale": [0.3, 0.2]}),
        (RandomErasing, "ratio", {"ratio": [0, 1]}),
        (RandomErasing, "ratio", {"ratio": [1, math.inf]}),
        (RandomErasing, "fill", {"fill": [0, 0, 256]}),
        (RandomErasing, "fill", {"fill": "black"}),
    ],
)
def test_a_wrong_argument_is_named(part, argument, arguments):
    with pytest.raises(ConfigError, match=f"{part.__name__}: {argument} "):
        part(**arguments)


# Erasing


def test_a_rectangle_gets_the_colour_and_the_rest_stays():
    image = np.full((40, 60, 3), 9, np.uint8)
    result = run(RandomErasing(1.0, [0.1, 0.1], [1, 1], [1, 2, 3]), image, np.ones((40, 60)))
    erased = (result["image"] == (1, 2, 3)).all(-1)
    rows, columns = np.nonzero(erased)
    assert erased.sum() == 15 * 15  # of 2400 pixels a tenth, rounded to a square
    assert (np.ptp(rows), np.ptp(columns)) == (14, 14)
    assert (result["image"][~erased] == 9).all()
    assert (result["label"] == 1).all()


def test_a_random_fill_uses_all_levels_evenly():
    image = np.zeros((200, 200, 3), np.uint8)
    transform = RandomErasing(1.0, [0.3, 0.3], [1, 1])
    window = transform.window(200, 200, np.random.default_rng(0))
    assert window is not None
    generator = np.random.default_rng(0)
    generator.random()  # whether to erase
    window = transform.window(200, 200, generator)
    erased = run(transform, image)["image"][window]
    counts = np.bincount(erased.ravel(), minlength=256)
    assert (counts > 0).all()
    assert erased.mean() == pytest.approx(127.5, abs=1)


def test_rectangles_are_distributed_as_in_torchvision():
    transform, rng = RandomErasing(), np.random.default_rng(0)
    ours = [transform.window(224, 180, rng) for _ in range(3000)]
    ours = np.array([(r.start, c.start, r.stop - r.start, c.stop - c.start) for r, c in ours])
    blank, draw = torch.empty(3, 224, 180), reference.RandomErasing.get_params
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array(
            [draw(blank, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(3000)], np.float64
        )
    for column in range(4):
        assert largest_gap(ours[:, column], theirs[:, column]) < 0.045


def test_a_share_of_the_samples_is_erased_and_one_that_cannot_be_stays():
    image = np.zeros((30, 30, 3), np.uint8)
    erased = [run(RandomErasing(), image, seed=seed)["image"].any() for seed in range(400)]
    assert np.mean(erased) == pytest.approx(0.25, abs=0.06)
    assert not run(RandomErasing(1.0, [1, 1]), image)["image"].any()
