"""Fewer layers for the same computation: batch norms and paddings go into convolutions."""

import torch
from torch import nn
from torch.fx import GraphModule, Node

from hatcli.errors import HatError
from hatcli.quantize.layers import QuantConv2d, QuantLinear


def fuse(graph: GraphModule, *, fold_batch_norm: bool) -> None:
    """Take norms and paddings of a normalised graph into its weighted layers, in place.

    Afterwards each convolution is a `QuantConv2d` and each linear layer a `QuantLinear`. A
    BatchNorm2d that doesn't follow a convolution, or shares its result, becomes a depthwise 1x1
    convolution of its own name.

    Args:
        fold_batch_norm: whether a BatchNorm2d goes into weight and bias; else it stays as
            `QuantConv2d.bn`. One behind a linear layer goes into it anyway.

    Raises:
        HatError: a BatchNorm1d that doesn't follow a linear layer.
    """
    for node in list(graph.graph.find_nodes(op="call_module")):
        module = graph.get_submodule(str(node.target))
        if isinstance(module, nn.Conv2d):
            graph.set_submodule(str(node.target), QuantConv2d(module, _sides(module)))
        elif isinstance(module, nn.Linear):
            graph.set_submodule(str(node.target), QuantLinear(module))
    for node in list(graph.graph.find_nodes(op="call_module")):
        module = graph.get_submodule(str(node.target))
        if isinstance(module, nn.BatchNorm2d):
            _take_in_norm(graph, node, module, fold=fold_batch_norm)
        elif isinstance(module, nn.BatchNorm1d):
            _fold_linear_norm(graph, node, module)
        elif isinstance(module, nn.ZeroPad2d):
            _merge_pad(graph, node, module)
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()


def only_producer(graph: GraphModule, node: Node) -> nn.Module | None:
    """The module whose result a node takes, if no one else takes it."""
    producer = node.all_input_nodes[0]
    if producer.op != "call_module" or len(producer.users) > 1:
        return None
    return graph.get_submodule(str(producer.target))


def erase(graph: GraphModule, node: Node) -> None:
    """Let those who take a node's result take its input; its module is gone."""
    node.replace_all_uses_with(node.all_input_nodes[0])
    graph.graph.erase_node(node)
    graph.delete_submodule(str(node.target))


def _sides(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Its padding as left, right, top, bottom."""
    if isinstance(conv.padding, str):
        totals = [
            0 if conv.padding == "valid" else dilation * (size - 1)
            for size, dilation in zip(conv.kernel_size, conv.dilation, strict=True)
        ]
        (top, bottom), (left, right) = [(total // 2, total - total // 2) for total in totals]
        return left, right, top, bottom
    vertical, horizontal = conv.padding
    return horizontal, horizontal, vertical, vertical


def _take_in_norm(graph: GraphModule, node: Node, norm: nn.BatchNorm2d, *, fold: bool) -> None:
    layer = only_producer(graph, node)
    if isinstance(layer, QuantConv2d) and layer.bn is None:
        erase(graph, node)
    else:
        layer = _identity(norm)
        graph.set_submodule(str(node.target), layer)
    layer.bn = norm
    if fold:
        layer.fold()


def _identity(norm: nn.BatchNorm2d) -> QuantConv2d:
    """A depthwise 1x1 convolution that changes nothing."""
    assert norm.running_mean is not None
    channels = norm.num_features
    conv = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
    nn.init.ones_(conv.weight)
    return QuantConv2d(conv.to(norm.running_mean), (0, 0, 0, 0)).eval()


def _fold_linear_norm(graph: GraphModule, node: Node, norm: nn.BatchNorm1d) -> None:
    layer = only_producer(graph, node)
    if not isinstance(layer, QuantLinear):
        where = node.meta.get("where")
        raise HatError(
            f"{where + ': ' if where else ''}layer {str(node.target)!r} is a BatchNorm1d that "
            "doesn't follow a linear layer alone, which a quantized model can't compute",
            "put it behind a linear layer",
        )
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        factor = torch.rsqrt(norm.running_var.double() + norm.eps)
        factor = factor if norm.weight is None else factor * norm.weight
        offset = 0.0 if norm.bias is None else norm.bias
        layer.weight.copy_(layer.weight * factor[:, None])
        layer.bias.copy_((layer.bias - norm.running_mean) * factor + offset)
    erase(graph, node)


def _merge_pad(graph: GraphModule, node: Node, pad: nn.ZeroPad2d) -> None:
    """Leave it to the convolution that alone takes the padded map, if there is one."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return
    layer = graph.get_submodule(str(users[0].target))
    if isinstance(layer, QuantConv2d):
        left, right, top, bottom = (
            own + more for own, more in zip(layer.padding, pad.padding, strict=True)
        )
        layer.padding = (left, right, top, bottom)
        erase(graph, node)
