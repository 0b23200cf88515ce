"""The ONNX node of each layer that an exception keeps in float, and attributes of a convolution."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hatcli.errors import HatError
from hatcli.quantize.integer.floats import FloatConv2d, FloatFunction
from hatcli.quantize.integer.products import IntConv2d

Node = tuple[str, dict[str, Any], dict[str, Any]]

_SIMPLE = {
    "Add": "Add",
    "Multiply": "Mul",
    "ReLU": "Relu",
    "Sigmoid": "Sigmoid",
    "Hardswish": "HardSwish",
    "AdaptiveAvgPool2d": "GlobalAveragePool",
}


def float_node(op: FloatFunction) -> Node:
    """Operator, attributes, and further inputs by name: arrays, or None for one left out.

    Raises:
        HatError: no single operator computes it.
    """
    if op.kind in _SIMPLE:
        return _SIMPLE[op.kind], {}, {}
    if op.kind not in _WITH_ARGUMENTS:
        raise HatError(f"{op.kind} in float has no ONNX form here")
    return _WITH_ARGUMENTS[op.kind](op.arguments)


def conv_attributes(op: IntConv2d | FloatConv2d) -> dict[str, Any]:
    """A convolution's attributes as ONNX names them."""
    left, right, top, bottom = op.settings["padding"]
    return {
        "kernel_shape": list(op.weight.shape[2:]),
        "strides": list(op.settings["stride"]),
        "pads": [top, left, bottom, right],
        "dilations": list(op.settings["dilation"]),
        "group": op.settings["groups"],
    }


def _pad(arguments: dict[str, Any]) -> Node:
    left, right, top, bottom = arguments["pad"]
    pads = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
    return "Pad", {"mode": "constant"}, {"pads": pads}


def _window(arguments: dict[str, Any]) -> dict[str, Any]:
    vertical, horizontal = arguments["padding"]
    return {
        "kernel_shape": list(arguments["kernel_size"]),
        "strides": list(arguments["stride"]),
        "pads": [vertical, horizontal, vertical, horizontal],
    }


def _max_pool(arguments: dict[str, Any]) -> Node:
    more = {"dilations": list(arguments["dilation"]), "ceil_mode": int(arguments["ceil_mode"])}
    return "MaxPool", {**_window(arguments), **more}, {}


def _resize(arguments: dict[str, Any]) -> Node:
    factor = arguments["scale_factor"]
    vertical, horizontal = factor if isinstance(factor, tuple | list) else (factor, factor)
    scales = np.array([1, 1, vertical, horizontal], np.float32)
    if arguments["mode"] == "nearest":
        way = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
        return "Resize", {**way, "nearest_mode": "floor"}, {"roi": None, "scales": scales}
    align = "align_corners" if arguments["align_corners"] else "half_pixel"
    way = {"mode": "linear", "coordinate_transformation_mode": align}
    return "Resize", way, {"roi": None, "scales": scales}


_WITH_ARGUMENTS: dict[str, Callable[[dict[str, Any]], Node]] = {
    "Concat": lambda _: ("Concat", {"axis": 1}, {}),
    "ReLU6": lambda _: ("Clip", {}, {"low": np.float32(0), "high": np.float32(6)}),
    "LeakyReLU": lambda given: ("LeakyRelu", {"alpha": given["negative_slope"]}, {}),
    "Hardsigmoid": lambda _: ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, {}),
    "Softmax": lambda given: ("Softmax", {"axis": given["dim"]}, {}),
    "Flatten": lambda given: ("Flatten", {"axis": given["start_dim"]}, {}),
    "ZeroPad2d": _pad,
    "MaxPool2d": _max_pool,
    "AvgPool2d": lambda given: ("AveragePool", {**_window(given), "count_include_pad": 1}, {}),
    "Upsample": _resize,
}
