"""What turns a calibrated graph into one to train: learned scales, and batch norms kept a while."""

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from hatcli.quantize.layers import QuantConv2d, weighted_layers
from hatcli.quantize.quantizers import ActivationQuantizer, WeightQuantizer, set_mode
from hatcli.quantize.spec import QatSpec


def start_qat(graph: GraphModule, qat: QatSpec) -> None:
    """Let a graph quantize, with its scales as parameters where they are learned; in place.

    Call it before the optimiser is made: `learn_scale` makes new parameters.
    """
    set_mode(graph, "quantize")
    if qat.scales != "learned":
        return
    for module in graph.modules():
        if isinstance(module, ActivationQuantizer | WeightQuantizer) and not isinstance(
            module.scale, nn.Parameter
        ):
            module.learn_scale()


def freeze_batch_norms(graph: GraphModule) -> int:
    """Fold the kept batch norms as they are now, in place; how many there were.

    Weights, biases and scales stay the parameters that an optimiser holds; those of the norms
    leave the graph, so a wrapper that counts parameters, such as DDP, is to be made anew.
    """
    kept = [
        layer
        for layer in weighted_layers(graph).values()
        if isinstance(layer, QuantConv2d) and layer.bn is not None
    ]
    for layer in kept:
        layer.fold()
    return len(kept)


def transfer_ranges(source: GraphModule, target: GraphModule) -> None:
    """Give a graph with kept batch norms the ranges of a calibrated one of the same model.

    Scales of weights are those of the folded weights divided by what folding will multiply them
    with, so that both have the same codes. Weights and biases stay as they are.

    Args:
        source: calibrated, with folded batch norms.
        target: changed in place.
    """
    quantizers = _activation_quantizers(source)
    assert quantizers.keys() == _activation_quantizers(target).keys()
    for name, quantizer in _activation_quantizers(target).items():
        quantizer.set_grid(quantizers[name].grid)
    calibrated = weighted_layers(source)
    for name, layer in weighted_layers(target).items():
        quantizer = layer.weight_quantizer
        if quantizer is None:
            continue
        scale = calibrated[name].weight_quantizer.positive_scale()
        norm = layer.bn if isinstance(layer, QuantConv2d) else None
        if norm is not None:
            scale = _unfolded(scale, _factor(norm), layer.weight, quantizer.highest)
        with torch.no_grad():
            quantizer.scale.copy_(scale)


def _factor(norm: nn.BatchNorm2d) -> Tensor:
    """(C,) float64: the magnitude of what a norm multiplies each channel with."""
    assert norm.running_var is not None
    factor = torch.rsqrt(norm.running_var.double() + norm.eps)
    return factor if norm.weight is None else factor * norm.weight.detach().abs()


def _unfolded(scale: Tensor, factor: Tensor, weight: Tensor, highest: int) -> Tensor:
    """(C,): where a norm turns a channel off, the scale that the channel's own weights need."""
    own = weight.detach().flatten(1).abs().amax(1).clamp_min(torch.finfo(weight.dtype).tiny)
    return torch.where(factor > 0, scale / factor, own / highest)


def _activation_quantizers(graph: GraphModule) -> dict[str, ActivationQuantizer]:
    return {
        name: module
        for name, module in graph.named_modules()
        if isinstance(module, ActivationQuantizer)
    }
