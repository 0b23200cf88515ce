"""What a traced function, method or module is as one of the layers of a prepared graph.

Each function of the tables has the parameters of the torch function that it stands for, and gives
a `Chain`: the tensors that go in and the layers that they pass, none of them where the operation
does nothing in evaluation.
"""

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from hatcli.quantize.graph.tracing import is_plain
from hatcli.quantize.layers import Add, Concat, Multiply, UpsampleBilinear2x


class Chain(NamedTuple):
    """The tensors that go into the first layer, then layer after layer with its kind's name.

    Attributes:
        copies: of a chain without layers, whether the result has a memory of its own.
        ignored: further arguments, which make no difference.
    """

    inputs: tuple[Any, ...]
    layers: tuple[tuple[str, nn.Module], ...] = ()
    copies: bool = False
    ignored: tuple[Any, ...] = ()


CONSTANT_HINT = "let a BatchNorm2d, or the weights before it, scale and shift by constants"


class Unsupported(Exception):  # noqa: N818 - a message about it is made of it
    """No layer computes this; the text says what it is, a second one what to do instead."""


def from_function(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Chain:
    """The layers of a call of a function, or of a method where ``target`` is its name.

    Raises:
        Unsupported: there are none.
    """
    table = METHODS if isinstance(target, str) else FUNCTIONS
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if target not in table:
        raise Unsupported(f"the function {name}")
    kwargs = dict(kwargs)
    args = (kwargs.pop("input"), *args) if "input" in kwargs else args
    try:
        return table[target](*args, **kwargs)
    except (TypeError, ValueError) as error:  # arguments that mean something else
        raise Unsupported(f"the function {name} with these arguments") from error


def from_module(module: nn.Module, x: Any) -> Chain:
    """The layers of a call of a torch module; a module without equivalent stays itself."""
    for kind in _VANISHING:
        if is_plain(module, kind):
            return Chain((x,))
    if isinstance(module, nn.Hardtanh) and not isinstance(module, nn.ReLU6):
        return _hardtanh(x, module.min_val, module.max_val)
    if isinstance(module, nn.ConstantPad2d) and module.value == 0:
        return _pad(x, module.padding)
    if is_plain(module, nn.Upsample):
        assert isinstance(module, nn.Upsample)
        return _interpolate(x, module.size, module.scale_factor, module.mode, module.align_corners)
    if getattr(module, "inplace", False) is True:
        module = copy.deepcopy(module)  # another call may ask the module whether it is in place
        setattr(module, "inplace", False)  # noqa: B010 - it isn't known to be a bool
    return Chain((x,), (("", module),))


def is_in_place(target: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call of a function or method changes its first argument."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return (
        target in (operator.iadd, operator.imul)
        or (name.endswith("_") and not name.endswith("__"))
        or kwargs.get("inplace") is True
    )


def is_about_size(node: Node, known: set[Node]) -> bool:
    """Whether a node gives sizes, not a tensor: it asks for them or computes with them alone."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel"):
        return True
    if node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device"):
        return True
    return bool(node.all_input_nodes) and known.issuperset(node.all_input_nodes)


def whole_factor(module: nn.Module) -> bool:
    """Whether a module repeats each pixel a whole number of times along both axes."""
    if not isinstance(module, nn.Upsample) or module.mode != "nearest":
        return False
    factor = module.scale_factor
    factors = factor if isinstance(factor, tuple) else (factor,)
    return all(one is not None and one >= 1 and one == int(one) for one in factors)


_VANISHING: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)  # fmt: skip


def _same(x: Any, *_: Any, **__: Any) -> Chain:
    return Chain((x,))


def _clone(x: Any, memory_format: Any = None) -> Chain:
    return Chain((x,), copies=True)


def _pair(name: str, layer: nn.Module, a: Any, b: Any) -> Chain:
    if not (isinstance(a, Node) and isinstance(b, Node)):
        raise Unsupported(f"the function {name} with a number", CONSTANT_HINT)
    return Chain((a, b), ((name, layer),))


def _add(x: Any, other: Any, *, alpha: float = 1) -> Chain:
    if alpha != 1:
        raise Unsupported(f"the function add with alpha={alpha}")
    for number, tensor in ((x, other), (other, x)):
        if isinstance(number, int | float) and number == 0:  # how Python's sum starts
            return Chain((tensor,))
    return _pair("add", Add(), x, other)


def _multiply(x: Any, other: Any) -> Chain:
    return _pair("mul", Multiply(), x, other)


def _cat(tensors: Sequence[Any], dim: int = 0, axis: int | None = None) -> Chain:
    dim = dim if axis is None else axis
    if dim not in (1, -3):
        raise Unsupported(f"the function cat along axis {dim}")
    return Chain(tuple(tensors), (("cat", Concat()),))


def _pointwise(name: str, build: Callable[..., nn.Module]) -> Callable[..., Chain]:
    def made(x: Any, *args: Any, inplace: bool = False) -> Chain:
        return Chain((x,), ((name, build(*args)),))

    return made


def _leaky_relu(x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Chain:
    return Chain((x,), (("leaky_relu", nn.LeakyReLU(negative_slope)),))


def _softmax(x: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Chain:
    if dim is None or dtype is not None:
        raise Unsupported("the function softmax without 'dim' or with 'dtype'")
    return Chain((x,), (("softmax", nn.Softmax(dim)),))


def _clamp(x: Any, min: Any = None, max: Any = None) -> Chain:  # noqa: A002 - torch's names
    return _hardtanh(x, min, max)


def _hardtanh(x: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> Chain:
    if min_val != 0 or max_val not in (None, 6):
        raise Unsupported(f"the function clamp from {min_val} to {max_val}")
    name, layer = ("relu", nn.ReLU()) if max_val is None else ("relu6", nn.ReLU6())
    return Chain((x,), ((name, layer),))


def _dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Chain:
    if training is not False:
        raise Unsupported("the function dropout without training=self.training")
    return Chain((x,))


def _max_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Chain:
    layer = nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
    return Chain((x,), (("max_pool2d", layer),))


def _avg_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Chain:
    layer = nn.AvgPool2d(
        kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    return Chain((x,), (("avg_pool2d", layer),))


def _adaptive_avg_pool2d(x: Any, output_size: Any) -> Chain:
    return Chain((x,), (("adaptive_avg_pool2d", nn.AdaptiveAvgPool2d(output_size)),))


def _mean(x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Chain:
    axes = {axis % 4 for axis in (dim if isinstance(dim, list | tuple) else ())}
    if axes != {2, 3} or dtype is not None:
        raise Unsupported("the function mean over other axes than 2 and 3")
    pool = ("mean", nn.AdaptiveAvgPool2d(1))
    return Chain((x,), (pool,) if keepdim else (pool, ("flatten", nn.Flatten(1))))


def _flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Chain:
    return Chain((x,), (("flatten", nn.Flatten(start_dim, end_dim)),))


def _view(x: Any, *shape: Any) -> Chain:
    """Images by all that they have: ``x.view(x.size(0), -1)`` in one of its spellings."""
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape
    if len(sizes) != 2 or not _is_batch_size(sizes[0]) or not isinstance(sizes[1], int):
        raise Unsupported("a view other than x.view(x.size(0), -1)")
    return Chain((x,), (("flatten", nn.Flatten(1)),), ignored=(sizes[0],))


def _is_batch_size(size: Any) -> bool:
    if not isinstance(size, Node):
        return False
    if size.target == "size":
        return bool(size.args[1:] == (0,) or size.kwargs.get("dim") == 0)
    if size.target is not operator.getitem or size.args[1] != 0:
        return False
    whole = size.args[0]
    assert isinstance(whole, Node)
    if whole.target is getattr:
        return bool(whole.args[1] == "shape")
    return whole.target == "size" and not whole.args[1:] and not whole.kwargs


def _pad(x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Chain:
    sides = (pad,) * 4 if isinstance(pad, int) else tuple(pad)
    sides = (*sides, 0, 0) if len(sides) == 2 else sides
    if mode != "constant" or value not in (None, 0) or len(sides) != 4 or min(sides) < 0:
        raise Unsupported("a padding other than with zeros around a map")
    return Chain((x,), (("pad", nn.ZeroPad2d(sides)),))


def _interpolate(
    x: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Chain:
    if antialias:
        raise Unsupported("the function interpolate with antialias")
    factor = tuple(scale_factor) if isinstance(scale_factor, list | tuple) else scale_factor
    if mode == "bilinear" and not align_corners and factor in (2, (2, 2)):
        return Chain((x,), (("interpolate", UpsampleBilinear2x()),))
    layer = nn.Upsample(size, factor, mode, align_corners, recompute_scale_factor)
    if mode == "nearest-exact":  # the same for a whole factor
        nearest = nn.Upsample(size, factor, "nearest")
        layer = nearest if whole_factor(nearest) else layer
    return Chain((x,), (("interpolate", layer),))


_relu, _relu6 = _pointwise("relu", nn.ReLU), _pointwise("relu6", nn.ReLU6)
_sigmoid = _pointwise("sigmoid", nn.Sigmoid)

FUNCTIONS: dict[Any, Callable[..., Chain]] = {
    **dict.fromkeys((torch.add, operator.add, operator.iadd), _add),
    **dict.fromkeys((torch.mul, torch.multiply, operator.mul, operator.imul), _multiply),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _cat),
    **dict.fromkeys((F.relu, torch.relu, torch.relu_), _relu),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool2d),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout), _dropout),
    **dict.fromkeys((torch.clamp, torch.clip, torch.clamp_, torch.clip_), _clamp),
    **dict.fromkeys((torch.reshape,), _view),
    **dict.fromkeys((torch.softmax, F.softmax), _softmax),
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.leaky_relu: _leaky_relu,
    F.silu: _pointwise("silu", nn.SiLU),
    F.hardswish: _pointwise("hardswish", nn.Hardswish),
    F.hardsigmoid: _pointwise("hardsigmoid", nn.Hardsigmoid),
    torch.sigmoid: _sigmoid,
    F.avg_pool2d: _avg_pool2d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    torch.mean: _mean,
    torch.flatten: _flatten,
    F.interpolate: _interpolate,
    F.pad: _pad,
}

METHODS: dict[str, Callable[..., Chain]] = {
    **dict.fromkeys(("add", "add_"), _add),
    **dict.fromkeys(("mul", "mul_", "multiply", "multiply_"), _multiply),
    **dict.fromkeys(("relu", "relu_"), _relu),
    **dict.fromkeys(("clamp", "clamp_", "clip", "clip_"), _clamp),
    **dict.fromkeys(("sigmoid", "sigmoid_"), _sigmoid),
    **dict.fromkeys(("contiguous", "float"), _same),
    **dict.fromkeys(("view", "reshape"), _view),
    "clone": _clone,
    "softmax": _softmax,
    "mean": _mean,
    "flatten": _flatten,
}
