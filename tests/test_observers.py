import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hatcli.errors import ConfigError
from hatcli.quantize import OBSERVERS
from hatcli.quantize.fake_quantize import FakeQuantize, fake_quantize_weight
from hatcli.quantize.grid import SMALLEST_RANGE, Grid, grid_of_range
from hatcli.quantize.histogram import Histogram, extremes, in_memory_order
from hatcli.quantize.observers.mse import squared_error

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
FEW = settings(max_examples=100, deadline=None)


def observed(node, *tensors):
    observer = OBSERVERS.build(node)
    for tensor in tensors:
        observer.observe(tensor)
    return observer


# --- grids


@FEW
@given(FLOATS, FLOATS, st.sampled_from([8, 16]))
def test_a_grid_holds_zero_in_float32_and_covers_its_range(low, high, bits):
    low, high = min(low, high), max(low, high)
    grid = grid_of_range(low, high, bits)
    assert 0 <= grid.zero_point < 2**bits
    assert float(np.float32(grid.scale)) == grid.scale > 0
    if max(high, 0) - min(low, 0) >= SMALLEST_RANGE:
        # half a step, and what float32 rounds off the scale
        slack = grid.scale * (0.5 + 2**bits * 2**-23)
        assert grid.low * grid.scale <= min(low, 0) + slack
        assert grid.high * grid.scale >= max(high, 0) - slack


@FEW
@given(st.floats(-50, 0), st.floats(0.01, 50), st.sampled_from([8, 16]), st.integers(0, 2**31))
def test_rounding_within_the_range_is_off_by_half_a_step_at_most(low, high, bits, seed):
    grid = grid_of_range(low, high, bits)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1000, generator=generator) * (grid.high - grid.low) + grid.low
    x = x * grid.scale
    y = FakeQuantize.apply(x, grid.scale, grid.low, grid.high)
    assert float((x - y).abs().max()) <= grid.scale * (0.5 + 2**bits * 2**-22)
    assert torch.equal(FakeQuantize.apply(y, grid.scale, grid.low, grid.high), y)


# --- histogram


@FEW
@given(st.lists(st.lists(FLOATS, max_size=30), min_size=1, max_size=5), st.randoms())
def test_counts_depend_on_the_values_alone(batches, random):
    one, many = Histogram(64), Histogram(64)
    values = [value for batch in batches for value in batch]
    one.add(torch.tensor(values, dtype=torch.float32))
    random.shuffle(batches)
    for batch in batches:
        many.add(torch.tensor(batch, dtype=torch.float32))
    assert one.counts.sum() == many.counts.sum() == one.count == many.count == len(values)
    assert one.top == many.top
    assert one.counts.tolist() == many.counts.tolist()
    if values:
        assert (one.low, one.high) == (min(values), max(values)) == (many.low, many.high)


def test_widening_merges_neighbouring_bins():
    histogram = Histogram(64)
    histogram.add(torch.tensor([-0.9375 + 2**-20, 0.01, 0.04, 0.9]))
    assert histogram.top == 1.0
    assert np.flatnonzero(histogram.counts).tolist() == [2, 33, 34, 61]  # 1/32 wide
    histogram.add(torch.tensor([1.5, 0.0]))
    assert histogram.top == 2.0
    assert np.flatnonzero(histogram.counts).tolist() == [17, 32, 33, 47, 57]
    assert histogram.counts[33] == 2
    assert histogram.edges()[[17, 18, 32, 33, 34]].tolist() == [
        -0.9375 + 2**-20,
        -0.875,
        0.0,
        0.0,
        1 / 16,
    ]


def test_a_power_of_two_lies_within_the_histogram():
    histogram = Histogram(64)
    histogram.add(torch.tensor([-4.0, 4.0]))
    assert histogram.top == 8.0
    assert histogram.counts[[15, 49]].tolist() == [1, 1]


def test_zeros_before_other_values_do_not_fix_the_width():
    histogram = Histogram(64)
    histogram.add(torch.zeros(3))
    assert histogram.top == 0.0
    assert histogram.quantile(0.5) == 0.0
    histogram.add(torch.tensor([1e-3]))
    assert histogram.top == 2.0**-9
    assert histogram.counts[32] == 3


@pytest.mark.parametrize("peak", [1e-44, 1e-30, 3.4e38])
def test_the_smallest_and_largest_numbers_are_counted(peak):
    histogram = Histogram(64)
    histogram.add(torch.tensor([peak, -peak, 0.0]))
    assert histogram.counts.sum() == 3
    assert histogram.high == float(np.float32(peak))


def test_quantiles_are_those_of_numpy():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, generator=generator)
    histogram = Histogram()
    for part in x.split(7_777):
        histogram.add(part)
    for share in (0.0, 0.001, 0.25, 0.5, 0.9, 0.999, 1.0):
        assert histogram.quantile(share) == pytest.approx(np.quantile(x, share), abs=0.01)
    assert histogram.quantile(0.0) == x.min()
    assert histogram.quantile(1.0) == x.max()


def test_order_in_memory_neither_copies_nor_changes_the_values():
    x = torch.randn(2, 5, 4, 3).to(memory_format=torch.channels_last)
    flat = in_memory_order(x)
    assert flat.data_ptr() == x.data_ptr()
    assert torch.equal(flat.sort().values, x.flatten().sort().values)
    assert extremes(x) == (float(x.min()), float(x.max()))


def test_a_map_larger_than_a_part_is_counted_whole():
    x = torch.randn(3, 5, 300, 301).abs().add(1e-6).to(memory_format=torch.channels_last)
    histogram = Histogram(256)
    histogram.add(x)
    expected, _ = np.histogram(x.numpy(), 256, (-histogram.top, histogram.top))
    assert np.delete(histogram.counts, 128).tolist() == expected.tolist()
    assert histogram.counts[128] == expected[:128].sum() == 0
    histogram.add(-x)
    assert histogram.counts[::-1].tolist() == histogram.counts.tolist()


# --- observers


def test_all_observers_are_found():
    assert {"min_max", "moving_average", "percentile", "mse"} <= set(OBSERVERS.names())


def test_min_max_cuts_nothing():
    observer = observed({"type": "min_max"}, torch.tensor([-1.0, 2.0]), torch.tensor([[3.0]]))
    assert observer.range(8) == (-1.0, 3.0)
    weight = torch.tensor([[[1.0, -4.0]], [[0.5, 0.0]]])
    assert observer.channel_ranges(weight, 127).tolist() == [4.0, 0.5]


def test_moving_average_follows_the_batches():
    batches = [torch.tensor([-1.0, 4.0]), torch.tensor([-3.0, 8.0])]
    assert observed({"type": "moving_average"}, batches[0]).range(8) == (-1.0, 4.0)
    observer = observed({"type": "moving_average", "constant": 0.5}, *batches)
    assert observer.range(8) == pytest.approx((-7 / 3, 20 / 3))  # weights 1/3 and 2/3
    assert observed({"type": "moving_average", "constant": 1}, *batches).range(8) == (-3.0, 8.0)


def test_percentile_leaves_out_the_rarest_values_at_both_ends():
    x = torch.cat([torch.linspace(-1, 2, 100_000), torch.tensor([-90.0, 70.0])])
    assert observed({"type": "percentile", "percent": 100}, x).range(8) == (-90.0, 70.0)
    low, high = observed({"type": "percentile", "percent": 99.99}, x).range(8)
    assert (low, high) == pytest.approx(np.percentile(x, [0.01, 99.99]).tolist(), abs=0.01)


def test_percentile_keeps_a_one_sided_tensor_at_zero():
    x = torch.randn(100_000).relu()
    low, high = observed({"type": "percentile"}, x).range(8)
    assert grid_of_range(low, high).zero_point == 0
    assert low == 0.0
    assert high <= float(x.max())


@pytest.mark.parametrize("bits", [8, 16])
def test_squared_error_is_that_of_quantized_values(bits):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50_000, generator=generator)
    histogram = Histogram()
    histogram.add(x)
    edges = histogram.edges()
    for low, high in ((-5.0, 5.0), (-2.0, 2.5), (-0.3, 0.1)):
        grid = grid_of_range(low, high, bits)
        computed = squared_error(edges, histogram.counts, grid)
        y = FakeQuantize.apply(x.double(), grid.scale, grid.low, grid.high)
        assert computed == pytest.approx(float((x - y).square().sum()), rel=0.02)


def test_squared_error_of_single_values_is_exact():
    edges = np.array([0.1, 0.1, 0.5, 0.5, 0.74, 0.74, 130.0, 130.0])
    counts = np.array([1, 0, 1, 0, 2, 0, 1])
    computed = squared_error(edges, counts, Grid(0.5, 0, 8))  # 0 to 127.5
    assert computed == pytest.approx(0.1**2 + 2 * 0.24**2 + 2.5**2)


def test_mse_finds_the_best_cut():
    generator = torch.Generator().manual_seed(2)
    x = torch.cat([torch.randn(100_000, generator=generator), torch.tensor([40.0, -30.0])])
    low, high = observed({"type": "mse"}, x).range(8)
    assert low / -30 == pytest.approx(high / 40)

    def error(ratio):
        grid = grid_of_range(-30 * ratio, 40 * ratio)
        return float((FakeQuantize.apply(x, grid.scale, grid.low, grid.high) - x).square().sum())

    best = min(error(ratio) for ratio in np.linspace(0.01, 1, 400))
    assert error(high / 40) <= best * 1.01
    assert error(high / 40) < 0.85 * error(1.0)


def test_mse_cuts_nothing_from_values_that_lie_on_the_grid():
    x = torch.arange(0, 256).float()
    assert observed({"type": "mse"}, x).range(8) == (0.0, 255.0)
    assert observed({"type": "mse"}, torch.zeros(3)).range(8) == (0.0, 0.0)


@pytest.mark.parametrize("highest", [1, 3, 7, 127])
def test_mse_ranges_of_weights_beat_the_extremes(highest):
    weight = torch.randn(6, 30, 3, 3, generator=torch.Generator().manual_seed(3))
    weight[2] = 0.0
    ranges = OBSERVERS.build({"type": "mse"}).channel_ranges(weight, highest)
    whole = weight.flatten(1).abs().amax(1)
    assert ranges[2] == 0.0
    assert bool((ranges <= whole).all())

    def errors(ranges):
        scale = (ranges / highest).clamp_min(1e-12)
        return (fake_quantize_weight(weight, scale, highest) - weight).square().flatten(1).sum(1)

    assert bool((errors(ranges) <= errors(whole) * (1 + 1e-5)).all())
    for ratio in (0.3, 0.5, 0.8):
        assert bool((errors(ranges) <= errors(whole * ratio) * (1 + 1e-5)).all())


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"type": "percentile", "percent": 50}, "percent: must be above 50"),
        ({"type": "percentile", "percent": 101.0}, "at most 100, got 101.0"),
        ({"type": "percentile", "percent": math.nan}, "percent: must be"),
        ({"type": "percentile", "bins": 1001}, "bins: must be a multiple of 4"),
        ({"type": "mse", "bins": 8}, "from 64 to 1048576, got 8"),
        ({"type": "moving_average", "constant": 0.0}, "constant: must be above 0"),
        ({"type": "moving_average", "constant": 1.5}, "at most 1, got 1.5"),
        ({"type": "min_max", "bins": 64}, "no argument 'bins'"),
    ],
)
def test_arguments_out_of_bounds_are_refused(node, message):
    with pytest.raises(ConfigError, match=message):
        OBSERVERS.build(node)
