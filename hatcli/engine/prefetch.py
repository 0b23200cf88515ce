"""Batches on their way to the GPU while it still computes on the one before."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hatcli.engine.device import move
from hatcli.engine.evaluation import LoadedBatch


def prefetched(batches: Iterator[LoadedBatch], device: torch.device) -> Iterator[LoadedBatch]:
    """The same batches on the device, the next one copied while the present one is used.

    The copy runs in a CUDA stream of its own, and only from pinned memory beside the computation:
    the loader pins what it gives. On a CPU there is nothing to copy, and the batches come as they
    are.

    Args:
        batches: images, targets and names, on the CPU.
    """
    if device.type != "cuda":
        return batches
    return _ahead(batches, device)


def _ahead(batches: Iterator[LoadedBatch], device: torch.device) -> Iterator[LoadedBatch]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    coming = _sent(batches, device, stream)
    while coming is not None:
        present = coming
        user = torch.cuda.current_stream(device)
        user.wait_stream(stream)
        for tensor in _tensors(present):
            tensor.record_stream(user)  # its memory isn't given away while the user needs it
        coming = _sent(batches, device, stream)
        yield present


def _sent(
    batches: Iterator[LoadedBatch], device: torch.device, stream: torch.cuda.Stream
) -> LoadedBatch | None:
    batch = next(batches, None)
    if batch is None:
        return None
    images, targets, names = batch
    with torch.cuda.stream(stream):
        return images.to(device, non_blocking=True), move(targets, device), names


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
