"""An integer graph as plain values and tensors, and back: what an int_infer checkpoint holds."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, fx, nn

from hatcli.errors import CheckpointError, ConfigError
from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.arithmetic import IntAdd, IntConcat, IntMultiply, Requantize
from hatcli.quantize.integer.base import IntegerOp
from hatcli.quantize.integer.floats import (
    Dequantize,
    FloatConv2d,
    FloatFunction,
    FloatLinear,
    Quantize,
)
from hatcli.quantize.integer.maps import (
    IntClamp,
    IntFlatten,
    IntGlobalAvgPool,
    IntMaxPool2d,
    IntPad,
    IntPadChannels,
    IntUpsampleNearest,
)
from hatcli.quantize.integer.products import IntConv2d, IntLinear
from hatcli.quantize.lower import add_submodule

VERSION = 1

OPS: dict[str, type[Any]] = {
    op.__name__: op
    for op in (
        Quantize,
        Dequantize,
        IntConv2d,
        IntLinear,
        IntAdd,
        IntMultiply,
        IntConcat,
        Requantize,
        IntMaxPool2d,
        IntGlobalAvgPool,
        IntUpsampleNearest,
        IntPad,
        IntPadChannels,
        IntFlatten,
        IntClamp,
        FloatConv2d,
        FloatLinear,
        FloatFunction,
    )
}


def to_data(graph: fx.GraphModule) -> dict[str, Any]:
    """A graph as {"version", "input", "nodes", "output"}: nothing in it but values and tensors.

    Each node is {"name", "op", "inputs": names, "settings", "tensors"}; a grid in the settings
    is {"scale", "zero_point", "bits"}.
    """
    nodes: list[dict[str, Any]] = []
    document: dict[str, Any] = {"version": VERSION, "nodes": nodes}
    for node in graph.graph.nodes:
        inputs = [_name(argument) for argument in node.args if isinstance(argument, fx.Node)]
        if node.op == "placeholder":
            document["input"] = node.name
        elif node.op == "output":
            document["output"] = inputs[0]
        else:
            op = graph.get_submodule(str(node.target))
            assert isinstance(op, IntegerOp)
            nodes.append(
                {
                    "name": _name(node),
                    "op": type(op).__name__,
                    "inputs": inputs,
                    "settings": {key: _plain(value) for key, value in op.settings.items()},
                    "tensors": op.tensors,
                }
            )
    return document


def from_data(document: Mapping[str, Any]) -> fx.GraphModule:
    """The graph that `to_data` was given.

    Raises:
        CheckpointError: it isn't such a document, or of a newer version.
    """
    version = document.get("version") if isinstance(document, Mapping) else None
    if version != VERSION:
        raise CheckpointError(f"the integer graph has version {version!r}")
    root, graph = nn.Module(), fx.Graph()
    try:
        values = {document["input"]: graph.placeholder(document["input"])}
        for node in document["nodes"]:
            name, op = node["name"], _operation(node)
            inputs = tuple(values[source] for source in node["inputs"])
            inspect.signature(op.forward).bind(*inputs)
            if name in values:
                raise ValueError(f"two nodes named {name!r}")
            add_submodule(root, name, op)
            values[name] = graph.call_module(name, inputs)
        graph.output(values[document["output"]])
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, ConfigError) as error:
        raise CheckpointError(f"the integer graph is damaged: {error}") from error
    return fx.GraphModule(root, graph, class_name="IntegerGraph").eval()


def _operation(node: Mapping[str, Any]) -> IntegerOp:
    """The operation of a node; what its constructor would take unseen is looked at here."""
    settings = {key: _restored(value) for key, value in node["settings"].items()}
    for key in _GRIDS & settings.keys():
        if not isinstance(settings[key], Grid):
            raise TypeError(f"{node['name']}: {key} is no grid")
    tensors, expected = node["tensors"], _TENSORS.get(node["op"])
    if expected is not None:
        weight, form = tensors["weight"], expected["weight"]
        outputs = len(weight) if isinstance(weight, Tensor) and weight.ndim == form[1] else -1
        for key, (dtype, dimensions) in expected.items():
            tensor = tensors[key]
            if not isinstance(tensor, Tensor) or (tensor.dtype, tensor.ndim) != (dtype, dimensions):
                raise TypeError(f"{node['name']}: {key} has another type or shape")
            if len(tensor) != outputs:
                raise ValueError(f"{node['name']}: {key} is not of {outputs} channels")
    op: IntegerOp = OPS[node["op"]](**settings, **tensors)
    return op


_GRIDS = {"out", "x", "a", "b"}

# Operation -> its tensors: type and dimensions. The first dimension is the output channel.
_TENSORS: dict[str, dict[str, tuple[torch.dtype, int]]] = {
    **{
        name: {
            "weight": (torch.int8, dimensions),
            "bias": (torch.int32, 1),
            "weight_scale": (torch.float32, 1),
        }
        for name, dimensions in (("IntConv2d", 4), ("IntLinear", 2))
    },
    **{
        name: {"weight": (torch.float32, dimensions), "bias": (torch.float32, 1)}
        for name, dimensions in (("FloatConv2d", 4), ("FloatLinear", 2))
    },
}


def _name(node: fx.Node) -> str:
    return node.name if node.op == "placeholder" else str(node.target)


def _plain(value: Any) -> Any:
    if isinstance(value, Grid):
        return asdict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {"scale", "zero_point", "bits"}:
        grid = Grid(**value)
        if not (math.isfinite(grid.scale) and grid.scale > 0 and grid.bits in (8, 16)):
            raise ValueError(f"no grid: {grid}")
        if not grid.low <= 0 <= grid.high:
            raise ValueError(f"no grid: {grid}")
        return grid
    if isinstance(value, list):
        return tuple(_restored(item) for item in value)
    return value
