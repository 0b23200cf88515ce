import numpy as np
import pytest
from made_cityscapes import make_cityscapes

from hatcli.cli import run
from hatcli.data.datasets import DATASETS
from hatcli.data.loader import Loader
from hatcli.errors import UsageError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = make_cityscapes(tmp_path_factory.mktemp("data"), train=4, val=2, size=(64, 32))
    assert run(["pack", "cityscapes", "--src", str(root), "--split", "train"]) == 0
    return root


@pytest.fixture
def packed(data):
    return DATASETS.build({"type": "Cityscapes", "path": "train_lmdb"}, root=data)


def test_the_raw_twin_gives_the_same_samples(data, packed):
    raw = DATASETS.build({"type": "CityscapesRaw", "split": "train"}, root=data)
    assert len(raw) == len(packed) == 4
    assert raw.classes == packed.classes
    for index in range(4):
        one, other = raw[index], packed[index]
        assert one["name"] == other["name"]
        assert np.array_equal(one["image"], other["image"])
        assert np.array_equal(one["label"], other["label"])


def test_a_sample_is_what_the_docstring_says(packed):
    sample = packed[0]
    assert (sample["image"].shape, sample["image"].dtype) == ((32, 64, 3), np.uint8)
    assert (sample["label"].shape, sample["label"].dtype) == ((32, 64), np.uint8)
    assert sample["image"].flags.writeable
    assert set(np.unique(sample["label"])) <= {*range(19), 255}


def test_the_class_pixels_are_those_of_the_labels(packed):
    counts = sum(np.bincount(packed[i]["label"].ravel(), minlength=256) for i in range(4))
    assert packed.class_pixels == tuple(counts[:19])


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_pack_can_be_read_by_workers_after_this_process_read_it(packed, start_method):
    packed[0]
    names = [
        name
        for batch in Loader(
            packed, [], batch_size=2, num_workers=2, start_method=start_method
        ).epoch(0)
        for name in batch.names
    ]
    assert names == [packed[i]["name"] for i in range(4)]


def test_a_pack_that_was_made_for_another_task_is_refused(data):
    message = "a pack of cityscapes for segmentation, ImageNet reads classification"
    with pytest.raises(UsageError, match=message):
        DATASETS.build({"type": "ImageNet", "path": "train_lmdb"}, root=data)


def test_a_missing_source_names_the_archives(tmp_path):
    with pytest.raises(UsageError, match=r"gtFine|leftImg8bit"):
        DATASETS.build({"type": "CityscapesRaw", "split": "train"}, root=tmp_path)
