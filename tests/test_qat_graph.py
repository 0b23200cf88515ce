import copy
import pickle

import pytest
import torch
from tiny_nets import tiny_net
from torch import nn

from hatcli.models import MODELS
from hatcli.quantize.grid import grid_of_range
from hatcli.quantize.layers import QuantConv2d, weighted_layers
from hatcli.quantize.prepare import prepare
from hatcli.quantize.qat import freeze_batch_norms, start_qat, transfer_ranges
from hatcli.quantize.quantizers import ActivationQuantizer, WeightQuantizer, set_mode
from hatcli.quantize.spec import QatSpec, Spec

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
LEARNED = QatSpec(scales="learned")


class Extremes:
    """An observer of the whole range."""

    def __init__(self):
        self.low = self.high = 0.0

    def observe(self, x):
        self.low, self.high = min(self.low, x.min().item()), max(self.high, x.max().item())


def calibrated(net, spec=None, *, fold=True, images=IMAGES):
    """A prepared graph whose ranges are those of the images."""
    graph = prepare(net, spec or Spec(), fold_batch_norm=fold)
    quantizers = [m for m in graph.modules() if isinstance(m, ActivationQuantizer)]
    for quantizer in quantizers:
        quantizer.observer = Extremes()
    set_mode(graph, "observe")
    with torch.no_grad():
        graph(images)
    for quantizer in quantizers:
        quantizer.set_grid(grid_of_range(quantizer.observer.low, quantizer.observer.high))
        quantizer.observer = None
    for layer in weighted_layers(graph).values():
        largest = layer.weight.detach().flatten(1).abs().amax(1).clamp_min(1e-9)
        layer.weight_quantizer.scale.copy_(largest / layer.weight_quantizer.highest)
    set_mode(graph, "quantize")
    return graph


def outputs(graph, images=IMAGES):
    with torch.no_grad():
        return graph(images)


def codes(graph, last="head"):
    quantizer = graph.get_submodule(f"{last}.output_quantizer")
    return (outputs(graph) / quantizer.scale).round()


def test_a_calibrated_graph_is_near_the_float_model():
    net = tiny_net()
    graph, expected = calibrated(net), outputs(net)
    error = (outputs(graph) - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.05


def test_training_mode_changes_nothing_when_norms_are_folded():
    torch.manual_seed(0)
    net = MODELS.build({"type": "mobilenetv2", "num_classes": 5, "width": 0.25}).eval()
    graph = calibrated(net, images=torch.randn(2, 3, 64, 64))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(outputs(graph.train(), images), outputs(graph.eval(), images))


def test_learned_scales_are_parameters_and_change_nothing_at_first():
    graph = calibrated(tiny_net())
    before, names = outputs(graph), set(dict(graph.named_parameters()))
    start_qat(graph, QatSpec())
    assert set(dict(graph.named_parameters())) == names
    start_qat(graph, LEARNED)
    scales = {name for name in graph.state_dict() if name.endswith(".scale")}
    assert set(dict(graph.named_parameters())) == names | scales
    assert torch.equal(outputs(graph), before)
    scale = graph.head.weight_quantizer.scale
    start_qat(graph, LEARNED)
    assert graph.head.weight_quantizer.scale is scale


def test_a_graph_of_learned_scales_can_be_saved_copied_and_pickled():
    graph = calibrated(tiny_net())
    start_qat(graph, LEARNED)
    fresh = prepare(tiny_net(seed=3), Spec())
    fresh.load_state_dict(graph.state_dict())
    set_mode(fresh, "quantize")
    pickled = pickle.loads(pickle.dumps(graph))  # noqa: S301 - just written
    for again in (fresh, copy.deepcopy(graph), pickled):
        assert torch.equal(outputs(again), outputs(graph))


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("qat", [QatSpec(), LEARNED], ids=["fixed", "learned"])
def test_every_parameter_gets_a_gradient(qat, fold):
    graph = calibrated(tiny_net(), fold=fold)
    start_qat(graph, qat)
    graph.train()(IMAGES).square().sum().backward()
    lacking = [name for name, parameter in graph.named_parameters() if parameter.grad is None]
    assert lacking == []
    zero = [name for name, p in graph.named_parameters() if not p.grad.any()]
    assert zero == []


@pytest.mark.parametrize("qat", [QatSpec(), LEARNED], ids=["fixed", "learned"])
def test_training_brings_back_what_a_graph_has_lost(qat):
    net = tiny_net()
    graph = calibrated(net)
    start_qat(graph, qat)
    with torch.no_grad():
        for layer in weighted_layers(graph).values():
            layer.bias.add_(0.3)
        if qat is LEARNED:
            graph.add.output_quantizer.scale.mul_(5)
    optimiser = torch.optim.Adam(graph.parameters(), lr=3e-3)
    target, errors = outputs(net), []
    for _ in range(100):
        optimiser.zero_grad()
        error = (graph.train()(IMAGES) - target).square().mean()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < errors[0] / 20


def spoilt(net):
    """Norms with a negative and a dead channel, as training makes them."""
    net.stem[1].weight.data[:2] = torch.tensor([-0.7, 0.0])
    return net


def test_transferred_ranges_make_the_same_codes():
    net = spoilt(tiny_net())
    source = calibrated(net)
    target = prepare(net, Spec(), fold_batch_norm=False)
    transfer_ranges(source, target)
    set_mode(target, "quantize")
    kept = target.get_submodule("stem.0")
    folded = source.get_submodule("stem.0")
    ours = kept.weight_quantizer.codes(kept.weight)
    theirs = folded.weight_quantizer.codes(folded.weight)
    sign = torch.tensor([-1, 0, 1, 1]).reshape(4, 1, 1, 1)
    assert torch.equal(ours * sign.abs(), theirs * sign)
    assert ours[1].abs().max() == 127  # where the norm is 0 the scale is the weight's own
    assert (codes(target) - codes(source)).abs().max() <= 1
    assert torch.equal(source.add.output_quantizer.scale, target.add.output_quantizer.scale)


def test_frozen_norms_are_folded_and_change_nothing():
    net = spoilt(tiny_net())
    graph = prepare(net, Spec(), fold_batch_norm=False)
    transfer_ranges(calibrated(net), graph)
    start_qat(graph, LEARNED)
    before = codes(graph)
    layer = graph.get_submodule("stem.0")
    weight, scale = layer.weight, layer.weight_quantizer.scale
    assert freeze_batch_norms(graph) == 1
    assert freeze_batch_norms(graph) == 0
    assert layer.bn is None
    assert layer.weight is weight
    assert layer.weight_quantizer.scale is scale
    assert not any("bn" in name for name in graph.state_dict())
    assert (codes(graph) - before).abs().max() <= 1
    assert torch.equal(outputs(graph.train()), outputs(graph.eval()))


def test_kept_norms_learn_from_batches_until_they_are_frozen():
    graph = prepare(tiny_net(), Spec(), fold_batch_norm=False)
    layer = graph.get_submodule("stem.0")
    assert isinstance(layer, QuantConv2d)
    before = layer.bn.running_mean.clone()
    graph.train()(IMAGES)
    assert not torch.equal(layer.bn.running_mean, before)


def test_folding_is_exact_in_double_precision():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-3)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 2.0)
    nn.init.uniform_(norm.weight, -1, 1)
    net = nn.Sequential(conv, norm).double().eval()
    layer = QuantConv2d(conv, (0, 0, 0, 0))
    layer.bn = norm
    layer.weight_quantizer = WeightQuantizer(4, 8, {"type": "min_max"})
    layer.fold()
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(images), net(images), rtol=1e-12, atol=1e-12)
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    torch.testing.assert_close(layer.weight_quantizer.scale, factor.detach().abs().float())
