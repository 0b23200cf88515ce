"""Scale channels so that all of one tensor's need the same range: cross-layer equalisation.

Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, arXiv
1906.04721, section 4.1: relu(s x) = s relu(x) for s > 0, so a channel may be divided by s where
one layer gives it and multiplied by s where the next takes it (equations 6 and 7).

The paper puts a ReLU in the place of each ReLU6, which cuts all channels at one value. A network
that lives by its ReLU6 doesn't survive this (EfficientNet-Lite0 fell from 90 to 63 % top-1), so
here a ReLU6 stays, and factors are kept from moving anything across its 6: a channel that reaches
6 in the images isn't scaled, and no other one is scaled up to more than 6. Likewise no channel of
any tensor grows beyond the largest one, so that grids of activations get no coarser; this takes
the place of the paper's absorption of high biases (section 4.1.3), which only repairs that.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hatcli.errors import UsageError
from hatcli.events import Job, Progress
from hatcli.quantize.findings import Finding
from hatcli.quantize.graph.operations import whole_factor
from hatcli.quantize.layers import QuantConv2d, QuantLinear
from hatcli.quantize.quantizers import ActivationQuantizer, set_mode

MOST_ROUNDS = 100
CLOSE = 1e-3  # factors this near to 1 change nothing any more
DEAD = 1e-6  # of a weight's range: a channel below it stays as it is
CAP = 6.0  # of a ReLU6
MARGIN = 2.0  # how much further than in the images a channel may go before a ReLU6


def equalize(graph: fx.GraphModule, batches: Iterable[Tensor], *, total: int) -> Job[list[Finding]]:
    """Equalise the weights of a prepared graph with folded norms, before it is calibrated.

    Pairs of layers are taken one after the other, again and again until nothing changes, as the
    paper does; a depthwise layer between two others is the second of one pair and the first of
    the next. A pair is equalised where nobody else uses what lies between.

    Args:
        graph: in mode "float"; its weights and biases are changed in place. It computes the same.
        batches: (N, 3, H, W) float32 each, which show how far each channel goes.
        total: images in all, for the progress.

    Returns:
        What couldn't be equalised.

    Raises:
        UsageError: there are no images.
    """
    graph.eval()
    pairs = find_pairs(graph)
    if not pairs:
        return [Finding("equalize", "no two layers of weights follow each other directly")]
    yield from _look(graph, pairs, batches, total)
    for _ in range(MOST_ROUNDS):
        if max(_equalize(pair) for pair in pairs) < CLOSE:
            break
    return []


@dataclass
class Pair:
    """Two layers of weights, the first of which gives its result to the second alone.

    Attributes:
        name: of the first.
        quantizers: those between them.
        largest: (C,) the largest magnitude of each channel, before a ReLU6 cuts it.
    """

    name: str
    first: Any
    second: Any
    quantizers: list[ActivationQuantizer]
    largest: Tensor

    @property
    def activation(self) -> str | None:
        """The ReLU right behind the first layer."""
        return self.quantizers[0].activation if self.quantizers else None


def find_pairs(graph: fx.GraphModule) -> list[Pair]:
    """The pairs that can be scaled, in the order in which they run."""
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    pairs = []
    for node in graph.graph.nodes:
        first = _layer(graph, node, calls)
        if first is None:
            continue
        quantizers: list[ActivationQuantizer] = []
        follower = _follower(graph, node, quantizers)
        second = _layer(graph, follower, calls) if follower is not None else None
        if second is not None and _inputs(second) == len(first.weight):
            pairs.append(
                Pair(str(node.target), first, second, quantizers, torch.zeros_like(first.bias))
            )
    return pairs


def _layer(graph: fx.GraphModule, node: fx.Node, calls: list[str]) -> Any:
    """The quantized layer of weights that a node calls, if it runs once and has no norm left."""
    if node.op != "call_module" or calls.count(str(node.target)) > 1:
        return None
    module = graph.get_submodule(str(node.target))
    if not isinstance(module, QuantConv2d | QuantLinear) or module.weight_quantizer is None:
        return None
    return None if isinstance(module, QuantConv2d) and module.bn is not None else module


def _follower(
    graph: fx.GraphModule, node: fx.Node, quantizers: list[ActivationQuantizer]
) -> fx.Node | None:
    """The only node that takes a result, behind all that scales with it channel by channel."""
    pooled = False
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op != "call_module":
            return None
        module = graph.get_submodule(str(node.target))
        pooled = pooled or isinstance(module, nn.AdaptiveAvgPool2d)
        if isinstance(module, ActivationQuantizer):
            quantizers.append(module)
        elif isinstance(module, nn.Flatten):
            if not pooled:  # it would make several features of each channel
                return None
        elif not _is_homogeneous(module):
            return node
    return None


def _is_homogeneous(module: nn.Module) -> bool:
    maps = nn.ReLU | nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d | nn.ZeroPad2d
    return isinstance(module, maps) or whole_factor(module)


def _inputs(layer: Any) -> int:
    return int(layer.weight.shape[1]) * int(getattr(layer, "groups", 1))


@torch.no_grad()
def _look(
    graph: fx.GraphModule, pairs: list[Pair], batches: Iterable[Tensor], total: int
) -> Job[None]:
    """Run the images and note the largest magnitudes of the channels between pairs."""
    device = next(graph.parameters()).device
    set_mode(graph, "float")
    hooks = [pair.first.register_forward_hook(_noting(pair)) for pair in pairs]
    done = 0
    try:
        yield Progress("equalising", 0, total)
        for batch in batches:
            if len(batch):
                graph(batch.to(device))
            done += len(batch)
            yield Progress("equalising", done, total)
    finally:
        for hook in hooks:
            hook.remove()
    if done == 0:
        raise UsageError("equalisation: there are no images", "give it one batch at least")


def _noting(pair: Pair) -> Any:
    def note(_module: nn.Module, _inputs: Any, result: Tensor) -> None:
        x = F.relu(result) if pair.activation else result.abs()
        pair.largest = torch.maximum(pair.largest, x.amax([0, *range(2, x.ndim)]))

    return note


@torch.no_grad()
def _equalize(pair: Pair) -> float:
    """Equations 9 to 11 for one pair; how far its factors were from 1, as a logarithm."""
    first, second = pair.first.weight, pair.second.weight
    groups = getattr(pair.second, "groups", 1)
    # (G, O / G, I / G, places): which weights take which channel
    taking = second.data.reshape(groups, -1, second.shape[1], second[0, 0].numel())
    given, taken = first.abs().flatten(1).amax(1), taking.abs().amax((1, 3)).flatten()
    is_alive = (given > DEAD * given.max()) & (taken > DEAD * taken.max())
    factors = torch.where(is_alive, (given / taken).sqrt(), 1.0)
    top = pair.largest.max()
    if pair.activation == "relu6":
        top = torch.full_like(top, CAP / MARGIN)
        factors = torch.where(pair.largest > top, 1.0, factors)
    factors = torch.maximum(factors, (pair.largest / top).clamp(max=1.0))
    first.div_(factors.reshape(-1, *[1] * (first.ndim - 1)))
    pair.first.bias.div_(factors)
    pair.largest = pair.largest / factors
    taking.mul_(factors.reshape(groups, 1, -1, 1))
    return float(factors.log().abs().max())
