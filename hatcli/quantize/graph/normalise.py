"""A traced graph in the few layers that quantization knows, or the reason why it can't be."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node

from hatcli.errors import HatError
from hatcli.quantize.graph.operations import (
    CONSTANT_HINT,
    Chain,
    Unsupported,
    from_function,
    from_module,
    is_about_size,
    is_in_place,
    whole_factor,
)
from hatcli.quantize.graph.tracing import is_plain
from hatcli.quantize.layers import (
    Add,
    Concat,
    Multiply,
    UpsampleBilinear2x,
)

INTEGER_KINDS: tuple[type[nn.Module], ...] = (
    nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.Flatten, nn.ZeroPad2d, nn.Upsample, nn.ReLU, nn.ReLU6, Add, Multiply,
    Concat, UpsampleBilinear2x,
)  # fmt: skip
FLOAT_KINDS: tuple[type[nn.Module], ...] = (
    nn.LeakyReLU, nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish, nn.SiLU, nn.Softmax,
)  # fmt: skip
_SHOWN = 8  # entries of a hint


def normalise(traced: GraphModule, is_float: Callable[[str], bool]) -> GraphModule:
    """The same computation, each node of it a call of a module that layers.py names.

    Convolutions, linear layers and batch norms are still torch's. What does nothing in evaluation
    is gone; what changed a tensor in place gives a new one to all that came after it. The meta of
    a node tells "where" it is in the model's sources.

    Args:
        is_float: whether the layer of a name stays float.

    Raises:
        HatError: an operation that no layer computes, or only a float one; it names the layer,
            and the exception that would keep it float.
    """
    traced.graph.eliminate_dead_code(is_impure_node=lambda node: _has_effect(traced, node))
    builder = _Builder(traced, is_float)
    for node in traced.graph.nodes:
        builder.add(node)
    return builder.finish()


@dataclass
class _Value:
    """A tensor of the new graph; operations in place change which node it is."""

    node: Node


class _Builder:
    """Makes the new graph, node after node.

    Attributes:
        graph: the graph so far.
        refused: "where" and name of the layers that could only be float, and why.
    """

    def __init__(self, traced: GraphModule, is_float: Callable[[str], bool]) -> None:
        self.graph = GraphModule(nn.Module(), Graph(), class_name=type(traced).__name__)
        self.refused: list[tuple[str, str, str]] = []
        self._traced = traced
        self._is_float = is_float
        self._values: dict[Node, _Value] = {}
        self._sizes: set[Node] = set()
        self._reserved = {name for name, _ in traced.named_modules()}
        self._used: set[str] = set()

    def add(self, node: Node) -> None:
        """Take over one node of the traced graph."""
        if node.op == "placeholder":
            self._values[node] = _Value(self.graph.graph.placeholder("images"))
        elif node.op == "output":
            self.graph.graph.output(self._value(node.args[0], node).node)
        elif is_about_size(node, self._sizes):
            self._sizes.add(node)
        elif node.op != "get_attr":  # a constant is refused by what takes it
            self._add_chain(node, self._chain(node))

    def finish(self) -> GraphModule:
        """The whole graph, checked."""
        if self.refused:
            raise _only_as_float(self.refused)
        self.graph.graph.eliminate_dead_code()
        self.graph.delete_all_unused_submodules()
        self.graph.graph.lint()
        self.graph.recompile()
        return self.graph.eval()

    def _chain(self, node: Node) -> Chain:
        if node.op == "call_module":
            inputs = (*node.args, *node.kwargs.values())
            module = self._traced.get_submodule(str(node.target))
            if node.meta["listed"] and not _is_known(module):
                return Chain(inputs, (("", module),))
            if len(inputs) != 1:
                raise _refusal(node, f"{_a(module)} of {len(inputs)} inputs")
            return from_module(module, inputs[0])
        try:
            chain = from_function(node.target, node.args, node.kwargs)
        except Unsupported as error:
            raise _refusal(node, error.args[0], hint="".join(error.args[1:])) from error
        for given in node.all_input_nodes:
            if given not in (*chain.inputs, *chain.ignored):
                self._value(given, node)  # refuses a size
                raise _refusal(node, f"{_called(node)} with these arguments")
        return chain

    def _add_chain(self, node: Node, chain: Chain) -> None:
        values = [self._value(given, node) for given in chain.inputs]
        if not chain.layers:
            self._values[node] = _Value(values[0].node) if chain.copies else values[0]
            return
        inputs = tuple(value.node for value in values)
        for kind, module in chain.layers:
            inputs = (self._add_layer(node, kind, module, inputs),)
        if _changes_input(self._traced, node):
            values[0].node = inputs[0]
            self._values[node] = values[0]
        else:
            self._values[node] = _Value(inputs[0])

    def _add_layer(
        self, node: Node, kind: str, module: nn.Module, inputs: tuple[Node, ...]
    ) -> Node:
        name, module = self._named(node, kind, module)
        if node.meta["listed"] and not _is_known(module):
            reason: str | None = f"{_a(module)}, one of quantize.leaf_modules"
        elif never := _never(module):
            raise _refusal(node, never, name)
        else:
            reason = _only_float(module)
        if reason and not self._is_float(name):
            self.refused.append((node.meta["where"], name, reason))
        self._used.add(name)
        self.graph.add_submodule(name, module)
        new = self.graph.graph.call_module(name, inputs)
        new.meta["where"] = node.meta["where"]
        return new

    def _named(self, node: Node, kind: str, module: nn.Module) -> tuple[str, nn.Module]:
        """A name that is free, and a module of its own for each call of a shared one."""
        if node.op == "call_module":
            wanted = str(node.target)
            if wanted not in self._used:
                return wanted, module
            if any(True for _ in module.parameters()):
                raise HatError(
                    f"{_place(node)}layer {wanted!r} is called twice, and weights that two calls "
                    "share can't be quantized",
                    "give each call a layer of its own, as copy.deepcopy makes one",
                )
            module = copy.deepcopy(module)
        else:
            scope = node.meta["scope"]
            wanted = f"{scope}.{kind}" if scope else kind
        name, number = wanted, 0
        while name in self._used or name in self._reserved:
            number += 1
            name = f"{wanted}_{number}"
        return name, module

    def _value(self, given: Any, node: Node) -> _Value:
        if not isinstance(given, Node):
            raise _refusal(node, f"an operation on {given!r}")
        if given in self._sizes:
            raise _refusal(node, f"{_called(node)} that takes the size of a tensor")
        if given.op == "get_attr":
            reason = f"{_called(node)} that takes the constant {given.target!r}"
            raise _refusal(node, reason, hint=CONSTANT_HINT)
        return self._values[given]


def _has_effect(traced: GraphModule, node: Node) -> bool:
    return node.op in ("placeholder", "output") or _changes_input(traced, node)


def _changes_input(traced: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        return getattr(module, "inplace", False) is True
    return node.op in ("call_function", "call_method") and is_in_place(node.target, node.kwargs)


def _is_known(module: nn.Module) -> bool:
    return any(is_plain(module, kind) for kind in INTEGER_KINDS + FLOAT_KINDS)


def _never(module: nn.Module) -> str | None:
    """What neither integers nor a float part can compute, if it is such a module."""
    if not _is_known(module):
        return _a(module)
    oddity = _odd_pool(module)
    match module:
        case nn.Conv2d() if module.padding_mode != "zeros":
            oddity = "with a padding other than zeros"
        case nn.Flatten() if (module.start_dim, module.end_dim) != (1, -1):
            oddity = "of other axes than all but the first"
        case nn.BatchNorm2d() | nn.BatchNorm1d() if module.running_mean is None:
            oddity = "without running statistics"
        case nn.Upsample() if module.size is not None:
            oddity = "to a fixed size"
        case nn.Upsample() if module.mode not in ("nearest", "bilinear"):
            oddity = f"by {module.mode}"
    return f"{_a(module)} {oddity}" if oddity else None


def _odd_pool(module: nn.Module) -> str | None:
    match module:
        case nn.MaxPool2d() if module.return_indices:
            return "that returns indices"
        case nn.AdaptiveAvgPool2d() if module.output_size not in (1, (1, 1)):
            return "to another size than 1"
        case nn.AvgPool2d() if module.divisor_override is not None:
            return "with a divisor of its own"
        case nn.AvgPool2d() if module.padding not in (0, (0, 0)):
            if not module.count_include_pad:
                return "that leaves its padding out of the average"
            if module.ceil_mode:
                return "with padding and ceil_mode"
    return None


def _only_float(module: nn.Module) -> str | None:
    """What integers can't compute and a float part can, if it is such a module."""
    if any(is_plain(module, kind) for kind in FLOAT_KINDS):
        return _a(module)
    if isinstance(module, nn.Upsample) and not whole_factor(module):
        return f"an Upsample by {module.mode} (nearest by a whole factor or bilinear by 2 would do)"
    return None


def _a(module: nn.Module) -> str:
    name = type(module).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _only_as_float(refused: list[tuple[str, str, str]]) -> HatError:
    where, name, reason = refused[0]
    others = f" (and {len(refused) - 1} other layers)" if len(refused) > 1 else ""
    entries = [f'{{"layers": "{layer}", "float": True}}' for _, layer, _ in refused]
    rest = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return HatError(
        f"{where + ': ' if where else ''}layer {name!r} is {reason}, which integers can't "
        f"compute{others}",
        f"keep it float: add {', '.join(entries[:_SHOWN])}{rest} to quantize.exceptions",
    )


def _refusal(node: Node, reason: str, name: str | None = None, hint: str = "") -> HatError:
    layer = name or (str(node.target) if node.op == "call_module" else node.meta["scope"])
    subject = f"layer {layer!r} has {reason}," if layer else f"{reason} is something"
    return HatError(
        f"{_place(node)}{subject} which a quantized model can't compute, not even in float",
        hint
        or "write it with convolutions, linear layers, sums, products, concatenations, pools, "
        f"upsamplings and ReLUs; float may be {', '.join(kind.__name__ for kind in FLOAT_KINDS)}",
    )


def _place(node: Node) -> str:
    where = node.meta["where"]
    return f"{where}: " if where else ""


def _called(node: Node) -> str:
    return f"the function {getattr(node.target, '__name__', node.target)}"
