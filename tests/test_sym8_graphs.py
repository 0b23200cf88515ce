"""Target sym8: its grids, ReLUs and scales, its ONNX files and its settings; and a new target."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from integer_graphs import all_values
from small_nets import conv, net_of, outputs, quantizer, row
from symmetric import calibrated, finish, grids_of, lowered, network, spec, wrong_codes
from torch import nn

from hatcli.errors import ConfigError
from hatcli.export.parity import compare_codes, is_promised
from hatcli.export.quantized import export_quantized
from hatcli.quantize import TARGETS
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.grid import Grid, power_of_two_from, symmetric_grid
from hatcli.quantize.integer.arithmetic import IntConcat
from hatcli.quantize.integer.products import IntConv2d
from hatcli.quantize.integer_graph import from_data, to_data
from hatcli.quantize.lower import lower
from hatcli.quantize.prepare import prepare
from hatcli.quantize.qat import start_qat
from hatcli.quantize.quantizers import ActivationQuantizer
from hatcli.quantize.spec import QatSpec, read_spec
from hatcli.quantize.target import Target


def test_all_grids_are_symmetric_and_relus_cut_at_zero():
    net, images = network("unet")
    graph, _ = calibrated(net, images)
    integers = lower(graph).graph
    assert {grid.zero_point for grid in grids_of(integers)} == {128}
    activations = {
        name.removesuffix(".output_quantizer"): module.activation
        for name, module in graph.named_modules()
        if isinstance(module, ActivationQuantizer)
    }
    assert set(activations.values()) == {None, "relu"}
    codes = all_values(integers, images)
    for name, activation in activations.items():
        if name in codes and activation == "relu":
            assert integers.get_submodule(name).clip == (0, 127), name
            assert codes[name].min() >= 128
            assert codes[name].max() > 128


def test_powers_of_two_are_exact():
    net, images = network("unet")
    integers = lowered(net, images, options={"power_of_two": True})
    scales = {grid.scale for grid in grids_of(integers)}
    for op in integers.modules():
        if isinstance(op, IntConv2d):
            scales |= set(op.weight_scale.tolist())
    assert len(scales) > 5
    assert all(Fraction(scale) in (2 ** Fraction(p) for p in range(-60, 60)) for scale in scales)


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [(-1.0, 1.0, 1 / 127), (-2.0, 1.0, 2 / 128), (0.0, 3.0, 3 / 127), (-3.0, 0.0, 3 / 128)],
)
def test_the_grid_of_a_range_is_the_finest_that_spans_it(low, high, scale):
    grid = symmetric_grid(low, high)
    assert (grid.scale, grid.zero_point) == (float(np.float32(scale)), 128)
    assert (grid.low, grid.high) == (-128, 127)
    power = symmetric_grid(low, high, 16, power_of_two=True)
    assert (power.low, power.high) == (-32768, 32767)
    assert power.scale / 2 < max(high / 32767, -low / 32768) <= power.scale
    assert symmetric_grid(0.0, 0.0).scale == 1.0
    assert [power_of_two_from(v) for v in (0.5, 0.50001, 3.0, 4.0)] == [0.5, 1.0, 4.0, 4.0]


# --- shared grids


def joined(m, x):
    a, b = m.a(x).relu(), m.b(x)
    return m.last(torch.cat([m.pool(a), m.pool(torch.cat([b, a], 1)), m.c(m.pool(x))], 1))


def net_of_joins():
    return net_of(
        joined, a=conv(), b=conv(), c=conv(), last=conv(12), pool=nn.MaxPool2d(2)
    )  # fmt: skip


def test_all_around_chained_concatenations_share_a_grid():
    net, images = net_of_joins(), torch.randn(4, 3, 8, 8)
    graph, _ = calibrated(net, images)
    around = [quantizer(graph, name) for name in ("a", "b", "c", "cat", "cat_1")]
    assert len({q.grid for q in around}) == 1
    assert quantizer(graph, "last").grid != around[0].grid
    assert graph.input_quantizer.grid != around[0].grid
    alone, _ = calibrated(net, images)
    for q in (module for module in alone.modules() if isinstance(module, ActivationQuantizer)):
        q.leader = ()
    finish(calibrate(alone, [images], total=4))
    widest = max(quantizer(alone, name).grid.scale for name in ("a", "b", "c", "cat", "cat_1"))
    assert around[0].grid.scale == widest
    integers = lower(graph).graph
    for op in integers.modules():
        if isinstance(op, IntConcat):
            assert set(op.inputs) == {op.out}
    assert wrong_codes(integers, images) == {}


def test_tensors_of_another_width_or_a_fixed_grid_are_brought_to_the_others():
    exceptions = [{"layers": "b", "activation_bits": 16}]
    images = torch.randn(4, 3, 8, 8)
    integers = lowered(net_of_joins(), images, exceptions=exceptions)
    inner = integers.get_submodule("cat").inputs
    assert [grid.bits for grid in inner] == [16, 8]
    assert inner[1] == integers.get_submodule("cat").out
    assert wrong_codes(integers, images) == {}
    net = net_of(lambda m, x: m.last(torch.cat([x, m.a(x)], 1)), a=conv(), last=conv(6))
    integers = lowered(net, images, options={"input_scale": 0.25})
    inner = integers.get_submodule("cat").inputs
    assert inner[0] == Grid(0.25, 128) != inner[1]
    assert wrong_codes(integers, images) == {}


def test_float_layers_join_in_where_integers_take_their_results():
    images = torch.randn(4, 3, 8, 8)
    for layer in ("a", "cat", "c"):
        exceptions = [{"layers": layer, "float": True}]
        graph, _ = calibrated(net_of_joins(), images, exceptions=exceptions)
        integers = lower(graph).graph
        fake = outputs(graph, images)
        assert (integers(images) - fake).abs().max() <= 3 * quantizer(graph, "last").grid.scale


# --- quantizers


def test_a_relu6_ends_at_the_code_of_six():
    net = row(conv=conv(), relu=nn.ReLU6(), last=conv())
    images = 20 * torch.randn(4, 3, 8, 8)
    for options, code in (({}, 127), ({"power_of_two": True}, 96)):
        graph, _ = calibrated(net, images, options=options, observer={"type": "min_max"})
        assert quantizer(graph, "conv").bounds == (0, code)
        integers = lower(graph).graph
        assert integers.get_submodule("conv").clip == (0, code)
        assert all_values(integers, images)["conv"].max() == 128 + code
        assert wrong_codes(integers, images) == {}
        start_qat(graph, QatSpec(scales="learned"))
        with torch.no_grad():
            wide = graph.conv.output_quantizer(torch.full((1, 1), 99.0))
        assert float(wide) == pytest.approx(6, rel=1e-6)


def test_a_relu_that_has_its_own_grid_cuts_too():
    def run(m, x):
        x = m.conv(x)
        return torch.cat([x, m.relu(x)], 1)

    net = net_of(run, conv=conv(), relu=nn.ReLU())
    images = torch.randn(4, 3, 8, 8)
    integers = lowered(net, images)
    assert wrong_codes(integers, images) == {}
    assert integers(images)[:, 3:].min() == 0 > integers(images)[:, :3].min()


def test_a_fixed_scale_of_the_images_stays_and_what_it_cuts_is_told():
    net = row(conv=conv(), last=conv())
    images = torch.randn(4, 3, 8, 8)
    graph, findings = calibrated(net, images, options={"input_scale": 1 / 128})
    assert graph.input_quantizer.grid == Grid(1 / 128, 128)
    assert "beyond its fixed grid, which cuts it to -1.004 and 0.9961" in str(findings[0])
    _, none = calibrated(net, images.clamp(-1, 0.99), options={"input_scale": 1 / 128})
    assert none == []
    start_qat(graph, QatSpec(scales="learned"))
    assert not isinstance(graph.input_quantizer.scale, nn.Parameter)
    assert isinstance(quantizer(graph, "conv").scale, nn.Parameter)


@pytest.mark.parametrize("power", [False, True])
def test_learned_scales_stay_shared_and_lower_to_equal_codes(power):
    images = torch.randn(4, 3, 8, 8)
    graph, _ = calibrated(net_of_joins(), images, options={"power_of_two": power})
    start_qat(graph, QatSpec(scales="learned"))
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.3)
    before = quantizer(graph, "a").grid
    for _ in range(3):
        optimizer.zero_grad()
        graph(images).square().mean().backward()
        assert quantizer(graph, "a").scale.grad.abs() > 0
        optimizer.step()
    quantizer(graph, "a").scale.data.mul_(1.7)
    around = [quantizer(graph, name) for name in ("a", "b", "c", "cat", "cat_1")]
    assert len({id(q.scale) for q in around}) == len({q.grid for q in around}) == 1
    assert around[0].grid != before
    fake, integers = outputs(graph, images), lower(graph).graph
    assert wrong_codes(integers, images) == {}
    assert (integers(images) - fake).abs().max() <= 3 * quantizer(graph, "last").grid.scale
    if power:
        assert power_of_two_from(around[0].grid.scale) == around[0].grid.scale
    state = graph.state_dict()
    other = prepare(net_of_joins(), spec({"power_of_two": power}))
    start_qat(other, QatSpec(scales="learned"))
    other.load_state_dict(state)
    assert torch.equal(outputs(other, images), fake)


@pytest.mark.parametrize("observer", ["percentile", "mse", "min_max", "moving_average"])
def test_every_observer_gives_symmetric_grids(observer):
    net, images = row(conv=conv(), relu=nn.ReLU(), last=conv()), torch.randn(4, 3, 8, 8)
    graph, _ = calibrated(net, images, observer={"type": observer})
    for name in ("conv", "last"):
        assert quantizer(graph, name).grid.zero_point == 128
        assert 0 < quantizer(graph, name).grid.scale < 1


# --- its ONNX file


@pytest.mark.parametrize("name", ["unet", "vargnetv2"])
def test_the_onnx_file_is_near_and_no_equality_is_promised(name, tmp_path):
    net, images = network(name)
    graph = lowered(net, images)
    assert not is_promised(graph)
    path = tmp_path / "model.onnx"
    model = export_quantized(graph, images.shape, dynamic="batch")
    path.write_bytes(model.SerializeToString())
    found = compare_codes(path, graph, [images], where=name)
    assert not found.promised
    assert (found.images, found.values) == (4, graph(images).numel())
    assert found.same_class > 0.9
    labels = export_quantized(graph, images.shape, argmax=True)
    path.write_bytes(labels.SerializeToString())
    assert compare_codes(path, graph, [images], where=name).same_class > 0.9


def test_a_relu_on_a_symmetric_grid_is_in_the_file(tmp_path):
    images = torch.randn(4, 3, 8, 8)
    for bits in (8, 16):
        net = row(conv=conv(), relu=nn.ReLU6())
        graph = lowered(net, 9 * images, activation_bits=bits, options={"power_of_two": True})
        path = tmp_path / "model.onnx"
        path.write_bytes(export_quantized(graph, images.shape).SerializeToString())
        found = compare_codes(path, graph, [9 * images], where="m")
        assert found.largest <= 1.001
        assert graph(9 * images).min() == 0
        assert graph(9 * images).max() == 6


# --- settings


@pytest.mark.parametrize(
    ("node", "message", "hint"),
    [
        ({"target": "sym9"}, "quantize.target: unknown 'sym9'", "'sym8'"),
        ({"target_options": {"rounding": "half_up"}}, "target 'ort' has no argument", ""),
        ({"target": "sym8", "target_options": {"round": 1}}, "argument 'round'", "'rounding'"),
        ({"target": "sym8", "target_options": {"rounding": "up"}}, "rounding must be Literal", ""),
        ({"target": "sym8", "target_options": {"multiplier_bits": 8}}, "must be 16 to 31", ""),
        ({"target": "sym8", "target_options": {"multiplier_bits": 16.0}}, "must be int", ""),
        ({"target": "sym8", "target_options": {"input_scale": 0.0}}, "a number above 0", ""),
        ({"target": "sym8", "target_options": {"type": "ort"}}, "no argument 'type'", ""),
        ({"target": "sym8", "target_options": [1]}, "target_options: must be dict", ""),
        (
            {"target": "sym8", "target_options": {"power_of_two": True, "input_scale": 0.01}},
            "0.01 is no power of two",
            "1/128",
        ),
        (
            {
                "target": "sym8", "target_options": {"power_of_two": True},
                "qat": {"batch_norm": "kept"},
            },
            "power_of_two=true needs folded batch norms",
            "folded",
        ),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(node, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        read_spec(node)
    assert hint in (caught.value.hint or "")


class _RoundsDown:
    """An arithmetic of 8-bit multipliers that rounds towards minus infinity."""

    def multipliers(self, ratios, bits):
        return [int(ratio * 2**8) for ratio in ratios], 8

    def rounded(self, total, shift):
        return total >> shift


def test_a_target_is_one_function(monkeypatch):
    monkeypatch.setattr(TARGETS, "_joined", dict(TARGETS._joined))
    monkeypatch.setattr(TARGETS, "_imported", dict(TARGETS._imported))

    @TARGETS.register
    def rounds_down(step: float = 0.5) -> Target:
        """A toy that has one scale for everything."""
        return Target(
            name="rounds_down",
            grid=lambda low, high, bits: Grid(step, 100, bits),
            arithmetic=_RoundsDown(),
            rule={"type": "rounds_down", "step": step},
        )

    node = {"target": "rounds_down", "target_options": {"step": 0.25}}
    net = net_of(lambda m, x: x + x)
    graph = prepare(net, read_spec(node))
    images = torch.tensor([-0.6, -0.3, 0.3, 0.6, 100.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    finish(calibrate(graph, [images], total=1))
    integers = from_data(to_data(lower(graph).graph))
    assert integers(images)[0, 0, 0].tolist() == [-1.5, -1.0, 0.5, 1.0, 38.75]
