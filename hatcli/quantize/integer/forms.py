"""What each layer of a prepared graph is in integers, and what it is in float."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.arithmetic import IntAdd, IntConcat, IntMultiply, Requantize
from hatcli.quantize.integer.base import IntegerOp
from hatcli.quantize.integer.exact import LARGEST_BIAS, float32_integer
from hatcli.quantize.integer.floats import FloatConv2d, FloatFunction, FloatLinear
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
from hatcli.quantize.layers import (
    Add,
    Concat,
    Multiply,
    QuantConv2d,
    QuantLinear,
    UpsampleBilinear2x,
)
from hatcli.quantize.quantizers import rounded_up

# A convolution of the 3 channels of an image takes onnxruntime twice as long as one of 4, whose
# codes are one word a pixel; a channel of zeros changes nothing.
WORD = 4


@dataclass(frozen=True)
class Tensors:
    """What a layer has to know of a tensor that comes in."""

    grid: Grid | None
    channels: int


# The operations in order, each with what it adds to the layer's name (the last one nothing); the
# channels of the result; and what had to be changed.
Form = tuple[list[tuple[str, IntegerOp]], int, list[str]]


def has_integer_form(layer: nn.Module) -> bool:
    """Whether a layer, with a grid for its result, is integers."""
    if isinstance(layer, QuantConv2d | QuantLinear):
        return layer.weight_quantizer is not None
    return type(layer) in _FORMS


def integer_form(layer: nn.Module, inputs: Sequence[Tensors], out: Grid) -> Form:
    """A layer in integers.

    Args:
        inputs: all on a grid.
        out: of its result.
    """
    return _FORMS[type(layer)](layer, inputs, out)


def moved(layer: nn.Module, grid: Grid) -> IntegerOp | None:
    """A layer that keeps its input's grid; None if it isn't one."""
    if isinstance(layer, nn.MaxPool2d):
        return IntMaxPool2d(
            out=grid,
            kernel=_pair(layer.kernel_size),
            stride=_pair(layer.stride),
            padding=_pair(layer.padding),
            dilation=_pair(layer.dilation),
            ceil=layer.ceil_mode,
        )
    if isinstance(layer, nn.Flatten):
        return IntFlatten(out=grid)
    if isinstance(layer, nn.ZeroPad2d):
        left, right, top, bottom = layer.padding
        return IntPad(out=grid, padding=(left, right, top, bottom), edge=False)
    if isinstance(layer, nn.Upsample) and layer.mode == "nearest":
        vertical, horizontal = _pair(layer.scale_factor)
        return IntUpsampleNearest(out=grid, factor=(round(vertical), round(horizontal)))
    if isinstance(layer, nn.ReLU):
        return IntClamp(out=grid, top=grid.high)
    if isinstance(layer, nn.ReLU6):
        return IntClamp(out=grid, top=min(grid.high, round(6 / grid.scale)))
    return None


def float_form(layer: nn.Module, channels: Sequence[int]) -> tuple[IntegerOp, int] | None:
    """A layer in float32, and the channels of its result; None if there is no such form.

    Args:
        channels: of each tensor that comes in.
    """
    if isinstance(layer, QuantConv2d):
        conv = FloatConv2d(
            weight=layer.weight.detach().clone(),
            bias=layer.bias.detach().clone(),
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
        )
        return conv, len(layer.weight)
    if isinstance(layer, QuantLinear):
        weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
        return FloatLinear(weight=weight, bias=bias), len(layer.weight)
    name = "Upsample" if isinstance(layer, UpsampleBilinear2x) else type(layer).__name__
    if name not in _FLOAT_ARGUMENTS:
        return None
    op = FloatFunction(kind=name, arguments=_FLOAT_ARGUMENTS[name](layer))
    return op, sum(channels) if isinstance(layer, Concat) else channels[0]


def integer_weights(layer: QuantConv2d | QuantLinear, x: Grid) -> tuple[dict[str, Any], list[str]]:
    """Codes, bias and scales of a layer, and what had to be changed.

    The bias is an int32 in units of the input's scale times the channel's. Where a channel's
    weights are so small that it wouldn't fit, its scale is raised: the weights then count for
    nothing beside the bias, as they did before. Where all channels share one scale, it is raised
    for all of them, since hardware with a single scale is what such weights are for.

    Args:
        x: grid of the input.
    """
    assert layer.weight_quantizer is not None
    quantizer = layer.weight_quantizer
    scale = quantizer.positive_scale().detach().clone()
    bias = layer.bias.detach()
    smallest = (bias.abs().double() / (x.scale * LARGEST_BIAS)).float()
    if len(scale) < len(smallest):
        smallest = smallest.amax(0, keepdim=True).expand_as(smallest)
    raised = scale < smallest
    scale = torch.maximum(scale, smallest)
    scale = rounded_up(scale) if quantizer.power_of_two else scale
    by_channel = scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    codes = (layer.weight.detach() / by_channel).round()
    codes = codes.clamp(-quantizer.highest, quantizer.highest).to(torch.int8)
    unit = (torch.tensor(x.scale, dtype=torch.float32) * scale).double()
    tensors = {
        "weight": codes,
        "bias": float32_integer((bias.double() / unit).round()),
        "weight_scale": scale,
    }
    findings = []
    if raised.any():
        findings.append(
            f"{int(raised.sum())} of {len(scale)} channels got a larger weight scale, "
            "so that their bias fits in 32 bits"
        )
    return tensors, findings


def _conv(layer: QuantConv2d, inputs: Sequence[Tensors], out: Grid) -> Form:
    x = _grid(inputs[0])
    tensors, findings = integer_weights(layer, x)
    missing = WORD - layer.weight.shape[1] if layer.groups == 1 else 0
    if missing > 0:
        tensors["weight"] = F.pad(tensors["weight"], (0, 0, 0, 0, 0, missing))
    conv = IntConv2d(
        **tensors,
        x=x,
        out=out,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )
    ops: list[tuple[str, IntegerOp]] = [("", conv)]
    if missing > 0:
        ops.insert(0, (".channels", IntPadChannels(out=x, count=missing)))
    return ops, len(layer.weight), findings


def _linear(layer: QuantLinear, inputs: Sequence[Tensors], out: Grid) -> Form:
    x = _grid(inputs[0])
    tensors, findings = integer_weights(layer, x)
    return [("", IntLinear(**tensors, x=x, out=out))], len(layer.weight), findings


def _add(_layer: Add, inputs: Sequence[Tensors], out: Grid) -> Form:
    a, b = inputs
    return [("", IntAdd(a=_grid(a), b=_grid(b), out=out))], a.channels, []


def _multiply(_layer: Multiply, inputs: Sequence[Tensors], out: Grid) -> Form:
    a, b = inputs
    return [("", IntMultiply(a=_grid(a), b=_grid(b), out=out))], max(a.channels, b.channels), []


def _concat(_layer: Concat, inputs: Sequence[Tensors], out: Grid) -> Form:
    op = IntConcat(inputs=[_grid(tensor) for tensor in inputs], out=out)
    return [("", op)], sum(tensor.channels for tensor in inputs), []


def _global_pool(_layer: nn.Module, inputs: Sequence[Tensors], out: Grid) -> Form:
    return [("", IntGlobalAvgPool(x=_grid(inputs[0]), out=out))], inputs[0].channels, []


def _avg_pool(layer: nn.AvgPool2d, inputs: Sequence[Tensors], out: Grid) -> Form:
    """A mean is a depthwise convolution with ones, whose scale is 1 over their number.

    Where windows of 2x2 are to cover an odd map, its edge is repeated: the mean of a value and
    its copy is the value, which is what a cut window gives.
    """
    x = _grid(inputs[0])
    window, stride, (vertical, horizontal) = map(
        _pair, (layer.kernel_size, layer.stride, layer.padding)
    )
    kernel = torch.ones(window, dtype=torch.int8)
    halves = layer.ceil_mode and window == stride == (2, 2) and (vertical, horizontal) == (0, 0)
    op = _depthwise(
        kernel,
        1 / kernel.numel(),
        inputs[0],
        out,
        stride=stride,
        padding=(horizontal, horizontal, vertical, vertical),
        covers=layer.ceil_mode and not halves,
    )
    ops: list[tuple[str, IntegerOp]] = [("", op)]
    if halves:
        ops.insert(0, (".edge", IntPad(out=x, padding=(0, 1, 0, 1), edge=True)))
    return ops, inputs[0].channels, []


def _bilinear(_layer: UpsampleBilinear2x, inputs: Sequence[Tensors], out: Grid) -> Form:
    """See `UpsampleBilinear2x`; its 16ths are weights of the scale 1/16."""
    x = _grid(inputs[0])
    line = torch.tensor([1, 2, 1], dtype=torch.int8)
    ops: list[tuple[str, IntegerOp]] = [
        (".nearest", IntUpsampleNearest(out=x, factor=(2, 2))),
        (".edge", IntPad(out=x, padding=(1, 1, 1, 1), edge=True)),
        ("", _depthwise(torch.outer(line, line), 1 / 16, inputs[0], out)),
    ]
    return ops, inputs[0].channels, []


def _relu(layer: nn.Module, inputs: Sequence[Tensors], out: Grid) -> Form:
    op = Requantize(x=_grid(inputs[0]), out=out, relu=True)
    return [("", op)], inputs[0].channels, []


def _depthwise(
    kernel: Tensor,
    scale: float,
    x: Tensors,
    out: Grid,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    covers: bool = False,
) -> IntConv2d:
    """A convolution of each channel with one kernel of integers, times a scale."""
    return IntConv2d(
        weight=kernel.expand(x.channels, 1, *kernel.shape).clone(),
        bias=torch.zeros(x.channels, dtype=torch.int32),
        weight_scale=torch.full((x.channels,), scale),
        x=_grid(x),
        out=out,
        stride=stride,
        padding=padding,
        groups=x.channels,
        covers=covers,
    )


_FORMS: dict[type[nn.Module], Callable[[Any, Sequence[Tensors], Grid], Form]] = {
    QuantConv2d: _conv,
    QuantLinear: _linear,
    Add: _add,
    Multiply: _multiply,
    Concat: _concat,
    nn.AdaptiveAvgPool2d: _global_pool,
    nn.AvgPool2d: _avg_pool,
    UpsampleBilinear2x: _bilinear,
    nn.ReLU: _relu,
    nn.ReLU6: _relu,
}


def _nothing(_layer: Any) -> dict[str, Any]:
    return {}


def _upsample_arguments(layer: Any) -> dict[str, Any]:
    if isinstance(layer, UpsampleBilinear2x):
        return {"scale_factor": 2.0, "mode": "bilinear", "align_corners": False}
    given = {"scale_factor": layer.scale_factor, "mode": layer.mode}
    return given if layer.mode == "nearest" else {**given, "align_corners": layer.align_corners}


_FLOAT_ARGUMENTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Add": _nothing,
    "Multiply": _nothing,
    "Concat": _nothing,
    "ReLU": _nothing,
    "ReLU6": _nothing,
    "Sigmoid": _nothing,
    "Hardsigmoid": _nothing,
    "Hardswish": _nothing,
    "SiLU": _nothing,
    "LeakyReLU": lambda layer: {"negative_slope": layer.negative_slope},
    "Softmax": lambda layer: {"dim": layer.dim},
    "Flatten": lambda layer: {"start_dim": layer.start_dim, "end_dim": layer.end_dim},
    "ZeroPad2d": lambda layer: {"pad": tuple(layer.padding)},
    "MaxPool2d": lambda layer: {
        "kernel_size": _pair(layer.kernel_size),
        "stride": _pair(layer.stride),
        "padding": _pair(layer.padding),
        "dilation": _pair(layer.dilation),
        "ceil_mode": layer.ceil_mode,
    },
    "AvgPool2d": lambda layer: {
        "kernel_size": _pair(layer.kernel_size),
        "stride": _pair(layer.stride),
        "padding": _pair(layer.padding),
    },
    "AdaptiveAvgPool2d": lambda _layer: {"output_size": 1},
    "Upsample": _upsample_arguments,
}


def _grid(tensor: Tensors) -> Grid:
    assert tensor.grid is not None
    return tensor.grid


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[1]) if isinstance(value, Sequence) else cast("Any", (value, value))
