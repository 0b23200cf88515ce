"""Small prepared graphs, put together by hand: layers in a row, some with a second input."""

import torch
from torch import fx, nn

from hatcli.events import finish
from hatcli.quantize.layers import Add, QuantConv2d, QuantLinear
from hatcli.quantize.quantizers import ActivationQuantizer, WeightQuantizer

MIN_MAX = {"type": "min_max"}


def conv(inputs, outputs, kernel=3, groups=1, weight_bits=8, observer=MIN_MAX):
    padding = (kernel // 2,) * 4
    layer = QuantConv2d(nn.Conv2d(inputs, outputs, kernel, groups=groups), padding)
    layer.weight_quantizer = WeightQuantizer(outputs, weight_bits, observer)
    return layer


def linear(inputs, outputs, weight_bits=8, observer=MIN_MAX):
    layer = QuantLinear(nn.Linear(inputs, outputs))
    layer.weight_quantizer = WeightQuantizer(outputs, weight_bits, observer)
    return layer


def quantizer(activation=None, bits=8, observer=MIN_MAX):
    return ActivationQuantizer(activation, bits, observer)


def graph_of(steps):
    """A prepared graph of (name, module, *names of inputs); without them, of the step before."""
    root, graph = nn.Module(), fx.Graph()
    nodes = {"images": graph.placeholder("images")}
    last = "images"
    for name, module, *inputs in steps:
        parent, _, child = name.rpartition(".")
        root.get_submodule(parent).add_module(child, module)
        nodes[name] = graph.call_module(name, tuple(nodes[source] for source in inputs or [last]))
        last = name
    graph.output(nodes[last])
    return fx.GraphModule(root, graph).eval()


def residual_net(weight_bits=8, observer=MIN_MAX, seed=0):
    """Stem, a depthwise and a pointwise layer with a shortcut, pooling, classifier; 11 nodes."""
    torch.manual_seed(seed)
    kinds = {"weight_bits": weight_bits}
    return graph_of(
        [
            ("input_quantizer", quantizer(observer=observer)),
            ("stem", conv(3, 16, **kinds)),
            ("stem.output_quantizer", quantizer("relu6", observer=observer)),
            ("depthwise", conv(16, 16, groups=16, **kinds)),
            ("depthwise.output_quantizer", quantizer("relu", observer=observer)),
            ("pointwise", conv(16, 16, 1, **kinds)),
            ("pointwise.output_quantizer", quantizer(observer=observer)),
            ("add", Add(), "pointwise.output_quantizer", "stem.output_quantizer"),
            ("add.output_quantizer", quantizer("relu", observer=observer)),
            ("pool", nn.AdaptiveAvgPool2d(1)),
            ("pool.output_quantizer", quantizer(observer=observer)),
            ("flatten", nn.Flatten(1)),
            ("classifier", linear(16, 5, **kinds)),
            ("classifier.output_quantizer", quantizer(observer=observer)),
        ]
    )


def finished(job):
    """The result of a job and its events."""
    events = []
    return finish(job, events.append), events
