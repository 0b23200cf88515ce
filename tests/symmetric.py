"""Graphs of target sym8: from nets, and beside rational arithmetic."""

from functools import cache

import torch
from integer_graphs import all_values
from rational import codes_of

from hatcli.events import finish
from hatcli.models import MODELS
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.grid import Grid
from hatcli.quantize.integer_graph import to_data
from hatcli.quantize.lower import lower
from hatcli.quantize.prepare import prepare
from hatcli.quantize.spec import read_spec


def spec(options=None, **more):
    return read_spec({"target": "sym8", "target_options": options or {}, **more})


def calibrated(net, images, **settings):
    graph = prepare(net, spec(**settings))
    findings = finish(calibrate(graph, [images], total=len(images)))
    return graph, findings


def lowered(net, images, **settings):
    return lower(calibrated(net, images, **settings)[0]).graph


def wrong_codes(graph, images):
    """Layer -> how many codes rational arithmetic gives otherwise, of layers where any are."""
    expected = codes_of(to_data(graph), images.numpy())
    found = all_values(graph, images)
    scores = expected[to_data(graph)["output"]]
    wrong = {"scores": int((found.pop("scores") != scores).sum())}
    for name, codes in found.items():
        zero = graph.get_submodule(name).out.zero_point
        wrong[name] = int((codes - zero != expected[name]).sum())
    return {name: count for name, count in wrong.items() if count}


@cache
def network(name):
    torch.manual_seed(0)
    net = MODELS.build({"type": name, "num_classes": 7})
    net = net.keep_head("4") if hasattr(net, "keep_head") else net
    images = torch.randn(4, 3, 64, 64)
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(images)
    return net.eval(), images


def grids_of(graph):
    found = []
    for op in graph.modules():
        for value in getattr(op, "settings", {}).values():
            found += [g for g in (value if isinstance(value, tuple) else [value])
                      if isinstance(g, Grid)]  # fmt: skip
    return found
