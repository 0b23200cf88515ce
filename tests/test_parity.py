"""Parity: equal codes are confirmed, and a planted difference is found where it begins."""

import numpy as np
import onnx
import pytest
import torch
from integer_graphs import graph_of, one_op, random_conv, random_images, random_linear
from onnx import numpy_helper
from random_graphs import random_graph

from hatcli.errors import CheckFailed, ModelFileError
from hatcli.export.parity import (
    Parity,
    compare_codes,
    differing_layers,
    is_promised,
)
from hatcli.export.quantized import export_quantized
from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.arithmetic import IntAdd, Requantize
from hatcli.quantize.integer.floats import Dequantize, FloatFunction, Quantize
from hatcli.quantize.integer.maps import IntFlatten, IntGlobalAvgPool

SHAPE = (2, 3, 9, 12)
X, Y = Grid(0.03125, 128), Grid(0.0625, 30)


def net():
    """Stem, two branches, one of them a chain of two, their sum, classifier."""
    rng = np.random.default_rng(4)
    return graph_of(
        ("input", Quantize(out=X)),
        ("stem.conv", random_conv(3, 16, 3, x=X, out=Y, rng=rng, padding=(1, 1, 1, 1))),
        ("left.conv1", random_conv(16, 16, 1, x=Y, out=Y, rng=rng), "stem.conv"),
        ("left.conv2", random_conv(16, 16, 3, x=Y, out=X, rng=rng, padding=(1, 1, 1, 1))),
        ("right.conv", random_conv(16, 16, 1, x=Y, out=Y, rng=rng), "stem.conv"),
        ("add", IntAdd(a=X, b=Y, out=Y), "left.conv2", "right.conv"),
        ("pool", IntGlobalAvgPool(x=Y, out=X)),
        ("flat", IntFlatten(out=X)),
        ("fc", random_linear(16, 5, x=X, out=Y, rng=rng)),
        ("scores.dequantize", Dequantize(x=Y)),
    )


def batches(number=2, grid=X):
    rng = np.random.default_rng(6)
    return [random_images(SHAPE, grid, rng) for _ in range(number)]


def saved(model, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def with_other_weights(model, layer, number=None):
    """Some weight codes of a layer changed, each from its end of the range to the other."""
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == f"{layer}.weight"]
    weight = numpy_helper.to_array(tensor).copy()
    flat = weight.reshape(-1)
    flat[:number] = np.where(flat[:number] > 0, -127, 127)
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return model


def test_equal_codes_are_confirmed(tmp_path):
    graph = net()
    path = saved(export_quantized(graph, SHAPE), tmp_path)
    found = compare_codes(path, graph, batches(3), where="model.onnx")
    layers = (
        sum(node.op == "call_module" for node in graph.graph.nodes) - 1
    )  # the scores are floats
    assert found == Parity(True, 6, layers, 30, 0, 0.0, 1.0)


def test_labels_are_compared_as_labels(tmp_path):
    graph, _ = random_graph(np.random.default_rng(0), flat=False)
    images = batches(2, graph.get_submodule("input").out)
    path = saved(export_quantized(graph, SHAPE, argmax=True), tmp_path)
    found = compare_codes(path, graph, images, where="model.onnx")
    places = sum(graph(batch)[:, 0].numel() for batch in images)
    assert found.layers > 0
    assert found == Parity(True, 4, found.layers, places, 0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("layer", "number"),
    [("stem.conv", 1), ("left.conv1", 1), ("left.conv2", None), ("right.conv", None)],
)
def test_changed_weights_are_found_in_their_layer(layer, number, tmp_path):
    graph = net()
    path = saved(with_other_weights(export_quantized(graph, SHAPE), layer, number), tmp_path)
    pattern = rf"model.onnx: differs from int_infer, first at {layer}: \d+ of 3456 codes"
    with pytest.raises(CheckFailed, match=pattern):
        compare_codes(path, graph, batches(), where="model.onnx")


@pytest.mark.parametrize("layer", ["stem.conv", "left.conv1", "left.conv2", "right.conv"])
def test_one_weight_that_no_score_shows_is_found_inside(layer, tmp_path):
    graph = net()
    path = saved(with_other_weights(export_quantized(graph, SHAPE), layer, 1), tmp_path)
    found = differing_layers(path, graph, batches()[0], where="model.onnx")
    assert next(name for name, wrong, _ in found if wrong) == layer
    with pytest.raises(CheckFailed, match=f"first at {layer}"):
        compare_codes(path, graph, batches(), where="model.onnx")


def test_labels_that_differ_fail(tmp_path):
    graph = net()
    model = export_quantized(graph, SHAPE, argmax=True)
    fc = [tensor for tensor in model.graph.initializer if tensor.name == "fc.bias"]
    fc[0].CopyFrom(numpy_helper.from_array(np.array([9, 8, 7, 6, 5], np.int32) * 10**6, "fc.bias"))
    path = saved(model, tmp_path)
    with pytest.raises(CheckFailed, match="first at fc"):
        compare_codes(path, graph, batches(4), where="model.onnx")


def test_all_layers_are_listed_in_order(tmp_path):
    graph = net()
    path = saved(export_quantized(graph, SHAPE), tmp_path)
    found = list(differing_layers(path, graph, batches()[0], where="model.onnx"))
    names = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert [name for name, _, _ in found] == names[:-1]
    assert [wrong for _, wrong, _ in found] == [0] * len(found)
    assert found[1] == ("stem.conv", 0, 2 * 16 * 9 * 12)


def test_layers_behind_a_difference_are_listed_too(tmp_path):
    graph = net()
    path = saved(with_other_weights(export_quantized(graph, SHAPE), "left.conv1", 1), tmp_path)
    found = differing_layers(path, graph, batches()[0], where="model.onnx")
    wrong = {name for name, count, _ in found if count}
    assert {"left.conv1", "left.conv2", "add"} <= wrong
    assert not wrong & {"input", "stem.conv", "right.conv"}


def test_more_layers_than_fit_in_one_run_are_listed(tmp_path):
    rng = np.random.default_rng(1)
    grids = [Grid(X.scale * (1 + number / 64), 128) for number in range(40)]
    steps = [
        (f"l{number}", Requantize(x=grids[number], out=grids[number + 1])) for number in range(39)
    ]
    graph = graph_of(("input", Quantize(out=X)), *steps, ("end", Dequantize(x=grids[-1])))
    images = random_images(SHAPE, X, rng)
    path = saved(export_quantized(graph, SHAPE), tmp_path)
    found = list(differing_layers(path, graph, images, where="model.onnx"))
    assert [name for name, _, _ in found] == ["input", *(name for name, _ in steps)]
    assert not any(wrong for _, wrong, _ in found)


def test_only_integers_of_8_bits_are_promised():
    wide = Grid(0.001, 9, 16)
    assert is_promised(net())
    assert not is_promised(one_op(Requantize(x=X, out=wide), X))
    assert not is_promised(graph_of(("x", FloatFunction(kind="ReLU", arguments={}))))


def test_without_promise_a_difference_is_reported_and_no_failure(tmp_path):
    wide = Grid(float(np.float32(1e-4)), 30000, 16)
    conv = random_conv(3, 4, 3, x=X, out=wide, rng=np.random.default_rng(3))
    graph = one_op(conv, X)
    path = saved(export_quantized(graph, SHAPE), tmp_path)
    (batch,) = batches(1)
    found = compare_codes(path, graph, [batch], where="model.onnx")
    assert not found.promised
    assert found.largest <= 1.001
    assert found.values == 2 * 4 * 7 * 10
    assert 0.9 < found.same_class <= 1


def test_without_promise_a_large_difference_is_a_figure_too(tmp_path):
    wide = Grid(float(np.float32(1e-4)), 30000, 16)
    conv = random_conv(3, 4, 3, x=X, out=wide, rng=np.random.default_rng(3))
    graph = one_op(conv, X)
    path = saved(with_other_weights(export_quantized(graph, SHAPE), "op", 1), tmp_path)
    found = compare_codes(path, graph, batches(1), where="model.onnx")
    assert found.largest > 100
    assert found.differing > 100


def test_no_image_is_no_proof(tmp_path):
    graph = net()
    path = saved(export_quantized(graph, SHAPE), tmp_path)
    with pytest.raises(CheckFailed, match="no image to compare on"):
        compare_codes(path, graph, [], where="model.onnx")


def test_another_model_is_refused(tmp_path):
    graph = net()
    other = one_op(random_conv(3, 4, 3, x=X, out=Y, rng=np.random.default_rng(1)), X)
    path = saved(export_quantized(other, SHAPE), tmp_path)
    with pytest.raises(CheckFailed, match=r"gives \(2, 4, 7, 10\), int_infer \(2, 5\)"):
        compare_codes(path, graph, batches(1), where="model.onnx")


def test_images_that_the_file_does_not_take_are_refused(tmp_path):
    graph = net()
    path = saved(export_quantized(graph, SHAPE), tmp_path)
    with pytest.raises(ModelFileError, match=r"model\.onnx: onnxruntime fails"):
        compare_codes(path, graph, [torch.zeros(2, 3, 5, 5)], where="model.onnx")


def test_the_file_stays_as_it_is(tmp_path):
    graph = net()
    path = saved(export_quantized(graph, SHAPE), tmp_path)
    before = path.read_bytes()
    list(differing_layers(path, graph, batches()[0], where="model.onnx"))
    compare_codes(path, graph, batches(1), where="model.onnx")
    assert path.read_bytes() == before
    assert len(onnx.load(str(path)).graph.output) == 1
