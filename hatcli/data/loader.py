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
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hatcli.data.detections import stack_images, targets_of
from hatcli.data.threads import map_ahead
from hatcli.data.transforms._boxes import BOXES
from hatcli.data.workers import Failed, Workers, children, unreadable
from hatcli.errors import ConfigError, DataError, HatError

Sample = dict[str, Any]
SampleTransform = Callable[[Sample, np.random.Generator], Sample]
Mix = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]

WORKER_TIMEOUT_S = 600
Position = tuple[int, int, int]
"""Of a sample: epoch, index and, counted from 0, which of its copies in that epoch."""

POSITION = "_position"  # of a sample, by which its batch is known


class Batch(NamedTuple):
    """What the loader gives.

    Attributes:
        images: (N, 3, H, W) uint8 RGB, 0 to 255, in channels_last memory.
        targets: (N, H, W) uint8 class maps, (N,) int64 class indices, (N, C) float32 shares of
            the classes where images are mixed, or what `targets_of` gives of samples with boxes.
        names: of the N samples.
    """

    images: Tensor
    targets: Any
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
        repeats: how often a shuffled epoch shows a sample, each time transformed anew and next to
            each other; it shows as many fewer samples (Hoffer et al., arXiv 1901.09335).
        num_workers: processes or threads that read ahead, at most one a core; 0 reads in this
            process alone.
        workers: "thread" starts at once and hands batches over for nothing, but Pillow and
            Python hold the threads up; "process" always uses all cores.
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
        repeats: int = 1,
        num_workers: int = 0,
        workers: Literal["process", "thread"] = "process",
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
        start_method: str | None = None,
    ) -> None:
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(
                f"batch_size {batch_size} and num_workers {num_workers} make no loader"
            )
        if workers not in ("process", "thread"):
            raise ConfigError(f"workers must be 'process' or 'thread', got {workers!r}")
        if len(dataset) == 0 or (shuffle and len(dataset) < batch_size * processes):
            shared = f" in each of {processes} processes" if processes > 1 else ""
            raise ConfigError(
                f"no batch in an epoch: {len(dataset)} samples, batch_size {batch_size}{shared}",
                f"set batch_size to at most {len(dataset) // processes}" if len(dataset) else None,
            )
        num_workers = min(num_workers, len(os.sched_getaffinity(0)))
        self._num_threads = num_workers if workers == "thread" else 0
        num_workers -= self._num_threads
        self.dataset = dataset
        self.process = process
        self.samples_a_batch = batch_size * processes
        self._order = _BatchOrder(
            len(dataset),
            batch_size,
            shuffle,
            seed,
            process=process,
            processes=processes,
            repeats=repeats,
        )
        self._batches = _Batches(
            _Samples(dataset, transforms, seed), collate if mix is None else _Mixed(mix, seed)
        )
        self._workers = Workers(WORKER_TIMEOUT_S)
        self._loader: DataLoader[Any] = DataLoader(
            self._batches,
            sampler=self._order,
            batch_size=None,  # the sampler gives whole batches
            num_workers=num_workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # its own: the global one must not move
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_prepare_worker if processes == 1 else _prepare_deaf_worker,
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
        if self._num_threads:
            return map_ahead(self._load, self._order, self._num_threads)
        close = getattr(self.dataset, "close", None)
        if close is not None:  # a database that is open here can't be opened by forked workers
            close()
        others = set(children())
        with self._workers.waiting():  # those of the last epoch answer first
            source = iter(self._loader)
        self._workers.join([process for process in children() if process not in others])
        return self._workers.batches(source)

    def _load(self, positions: list[Position]) -> Batch:
        """One batch, in whatever thread."""
        batch = self._batches[positions]
        if isinstance(batch, Failed):
            raise batch.error
        if torch.cuda.is_available():
            return batch._replace(images=batch.images.pin_memory())
        return batch


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch; images that boxes belong to are filled up to one size.

    Raises:
        DataError: other images differ in size.
    """
    names = [sample["name"] for sample in samples]
    if BOXES in samples[0]:
        return Batch(stack_images(samples), targets_of(samples), names)
    shapes = {sample["image"].shape for sample in samples}
    if len(shapes) > 1:
        raise DataError(
            f"images of one batch differ in size: {sorted(shapes)}",
            "add RandomCrop, Resize or PadToMultiple to the transforms, or set batch_size=1",
        )
    images = torch.from_numpy(np.stack([sample["image"] for sample in samples]))  # (N, H, W, 3)
    labels = [sample["label"] for sample in samples]
    targets = torch.from_numpy(np.stack(labels)) if _is_map(labels[0]) else torch.tensor(labels)
    return Batch(images.permute(0, 3, 1, 2), targets, names)


def sample_generator(seed: int, epoch: int, index: int, copy: int = 0) -> np.random.Generator:
    """The random numbers of one sample, or of a further copy of it, in one epoch."""
    return _generator(f"{seed}/{epoch}/{index}" + (f"/{copy}" if copy else ""))


def batch_generator(seed: int, epoch: int, index: int, copy: int = 0) -> np.random.Generator:
    """The random numbers of the batch that one sample, or a copy of it, begins in one epoch."""
    return _generator(f"{seed}/{epoch}/{index}" + (f"/{copy}" if copy else "") + "/batch")


class _Batches(Dataset[Batch | Failed]):
    """Makes the batch of a list of positions; what goes wrong is given in its place."""

    def __init__(self, samples: "_Samples", stack: Callable[[Sequence[Sample]], Batch]) -> None:
        self._samples = samples
        self._stack = stack

    def __getitem__(self, positions: list[Position]) -> Batch | Failed:
        try:
            return self._stack([self._sample(position) for position in positions])
        except HatError as error:
            return Failed(error)

    def _sample(self, position: Position) -> Sample:
        try:
            return self._samples[position]
        except (HatError, MemoryError):
            raise
        except Exception as error:
            raise unreadable(position[1], error) from error


class _Samples(Dataset[Sample]):
    """Reads and transforms the sample that a position means.

    Where the dataset can give images that aren't decoded yet, and the first transform takes
    them, it decides what is decoded.
    """

    def __init__(
        self, dataset: SampleSource, transforms: Sequence[SampleTransform], seed: int
    ) -> None:
        self._dataset = dataset
        self._transforms = tuple(transforms)
        self._seed = seed
        first = self._transforms[0] if self._transforms else None
        self._read: Any = getattr(dataset, "read", None)
        if not getattr(first, "takes_stored", False):
            self._read = None

    def __getitem__(self, position: Position) -> Sample:
        index = position[1]
        generator = sample_generator(self._seed, *position)
        if self._read is None:
            sample, done = self._dataset[index], 0
        else:
            first = self._transforms[0]
            sample, done = self._read(index, lambda stored: first(stored, generator)), 1
        for transform in self._transforms[done:]:
            sample = transform(sample, generator)
        return {**sample, POSITION: position}


class _Mixed:
    """Stacks samples into a batch and mixes it; a class, so that spawned workers get it."""

    def __init__(self, mix: Mix, seed: int) -> None:
        self._mix = mix
        self._seed = seed

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        images, targets, names = collate(samples)
        if isinstance(targets, list):
            raise ConfigError(
                f"{type(self._mix).__name__}: it can't mix boxes, and the samples have some",
                "leave train.mix out of the config of a detection set",
            )
        generator = batch_generator(self._seed, *samples[0][POSITION])
        return Batch(*self._mix(images, targets, generator), names)


class _BatchOrder(Sampler[list[Position]]):
    """Lists of positions; the epoch travels with the index, so workers can stay.

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
        repeats: int,
    ) -> None:
        self.epoch = self.start = 0
        self._repeats = repeats
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

    def __iter__(self) -> Iterator[list[Position]]:
        size, together = self._batch_size, self._batch_size * self._processes
        if not self._shuffle:
            own = range(self._process, self._length, self._processes)
            for start in range(0, len(own), size):
                yield [(self.epoch, index, 0) for index in own[start : start + size]]
            return
        order = sample_generator(self._seed, self.epoch, -1).permutation(self._length)
        for start in range(self.start, self._length - together + 1, together):
            first = start + self._process * size
            yield [
                (self.epoch, int(order[place // self._repeats]), place % self._repeats)
                for place in range(first, first + size)
            ]


def _generator(text: str) -> np.random.Generator:
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def _prepare_worker(_worker: int) -> None:
    """Ctrl-C reaches the whole group; only the main process is to answer it, and then ends us."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.excepthook = _forgive_a_lost_peer


def _prepare_deaf_worker(worker: int) -> None:
    """A signal to all of several processes must not take the next batch from a step of theirs.

    They stop at a step that they agree on, and kill what still reads then.
    """
    _prepare_worker(worker)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _forgive_a_lost_peer(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """When the main process ends, a batch on its way to it is lost; that is no news."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _as_it_is(batch: Any) -> Any:
    return batch


def _is_map(label: Any) -> bool:
    return isinstance(label, np.ndarray) and label.ndim > 0
