"""Sums of integers by the floating point units: exact, or done another way; requantized once."""

import contextlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_graphs import random_grid, random_linear, scale

from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.base import requantize
from hatcli.quantize.integer.exact import (
    EXACT,
    LARGEST_BIAS,
    choose_way,
    exact_arithmetic,
    float32_integer,
    largest_sum,
    split,
)
from hatcli.quantize.integer.products import IntConv2d, IntLinear

CPU = torch.device("cpu")
WIDE = Grid(scale(2**-16), 0, 16)  # so fine that a wrong sum is a wrong code

randoms = st.integers(0, 2**32 - 1).map(np.random.default_rng)
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


# --- the bound


@quick
@given(randoms, st.integers(1, 12), st.integers(0, 255))
def test_no_partial_sum_leaves_the_bound_in_any_order(rng, terms, zero_point):
    x = Grid(1.0, zero_point)
    weight = rng.integers(-127, 128, (3, terms))
    bound = largest_sum(torch.from_numpy(weight), x)
    largest = 0
    for _ in range(50):
        values = rng.choice([x.low, 0, x.high], terms)
        partial = np.cumsum((weight * values)[:, rng.permutation(terms)], axis=1)
        largest = max(largest, int(np.abs(partial).max()))
    assert largest <= bound


@quick
@given(randoms, st.integers(1, 12), st.integers(0, 255))
def test_some_order_reaches_the_bound(rng, terms, zero_point):
    x = Grid(1.0, zero_point)
    weight = rng.integers(-127, 128, (3, terms))
    ends = np.stack([weight * x.low, weight * x.high])
    positive = np.maximum(ends.max(0), 0).sum(1)
    negative = np.minimum(ends.min(0), 0).sum(1)
    reached = max(int(positive.max()), int(-negative.min()))
    assert largest_sum(torch.from_numpy(weight), x) == reached


@quick
@given(randoms, st.sampled_from(["dense", "grouped", "depthwise"]))
def test_a_convolution_stays_within_the_bound(rng, kind):
    groups = {"dense": 1, "grouped": 2, "depthwise": 4}[kind]
    x = Grid(1.0, int(rng.integers(0, 256)))
    weight = torch.from_numpy(rng.integers(-127, 128, (4, 4 // groups, 3, 3))).double()
    values = torch.from_numpy(rng.choice([x.low, x.high], (2, 4, 6, 6))).double()
    sums = torch.nn.functional.conv2d(values, weight, padding=1, groups=groups)
    assert int(sums.abs().max()) <= largest_sum(weight, x)


# --- split and bias


def test_all_weights_come_back_from_their_halves():
    weight = torch.arange(-128, 128).to(torch.int8)
    high, low = split(weight)
    assert (16 * high.int() + low.int()).tolist() == list(range(-128, 128))
    assert int(high.abs().max()) <= 8
    assert int(low.abs().max()) <= 8


@quick
@given(st.lists(st.floats(-1e12, 1e12).map(round), min_size=1, max_size=20))
def test_a_bias_is_the_nearest_integer_that_float32_holds(values):
    found = float32_integer(torch.tensor(values, dtype=torch.float64)).tolist()
    for value, bias in zip(values, found, strict=True):
        assert float(np.float32(bias)) == bias
        cut = min(max(value, -LARGEST_BIAS), LARGEST_BIAS)
        assert bias == int(np.float32(cut))
        assert abs(bias - cut) <= max(0, abs(cut) // EXACT)


# --- four ways to one sum


def reference(op, values):
    """The codes by a sum in int64."""
    weight, x = op.weight.numpy().astype(np.int64), values.astype(np.int64)
    if weight.ndim == 4:
        rows, columns = weight.shape[2:]
        windows = np.lib.stride_tricks.sliding_window_view(x, (rows, columns), axis=(2, 3))
        groups = op.groups
        parts = zip(np.split(windows, groups, axis=1), np.split(weight, groups), strict=True)
        total = np.concatenate([np.einsum("nihwkl,oikl->nohw", *part) for part in parts], axis=1)
        shape = (1, -1, 1, 1)
    else:
        total, shape = x @ weight.T, (1, -1)
    total = total + op.bias.numpy().astype(np.int64).reshape(shape)
    assert np.abs(total).max() < 2**31
    unit = np.float32(op.x.scale) * op.weight_scale.numpy() / np.float32(op.result.scale)
    product = total.astype(np.int32).astype(np.float32) * unit.reshape(shape)
    return np.rint(np.clip(product, op.result.low, op.result.high))


# The range of weights, of the bias, zero point and bits of the input for which each way is taken.
WAYS = {
    "float32": (-60, 60, 1000, 20, 8),
    "float32_then_bias": (-60, 60, 2**26, 20, 8),
    "split": (64, 127, 2**26, 3, 8),
    "float64": (-127, 127, 2**26, 900, 16),
}


@pytest.mark.parametrize("kind", ["conv", "grouped", "linear"])
@pytest.mark.parametrize("way", WAYS)
def test_each_way_gives_the_codes_of_an_int64_sum(way, kind):
    op, values = chosen_way(way, kind)
    assert op.way == way
    found = op(torch.from_numpy(values).float()).numpy()
    assert np.array_equal(found, reference(op, values))
    assert len(np.unique(found)) > 10


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_all_ways_that_are_exact_for_a_layer_agree(kind, monkeypatch):
    op, values = chosen_way("float32", kind)
    expected = reference(op, values)
    for way in WAYS:
        monkeypatch.setattr(type(op), "way", way)
        op._prepared = None
        assert np.array_equal(op(torch.from_numpy(values).float()).numpy(), expected)


@pytest.mark.parametrize("way", WAYS)
def test_sums_beside_ties_are_rounded_once(way):
    op, _ = chosen_way(way, "linear")
    op = IntLinear(
        weight=op.weight,
        bias=op.bias,
        weight_scale=torch.ones(6),
        x=op.x,
        out=Grid(64.0 if way == "float32" else 2048.0, 2**15, 16),
    )
    rng = np.random.default_rng(6)
    values = rng.integers(op.x.low, op.x.high + 1, (8000, op.weight.shape[1]))
    assert op.way == way
    assert np.array_equal(op(torch.from_numpy(values).float()).numpy(), reference(op, values))


def test_the_multiplier_of_each_channel_is_rounded_as_documented():
    rng = np.random.default_rng(7)
    x, out = Grid(scale(0.0173), 0), Grid(scale(0.00021), 2**15, 16)
    op = IntLinear(
        weight=torch.full((400, 1), 127, dtype=torch.int8),
        bias=torch.zeros(400, dtype=torch.int32),
        weight_scale=torch.from_numpy(rng.uniform(1e-3, 1e-2, 400).astype(np.float32)),
        x=x,
        out=out,
    )
    values = np.arange(256)[:, None]
    assert np.array_equal(op(torch.from_numpy(values).float()).numpy(), reference(op, values))


def chosen_way(way, kind, inputs=96):
    rng = np.random.default_rng(5)
    lowest, highest, largest_bias, zero_point, bits = WAYS[way]
    x = Grid(1.0, zero_point, bits)
    shape = {"conv": (6, inputs, 3, 3), "grouped": (6, inputs, 3, 3), "linear": (6, inputs * 9)}
    weight = rng.integers(lowest, highest + 1, shape[kind])
    bias = rng.integers(-largest_bias, largest_bias, 6)
    reach = max(float(np.abs(bias).max()), 1e5)
    tensors = {
        "weight": torch.from_numpy(weight).to(torch.int8),
        "bias": float32_integer(torch.from_numpy(bias).double()),
        "weight_scale": torch.from_numpy(rng.uniform(0.2, 1, 6).astype(np.float32)),
    }
    out = Grid(scale(reach / 2**15), 2**15, 16)
    if kind == "linear":
        values = rng.integers(x.low, x.high + 1, (7, inputs * 9))
        return IntLinear(**tensors, x=x, out=out), values
    groups = 2 if kind == "grouped" else 1
    values = rng.integers(x.low, x.high + 1, (2, inputs * groups, 6, 7))
    return IntConv2d(**tensors, x=x, out=out, groups=groups), values


@pytest.mark.parametrize(
    ("bias", "way"),
    [(0, "float32"), (2**24 - 2 - 255 * 127, "float32"), (2**24 - 1 - 255 * 127, "float32"),
     (2**24 - 255 * 127, "float32_then_bias"), (-(2**24) + 255 * 127, "float32_then_bias"),
     (2**30, "float32_then_bias")],
)  # fmt: skip
def test_bias_and_products_together_decide(bias, way):
    weight = torch.tensor([[127]], dtype=torch.int8)
    found = choose_way(weight, torch.tensor([bias], dtype=torch.int32), Grid(1.0, 0), CPU)
    assert found == way


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_at_the_very_edge_no_sum_is_rounded(over):
    x = Grid(1.0, 0, 16)
    weight = torch.tensor([[127, 127, 2, 1]], dtype=torch.int8)
    values = torch.tensor([[65535.0, 65535.0, 65535.0, 0.0]])
    # The first three make 256 * 65535, and the bias fills up to the edge.
    bias = torch.tensor([2**24 + over - 256 * 65535], dtype=torch.int32)
    one = torch.tensor([[127, 127, 2]], dtype=torch.int8)
    assert largest_sum(one, x) == 256 * 65535
    expected = "float32" if over < 0 else "float32_then_bias"
    assert choose_way(one, bias, x, CPU) == expected
    assert choose_way(weight, bias, x, CPU) == "split"  # one more of weight 1 leaves the range
    for chosen, inputs in ((one, values[:, :3]), (weight, values)):
        op = IntLinear(
            weight=chosen,
            bias=bias,
            weight_scale=torch.ones(1),
            x=x,
            out=Grid(scale(2**24 / 40000), 0, 16),
        )
        assert np.array_equal(op(inputs).numpy(), reference(op, inputs.numpy()))


def test_products_alone_decide_whether_float32_holds_them():
    x, bias = Grid(1.0, 0), torch.zeros(1, dtype=torch.int32)
    count, rest = divmod((EXACT - 1) // 255, 127)  # 2**24 - 1 is a multiple of 255
    weight = torch.tensor([[127] * count + [rest, 0]], dtype=torch.int8)
    assert largest_sum(weight, x) == EXACT - 1
    assert choose_way(weight, bias, x, CPU) == "float32"
    weight[0, -1] = 1
    assert largest_sum(weight, x) == EXACT - 1 + 255
    assert choose_way(weight, bias, x, CPU) == "split"


def test_other_devices_compute_in_float64():
    weight, bias = torch.ones(1, 1, dtype=torch.int8), torch.zeros(1, dtype=torch.int32)
    assert choose_way(weight, bias, Grid(1.0, 0), torch.device("cuda")) == "float64"


# --- guards


@contextlib.contextmanager
def careless_settings():
    """What a program around may have set, put back afterwards."""
    backend = torch.backends.mkldnn
    before = torch.get_float32_matmul_precision()
    kept = [part.fp32_precision for part in (backend.conv, backend.matmul)]
    try:
        torch.set_float32_matmul_precision("medium")
        backend.conv.fp32_precision = backend.matmul.fp32_precision = "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
        backend.conv.fp32_precision, backend.matmul.fp32_precision = kept


def observed_settings():
    backend = torch.backends.mkldnn
    return (
        torch.get_float32_matmul_precision(),
        backend.conv.fp32_precision,
        backend.matmul.fp32_precision,
        torch.is_autocast_enabled("cpu"),
        torch._C._get_nnpack_enabled(),
    )


@pytest.mark.parametrize("kind", ["conv", "grouped", "linear"])
@pytest.mark.parametrize("way", WAYS)
def test_codes_stay_when_the_program_around_asks_for_less_precision(way, kind):
    op, values = chosen_way(way, kind)
    images = torch.from_numpy(values).float()
    expected, outside = op(images), observed_settings()
    with careless_settings():
        inside = observed_settings()
        assert inside != outside
        found = op(images)
        assert observed_settings() == inside
        op._prepared = None  # the weights too are made ready in here
        again = op(images)
    assert observed_settings() == outside
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)


def test_without_the_guard_less_precision_would_be_seen():
    op, values = chosen_way("float32", "conv")
    x, weight = torch.from_numpy(values).float(), op.weight.float()
    exact = torch.nn.functional.conv2d(x, weight)
    with careless_settings():
        assert not torch.equal(torch.nn.functional.conv2d(x, weight).float(), exact)
        with exact_arithmetic(CPU):
            assert torch.equal(torch.nn.functional.conv2d(x, weight), exact)


def test_settings_come_back_after_an_error():
    def fail_inside():
        with exact_arithmetic(CPU):
            assert torch.backends.mkldnn.conv.fp32_precision == "ieee"
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
            assert not torch.is_autocast_enabled("cpu")
            raise ValueError("inside")

    with careless_settings():
        before = observed_settings()
        with pytest.raises(ValueError, match="inside"):
            fail_inside()
        assert observed_settings() == before


# --- requantization by exact arithmetic


@given(st.data())
@quick
def test_requantization_is_the_documented_one(data):
    """One product of float32 numbers, rounded to float32, cut off, rounded half to even."""
    rng = data.draw(randoms)
    out = random_grid(rng)
    multiplier = np.float32(data.draw(st.sampled_from([0.5, 0.25, 1 / 3, 2**-9, 1e-7, 3.0])))
    for _ in range(data.draw(st.integers(0, 3))):
        multiplier = np.nextafter(multiplier, np.float32(data.draw(st.sampled_from([0, 9]))))
    reach = min(2**24, 400 / float(multiplier))
    total = rng.integers(-reach, reach + 1, 50)
    found = requantize(torch.from_numpy(total).float(), float(multiplier), out)
    for value, code in zip(total.tolist(), found.tolist(), strict=True):
        product = rounded_to_float32(Fraction(value) * Fraction(float(multiplier)))
        assert code == round(min(max(product, out.low), out.high))


@given(randoms, st.integers(1, 30), st.sampled_from([Grid(1.0, 0), Grid(scale(0.03), 200)]))
@quick
def test_a_linear_layer_is_the_documented_one(rng, inputs, x):
    """An exact sum, rounded once to float32, times sx * sw / sy, each step in float32."""
    out = random_grid(rng)
    op = random_linear(inputs, 5, x=x, out=out, rng=rng)
    if rng.random() < 0.5:
        bias = rng.integers(-LARGEST_BIAS, LARGEST_BIAS, 5)
        op.bias.copy_(float32_integer(torch.from_numpy(bias).double()))
    values = rng.integers(x.low, x.high + 1, inputs)
    found = op(torch.from_numpy(values).float()[None])[0].tolist()
    for row, bias, weight_scale, code in zip(
        op.weight.tolist(), op.bias.tolist(), op.weight_scale.tolist(), found, strict=True
    ):
        terms = zip(row, values.tolist(), strict=True)
        total = rounded_to_float32(Fraction(sum(w * v for w, v in terms) + bias))
        product = rounded_to_float32(Fraction(x.scale) * Fraction(weight_scale))
        multiplier = rounded_to_float32(product / Fraction(out.scale))
        value = rounded_to_float32(total * multiplier)
        assert code == round(min(max(value, out.low), out.high))


def rounded_to_float32(value):
    """The nearest float32 number of a fraction, half to even, by integer arithmetic alone."""
    if value == 0:
        return value
    exponent = 0
    magnitude = abs(value)
    while magnitude >= 2**24:
        magnitude, exponent = magnitude / 2, exponent + 1
    while magnitude < 2**23 and exponent > -149:
        magnitude, exponent = magnitude * 2, exponent - 1
    rounded = round(magnitude) * Fraction(2) ** exponent
    return rounded if value > 0 else -rounded


def test_rounding_to_float32_is_numpys():
    rng = np.random.default_rng(0)
    for value in [*rng.normal(0, 1e6, 300), 2**24 + 1, 2**25 + 2, 2**25 + 6, 1e-40, 1e-44]:
        assert rounded_to_float32(Fraction(value)) == Fraction(float(np.float32(value)))
