"""Which layers quantization hurts, how much, and why."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from hatcli.errors import HatError, UsageError
from hatcli.events import Job, Progress
from hatcli.quantize.analysis.causes import Cause, find_cause
from hatcli.quantize.analysis.layer_statistics import (
    LayerStatistics,
    compare_layers,
    decibels,
    power,
)
from hatcli.quantize.analysis.places import Place, Values, Walk, find_places
from hatcli.quantize.layers import QuantConv2d, QuantLinear
from hatcli.quantize.quantizers import ActivationQuantizer, set_mode

CLEAR_DB = 6.0  # a layer this much better than the tenth worst needs no second look
KEPT_IN_VIEW = 10
FIRST_LOOK = 4  # images after which it may be dropped


@dataclass(frozen=True)
class LayerDamage:
    """What quantization does to one layer.

    Attributes:
        kind: e.g. "Conv2d", "depthwise", "Concat"; "input" for the images.
        sqnr: of its result in the quantized graph against float, dB; inf where they are equal.
        alone_sqnr: of the scores when it alone is quantized, weights and result, dB; the list is
            sorted by it. inf where it stays in float.
        alone_metric: the metric then, in percent; None where it wasn't asked for.
        weight_share: of the noise that it makes itself that of its weights, 0 to 1.
        low: lowest value of its result in float; so for ``high``.
        bits: of its result; 32 where that stays in float.
        is_float: whether it is computed in float.
        cause: why it hurts, in one line.
        remedy: what to do about it; "" where nothing is.
        is_fault: whether the ranges of its channels are at odds, which is listed first.
    """

    name: str
    kind: str
    sqnr: float
    alone_sqnr: float
    alone_metric: float | None
    weight_share: float
    low: float
    high: float
    bits: int
    is_float: bool
    cause: str
    remedy: str
    is_fault: bool = False


@dataclass(frozen=True)
class Sensitivity:
    """The layers by damage, the worst first, and the means to look closer.

    Attributes:
        statistics: of each layer, by its name.
    """

    layers: list[LayerDamage]
    statistics: dict[str, LayerStatistics]
    alone: "Alone"


def measure_damage(
    graph: fx.GraphModule,
    reference: fx.GraphModule,
    batches: Sequence[Tensor],
    *,
    bias_correction: bool = True,
) -> Job[Sensitivity]:
    """Quantize each layer alone, and see what becomes of the scores.

    For each batch the float graph is run once; where a layer's result appears, the rest of the
    graph is run again from there with the layer quantized. A layer that is clearly harmless
    after a few images is looked at no further.

    Args:
        graph: calibrated; left in mode "quantize".
        reference: the graph before calibration and bias correction, with the same layers; left
            in mode "float".
        batches: (N, 3, H, W) float32 each; some ten images.
        bias_correction: whether a layer's bias may make up for the mean error of its weights,
            as it does in a graph whose biases are corrected.

    Raises:
        HatError: the scores are NaN or inf.
        UsageError: there are no images.
    """
    if sum(map(len, batches)) == 0:
        raise UsageError("sensitivity: there are no images", "give it one batch at least")
    graph.eval()
    reference.eval()
    set_mode(graph, "quantize")
    set_mode(reference, "float")
    places = find_places(reference)
    statistics = yield from compare_layers(graph, reference, places, batches)
    alone = Alone(graph, reference, statistics if bias_correction else {})
    noises = yield from _measure_alone(alone, places, statistics, batches)
    by_end = {node: statistics[place.name] for place in places for node in place.ends}
    layers = []
    for place in places:
        sqnr = noises[place.name].sqnr
        cause = find_cause(graph, reference, statistics[place.name], by_end, sqnr)
        layers.append((cause, _damage(graph, statistics[place.name], sqnr, cause)))
    layers.sort(key=_order)
    return Sensitivity([layer for _, layer in layers], statistics, alone)


class Alone:
    """Runs a float graph with one layer of it quantized at a time."""

    def __init__(
        self,
        graph: fx.GraphModule,
        reference: fx.GraphModule,
        statistics: dict[str, LayerStatistics],
    ) -> None:
        """Take the biases to correct from the statistics of layers; the rest stay as they are."""
        self.graph = graph
        self._reference = reference
        self._walk = Walk(reference)
        self._statistics = statistics

    @torch.no_grad()
    def run(self, batch: Tensor, places: Iterable[Place]) -> Iterator[tuple[Place | None, Tensor]]:
        """The scores of a batch: of the float graph (None), then with each layer quantized."""
        starts = self._starts(places)
        walk = self._walk
        values = walk.images(batch)
        for _ in walk.run(values):
            pass
        yield None, values[walk.scores]
        values = walk.images(batch)
        for node in walk.nodes:
            if node in starts:
                yield starts[node], self._rest(starts[node], node, dict(values))
            if node.op != "placeholder":
                values[node] = walk.call(node, values)
            walk.forget(node, values)

    @torch.no_grad()
    def own_noise(
        self, batch: Tensor, places: Iterable[Place]
    ) -> Iterator[tuple[Place, float, float]]:
        """Power of what each layer does to its own result, in all, and by its weights."""
        starts = self._starts(places)
        walk = self._walk
        values = walk.images(batch)
        for node in walk.nodes:
            if node in starts:
                end = str(starts[node].quantizers[0].target)
                in_float = self._reference.get_submodule(end)
                on_grid = self.graph.get_submodule(end)
                exact = mine = values[walk.nodes[0]] if not starts[node].layers else None
                if exact is None:
                    exact, mine = walk.call(node, values), self._layer(node, values)
                exact = in_float(exact)
                yield (
                    starts[node],
                    power(on_grid(mine) - exact),
                    power(in_float(mine) - exact),
                )
            if node.op != "placeholder":
                values[node] = walk.call(node, values)
            walk.forget(node, values)

    def _starts(self, places: Iterable[Place]) -> dict[fx.Node, Place]:
        """The first node of each layer."""
        return {place.layers[0] if place.layers else place.quantizers[0]: place for place in places}

    def _rest(self, place: Place, start: fx.Node, values: Values) -> Tensor:
        """The scores, from a layer on."""
        walk = self._walk
        for node in walk.nodes[walk.index[start] :]:
            if node in place.layers:
                values[node] = self._layer(node, values)
            elif node in place.quantizers:
                quantizer = self.graph.get_submodule(str(node.target))
                values[node] = quantizer(values[node.all_input_nodes[0]])
            elif node.op != "placeholder":
                values[node] = walk.call(node, values)
            walk.forget(node, values)
        return values[walk.scores]

    def _layer(self, node: fx.Node, values: Values) -> Tensor:
        """A layer with quantized weights and, for its bias, the float one, corrected."""
        name = str(node.target)
        layer = self.graph.get_submodule(name)
        arguments = [values[source] for source in node.args if isinstance(source, fx.Node)]
        result: Tensor = layer(*arguments)
        if not isinstance(layer, QuantConv2d | QuantLinear):
            return result
        exact = self._reference.get_submodule(name)
        assert isinstance(exact, QuantConv2d | QuantLinear)
        bias = exact.bias - layer.bias
        known = self._statistics.get(name)
        if known is not None and known.bias_error is not None:
            bias = bias + known.bias_error.to(bias)
        return result + bias.reshape(1, -1, *[1] * (result.ndim - 2))


@dataclass
class _Noise:
    """Of the scores, with one layer quantized."""

    signal: float = 0.0
    noise: float = 0.0

    @property
    def sqnr(self) -> float:
        return decibels(self.signal, self.noise)


def _measure_alone(
    alone: Alone,
    places: Sequence[Place],
    statistics: dict[str, LayerStatistics],
    batches: Sequence[Tensor],
) -> Job[dict[str, _Noise]]:
    noises = {place.name: _Noise() for place in places}
    in_view = [place for place in places if place.quantizers]
    total, done = sum(map(len, batches)), 0
    activity = "quantizing layers one by one"
    yield Progress(activity, 0, total, detail=f"{len(in_view)} layers")
    for batch in batches:
        exact = None
        for place, scores in alone.run(batch, in_view):
            if place is None:
                exact = scores
                if not bool(torch.isfinite(exact).all()):
                    raise HatError("sensitivity: the float model's scores hold NaN or inf")
                continue
            assert exact is not None
            noises[place.name].signal += power(exact)
            noises[place.name].noise += power(scores - exact)
        done += len(batch)
        if done >= FIRST_LOOK:
            in_view = _still_open(in_view, noises)
        yield Progress(activity, done, total, detail=f"{len(in_view)} layers")
    judged = [place for place in places if place.quantizers]
    for place, own, weights in alone.own_noise(batches[0], judged):
        statistics[place.name].own_noise, statistics[place.name].weight_noise = own, weights
    return noises


def _still_open(places: list[Place], noises: dict[str, _Noise]) -> list[Place]:
    ranked = sorted(noises[place.name].sqnr for place in places)
    limit = ranked[min(KEPT_IN_VIEW, len(ranked)) - 1] + CLEAR_DB
    return [place for place in places if noises[place.name].sqnr <= limit]


def _damage(
    graph: fx.GraphModule, statistics: LayerStatistics, alone_sqnr: float, cause: Cause
) -> LayerDamage:
    place = statistics.place
    layer = graph.get_submodule(place.name) if place.layers else None
    is_float = not place.quantizers or (
        isinstance(layer, QuantConv2d | QuantLinear) and layer.weight_quantizer is None
    )
    bits = 32
    if place.quantizers:
        quantizer = graph.get_submodule(str(place.quantizers[0].target))
        assert isinstance(quantizer, ActivationQuantizer)
        bits = quantizer.bits
    return LayerDamage(
        place.name,
        place.kind,
        statistics.sqnr,
        alone_sqnr,
        None,
        statistics.weight_share,
        statistics.low,
        statistics.high,
        bits,
        is_float,
        cause.text,
        cause.remedy,
        cause.unevenness > 0,
    )


def _order(layer: tuple[Cause, LayerDamage]) -> tuple[bool, bool, float, float]:
    """Faults in the ranges of channels first: whatever such a layer costs, mend it before all.

    What a layer has from its input stands behind its origin.
    """
    cause, damage = layer
    known = damage.alone_sqnr if not math.isnan(damage.alone_sqnr) else -math.inf
    return not cause.unevenness, cause.inherited, -cause.unevenness, known
