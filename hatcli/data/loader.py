"""From a dataset to batches whose order and augmentation depend on the seed alone.

Nothing is drawn from a global generator: the order of an epoch follows from (seed, epoch), the
augmentation of a sample from (seed, epoch, index), the mixing of a batch from those of its first
sample. So any number of workers, started by fork or spawn, gives the same batches, and an
interrupted run goes on with the ones it would have seen.
"""

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hatcli.errors import ConfigError, DataError

Sample = dict[str, Any]
SampleTransform = Callable[[Sample, np.random.Generator], Sample]
Mix = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]

WORKER_TIMEOUT_S = 600
POSITION = "_position"  # of a sample: (epoch, index), by which its batch is known


class Batch(NamedTuple):
    """What the loader gives.

    Attributes:
        images: (N, 3, H, W) uint8 RGB, 0 to 255, in channels_last memory.
        targets: (N, H, W) uint8 class maps, (N,) int64 class indices, or (N, C) float32 shares
            of the classes where images are mixed.
        names: of the N samples.
    """

    images: Tensor
    targets: Tensor
    names: list[str]


class SampleSource(Protocol):
    """A dataset: samples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Loader:
    """Batches of one dataset, epoch by epoch.

    Args:
        dataset: gives samples by index.
        transforms: applied in order to each sample, each with the sample's own generator.
        mix: mixes the images and targets of a batch, with the batch's own generator.
        batch_size: images a batch.
        shuffle: a new order each epoch, and a last batch that isn't full is dropped, since its
            few images would weigh as much as a whole batch.
        num_workers: processes that read ahead, at most one a core; 0 reads in this one.
        seed: of order and augmentation.
        process: rank of this process among those that share the samples.
        processes: how many share them. In training each takes ``batch_size`` samples in turn, so
            that the order is that of one process with the batches of all; in evaluation each
            sample is seen by one of them.
        start_method: "fork" or "spawn" for the workers; None is the platform's.

    Raises:
        ConfigError: an epoch would hold no batch.
    """

    def __init__(
        self,
        dataset: SampleSource,
        transforms: Sequence[SampleTransform],
        *,
        mix: Mix | None = None,
        batch_size: int,
        shuffle: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
        start_method: str | None = None,
    ) -> None:
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(
                f"batch_size {batch_size} and num_workers {num_workers} make no loader"
            )
        if len(dataset) == 0 or (shuffle and len(dataset) < batch_size * processes):
            shared = f" in each of {processes} processes" if processes > 1 else ""
            raise ConfigError(
                f"no batch in an epoch: {len(dataset)} samples, batch_size {batch_size}{shared}",
                f"set batch_size to at most {len(dataset) // processes}" if len(dataset) else None,
            )
        num_workers = min(num_workers, len(os.sched_getaffinity(0)))
        self.dataset = dataset
        self.process = process
        self.samples_a_batch = batch_size * processes
        self._order = _BatchOrder(
            len(dataset), batch_size, shuffle, seed, process=process, processes=processes
        )
        self._loader: DataLoader[Any] = DataLoader(
            _Samples(dataset, transforms, seed),
            batch_sampler=self._order,
            num_workers=num_workers,
            collate_fn=collate if mix is None else _Mixed(mix, seed),
            generator=torch.Generator(),  # its own: the global one must not move
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_prepare_worker,
            timeout=WORKER_TIMEOUT_S if num_workers else 0,
            multiprocessing_context=start_method if num_workers else None,
        )

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, counted from 0, behind its first ``start`` samples.

        Args:
            number: of the epoch.
            start: samples that all processes have taken; whole batches.
        """
        self._order.epoch, self._order.start = number, start
        close = getattr(self.dataset, "close", None)
        if close is not None:  # a database that is open here can't be opened by forked workers
            close()
        return iter(self._loader)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch.

    Raises:
        DataError: their images differ in size.
    """
    shapes = {sample["image"].shape for sample in samples}
    if len(shapes) > 1:
        raise DataError(
            f"images of one batch differ in size: {sorted(shapes)}",
            "add RandomCrop, Resize or PadToMultiple to the transforms, or set batch_size=1",
        )
    images = torch.from_numpy(np.stack([sample["image"] for sample in samples]))  # (N, H, W, 3)
    labels = [sample["label"] for sample in samples]
    targets = torch.from_numpy(np.stack(labels)) if _is_map(labels[0]) else torch.tensor(labels)
    return Batch(images.permute(0, 3, 1, 2), targets, [sample["name"] for sample in samples])


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one sample in one epoch."""
    return _generator(f"{seed}/{epoch}/{index}")


def batch_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of the batch that one sample begins in one epoch."""
    return _generator(f"{seed}/{epoch}/{index}/batch")


class _Samples(Dataset[Sample]):
    """Reads and transforms the sample that an (epoch, index) pair means."""

    def __init__(
        self, dataset: SampleSource, transforms: Sequence[SampleTransform], seed: int
    ) -> None:
        self._dataset = dataset
        self._transforms = tuple(transforms)
        self._seed = seed

    def __getitem__(self, position: tuple[int, int]) -> Sample:
        epoch, index = position
        sample = self._dataset[index]
        generator = sample_generator(self._seed, epoch, index)
        for transform in self._transforms:
            sample = transform(sample, generator)
        return {**sample, POSITION: position}


class _Mixed:
    """Stacks samples into a batch and mixes it; a class, so that spawned workers get it."""

    def __init__(self, mix: Mix, seed: int) -> None:
        self._mix = mix
        self._seed = seed

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        images, targets, names = collate(samples)
        epoch, index = samples[0][POSITION]
        generator = batch_generator(self._seed, epoch, index)
        return Batch(*self._mix(images, targets, generator), names)


class _BatchOrder(Sampler[list[tuple[int, int]]]):
    """Lists of (epoch, index) pairs; the epoch travels with the index, so workers can stay.

    Attributes:
        epoch: whose order it is.
        start: samples at the front of the epoch, of all processes, that are left out.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        *,
        process: int,
        processes: int,
    ) -> None:
        self.epoch = self.start = 0
        self._length = length
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._process, self._processes = process, processes

    def __len__(self) -> int:
        if self._shuffle:
            return self._length // (self._batch_size * self._processes)
        own = len(range(self._process, self._length, self._processes))
        return (own + self._batch_size - 1) // self._batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size, together = self._batch_size, self._batch_size * self._processes
        if not self._shuffle:
            own = range(self._process, self._length, self._processes)
            for start in range(0, len(own), size):
                yield [(self.epoch, index) for index in own[start : start + size]]
            return
        order = sample_generator(self._seed, self.epoch, -1).permutation(self._length)
        for start in range(self.start, self._length - together + 1, together):
            first = start + self._process * size
            yield [(self.epoch, int(index)) for index in order[first : first + size]]


def _generator(text: str) -> np.random.Generator:
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def _prepare_worker(_worker: int) -> None:
    """Ctrl-C reaches the whole group; only the main process is to answer it, and then ends us."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = _forgive_a_lost_peer


def _forgive_a_lost_peer(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """When the main process ends, a batch on its way to it is lost; that is no news."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _is_map(label: Any) -> bool:
    return isinstance(label, np.ndarray) and label.ndim > 0
