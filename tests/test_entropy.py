from itertools import pairwise

import numpy as np
import pytest
import torch

from hatcli.errors import ConfigError
from hatcli.quantize import OBSERVERS
from hatcli.quantize.calibrate import WeightObserver
from hatcli.quantize.histogram import Histogram
from hatcli.quantize.observers.entropy import RATIOS, _divergence


def observed(*tensors, **settings):
    observer = OBSERVERS.build({"type": "entropy", **settings})
    for tensor in tensors:
        observer.observe(tensor)
    return observer


def normal(count=200_000, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def test_an_even_spread_is_kept_whole():
    values = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 3 - 1
    low, high = observed(values).range(8)
    assert low < -0.9
    assert high > 1.8


def test_far_values_are_cut():
    values = torch.cat([normal().abs(), torch.tensor([60.0, 75.0, 90.0])])
    low, high = observed(values).range(8)
    assert low < 1e-5
    assert 2.5 < high < 15


def test_more_codes_cut_no_earlier():
    observer = observed(normal() ** 3)
    assert observer.range(8)[1] <= observer.range(16)[1]
    assert observer.range(16)[1] > 0.5 * observer.histogram.high


@pytest.mark.parametrize(
    "values", [torch.zeros(10), torch.full((10,), 2.5), torch.tensor([-1e-20])]
)
def test_ranges_of_single_values_are_those_values(values):
    low, high = observed(values).range(8)
    assert np.isfinite([low, high]).all()
    assert low <= float(values.min())
    assert high >= float(values.max())


def test_the_divergence_is_that_of_the_definition_step_by_step():
    histogram = Histogram(64)
    histogram.add(torch.cat([normal(500).abs() * 0.4, torch.zeros(300)]))
    counts, edges = histogram.counts.astype(float), histogram.edges()
    counts[32] = 0
    part = (0.0, histogram.high * 0.5)
    scale = float(np.float32(part[1] / 7))
    p, q = [], []
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    inside = [i for i, middle in enumerate(middles) if 0 <= round(middle / scale) <= 7]
    for i in inside:
        mates = [j for j in inside if round(middles[j] / scale) == round(middles[i] / scale)]
        alive = [j for j in mates if counts[j] > 0]
        p.append(counts[i])
        q.append(sum(counts[j] for j in mates) / len(alive) if counts[i] > 0 else 0.0)
    p[0] += counts[: inside[0]].sum()
    p[-1] += counts[inside[-1] + 1 :].sum()
    p, q = np.array(p) / sum(p), np.array(q) / sum(q)
    assert counts[inside[-1]] > 0
    used = p > 0
    expected = float((p[used] * np.log(p[used] / q[used])).sum())
    assert _divergence(edges, counts, part, 3) == pytest.approx(expected)
    assert expected > 0.01


def test_nothing_is_lost_where_each_bin_has_a_code():
    histogram = Histogram(64)
    histogram.add(torch.rand(1000, generator=torch.Generator().manual_seed(0)))
    counts = histogram.counts.astype(float)
    assert _divergence(histogram.edges(), counts, (0.0, 1.0), 8) == pytest.approx(0, abs=1e-12)
    assert RATIOS[0] == 1.0


def test_batches_make_no_difference_and_weights_are_not_for_it():
    values = normal(3000)
    assert observed(values).range(8) == observed(values[:7], values[7:]).range(8)
    assert not isinstance(observed(values), WeightObserver)


def test_a_wrong_number_of_bins_is_refused():
    with pytest.raises(ConfigError, match="bins: must be a multiple of 4"):
        observed(bins=63)
