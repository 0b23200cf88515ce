import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import RandAugment as Theirs
from torchvision.transforms.autoaugment import _apply_op

from hatcli.data.transforms.auto_augment import (
    MOVES,
    OPERATIONS,
    SIGNED,
    RandAugment,
    amount_of,
    apply_operation,
)
from hatcli.errors import ConfigError


def picture(height: int = 61, width: int = 83, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(20, 230, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def run(transform: RandAugment, image: np.ndarray, label=0, seed: int = 0) -> dict:
    sample = {"image": image, "label": label, "name": "made"}
    return transform(sample, np.random.default_rng(seed))


@pytest.mark.parametrize("bins", [2, 9, 10, 31])
@pytest.mark.parametrize("size", [(224, 224), (331, 500), (83, 61), (1, 2)])
def test_operations_and_their_amounts_are_those_of_torchvision(bins, size):
    space = Theirs()._augmentation_space(bins, (size[1], size[0]))
    assert tuple(space) == ("Identity", *OPERATIONS[1:])
    for operation, (amounts, signed) in space.items():
        assert signed == (operation in SIGNED)
        for magnitude in range(bins):
            theirs = float(amounts[magnitude]) if amounts.ndim else 0.0
            assert amount_of(operation, magnitude, bins, size) == theirs, operation


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_equals_torchvision_bit_for_bit(operation, interpolation):
    image, resample = picture(), Image.Resampling[interpolation.upper()]
    for magnitude in range(31):
        amount = amount_of(operation, magnitude, 31, image.size)
        for signed in {amount, -amount if operation in SIGNED else amount}:
            for fill in ((0, 0, 0), (124, 116, 104)):
                ours = apply_operation(image, operation, signed, resample, fill)
                mode = InterpolationMode(interpolation)
                theirs = _apply_op(image, operation, signed, mode, list(fill))
                assert np.array_equal(np.asarray(ours), np.asarray(theirs)), (magnitude, fill)


def test_every_operation_but_identity_changes_the_image():
    image = picture()
    for operation in OPERATIONS[1:]:
        amount = amount_of(operation, 9, 31, image.size)
        changed = apply_operation(image, operation, amount)
        assert not np.array_equal(np.asarray(changed), np.asarray(image)), operation


def test_operations_and_signs_are_drawn_evenly(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "hatcli.data.transforms.auto_augment.apply_operation",
        lambda image, operation, amount, *_, **__: drawn.append((operation, amount)) or image,
    )
    transform, image = RandAugment(num_ops=3), np.asarray(picture())
    for seed in range(1000):
        run(transform, image, seed=seed)
    assert len(drawn) == 3000
    for operation in OPERATIONS:
        amounts = [amount for name, amount in drawn if name == operation]
        assert len(amounts) == pytest.approx(3000 / 14, rel=0.25)
        if operation in SIGNED:
            assert np.mean(np.array(amounts) > 0) == pytest.approx(0.5, abs=0.12)
            assert len(set(amounts)) == 2
        else:
            assert len(set(amounts)) == 1


def test_a_label_map_moves_along_and_is_filled_up_with_ignore():
    label = np.zeros((60, 80), np.uint8)
    label[10:50, 15:60] = 1
    image = np.repeat(label[..., None] * 200 + 20, 3, 2)
    for operation in MOVES:
        amount = amount_of(operation, 20, 31, (80, 60))
        moved = np.asarray(apply_operation(Image.fromarray(image), operation, amount))[..., 0]
        labels = np.asarray(apply_operation(Image.fromarray(label), operation, amount, fill=255))
        assert np.array_equal(moved == 220, labels == 1), operation
        assert np.array_equal(moved == 0, labels == 255), operation
        assert (labels == 255).any()


def test_a_label_map_stays_where_only_colours_change(monkeypatch):
    monkeypatch.setattr("hatcli.data.transforms.auto_augment.OPERATIONS", ("Brightness", "Color"))
    label = np.arange(61 * 83, dtype=np.int64).reshape(61, 83).astype(np.uint8)
    result = run(RandAugment(), np.asarray(picture()), label)
    assert np.array_equal(result["label"], label)
    assert not np.array_equal(result["image"], np.asarray(picture()))


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("num_ops", {"num_ops": 0}),
        ("magnitude", {"magnitude": 31}),
        ("magnitude", {"magnitude": -1}),
        ("num_magnitude_bins", {"num_magnitude_bins": 1}),
        ("interpolation", {"interpolation": "bicubic"}),
        ("fill", {"fill": [1, 2]}),
    ],
)
def test_a_wrong_argument_is_named(argument, arguments):
    with pytest.raises(ConfigError, match=f"RandAugment: {argument} "):
        RandAugment(**arguments)
