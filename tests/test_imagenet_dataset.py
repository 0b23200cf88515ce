import io
import shutil

import numpy as np
import pytest
from made_imagenet import (
    NAMES,
    WNIDS,
    jpeg,
    make_folders,
    make_imagenet,
    pack_imagenet,
)
from PIL import Image

from hatcli.data.datasets import DATASETS
from hatcli.data.loader import Loader
from hatcli.data.stored_image import decode_image
from hatcli.errors import DataError, PackError, UsageError


@pytest.fixture
def source(tmp_path):
    return make_imagenet(tmp_path / "imagenet", train=2, val=2)


def packed(source, split="train", **options):
    pack_imagenet(source, split, **options)
    return DATASETS.build({"type": "ImageNet", "path": f"{split}_lmdb"}, root=source)


def assert_equal_samples(one, other):
    assert len(one) == len(other) > 0
    assert one.classes == other.classes
    for left, right in zip(one, other, strict=True):
        assert (left["name"], left["label"]) == (right["name"], right["label"])
        assert np.array_equal(left["image"], right["image"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_raw_twin_gives_the_same_samples(source, split):
    raw = DATASETS.build({"type": "ImageNetRaw", "split": split}, root=source)
    assert_equal_samples(raw, packed(source, split))


def test_class_folders_of_any_name_give_the_same_samples(tmp_path):
    source = make_folders(tmp_path / "imagenet")
    pack_samples = list(packed(source))
    for wnid, name in zip(WNIDS, ("alpha", "b c", "delta", "eps"), strict=True):
        (source / "train" / wnid).rename(source / "train" / name)
    folder = DATASETS.build({"type": "ImageFolder", "path": "train"}, root=source)
    assert folder.classes == ("alpha", "b c", "delta", "eps")
    for one, other in zip(folder, pack_samples, strict=True):
        assert one["label"] == other["label"]
        assert np.array_equal(one["image"], other["image"])
    assert folder[0]["name"] == f"alpha/{WNIDS[0]}_11"


def test_a_sample_is_what_the_docstring_says(source):
    dataset = packed(source)
    sample = dataset[0]
    assert sample.keys() == {"image", "label", "name"}
    assert sample["image"].dtype == np.uint8
    assert sample["image"].shape[2] == 3
    assert sample["image"].flags.writeable
    assert sample["image"].flags.c_contiguous
    assert (type(sample["label"]), sample["label"]) == (int, 0)
    assert dataset.classes == NAMES
    assert dataset.split == "train"
    assert not hasattr(dataset, "class_pixels")


def test_raw_pixels_are_the_decoded_bytes(source):
    by_bytes = list(packed(source))
    by_pixels = packed(source, image_format="raw", overwrite=True)
    for one, other in zip(by_bytes, by_pixels, strict=True):
        assert np.array_equal(one["image"], other["image"])


def test_the_loader_gives_class_indexes(source):
    loader = Loader(packed(source, "val"), [Resized()], batch_size=4)
    batches = list(loader.epoch(0))
    assert [batch.targets.dtype.is_floating_point for batch in batches] == [False, False]
    assert [label for batch in batches for label in batch.targets.tolist()] == [
        1, 0, 3, 2, 1, 0, 3, 2,
    ]  # fmt: skip


class Resized:
    """Cut to 32x32, so that samples can be stacked."""

    def __call__(self, sample, rng):
        return {**sample, "image": sample["image"][:32, :32]}


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "LA"])
def test_every_kind_of_image_becomes_rgb_as_pillow_has_it(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3))
    kind = "JPEG" if mode in ("L", "CMYK") else "PNG"
    data = jpeg(pixels, mode, kind)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(data, "x"), expected)


def test_an_image_that_breaks_off_is_an_error_with_its_name(tmp_path):
    folder = make_folders(tmp_path)
    path = folder / "train" / WNIDS[1] / f"{WNIDS[1]}_11.JPEG"
    path.write_bytes(jpeg(np.random.default_rng(0).integers(0, 256, (60, 60, 3)))[:-100])
    raw = DATASETS.build({"type": "ImageNetRaw", "split": "train"}, root=folder)
    plain = DATASETS.build({"type": "ImageFolder", "path": "train"}, root=folder)
    for dataset in (raw, plain):
        assert dataset[0]["label"] == 0
        with pytest.raises(DataError, match=f"image is truncated.*{WNIDS[1]}_11"):
            dataset[2]


def test_a_pack_that_is_missing_is_an_error(tmp_path):
    with pytest.raises((UsageError, PackError), match="no pack at"):
        DATASETS.build({"type": "ImageNet", "path": "train_lmdb"}, root=tmp_path)


def test_bad_class_folders_are_explained(tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        DATASETS.build({"type": "ImageFolder", "path": "train"}, root=tmp_path)
    with pytest.raises(UsageError, match="no class folders"):
        DATASETS.build({"type": "ImageFolder", "path": "."}, root=tmp_path)
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match=r"no images in .*cats"):
        DATASETS.build({"type": "ImageFolder", "path": "."}, root=tmp_path)


def test_raw_samples_can_be_read_by_workers(source):
    raw = DATASETS.build({"type": "ImageNetRaw", "split": "val"}, root=source)
    loader = Loader(raw, [Resized()], batch_size=4, num_workers=1, start_method="spawn")
    names = [name for batch in loader.epoch(0) for name in batch.names]
    assert names == [f"ILSVRC2012_val_{number:08d}" for number in range(1, 9)]
    shutil.rmtree(source)
