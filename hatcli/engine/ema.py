"""An exponential moving average of a model's weights."""

from copy import deepcopy

import torch
from torch import Tensor, nn


class Ema:
    """A second model whose weights trail the first one's.

    The decay rises to its value with the number of updates, so that the average of a short run
    isn't held back by the random start.

    Args:
        model: the model that is trained.
        decay: weight of the past at each update, below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model = deepcopy(model).eval().requires_grad_(False)
        self._pairs = _float_pairs(self.model, model)
        self._others = _other_pairs(self.model, model)

    @torch.no_grad()
    def update(self) -> None:
        """Move one step towards the trained model's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._pairs[0], self._pairs[1], 1 - decay)
        for mine, theirs in zip(*self._others, strict=True):
            mine.copy_(theirs)


def _float_pairs(ours: nn.Module, theirs: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    mine, other = ours.state_dict(keep_vars=True), theirs.state_dict(keep_vars=True)
    names = [name for name, tensor in mine.items() if tensor.is_floating_point()]
    return [mine[name] for name in names], [other[name] for name in names]


def _other_pairs(ours: nn.Module, theirs: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    mine, other = ours.state_dict(keep_vars=True), theirs.state_dict(keep_vars=True)
    names = [name for name, tensor in mine.items() if not tensor.is_floating_point()]
    return [mine[name] for name in names], [other[name] for name in names]
