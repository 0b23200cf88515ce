import random

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as reference
from PIL import Image

from hatcli.data.transforms import TRANSFORMS
from hatcli.data.transforms.color import ADJUST, ColorJitter
from hatcli.data.transforms.crop import RandomCrop
from hatcli.data.transforms.flip import RandomFlip
from hatcli.data.transforms.pad import PadToMultiple
from hatcli.data.transforms.scale import RandomScale, Resize
from hatcli.errors import ConfigError

# Arguments that make a transform do something to a sample of 40 x 56.
ARGUMENTS = {
    "CenterCrop": {"size": [24, 72]},
    "ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "PadToMultiple": {"divisor": 32},
    "RandomCrop": {"height": 24, "width": 72, "cat_max_ratio": 0.75},
    "RandomErasing": {"p": 1.0},
    "RandomFlip": {"p": 1.0},
    "RandomResizedCrop": {"size": [20, 30]},
    "RandomScaleCropFlip": {"height": 24, "width": 72},
    "Resize": {"size": [20, 30]},
}


def make_sample(height: int = 40, width: int = 56, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "label": rng.choice(np.array([0, 7, 18, 255], np.uint8), (height, width)),
        "name": "made",
    }


def build(name: str):
    return TRANSFORMS.build({"type": name, **ARGUMENTS.get(name, {})})


def run(transform, sample: dict, seed: int = 0) -> dict:
    return transform(sample, np.random.default_rng(seed))


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_a_sample_stays_a_sample(name):
    result = run(build(name), make_sample())
    image, label = result["image"], result["label"]
    assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
    assert (label.dtype, label.shape) == (np.uint8, image.shape[:2])
    assert image.flags.c_contiguous
    assert label.flags.c_contiguous
    assert result["name"] == "made"


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_the_same_generator_state_gives_the_same_result(name):
    for seed in range(5):
        first, again = (run(build(name), make_sample(), seed) for _ in range(2))
        assert np.array_equal(first["image"], again["image"])
        assert np.array_equal(first["label"], again["label"])


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_no_global_generator_is_drawn_from(name):
    def states() -> tuple:
        return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002

    before = states()
    run(build(name), make_sample())
    assert states() == before


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_labels_get_no_new_ids(name):
    for seed in range(5):
        label = run(build(name), make_sample(), seed)["label"]
        assert set(np.unique(label)) <= {0, 7, 18, 255}


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_a_class_index_passes_untouched_and_gives_the_same_image(name):
    plain = {**make_sample(), "label": 3}
    assert run(build(name), plain)["label"] == 3
    if "cat_max_ratio" not in ARGUMENTS.get(name, {}):  # which looks at the label map
        mapped = run(build(name), make_sample())
        assert np.array_equal(run(build(name), plain)["image"], mapped["image"])


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_the_given_arrays_stay_as_they_are(name):
    sample, copy = make_sample(), make_sample()
    sample["image"].flags.writeable = sample["label"].flags.writeable = False
    run(build(name), sample)
    assert np.array_equal(sample["image"], copy["image"])
    assert np.array_equal(sample["label"], copy["label"])


def test_scaling_up_repeats_labels_and_keeps_flat_colours():
    sample = {"image": np.full((3, 5, 3), 90, np.uint8), "label": make_sample(3, 5)["label"]}
    result = run(RandomScale(2.0, 2.0), sample)
    assert np.array_equal(result["label"], sample["label"].repeat(2, 0).repeat(2, 1))
    assert np.array_equal(result["image"], np.full((6, 10, 3), 90, np.uint8))


def test_scaling_down_averages_the_image_instead_of_aliasing():
    board = np.indices((32, 32)).sum(0) % 2 * 255
    image = np.repeat(board[..., None], 3, 2).astype(np.uint8)
    result = run(RandomScale(0.5, 0.5), {"image": image, "label": image[..., 0]})
    inner = result["image"][2:-2, 2:-2]
    assert (int(inner.min()), int(inner.max())) in {(127, 127), (127, 128), (128, 128)}
    assert set(np.unique(result["label"])) <= {0, 255}


def test_image_and_label_are_scaled_by_the_same_geometry():
    label = np.zeros((64, 64), np.uint8)
    label[20:44, 12:50] = 1
    sample = {"image": np.repeat(label[..., None] * 200, 3, 2), "label": label}
    offsets = []
    for seed in range(40):
        result = run(RandomScale(0.5, 2.0), sample, seed)
        for axis in (0, 1):
            image_weight = result["image"][..., 0].sum(1 - axis, dtype=np.int64)
            label_weight = result["label"].sum(1 - axis, dtype=np.int64)
            place = np.arange(len(image_weight))
            image_center = np.average(place, weights=image_weight)
            offsets.append(image_center - np.average(place, weights=label_weight))
    assert np.abs(offsets).max() < 0.51  # labels end at whole pixels
    assert abs(np.mean(offsets)) < 0.08  # and lean to no side


def test_scales_cover_the_range_from_low_to_high():
    sides = [
        run(RandomScale(0.5, 2.0), make_sample(100, 100), s)["image"].shape[0] for s in range(300)
    ]
    assert 50 <= min(sides) < 56
    assert 194 < max(sides) <= 200
    assert np.mean(sides) == pytest.approx(125, abs=8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 56), (56, 40), (33, 33), (31, 97)])
def test_resize_to_a_shorter_side_equals_torchvision(shape, interpolation):
    sample = make_sample(*shape)
    ours = run(Resize(24, interpolation), sample)["image"]
    mode = reference.InterpolationMode(interpolation)
    theirs = reference.resize(Image.fromarray(sample["image"]), 24, mode)
    assert np.array_equal(ours, np.asarray(theirs))


def test_resize_takes_height_then_width():
    assert run(Resize([10, 20]), make_sample())["image"].shape == (10, 20, 3)


def coded_sample(height: int, width: int) -> dict:
    """Each pixel holds its own row and column."""
    rows, columns = np.indices((height, width)).astype(np.uint8)
    image = np.stack([rows, columns, np.zeros_like(rows)], -1)
    return {"image": image, "label": rows, "name": "coded"}


def test_a_crop_is_a_window_of_image_and_label_and_every_place_occurs():
    corners = set()
    for seed in range(300):
        result = run(RandomCrop(4, 6), coded_sample(6, 9), seed)
        top, left, _ = (int(value) for value in result["image"][0, 0])
        rows, columns = np.indices((4, 6))
        assert np.array_equal(result["image"][..., 0], rows + top)
        assert np.array_equal(result["image"][..., 1], columns + left)
        assert np.array_equal(result["label"], rows + top)
        corners.add((top, left))
    assert corners == {(top, left) for top in range(3) for left in range(4)}


def test_a_crop_of_a_small_sample_is_filled_up_with_a_colour_and_ignore():
    result = run(RandomCrop(8, 4, fill=[1, 2, 3]), coded_sample(6, 9))
    assert result["image"].shape == (8, 4, 3)
    assert (result["image"][6:] == (1, 2, 3)).all()
    assert (result["label"][6:] == 255).all()
    assert np.array_equal(result["label"][:6], np.indices((6, 4))[0])


def test_the_default_fill_is_the_mean_of_the_image():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = (100, 200, 30)
    result = run(RandomCrop(3, 3), {"image": image, "label": 1})
    assert result["image"][2, 2].tolist() == [50, 100, 15]
    result = run(PadToMultiple(4), {"image": image, "label": 1})
    assert result["image"][3, 3].tolist() == [50, 100, 15]


def test_cat_max_ratio_avoids_windows_of_one_class():
    label = np.zeros((16, 64), np.uint8)
    label[:, 40:] = np.arange(24) // 8 + 1
    label[:, :8] = 255
    sample = {"image": np.zeros((16, 64, 3), np.uint8), "label": label, "name": "made"}

    def shares(ratio: float) -> list[float]:
        windows = [run(RandomCrop(16, 16, ratio), sample, seed)["label"] for seed in range(60)]
        counts = [np.bincount(window[window < 255], minlength=4) for window in windows]
        return [count.max() / count.sum() for count in counts]

    assert np.mean(np.array(shares(0.75)) > 0.75) < 0.05  # ten draws may all fail
    assert np.mean(np.array(shares(1.0)) > 0.75) > 0.3


def test_a_flip_exchanges_left_and_right_of_both():
    sample = make_sample()
    result = run(RandomFlip(1.0), sample)
    assert np.array_equal(result["image"], sample["image"][:, ::-1])
    assert np.array_equal(result["label"], sample["label"][:, ::-1])
    assert np.array_equal(run(RandomFlip(0.0), sample)["image"], sample["image"])


def test_half_of_the_samples_are_flipped():
    sample = make_sample()
    kept = [
        np.array_equal(run(RandomFlip(), sample, s)["image"], sample["image"]) for s in range(400)
    ]
    assert np.mean(kept) == pytest.approx(0.5, abs=0.08)


def test_padding_goes_right_and_below_and_keeps_the_rest():
    sample = make_sample(40, 56)
    result = run(PadToMultiple(32, fill=[9, 8, 7], label_fill=254), sample)
    assert result["image"].shape == (64, 64, 3)
    assert np.array_equal(result["image"][:40, :56], sample["image"])
    assert np.array_equal(result["label"][:40, :56], sample["label"])
    assert (result["image"][40:] == (9, 8, 7)).all()
    assert (result["image"][:, 56:] == (9, 8, 7)).all()
    assert (result["label"][40:] == 254).all()
    assert (result["label"][:, 56:] == 254).all()


def test_what_fits_is_not_padded():
    sample = make_sample(64, 128)
    assert run(PadToMultiple(64), sample) is sample


@pytest.mark.parametrize("kind", list(ADJUST))
def test_color_steps_equal_torchvision_bit_for_bit(kind):
    functions = {
        "brightness": reference.adjust_brightness,
        "contrast": reference.adjust_contrast,
        "saturation": reference.adjust_saturation,
        "hue": reference.adjust_hue,
    }
    amounts = np.linspace(-0.5, 0.5, 41) if kind == "hue" else np.linspace(0, 2.5, 26)
    image = Image.fromarray(make_sample(64, 64)["image"])
    for amount in amounts.tolist():
        ours, theirs = ADJUST[kind](image, amount), functions[kind](image, amount)
        assert np.array_equal(np.asarray(ours), np.asarray(theirs)), amount


def test_jitter_without_amounts_changes_nothing_and_with_them_something():
    sample = make_sample()
    assert np.array_equal(run(ColorJitter(), sample)["image"], sample["image"])
    for name in ("brightness", "contrast", "saturation", "hue"):
        result = run(ColorJitter(**{name: 0.4}), sample)
        assert not np.array_equal(result["image"], sample["image"])
        assert np.array_equal(result["label"], sample["label"])


def test_jitter_applies_its_steps_in_changing_order():
    sample = make_sample()
    calls = []

    def recorder(kind: str):
        return lambda image, amount: calls.append(kind) or image

    with pytest.MonkeyPatch.context() as patch:
        for kind in list(ADJUST):
            patch.setitem(ADJUST, kind, recorder(kind))
        for seed in range(200):
            run(ColorJitter(0.1, 0.1, 0.1, 0.1), sample, seed)
    orders = {tuple(calls[start : start + 4]) for start in range(0, len(calls), 4)}
    assert len(orders) == 24
    assert all(sorted(order) == sorted(ADJUST) for order in orders)


@pytest.mark.parametrize(
    ("part", "argument", "arguments"),
    [
        (RandomScale, "low", {"low": 0}),
        (RandomScale, "high", {"low": 1.5, "high": 1.0}),
        (RandomScale, "high", {"high": float("nan")}),
        (Resize, "size", {"size": 0}),
        (Resize, "size", {"size": [1, 2, 3]}),
        (Resize, "interpolation", {"size": 8, "interpolation": "nearest"}),
        (RandomCrop, "height", {"height": 0, "width": 8}),
        (RandomCrop, "width", {"height": 8, "width": -1}),
        (RandomCrop, "cat_max_ratio", {"height": 8, "width": 8, "cat_max_ratio": 0}),
        (RandomCrop, "fill", {"height": 8, "width": 8, "fill": [1, 2]}),
        (RandomFlip, "p", {"p": 1.1}),
        (ColorJitter, "brightness", {"brightness": -0.1}),
        (ColorJitter, "saturation", {"saturation": float("inf")}),
        (ColorJitter, "hue", {"hue": 0.6}),
        (PadToMultiple, "divisor", {"divisor": 0}),
        (PadToMultiple, "fill", {"fill": [0, 0, 256]}),
        (PadToMultiple, "label_fill", {"label_fill": 256}),
    ],
)
def test_a_wrong_argument_is_named(part, argument, arguments):
    with pytest.raises(ConfigError, match=f"{part.__name__}: {argument} "):
        part(**arguments)
