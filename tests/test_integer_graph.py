"""Integer graphs as data: to a checkpoint and back, and what damaged ones are answered."""

import copy

import numpy as np
import pytest
import torch
from integer_graphs import (
    all_values,
    graph_of,
    one_op,
    random_conv,
    random_images,
    random_linear,
    two_inputs,
)
from random_graphs import random_graph

from hatcli.engine.checkpoint import load_checkpoint, save_checkpoint
from hatcli.errors import CheckpointError
from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.arithmetic import IntAdd, IntConcat, IntMultiply, Requantize
from hatcli.quantize.integer.base import RescalingOp
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
from hatcli.quantize.integer_graph import OPS, from_data, to_data

X, Y, Z = Grid(0.03125, 128), Grid(0.0625, 3), Grid(0.25, 200)
RNG = np.random.default_rng(0)


def flat(op):
    return graph_of(("x", Quantize(out=X)), ("flat", IntFlatten(out=X)), ("op", op))


CASES = {
    "Quantize": lambda: graph_of(("x", Quantize(out=X)), ("end", Dequantize(x=X))),
    "Dequantize": lambda: graph_of(("x", Quantize(out=Y)), ("deep.end", Dequantize(x=Y))),
    "IntConv2d": lambda: one_op(
        random_conv(
            4, 6, (3, 2), x=X, out=Y, rng=RNG, groups=2, stride=(2, 1), padding=(1, 0, 2, 1),
            dilation=(1, 2),
        ),
        X,
    ),
    "IntLinear": lambda: flat(random_linear(4 * 36, 5, x=X, out=Y, rng=RNG)),
    "IntAdd": lambda: two_inputs(IntAdd(a=X, b=Y, out=Z), X, Y, 2),
    "IntMultiply": lambda: two_inputs(IntMultiply(a=X, b=Y, out=Z), X, Y, 2),
    "IntConcat": lambda: two_inputs(IntConcat(inputs=[X, Y], out=Z), X, Y, 2),
    "Requantize": lambda: one_op(Requantize(x=X, out=Y, relu=True), X),
    "IntMaxPool2d": lambda: one_op(
        IntMaxPool2d(
            out=X, kernel=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), ceil=True
        ),
        X,
    ),
    "IntGlobalAvgPool": lambda: one_op(IntGlobalAvgPool(x=X, out=Y), X),
    "IntUpsampleNearest": lambda: one_op(IntUpsampleNearest(out=X, factor=(2, 1)), X),
    "IntPad": lambda: one_op(IntPad(out=X, padding=(1, 2, 0, 3), edge=True), X),
    "IntPadChannels": lambda: one_op(IntPadChannels(out=X, count=2), X),
    "IntFlatten": lambda: flat(IntFlatten(out=X)),
    "IntClamp": lambda: one_op(IntClamp(out=X, top=77), X),
    "FloatConv2d": lambda: graph_of(
        (
            "op",
            FloatConv2d(
                weight=torch.randn(6, 2, 3, 1), bias=torch.randn(6), stride=(1, 2),
                padding=(1, 0, 2, 1), dilation=(1, 1), groups=2,
            ),
        )
    ),
    "FloatLinear": lambda: graph_of(
        ("flat", FloatFunction(kind="Flatten", arguments={"start_dim": 1, "end_dim": -1})),
        ("op", FloatLinear(weight=torch.randn(3, 4 * 36), bias=torch.randn(3))),
    ),
    "FloatFunction": lambda: graph_of(
        (
            "op",
            FloatFunction(
                kind="MaxPool2d",
                arguments={
                    "kernel_size": (3, 2), "stride": (1, 1), "padding": (1, 0),
                    "dilation": (1, 1), "ceil_mode": False,
                },
            ),
        )
    ),
}  # fmt: skip


def images(channels=4):
    return random_images((2, channels, 6, 6), X, np.random.default_rng(3))


def require_equal(restored, graph, values):
    expected, found = all_values(graph, values), all_values(restored, values)
    assert list(found) == list(expected)
    for name, codes in expected.items():
        assert np.array_equal(found[name], codes), name
        assert found[name].dtype == codes.dtype


@pytest.mark.parametrize("name", OPS)
def test_a_graph_comes_back_from_a_checkpoint(name, tmp_path):
    graph = CASES[name]()
    assert any(type(module) is OPS[name] for module in graph.modules())
    save_checkpoint(tmp_path / "c.pth", {"integer_graph": to_data(graph)})
    restored = from_data(load_checkpoint(tmp_path / "c.pth")["integer_graph"])
    require_equal(restored, graph, images())
    for kept, op in zip(restored.modules(), graph.modules(), strict=True):
        if hasattr(op, "settings"):
            assert repr(kept) == repr(op)


@pytest.mark.parametrize("name", OPS)
def test_a_graph_by_the_rule_of_a_target_comes_back_from_a_checkpoint(name, tmp_path):
    document = to_data(CASES[name]())
    ruled = [node for node in document["nodes"] if issubclass(OPS[node["op"]], RescalingOp)]
    for node in ruled:
        rule = {"type": "sym8", "multiplier_bits": 24, "rounding": "half_even"}
        node["settings"] |= {"rule": rule, "clip": [0, node["settings"]["out"]["zero_point"] // 9]}
    graph = from_data(document)
    save_checkpoint(tmp_path / "c.pth", {"integer_graph": to_data(graph)})
    restored = from_data(load_checkpoint(tmp_path / "c.pth")["integer_graph"])
    require_equal(restored, graph, images())
    assert [repr(op) for op in restored.modules() if hasattr(op, "arithmetic")] == [
        repr(op) for op in graph.modules() if hasattr(op, "arithmetic")
    ]
    assert repr(restored).count("'rounding': 'half_even'") == len(ruled)


def test_no_case_is_left_over():
    assert set(CASES) == set(OPS)


@pytest.mark.parametrize("seed", range(6))
def test_a_graph_of_several_layers_comes_back_with_its_names(seed, tmp_path):
    rng = np.random.default_rng(seed)
    graph, grid = random_graph(rng, layers=10)
    save_checkpoint(tmp_path / "c.pth", {"integer_graph": to_data(graph)})
    restored = from_data(load_checkpoint(tmp_path / "c.pth")["integer_graph"])
    require_equal(restored, graph, random_images((2, 3, 9, 12), grid, rng))
    assert [node.target for node in restored.graph.nodes] == [
        node.target for node in graph.graph.nodes
    ]


def test_a_second_copy_is_the_same_document():
    graph, _ = random_graph(np.random.default_rng(1), layers=10)
    document = to_data(graph)
    again = to_data(from_data(document))
    for node, kept in zip(document["nodes"], again["nodes"], strict=True):
        assert {**node, "tensors": None} == {**kept, "tensors": None}
        assert list(node["tensors"]) == list(kept["tensors"])
        assert all(
            torch.equal(value, kept["tensors"][key]) for key, value in node["tensors"].items()
        )


# --- damaged documents


def conv_document():
    rng = np.random.default_rng(2)
    return to_data(one_op(random_conv(4, 6, 3, x=X, out=Y, rng=rng), X))


def change(document, *path, value=None, delete=False):
    changed = copy.deepcopy(document)
    part = changed
    for key in path[:-1]:
        part = part[key]
    if delete:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return changed


CONV = ("nodes", 1)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_version_is_refused(version):
    with pytest.raises(CheckpointError, match=f"version {version!r}"):
        from_data(change(conv_document(), "version", value=version))


@pytest.mark.parametrize(
    "path",
    [
        ("input",),
        ("output",),
        ("nodes",),
        (*CONV, "name"),
        (*CONV, "op"),
        (*CONV, "inputs"),
        (*CONV, "settings"),
        (*CONV, "settings", "out"),
        (*CONV, "tensors"),
        (*CONV, "tensors", "weight"),
        ("nodes", 0),
    ],
)
def test_what_is_missing_is_refused(path):
    with pytest.raises(CheckpointError, match="integer graph is damaged"):
        from_data(change(conv_document(), *path, delete=True))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*CONV, "op"), "Module"),
        ((*CONV, "op"), ["IntConv2d"]),
        ((*CONV, "inputs"), ["nobody"]),
        ((*CONV, "inputs"), 7),
        ((*CONV, "inputs"), []),
        ((*CONV, "settings", "out"), None),
        ((*CONV, "settings", "out"), {"scale": 1.0, "zero_point": 0}),
        ((*CONV, "settings", "stride"), 2),
        ((*CONV, "settings", "out", "scale"), 0.0),
        ((*CONV, "settings", "out", "scale"), float("nan")),
        ((*CONV, "settings", "out", "scale"), "1"),
        ((*CONV, "settings", "x", "zero_point"), 256),
        ((*CONV, "settings", "x", "zero_point"), -1),
        ((*CONV, "settings", "x", "bits"), 7),
        ((*CONV, "settings", "surprise"), 1),
        ((*CONV, "settings"), [1, 2]),
        ((*CONV, "tensors", "surprise"), torch.zeros(1)),
        ((*CONV, "tensors", "weight"), None),
        ((*CONV, "tensors", "weight"), [1, 2]),
        ((*CONV, "tensors", "weight"), torch.zeros(())),
        ((*CONV, "tensors", "weight"), torch.zeros(6, 4, 3, 3)),
        ((*CONV, "tensors", "bias"), torch.zeros(3, dtype=torch.int32)),
        ((*CONV, "tensors", "bias"), torch.zeros(6)),
        ((*CONV, "tensors", "weight_scale"), torch.ones(())),
        ((*CONV, "name"), ""),
        ((*CONV, "name"), 3),
        ((*CONV, "name"), "a..b"),
        (("nodes", 0, "name"), "op"),
        (("nodes", 0), "op"),
        (("nodes",), 5),
        (("nodes",), None),
        (("output",), "nobody"),
        (("output",), ["end"]),
        (("input",), "not a name"),
        (("input",), 5),
    ],
)
def test_what_does_not_fit_is_refused(path, value):
    with pytest.raises(CheckpointError, match="integer graph is damaged"):
        from_data(change(conv_document(), *path, value=value))


@pytest.mark.parametrize("document", [None, [], "graph", 7])
def test_what_is_no_document_is_refused(document):
    with pytest.raises(CheckpointError):
        from_data(document)
