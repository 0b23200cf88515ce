"""Each integer operation beside onnxruntime's own kernel: not one code may differ."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from integer_graphs import (
    differences,
    graph_of,
    one_op,
    random_conv,
    random_grid,
    random_images,
    random_linear,
    run,
    scale,
    two_inputs,
)

from hatcli.export.quantized import export_quantized
from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.arithmetic import IntAdd, IntConcat, IntMultiply, Requantize
from hatcli.quantize.integer.exact import LARGEST_BIAS, float32_integer
from hatcli.quantize.integer.floats import Dequantize, Quantize
from hatcli.quantize.integer.maps import (
    IntClamp,
    IntFlatten,
    IntGlobalAvgPool,
    IntMaxPool2d,
    IntPad,
    IntPadChannels,
    IntUpsampleNearest,
)
from hatcli.quantize.integer.products import IntConv2d

randoms = st.integers(0, 2**32 - 1).map(np.random.default_rng)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
SIDES = st.integers(1, 12)


def property_test(*, examples=25):
    """A test on the same examples each time, and a slow one on ten times as many random ones."""

    def decorated(case):
        longer = pytest.param(10 * examples, marks=pytest.mark.slow)

        @pytest.mark.parametrize("count", [examples, longer])
        def test(count):
            setting = settings(
                max_examples=count, derandomize=count == examples, deadline=None, database=None
            )
            setting(given(st.data())(case))()

        return test

    return decorated


def require_same_codes(data, graph, shape, grid, rng):
    spread = data.draw(st.sampled_from([1.0, 1.0, 30.0]), "spread")
    images = random_images(shape, grid, rng, spread=spread)
    threads = data.draw(st.sampled_from([1, 2]), "threads")
    assert differences(graph, images, threads=threads) == {}


def shapes(data, channels, side=SIDES):
    return data.draw(st.integers(1, 3)), channels, data.draw(side), data.draw(side)


# --- convolutions and linear layers


def conv_case(data, rng, groups, inputs, outputs):
    kernel = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)), "kernel")
    dilation = data.draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)]), "dilation")
    padding = data.draw(st.tuples(*[st.integers(0, 3)] * 4), "padding")
    stride = data.draw(pairs, "stride")
    around = (padding[2] + padding[3], padding[0] + padding[1])
    smallest = [
        max(1, step * (length - 1) + 1 - zeros)
        for step, length, zeros in zip(dilation, kernel, around, strict=True)
    ]
    sides = [least + data.draw(st.integers(0, 9)) for least in smallest]
    x, out = random_grid(rng), random_grid(rng)
    fixed = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    op = random_conv(inputs, outputs, kernel, x=x, out=out, rng=rng, **fixed)
    if data.draw(st.booleans(), "large bias"):
        bias = rng.integers(-LARGEST_BIAS, LARGEST_BIAS + 1, outputs)
        op.bias.copy_(float32_integer(torch.from_numpy(bias).double()))
    require_same_codes(data, one_op(op, x), (data.draw(st.integers(1, 3)), inputs, *sides), x, rng)


@property_test(examples=40)
def test_dense_convolutions(data):
    inputs, outputs = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)), "channels")
    conv_case(data, data.draw(randoms), 1, inputs, outputs)


@property_test()
def test_grouped_convolutions(data):
    groups, outputs = data.draw(st.tuples(st.integers(2, 5), st.integers(1, 12)), "groups")
    conv_case(data, data.draw(randoms), groups, 8 * groups, outputs * groups)


@property_test(examples=40)
def test_depthwise_convolutions(data):
    channels, multiple = data.draw(st.tuples(st.integers(1, 70), st.sampled_from([1, 1, 1, 2])))
    conv_case(data, data.draw(randoms), channels, channels, channels * multiple)


@property_test()
def test_pointwise_convolutions(data):
    rng = data.draw(randoms)
    inputs, outputs = data.draw(st.tuples(st.integers(1, 200), st.integers(1, 80)), "channels")
    x, out = random_grid(rng), random_grid(rng)
    op = random_conv(inputs, outputs, 1, x=x, out=out, rng=rng)
    require_same_codes(data, one_op(op, x), shapes(data, inputs), x, rng)


@property_test()
def test_linear_layers(data):
    rng = data.draw(randoms)
    inputs, outputs = data.draw(st.tuples(st.integers(1, 400), st.integers(1, 70)), "features")
    x, out = random_grid(rng), random_grid(rng)
    op = random_linear(inputs, outputs, x=x, out=out, rng=rng)
    graph = graph_of(
        ("x", Quantize(out=x)), ("flat", IntFlatten(out=x)), ("op", op), ("end", Dequantize(x=out))
    )
    require_same_codes(data, graph, (data.draw(st.integers(1, 3)), inputs, 1, 1), x, rng)


@pytest.mark.parametrize("code", [0, 255])
@pytest.mark.parametrize("weight", [-127, 127])
@pytest.mark.parametrize("bias", [-LARGEST_BIAS, 0, LARGEST_BIAS])
def test_the_largest_sums_come_out_alike(code, weight, bias):
    inputs = 600  # 5400 products of 255 * 127 leave the range that float32 holds exactly
    x = Grid(1.0, 255 - code)
    out = Grid(scale(abs(bias) / 100 + 600 * 9 * 255), 128)
    op = IntConv2d(
        weight=torch.full((3, inputs, 3, 3), weight, dtype=torch.int8),
        bias=torch.full((3,), bias, dtype=torch.int32),
        weight_scale=torch.tensor([1.0, 1 / 3, 3.0]),
        x=x,
        out=out,
    )
    images = torch.full((1, inputs, 3, 4), code - x.zero_point, dtype=torch.float32)
    assert differences(one_op(op, x), images) == {}


# --- two tensors


def pair_of_grids(data, rng):
    """Two grids and the shape of their tensors; sizes from 1 to 40 meet every tail of a kernel.

    Where a result would exceed 2**31 steps of its grid, the kernel's conversion to int32 overflows:
    no calibrated grid is that small beside its inputs.
    """
    a = random_grid(rng)
    apart = data.draw(st.sampled_from([1.0, 1.0, 1.0, 2.0**-14, 2.0**14]), "ratio of the scales")
    b = random_grid(rng, Grid(a.scale * apart, 0))
    channels = data.draw(st.integers(1, 40), "channels")
    side = data.draw(st.sampled_from([st.just(1), st.integers(1, 9)]))
    return a, b, channels, shapes(data, 2 * channels, side)


@property_test(examples=50)
def test_sums_of_two_tensors(data):
    rng = data.draw(randoms)
    a, b, channels, shape = pair_of_grids(data, rng)
    op = IntAdd(a=a, b=b, out=random_grid(rng, a))
    # Of one number each, onnxruntime adds in another order, where a large constant cancels.
    assume(math.prod(shape) > 2 or b.scale < 2**10 * op.out.scale)
    require_same_codes(data, two_inputs(op, a, b, channels), shape, a, rng)


@property_test(examples=50)
def test_products_of_two_tensors(data):
    rng = data.draw(randoms)
    a, b, channels, shape = pair_of_grids(data, rng)
    out = random_grid(rng, Grid(a.scale * b.scale * 2.0 ** data.draw(st.integers(2, 9)), 0))
    op = IntMultiply(a=a, b=b, out=out)
    require_same_codes(data, two_inputs(op, a, b, channels), shape, a, rng)


@property_test()
def test_products_with_one_number_a_channel(data):
    rng = data.draw(randoms)
    x = random_grid(rng)
    gate = random_grid(rng, x)
    out = random_grid(rng, Grid(x.scale * gate.scale * 2.0 ** data.draw(st.integers(2, 9)), 0))
    graph = graph_of(
        ("x", Quantize(out=x), "images"),
        ("gate", IntGlobalAvgPool(x=x, out=gate), "x"),
        ("op", IntMultiply(a=x, b=gate, out=out), "x", "gate"),
        ("end", Dequantize(x=out)),
    )
    require_same_codes(data, graph, shapes(data, data.draw(st.integers(1, 40))), x, rng)


@property_test()
def test_tensors_with_themselves(data):
    rng = data.draw(randoms)
    x = random_grid(rng)
    kind = data.draw(st.sampled_from([IntAdd, IntMultiply]))
    unit = x if kind is IntAdd else Grid(x.scale * x.scale * 100, 0)
    out = random_grid(rng, unit)
    graph = graph_of(
        ("x", Quantize(out=x)),
        ("op", kind(a=x, b=x, out=out), "x", "x"),
        ("end", Dequantize(x=out)),
    )
    require_same_codes(data, graph, shapes(data, data.draw(st.integers(1, 40))), x, rng)


@property_test()
def test_joins_of_maps(data):
    rng = data.draw(randoms)
    a, b, channels, shape = pair_of_grids(data, rng)
    out = data.draw(st.sampled_from([a, b, random_grid(rng, a)]))
    op = IntConcat(inputs=[a, b], out=out)
    require_same_codes(data, two_inputs(op, a, b, channels), shape, a, rng)


# --- one tensor


@property_test()
def test_largest_codes_of_windows(data):
    rng = data.draw(randoms)
    x = random_grid(rng)
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)), "kernel")
    padding = tuple(data.draw(st.integers(0, length // 2)) for length in kernel)
    dilation = data.draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 2)]), "dilation")
    op = IntMaxPool2d(
        out=x,
        kernel=kernel,
        stride=data.draw(pairs, "stride"),
        padding=padding,
        dilation=dilation,
        ceil=data.draw(st.booleans(), "ceil"),
    )
    least = [step * (length - 1) + 1 for step, length in zip(dilation, kernel, strict=True)]
    sides = [length + data.draw(st.integers(0, 9)) for length in least]
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40)), *sides)
    require_same_codes(data, one_op(op, x), shape, x, rng)


@property_test(examples=50)
def test_means_of_maps(data):
    rng = data.draw(randoms)
    x = random_grid(rng)
    op = IntGlobalAvgPool(x=x, out=random_grid(rng, x))
    side = data.draw(st.sampled_from([st.integers(1, 4), st.integers(1, 40)]))
    shape = shapes(data, data.draw(st.integers(1, 40)), side)
    require_same_codes(data, one_op(op, x), shape, x, rng)


@property_test(examples=50)
def test_operations_that_move_codes(data):
    rng = data.draw(randoms)
    x = random_grid(rng)
    border = st.tuples(*[st.integers(0, 4)] * 4)
    op = data.draw(
        st.one_of(
            st.sampled_from([(2, 2), (3, 3), (2, 1), (1, 2), (1, 1)]).map(
                lambda factor: IntUpsampleNearest(out=x, factor=factor)
            ),
            st.builds(IntPad, out=st.just(x), padding=border, edge=st.booleans()),
            st.builds(IntPadChannels, out=st.just(x), count=st.integers(1, 5)),
            st.builds(IntClamp, out=st.just(x), top=st.integers(0, x.high)),
        )
    )
    require_same_codes(data, one_op(op, x), shapes(data, data.draw(st.integers(1, 40))), x, rng)


@property_test(examples=50)
def test_moves_to_another_grid(data):
    rng = data.draw(randoms)
    x = random_grid(rng)
    op = Requantize(x=x, out=random_grid(rng, x), relu=data.draw(st.booleans(), "relu"))
    require_same_codes(data, one_op(op, x), shapes(data, data.draw(st.integers(1, 40))), x, rng)


# --- between floats and codes


@pytest.mark.parametrize("size", [1, 3, 7, 15, 16, 17, 31, 33, 40, 127])
def test_a_value_half_way_goes_to_the_even_code(size):
    for grid in (Grid(0.5, 128), Grid(scale(0.1), 0), Grid(scale(1e-9), 255), Grid(3e5, 77)):
        codes = np.resize(np.arange(grid.low - 2, grid.high + 3), size)
        images = torch.from_numpy(np.float32((codes + 0.5) * grid.scale).reshape(1, 1, 1, size))
        graph = graph_of(("x", Quantize(out=grid)), ("end", Dequantize(x=grid)))
        assert differences(graph, images) == {}
    halves = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    assert Quantize(out=Grid(1.0, 9))(halves).tolist() == [-2, 0, 0, 2, 2]


def test_values_far_outside_and_infinite_ones_become_the_last_codes():
    images = torch.tensor([-float("inf"), -3e38, -1e9, 1e9, 3e38, float("inf")]).reshape(1, 1, 1, 6)
    for grid in (Grid(0.5, 128), Grid(scale(1e-9), 0), Grid(1e5, 255)):
        graph = graph_of(("x", Quantize(out=grid)), ("end", Dequantize(x=grid)))
        assert differences(graph, images) == {}


def test_all_codes_become_the_floats_of_onnxruntime():
    for grid in (Grid(scale(0.1), 13), Grid(scale(1 / 3), 0), Grid(scale(7e-8), 255)):
        images = (torch.arange(256) - grid.zero_point).float().mul(grid.scale).reshape(1, 1, 16, 16)
        graph = graph_of(("x", Quantize(out=grid)), ("end", Dequantize(x=grid)))
        (found,) = run(export_quantized(graph, images.shape), images)
        assert found.reshape(-1).tolist() == images.reshape(-1).tolist()
