"""The graph again with some layers in higher precision, without looking at all images again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from hatcli.quantize.analysis.sensitivity import LayerDamage
from hatcli.quantize.calibrate import calibrate, layer_of
from hatcli.quantize.layers import weighted_layers
from hatcli.quantize.prepare import prepare
from hatcli.quantize.quantizers import ActivationQuantizer, set_mode
from hatcli.quantize.spec import Spec

How = Literal["int16", "float"]
Exceptions = Sequence[Mapping[str, Any]]

WEIGHTS_ALONE = 0.9  # of the noise that a layer makes, from which on its result may stay as it is
WEIGHTED = ("Conv2d", "depthwise", "Linear")


def exception_of(layer: LayerDamage, how: How) -> dict[str, Any]:
    """The exception that takes a layer's damage away.

    In float a weighted layer computes in float32; its result, which an integer layer takes, has
    16 bits unless nearly all of the damage is that of the weights.
    """
    exception: dict[str, Any] = {"layers": layer.name}
    if how == "float" and layer.kind in WEIGHTED:
        exception["float"] = True
    if "float" not in exception or layer.weight_share < WEIGHTS_ALONE:
        exception["activation_bits"] = 16
    return exception


def can_be_raised(layer: LayerDamage) -> bool:
    """Whether an exception can make a difference to a layer."""
    return not layer.is_float and layer.bits < 16 and layer.kind != "UpsampleBilinear2x"


class Raiser:
    """Builds the graph with further exceptions; equal layers keep their grids.

    The biases are those of the float model, to be corrected anew: what layers in higher
    precision no longer do needs no correction. Where the rounding of weights was learned, the
    float weights are gone that a correction would compare with, and quantized layers keep theirs.

    Args:
        model: the float model.
        spec: that ``graph`` was made by.
        graph: calibrated.
        reference: the graph before calibration.
        ranges: layer -> lowest and highest value of its result in float.
        batches: images to calibrate on where a layer gets a grid that it never had.

    Attributes:
        drops_corrections: whether the graphs that it builds are to have their biases corrected.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        graph: fx.GraphModule,
        reference: fx.GraphModule,
        ranges: Mapping[str, tuple[float, float]],
        batches: Sequence[Tensor],
    ) -> None:
        self._model = model
        self._spec = spec
        self._graph = graph
        self._reference = reference
        self._ranges = ranges
        self._batches = batches
        self.drops_corrections = spec.bias_correction and spec.adaround is None

    @torch.no_grad()
    def build(self, exceptions: Exceptions) -> fx.GraphModule:
        """The calibrated graph with exceptions behind those of the spec, in mode "quantize"."""
        spec = replace(self._spec, exceptions=(*self._spec.exceptions, *exceptions))
        device = next(self._graph.parameters()).device
        graph = prepare(self._model, spec).to(device)
        known = _activation_quantizers(self._graph)
        own = _activation_quantizers(graph)
        for name, quantizer in own.items():
            if name in known:
                quantizer.activation = known[name].activation
        new_weights = self._copy_weights(graph)
        if new_weights or any(not self._has_grid(name, own[name], known) for name in own):
            for _ in calibrate(graph, self._batches, total=sum(map(len, self._batches))):
                pass
            self._copy_weights(graph)
        for name, quantizer in own.items():
            if name in known and known[name].bits == quantizer.bits:
                quantizer.set_grid(known[name].grid)
            elif self._has_grid(name, quantizer, known):
                low, high = self._range(name, known[name])
                quantizer.set_grid(quantizer.target.grid(low, high, quantizer.bits))
        set_mode(graph, "quantize")
        return graph

    def _copy_weights(self, graph: fx.GraphModule) -> bool:
        """Take over weights, scales and float biases; whether a weight has no scale yet."""
        is_new = False
        exact, rounded = weighted_layers(self._reference), weighted_layers(self._graph)
        for name, layer in weighted_layers(graph).items():
            source = exact[name] if layer.weight_quantizer is None else rounded[name]
            layer.weight.copy_(source.weight)
            is_kept = layer.weight_quantizer is not None and not self.drops_corrections
            layer.bias.copy_((rounded if is_kept else exact)[name].bias)
            if layer.weight_quantizer is not None and source.weight_quantizer is None:
                is_new = True
            elif layer.weight_quantizer is not None:
                layer.weight_quantizer.scale.copy_(source.weight_quantizer.scale)
        return is_new

    def _has_grid(
        self, name: str, quantizer: ActivationQuantizer, known: Mapping[str, ActivationQuantizer]
    ) -> bool:
        """Whether a grid is known, or follows from what is."""
        if name not in known:
            return False
        shares = bool(quantizer.leader) or quantizer.fixed_grid is not None
        return known[name].bits == quantizer.bits or (layer_of(name) in self._ranges and not shares)

    def _range(self, name: str, before: ActivationQuantizer) -> tuple[float, float]:
        """All that was seen, and all that the grid of fewer bits has codes for."""
        grid = before.grid
        low, high = self._ranges[layer_of(name)]
        low, high = min(low, grid.low * grid.scale), max(high, grid.high * grid.scale)
        return (0.0, high) if before.activation is not None else (low, high)


def order_by_gain(layers: Iterable[LayerDamage], how: How) -> list[LayerDamage]:
    """The layers that can be raised, the one that gives the scores most back first."""

    def rank(layer: LayerDamage) -> float:
        kept = layer.weight_share if how == "int16" else 0.0
        if kept >= 1:
            return float("inf")
        return layer.alone_sqnr - 10 * float(torch.log10(torch.tensor(1 - kept)))

    return sorted(filter(can_be_raised, layers), key=rank)


def _activation_quantizers(graph: nn.Module) -> dict[str, ActivationQuantizer]:
    return {
        name: module
        for name, module in graph.named_modules()
        if isinstance(module, ActivationQuantizer)
    }
