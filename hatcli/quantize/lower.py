"""From a prepared graph, which fake-quantizes, to the graph of integers that it stands for."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import fx, nn

from hatcli.errors import HatError
from hatcli.quantize.findings import Finding
from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.arithmetic import Requantize
from hatcli.quantize.integer.base import IntegerOp, RescalingOp
from hatcli.quantize.integer.exact import largest_sum
from hatcli.quantize.integer.floats import Dequantize, Quantize
from hatcli.quantize.integer.forms import Tensors, float_form, has_integer_form, integer_form, moved
from hatcli.quantize.integer.lanes import LANES, can_be_widened, widened
from hatcli.quantize.integer.maps import IntClamp
from hatcli.quantize.integer.products import IntConv2d, IntLinear
from hatcli.quantize.layers import QuantConv2d
from hatcli.quantize.quantizers import ActivationQuantizer

# Of the accumulators of a target with an arithmetic of its own, by the bits of what comes in.
SUM_BITS = {8: 32, 16: 47}


@dataclass(frozen=True)
class Lowered:
    """A model of integers.

    Attributes:
        graph: float32 images (N, 3, H, W) to float32 scores; every node between calls an
            `IntegerOp`.
        findings: what had to be changed on the way.
    """

    graph: fx.GraphModule
    findings: list[Finding]


@torch.no_grad()
def lower(prepared: fx.GraphModule) -> Lowered:
    """The integer graph of a calibrated or trained graph; that one stays as it is.

    Raises:
        HatError: a layer has no integer form where one is needed.
    """
    model = deepcopy(prepared).eval()
    for module in model.modules():
        if isinstance(module, QuantConv2d):
            module.fold()
    lowering = _Lowering(model)
    for node in model.graph.nodes:
        lowering.take(node)
    return Lowered(lowering.finish(), lowering.findings)


@dataclass(frozen=True)
class _Value:
    """A tensor of the new graph: codes on a grid, or float32 where the grid is None."""

    node: fx.Node
    grid: Grid | None
    channels: int


class _Lowering:
    """Walks a prepared graph and writes the integer graph node by node.

    A layer in front of a quantizer waits for it: the grid of the result is part of an integer
    operation.
    """

    def __init__(self, model: fx.GraphModule) -> None:
        self.modules = dict(model.named_modules())
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[fx.Node, _Value] = {}
        self.findings: list[Finding] = []

    def take(self, node: fx.Node) -> None:
        """Lower one node."""
        if node.op == "placeholder":
            self.values[node] = _Value(self.graph.placeholder(node.name), None, 3)
        elif node.op == "output":
            self.graph.output(self._in_float(node.all_input_nodes, "scores")[0].node)
        elif isinstance(self._module(node), ActivationQuantizer):
            self._take_quantizer(node)
        elif not any(isinstance(self._module(user), ActivationQuantizer) for user in node.users):
            self.values[node] = self._without_grid(node)

    def finish(self) -> fx.GraphModule:
        """The graph that was written."""
        graph = fx.GraphModule(self.root, self.graph, class_name="IntegerGraph")
        graph.graph.lint()
        return graph.eval()

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def _take_quantizer(self, node: fx.Node) -> None:
        quantizer = self._module(node)
        assert isinstance(quantizer, ActivationQuantizer)
        (source,) = node.all_input_nodes
        if source in self.values:
            value = self.values[source]
            relu = quantizer.activation is not None
            if value.grid is None:
                op: IntegerOp = by_rule(Quantize(out=quantizer.grid), quantizer)
            elif value.grid != quantizer.grid:
                op = by_rule(Requantize(x=value.grid, out=quantizer.grid, relu=relu), quantizer)
            elif relu and value.grid.low < 0:
                op = IntClamp(out=quantizer.grid, top=quantizer.bounds[1])
            else:
                self.values[node] = value
                return
            self.values[node] = self._emit(str(node.target), op, [value], value.channels)
            return
        layer = self._module(source)
        assert layer is not None
        inputs = [self.values[argument] for argument in _arguments(source)]
        if has_integer_form(layer) and all(value.grid is not None for value in inputs):
            self.values[node] = self._with_grid(source, inputs, quantizer)
        else:
            value = self._without_grid(source)
            op = by_rule(Quantize(out=quantizer.grid), quantizer)
            self.values[node] = self._emit(str(node.target), op, [value], value.channels)

    def _with_grid(
        self, node: fx.Node, inputs: Sequence[_Value], quantizer: ActivationQuantizer
    ) -> _Value:
        """An integer layer; it may take several operations."""
        name, layer = str(node.target), self._module(node)
        assert layer is not None
        tensors = [Tensors(value.grid, value.channels) for value in inputs]
        ops, channels, findings = integer_form(layer, tensors, quantizer.grid)
        self.findings += [Finding(name, text) for text in findings]
        current = list(inputs)
        for suffix, op in ops[:-1]:  # what makes the input fit; it may add channels
            width = current[0].channels + getattr(op, "count", 0)
            current = [self._emit(name + suffix, op, current, width)]
        op = ops[-1][1]
        if isinstance(layer, QuantConv2d) and isinstance(op, IntConv2d):
            op = self._widened(node, op, current[0].channels)
            channels = len(op.weight)
        assert isinstance(op, RescalingOp)
        op = by_rule(op, quantizer)
        _require_room(name, op)
        return self._emit(name, op, current, channels)

    def _widened(self, node: fx.Node, conv: IntConv2d, inputs: int) -> IntConv2d:
        outputs = len(conv.weight)
        if can_be_widened(node, self.modules):
            outputs = LANES
        elif conv.groups > 1 and conv.weight.shape[1] == 1:  # as wide as what comes in
            outputs = max(outputs, inputs)
        return widened(conv, inputs, outputs)

    def _without_grid(self, node: fx.Node) -> _Value:
        """A layer that only moves codes, or one in float."""
        name, layer = str(node.target), self._module(node)
        assert layer is not None
        inputs = [self.values[argument] for argument in _arguments(node)]
        first = inputs[0]
        if first.grid is not None:
            op = moved(layer, first.grid)
            if op is not None:
                return self._emit(name, op, [first], first.channels)
        found = float_form(layer, [value.channels for value in inputs])
        if found is None:
            raise HatError(f"{name}: {type(layer).__name__} can't be lowered")
        op, channels = found
        return self._emit(name, op, self._in_float(_arguments(node), name), channels)

    def _in_float(self, nodes: Sequence[fx.Node], name: str) -> list[_Value]:
        """Values as float32, dequantized where they are codes."""
        found = []
        for position, node in enumerate(nodes):
            value = self.values[node]
            if value.grid is not None:
                op = Dequantize(x=value.grid)
                suffix = f"dequantize_{position}" if len(nodes) > 1 else "dequantize"
                value = self._emit(f"{name}.{suffix}", op, [value], value.channels)
            found.append(value)
        return found

    def _emit(self, name: str, op: IntegerOp, inputs: Sequence[_Value], channels: int) -> _Value:
        add_submodule(self.root, name, op)
        node = self.graph.call_module(name, tuple(value.node for value in inputs))
        return _Value(node, op.out, channels)


def by_rule(op: RescalingOp, quantizer: ActivationQuantizer) -> RescalingOp:
    """An operation in the arithmetic of its quantizer's target, its codes within the bounds."""
    rule = quantizer.target.rule
    return op if rule is None else op.ruled(rule, quantizer.bounds)


def _require_room(name: str, op: RescalingOp) -> None:
    """Refuse sums that a fixed-point multiplier can't take."""
    if op.arithmetic is None or not isinstance(op, IntConv2d | IntLinear):
        return
    bits = SUM_BITS[op.x.bits]
    if largest_sum(op.weight, op.x) + int(op.bias.abs().max()) >= 2 ** (bits - 1):
        raise HatError(
            f"{name}: its sums may need more than {bits} bits",
            f"leave it in float: an exception {{'layers': {name!r}, 'float': true}}",
        )


def add_submodule(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module under a dotted name, with plain modules on the way where there are none."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    for child, grandchild in getattr(root, last, nn.Module()).named_children():
        module.add_module(child, grandchild)
    root.add_module(last, module)


def _arguments(node: fx.Node) -> list[fx.Node]:
    """The inputs of a layer in order; one that is used twice stands twice."""
    return [argument for argument in node.args if isinstance(argument, fx.Node)]
