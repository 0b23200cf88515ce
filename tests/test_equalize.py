import copy

import pytest
import torch
from small_graphs import conv, finished, graph_of, linear, quantizer, residual_net
from torch import nn

from hatcli.errors import UsageError
from hatcli.events import Progress
from hatcli.models import MODELS
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.equalize import CAP, MARGIN, equalize, find_pairs
from hatcli.quantize.layers import weighted_layers
from hatcli.quantize.prepare import prepare
from hatcli.quantize.quantizers import WeightQuantizer
from hatcli.quantize.spec import Spec


def images(number=8, seed=0, size=12):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


def outputs(graph, batch):
    with torch.no_grad():
        return graph(batch)


def spread(layer, seed):
    """Give the output channels of a layer very different ranges."""
    factors = 10 ** torch.empty(len(layer.weight)).uniform_(
        -1, 1, generator=torch.Generator().manual_seed(seed)
    )
    with torch.no_grad():
        layer.weight.mul_(factors.reshape(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.mul_(factors)


def chain(activation="relu"):
    """Dense, depthwise, max pool, dense, pooling and classifier in a row, badly scaled."""
    torch.manual_seed(0)
    layers = {
        "dense": conv(3, 8),
        "depthwise": conv(8, 8, groups=8),
        "last": conv(8, 6, 1),
        "head": linear(6, 4),
    }
    for seed, layer in enumerate(list(layers.values())[:3]):
        spread(layer, seed)
    steps = [("input_quantizer", quantizer())]
    for name, layer in layers.items():
        steps += [(name, layer), (f"{name}.output_quantizer", quantizer(activation))]
        if name == "depthwise":
            steps.append(("pool", nn.MaxPool2d(2)))
        if name == "last":
            steps += [("mean", nn.AdaptiveAvgPool2d(1)), ("mean.output_quantizer", quantizer())]
            steps.append(("flatten", nn.Flatten(1)))
    return graph_of(steps)


def ranges(pair):
    given = pair.first.weight.detach().abs().flatten(1).amax(1)
    second, groups = pair.second.weight.detach().abs(), getattr(pair.second, "groups", 1)
    taken = second.reshape(groups, -1, second.shape[1], second[0, 0].numel()).amax((1, 3))
    return given, taken.flatten()


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


def test_both_sides_of_each_channel_get_one_range_and_the_result_stays():
    graph = chain(None)
    for name in ("dense", "depthwise", "last"):
        graph.get_submodule(name).bias.data.zero_()
    before, batch = outputs(graph, images()), images()
    weights = {
        name: layer.weight.detach().clone() for name, layer in weighted_layers(graph).items()
    }
    # All channels may be scaled to any range: none is as large as the first one on any image.
    findings, events = finished(equalize(graph, [batch[:5], images(0), batch[5:]], total=8))
    assert findings == []
    assert events[-1] == Progress("equalising", 8, 8)
    assert relative(outputs(graph, batch), before) < 1e-4
    pairs = find_pairs(graph)
    assert [pair.name for pair in pairs] == ["dense", "depthwise", "last"]
    changed = [
        n for n, layer in weighted_layers(graph).items() if not layer.weight.equal(weights[n])
    ]
    assert changed == ["dense", "depthwise", "last", "head"]
    for pair in pairs:
        given, taken = ranges(pair)
        free = (given / taken).log().abs() < 1e-2
        assert int(free.sum()) >= len(free) // 2
        # The others would have grown beyond the largest channel.
        assert bool((given < 1.01 * taken)[~free].all())


def test_factors_are_those_of_the_paper():
    graph = graph_of(
        [("a", conv(3, 2, 1)), ("a.output_quantizer", quantizer("relu")), ("b", conv(2, 3, 1))]
    )
    with torch.no_grad():
        graph.a.weight.copy_(torch.tensor([[8.0, 0, 0], [0.5, 0, 0]])[:, :, None, None])
        graph.a.bias.copy_(torch.tensor([16.0, 0.0]))
        graph.b.weight.copy_(torch.tensor([[2.0, 0], [0, 1.0], [0.1, 0.5]])[:, :, None, None])
    finished(equalize(graph, [images()], total=8))
    # The roots of 8 / 2 and of 0.5 / 1 are what the channels are divided by.
    assert torch.allclose(graph.a.weight[:, 0, 0, 0], torch.tensor([4.0, 0.5**0.5]))
    assert torch.allclose(graph.a.bias, torch.tensor([8.0, 0.0]))
    expected = torch.tensor([[4.0, 0], [0, 0.5**0.5], [0.2, 0.5**1.5]])
    assert torch.allclose(graph.b.weight[:, :, 0, 0], expected)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_one_scale_for_a_weight_does_less_harm_afterwards(activation):
    errors = {}
    wanted = outputs(chain(activation), images(seed=5))
    for is_equalized in (False, True):
        graph = chain(activation)
        for layer in weighted_layers(graph).values():
            layer.weight_quantizer = WeightQuantizer(1, 6, {"type": "min_max"})
        if is_equalized:
            finished(equalize(graph, [images()], total=8))
        finished(calibrate(graph, [images()], total=8))
        errors[is_equalized] = float((outputs(graph, images(seed=5)) - wanted).square().mean())
    assert errors[True] < 0.7 * errors[False]


def test_a_relu6_stays_where_it_cuts():
    graph = chain("relu6")
    before = copy.deepcopy(graph)
    finished(equalize(graph, [images()], total=8))
    assert {q.activation for pair in find_pairs(graph) for q in pair.quantizers} == {"relu6", None}
    assert relative(outputs(graph, images()), outputs(before, images())) < 1e-4
    reached = outputs_of(before, "dense").relu().amax((0, 2, 3))
    cut = reached > CAP / MARGIN
    assert 0 < int(cut.sum()) < len(cut)
    same = [graph.dense.weight[i].equal(before.dense.weight[i]) for i in range(len(cut))]
    assert same == cut.tolist()
    after = outputs_of(graph, "dense").relu().amax((0, 2, 3))
    assert float(after[~cut].max()) < CAP / MARGIN * 1.001


def outputs_of(graph, name):
    found = []
    hook = graph.get_submodule(name).register_forward_hook(lambda _m, _i, y: found.append(y))
    outputs(graph, images())
    hook.remove()
    return found[0]


def test_a_dead_channel_stays_as_it_is():
    graph = chain()
    with torch.no_grad():
        graph.dense.weight[2] = 0
        graph.dense.weight[3] *= 1e-12
        graph.last.weight[:, 5] = 0
    before = outputs(graph, images())
    finished(equalize(graph, [images()], total=8))
    assert all(bool(torch.isfinite(value).all()) for value in graph.state_dict().values())
    assert relative(outputs(graph, images()), before) < 1e-4


def test_what_others_use_as_well_is_left_alone():
    graph = residual_net()
    assert [pair.name for pair in find_pairs(graph)] == ["depthwise"]
    weights = {
        name: layer.weight.detach().clone() for name, layer in weighted_layers(graph).items()
    }
    before = outputs(graph, images())
    finished(equalize(graph, [images()], total=8))
    changed = [
        n for n, layer in weighted_layers(graph).items() if not layer.weight.equal(weights[n])
    ]
    assert changed == ["depthwise", "pointwise"]
    assert relative(outputs(graph, images()), before) < 1e-4


def test_layers_that_run_twice_are_float_or_keep_their_norm_are_left_alone():
    kept, plain = conv(3, 3), conv(3, 3)
    kept.bn = nn.BatchNorm2d(3)
    plain.weight_quantizer = None
    graph = graph_of([("kept", kept), ("one", conv(3, 3)), ("plain", plain), ("two", conv(3, 3))])
    assert find_pairs(graph) == []
    findings, _ = finished(equalize(graph, [images()], total=8))
    assert [str(finding) for finding in findings] == [
        "equalize: no two layers of weights follow each other directly"
    ]
    shared = graph_of([("one", conv(3, 3)), ("two", conv(3, 3))])
    node = next(iter(shared.graph.find_nodes(op="call_module", target="two")))
    with shared.graph.inserting_after(node):
        second = shared.graph.call_module("two", (node,))
    node.replace_all_uses_with(second, delete_user_cb=lambda user: user is not second)
    assert find_pairs(shared) == []


def test_flattened_maps_are_no_channels():
    steps = [("conv", conv(3, 4)), ("flatten", nn.Flatten(1)), ("head", linear(4 * 144, 2))]
    assert find_pairs(graph_of(steps)) == []


@pytest.mark.parametrize("name", ["efficientnet_lite0", "unet"])
def test_a_real_network_computes_the_same(name):
    torch.manual_seed(0)
    model = MODELS.build({"type": name, "num_classes": 7}).train()
    size = 128 if name == "unet" else 64
    with torch.no_grad():
        for seed in range(4):
            model(images(4, seed, size))  # for the batch norms
    model = model.keep_head("4") if name == "unet" else model
    graph = prepare(model.eval(), Spec(weight_granularity="tensor"))
    batch = images(4, 0, size)
    before = outputs(graph, batch)
    finished(equalize(graph, [batch], total=4))
    assert len(find_pairs(graph)) > (30 if name == "efficientnet_lite0" else 5)
    assert relative(outputs(graph, batch), before) < 1e-4


def test_no_images_is_an_error():
    with pytest.raises(UsageError, match=r"^equalisation: there are no images$"):
        finished(equalize(chain(), [images(0)], total=0))
