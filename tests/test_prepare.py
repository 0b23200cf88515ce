import copy
import io
import pickle

import pytest
import torch
from small_nets import (
    IMAGES,
    assert_same,
    calls,
    conv,
    layers_of,
    net_of,
    outputs,
    quantizer,
    row,
    spec_of,
    with_relu,
)
from tiny_nets import randomize_norms, tiny_net
from torch import nn
from torch.fx import GraphModule

from hatcli.errors import ConfigError, HatError
from hatcli.models import MODELS
from hatcli.quantize.layers import Add, QuantConv2d, weighted_layers
from hatcli.quantize.prepare import prepare
from hatcli.quantize.quantizers import set_mode
from hatcli.quantize.spec import Spec

LARGER = ("resnet50", "tiny_vargnetv2", *(f"efficientnet_lite{number}" for number in range(1, 5)))


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "kept"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LARGER else ())
        for name in MODELS.names()
        if MODELS.part(name).module.startswith("hatcli.")  # other tests register some
    ],
)
def test_every_shipped_model_computes_the_same_when_prepared(name, fold):
    torch.manual_seed(0)
    net = MODELS.build({"type": name, "num_classes": 5})
    randomize_norms(net)
    net = net.keep_head("4") if hasattr(net, "keep_head") else net
    net = net.eval()
    images = torch.randn(1, 3, 64, 64)
    graph = prepare(net, Spec(), fold_batch_norm=fold)
    exact = copy.deepcopy(net).double()
    rounding = outputs(exact, images.double()) - outputs(net, images)
    scale = outputs(net, images).abs().max()
    assert_same(graph, net, images, rtol=max(1e-5, 3 * (rounding.abs().max() / scale).item()))
    assert_same(prepare(exact, Spec(), fold_batch_norm=fold), exact, images.double(), rtol=1e-12)
    kinds = {type(graph.get_submodule(target)) for target in calls(graph)}
    assert not kinds & {nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Dropout, nn.ZeroPad2d, nn.Conv2d}


def test_the_nodes_are_layers_with_quantizers_behind_them():
    graph = prepare(tiny_net(), Spec())
    assert isinstance(graph, GraphModule)
    assert calls(graph) == [
        "input_quantizer",
        "stem.0",
        "stem.0.output_quantizer",
        "down",
        "down.output_quantizer",
        "up",
        "down.output_quantizer",
        "add",
        "add.output_quantizer",
        "head",
        "head.output_quantizer",
    ]
    assert [node.name for node in graph.graph.find_nodes(op="placeholder")] == ["images"]
    assert isinstance(graph.stem.get_submodule("0"), QuantConv2d)
    assert isinstance(graph.add, Add)
    assert (quantizer(graph, "stem.0").activation, quantizer(graph, "add").activation) == (
        "relu",
        None,
    )
    assert "self.add.output_quantizer" in str(graph)
    assert "4, 4, kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1)" in str(graph)


def test_the_state_has_readable_names_and_loads_into_another_copy():
    spec, net = Spec(), tiny_net()
    graph, other = prepare(net, spec), prepare(tiny_net(seed=1), spec)
    assert list(graph.state_dict())[:6] == [
        "stem.0.weight",
        "stem.0.bias",
        "stem.0.weight_quantizer.scale",
        "stem.0.output_quantizer.scale",
        "stem.0.output_quantizer.zero_point",
        "down.weight",
    ]
    file = io.BytesIO()
    torch.save(graph.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(outputs(other), outputs(graph))


def test_the_model_itself_stays_as_it_is():
    net = tiny_net().train()
    before = copy.deepcopy(net.state_dict())
    graph = prepare(net, Spec())
    graph.stem.get_submodule("0").weight.data.zero_()
    assert net.training
    assert net.stem[2].inplace
    assert not graph.training
    assert not any(module.training for module in graph.modules())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_parameters_keep_dtype_memory_and_whether_they_train():
    net = row(conv=conv(4, 4, 3), bn=nn.BatchNorm2d(4), last=conv(4, 2, 3))
    net = net.double().to(memory_format=torch.channels_last)
    net.last.weight.requires_grad_(False)
    graph = prepare(net, Spec())
    for layer in weighted_layers(graph).values():
        assert layer.weight.dtype == layer.bias.dtype == torch.float64
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert graph.conv.weight.requires_grad
    assert not graph.last.weight.requires_grad


def test_a_graph_can_be_copied_and_pickled():
    graph = prepare(tiny_net(), Spec())
    images = torch.randn(1, 3, 8, 8)
    pickled = pickle.loads(pickle.dumps(graph))  # noqa: S301 - just written
    for again in (copy.deepcopy(graph), pickled):
        assert calls(again) == calls(graph)
        assert torch.equal(outputs(again, images), outputs(graph, images))
        again.head.weight.data.zero_()
        assert graph.head.weight.abs().sum() > 0


def test_a_relu_behind_layers_that_move_codes_goes_into_the_quantizer_before_them():
    net = row(conv=conv(), pool=nn.MaxPool2d(2, padding=1), relu=nn.ReLU6(), again=nn.ReLU())
    graph = prepare(net, Spec())
    assert calls(graph) == ["input_quantizer", "conv", "conv.output_quantizer", "pool"]
    assert quantizer(graph, "conv").activation == "relu6"
    assert_same(graph, net, 9 * IMAGES)


def test_a_relu_that_does_not_have_its_input_alone_stays_a_layer():
    net = net_of(lambda m, x: with_relu(m.conv(x)))
    graph = prepare(net, Spec())
    assert quantizer(graph, "conv").activation is None
    assert quantizer(graph, "relu").activation is None


def test_a_norm_whose_input_others_take_becomes_a_depthwise_convolution():
    def run(m, x):
        x = m.conv(x)
        return m.bn(x) + x

    net = net_of(run, conv=conv(), bn=nn.BatchNorm2d(3))
    for fold in (True, False):
        graph = prepare(net, Spec(), fold_batch_norm=fold)
        assert (graph.bn.groups, graph.bn.weight.shape) == (3, (3, 1, 1, 1))
        assert (graph.bn.bn is None) == fold
        assert_same(graph, net)


def test_a_norm_without_scale_and_offset_goes_in_too():
    torch.manual_seed(0)
    net = nn.Sequential(conv(), nn.BatchNorm2d(3, affine=False))
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 1.5)
    for fold in (True, False):
        assert_same(prepare(net.eval(), Spec(), fold_batch_norm=fold), net)


def test_a_norm_behind_a_linear_layer_goes_into_it():
    net = row(flat=nn.Flatten(), fc=nn.Linear(192, 4), bn=nn.BatchNorm1d(4))
    net.bn.running_mean.normal_(0, 0.1)
    graph = prepare(net, Spec(), fold_batch_norm=False)
    assert layers_of(graph) == ["flat", "fc"]
    assert_same(graph, net)
    with pytest.raises(HatError, match="'bn' is a BatchNorm1d that doesn't follow a linear"):
        prepare(row(flat=nn.Flatten(), bn=nn.BatchNorm1d(192)), Spec())


def test_kept_norms_are_modules_of_their_convolutions():
    graph = prepare(row(conv=conv(), bn=nn.BatchNorm2d(3)), Spec(), fold_batch_norm=False)
    names = {name.rpartition(".")[0] for name in graph.state_dict()}
    assert names == {
        "conv",
        "conv.bn",
        "conv.weight_quantizer",
        "conv.output_quantizer",
        "input_quantizer",
    }


def test_settings_of_a_layer_reach_its_quantizers():
    exceptions = [
        {"layers": "last", "activation_bits": 16, "weight_bits": 4, "observer": {"type": "mse"}},
        {"layers": "input", "activation_bits": 16},
    ]
    graph = prepare(row(conv=conv(), last=conv()), Spec(exceptions=tuple(exceptions)))
    assert (graph.input_quantizer.bits, quantizer(graph, "conv").bits) == (16, 8)
    assert (quantizer(graph, "last").bits, graph.last.weight_quantizer.bits) == (16, 4)
    assert quantizer(graph, "last").observer_node == {"type": "mse"}
    assert graph.conv.weight_quantizer.scale.shape == (3,)
    with pytest.raises(ConfigError, match=r"no layer matches 'lats'") as caught:
        prepare(row(conv=conv(), last=conv()), spec_of("lats"))
    assert "'last'" in caught.value.hint


def test_a_float_layer_has_a_quantizer_only_where_integers_take_its_result():
    net = row(a=conv(), relu=nn.ReLU(), pool=nn.MaxPool2d(2), b=conv(), r=nn.ReLU(), c=conv())
    last = prepare(net, spec_of("c"))
    assert calls(last)[-2:] == ["b.output_quantizer", "c"]
    assert last.c.weight_quantizer is None
    first = prepare(net, spec_of("a"))
    assert calls(first)[:4] == ["a", "a.output_quantizer", "pool", "b"]
    assert (quantizer(first, "a").activation, quantizer(first, "a").bits) == ("relu", 8)
    both = prepare(net, spec_of("a", "b"))
    assert calls(both) == [
        *("a", "relu", "pool", "b", "b.output_quantizer", "c", "c.output_quantizer")
    ]
    for graph in (last, first, both):
        assert_same(graph, net)
        set_mode(graph, "quantize")
        outputs(graph)


def test_everything_may_be_float():
    net = tiny_net()
    graph = prepare(net, spec_of("*"))
    assert calls(graph) == ["stem.0", "stem.2", "down", "up", "add", "head"]
    assert_same(graph, net)
