"""Small integer graphs, put together by hand, and their codes beside those of onnxruntime."""

import numpy as np
import onnx
import torch
from torch import fx, nn

from hatcli.export.quantized import export_quantized
from hatcli.export.runtime import open_session, run_session
from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.base import IntegerOp
from hatcli.quantize.integer.floats import Dequantize, FloatConv2d, Quantize
from hatcli.quantize.integer.products import IntConv2d, IntLinear
from hatcli.quantize.lower import add_submodule


def graph_of(*steps):
    """An integer graph of (name, operation, *names of inputs); without them, of the step before."""
    root, graph = nn.Module(), fx.Graph()
    nodes = {"images": graph.placeholder("images")}
    last = "images"
    for name, op, *inputs in steps:
        add_submodule(root, name, op)
        nodes[name] = graph.call_module(name, tuple(nodes[source] for source in inputs or [last]))
        last = name
    graph.output(nodes[last])
    return fx.GraphModule(root, graph).eval()


def scale(value):
    """The nearest number that float32 holds."""
    return float(np.float32(value))


def pick(rng, choices):
    return choices[int(rng.integers(len(choices)))]


def random_grid(rng, like=None):
    """A grid, often with a scale beside a power of two, so that many products nearly tie.

    Args:
        like: a grid whose scale it stays near.
    """
    unit = 1.0 if like is None else like.scale
    if rng.random() < 0.5:
        value = 2.0 ** rng.integers(-3, 3) * (1 + int(rng.integers(-2, 3)) * 2**-23)
    elif like is None and rng.random() < 0.4:
        value = 10 ** rng.uniform(-9, 5)
    else:
        value = 2 ** rng.uniform(-3, 3)
    return Grid(scale(unit * value), int(pick(rng, [0, 255, 128, rng.integers(0, 256)])))


def one_op(op, x):
    """Images on a grid, one operation, and its result as float32."""
    return graph_of(("x", Quantize(out=x)), ("op", op), ("end", Dequantize(x=op.out)))


def two_inputs(op, a, b, channels):
    """An operation of the first channels of the images and of as many behind them."""
    steps = []
    for name, grid, start in (("a", a, 0), ("b", b, channels)):
        weight = torch.zeros(channels, 2 * channels, 1, 1)
        weight[torch.arange(channels), torch.arange(channels) + start] = 1.0
        steps.append((f"{name}.pick", pick_channels(weight), "images"))
        steps.append((name, Quantize(out=grid), f"{name}.pick"))
    return graph_of(*steps, ("op", op, "a", "b"), ("end", Dequantize(x=op.out)))


def pick_channels(weight):
    """A float convolution of zeros and ones, which copies channels exactly."""
    return FloatConv2d(
        weight=weight,
        bias=torch.zeros(len(weight)),
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=1,
    )


def random_conv(inputs, outputs, kernel, *, x, out, rng, groups=1, **settings):
    """A convolution with random weights, some at both ends, that fills the range of its result."""
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    tensors = random_weights((outputs, inputs // groups, *kernel), x, out, rng)
    return IntConv2d(**tensors, x=x, out=out, groups=groups, **settings)


def random_linear(inputs, outputs, *, x, out, rng):
    return IntLinear(**random_weights((outputs, inputs), x, out, rng), x=x, out=out)


def random_weights(shape, x, out, rng):
    """Weight, bias and weight scale; the products of each channel spread over the result's grid."""
    weight = rng.integers(-127, 128, shape).astype(np.int8)
    weight[rng.random(shape) < 0.1] = 127
    weight[rng.random(shape) < 0.1] = -127
    spread = 100 * 80 * np.sqrt(np.prod(shape[1:])) / 2 ** rng.uniform(0, 2, shape[0])
    weight_scale = 128 * out.scale / (x.scale * spread)
    if rng.random() < 0.5:  # multipliers beside a power of two: many sums nearly tie
        power = 2.0 ** np.round(np.log2(128 / spread))
        weight_scale = power * (1 + rng.integers(-2, 3) * 2**-23) * out.scale / x.scale
    bias = rng.normal(0, 0.3 * spread)
    return {
        "weight": torch.from_numpy(weight),
        "bias": torch.from_numpy(np.float32(bias).astype(np.int32)),
        "weight_scale": torch.from_numpy(weight_scale.astype(np.float32)),
    }


def random_images(shape, grid, rng, *, spread=1.0):
    """Float images whose values cover a grid, and leave it at both ends."""
    low, high = grid.low * grid.scale, grid.high * grid.scale
    middle, reach = (low + high) / 2, (high - low) / 2 * 1.05 * spread
    values = rng.uniform(middle - reach, middle + reach, shape)
    return torch.from_numpy(values.astype(np.float32))


def differences(graph, images, *, threads=1, **settings):
    """Layer -> how many of its codes onnxruntime computes otherwise, of layers where any are.

    The scores are taken from a run without further outputs; they stand under "scores".
    """
    model = export_quantized(graph, tuple(images.shape), **settings)
    expected = all_values(graph, images)
    (scores,) = run(model, images, threads=threads)
    wrong = {"scores": int((scores != expected.pop("scores")).sum())}
    wrong |= {
        name: int((found != expected[name]).sum())
        for name, found in run_inside(model, list(expected), images, threads=threads).items()
    }
    return {name: count for name, count in wrong.items() if count}


def all_values(graph, images):
    """Layer -> codes that it gives, and "scores"."""
    recorder = _Recorder(graph)
    with torch.inference_mode():
        scores = recorder.run(images)
    return {**recorder.found, "scores": scores.numpy()}


def run(model, images, *, threads=1):
    """What onnxruntime gives."""
    session = open_session(model.SerializeToString(), where="test", threads=threads)
    return run_session(session, images.numpy(), where="test")


def run_inside(model, names, images, *, threads=1):
    """Tensor -> its value in onnxruntime, for tensors inside a model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return dict(zip(names, run(copy, images, threads=threads), strict=True))


class _Recorder(fx.Interpreter):
    def __init__(self, graph):
        super().__init__(graph)
        self.found = {}

    def run_node(self, n):
        value = super().run_node(n)
        if n.op == "call_module":
            op = self.module.get_submodule(n.target)
            assert isinstance(op, IntegerOp)
            if op.out is not None:
                codes = value.numpy() + op.out.zero_point
                assert codes.min() >= 0
                assert codes.max() < 2**op.out.bits
                self.found[n.target] = codes.copy()
        return value
