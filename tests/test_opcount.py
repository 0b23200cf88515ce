import importlib.metadata
import sys

import pytest
import torch
import torchvision
from torch import nn

from hatcli.errors import HatError, UsageError
from hatcli.models.unet import unet
from hatcli.opcount import OTHER, count


class Toy(nn.Module):
    """A layer, a container that is never called, and a product outside of any layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)])
        self.scale = nn.Parameter(torch.ones(8, 8))

    def forward(self, x):
        x = self.conv(x)
        for block in self.blocks:
            x = block(x)
        return x @ self.scale


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_untouched(model, state, training):
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
    assert model.training == training
    assert not any(module._forward_hooks for module in model.modules())


def rows_by_name(cost, depth):
    return {row.name: row for row in cost.at_depth(depth)}


def test_counts_by_hand():
    cost = count(Toy(), (1, 3, 8, 8))
    conv, linear = 2 * 3 * 9 * 64, 2 * 8 * 8 * 8
    assert cost.macs == conv + 3 * linear
    assert cost.ops == 2 * cost.macs
    assert cost.params == (2 * 27 + 2) + 3 * 64
    stages = rows_by_name(cost, 1)
    assert stages["conv"].macs == conv
    assert stages["conv"].outputs == ((1, 2, 8, 8),)
    assert stages["blocks"].macs == 2 * linear  # never called itself: the sum of its layers
    assert stages["blocks"].outputs == ((1, 2, 8, 8),) * 2
    assert stages[OTHER].macs == linear
    assert stages[OTHER].params == 64


@pytest.mark.parametrize("depth", [1, 2, 3, 9])
def test_the_rows_of_any_depth_add_up_to_the_totals(depth):
    cost = count(unet(num_classes=2), (1, 3, 64, 64))
    rows = cost.at_depth(depth)
    assert sum(row.macs for row in rows) == cost.macs
    assert sum(row.params for row in rows) == cost.params
    assert all(row.depth == depth or row.is_leaf for row in rows)
    assert OTHER not in {row.name for row in rows}


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_published_counts_are_met_to_3_decimals(name):
    published = torchvision.models.get_model_weights(name).DEFAULT.meta
    cost = count(torchvision.models.get_model(name), (1, 3, 224, 224))
    assert round(cost.macs / 1e9, 3) == published["_ops"]
    assert cost.params == published["num_params"]


def test_attention_is_counted():
    published = torchvision.models.get_model_weights("vit_b_16").IMAGENET1K_V1.meta
    model = torchvision.models.vit_b_16()
    cost = count(model, (1, 3, 224, 224))
    assert round(cost.macs / 1e9, 3) == published["_ops"]
    assert cost.params == published["num_params"]


def test_a_traced_model_counts_as_the_model():
    model = unet(num_classes=2).keep_head("4")
    traced = torch.fx.symbolic_trace(model)
    assert count(traced, (1, 3, 64, 64)).macs == count(model, (1, 3, 64, 64)).macs


def test_multiply_adds_grow_with_the_batch_and_the_area():
    model = unet(num_classes=2)
    assert count(model, (2, 3, 128, 128)).macs == 8 * count(model, (1, 3, 64, 64)).macs


@pytest.mark.parametrize("counter", ["flop", "thop"])
@pytest.mark.parametrize("training", [True, False])
def test_the_counted_model_stays_as_it_was(counter, training):
    model = unet(num_classes=2).train(training)
    state = state_of(model)
    count(model, (1, 3, 64, 64), counter)
    assert_untouched(model, state, training)


def test_thop_gives_its_own_published_style_totals():
    cost = count(torchvision.models.mobilenet_v2(), (1, 3, 224, 224), "thop")
    assert cost.counter == "thop"
    assert round(cost.macs / 1e9, 4) == 0.3275  # with the normalisations, which torch leaves out
    assert cost.params == 3504872
    assert sum(row.macs for row in cost.at_depth(1)) == cost.macs


def test_thop_of_the_agpl_package_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: name)
    with pytest.raises(HatError, match="comes from ultralytics-thop, whose licence is AGPL"):
        count(Toy(), (1, 3, 8, 8), "thop")


def test_flop_counting_does_not_load_thop(monkeypatch):
    monkeypatch.delitem(sys.modules, "thop", raising=False)
    count(Toy(), (1, 3, 8, 8))
    assert "thop" not in sys.modules


def test_what_the_counter_has_no_formula_for_is_named():
    class Looked(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(4, 8)
            self.linear = nn.Linear(8, 2)

        def forward(self, x):
            return self.linear(self.table(x.long()))

    uncounted = [row.name for row in count(Looked(), (1, 1, 2, 2)).rows if row.is_uncounted]
    assert uncounted == ["table"]


def test_a_shape_that_the_model_cannot_take_is_refused_in_one_line():
    with pytest.raises(UsageError, match=r"shape 1x4x8x8: .* near conv, Conv2d") as refusal:
        count(Toy(), (1, 4, 8, 8))
    assert "\n" not in refusal.value.message
