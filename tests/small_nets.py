"""Nets of a few layers, how to prepare them, and what a prepared graph calls."""

from collections import OrderedDict

import torch
from tiny_nets import randomize_norms
from torch import nn

from hatcli.quantize.quantizers import ActivationQuantizer
from hatcli.quantize.spec import read_spec

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A forward given as a function of the module and its input, over named layers."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


def conv(inputs=3, outputs=3, kernel=1, **more):
    return nn.Conv2d(inputs, outputs, kernel, **more)


def row(**layers):
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(layers))
    if not any(getattr(layer, "running_mean", 0) is None for layer in layers.values()):
        randomize_norms(net)
    return net.eval()


def net_of(run, **layers):
    torch.manual_seed(0)
    layers = layers or {"conv": conv(3, 3, 3, padding=1)}
    net = Net(run, **layers)
    randomize_norms(net)
    return net.eval()


def spec_of(*floats, **more):
    return read_spec({"exceptions": [{"layers": name, "float": True} for name in floats], **more})


def calls(graph):
    """What the nodes call, in order."""
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]


def layers_of(graph):
    return [name for name in calls(graph) if not name.endswith("_quantizer")]


def quantizer(graph, layer) -> ActivationQuantizer:
    return graph.get_submodule(f"{layer}.output_quantizer")


def outputs(model, images=IMAGES):
    with torch.no_grad():
        return model(images.clone())  # some models change them


def assert_same(graph, model, images=IMAGES, rtol=1e-5):
    expected = outputs(model, images)
    largest = expected.abs().max().item()
    assert largest > 0
    torch.testing.assert_close(outputs(graph, images), expected, rtol=0, atol=rtol * largest)


def with_relu(x):
    """A map that two layers take, one of them a ReLU."""
    return sum([x, x.relu(), x])
