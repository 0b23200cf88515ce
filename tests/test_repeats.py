from collections import Counter

import numpy as np
import pytest

from hatcli.data.loader import Loader


class Numbered:
    """Images that are black; their name is their index."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict:
        return {"image": np.zeros((1, 1, 3), np.uint8), "label": 0, "name": str(index)}


class Drawn:
    """An augmentation that shows what it drew."""

    def __call__(self, sample, rng):
        return {**sample, "image": rng.integers(0, 256, (1, 1, 3), np.uint8)}


def read(**settings) -> list[tuple[list[str], list[list[int]]]]:
    settings = {"batch_size": 4, "shuffle": True, "seed": 1, **settings}
    start = settings.pop("start", 0)
    batches = Loader(Numbered(), [Drawn()], **settings).epoch(0, start)
    return [(names, images.flatten(1).tolist()) for images, _, names in batches]


def test_a_sample_comes_as_often_as_asked_for_and_differs_each_time():
    batches = read(repeats=2)
    assert len(batches) == 3
    for names, images in batches:
        assert names[0::2] == names[1::2]
        assert all(one != other for one, other in zip(images[0::2], images[1::2], strict=True))
    shown = Counter(name for names, _ in batches for name in names)
    assert sorted(shown.values()) == [2] * 6


def test_the_first_copy_is_what_a_training_without_repeats_draws():
    alone = {name: image for names, images in read() for name, image in zip(names, images)}  # noqa: B905
    for names, images in read(repeats=3, batch_size=6):
        assert images[0] == alone[names[0]]
        assert images[1] != alone[names[1]]


@pytest.mark.parametrize(
    "settings", [{}, {"num_workers": 1}, {"workers": "thread", "num_workers": 2}]
)
def test_an_epoch_goes_on_behind_its_first_samples(settings):
    whole = read(repeats=2)
    assert read(repeats=2, start=4, **settings) == whole[1:]


def test_two_processes_share_the_order_of_one():
    whole = [name for names, _ in read(repeats=2, batch_size=4) for name in names]
    halves = [read(repeats=2, batch_size=2, process=p, processes=2) for p in (0, 1)]
    merged = [name for pair in zip(*halves, strict=True) for names, _ in pair for name in names]
    assert merged == whole


def test_evaluation_repeats_nothing():
    names = [name for names, _ in read(repeats=2, shuffle=False) for name in names]
    assert names == [str(index) for index in range(12)]
