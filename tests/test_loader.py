import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hatcli.data.loader import Loader, collate, sample_generator
from hatcli.data.workers import WorkerLost, Workers
from hatcli.errors import ConfigError, DataError


class Stripes:
    """Samples whose pixels are their index."""

    def __init__(self, length: int = 7) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        image = np.full((4, 6, 3), index, np.uint8)
        return {"image": image, "label": image[..., 0], "name": f"sample{index}"}


class Noise:
    """An augmentation that needs random numbers."""

    def __call__(self, sample, rng):
        noise = rng.integers(0, 100, sample["image"].shape, np.uint8)
        return {**sample, "image": sample["image"] + noise}


def loader(**settings) -> Loader:
    settings = {"batch_size": 2, "shuffle": True, "seed": 3, **settings}
    return Loader(Stripes(), [Noise()], **settings)


def read(source: Loader, epoch: int) -> list:
    return [(names, images, targets) for images, targets, names in source.epoch(epoch)]


def same(first: list, second: list) -> bool:
    return all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
        for a, b in zip(first, second, strict=True)
    )


def test_a_batch_is_uint8_in_channels_last_memory():
    images, targets, names = next(loader(shuffle=False).epoch(0))
    assert (images.shape, images.dtype) == ((2, 3, 4, 6), torch.uint8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (targets.shape, targets.dtype) == ((2, 4, 6), torch.uint8)
    assert names == ["sample0", "sample1"]
    assert targets[1].unique().tolist() == [1]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_change_nothing(start_method):
    alone = loader()
    helped = loader(num_workers=2, start_method=start_method)
    for epoch in (0, 1):
        assert same(read(alone, epoch), read(helped, epoch))


def test_an_epoch_follows_from_its_number_alone():
    first, second = loader(), loader()
    read(first, 0)
    torch.rand(10)
    assert same(read(first, 1), read(second, 1))
    assert not same(read(first, 1), read(first, 2))


def test_the_global_generators_do_not_move():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    read(loader(num_workers=2), 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_training_drops_a_batch_that_is_not_full_and_evaluation_keeps_it():
    assert (len(loader()), len(read(loader(), 0))) == (3, 3)
    kept = loader(shuffle=False)
    assert (len(kept), [len(names) for names, _, _ in read(kept, 0)]) == (4, [2, 2, 2, 1])


def test_a_shuffled_epoch_shows_each_sample_once():
    names = [name for batch in read(loader(batch_size=1), 0) for name in batch[0]]
    assert sorted(names) == sorted(f"sample{i}" for i in range(7))
    assert names != sorted(names)


def test_another_seed_is_another_order_and_another_noise():
    assert not same(read(loader(seed=1), 0), read(loader(seed=2), 0))
    first, second = sample_generator(0, 1, 2), sample_generator(0, 2, 1)
    assert first.integers(1 << 30) != second.integers(1 << 30)


@pytest.mark.parametrize(
    ("length", "batch_size", "shuffle", "message"),
    [
        (3, 4, True, "no batch in an epoch: 3 samples, batch_size 4"),
        (0, 1, False, "no batch in an epoch: 0 samples"),
        (3, 0, False, "batch_size 0"),
    ],
)
def test_an_epoch_without_a_batch_is_an_error(length, batch_size, shuffle, message):
    with pytest.raises(ConfigError, match=message):
        Loader(Stripes(length), [], batch_size=batch_size, shuffle=shuffle)


def test_images_of_different_sizes_make_no_batch():
    small, large = Stripes()[0], Stripes()[1]
    large["image"] = np.zeros((5, 6, 3), np.uint8)
    with pytest.raises(DataError, match="images of one batch differ in size"):
        collate([small, large])


def test_class_indices_become_a_vector():
    sample = {"image": np.zeros((2, 2, 3), np.uint8), "name": "a"}
    batch = collate([{**sample, "label": 3}, {**sample, "label": 5}])
    assert batch.targets.tolist() == [3, 5]
    assert batch.targets.dtype == torch.int64


def test_a_death_between_the_look_and_the_wait_is_noticed():
    workers, process = Workers(600), SimpleNamespace(pid=7, exitcode=None)

    class DiesBehindTheLook(list):
        def __iter__(self):
            yield process
            if process.exitcode is None:
                process.exitcode = -signal.SIGKILL
                workers.look()  # as the handler of SIGCHLD does

    workers._processes = DiesBehindTheLook()
    waits = iter(lambda: pytest.fail("waits for a process that is dead"), None)
    with pytest.raises(WorkerLost, match="was killed by SIGKILL"):
        next(workers.batches(waits))
