"""Target sym8: every code equals that of exact rational arithmetic, on graphs and on networks."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_graphs import all_values, random_images
from random_graphs import random_graph
from rational import codes_of, multipliers, nearest
from small_nets import conv, outputs, row
from symmetric import calibrated, lowered, network, wrong_codes
from torch import nn

from hatcli.errors import CheckpointError, HatError
from hatcli.quantize.integer.products import IntConv2d
from hatcli.quantize.integer_graph import from_data, to_data
from hatcli.quantize.lower import lower
from hatcli.quantize.targets.sym8 import ROUNDINGS, FixedPoint

RESCALING = {
    *("Quantize", "IntConv2d", "IntLinear", "IntAdd", "IntMultiply", "IntConcat", "Requantize"),
    "IntGlobalAvgPool",
}


# --- random graphs


@st.composite
def rules(draw):
    bits = draw(st.one_of(st.sampled_from([16, 31]), st.integers(16, 31)), "bits")
    return {
        "type": "sym8", "multiplier_bits": bits, "rounding": draw(st.sampled_from(ROUNDINGS)),
    }  # fmt: skip


def ruled(document, rule, rng, *, wide=0.0):
    """A random graph by a rule, on symmetric grids, some of 16 bits, some results cut to a part."""
    kept = {}

    def grid(value):
        key = (value["scale"], value["zero_point"])
        if key not in kept:
            is_wide = rng.random() < wide
            scale = value["scale"] / 256 if is_wide else value["scale"]
            bits = 16 if is_wide else 8
            kept[key] = {"scale": scale, "zero_point": 2 ** (bits - 1), "bits": bits}
        return kept[key]

    def changed(value):
        if isinstance(value, dict):
            return grid(value)
        if isinstance(value, list):
            return [changed(item) for item in value]
        return value

    for node in document["nodes"]:
        node["settings"] = {key: changed(value) for key, value in node["settings"].items()}
        out = node["settings"].get("out")
        half = 2 ** (out["bits"] - 1) if out else 0
        if node["op"] == "IntClamp":
            node["settings"]["top"] = min(node["settings"]["top"], half - 1)
        if node["op"] in RESCALING:
            clips = [[-half, half - 1], [-half, half - 1], [0, half - 1], [0, half // 2 + 7]]
            clip = clips[int(rng.integers(len(clips)))]
            node["settings"] |= {"rule": rule, "clip": clip}
    return from_data(document)


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("wide", [0.0, 0.4])
def test_random_graphs_have_the_codes_of_rational_arithmetic(count, wide):
    @settings(max_examples=count, derandomize=count == 60, deadline=None, database=None)
    @given(st.integers(0, 2**32 - 1), rules())
    def test(seed, rule):
        rng = np.random.default_rng(seed)
        plain, _ = random_graph(rng, layers=10, size=(5, 6))
        graph = ruled(to_data(plain), rule, rng, wide=wide)
        out = graph.get_submodule("input").out
        assert wrong_codes(graph, random_images((2, 3, 5, 6), out, rng)) == {}

    test()


def test_the_comparison_finds_one_wrong_code():
    rng = np.random.default_rng(5)
    plain, _ = random_graph(rng, layers=10, size=(5, 6))
    rule = {"type": "sym8", "multiplier_bits": 31, "rounding": "half_up"}
    graph = ruled(to_data(plain), rule, rng)
    images = random_images((2, 3, 5, 6), graph.get_submodule("input").out, rng)
    conv = next(module for module in graph.modules() if isinstance(module, IntConv2d))
    document = to_data(graph)
    assert wrong_codes(graph, images) == {}
    conv._fixed = None
    conv._fixed_point(conv.arithmetic, torch.device("cpu"))[0].mul_(2)
    expected = codes_of(document, images.numpy())
    found = all_values(graph, images)
    assert any((found[n] - graph.get_submodule(n).out.zero_point != expected[n]).any()
               for n in found if n != "scores")  # fmt: skip


def test_the_rule_and_the_clip_are_checked_when_a_graph_is_read():
    rng = np.random.default_rng(5)
    document = to_data(random_graph(rng, layers=4)[0])
    node = document["nodes"][0]
    good = {"type": "sym8", "multiplier_bits": 31, "rounding": "half_up"}
    for rule, clip in (
        ({"type": "sym9"}, None),
        ({"type": "ort"}, None),
        ({**good, "rounding": "up"}, None),
        ({**good, "surprise": 1}, None),
        (["sym8"], None),
        (good, [-5000, 3]),
        (good, [3, -3]),
        (good, [1, 2, 3]),
        (None, [0, 1]),
    ):
        node["settings"] |= {"rule": rule, "clip": clip}
        with pytest.raises(CheckpointError, match="integer graph is damaged"):
            from_data(document)


# --- the arithmetic itself


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_halves_go_where_the_rounding_says(rounding):
    rule = FixedPoint(31, rounding)
    totals = torch.cat([torch.arange(-700, 701), torch.tensor([2**62 - 1, 1 - 2**62])])
    for shift in (1, 2, 5, 8):
        expected = [nearest(rounding, Fraction(int(total), 2**shift)) for total in totals.tolist()]
        assert rule.rounded(totals, shift).tolist() == expected
        assert rule.rounded(totals, torch.tensor([shift])).tolist() == expected
    six = {"half_up": [-2, -1, 0, 1, 2, 3], "half_even": [-2, -2, 0, 0, 2, 2]}
    halves = torch.tensor([-5, -3, -1, 1, 3, 5])
    assert rule.rounded(halves, 1).tolist() == six.get(rounding, [-3, -2, -1, 1, 2, 3])


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    st.lists(st.fractions(Fraction(1, 2**70), 2**40), min_size=1, max_size=2),
    st.integers(16, 31),
    st.sampled_from([8, 16]),
)
def test_multipliers_are_the_nearest_that_fit(ratios, width, bits):
    rule = {"multiplier_bits": width}
    assert FixedPoint(width, "half_up").multipliers(ratios, bits) == multipliers(rule, ratios, bits)


def test_a_multiplier_uses_all_its_bits():
    for ratio in (Fraction(1), Fraction(1, 3), Fraction(999, 1000), 1 - Fraction(1, 2**40)):
        for width in (16, 31):
            (multiplier,), shift = FixedPoint(width, "half_up").multipliers([ratio], 8)
            assert 2 ** (width - 1) <= multiplier < 2**width
            assert abs(Fraction(multiplier, 2**shift) / ratio - 1) <= Fraction(1, 2**width)


def test_sums_that_need_more_than_32_bits_are_refused():
    net = row(conv=conv(), flat=nn.Flatten(), fc=nn.Linear(3 * 64, 4))
    graph, _ = calibrated(net, torch.randn(2, 3, 8, 8))
    graph.fc.bias.data.fill_(1e9)
    lower(graph)  # its scales make room
    wide = nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2)).eval()
    nn.init.constant_(wide[1].weight, 1.0)
    with pytest.raises(HatError, match="1: its sums may need more than 32 bits"):
        lower(calibrated(wide, torch.randn(2, 3, 224, 224))[0])


# --- networks


OPTIONS = {
    "default": {},
    "16 bits": {"multiplier_bits": 16, "rounding": "half_away"},
    "powers of two": {"power_of_two": True, "rounding": "half_even"},
    "yuv": {"input_scale": 1 / 128},
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("unet", options) for options in OPTIONS),
        *(("vargnetv2", options) for options in ("default", "powers of two")),
        *(pytest.param("vargnetv2", o, marks=pytest.mark.slow) for o in ("16 bits", "yuv")),
    ],
)
def test_networks_have_the_codes_of_rational_arithmetic(name, options):
    net, images = network(name)
    graph = lowered(net, images, options=OPTIONS[options])
    side = 64 if name == "unet" else 32
    assert wrong_codes(graph, images[:1, :, :side, :side].contiguous()) == {}
    again = from_data(to_data(graph))
    assert torch.equal(again(images), graph(images))


@pytest.mark.parametrize("name", ["unet", "vargnetv2"])
def test_integers_stay_near_the_fake_quantized_graph(name):
    net, images = network(name)
    graph, _ = calibrated(net, images)
    fake, integer = outputs(graph, images), outputs(lower(graph).graph, images)
    noise = (fake - integer).pow(2).mean() / fake.var()
    assert noise < 0.01
    assert (outputs(net, images) - integer).pow(2).mean() / fake.var() < 0.3
