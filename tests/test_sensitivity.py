"""Which layers hurt: measured as toggling would, planted faults first, causes by name."""

import math
from copy import deepcopy

import pytest
import torch
from small_graphs import finished
from small_nets import net_of, row, spec_of
from street_net import street_net
from torch import nn

from hatcli.errors import HatError, UsageError
from hatcli.events import Progress
from hatcli.quantize.analysis.details import describe_layers
from hatcli.quantize.analysis.sensitivity import measure_damage
from hatcli.quantize.bias_correction import correct_biases
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.prepare import prepare
from hatcli.quantize.quantizers import ActivationQuantizer, set_mode
from hatcli.quantize.spec import read_spec

BATCHES = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
FAULT = 3  # the channel that is scaled


def quantized(model, spec=None, batches=BATCHES, *, correct=True):
    """A calibrated graph, and what it was before."""
    reference = prepare(model, spec or read_spec({"observer": {"type": "min_max"}}))
    graph = deepcopy(reference)
    finished(calibrate(graph, batches, total=8))
    if correct:
        finished(correct_biases(graph, batches))
    return graph, reference


def damages(model, spec=None, batches=BATCHES):
    graph, reference = quantized(model, spec, batches)
    return finished(measure_damage(graph, reference, batches))[0].layers


def named(layers, name):
    (found,) = [layer for layer in layers if layer.name == name]
    return found


def conv_relu(inputs, outputs, kernel=3, relu=nn.ReLU, groups=1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups), relu()
    )


def street():
    torch.manual_seed(0)
    net = street_net(num_classes=5, width=16)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def mobile():
    """Expanding, depthwise and projecting layers with ReLU6, and a shortcut."""
    return net_of(
        lambda net, x: net.head(
            (y := net.stem(x)) + net.project(net.depthwise(net.expand(y)))
        ).mean((2, 3)),
        stem=conv_relu(3, 8, relu=nn.ReLU6),
        expand=conv_relu(8, 24, 1, nn.ReLU6),
        depthwise=conv_relu(24, 24, relu=nn.ReLU6, groups=24),
        project=nn.Conv2d(24, 8, 1),
        head=nn.Conv2d(8, 5, 1),
    )


class Branches(nn.Module):
    """Two branches behind each other, and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = conv_relu(3, 8)
        self.left = conv_relu(8, 8, 1)
        self.right = conv_relu(8, 8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(self.pool(x).flatten(1))


def branches():
    torch.manual_seed(0)
    return Branches().eval()


MODELS = {"street": street, "mobile": mobile, "branches": branches}
PLANTED = [
    ("street", "stem.0"),
    ("street", "down.0"),
    ("street", "depthwise.0"),
    ("mobile", "stem.0"),
    ("mobile", "expand.0"),
    ("mobile", "depthwise.0"),
    ("mobile", "project"),
    ("branches", "stem.0"),
    ("branches", "left.0"),
    ("branches", "right.0"),
]
GRANULARITIES = ("channel", "tensor")


def scale_channel(model, name, factor=1000.0):
    layer = model.get_submodule(name)
    with torch.no_grad():
        layer.weight[FAULT] *= factor
        if layer.bias is not None:
            layer.bias[FAULT] *= factor


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("kind", "name"), PLANTED)
def test_a_channel_scaled_by_1000_is_the_first_in_the_list_with_its_cause(kind, name, granularity):
    model = MODELS[kind]()
    spec = read_spec({"observer": {"type": "min_max"}, "weight_granularity": granularity})
    assert not any(layer.is_fault for layer in damages(model, spec))
    scale_channel(model, name)
    first = damages(model, spec)[0]
    assert (first.name, first.is_fault) == (name, True)
    assert first.cause.startswith("one channel has ")
    assert f"times the others: channel {FAULT}" in first.cause
    assert first.remedy


@pytest.mark.parametrize(
    ("kind", "name", "user"),
    [("mobile", "project", None), ("branches", "stem.0", ["left.0", "right.0"]),
     ("branches", "left.0", ["head"])],
)  # fmt: skip
def test_a_fault_that_the_next_layer_makes_good_in_float_is_first_too(kind, name, user):
    model = MODELS[kind]()
    expected = model(BATCHES[0]).detach()
    scale_channel(model, name)
    for one in user or []:
        with torch.no_grad():
            model.get_submodule(one).weight[:, FAULT] /= 1000
    if user:
        torch.testing.assert_close(model(BATCHES[0]), expected, rtol=1e-3, atol=1e-3)
    layers = damages(model)
    assert layers[0].name == name
    assert layers[0].is_fault
    if user:
        assert layers[0].alone_sqnr < 20


def test_layers_that_pass_the_fault_on_stand_behind_its_origin():
    model = street()
    scale_channel(model, "down.0")
    layers = damages(model)
    assert layers[0].name == "down.0"
    assert {layer.name for layer in layers[1:3]} == {"depthwise.0", "add"}
    for layer in layers[1:3]:
        assert layer.cause.startswith("takes over channel 3, ")
        assert layer.remedy == "mend the layer before it"


@pytest.mark.parametrize("kind", MODELS)
def test_alone_is_what_the_graph_gives_with_this_layers_quantizers_alone_switched_on(kind):
    graph, reference = quantized(MODELS[kind](), correct=False)
    job = measure_damage(graph, reference, BATCHES, bias_correction=False)
    layers = finished(job)[0].layers
    assert len(layers) > 5
    for layer in layers:
        set_mode(graph, "float")
        for name, module in graph.named_modules():
            own = "input_quantizer" if layer.name == "input" else f"{layer.name}.output_quantizer"
            if name in (own, f"{layer.name}.weight_quantizer"):
                module.mode = "quantize"
        signal = noise = 0.0
        for batch in BATCHES:
            with torch.no_grad():
                exact, found = reference(batch).double(), graph(batch).double()
            signal += float(exact.square().sum())
            noise += float((exact - found).square().sum())
        assert layer.alone_sqnr == pytest.approx(10 * math.log10(signal / noise), abs=0.01)


def test_the_sqnr_of_the_scores_is_that_of_both_graphs():
    graph, reference = quantized(street())
    layers = finished(measure_damage(graph, reference, BATCHES))[0].layers
    with torch.no_grad():
        exact = torch.cat([reference(batch) for batch in BATCHES]).double()
        found = torch.cat([graph(batch) for batch in BATCHES]).double()
    expected = 10 * math.log10(float(exact.square().sum() / (exact - found).square().sum()))
    assert named(layers, "head").sqnr == pytest.approx(expected, abs=0.01)
    quantizers = [m for m in graph.modules() if isinstance(m, ActivationQuantizer)]
    assert {module.mode for module in quantizers} == {"quantize"}


def test_corrected_biases_count_and_the_graph_stays_as_it_was():
    spec = read_spec({"weight_bits": 3})
    graph, reference = quantized(street(), spec)
    before = {name: tensor.clone() for name, tensor in graph.state_dict().items()}
    with_correction = finished(measure_damage(graph, reference, BATCHES))[0].layers
    without = finished(measure_damage(graph, reference, BATCHES, bias_correction=False))[0].layers
    assert named(with_correction, "stem.0").alone_sqnr > named(without, "stem.0").alone_sqnr
    after = graph.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_list_is_in_the_order_of_damage():
    layers = damages(street(), read_spec({"weight_bits": 4}))
    assert not any(layer.is_fault for layer in layers)
    alone = [layer.alone_sqnr for layer in layers]
    assert alone == sorted(alone)
    assert {layer.name for layer in layers} == {
        "input", "stem.0", "down.0", "depthwise.0", "add", "add_1", "head",
    }  # fmt: skip
    kinds = {layer.name: layer.kind for layer in layers}
    assert kinds["depthwise.0"] == "depthwise"
    assert (kinds["head"], kinds["add"], kinds["input"]) == ("Conv2d", "Add", "input")


def test_a_layer_in_float_has_no_damage():
    layers = damages(street(), spec_of("stem.0", "head"))
    for name in ("stem.0", "head"):
        assert named(layers, name).is_float
    assert named(layers, "head").alone_sqnr == math.inf
    assert named(layers, "head").bits == 32
    assert named(layers, "head").cause == "kept in float by an exception"
    assert named(layers, "stem.0").bits == 8  # the next one is integers


def test_four_bits_are_the_cause_where_weights_have_no_more():
    layers = damages(street(), read_spec({"weight_bits": 3}))
    worst = layers[0]
    assert worst.weight_share > 0.9
    assert worst.cause == "its weights have 3 bits alone"
    assert "adaround" in worst.remedy


def test_one_scale_for_uneven_weights_is_named():
    model = row(even=nn.Conv2d(3, 16, 1), own=nn.Conv2d(16, 16, 1, groups=16))
    factor = torch.logspace(-1.7, 0.0, 16).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        model.even.weight /= factor
        model.even.bias.zero_()
        model.own.weight.copy_(torch.rand(16, 1, 1, 1) * factor + factor)
    fine = {"layers": "even", "activation_bits": 16, "weight_granularity": "channel"}
    spec = read_spec({"weight_granularity": "tensor", "exceptions": [fine]})
    worst = named(damages(model, spec), "own")
    assert worst.weight_share > 0.5
    assert worst.cause.startswith("one scale for all its weights: the largest channel is ")
    assert "weight_granularity" in worst.remedy


def test_outliers_are_named():
    batches = [batch.clone() for batch in BATCHES]
    batches[0][0, 0, 0, 0] = 200.0
    layers = damages(row(conv=nn.Conv2d(3, 4, 1)), batches=batches)
    assert named(layers, "input").cause.startswith("outliers: its range reaches 200")
    assert "percentile" in named(layers, "input").remedy


def test_a_range_that_is_cut_is_named():
    spec = read_spec({"observer": {"type": "percentile", "percent": 90.0}})
    layers = damages(row(conv=nn.Conv2d(3, 4, 1)), spec)
    assert " is cut to " in named(layers, "input").cause
    assert "min_max" in named(layers, "input").remedy


def test_a_concat_of_unequal_ranges_is_named():
    model = branches()
    with torch.no_grad():
        model.left[0].weight *= 200
        model.left[0].bias *= 200
        model.head.weight[:, :8] /= 200
    layers = damages(model)
    cause = named(layers, "cat").cause if any(x.name == "cat" for x in layers) else None
    assert cause is not None, [layer.name for layer in layers]
    assert "its inputs share a grid with ranges of " in cause
    assert "right.0 has " in cause


def test_an_activation_without_an_integer_form_is_named():
    model = row(conv=nn.Conv2d(3, 8, 3), act=nn.SiLU(), head=nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model.conv.weight *= 40
    layers = damages(model, spec_of("act"))
    assert "SiLU has no integer form" in named(layers, "act").cause
    assert "ReLU" in named(layers, "act").remedy


def test_dead_channels_are_counted():
    model = row(conv=nn.Conv2d(3, 8, 1), relu=nn.ReLU(), head=nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model.conv.bias[:2] = -100
    assert named(damages(model), "conv").cause.endswith("; 2 of 8 channels are always 0")


def test_progress_tells_how_many_layers_are_looked_at():
    graph, reference = quantized(street())
    _, events = finished(measure_damage(graph, reference, BATCHES))
    last = events[-1]
    assert isinstance(last, Progress)
    assert (last.done, last.total) == (8, 8)
    assert last.detail == "7 layers"


def test_pictures_have_their_numbers():
    graph, reference = quantized(street())
    found = describe_layers(graph, reference, ["stem.0", "add"], BATCHES[0])
    assert set(found) == {"stem.0", "add"}
    stem = found["stem.0"]
    assert sum(stem["weight_hist"]["counts"]) == 16 * 27
    assert len(stem["activation_hist"]["edges"]) == len(stem["activation_hist"]["counts"]) + 1
    assert len(stem["scatter"]["float"]) == len(stem["scatter"]["integer"]) <= 2000
    with torch.no_grad():
        exact = stem["scatter"]["float"], stem["scatter"]["integer"]
    assert max(abs(a - b) for a, b in zip(*exact, strict=True)) < 0.1 * max(exact[0])
    assert "weight_hist" not in found["add"]


def test_no_images_and_broken_scores_are_errors():
    graph, reference = quantized(street())
    with pytest.raises(UsageError, match="sensitivity: there are no images"):
        finished(measure_damage(graph, reference, []))
    broken = [torch.full((1, 3, 16, 16), math.inf)]
    with pytest.raises(HatError, match="hold NaN or inf"):
        finished(measure_damage(graph, reference, broken))
