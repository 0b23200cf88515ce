import numpy as np
import pytest
from PIL import Image

from hatcli.data.packs.strips import Strips, encode_strips
from hatcli.data.stored_image import StoredImage
from hatcli.data.transforms.crop import RandomCrop
from hatcli.data.transforms.flip import RandomFlip
from hatcli.data.transforms.scale import RandomScale
from hatcli.data.transforms.scale_crop_flip import RandomScaleCropFlip
from hatcli.errors import ConfigError

FILL = [10, 20, 30]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Edges and slopes, as a photo has them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    image[height // 3 : height // 2, width // 4 :] ^= 255
    return image


def sample(height: int, width: int) -> dict:
    image = picture(height, width)
    label = (image[..., 0] // 64).astype(np.uint8)
    boxes = np.array([[0, 0, width, height], [5, 6, 25, 16]], np.float32)
    return {"image": image, "label": label, "boxes": boxes, "classes": np.array([1, 2])}


def three_steps(made: dict, seed: int, **crop) -> dict:
    rng = np.random.default_rng(seed)
    for step in (RandomScale(), RandomCrop(48, 64, fill=FILL, **crop), RandomFlip()):
        made = step(made, rng)
    return made


def in_one(made: dict, seed: int, **settings) -> dict:
    step = RandomScaleCropFlip(48, 64, fill=FILL, **settings)
    return step(made, np.random.default_rng(seed))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.mean((one.astype(float) - other) ** 2), 1e-9))


@pytest.mark.parametrize("size", [(100, 140), (61, 83), (40, 300), (30, 40)])
def test_it_gives_what_the_three_steps_give_from_the_same_draws(size):
    made = sample(*size)
    for seed in range(20):
        ours, theirs = in_one(made, seed), three_steps(made, seed)
        assert psnr(ours["image"], theirs["image"]) > 50
        assert np.abs(ours["image"].astype(int) - theirs["image"]).max() <= 2
        assert np.array_equal(ours["label"], theirs["label"])
        np.testing.assert_allclose(ours["boxes"], theirs["boxes"], atol=1e-4)
        assert ours["classes"].tolist() == theirs["classes"].tolist()


def test_windows_are_drawn_again_as_in_the_three_steps():
    made = sample(100, 140)
    made["label"][:, :90] = 3
    differs = 0
    for seed in range(20):
        ours = in_one(made, seed, cat_max_ratio=0.5)
        theirs = three_steps(made, seed, cat_max_ratio=0.5)
        assert np.array_equal(ours["label"], theirs["label"])
        differs += (ours["label"] != in_one(made, seed)["label"]).any()
    assert differs > 3


def test_an_image_that_is_not_decoded_yet_gives_the_same():
    made = sample(100, 140)
    strips = Strips(memoryview(encode_strips(made["image"])), made["image"].shape)
    stored = {**made, "image": StoredImage(strips, "made")}
    for seed in range(10):
        assert np.array_equal(in_one(made, seed)["image"], in_one(stored, seed)["image"])


def test_only_the_rows_of_the_window_are_decoded():
    asked = []

    class Watched(Strips):
        def rows(self, top, stop):
            asked.append(stop - top)
            return super().rows(top, stop)

    image = picture(400, 140)
    strips = Watched(memoryview(encode_strips(image)), image.shape)
    in_one({"image": StoredImage(strips, "made")}, 0, low=1.5, high=1.5)
    assert asked[0] <= 48 / 1.5 + 2 + 4


@pytest.mark.parametrize("factor", [0.5, 0.77, 1.0, 1.9])
def test_image_and_label_stay_aligned(factor):
    label = np.zeros((120, 160), np.uint8)
    label[32:90, 48:110] = 1
    made = {"image": np.repeat(label[..., None] * 200, 3, 2), "label": label}
    for seed in range(10):
        result = in_one(made, seed, low=factor, high=factor)
        seen = result["label"] != 255
        bright = result["image"][..., 0] > 100
        assert (bright != (result["label"] == 1))[seen].mean() < 0.005


def test_what_lies_outside_is_filled_with_the_mean_and_ignored():
    made = {"image": np.full((20, 30, 3), 7, np.uint8), "label": np.zeros((20, 30), np.uint8)}
    step = RandomScaleCropFlip(48, 64, low=1, high=1, flip=1)
    result = step(made, np.random.default_rng(0))
    assert (result["image"] == 7).all()
    assert (result["label"][:20, 34:] == 0).all()
    assert (result["label"] == 255).sum() == 48 * 64 - 20 * 30


def test_samples_are_new_memory_in_c_order():
    made = sample(48, 64)
    result = in_one(made, 0, low=1, high=1, flip=0)
    assert np.array_equal(result["image"], made["image"])
    for name in ("image", "label"):
        assert result[name].flags.c_contiguous
        assert not np.shares_memory(result[name], made[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 0}, "height and width must be at least 1, got 0, 8"),
        ({"low": 0}, "low must be above 0"),
        ({"low": 3.0}, "low must be above 0 and at most high, got 3.0, 2.0"),
        ({"cat_max_ratio": 0}, "cat_max_ratio"),
        ({"fill": [0, 0]}, "fill must be 3 numbers"),
        ({"flip": 1.5}, "flip must be from 0 to 1"),
        ({"min_visible": -1}, "min_visible must be from 0 to 1"),
    ],
)
def test_senseless_arguments_are_refused(settings, message):
    with pytest.raises(ConfigError, match=f"RandomScaleCropFlip: .*{message}"):
        RandomScaleCropFlip(**{"height": 8, "width": 8, **settings})
