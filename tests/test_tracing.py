import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from small_nets import (
    IMAGES,
    assert_same,
    calls,
    conv,
    layers_of,
    net_of,
    outputs,
    row,
    spec_of,
    with_relu,
)
from torch import nn

from hatcli.errors import ConfigError, HatError
from hatcli.quantize.layers import QuantConv2d, QuantLinear
from hatcli.quantize.prepare import prepare
from hatcli.quantize.spec import Spec

EQUAL = {
    "add": (lambda m, x: torch.add(m.conv(x), x), ["conv", "add"]),
    "add method": (lambda m, x: m.conv(x).add(x), ["conv", "add"]),
    "sum of Python": (lambda m, x: with_relu(m.conv(x)), ["conv", "relu", "add", "add_1"]),
    "mul": (lambda m, x: torch.mul(m.conv(x), x) * x, ["conv", "mul", "mul_1"]),
    "cat": (lambda m, x: torch.cat([m.conv(x), x], dim=1), ["conv", "cat"]),
    "cat of -3": (lambda m, x: torch.concat((m.conv(x), x), -3), ["conv", "cat"]),
    "F.relu": (lambda m, x: F.relu(m.conv(x)), ["conv"]),
    "torch.relu": (lambda m, x: torch.relu(m.conv(x)), ["conv"]),
    "relu method": (lambda m, x: m.conv(x).relu_(), ["conv"]),
    "F.relu6": (lambda m, x: F.relu6(m.conv(x)), ["conv"]),
    "clamp": (lambda m, x: m.conv(x).clamp(0, 6), ["conv"]),
    "clamp from 0": (lambda m, x: torch.clamp(m.conv(x), min=0), ["conv"]),
    "hardtanh": (lambda m, x: F.hardtanh(m.conv(x), 0.0, 6.0), ["conv"]),
    "max_pool": (lambda m, x: F.max_pool2d(m.conv(x), 3, 2, padding=1), ["conv", "max_pool2d"]),
    "avg_pool": (lambda m, x: F.avg_pool2d(m.conv(x), 2), ["conv", "avg_pool2d"]),
    "adaptive": (
        lambda m, x: F.adaptive_avg_pool2d(m.conv(x), (1, 1)),
        ["conv", "adaptive_avg_pool2d"],
    ),
    "mean": (lambda m, x: m.conv(x).mean((2, 3)), ["conv", "mean", "flatten"]),
    "mean kept": (lambda m, x: m.conv(x).mean([-1, -2], keepdim=True), ["conv", "mean"]),
    "torch.mean": (lambda m, x: torch.mean(m.conv(x), dim=(3, 2)), ["conv", "mean", "flatten"]),
    "flatten": (lambda m, x: torch.flatten(m.conv(x), 1), ["conv", "flatten"]),
    "flatten method": (lambda m, x: m.conv(x).flatten(1), ["conv", "flatten"]),
    "view": (lambda m, x: m.conv(x).view(x.size(0), -1), ["conv", "flatten"]),
    "view of shape": (lambda m, x: m.conv(x).view((x.shape[0], 192)), ["conv", "flatten"]),
    "reshape": (lambda m, x: torch.reshape(m.conv(x), (x.size()[0], -1)), ["conv", "flatten"]),
    "nearest": (lambda m, x: F.interpolate(m.conv(x), scale_factor=3), ["conv", "interpolate"]),
    "nearest-exact": (
        lambda m, x: F.interpolate(m.conv(x), scale_factor=(2, 2), mode="nearest-exact"),
        ["conv", "interpolate"],
    ),
    "bilinear": (
        lambda m, x: F.interpolate(m.conv(x), scale_factor=2, mode="bilinear", align_corners=False),
        ["conv", "interpolate"],
    ),
    "dropout": (lambda m, x: F.dropout(m.conv(x), 0.5, m.training), ["conv"]),
    "contiguous": (lambda m, x: m.conv(x.float()).contiguous(), ["conv"]),
    "pad": (lambda m, x: m.conv(F.pad(x, (0, 1, 2, 1))), ["conv"]),
    "pad alone": (lambda m, x: F.pad(m.conv(x), (1, 2)), ["conv", "pad"]),
}


@pytest.mark.parametrize("case", EQUAL)
def test_a_function_becomes_the_layer_that_computes_the_same(case):
    run, names = EQUAL[case]
    net = net_of(run)
    graph = prepare(net, Spec())
    assert layers_of(graph) == names
    assert_same(graph, net, 4 * IMAGES)


MODULES = {
    "Upsample": (nn.Upsample(scale_factor=2), 1),
    "UpsamplingNearest2d": (nn.UpsamplingNearest2d(scale_factor=2), 1),
    "Upsample bilinear": (nn.Upsample(scale_factor=(2.0, 2.0), mode="bilinear"), 1),
    "Hardtanh": (nn.Hardtanh(0.0, 6.0), 0),
    "ConstantPad2d": (nn.ConstantPad2d((1, 0, 2, 0), 0.0), 1),
    "Dropout2d": (nn.Dropout2d(), 0),
    "Identity": (nn.Identity(3, wrong=1), 0),
    "MaxPool2d": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), 1),
    "AvgPool2d": (nn.AvgPool2d(3, 2, 1), 1),
    "AvgPool2d of parts": (nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False), 1),
    "Flatten": (nn.Flatten(), 1),
    "same": (nn.Conv2d(3, 4, (2, 5), padding="same", dilation=(3, 1)), 1),
    "valid": (nn.Conv2d(3, 4, 3, padding="valid"), 1),
    "norm alone": (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), 1),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("case", MODULES)
def test_a_module_of_torch_stays_or_becomes_its_equal(case):
    module, more_layers = MODULES[case]
    net = row(conv=conv(), other=copy.deepcopy(module))
    for fold in (True, False):
        graph = prepare(net, Spec(), fold_batch_norm=fold)
        assert len(layers_of(graph)) == 1 + more_layers
        assert_same(graph, net, 4 * IMAGES)


def test_what_changes_a_tensor_in_place_changes_it_for_all_that_come_after():
    def run(m, x):
        first = m.conv(x)
        same = m.drop(first)
        copied = first.clone()
        m.relu(same)
        first += x
        return torch.cat([first, same, copied], 1)

    net = net_of(run, conv=conv(), drop=nn.Identity(), relu=nn.ReLU(inplace=True))
    graph = prepare(net, Spec())
    assert layers_of(graph) == ["conv", "relu", "add", "cat"]
    assert_same(graph, net)
    assert outputs(net)[:, 6:].min() < 0


def test_a_shared_relu_gets_a_layer_for_each_call():
    def run(m, x):
        return m.relu(m.relu(m.first(x)) + m.relu(x))

    net = net_of(run, first=conv(), relu=nn.ReLU(inplace=True), relu_1=nn.ReLU())
    net.run = lambda m, x: m.relu_1(run(m, x)) * x
    graph = prepare(net, Spec())
    assert layers_of(graph) == ["first", "relu_2", "add", "mul"]  # relu_1 is another one's name
    assert_same(graph, net)


def test_weights_that_two_calls_share_are_refused():
    net = net_of(lambda m, x: m.conv(m.conv(x)))
    with pytest.raises(HatError, match=r"'conv' is called twice") as caught:
        prepare(net, Spec())
    assert "copy.deepcopy" in caught.value.hint


FLOAT_ONLY = {
    "Hardswish": (nn.Hardswish(), "a Hardswish"),
    "Sigmoid": (nn.Sigmoid(), "a Sigmoid"),
    "SiLU": (nn.SiLU(inplace=True), "a SiLU"),
    "LeakyReLU": (nn.LeakyReLU(0.2), "a LeakyReLU"),
    "Softmax": (nn.Softmax(1), "a Softmax"),
    "Upsample": (nn.Upsample(scale_factor=4, mode="bilinear"), "an Upsample by bilinear"),
    "corners": (nn.UpsamplingBilinear2d(scale_factor=2), "an Upsample by bilinear"),
    "fraction": (nn.Upsample(scale_factor=1.5), "an Upsample by nearest"),
}


@pytest.mark.parametrize("case", FLOAT_ONLY)
def test_what_only_float_can_compute_names_the_exception_that_keeps_it_float(case):
    module, reason = FLOAT_ONLY[case]
    net = row(conv=conv(), act=copy.deepcopy(module), last=conv())
    with pytest.raises(HatError, match=f"^layer 'act' is {reason}.*, which integers") as caught:
        prepare(net, Spec())
    assert caught.value.hint == (
        'keep it float: add {"layers": "act", "float": True} to quantize.exceptions'
    )
    graph = prepare(net, spec_of("act"))
    assert "act.output_quantizer" in calls(graph)
    assert_same(graph, net)


def test_all_that_only_float_can_compute_is_named_at_once():
    net = net_of(lambda m, x: F.hardswish(torch.sigmoid(m.conv(x))) * F.softmax(x, 1))
    with pytest.raises(HatError, match=r"test_tracing.py:\d+: layer 'sigmoid'.* \(and 2 other"):
        prepare(net, Spec())
    graph = prepare(net, spec_of("sigmoid", "hardswish", "softmax"))
    assert layers_of(graph) == ["conv", "sigmoid", "hardswish", "softmax", "mul"]
    assert_same(graph, net)


NEVER = {
    "GroupNorm": nn.GroupNorm(1, 3),
    "ConvTranspose2d": nn.ConvTranspose2d(3, 3, 2),
    "Conv2d with a padding other than zeros": conv(kernel=3, padding=1, padding_mode="reflect"),
    "AdaptiveAvgPool2d to another size": nn.AdaptiveAvgPool2d(2),
    "AvgPool2d that leaves its padding out": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "AvgPool2d with padding and ceil_mode": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "MaxPool2d that returns indices": nn.MaxPool2d(2, return_indices=True),
    "Upsample to a fixed size": nn.Upsample(16),
    "Upsample by bicubic": nn.Upsample(scale_factor=2, mode="bicubic"),
    "AvgPool2d with a divisor": nn.AvgPool2d(2, divisor_override=3),
    "Flatten of other axes": nn.Flatten(2),
    "BatchNorm2d without running": nn.BatchNorm2d(3, track_running_stats=False),
}


@pytest.mark.parametrize("reason", NEVER)
def test_what_not_even_float_can_compute_says_so(reason):
    net = row(conv=conv(), odd=NEVER[reason])
    with pytest.raises(
        HatError, match=f"layer 'odd' has an? {reason}.*not even in float"
    ) as caught:
        prepare(net, spec_of("odd"))
    assert "Hardswish" in caught.value.hint


FUNCTIONS = {
    "the function mul with a number": lambda m, x: m.conv(x) * 0.5,
    "the function add with alpha=2": lambda m, x: torch.add(m.conv(x), x, alpha=2),
    "the function sub": lambda m, x: m.conv(x) - x,
    "the function cat along axis 2": lambda m, x: torch.cat([m.conv(x), x], 2),
    "the function group_norm": lambda m, x: F.group_norm(m.conv(x), 1),
    "the function mean over other axes": lambda m, x: m.conv(x).mean(1),
    "a view other than": lambda m, x: m.conv(x).view(2, 3, 64),
    "the function dropout without": lambda m, x: F.dropout(m.conv(x)),
    "the function interpolate that takes the size": lambda m, x: F.interpolate(
        m.conv(x), size=x.shape[2:]
    ),
    "the function add that takes the constant": lambda m, x: m.conv(x) + m.conv.bias,
    "the function conv2d": lambda m, x: F.conv2d(x, m.conv.weight),
    "a padding other than": lambda m, x: F.pad(m.conv(x), (1, 1, 1, 1), mode="reflect"),
    "the function clamp from 0 to 5": lambda m, x: m.conv(x).clamp(0, 5),
    "the function permute": lambda m, x: m.conv(x).permute(0, 2, 3, 1),
}


@pytest.mark.parametrize("reason", FUNCTIONS)
def test_a_function_that_no_layer_computes_is_refused_with_its_line(reason):
    net = net_of(FUNCTIONS[reason])
    with pytest.raises(HatError, match=rf"test_tracing\.py:\d+: {reason}"):
        prepare(net, spec_of("*"))


@pytest.mark.parametrize("run", [lambda m, x: 2 * m.conv(x), lambda m, x: m.conv(x) + m.conv.bias])
def test_a_number_in_a_sum_or_product_is_refused_with_what_to_do(run):
    with pytest.raises(HatError) as caught:
        prepare(net_of(run), Spec())
    assert caught.value.hint.startswith("let a BatchNorm2d")


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        y = self.conv(x)
        if y.sum() > 0:
            y = y * x
        return y


class Long(Inner):
    def forward(self, x):
        return self.conv(x) if len(x) > 1 else x


@pytest.mark.parametrize(
    ("net", "source", "reason"),
    [
        (Branching(), "if y.sum() > 0:", "control flow"),
        (Long(), "return self.conv(x) if len(x) > 1 else x", "'len' is not supported"),
    ],
    ids=["branch", "len"],
)
def test_what_cannot_be_traced_names_its_line(net, source, reason):
    lines, start = inspect.getsourcelines(Inner if isinstance(net, Branching) else type(net))
    number = start + next(i for i, line in enumerate(lines) if line.strip() == source)
    with pytest.raises(HatError) as caught:
        prepare(net, Spec())
    message = caught.value.message
    assert f"test_tracing.py:{number}: can't be traced: '{source}'" in message
    assert reason in message
    assert "\n" not in message
    assert "quantize.leaf_modules" in caught.value.hint


def test_a_leaf_module_is_one_float_layer():
    net = row(first=conv(), odd=Inner(), last=conv())
    leaves = {"leaf_modules": ["od*"]}
    with pytest.raises(
        HatError, match=r"'odd' is an Inner, one of quantize.leaf_modules"
    ) as caught:
        prepare(net, spec_of(**leaves))
    assert '{"layers": "odd", "float": True}' in caught.value.hint
    graph = prepare(net, spec_of("odd", **leaves))
    assert layers_of(graph) == ["first", "odd", "last"]
    assert_same(graph, net)
    with pytest.raises(ConfigError, match=r"leaf_modules: no module matches 'od'") as wrong:
        prepare(net, spec_of(leaf_modules=["od"]))
    assert "'odd'" in wrong.value.hint


def test_subclasses_of_torchs_layers_that_compute_the_same_are_these_layers():
    class Mine(nn.Conv2d):
        def __init__(self):
            super().__init__(3, 4, 1)

    class Other(Mine):
        def forward(self, x):
            return super().forward(x).relu()

    assert isinstance(prepare(row(mine=Mine()), Spec()).mine, QuantConv2d)
    with pytest.raises(HatError, match="the function conv2d"):
        prepare(row(other=Other()), Spec())


def test_other_arguments_keep_their_defaults():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv()

        def forward(self, x, double=False, *, scale=None):
            x = self.conv(x)
            return x + x if double or scale is not None else x

    net = Optional()
    assert layers_of(prepare(net, Spec())) == ["conv"]


def test_a_model_has_one_input_and_one_output():
    class Two(nn.Module):
        def forward(self, a, b):
            return a + b

    with pytest.raises(HatError, match=r"model Two: forward needs 2 inputs \(a, b\)"):
        prepare(Two(), Spec())
    net = net_of(lambda m, x: (m.conv(x), x))
    with pytest.raises(HatError, match="model Net: forward returns a tuple of 2") as caught:
        prepare(net, Spec())
    assert "deploy.head" in caught.value.hint


def test_a_model_of_one_layer_can_be_prepared():
    for net, kind in ((conv().eval(), QuantConv2d), (nn.Linear(8, 2).eval(), QuantLinear)):
        graph = prepare(net, Spec())
        assert isinstance(graph.layer, kind)
        assert_same(graph, net)


def test_a_layer_that_nobody_needs_is_left_out():
    def run(m, x):
        m.odd(x)
        return m.conv(x)

    graph = prepare(net_of(run, conv=conv(), odd=nn.GELU()), Spec())
    assert layers_of(graph) == ["conv"]
