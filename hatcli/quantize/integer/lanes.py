"""Convolutions of few channels made as wide as a vector of the processor: equal codes, sooner.

Kernels for int8 work on vectors of 16 channels; 8 take them twice as long as 16. Channels of zeros
behind the others change nothing, and the next dense convolution leaves them out again.
"""

import torch
import torch.nn.functional as F
from torch import fx, nn

from hatcli.quantize.integer.products import IntConv2d
from hatcli.quantize.layers import QuantConv2d
from hatcli.quantize.quantizers import ActivationQuantizer

LANES = 16


def can_be_widened(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a layer may give channels of zeros besides its own.

    Args:
        node: of the layer, in a prepared graph.
        modules: of that graph, by name.
    """
    layer = modules.get(str(node.target))
    return (
        isinstance(layer, QuantConv2d)
        and layer.groups == 1
        and len(layer.weight) < LANES
        and _readers_take_any_width(node, modules)
    )


def widened(conv: IntConv2d, inputs: int, outputs: int) -> IntConv2d:
    """The same convolution for more channels, the new ones all zero.

    Args:
        inputs: channels that come in, at least as many as it has.
        outputs: channels to give; of a depthwise one as many as come in.
    """
    weight = conv.weight
    more_in = inputs - weight.shape[1] if conv.groups == 1 else 0
    more_out = outputs - len(weight)
    if more_in == more_out == 0:
        return conv
    settings = {**conv.settings, "groups": 1 if conv.groups == 1 else outputs}
    return IntConv2d(
        weight=F.pad(weight, (0, 0, 0, 0, 0, more_in, 0, more_out)),
        bias=F.pad(conv.bias, (0, more_out)),
        weight_scale=torch.cat([conv.weight_scale, conv.weight_scale.new_ones(more_out)]),
        **settings,
    )


def _readers_take_any_width(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether dense integer convolutions read a result, some after depthwise ones."""
    for reader in node.users:
        layer = modules.get(str(reader.target))
        if isinstance(layer, ActivationQuantizer):
            takes = _readers_take_any_width(reader, modules)
        elif not isinstance(layer, QuantConv2d) or layer.weight_quantizer is None:
            takes = False
        elif layer.groups == 1:
            takes = True
        else:
            is_depthwise = layer.groups == len(layer.weight) and layer.weight.shape[1] == 1
            takes = is_depthwise and _readers_take_any_width(reader, modules)
        if not takes:
            return False
    return bool(node.users)
