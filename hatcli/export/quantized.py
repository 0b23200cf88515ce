"""An integer graph as ONNX in QDQ form: each operation between DequantizeLinear and QuantizeLinear.

That form is a float graph which any runtime can read, and onnxruntime replaces every such sandwich
by one integer kernel. What only moves codes stands on uint8 tensors directly. The name of a tensor
of codes is the name of the layer that it comes from.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from hatcli import __version__
from hatcli.errors import HatError
from hatcli.export.float_nodes import conv_attributes, float_node
from hatcli.export.onnx import (
    INPUT,
    LABELS,
    OPSET,
    SCORES,
    Dynamic,
    check_request,
    open_names,
    weights_sha256,
)
from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.arithmetic import IntAdd, IntConcat, IntMultiply, Requantize
from hatcli.quantize.integer.base import IntegerOp, RescalingOp
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

OPSET_OF_16_BITS = 21  # the first whose QuantizeLinear knows uint16

_IR_VERSION = 10
_DTYPES: dict[int, tuple[int, Any]] = {
    8: (TensorProto.UINT8, np.uint8),
    16: (TensorProto.UINT16, np.uint16),
}


def export_quantized(
    graph: fx.GraphModule,
    shape: Sequence[int],
    *,
    argmax: bool = False,
    dynamic: Dynamic = "none",
    size_divisor: int = 1,
    opset: int = OPSET,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The ONNX graph of an integer graph, unchecked.

    Args:
        graph: of `lower` or `from_data`.
        shape: (N, C, H, W) of the float32 images.
        argmax: whether the file gives labels (N, 1, ...) int64 instead of scores.
        dynamic: which of the sizes the file leaves open.
        size_divisor: what H and W have to be multiples of.
        opset: of the file; 21 or newer where a tensor has 16 bits.

    Raises:
        UsageError: the shape or opset can't be had.
        HatError: an operation has no ONNX form.
    """
    check_request(shape, dynamic, size_divisor, opset)
    ops = [op for op in graph.modules() if isinstance(op, IntegerOp)]
    if any(op.out is not None and op.out.bits == 16 for op in ops):
        opset = max(opset, OPSET_OF_16_BITS)
    writer = _Writer(graph)
    source = writer.write(argmax=argmax)
    images = _value_info(INPUT, shape, TensorProto.FLOAT, open_names(dynamic, size_divisor))
    with torch.no_grad():
        scores = graph(torch.zeros(tuple(shape)))
    sizes = list(scores.shape)
    if argmax:
        sizes[1] = 1
    names = {0: "batch"} if dynamic in ("batch", "both") else {}
    if dynamic in ("size", "both") and len(sizes) == 4:
        names |= {2: "rows", 3: "columns"}
    kind = TensorProto.INT64 if argmax else TensorProto.FLOAT
    output = _value_info(source, sizes, kind, names)
    body = helper.make_graph(writer.nodes, "model", [images], [output], writer.tensors)
    model = helper.make_model(
        body,
        opset_imports=[helper.make_opsetid("", opset)],
        producer_name="hat",
        producer_version=__version__,
    )
    model.ir_version = _IR_VERSION
    entries = {**(metadata or {}), "hat.weights_sha256": weights_sha256(model)}
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    return model


class _Writer:
    """Writes the nodes of an integer graph one by one."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._known: set[str] = set()

    def write(self, *, argmax: bool) -> str:
        """All nodes; the name of the output."""
        names: dict[fx.Node, str] = {}
        for node in self.graph.graph.nodes:
            inputs = [names[argument] for argument in node.args if isinstance(argument, fx.Node)]
            if node.op == "placeholder":
                names[node] = INPUT
            elif node.op == "output":
                return self._finish(node.all_input_nodes[0], inputs[0], argmax=argmax)
            else:
                op = self.graph.get_submodule(str(node.target))
                names[node] = self._write_op(op, str(node.target), inputs)
        raise HatError("the integer graph has no output")

    def _write_op(self, op: torch.nn.Module, name: str, inputs: list[str]) -> str:
        emit = _EMITTERS.get(type(op))
        if emit is None:
            raise HatError(f"{name}: {type(op).__name__} has no ONNX form")
        found = emit(self, op, name, inputs)
        if isinstance(op, RescalingOp) and op.clip != (op.result.low, op.result.high):
            whole = self.nodes[-1].output[0] = f"{name}.whole"
            _clipped(self, op.result, op.clip, f"{name}.clip", whole)
            self.nodes[-1].output[0] = name
        return found

    def _finish(self, last: fx.Node, name: str, *, argmax: bool) -> str:
        """Name the output, or take the class with the largest code, which needs no floats."""
        if not argmax:
            self.nodes[-1].output[0] = SCORES
            return SCORES
        op = self.graph.get_submodule(str(last.target))
        source = name
        if isinstance(op, Dequantize) and op.x.bits == 8:
            source = self.nodes.pop().input[0]
        return self.add("ArgMax", [source], LABELS, axis=1, keepdims=1)

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node, named after its result."""
        name = f"{output}/{kind}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """A tensor of the file; the same name means the same tensor."""
        if name not in self._known:
            self._known.add(name)
            array = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
            self.tensors.append(numpy_helper.from_array(np.require(array, requirements="C"), name))
        return name

    def grid(self, grid: Grid) -> list[str]:
        """Names of the scale and the zero point of a grid; equal grids share them."""
        dtype = _DTYPES[grid.bits][1]
        scale = np.float32(grid.scale)
        tag = f"{scale.view(np.uint32):08x}"
        return [
            self.constant(f"scale_{tag}", scale),
            self.constant(f"zero_point_{grid.zero_point}_{grid.bits}", dtype(grid.zero_point)),
        ]

    def dequantized(self, source: str, grid: Grid, name: str) -> str:
        """The float values of codes, for one reader: shared ones keep kernels from fusing."""
        return self.add("DequantizeLinear", [source, *self.grid(grid)], name)

    def quantized(self, source: str, grid: Grid, name: str) -> str:
        """Codes of float values."""
        return self.add("QuantizeLinear", [source, *self.grid(grid)], name)

    def on_codes(
        self, grid: Grid, name: str, inputs: Sequence[str], kind: str, **attributes: Any
    ) -> str:
        """An operation that moves codes; onnxruntime has few for uint16, so these go by float."""
        if grid.bits == 8:
            return self.add(kind, inputs, name, **attributes)
        x = self.dequantized(inputs[0], grid, f"{name}.x")
        y = self.add(kind, [x, *inputs[1:]], f"{name}.y", **attributes)
        return self.quantized(y, grid, name)


def _weighted(
    writer: _Writer, op: IntConv2d | IntLinear, name: str, source: str
) -> tuple[str, str, str]:
    """Names of the dequantized input, weight and bias."""
    x = writer.dequantized(source, op.x, f"{name}.x")
    scale = writer.constant(f"{name}.weight_scale", op.weight_scale)
    codes = [writer.constant(f"{name}.weight", op.weight), scale]
    if isinstance(op, IntLinear):  # QGemm asks for it, QLinearConv doesn't
        zeros = torch.zeros(len(op.weight), dtype=torch.int8)
        codes.append(writer.constant(f"{name}.weight_zero_point", zeros))
    weight = writer.add("DequantizeLinear", codes, f"{name}.weight_float", axis=0)
    unit = torch.tensor(op.x.scale, dtype=torch.float32) * op.weight_scale
    units = writer.constant(f"{name}.bias_scale", unit)
    bias_codes = writer.constant(f"{name}.bias", op.bias)
    bias = writer.add("DequantizeLinear", [bias_codes, units], f"{name}.bias_float", axis=0)
    return x, weight, bias


def _conv(writer: _Writer, op: IntConv2d, name: str, inputs: list[str]) -> str:
    x, weight, bias = _weighted(writer, op, name, inputs[0])
    y = writer.add("Conv", [x, weight, bias], f"{name}.y", **conv_attributes(op))
    return writer.quantized(y, op.result, name)


def _linear(writer: _Writer, op: IntLinear, name: str, inputs: list[str]) -> str:
    x, weight, bias = _weighted(writer, op, name, inputs[0])
    y = writer.add("Gemm", [x, weight, bias], f"{name}.y", transB=1)
    return writer.quantized(y, op.result, name)


def _two(kind: str) -> Callable[..., str]:
    def emit(writer: _Writer, op: IntAdd | IntMultiply, name: str, inputs: list[str]) -> str:
        grids = (op.settings["a"], op.settings["b"])
        terms = [
            writer.dequantized(source, grid, f"{name}.{letter}")
            for source, grid, letter in zip(inputs, grids, "ab", strict=True)
        ]
        return writer.quantized(writer.add(kind, terms, f"{name}.y"), op.result, name)

    return emit


def _concat(writer: _Writer, op: IntConcat, name: str, inputs: list[str]) -> str:
    if all(grid == op.result for grid in op.inputs):
        return writer.add("Concat", inputs, name, axis=1)
    maps = [
        writer.dequantized(source, grid, f"{name}.x{position}")
        for position, (source, grid) in enumerate(zip(inputs, op.inputs, strict=True))
    ]
    return writer.quantized(writer.add("Concat", maps, f"{name}.y", axis=1), op.result, name)


def _requantize(writer: _Writer, op: Requantize, name: str, inputs: list[str]) -> str:
    """A ReLU, or a join of one map: of two bare pairs onnxruntime makes one on a third grid."""
    x = writer.dequantized(inputs[0], op.x, f"{name}.x")
    y = f"{name}.y"
    x = writer.add("Relu", [x], y) if op.relu else writer.add("Concat", [x], y, axis=1)
    return writer.quantized(x, op.result, name)


def _global_pool(writer: _Writer, op: IntGlobalAvgPool, name: str, inputs: list[str]) -> str:
    x = writer.dequantized(inputs[0], op.x, f"{name}.x")
    return writer.quantized(writer.add("GlobalAveragePool", [x], f"{name}.y"), op.result, name)


def _max_pool(writer: _Writer, op: IntMaxPool2d, name: str, inputs: list[str]) -> str:
    assert op.out is not None
    vertical, horizontal = op.settings["padding"]
    return writer.on_codes(
        op.out,
        name,
        inputs,
        "MaxPool",
        kernel_shape=list(op.settings["kernel"]),
        strides=list(op.settings["stride"]),
        pads=[vertical, horizontal, vertical, horizontal],
        dilations=list(op.settings["dilation"]),
        ceil_mode=int(op.settings["ceil"]),
    )


def _upsample(writer: _Writer, op: IntUpsampleNearest, name: str, inputs: list[str]) -> str:
    """Joins of an image with itself, channels last: blocks of memory are copied.

    onnxruntime's Resize of uint8 moves single bytes and takes over ten times as long.
    """
    vertical, horizontal = op.factor
    last = writer.add("Transpose", inputs, f"{name}.channels_last", perm=[0, 2, 3, 1])
    shape = writer.add("Shape", [last], f"{name}.shape")
    wide = writer.add("Concat", [last] * horizontal, f"{name}.wide", axis=3)
    # A row of pixels is one block now: (N, H, W, factor * C) is (N, H, factor * W * C).
    rows = writer.constant("rows", np.array([0, 0, -1], np.int64))
    flat = writer.add("Reshape", [wide, rows], f"{name}.rows")
    tall = writer.add("Concat", [flat] * vertical, f"{name}.tall", axis=2)
    factors = np.array([1, vertical, horizontal, 1], np.int64)
    factor = writer.constant(f"factor_{vertical}_{horizontal}", factors)
    target = writer.add("Mul", [shape, factor], f"{name}.target")
    large = writer.add("Reshape", [tall, target], f"{name}.large")
    return writer.add("Transpose", [large], name, perm=[0, 3, 1, 2])


def _pad(writer: _Writer, op: IntPad | IntPadChannels, name: str, inputs: list[str]) -> str:
    assert op.out is not None
    if isinstance(op, IntPadChannels):
        pads = [0, 0, 0, 0, 0, op.count, 0, 0]
    else:
        left, right, top, bottom = op.padding
        pads = [0, 0, top, left, 0, 0, bottom, right]
    operands = [*inputs, writer.constant(f"{name}.pads", np.array(pads, np.int64))]
    if isinstance(op, IntPad) and op.edge:
        return writer.on_codes(op.out, name, operands, "Pad", mode="edge")
    if op.out.bits == 8:  # in float the default, 0, is right
        operands.append(writer.grid(op.out)[1])
    return writer.on_codes(op.out, name, operands, "Pad", mode="constant")


def _flatten(writer: _Writer, _op: IntFlatten, name: str, inputs: list[str]) -> str:
    return writer.add("Flatten", inputs, name, axis=1)


def _clamp(writer: _Writer, op: IntClamp, name: str, inputs: list[str]) -> str:
    assert op.out is not None
    return _clipped(writer, op.out, (0, op.top), name, inputs[0])


def _clipped(writer: _Writer, grid: Grid, ends: tuple[int, int], name: str, source: str) -> str:
    """Codes between two, which are given without the zero point."""
    codes = np.array(ends)
    if grid.bits == 8:
        codes = (codes + grid.zero_point).astype(np.uint8)
    else:
        codes = (codes * grid.scale).astype(np.float32)
    bounds = [writer.constant(f"{name}.{key}", end) for key, end in zip("ab", codes, strict=True)]
    return writer.on_codes(grid, name, [source, *bounds], "Clip")


def _quantize(writer: _Writer, op: Quantize, name: str, inputs: list[str]) -> str:
    return writer.quantized(inputs[0], op.result, name)


def _dequantize(writer: _Writer, op: Dequantize, name: str, inputs: list[str]) -> str:
    return writer.dequantized(inputs[0], op.x, name)


def _float_conv(writer: _Writer, op: FloatConv2d, name: str, inputs: list[str]) -> str:
    weight = writer.constant(f"{name}.weight", op.weight)
    bias = writer.constant(f"{name}.bias", op.bias)
    return writer.add("Conv", [inputs[0], weight, bias], f"{name}.float", **conv_attributes(op))


def _float_linear(writer: _Writer, op: FloatLinear, name: str, inputs: list[str]) -> str:
    weight = writer.constant(f"{name}.weight", op.weight)
    bias = writer.constant(f"{name}.bias", op.bias)
    return writer.add("Gemm", [inputs[0], weight, bias], f"{name}.float", transB=1)


def _float_function(writer: _Writer, op: FloatFunction, name: str, inputs: list[str]) -> str:
    if op.kind == "SiLU":  # one operator only from opset 24 on
        gate = writer.add("Sigmoid", inputs, f"{name}.gate")
        return writer.add("Mul", [inputs[0], gate], f"{name}.float")
    kind, attributes, constants = float_node(op)
    extra = [
        writer.constant(f"{name}.{key}", value) if value is not None else ""
        for key, value in constants.items()
    ]
    return writer.add(kind, [*inputs, *extra], f"{name}.float", **attributes)


_EMITTERS: dict[type[torch.nn.Module], Callable[..., str]] = {
    IntConv2d: _conv,
    IntLinear: _linear,
    IntAdd: _two("Add"),
    IntMultiply: _two("Mul"),
    IntConcat: _concat,
    Requantize: _requantize,
    IntGlobalAvgPool: _global_pool,
    IntMaxPool2d: _max_pool,
    IntUpsampleNearest: _upsample,
    IntPad: _pad,
    IntPadChannels: _pad,
    IntFlatten: _flatten,
    IntClamp: _clamp,
    Quantize: _quantize,
    Dequantize: _dequantize,
    FloatConv2d: _float_conv,
    FloatLinear: _float_linear,
    FloatFunction: _float_function,
}


def _value_info(
    name: str, sizes: Sequence[int], kind: int, names: Mapping[int, str]
) -> onnx.ValueInfoProto:
    dims = [names.get(axis, size) for axis, size in enumerate(sizes)]
    return helper.make_tensor_value_info(name, kind, dims)
