import numpy as np
import pytest
import torch
from tiny import write_tiny_config

from hatcli.config import load_config
from hatcli.data.loader import Loader, batch_generator, sample_generator
from hatcli.data.transforms import MIXES
from hatcli.data.transforms.mix import (
    CutMix,
    Mixup,
    MixupOrCutMix,
    blended_images,
    blended_shares,
    rectangle,
    shares_of,
)
from hatcli.errors import ConfigError, DataError
from hatcli.losses import LOSSES
from hatcli.recipes.build import build_loader
from hatcli.recipes.check import check_config

CLASSES = 10


def batch(count: int = 6, height: int = 24, width: int = 32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, height, width, 3), generator=generator)
    targets = torch.randint(0, CLASSES, (count,), generator=generator)
    return pixels.to(torch.uint8).permute(0, 3, 1, 2), targets


def mixed(mix, seed: int = 0, **settings):
    return mix(*batch(**settings), np.random.default_rng(seed))


@pytest.mark.parametrize("name", MIXES.names())
def test_a_mixed_batch_is_a_batch_with_shares_that_add_up_to_1(name):
    mix = MIXES.build({"type": name, "num_classes": CLASSES})
    for seed in range(20):
        images, shares = mixed(mix, seed)
        assert (images.dtype, images.shape) == (torch.uint8, (6, 3, 24, 32))
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert (shares.dtype, shares.shape) == (torch.float32, (6, CLASSES))
        torch.testing.assert_close(shares.sum(1), torch.ones(6))
        assert (shares >= 0).all()


@pytest.mark.parametrize("name", MIXES.names())
def test_a_mix_leaves_its_input_and_the_global_generators_alone(name):
    images, targets = batch()
    copies, before = (images.clone(), targets.clone()), torch.get_rng_state()
    mix = MIXES.build({"type": name, "num_classes": CLASSES})
    first, again = (mix(images, targets, np.random.default_rng(1)) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert torch.equal(images, copies[0])
    assert torch.equal(targets, copies[1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", MIXES.names())
def test_a_share_of_the_batches_is_mixed(name):
    mix = MIXES.build({"type": name, "num_classes": CLASSES, "p": 0.3})
    images, targets = batch()
    plain = shares_of(targets, CLASSES)
    changed = [not torch.equal(mixed(mix, seed)[1], plain) for seed in range(400)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.08)
    never = MIXES.build({"type": name, "num_classes": CLASSES, "p": 0.0})
    assert torch.equal(mixed(never)[0], images)


# Against torchvision


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_blending_is_that_of_torchvision_rounded_to_levels(weight):
    from torchvision.transforms import v2

    images, targets = batch()
    theirs = v2.MixUp(num_classes=CLASSES)
    params = {"labels": targets, "batch_size": 6, "lam": weight}
    expected = theirs.transform(images.float(), params)
    assert (blended_images(images, weight) - expected).abs().max() <= 0.5001
    shares = blended_shares(shares_of(targets, CLASSES), weight)
    torch.testing.assert_close(shares, theirs.transform(targets, params))


def test_the_weight_of_a_mixup_is_drawn_from_the_beta_distribution():
    weights = []
    targets = torch.tensor([0, 1])
    images = torch.zeros(2, 3, 1, 1, dtype=torch.uint8)
    for seed in range(3000):
        _, shares = Mixup(2, alpha=0.8)(images, targets, np.random.default_rng(seed))
        weights.append(float(shares[0, 0]))
    assert np.mean(weights) == pytest.approx(0.5, abs=0.02)
    assert np.var(weights) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.06)


@pytest.mark.parametrize("stays", [0.0, 0.2, 0.64, 0.999, 1.0])
@pytest.mark.parametrize("centre", [(0, 0), (12, 16), (23, 31), (3, 30)])
def test_the_rectangle_is_that_of_torchvision(stays, centre, monkeypatch):
    from torchvision.transforms import v2  # here: spawned workers import this file too

    theirs = v2.CutMix(num_classes=CLASSES)
    monkeypatch.setattr(theirs, "_dist", type("Fixed", (), {"sample": lambda self, _: stays})())
    coordinates = iter([centre[1], centre[0]])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([next(coordinates)]))
    expected = theirs.make_params([torch.empty(6, 3, 24, 32)])
    rows, columns = rectangle(stays, centre, (24, 32))
    assert (columns.start, rows.start, columns.stop, rows.stop) == expected["box"]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    assert 1 - area / (24 * 32) == expected["lam_adjusted"]


def test_a_rectangle_shows_the_image_before_and_the_shares_follow_its_area():
    images, targets = batch()
    areas = []
    for seed in range(200):
        result, shares = mixed(CutMix(CLASSES), seed)
        foreign = (result == images.roll(1, 0)).all(1) & ~(images == images.roll(1, 0)).all(1)
        own = (result == images).all(1)
        assert (own | foreign).all()
        area = foreign[0].float().mean().item()
        assert torch.equal(foreign, foreign[:1].expand_as(foreign))
        expected = blended_shares(shares_of(targets, CLASSES), 1 - area)
        torch.testing.assert_close(shares, expected)
        areas.append(area)
    assert 0.3 < np.mean(areas) < 0.5  # a half, less what the edges cut off
    assert max(areas) > 0.6


def test_a_switch_chooses_between_the_two():
    images, _ = batch()
    ways = []
    for seed in range(300):
        result, _ = mixed(MixupOrCutMix(CLASSES, switch_p=0.25), seed)
        is_cut = ((result == images) | (result == images.roll(1, 0))).all(1).all()
        ways.append(bool(is_cut))
    assert np.mean(ways) == pytest.approx(0.25, abs=0.08)


def test_a_batch_of_one_image_mixes_with_itself():
    images, targets = batch(count=1)
    for mix in (Mixup(CLASSES), CutMix(CLASSES)):
        result, shares = mix(images, targets, np.random.default_rng(0))
        assert torch.equal(result, images)
        torch.testing.assert_close(shares, shares_of(targets, CLASSES))


# Wrong input


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 10]), r"class indices from 0 to 10 for num_classes=10"),
        (torch.tensor([-1, 3]), r"class indices from -1 to 3"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), r"targets of shape \(2, 4, 4\), torch.uint8"),
        (torch.zeros(2), r"torch.float32; one class index an image"),
    ],
)
def test_targets_that_are_no_class_indices_are_refused(targets, message):
    with pytest.raises(DataError, match=message):
        shares_of(targets, CLASSES)


@pytest.mark.parametrize(
    ("part", "argument", "arguments"),
    [
        (Mixup, "num_classes", {"num_classes": 0}),
        (Mixup, "alpha", {"num_classes": 2, "alpha": 0}),
        (CutMix, "alpha", {"num_classes": 2, "alpha": float("inf")}),
        (CutMix, "p", {"num_classes": 2, "p": 1.5}),
        (MixupOrCutMix, "cutmix_alpha", {"num_classes": 2, "cutmix_alpha": -1}),
        (MixupOrCutMix, "switch_p", {"num_classes": 2, "switch_p": -0.5}),
    ],
)
def test_a_wrong_argument_is_named(part, argument, arguments):
    with pytest.raises(ConfigError, match=f"{part.__name__}: {argument} "):
        part(**arguments)


# In the loader and in a config


class Tiles:
    """Samples whose pixels are their index and whose class is, too."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> dict:
        image = np.full((8, 8, 3), 20 * index, np.uint8)
        return {"image": image, "label": index, "name": f"tile{index}"}


def loader(**settings) -> Loader:
    settings = {"batch_size": 2, "shuffle": True, "seed": 3, **settings}
    return Loader(Tiles(), [], mix=MixupOrCutMix(9), **settings)


def read(source: Loader, epoch: int) -> list:
    return [
        (batch.names, batch.images.tolist(), batch.targets.tolist())
        for batch in source.epoch(epoch)
    ]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_change_nothing_in_mixed_batches(start_method):
    alone, helped = loader(), loader(num_workers=2, start_method=start_method)
    for epoch in (0, 1):
        assert read(alone, epoch) == read(helped, epoch)


def test_a_mixed_batch_follows_from_seed_epoch_and_its_first_sample():
    mix, found = MixupOrCutMix(9), read(loader(), 1)
    assert found == read(loader(), 1)
    assert [row[2] for row in found] != [row[2] for row in read(loader(), 2)]
    for names, images, targets in found:
        indices = [int(name.removeprefix("tile")) for name in names]
        pixels = torch.stack([torch.full((3, 8, 8), 20 * i, dtype=torch.uint8) for i in indices])
        generator = batch_generator(3, 1, indices[0])
        expected = mix(pixels, torch.tensor(indices), generator)
        assert (images, targets) == tuple(part.tolist() for part in expected)


def test_a_batch_and_its_first_sample_draw_different_numbers():
    assert batch_generator(0, 1, 2).random() != sample_generator(0, 1, 2).random()
    assert batch_generator(0, 1, 2).random() == batch_generator(0, 1, 2).random()


MIX = "train.mix={'type': 'Mixup', 'num_classes': 9}"


def test_a_config_mixes_training_batches_and_no_others(tmp_path):
    tiny = str(write_tiny_config(tmp_path, tmp_path))
    config = load_config(tiny, [MIX, "train.transforms=[]", "val.transforms=[]"])
    check_config(config)
    train, val = (next(build_loader(config, s, Tiles()).epoch(0)) for s in ("train", "val"))
    assert (train.targets.shape, train.targets.dtype) == ((2, 9), torch.float32)
    assert (val.targets.shape, val.targets.dtype) == ((2,), torch.int64)
    loss = LOSSES.build({"type": "SoftTargetCrossEntropy"})(torch.zeros(2, 9), train.targets)
    assert loss.item() == pytest.approx(np.log(9))
    without = load_config(tiny, [MIX, "train.transforms=[]", "train.mix=None"])
    check_config(without)
    assert next(build_loader(without, "train", Tiles()).epoch(0)).targets.shape == (2,)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("train.mix={'type': 'MixUp', 'num_classes': 9}", "train.mix: no mix 'MixUp'", "'Mixup'?"),
        ("train.mix={'type': 'Mixup'}", "train.mix: mix 'Mixup' needs 'num_classes'", ""),
        ("train.mix=0.8", "train.mix: must be dict | None, got 0.8", ""),
        ("val.mix={'type': 'Mixup', 'num_classes': 9}", "val: no setting 'mix'", ""),
    ],
)
def test_a_wrong_mix_is_named_before_anything_is_loaded(tmp_path, text, message, hint):
    with pytest.raises(ConfigError) as caught:
        check_config(load_config(str(write_tiny_config(tmp_path, tmp_path)), [text]))
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
