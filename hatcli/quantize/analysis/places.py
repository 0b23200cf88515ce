"""Where each layer of a prepared graph stands: its own nodes, and those of its quantizer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from hatcli.quantize.layers import QuantConv2d, QuantLinear
from hatcli.quantize.prepare import INPUT
from hatcli.quantize.quantizers import ActivationQuantizer

Values = dict[fx.Node, Tensor]


@dataclass(frozen=True)
class Place:
    """One layer in a graph; a module that is called twice has two nodes of each kind.

    Attributes:
        name: as exceptions name it; "input" for the images.
        kind: e.g. "Conv2d", "depthwise", "Concat".
        layers: the nodes that call it; empty for the images.
        quantizers: the nodes that put its result on a grid; empty where it stays in float.
    """

    name: str
    kind: str
    layers: tuple[fx.Node, ...]
    quantizers: tuple[fx.Node, ...]

    @property
    def ends(self) -> tuple[fx.Node, ...]:
        """The nodes whose values are the layer's result."""
        return self.quantizers or self.layers


def find_places(graph: fx.GraphModule) -> list[Place]:
    """The layers that quantization changes, or would, in the order in which they run.

    Those that only move codes are none of them.
    """
    layers: dict[str, list[fx.Node]] = {}
    quantizers: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        if isinstance(module, ActivationQuantizer):
            source = node.all_input_nodes[0]
            name = INPUT if source.op == "placeholder" else str(source.target)
            quantizers.setdefault(name, []).append(node)
            layers.setdefault(name, []).extend([source] if name != INPUT else [])
        elif isinstance(module, QuantConv2d | QuantLinear) and not any(
            isinstance(module_of(graph, user), ActivationQuantizer) for user in node.users
        ):
            layers.setdefault(str(node.target), []).append(node)
    return [
        Place(
            name,
            "input" if name == INPUT else kind_of(graph.get_submodule(name)),
            tuple(nodes),
            tuple(quantizers.get(name, ())),
        )
        for name, nodes in layers.items()
    ]


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """What a node calls."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def kind_of(layer: nn.Module) -> str:
    """What a layer is, in a word."""
    if isinstance(layer, QuantConv2d):
        is_depthwise = layer.groups > 1 and layer.weight.shape[1] == 1
        return "depthwise" if is_depthwise else "Conv2d"
    return type(layer).__name__.removeprefix("Quant")


class Walk:
    """A graph as a list of nodes, each run on its own, with nothing kept that nobody needs.

    Attributes:
        nodes: but for the output.
        scores: the node that the output takes.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        *self.nodes, last = graph.graph.nodes
        self.scores = last.all_input_nodes[0]
        self.index = {node: index for index, node in enumerate(self.nodes)}
        last_use = {source: node for node in self.nodes for source in node.all_input_nodes}
        last_use.pop(self.scores, None)
        self._unused: dict[fx.Node, list[fx.Node]] = {}
        for source, user in last_use.items():
            self._unused.setdefault(user, []).append(source)
        self._modules = {
            node: graph.get_submodule(str(node.target))
            for node in self.nodes
            if node.op == "call_module"
        }

    def run(self, values: Values, start: int = 0) -> Iterator[fx.Node]:
        """Run the nodes from one on; yields each whose value is there.

        Args:
            values: changed in place; holds what the nodes before ``start`` gave.
        """
        for node in self.nodes[start:]:
            if node.op != "placeholder":
                values[node] = self.call(node, values)
            yield node
            self.forget(node, values)

    def call(self, node: fx.Node, values: Values) -> Tensor:
        """What one node makes of its inputs."""
        result: Tensor = self._modules[node](*arguments(node, values))
        return result

    def forget(self, node: fx.Node, values: Values) -> None:
        """Drop the values that nobody needs behind a node."""
        for source in self._unused.get(node, ()):
            values.pop(source, None)

    def images(self, batch: Tensor) -> Values:
        """The values that a run starts with."""
        device = next((tensor.device for tensor in self.graph.parameters()), batch.device)
        return {self.nodes[0]: batch.to(device)}


def arguments(node: fx.Node, values: Values) -> list[Any]:
    """The tensors that a node takes, in order."""
    found = [values[source] for source in node.args if isinstance(source, fx.Node)]
    assert len(found) == len(node.args) + len(node.kwargs)
    return found


def channel_peaks(x: Tensor) -> Tensor:
    """(C,): the largest magnitude in each channel of (N, C, ...)."""
    dims = [0, *range(2, x.ndim)]
    low, high = torch.amin(x, dims), torch.amax(x, dims)
    return torch.maximum(-low, high)
