"""A model that several processes train, each on its own part of a batch."""

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from hatcli.engine.distributed import stop_counts, stop_if_asked


class DataParallel:
    """Calls a model so that its gradients are the mean of those of all processes.

    What else differs between them is brought together at the end of a step, in one message: the
    loss, the running statistics of batch norms, and who was asked to stop. So after a step the
    model is the same to the last bit in all of them, and what one of them saves is all there is.

    Args:
        model: the same on all processes; changed in place.
        find_unused: whether a step may leave parameters without a gradient, which costs time.
        compile: whether the forward pass is compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        find_unused: bool = False,
        compile: bool = False,  # noqa: A002
    ) -> None:
        self._model = model
        self._find_unused, self._compile = find_unused, compile
        self._wrap()

    def __call__(self, inputs: Tensor) -> Any:
        """The model's scores."""
        return self._forward(inputs)

    def no_sync(self) -> AbstractContextManager[object]:
        """Keep the gradients of a block to this process; those of the next call go along."""
        return self._wrapper.no_sync()

    def renew(self) -> None:
        """Follow a model whose parameters are others now, as when its batch norms are folded."""
        if [id(parameter) for parameter in _trained(self._model)] == self._known:
            return
        del self._wrapper, self._forward
        gc.collect()  # its hooks would send each gradient a second time
        self._wrap()

    def finish_step(self, loss: Tensor) -> Tensor:
        """Bring together what differs after a backward pass.

        Args:
            loss: a scalar, of this process.

        Returns:
            The mean of all processes' losses.
        """
        mine = [stop_counts(loss.device), loss.double(), *(t.double() for t in self._statistics)]
        message = torch.cat([tensor.flatten() for tensor in mine])
        dist.all_reduce(message)
        self._asked, total, *sums = torch.split(message, [tensor.numel() for tensor in mine])
        for tensor, part in zip(self._statistics, sums, strict=True):
            tensor.copy_(part.view_as(tensor) / dist.get_world_size())
        return (total[0] / dist.get_world_size()).to(loss.dtype)

    def stop_if_asked(self) -> None:
        """End all processes behind the last step if one was asked to stop; waits for a GPU.

        Raises:
            StoppedBySignal: on all of them.
        """
        stop_if_asked(self._asked)

    def _wrap(self) -> None:
        self._known = [id(parameter) for parameter in _trained(self._model)]
        self._statistics = list(statistics_of(self._model))
        self._asked = torch.zeros(1)
        self._wrapper = DistributedDataParallel(
            self._model,
            forward_sync_buffers=False,  # `finish_step` makes them equal
            gradient_as_bucket_view=True,
            find_unused_parameters=self._find_unused,
        )
        self._forward: Any = torch.compile(self._wrapper) if self._compile else self._wrapper


def statistics_of(model: nn.Module) -> Iterator[Tensor]:
    """Running means and variances of norms that see the images of one process alone."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            for tensor in (module.running_mean, module.running_var):
                if tensor is not None:
                    yield tensor


def _trained(model: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in model.parameters() if parameter.requires_grad)
