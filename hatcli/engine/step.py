"""One optimiser step: forward, backward, a look at the gradients, and the change."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from hatcli.engine.data_parallel import DataParallel
from hatcli.engine.device import autocast, move
from hatcli.engine.evaluation import LoadedBatch
from hatcli.engine.meter import NonFinite
from hatcli.engine.training import FitSettings, Training
from hatcli.errors import HatError

MAX_SKIPPED = 10


class Stepper:
    """Takes one optimiser step after the other; all that stays the same is looked up once.

    Args:
        forward: calls ``training.model``, e.g. with gradients averaged over processes; None
            calls it itself.
    """

    def __init__(
        self,
        training: Training,
        settings: FitSettings,
        *,
        loss: nn.Module,
        prepare: nn.Module,
        forward: Callable[..., Tensor] | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        call: Callable[..., Tensor] = training.model if forward is None else forward
        # What several processes share is compiled inside, where it calls the model.
        compiles = settings.compile and not isinstance(forward, DataParallel)
        self._forward = torch.compile(call) if compiles else call
        self._no_sync = getattr(forward, "no_sync", nullcontext)
        self._shared = forward if isinstance(forward, DataParallel) else None
        self._training, self._dtype, self._device = training, settings.dtype, training.device
        self._loss, self._prepare, self._teacher = loss, prepare, teacher
        self._optimizer, self._ema, self._scaler = (
            training.optimizer, training.ema, training.scaler,
        )  # fmt: skip
        self._share = 1 / settings.accumulate
        self._largest_norm = settings.clip_grad_norm
        self._groups = self._optimizer.param_groups
        self._rates = [group.setdefault("initial_lr", group["lr"]) for group in self._groups]
        self._parameters = [parameter for group in self._groups for parameter in group["params"]]
        skips = settings.on_nonfinite == "skip"
        self._statistics = _Statistics(training.model) if skips else None

    def __call__(self, batches: Sequence[LoadedBatch], factor: float) -> Tensor | None:
        """Learn from the batches of a step.

        Args:
            batches: whose gradients are averaged.
            factor: of each group's base learning rate.

        Returns:
            The mean loss, of all processes, on the device; None if the step was left out.

        Raises:
            NonFinite: the gradient isn't finite.
        """
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate * factor
        if self._statistics is not None:
            self._statistics.keep()
        value = self._backward_all(batches)
        if self._shared is not None:
            value = self._shared.finish_step(value)
        looks = self._statistics is not None or self._largest_norm is not None
        if looks and not self._look_at_gradients(value, batches):
            return None
        if self._scaler is None:
            self._optimizer.step()
        else:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        self._optimizer.zero_grad()
        if self._ema is not None:
            self._ema.update()
        self._training.skipped = 0
        return value

    def _backward_all(self, batches: Sequence[LoadedBatch]) -> Tensor:
        if len(batches) == 1:
            return self._backward(batches[0])
        values = []
        for batch in batches[:-1]:
            with self._no_sync():
                values.append(self._backward(batch))
        values.append(self._backward(batches[-1]))
        return torch.stack(values).sum()

    def _backward(self, batch: LoadedBatch) -> Tensor:
        images, targets, _ = batch
        inputs = self._prepare(images.to(self._device, non_blocking=True))
        with autocast(self._device, self._dtype):
            scores = self._forward(inputs)
            taught = () if self._teacher is None else (_scores_of(self._teacher, inputs),)
        value: Tensor = self._loss(scores, move(targets, self._device), *taught)
        if self._share != 1:
            value = value * self._share
        scaled: Tensor = value if self._scaler is None else self._scaler.scale(value)
        torch.autograd.backward(scaled)
        return value.detach()

    def _look_at_gradients(self, value: Tensor, batches: Sequence[LoadedBatch]) -> bool:
        """Clip them, and tell whether to step."""
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        gradients = [each.grad for each in self._parameters if each.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # Scaled gradients may overflow: the scaler then leaves the step out by itself.
        is_right = self._scaler is not None or math.isfinite(norm.item())
        if self._statistics is not None and not (is_right and math.isfinite(value.item())):
            self._statistics.put_back()
            self._optimizer.zero_grad()
            _count_skip(self._training, names_of(batches))
            return False
        if not is_right:
            raise NonFinite("gradient", norm.item(), "", names_of(batches))
        if self._largest_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self._largest_norm, norm)
        return True


def grouped(batches: Iterator[LoadedBatch], size: int) -> Iterator[list[LoadedBatch]]:
    """Lists of that many batches; a last one that isn't full is left out."""
    group: list[LoadedBatch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def names_of(batches: Sequence[LoadedBatch]) -> list[str]:
    """The names of all samples of a step."""
    if len(batches) == 1:
        return batches[0][2]
    return [name for _, _, names in batches for name in names]


class _Statistics:
    """The buffers of a model (running means and variances), as they were before a step."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def keep(self) -> None:
        for mine, theirs in zip(self._kept, self._buffers, strict=True):
            mine.copy_(theirs)

    @torch.no_grad()
    def put_back(self) -> None:
        for mine, theirs in zip(self._kept, self._buffers, strict=True):
            theirs.copy_(mine)


def _count_skip(training: Training, names: Sequence[str]) -> None:
    training.skipped += 1
    if training.skipped >= MAX_SKIPPED:
        raise HatError(
            f"{MAX_SKIPPED} steps in a row had a loss or gradient that isn't finite; "
            f"the last one's samples: {', '.join(names[:8])}",
            "lower optim.lr, or set fit.precision=float32; earlier checkpoints, if any, are whole",
        )


@torch.no_grad()
def _scores_of(teacher: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return teacher(inputs)
