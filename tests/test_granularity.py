import pytest
import torch
from small_graphs import conv, finished, graph_of, linear, quantizer, residual_net
from tiny_nets import tiny_net
from torch import nn

from hatcli.errors import ConfigError
from hatcli.export.parity import compare_codes
from hatcli.export.quantized import export_quantized
from hatcli.quantize.adaround import round_weights
from hatcli.quantize.bias_correction import correct_biases
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.fake_quantize import fake_quantize_weight
from hatcli.quantize.grid import grid_of_range
from hatcli.quantize.integer.exact import LARGEST_BIAS
from hatcli.quantize.integer.forms import integer_weights
from hatcli.quantize.layers import weighted_layers
from hatcli.quantize.lower import lower
from hatcli.quantize.prepare import prepare
from hatcli.quantize.qat import start_qat
from hatcli.quantize.quantizers import WeightQuantizer
from hatcli.quantize.spec import AdaRoundSpec, QatSpec, Spec, read_spec

TENSOR = {"weight_granularity": "tensor"}
KINDS = {
    "tensor": TENSOR,
    "4 bits": {"weight_bits": 4},
    "tensor, 4 bits": {**TENSOR, "weight_bits": 4, "weight_observer": {"type": "mse"}},
}


def images(number=8, seed=0, size=16):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


def calibrated(node, net=None):
    graph = prepare(net or tiny_net(), read_spec(node))
    finished(calibrate(graph, [images()], total=8))
    return graph


def outputs(graph, batch):
    with torch.no_grad():
        return graph(batch)


def all_on_one_grid(layer):
    codes = layer.weight_quantizer.codes(layer.weight).double()
    steps = layer.weight.detach().double() / layer.weight_quantizer.scale.double()
    return float((steps - codes).abs().max())


@pytest.mark.parametrize("observer", ["min_max", "mse"])
def test_one_scale_is_that_of_all_weights_together(observer):
    graph = calibrated({**TENSOR, "weight_observer": {"type": observer}})
    by_channel = calibrated({"weight_observer": {"type": observer}})
    for name, layer in weighted_layers(graph).items():
        scale = layer.weight_quantizer.scale
        assert scale.shape == (1,)
        largest = float(layer.weight.detach().abs().max())
        if observer == "min_max":
            assert float(scale) * 127 == pytest.approx(largest)
            others = by_channel.get_submodule(name).weight_quantizer.scale
            assert float(scale) == float(others.max())
        error = all_on_one_grid(layer)
        assert 0 < error < (0.5001 if observer == "min_max" else 20)


def test_an_exception_has_its_own_granularity():
    exception = {"layers": "head", "weight_granularity": "tensor"}
    graph = prepare(tiny_net(), read_spec({"exceptions": [exception]}))
    shapes = {
        name: len(layer.weight_quantizer.scale) for name, layer in weighted_layers(graph).items()
    }
    assert shapes == {"stem.0": 4, "down": 4, "head": 1}


@pytest.mark.parametrize("node", KINDS.values(), ids=KINDS)
def test_the_exported_codes_are_those_of_the_integer_graph(node, tmp_path):
    graph = calibrated(node)
    finished(correct_biases(graph, [images()]))
    integers = lower(graph).graph
    highest = 7 if "weight_bits" in node else 127
    for name, layer in weighted_layers(graph).items():
        op = integers.get_submodule(name)
        assert op.weight_scale.shape == op.bias.shape
        used = op.weight_scale[: len(layer.weight)]
        assert torch.equal(used, layer.weight_quantizer.scale.expand_as(used))
        assert int(op.weight.abs().max()) == highest
    fake, whole = outputs(graph, images(seed=1)), outputs(integers, images(seed=1))
    step = graph.get_submodule("head.output_quantizer").grid.scale
    assert float((fake - whole).abs().max()) <= 2.01 * step
    path = tmp_path / "m.onnx"
    path.write_bytes(
        export_quantized(integers, (1, 3, 16, 16), dynamic="batch").SerializeToString()
    )
    compare_codes(path, integers, [images(2, 3)], where="m.onnx")


@pytest.mark.parametrize("node", KINDS.values(), ids=KINDS)
def test_rounding_and_correction_bring_scores_nearer_to_the_float_ones(node):
    net, batches = tiny_net(), [images(16, seed) for seed in range(2)]
    wanted = outputs(net, images(16, 9))
    plain, corrected, rounded = (calibrated(node, net) for _ in range(3))
    finished(correct_biases(corrected, batches))
    finished(round_weights(rounded, batches, AdaRoundSpec(iterations=100)))
    errors = [
        float((outputs(graph, images(16, 9)) - wanted).square().mean())
        for graph in (plain, corrected, rounded)
    ]
    if "weight_bits" in node:
        assert errors[0] > errors[1] > errors[2]
    else:  # of 8 bits hardly anything is left to gain on so small a net
        assert max(errors[1:]) < 1.1 * errors[0]


@pytest.mark.parametrize("node", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("scales", ["fixed", "learned"])
def test_training_brings_back_what_a_graph_has_lost(node, scales):
    net, batch = tiny_net(), images(16, 3)
    wanted = outputs(net, batch)
    graph = calibrated(node, net)
    start_qat(graph, QatSpec(scales=scales))
    with torch.no_grad():
        for layer in weighted_layers(graph).values():
            layer.bias.add_(0.3)
    optimiser = torch.optim.Adam(graph.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = (graph.train()(batch) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    for layer in weighted_layers(graph).values():
        shape = (1,) if "weight_granularity" in node else (len(layer.weight),)
        assert layer.weight_quantizer.scale.shape == shape


def test_the_gradient_of_one_scale_is_that_of_lsq():
    generator = torch.Generator().manual_seed(0)
    weight, grad = (torch.randn(6, 5, generator=generator) for _ in range(2))
    scale = torch.tensor([0.3], requires_grad=True)
    fake_quantize_weight(weight, scale, 7).backward(grad)
    steps = weight / 0.3
    inside = steps.abs() < 7
    slope = torch.where(inside, steps.round() - steps, steps.sign() * 7)
    expected = (slope * grad).sum() / (30 * 7) ** 0.5
    assert float(scale.grad) == pytest.approx(float(expected), rel=1e-4)


def test_a_bias_too_large_raises_the_one_scale_of_all_channels():
    layer = linear(4, 3)
    layer.weight_quantizer = WeightQuantizer(1, 8, {"type": "min_max"})
    with torch.no_grad():
        layer.weight.mul_(1e-8)
        layer.bias.copy_(torch.tensor([0.0, 5.0, -900.0]))
        layer.weight_quantizer.scale.fill_(1e-10)
    x = grid_of_range(0, 1)
    tensors, findings = integer_weights(layer, x)
    assert len(set(tensors["weight_scale"].tolist())) == 1
    assert tensors["weight_scale"].shape == (3,)
    assert float(tensors["weight_scale"][0]) == pytest.approx(900 / (x.scale * LARGEST_BIAS))
    units = tensors["bias"].double() * x.scale * tensors["weight_scale"].double()
    assert torch.allclose(units, layer.bias.detach().double(), rtol=1e-6)
    assert findings == [
        "3 of 3 channels got a larger weight scale, so that their bias fits in 32 bits"
    ]


def test_dead_weights_get_one_scale_that_keeps_them_zero():
    layer = conv(3, 2)
    layer.weight_quantizer = WeightQuantizer(1, 8, {"type": "min_max"})
    nn.init.zeros_(layer.weight)
    graph = graph_of([("conv", layer), ("conv.output_quantizer", quantizer())])
    findings, _ = finished(calibrate(graph, [images()], total=8))
    assert "conv: all its weights are 0: its result is its bias alone" in map(str, findings)
    assert layer.weight_quantizer.scale.shape == (1,)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_of_weights_stays_within_its_codes(bits):
    graph = residual_net(weight_bits=bits)
    finished(calibrate(graph, [images()], total=8))
    finished(correct_biases(graph, [images()]))
    integers = lower(graph).graph
    for name in weighted_layers(graph):
        assert int(integers.get_submodule(name).weight.abs().max()) == 2 ** (bits - 1) - 1
    step = graph.get_submodule("classifier.output_quantizer").grid.scale
    off = (outputs(graph, images(seed=1)) - outputs(integers, images(seed=1))).abs().max()
    assert float(off) <= 2.01 * step


@pytest.mark.parametrize("setting", [TENSOR, {"equalize": True}, {"adaround": True}])
def test_kept_batch_norms_and_what_needs_folded_ones_are_refused(setting):
    with pytest.raises(
        ConfigError, match=r"needs folded batch norms, and quantize\.qat keeps them"
    ):
        read_spec({**setting, "qat": {"batch_norm": "kept"}})
    read_spec({**setting, "qat": {"batch_norm": "folded"}})


def test_a_kept_norm_behind_a_single_scale_is_refused_by_layer():
    exception = {"layers": "stem.0", "weight_granularity": "tensor"}
    spec = Spec(exceptions=(exception,))
    with pytest.raises(ConfigError, match=r"^stem\.0: one scale for the whole weight needs"):
        prepare(tiny_net(), spec, fold_batch_norm=False)
    no_norm = Spec(exceptions=({**exception, "layers": "head"},))
    assert len(prepare(tiny_net(), no_norm, fold_batch_norm=False).head.weight_quantizer.scale) == 1


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"weight_granularity": "row"}, "quantize.weight_granularity: must be "),
        ({"equalize": 1}, "quantize.equalize: must be bool"),
        ({"adaround": 3}, "quantize.adaround: must be bool | dict"),
        ({"adaround": {"iteration": 3}}, "quantize.adaround: no setting 'iteration'"),
        ({"adaround": {"iterations": 0}}, "quantize.adaround.iterations: must be at least 1"),
        ({"adaround": {"learning_rate": 0.0}}, "quantize.adaround.learning_rate: must be a number"),
        ({"adaround": {"learning_rate": 1e400}}, "quantize.adaround.learning_rate: must be a"),
    ],
)
def test_wrong_settings_are_named(node, message):
    with pytest.raises(ConfigError) as caught:
        read_spec(node)
    assert str(caught.value).startswith(message)


def test_adaround_is_off_on_or_has_settings():
    assert read_spec({}).adaround is None
    assert read_spec({"adaround": False}).adaround is None
    assert read_spec({"adaround": True}).adaround == AdaRoundSpec()
    assert read_spec({"adaround": {"iterations": 9}}).adaround == AdaRoundSpec(iterations=9)
