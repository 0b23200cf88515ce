"""Integer graphs as ONNX files: legal, as fast as they can be, and the same numbers."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from integer_graphs import (
    all_values,
    differences,
    graph_of,
    one_op,
    random_conv,
    random_grid,
    random_images,
    random_linear,
    run,
    run_inside,
    scale,
    two_inputs,
)
from onnxruntime import InferenceSession, SessionOptions
from random_graphs import random_graph

from hatcli.errors import HatError, UsageError
from hatcli.export.onnx import INPUT, LABELS, SCORES, weights_sha256
from hatcli.export.parity import compare_codes
from hatcli.export.quantized import _EMITTERS, OPSET_OF_16_BITS, _Writer, export_quantized
from hatcli.quantize.grid import Grid
from hatcli.quantize.integer import floats
from hatcli.quantize.integer.arithmetic import IntAdd, IntConcat, IntMultiply, Requantize
from hatcli.quantize.integer.base import IntegerOp, RescalingOp
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
from hatcli.quantize.integer.products import IntConv2d, IntLinear
from hatcli.quantize.integer_graph import OPS

SHAPE = (2, 3, 9, 12)


def net(seed=0, flat=False, layers=12):
    rng = np.random.default_rng(seed)
    graph, grid = random_graph(rng, layers=layers, flat=flat)
    return graph, random_images(SHAPE, grid, rng)


def opset(model):
    return next(entry.version for entry in model.opset_import if entry.domain == "")


# --- the file


@pytest.mark.parametrize("seed", range(25))
def test_a_model_of_many_layers_gives_the_same_codes(seed):
    graph, images = net(seed, flat=bool(seed % 2))
    onnx.checker.check_model(export_quantized(graph, SHAPE), full_check=True)
    assert differences(graph, images, threads=1 + seed % 2) == {}


@pytest.mark.slow
@pytest.mark.parametrize("start", range(100, 1100, 100))
def test_many_models_of_many_layers_give_the_same_codes(start):
    for seed in range(start, start + 100):
        graph, images = net(seed, flat=bool(seed % 2))
        assert differences(graph, images, threads=1 + seed % 2) == {}, seed


@pytest.mark.parametrize("argmax", [False, True])
def test_input_and_output_are_what_the_file_says(argmax):
    graph, images = net()
    model = export_quantized(graph, SHAPE, argmax=argmax, metadata={"hat.config": "a: 1"})
    onnx.checker.check_model(model, full_check=True)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.shape, taken.type) == (INPUT, list(SHAPE), "tensor(float)")
    assert given.name == (LABELS if argmax else SCORES)
    assert given.type == ("tensor(int64)" if argmax else "tensor(float)")
    (found,) = session.run(None, {INPUT: images.numpy()})
    assert given.shape == list(found.shape)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert entries == {"hat.config": "a: 1", "hat.weights_sha256": weights_sha256(model)}
    assert model.producer_name == "hat"


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("dynamic", ["none", "batch", "size", "both"])
def test_open_sizes_take_other_images(dynamic, flat):
    graph, _ = net(3, flat=flat)
    grid = graph.get_submodule("input").out
    model = export_quantized(graph, SHAPE, dynamic=dynamic)
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        "none": [],
        "batch": [(1, 3, 9, 12)],
        "size": [(2, 3, 14, 7)],
        "both": [(5, 3, 20, 8)],
    }
    for shape in [SHAPE, *shapes[dynamic]]:
        other = random_images(shape, grid, np.random.default_rng(1))
        expected = all_values(graph, other)["scores"]
        assert np.array_equal(run(model, other)[0], expected)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    named = [bool(dim.dim_param) for dim in dims]
    batch, size = dynamic in ("batch", "both"), dynamic in ("size", "both")
    assert named == [batch, False, size, size]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("flat", [False, True])
def test_labels_are_the_classes_of_the_largest_score_the_first_of_equals(seed, flat):
    graph, _ = net(seed, flat=flat)
    grid = graph.get_submodule("input").out
    images = random_images((2, 3, 9, 12), grid, np.random.default_rng(seed), spread=0.03)
    scores = graph(images)
    model = export_quantized(graph, SHAPE, argmax=True)
    assert model.graph.node[-1].op_type == "ArgMax"
    (labels,) = run(model, images)
    assert labels.dtype == np.int64
    assert np.array_equal(labels, scores.argmax(1, keepdim=True).numpy())


def test_equal_scores_give_the_first_class():
    x = Grid(1.0, 0)
    graph = graph_of(("x", Quantize(out=x)), ("end", Dequantize(x=x)))
    images = torch.tensor([[3, 9, 9], [9, 9, 9], [1, 0, 1], [0, 300, 255]]).float()
    images = images.reshape(4, 3, 1, 1)
    (labels,) = run(export_quantized(graph, (4, 3, 1, 1), argmax=True), images)
    assert labels.reshape(-1).tolist() == [1, 0, 0, 1]
    assert graph(images).argmax(1).reshape(-1).tolist() == [1, 0, 0, 1]


def test_every_operation_has_an_onnx_form():
    assert set(_EMITTERS) == set(OPS.values())
    assert set(_EMITTERS) == {
        kind for kind in subclasses(IntegerOp) - {RescalingOp} if not kind.__name__.startswith("_")
    }


def subclasses(kind):
    return {found for child in kind.__subclasses__() for found in {child} | subclasses(child)}


def test_an_operation_without_onnx_form_is_named():
    class IntUnknown(IntClamp):
        pass

    with pytest.raises(HatError, match="op: IntUnknown has no ONNX form"):
        export_quantized(one_op(IntUnknown(out=Grid(1.0, 0), top=3), Grid(1.0, 0)), SHAPE)


@pytest.mark.parametrize("settings", [{"opset": 17}, {"opset": 99}, {"dynamic": "all"}])
def test_what_no_file_can_have_is_refused(settings):
    with pytest.raises(UsageError):
        export_quantized(net()[0], SHAPE, **settings)


# --- what onnxruntime makes of it


def kernels(model, tmp_path):
    options = SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(str(tmp_path / "optimised.onnx"))
    return Counter(node.op_type for node in optimised.graph.node)


@pytest.mark.parametrize("seed", range(6))
def test_all_products_become_integer_kernels(seed, tmp_path):
    graph, _ = net(seed, flat=True)
    found = kernels(export_quantized(graph, SHAPE), tmp_path)
    kinds = Counter(type(op) for op in graph.modules())
    assert found["QLinearConv"] == kinds[IntConv2d]
    assert found["QGemm"] == kinds[IntLinear] == 1
    assert found["QLinearGlobalAveragePool"] == kinds[IntGlobalAvgPool]
    assert found["QLinearAdd"] == kinds[IntAdd]
    assert found["QLinearMul"] == kinds[IntMultiply]
    assert not {"Conv", "Gemm", "Add", "GlobalAveragePool"} & set(found)


def test_further_outputs_leave_the_kernels_as_they_are(tmp_path):
    graph, _ = net(7, flat=True)
    model = export_quantized(graph, SHAPE)
    plain = kernels(model, tmp_path)
    for node in graph.graph.nodes:
        op = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if op is not None and op.out is not None:
            model.graph.output.append(onnx.ValueInfoProto(name=node.target))
    further = kernels(model, tmp_path)
    assert further["QGemm"] == plain["QGemm"] == 1
    assert not {"Conv", "Gemm", "Add", "Mul", "GlobalAveragePool"} & set(further)


def test_two_grids_in_a_row_stay_two():
    """onnxruntime would take Q, DQ, Q, DQ for one pair on a grid of its own."""
    first, second = Grid(scale(0.1), 100), Grid(scale(0.037), 31)
    graph = one_op(Requantize(x=first, out=second), first)
    images = random_images((1, 3, 30, 30), first, np.random.default_rng(0))
    (found,) = run(export_quantized(graph, images.shape), images)
    assert np.array_equal(found, graph(images).numpy())


# --- 16 bits

WIDE, NARROW = Grid(scale(1e-3), 30000, 16), Grid(scale(0.2), 100)
RNG = np.random.default_rng(8)
WIDE_OPS = {
    "conv to 16": lambda: one_op(random_conv(4, 5, 3, x=NARROW, out=WIDE, rng=RNG), NARROW),
    "conv from 16": lambda: one_op(wide_conv(), WIDE),
    "add": lambda: two_inputs(IntAdd(a=WIDE, b=NARROW, out=WIDE), WIDE, NARROW, 2),
    "add to 8": lambda: two_inputs(IntAdd(a=WIDE, b=NARROW, out=NARROW), WIDE, NARROW, 2),
    "multiply": lambda: two_inputs(IntMultiply(a=WIDE, b=NARROW, out=WIDE), WIDE, NARROW, 2),
    "multiply to 8": lambda: two_inputs(IntMultiply(a=WIDE, b=WIDE, out=NARROW), WIDE, WIDE, 2),
    "concat": lambda: two_inputs(IntConcat(inputs=[WIDE, NARROW], out=WIDE), WIDE, NARROW, 2),
    "joined as they are": lambda: two_inputs(IntConcat(inputs=[WIDE] * 2, out=WIDE), WIDE, WIDE, 2),
    "requantize": lambda: one_op(Requantize(x=WIDE, out=NARROW), WIDE),
    "requantize with relu": lambda: one_op(Requantize(x=NARROW, out=WIDE, relu=True), NARROW),
    "mean": lambda: one_op(IntGlobalAvgPool(x=WIDE, out=WIDE), WIDE),
    "mean to 8": lambda: one_op(IntGlobalAvgPool(x=WIDE, out=NARROW), WIDE),
    "max pool": lambda: one_op(
        IntMaxPool2d(
            out=WIDE, kernel=(2, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 1), ceil=False
        ),
        WIDE,
    ),
    "upsample": lambda: one_op(IntUpsampleNearest(out=WIDE, factor=(2, 3)), WIDE),
    "pad": lambda: one_op(IntPad(out=WIDE, padding=(1, 0, 2, 1), edge=False), WIDE),
    "edge": lambda: one_op(IntPad(out=WIDE, padding=(1, 0, 2, 1), edge=True), WIDE),
    "channels": lambda: one_op(IntPadChannels(out=WIDE, count=2), WIDE),
    "clamp": lambda: one_op(IntClamp(out=WIDE, top=9000), WIDE),
    "linear": lambda: graph_of(
        ("x", Quantize(out=WIDE)),
        ("flat", IntFlatten(out=WIDE)),
        ("op", random_linear(4 * 6 * 7, 5, x=WIDE, out=WIDE, rng=RNG)),
        ("end", Dequantize(x=WIDE)),
    ),
}


def wide_conv():
    return random_conv(4, 5, 3, x=WIDE, out=NARROW, rng=RNG)


@pytest.mark.parametrize("name", WIDE_OPS)
def test_tensors_of_16_bits_differ_by_one_code_at_most(name, tmp_path):
    graph = WIDE_OPS[name]()
    images = random_images((2, 4, 6, 7), WIDE, np.random.default_rng(2))
    model = export_quantized(graph, images.shape)
    onnx.checker.check_model(model, full_check=True)
    assert opset(model) >= OPSET_OF_16_BITS
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    found = compare_codes(path, graph, [images], where="m.onnx")
    assert not found.promised
    assert found.largest <= 1.001
    expected = all_values(graph, images)
    inside = run_inside(model, [key for key in expected if key != "scores"], images)
    for layer, codes in inside.items():
        assert np.abs(codes.astype(np.float64) - expected[layer]).max() <= 1, layer


def test_labels_of_scores_of_16_bits():
    graph = one_op(random_conv(4, 5, 3, x=NARROW, out=WIDE, rng=RNG), NARROW)
    images = random_images((2, 4, 6, 7), NARROW, np.random.default_rng(2))
    (labels,) = run(export_quantized(graph, images.shape, argmax=True), images)
    assert np.mean(labels == graph(images).argmax(1, keepdim=True).numpy()) > 0.98


# --- layers in float

PICKED = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}
ARGUMENTS = {
    "LeakyReLU": [{"negative_slope": 0.2}],
    "Softmax": [{"dim": 1}, {"dim": -1}],
    "Flatten": [{"start_dim": 1, "end_dim": -1}],
    "ZeroPad2d": [{"pad": (1, 0, 2, 3)}],
    "MaxPool2d": [
        {**PICKED, "dilation": (1, 2), "ceil_mode": False},
        {**PICKED, "dilation": (1, 1), "ceil_mode": True},
    ],
    "AvgPool2d": [PICKED],
    "AdaptiveAvgPool2d": [{"output_size": 1}],
    "Upsample": [
        {"scale_factor": 2.0, "mode": "nearest"},
        {"scale_factor": (2.0, 3.0), "mode": "nearest"},
        {"scale_factor": 2.0, "mode": "bilinear", "align_corners": False},
        {"scale_factor": (2.0, 3.0), "mode": "bilinear", "align_corners": True},
    ],
}
FUNCTIONS = [
    (kind, arguments) for kind in floats._FUNCTIONS for arguments in ARGUMENTS.get(kind, [{}])
]


def require_close(graph, images):
    model = export_quantized(graph, images.shape)
    onnx.checker.check_model(model, full_check=True)
    expected = graph(images).numpy()
    (found,) = run(model, images)
    assert found.shape == expected.shape
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(expected) > 0


@pytest.mark.parametrize(("kind", "arguments"), FUNCTIONS)
def test_functions_in_float_are_those_of_onnxruntime(kind, arguments):
    op = FloatFunction(kind=kind, arguments=arguments)
    images = torch.randn(2, 4, 7, 9, generator=torch.Generator().manual_seed(0)) * 5
    if kind not in ("Add", "Multiply", "Concat"):
        require_close(graph_of(("op", op)), images)
        return
    second = FloatFunction(kind="Sigmoid", arguments={})
    require_close(graph_of(("second", second), ("op", op, "images", "second")), images)


def test_an_unknown_function_is_refused():
    graph = graph_of(("op", FloatFunction(kind="ReLU", arguments={})))
    graph.get_submodule("op").kind = "Swish"
    with pytest.raises(HatError, match="Swish in float has no ONNX form"):
        _Writer(graph).write(argmax=False)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_in_float_are_those_of_onnxruntime(groups):
    op = FloatConv2d(
        weight=torch.randn(8, 4 // groups, 3, 2),
        bias=torch.randn(8),
        stride=(2, 1),
        padding=(1, 0, 2, 1),
        dilation=(1, 2),
        groups=groups,
    )
    require_close(graph_of(("op", op)), torch.randn(2, 4, 7, 9))


def test_linear_layers_in_float_are_those_of_onnxruntime():
    flat = FloatFunction(kind="Flatten", arguments={"start_dim": 1, "end_dim": -1})
    op = FloatLinear(weight=torch.randn(5, 36), bias=torch.randn(5))
    require_close(graph_of(("flat", flat), ("op", op)), torch.randn(3, 4, 3, 3))


def test_a_float_layer_between_integers():
    x, y = random_grid(RNG), Grid(scale(1 / 255), 0)
    graph = graph_of(
        ("x", Quantize(out=x)),
        ("op.dequantize", Dequantize(x=x)),
        ("op", FloatFunction(kind="Sigmoid", arguments={})),
        ("op.output_quantizer", Quantize(out=y)),
        ("end", Dequantize(x=y)),
    )
    images = random_images((2, 3, 8, 8), x, np.random.default_rng(0))
    wrong = differences(graph, images)
    assert wrong.get("x", 0) == 0
    assert wrong.get("scores", 0) <= images.numel() * 0.01
