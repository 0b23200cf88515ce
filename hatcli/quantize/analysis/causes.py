"""Why quantization hurts a layer, and what would help: from the layer's statistics."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from hatcli.quantize.analysis.layer_statistics import LayerStatistics
from hatcli.quantize.analysis.places import module_of
from hatcli.quantize.integer.forms import has_integer_form
from hatcli.quantize.layers import Add, Concat, QuantConv2d, QuantLinear
from hatcli.quantize.quantizers import ActivationQuantizer, WeightQuantizer

UNHARMED_DB = 40.0  # above it a layer costs nothing worth a remark
UNEVEN = 100.0  # the largest channel over the middle one from which on it is a fault
LONELY = 8.0  # the largest channel over the second one, of a fault that is one channel's
UNEVEN_INPUTS = 8.0  # the range of one input of a sum or concat over another's
OUTLIERS = 8.0  # the range over that of the bulk
MOSTLY = 0.5
MIXING = ("Conv2d", "Linear")  # each channel of their results is made of all that come in


@dataclass(frozen=True)
class Cause:
    """Why a layer is hurt.

    Attributes:
        text: the reason, in one line; "" where there is nothing to say.
        remedy: what to do about it; "" where nothing is.
        unevenness: of a fault in the ranges of single channels: how many times the largest one is
            the middle one; 0 where there is none.
        inherited: whether the fault is that of the layer's input.
    """

    text: str
    remedy: str
    unevenness: float = 0.0
    inherited: bool = False


ORDINARY = Cause("ordinary rounding", "")


def find_cause(
    graph: fx.GraphModule,
    reference: fx.GraphModule,
    statistics: LayerStatistics,
    by_end: dict[fx.Node, LayerStatistics],
    alone_sqnr: float,
) -> Cause:
    """The most telling reason of a layer's damage, and its channels that are always 0.

    Args:
        graph: calibrated.
        reference: the same in float.
        by_end: node of the reference -> statistics of the layer whose result it holds.
        alone_sqnr: of the scores when this layer alone is quantized, dB.
    """
    cause = _find_cause(graph, reference, statistics, by_end, alone_sqnr)
    return _with_dead_channels(cause, statistics)


def _find_cause(
    graph: fx.GraphModule,
    reference: fx.GraphModule,
    statistics: LayerStatistics,
    by_end: dict[fx.Node, LayerStatistics],
    alone_sqnr: float,
) -> Cause:
    place = statistics.place
    layer = reference.get_submodule(place.name) if place.layers else None
    quantizer = module_of(graph, place.quantizers[0]) if place.quantizers else None
    if quantizer is None:
        return Cause("kept in float by an exception", "")
    assert isinstance(quantizer, ActivationQuantizer)
    twin = graph.get_submodule(place.name) if place.layers else None
    weights = twin.weight_quantizer if isinstance(twin, QuantConv2d | QuantLinear) else None
    fault = _uneven_channels(graph, statistics, by_end, weights)
    if fault is not None:
        return fault
    is_product = isinstance(layer, QuantConv2d | QuantLinear)
    if layer is not None and not is_product and not has_integer_form(layer):
        return Cause(
            f"{type(layer).__name__} has no integer form: computed in float, its result is rounded",
            "use ReLU or ReLU6 in its place and train again",
        )
    if alone_sqnr > UNHARMED_DB:
        return ORDINARY
    if isinstance(layer, Concat | Add):
        uneven = _uneven_inputs(statistics, by_end, quantizer)
        if uneven is not None:
            return uneven
    if weights is not None and statistics.weight_share > MOSTLY:
        return _hurt_by_weights(weights, layer)
    return _hurt_by_range(statistics, quantizer)


def _uneven_channels(
    graph: fx.GraphModule,
    statistics: LayerStatistics,
    by_end: dict[fx.Node, LayerStatistics],
    weights: WeightQuantizer | None,
) -> Cause | None:
    """A channel, or some, that the others vanish beside."""
    found = _uneven(statistics.peaks)
    if found is not None and found.lonely_enough(statistics.peaks, statistics.code_peaks):
        inherited = _inherited(statistics, by_end, found.channel)
        return found.cause("has a range", inherited=inherited, is_weight=False)
    if weights is None:
        return None
    layer = graph.get_submodule(statistics.place.name)
    assert isinstance(layer, QuantConv2d | QuantLinear)
    weight = layer.weight.detach()
    peaks, codes = _row_peaks(weight), _row_peaks(weights.codes(weight).float())
    found = _uneven(peaks)
    if found is not None and found.lonely_enough(peaks, codes):
        cause = found.cause("has weights", inherited=False, is_weight=True)
        if is_single(weights):
            return cause
        # A scale of its own lets the channel's weights be; what it gives is cut or multiplied.
        return replace(cause, remedy="look how it came about: a dead norm?; or keep it in float")
    return None


@dataclass(frozen=True)
class _Uneven:
    channel: int
    times: float
    is_lonely: bool

    def lonely_enough(self, peaks: Tensor, code_peaks: Tensor) -> bool:
        """Whether it is one channel alone, or half of the others are lost beside it."""
        alive = peaks > 0
        lost = alive & (code_peaks == 0)
        return self.is_lonely or int(lost.sum()) > MOSTLY * int(alive.sum())

    def cause(self, what: str, *, inherited: bool, is_weight: bool) -> Cause:
        """In words."""
        times = f"{self.times:,.0f}"
        if inherited:
            return Cause(
                f"takes over channel {self.channel}, {times} times the others, from its input",
                "mend the layer before it",
                self.times,
                inherited=True,
            )
        one = "one channel" if self.is_lonely else "its largest channel"
        remedy = "quantize.equalize=true, or this layer in float"
        if is_weight:
            remedy = "quantize.equalize=true, or one scale a channel (weight_granularity)"
        return Cause(
            f"{one} {what} {times} times the others: channel {self.channel}", remedy, self.times
        )


def _uneven(peaks: Tensor) -> _Uneven | None:
    alive = peaks[peaks > 0]
    if alive.numel() < 2:
        return None
    (top, second), middle = torch.topk(alive, 2).values.tolist(), float(alive.median())
    if top < UNEVEN * middle:
        return None
    return _Uneven(int(peaks.argmax()), top / middle, top > LONELY * second)


def _inherited(
    statistics: LayerStatistics, by_end: dict[fx.Node, LayerStatistics], channel: int
) -> bool:
    """Whether an input has the same uneven channel already; a concat has it further behind."""
    if statistics.place.kind in MIXING:
        return False
    offset = 0
    for source in _inputs(statistics):
        before = by_end.get(source)
        if before is None:
            return False
        found = _uneven(before.peaks)
        if found is not None and offset + found.channel == channel:
            return True
        if statistics.place.kind == "Concat":
            offset += len(before.peaks)
    return False


def _inputs(statistics: LayerStatistics) -> list[fx.Node]:
    """The nodes of the results that come in, looked for behind layers that move codes."""
    nodes = []
    for node in statistics.place.layers:
        for argument in node.args:
            source = argument
            while isinstance(source, fx.Node) and source.op == "call_module":
                if str(source.target).endswith("_quantizer") or len(source.all_input_nodes) != 1:
                    break
                source = source.all_input_nodes[0]
            if isinstance(source, fx.Node):
                nodes.append(source)
    return nodes


def _uneven_inputs(
    statistics: LayerStatistics,
    by_end: dict[fx.Node, LayerStatistics],
    quantizer: ActivationQuantizer,
) -> Cause | None:
    inputs = [by_end[source] for source in _inputs(statistics) if source in by_end]
    peaks = [float(one.peaks.max()) for one in inputs]
    if len(peaks) < 2 or min(peaks) <= 0 or max(peaks) < UNEVEN_INPUTS * min(peaks):
        return None
    steps = min(peaks) / quantizer.grid.scale
    small = inputs[peaks.index(min(peaks))].place.name
    return Cause(
        f"its inputs share a grid with ranges of {max(peaks):.3g} and {min(peaks):.3g}: "
        f"{small} has {steps:.0f} steps",
        "16 bits here, or let a norm or ReLU6 bring its inputs to one range",
    )


def _hurt_by_weights(weights: WeightQuantizer, layer: object) -> Cause:
    if weights.bits < 8:
        return Cause(
            f"its weights have {weights.bits} bits alone",
            "quantize.adaround=true, or 8 bits for this layer (weight_bits)",
        )
    if isinstance(layer, QuantConv2d | QuantLinear) and is_single(weights):
        peaks = _row_peaks(layer.weight.detach())
        alive = peaks[peaks > 0]
        times = float(alive.max() / alive.median()) if alive.numel() else 1.0
        return Cause(
            f"one scale for all its weights: the largest channel is {times:.0f} times the middle",
            "one scale a channel (weight_granularity), or quantize.equalize=true",
        )
    return Cause("rounding of its weights", "quantize.adaround=true, or this layer in float")


def _hurt_by_range(statistics: LayerStatistics, quantizer: ActivationQuantizer) -> Cause:
    """The remedies of a result that its grid doesn't fit."""
    if statistics.clipping > MOSTLY * statistics.rounding:
        grid = quantizer.grid
        return Cause(
            f"its range {statistics.low:.3g} to {statistics.high:.3g} is cut to "
            f"{grid.low * grid.scale:.3g} to {grid.high * grid.scale:.3g}",
            "observer min_max for this layer, or activation_bits 16",
        )
    reach = max(-statistics.low, statistics.high)
    if statistics.bulk > 0 and reach > OUTLIERS * statistics.bulk:
        steps = statistics.bulk / quantizer.grid.scale
        return Cause(
            f"outliers: its range reaches {reach:.3g}, 99.9 % of it {statistics.bulk:.3g}, "
            f"which is {steps:.0f} steps",
            "observer percentile or mse with a lower share, or activation_bits 16",
        )
    return Cause("rounding of its result", "activation_bits 16 for this layer")


def _with_dead_channels(cause: Cause, statistics: LayerStatistics) -> Cause:
    """The cause, and how many channels are no use at all."""
    dead = int((statistics.peaks == 0).sum())
    if not dead:
        return cause
    text = f"{cause.text}; {dead} of {len(statistics.peaks)} channels are always 0"
    return replace(cause, text=text)


def is_single(weights: WeightQuantizer) -> bool:
    """Whether all channels of a weight share one scale."""
    return weights.scale.numel() == 1


def _row_peaks(weight: Tensor) -> Tensor:
    """(O,): the largest magnitude in each channel of a weight (O, ...)."""
    return weight.abs().flatten(1).amax(1)
