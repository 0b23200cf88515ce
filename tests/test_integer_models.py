"""Every shipped network as integers: the same codes here and in onnxruntime."""

from functools import cache

import pytest
import torch

from hatcli.events import finish
from hatcli.export.fusion import inspect_fusion
from hatcli.export.parity import compare_codes
from hatcli.export.quantized import export_quantized
from hatcli.models import MODELS
from hatcli.quantize.bias_correction import correct_biases
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.integer.products import IntConv2d
from hatcli.quantize.lower import lower
from hatcli.quantize.prepare import prepare
from hatcli.quantize.spec import read_spec

SHIPPED = [name for name in MODELS.names() if MODELS.part(name).module.startswith("hatcli.")]


@cache
def quantized(name, upsample=None):
    """A network of random weights with settled norms, as a calibrated graph."""
    torch.manual_seed(0)
    model = MODELS.build({"type": name} | ({"upsample": upsample} if upsample else {}))
    model = model.keep_head("4") if hasattr(model, "keep_head") else model
    images = torch.randn(8, 3, 64, 64)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(images)
    graph = prepare(model.eval(), read_spec({}))
    finish(calibrate(graph, [images], total=8))
    finish(correct_biases(graph, [images]))
    return model, graph


@pytest.mark.parametrize("name", SHIPPED)
def test_onnxruntime_gives_the_codes_of_int_infer(name, tmp_path):
    model, graph = quantized(name)
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    integers = lower(graph).graph
    path = tmp_path / "model.onnx"
    exported = export_quantized(integers, images.shape, dynamic="batch")
    path.write_bytes(exported.SerializeToString())
    found = compare_codes(path, integers, [images], where=name)
    assert found.promised
    assert found.differing == 0
    assert found.layers > 20
    fusion = inspect_fusion(path, where=name)
    assert fusion.float_layers == ()
    convolutions = sum(isinstance(op, IntConv2d) for op in integers.modules())
    assert fusion.kernels["QLinearConv"] == convolutions
    with torch.inference_mode():
        wanted, got = model(images), integers(images)
    noise = (wanted - got).pow(2).mean() / wanted.var()
    assert noise < 0.2  # random weights of many layers are the hard case


@pytest.mark.parametrize("upsample", ["bilinear", "nearest"])
def test_every_tensor_of_unet_is_equal_at_three_shapes(upsample, tmp_path):
    _, graph = quantized("unet", upsample)
    integers = lower(graph).graph
    path = tmp_path / "unet.onnx"
    shapes = [(1, 3, 128, 192), (2, 3, 64, 64), (1, 3, 64, 320)]
    exported = export_quantized(integers, shapes[0], argmax=True, dynamic="both", size_divisor=64)
    path.write_bytes(exported.SerializeToString())
    for shape in shapes:
        found = compare_codes(path, integers, [torch.randn(shape)], where="unet")
        assert (found.differing, found.layers) == (0, sum(1 for _ in codes(integers)))


def codes(graph):
    for node in graph.graph.nodes:
        if node.op == "call_module" and graph.get_submodule(node.target).out is not None:
            yield node
