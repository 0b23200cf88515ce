import numpy as np
import pytest

from hatcli.data.transforms.flip import RandomFlip
from hatcli.data.transforms.pad import PadToMultiple
from hatcli.data.transforms.resized_crop import CenterCrop
from hatcli.data.transforms.scale import Resize
from hatcli.data.way_back import OUTSIDE, transform_image
from hatcli.errors import ConfigError

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (30, 45, 3), np.uint8)
LABEL = RNG.integers(0, 19, (30, 45), np.uint8)


def there(*transforms):
    return transform_image(IMAGE, transforms, "made", has_map=True)


def red_of(image):
    """A map that can be told from the image alone, wherever its pixels went."""
    return image[..., 0].copy()


def test_what_is_padded_is_cut_off_again():
    image, back = there(PadToMultiple(16))
    assert image.shape == (32, 48, 3)
    np.testing.assert_array_equal(back(red_of(image)), IMAGE[..., 0])


def test_what_is_mirrored_is_mirrored_back():
    image, back = there(RandomFlip(p=1.0), PadToMultiple(16))
    assert not np.array_equal(image[:30, :45], IMAGE)
    np.testing.assert_array_equal(back(red_of(image)), IMAGE[..., 0])


def test_what_a_crop_leaves_out_is_no_class():
    image, back = there(CenterCrop(20))
    found = back(red_of(image))
    shown = np.zeros((30, 45), bool)
    shown[5:25, 12:32] = True
    np.testing.assert_array_equal(found[shown], IMAGE[..., 0][shown])
    assert (found[~shown] == OUTSIDE).all()


@pytest.mark.parametrize("size", [[15, 15], [60, 90], [31, 44], 7])
def test_a_resized_map_comes_back_at_the_size_of_the_source(size):
    coarse = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3), 15, 0), 15, 1)
    image, back = transform_image(np.stack([coarse] * 3, -1), [Resize(size)], "m", has_map=True)
    label = np.rint(image[..., 0]).astype(np.uint8)
    found = back(label)
    assert found.shape == coarse.shape
    inner = np.s_[3:12, 3:12]  # away from the edges, which the filter mixes
    for top in (0, 15):
        for left in (0, 15, 30):
            block = found[top : top + 15, left : left + 15][inner]
            assert set(block.ravel()) == {coarse[top, left]}


def test_doubling_and_coming_back_is_the_same():
    double = LABEL.repeat(2, 0).repeat(2, 1)
    _, back = there(Resize([60, 90]))
    np.testing.assert_array_equal(back(double), LABEL)


def test_a_turned_image_is_refused():
    def turn(sample, _rng):
        return {**sample, "image": sample["image"].swapaxes(0, 1), "label": sample["label"].T}

    with pytest.raises(ConfigError, match="turn or bend"):
        there(turn)


def test_a_classification_needs_no_way_back():
    image, back = transform_image(IMAGE, [CenterCrop(8)], "made", has_map=False)
    assert image.shape == (8, 8, 3)
    assert back is None
