import threading

import numpy as np
import pytest
import torch
from test_loader import Noise, Stripes, loader, read, same

from hatcli.data.loader import Loader
from hatcli.data.threads import map_ahead
from hatcli.errors import ConfigError, DataError


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("hat-loader")]


class Broken(Stripes):
    """Its fifth sample is damaged."""

    def __getitem__(self, index: int) -> dict:
        if index == 4:
            raise DataError("sample 4 is damaged")
        return super().__getitem__(index)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_threads_change_nothing(num_workers, shuffle):
    alone = loader(shuffle=shuffle)
    helped = loader(shuffle=shuffle, num_workers=num_workers, workers="thread")
    for epoch in (0, 1):
        assert same(read(alone, epoch), read(helped, epoch))
    assert [batch.names for batch in helped.epoch(0, start=2)] == [
        batch.names for batch in alone.epoch(0, start=2)
    ]
    assert not threads()


def test_a_batch_of_threads_is_in_channels_last_memory():
    images, _, names = next(loader(shuffle=False, num_workers=2, workers="thread").epoch(0))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert names == ["sample0", "sample1"]


def test_an_error_comes_out_in_its_place_and_the_threads_end():
    source = Loader(Broken(), [Noise()], batch_size=2, num_workers=2, workers="thread")
    batches = source.epoch(0)
    assert [next(batches).names for _ in range(2)] == [
        ["sample0", "sample1"],
        ["sample2", "sample3"],
    ]
    with pytest.raises(DataError, match="sample 4 is damaged"):
        next(batches)
    assert not threads()
    assert list(batches) == []


def test_an_epoch_that_is_left_early_leaves_no_thread():
    batches = loader(num_workers=2, workers="thread").epoch(0)
    next(batches)
    assert threads()
    del batches
    assert not threads()


def test_two_epochs_at_once_do_not_disturb_each_other():
    source, alone = loader(num_workers=2, workers="thread"), loader()
    first, second = source.epoch(0), loader(num_workers=2, workers="thread").epoch(1)
    pairs = list(zip(first, second, strict=True))
    for number in (0, 1):
        names = [batch.names for batch in alone.epoch(number)]
        assert [pair[number].names for pair in pairs] == names


def test_no_more_is_made_ahead_than_twice_the_threads():
    made, go = [], threading.Event()

    def work(item):
        made.append(item)
        go.wait(5)
        return item

    taken = []
    results = map_ahead(work, (taken.append(item) or item for item in range(100)), 2)
    go.set()
    assert next(results) == 0
    assert len(taken) <= 5
    assert list(results) == list(range(1, 100))
    assert sorted(made) == list(range(100))


def test_other_workers_are_refused():
    with pytest.raises(ConfigError, match="workers must be 'process' or 'thread', got 'fibre'"):
        loader(workers="fibre")


def test_the_global_generators_do_not_move():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    read(loader(num_workers=2, workers="thread"), 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
