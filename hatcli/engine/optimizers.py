"""Optimisers; weight decay acts on the weights of convolutions and linear layers only."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hatcli.engine import OPTIMIZERS
from hatcli.errors import ConfigError


@OPTIMIZERS.register
def sgd(
    model: nn.Module,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    fused: bool = True,
) -> Optimizer:
    """Stochastic gradient descent with momentum.

    Args:
        fused: all parameters by one kernel, on a CPU in a third of the time and less.
    """
    groups = weight_decay_groups(model, weight_decay)
    try:
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer 'sgd': {error}") from error


@OPTIMIZERS.register
def adamw(
    model: nn.Module,
    lr: float,
    betas: list[float] | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    fused: bool = True,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).

    Args:
        fused: as for `sgd`.
    """
    groups = weight_decay_groups(model, weight_decay)
    pair = (0.9, 0.999) if betas is None else tuple(betas)
    if len(pair) != 2:
        raise ConfigError(f"optimizer 'adamw': betas must be two numbers, got {betas}")
    try:
        return torch.optim.AdamW(groups, lr=lr, betas=pair, eps=eps, fused=fused)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer 'adamw': {error}") from error


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: weights with decay; biases and normalisation without.

    A parameter of one dimension is a bias or a normalisation's scale or offset: pulling these
    to zero fights the normalisation instead of regularising anything.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim > 1]
    kept = [p for p in trainable if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
