import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from hatcli.data.loader import Loader, collate
from hatcli.data.transforms import MIXES, TRANSFORMS
from hatcli.data.transforms.crop import RandomCrop
from hatcli.data.transforms.flip import RandomFlip
from hatcli.data.transforms.pad import PadToMultiple
from hatcli.data.transforms.resized_crop import CenterCrop, RandomResizedCrop
from hatcli.data.transforms.scale import RandomScale, Resize
from hatcli.errors import ConfigError, DataError

REFUSING = {"RandAugment"}
ARGUMENTS = {
    "CenterCrop": {"size": [24, 72]},
    "ColorJitter": {"brightness": 0.4},
    "PadToMultiple": {"divisor": 32},
    "RandomCrop": {"height": 24, "width": 72},
    "RandomErasing": {"p": 1.0},
    "RandomFlip": {"p": 1.0},
    "RandomResizedCrop": {"size": [20, 30]},
    "RandomScaleCropFlip": {"height": 24, "width": 48},
    "Resize": {"size": [20, 30]},
}
HEIGHT, WIDTH = 40, 56


def make_boxes(count: int, seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, [width - 4, height - 4], (count, 2))
    high = low + rng.uniform(1, [width, height] - low, (count, 2))
    return np.concatenate([low, high], 1).astype(np.float32)


def make_sample(seed: int = 0, count: int = 30) -> dict:
    rng = np.random.default_rng(seed)
    boxes = make_boxes(count, seed)
    return {
        "image": rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        "boxes": boxes,
        "classes": np.arange(count),
        "crowd": (np.arange(count) % 3 == 0).astype(np.uint8),
        "areas": np.arange(count) + 0.5,
        "image_id": 7,
        "name": "made",
    }


def build(name: str):
    return TRANSFORMS.build({"type": name, **ARGUMENTS.get(name, {})})


def run(transform, sample: dict, seed: int = 0) -> dict:
    return transform(sample, np.random.default_rng(seed))


def reference(transform, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What torchvision makes of boxes, and which of them have something left."""
    given = tv_tensors.BoundingBoxes(
        torch.from_numpy(boxes), format="XYXY", canvas_size=(HEIGHT, WIDTH)
    )
    moved = transform(given).numpy()
    return moved, (moved[:, 2:] > moved[:, :2]).all(1)


def check(ours: dict, theirs: tuple[np.ndarray, np.ndarray]) -> None:
    moved, keep = theirs
    np.testing.assert_allclose(ours["boxes"], moved[keep], atol=1e-4)
    assert ours["boxes"].dtype == np.float32
    assert ours["classes"].tolist() == np.flatnonzero(keep).tolist()
    assert ours["crowd"].tolist() == (ours["classes"] % 3 == 0).tolist()


# Every transform that there is


@pytest.mark.parametrize("name", sorted({*TRANSFORMS.names()} - REFUSING))
def test_boxes_follow_the_pixels(name):
    """A dark box in a bright image: what is dark afterwards lies in the box, and fills it."""
    for seed in range(6):
        image = np.full((HEIGHT, WIDTH, 3), 250, np.uint8)
        image[12:30, 16:44] = 5
        box = np.array([[16, 12, 44, 30]], np.float32)
        sample = {"image": image, "boxes": box, "classes": np.array([3]), "name": "made"}
        result = run(build(name), sample, seed)
        assert result["boxes"].dtype == np.float32
        assert result["boxes"].shape[1:] == (4,)
        if name == "RandomErasing":  # which hides pixels and moves none
            assert np.array_equal(result["boxes"], box)
            continue
        dark = (result["image"] < 128).all(2)
        if name in ("CenterCrop",):  # fills up with black
            dark[:, :8] = dark[:, -8:] = False
        expected = np.zeros(dark.shape)
        for left, top, right, low in np.rint(result["boxes"]).astype(int):
            expected[top:low, left:right] = 1
        assert (dark != expected).mean() < 0.06
        assert len(result["classes"]) == len(result["boxes"])


@pytest.mark.parametrize("name", sorted({*TRANSFORMS.names()} - REFUSING))
def test_what_is_known_of_a_box_stays_with_it(name):
    for seed in range(5):
        sample = make_sample(seed)
        sample["boxes"].flags.writeable = False
        result = run(build(name), sample, seed)
        kept = result["classes"]
        assert (np.diff(kept) > 0).all()
        assert result["crowd"].tolist() == (kept % 3 == 0).tolist()
        assert len(result["boxes"]) == len(result["areas"]) == len(kept)
        height, width = result["image"].shape[:2]
        assert (result["boxes"] >= 0).all()
        assert (result["boxes"] <= [width, height, width, height]).all()
        assert (result["boxes"][:, 2:] > result["boxes"][:, :2]).all()
        assert result["image_id"] == 7


@pytest.mark.parametrize("name", sorted({*TRANSFORMS.names()} - REFUSING))
def test_an_image_without_boxes_keeps_none(name):
    result = run(build(name), make_sample(count=0))
    assert result["boxes"].shape == (0, 4)
    assert result["classes"].shape == (0,)


@pytest.mark.parametrize("name", sorted(REFUSING))
def test_a_transform_that_cannot_move_boxes_says_so(name):
    with pytest.raises(ConfigError, match=f"{name}: it can't move boxes"):
        run(build(name), make_sample())


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_an_instance_map_moves_like_the_label(name):
    ids = np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH))
    image = make_sample()["image"]
    sample = {"image": image, "label": ids.astype(np.uint8), "name": "made"}
    sample["instance"] = (ids * 1000).astype(np.uint16)
    for seed in range(10):
        result = run(build(name), sample, seed)
        instance, inside = result["instance"], result["label"] != 255
        assert instance.dtype == np.uint16
        assert np.array_equal(instance[inside], result["label"][inside] * np.uint16(1000))
        assert not instance[~inside].any()


def test_outlines_cannot_be_moved():
    with pytest.raises(ConfigError, match="'segmentations' of a sample can't be moved"):
        run(Resize([20, 30]), {**make_sample(), "segmentations": []})


# Against torchvision


@pytest.mark.parametrize("size", [[20, 30], [80, 70], 24])
def test_resize_moves_boxes_as_torchvision(size):
    sample = make_sample()
    check(run(Resize(size), sample), reference(v2.Resize(size), sample["boxes"]))


def test_flip_moves_boxes_as_torchvision():
    sample = make_sample()
    check(run(RandomFlip(1.0), sample), reference(v2.RandomHorizontalFlip(1.0), sample["boxes"]))


@pytest.mark.parametrize("size", [[20, 30], [24, 80], [60, 20], [41, 57]])
def test_centre_crop_moves_boxes_as_torchvision(size):
    sample = make_sample()
    check(run(CenterCrop(size), sample), reference(v2.CenterCrop(size), sample["boxes"]))


def test_random_crop_moves_boxes_as_torchvision():
    for seed in range(10):
        sample = make_sample(seed)
        crop = RandomCrop(24, 30)
        rows, columns = crop._draw((HEIGHT, WIDTH), np.random.default_rng(seed))

        def theirs(boxes, rows=rows, columns=columns):
            return v2.functional.crop(boxes, rows.start, columns.start, 24, 30)

        check(run(crop, sample, seed), reference(theirs, sample["boxes"]))


def test_random_resized_crop_moves_boxes_as_torchvision():
    for seed in range(10):
        sample = make_sample(seed)
        crop = RandomResizedCrop([20, 30])
        window = crop.window(HEIGHT, WIDTH, np.random.default_rng(seed))

        def theirs(boxes, window=window):
            return v2.functional.resized_crop(boxes, *window, [20, 30])

        check(run(crop, sample, seed), reference(theirs, sample["boxes"]))


def test_random_scale_moves_boxes_by_the_size_that_the_image_has():
    for seed in range(5):
        sample = make_sample(seed)
        result = run(RandomScale(0.5, 2.0), sample, seed)
        size = list(result["image"].shape[:2])
        check(result, reference(v2.Resize(size), sample["boxes"]))


def test_padding_leaves_boxes_where_they_are():
    sample = make_sample()
    assert np.array_equal(run(PadToMultiple(32), sample)["boxes"], sample["boxes"])


# What is left of a box


def one_box(box: list[float], **more) -> dict:
    image = np.zeros((20, 40, 3), np.uint8)
    boxes = np.array([box], np.float32)
    return {"image": image, "boxes": boxes, "classes": np.array([1]), "name": "made", **more}


@pytest.mark.parametrize(("share", "left"), [(0.0, 1), (0.5, 1), (0.51, 0), (1.0, 0)])
def test_a_box_goes_when_too_little_of_it_is_left(share, left):
    sample = one_box([0, 5, 20, 15])  # the middle starts at 10
    assert len(run(CenterCrop([20, 20], min_visible=share), sample)["boxes"]) == left


def test_a_box_beside_the_window_goes_even_when_it_touches_it():
    assert len(run(CenterCrop([20, 20]), one_box([0, 0, 10, 20]))["boxes"]) == 0


def test_areas_are_scaled_and_cut_with_their_boxes():
    sample = one_box([0, 0, 20, 20], areas=np.array([300.0]))
    assert run(Resize([40, 20]), sample)["areas"].tolist() == [300.0]
    assert run(Resize([10, 20]), sample)["areas"].tolist() == [75.0]
    assert run(CenterCrop([20, 20]), sample)["areas"].tolist() == [150.0]


@pytest.mark.parametrize(
    "transform",
    [
        lambda share: RandomCrop(8, 8, min_visible=share),
        lambda share: RandomResizedCrop(8, min_visible=share),
        lambda share: CenterCrop(8, min_visible=share),
    ],
)
def test_a_share_is_from_0_to_1(transform):
    with pytest.raises(ConfigError, match=r"min_visible must be from 0 to 1, got 1.5"):
        transform(1.5)


# Batches


def test_images_of_a_batch_are_filled_up_to_the_largest():
    first, second = make_sample(0, count=3), make_sample(1, count=0)
    second["image"] = np.full((30, 70, 3), 9, np.uint8)
    batch = collate([first, second])
    assert batch.images.shape == (2, 3, 40, 70)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(batch.images[0, :, :, :56].permute(1, 2, 0), first["image"])
    mean = first["image"].mean((0, 1))
    assert np.abs(batch.images[0, :, 5, 60].numpy() - mean).max() <= 0.5
    assert (batch.images[1] == 9).all()
    assert [target["size"].tolist() for target in batch.targets] == [[40, 56], [30, 70]]


def test_targets_are_tensors_of_what_is_known():
    batch = collate([make_sample(0, count=3), make_sample(1, count=0)])
    target, empty = batch.targets
    assert {name: value.dtype for name, value in target.items()} == {
        "boxes": torch.float32,
        "classes": torch.int64,
        "crowd": torch.uint8,
        "areas": torch.float64,
        "image_id": torch.int64,
        "size": torch.int64,
    }
    assert np.array_equal(target["boxes"], make_sample(0, count=3)["boxes"])
    assert (empty["boxes"].shape, empty["classes"].shape) == ((0, 4), (0,))
    assert batch.names == ["made", "made"]


def test_images_of_labels_still_have_to_be_of_one_size():
    samples = [
        {"image": np.zeros((4, side, 3), np.uint8), "label": 0, "name": "x"} for side in (4, 6)
    ]
    with pytest.raises(DataError, match="differ in size"):
        collate(samples)


class Boxed:
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict:
        return {**make_sample(index, count=index), "name": f"sample{index}"}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_hand_over_boxes():
    loader = Loader(Boxed(), [RandomFlip(1.0)], batch_size=4, num_workers=2)
    batches = list(loader.epoch(0))
    assert [len(target["boxes"]) for batch in batches for target in batch.targets] == [*range(6)]
    expected = run(RandomFlip(1.0), Boxed()[5])["boxes"]
    assert np.array_equal(batches[1].targets[1]["boxes"], expected)


@pytest.mark.parametrize("name", MIXES.names())
def test_a_mix_refuses_boxes(name):
    mix = MIXES.build({"type": name, "num_classes": 10})
    with pytest.raises(ConfigError, match=f"{name}: it can't mix boxes"):
        next(Loader(Boxed(), [], mix=mix, batch_size=2).epoch(0))
