"""What each layer's result looks like in float, and what its grid does to it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from hatcli.events import Job, Progress
from hatcli.quantize.analysis.places import Place, Walk, channel_peaks, module_of
from hatcli.quantize.layers import QuantConv2d, QuantLinear
from hatcli.quantize.quantizers import ActivationQuantizer

SAMPLE = 1 << 14  # values of each result and batch that its quantiles are made of
BULK = 0.999  # of the values make up the bulk


@dataclass
class LayerStatistics:
    """What is known of one layer; powers are sums over all values of its result.

    Attributes:
        place: in the float graph.
        signal: power of the float result.
        noise: of its difference to the result of the quantized graph.
        rounding: of what the layer's grid does to the float result.
        clipping: the part of that from values beyond the grid.
        own_noise: of its difference when the layer alone is quantized, weights and result.
        weight_noise: of that, what its weights do.
        peaks: (C,) largest magnitude of each channel in float.
        code_peaks: (C,) the same on the layer's grid.
        bulk: magnitude that 99.9 % of the values that aren't 0 stay within.
        bias_error: (O,) what quantized weights take from each channel on average; None where
            there are none.
    """

    place: Place
    signal: float = 0.0
    noise: float = 0.0
    rounding: float = 0.0
    clipping: float = 0.0
    own_noise: float = 0.0
    weight_noise: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    peaks: Tensor = field(default_factory=lambda: torch.zeros(1))
    code_peaks: Tensor = field(default_factory=lambda: torch.zeros(1))
    bias_error: Tensor | None = None
    bulk: float = 0.0
    _sample: list[Tensor] = field(default_factory=list)
    _images: int = 0

    @property
    def sqnr(self) -> float:
        """Of the result in the quantized graph, in dB."""
        return decibels(self.signal, self.noise)

    @property
    def weight_share(self) -> float:
        """How much of the noise that the layer itself makes is that of its weights, 0 to 1."""
        return self.weight_noise / self.own_noise if self.own_noise > 0 else 0.0

    def take_result(self, exact: Tensor, quantized: Tensor) -> None:
        """Take in the float result of a batch, and that of the quantized graph."""
        self.signal += power(exact)
        self.noise += power(exact - quantized)
        self.low = min(self.low, float(exact.min()))
        self.high = max(self.high, float(exact.max()))
        self.peaks = torch.maximum(self.peaks.to(exact.device), channel_peaks(exact))
        flat = exact.reshape(-1)
        step = max(1, flat.numel() // SAMPLE)
        self._sample.append(flat[::step].abs())

    def take_grid(self, exact: Tensor, on_grid: Tensor, quantizer: ActivationQuantizer) -> None:
        """Take in what the layer's grid makes of the float result."""
        error = on_grid - exact
        self.rounding += power(error)
        grid = quantizer.grid
        beyond = (exact < grid.low * grid.scale) | (exact > grid.high * grid.scale)
        self.clipping += power(error[beyond])
        self.code_peaks = torch.maximum(self.code_peaks.to(exact.device), channel_peaks(on_grid))

    def take_weights(self, exact: Tensor, with_codes: Tensor) -> None:
        """Take in a layer's product in float and with quantized weights, of the same input."""
        dims = [0, *range(2, exact.ndim)]
        error = (exact - with_codes).mean(dims).double()
        known = torch.zeros_like(error) if self.bias_error is None else self.bias_error
        images = self._images + len(exact)
        self.bias_error = known + (error - known) * (len(exact) / images)
        self._images = images

    def finish(self) -> None:
        """Find the bulk; zeros, of which a ReLU makes any number, are no part of it."""
        sample = torch.cat(self._sample)
        sample = sample[sample > 0]
        self._sample = []
        if sample.numel():
            rank = max(1, math.ceil(BULK * sample.numel()))
            self.bulk = float(sample.kthvalue(rank).values)


@torch.no_grad()
def compare_layers(
    graph: fx.GraphModule,
    reference: fx.GraphModule,
    places: Sequence[Place],
    batches: Sequence[Tensor],
) -> Job[dict[str, LayerStatistics]]:
    """Run the float and the quantized graph side by side, and look at each layer's result.

    Args:
        graph: calibrated, in mode "quantize".
        reference: the same before calibration, in mode "float".
        places: of the reference.
        batches: (N, 3, H, W) float32 each.
    """
    found = {place.name: LayerStatistics(place) for place in places}
    ends = {node: place.name for place in places for node in place.ends}
    layers = {node: place.name for place in places for node in place.layers}
    exact_walk, other_walk = Walk(reference), Walk(graph)
    total, done = sum(map(len, batches)), 0
    yield Progress("comparing layers", 0, total)
    for batch in batches:
        exact, other = exact_walk.images(batch), other_walk.images(batch)
        others = other_walk.run(other)
        for index, node in enumerate(exact_walk.nodes):
            twin = next(others)
            if node.op != "placeholder":
                exact[node] = exact_walk.call(node, exact)
            if node in layers:
                _take_weights(found[layers[node]], graph, node, exact)
            if node in ends:
                statistics = found[ends[node]]
                statistics.take_result(exact[node], other[twin])
                _take_grid(statistics, graph, node, exact[node])
            exact_walk.forget(node, exact)
            assert twin is other_walk.nodes[index]
        next(others, None)
        done += len(batch)
        yield Progress("comparing layers", done, total)
    for statistics in found.values():
        statistics.finish()
    return found


def decibels(signal: float, noise: float) -> float:
    """The ratio of two powers in dB; inf without noise, -inf without signal."""
    if noise <= 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def power(x: Tensor) -> float:
    """The sum of the squares."""
    flat = x.reshape(-1).double()
    return float(torch.dot(flat, flat))


def _take_weights(
    statistics: LayerStatistics, graph: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Tensor]
) -> None:
    layer = graph.get_submodule(str(node.target))
    if isinstance(layer, QuantConv2d | QuantLinear) and layer.weight_quantizer is not None:
        (source,) = node.all_input_nodes
        bias = layer.bias.reshape(-1, *[1] * (values[node].ndim - 2))
        statistics.take_weights(values[node] - _bias_of(node, values), layer(values[source]) - bias)


def _bias_of(node: fx.Node, values: dict[fx.Node, Tensor]) -> Tensor:
    owner = node.graph.owning_module
    assert owner is not None
    layer = owner.get_submodule(str(node.target))
    assert isinstance(layer, QuantConv2d | QuantLinear)
    return layer.bias.reshape(-1, *[1] * (values[node].ndim - 2))


def _take_grid(
    statistics: LayerStatistics, graph: fx.GraphModule, node: fx.Node, exact: Tensor
) -> None:
    quantizer = module_of(graph, node)
    if isinstance(quantizer, ActivationQuantizer):
        statistics.take_grid(exact, quantizer(exact), quantizer)
