import pytest
import torch
from torch import nn

from hatcli.errors import ConfigError
from hatcli.models import MODELS
from hatcli.models.blocks import DropPath

NAMES = ["efficientnet_lite0", "mobilenetv2", "resnet18", "resnet50", "vargconvnet"]


def built(name: str, **more: object) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build({"type": name, "num_classes": 10, **more})


@pytest.mark.parametrize("name", NAMES)
def test_drop_path_changes_no_weight_no_graph_and_no_score(name):
    plain, dropping = built(name), built(name, drop_path=0.4)
    weights, others = plain.state_dict(), dropping.state_dict()
    assert list(weights) == list(others)
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    graphs = [str(torch.fx.symbolic_trace(model.eval()).graph) for model in (plain, dropping)]
    assert graphs[0] == graphs[1]
    assert "drop_path" not in graphs[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_rises_from_block_to_block(name):
    rates = [module.rate for module in built(name, drop_path=0.4).modules()
             if isinstance(module, DropPath)]  # fmt: skip
    assert rates[0] == 0
    assert rates == sorted(rates)
    assert 0.3 < rates[-1] <= 0.4
    assert not any(m.rate for m in built(name).modules() if isinstance(m, DropPath))


def test_training_differs_from_one_draw_to_the_next():
    model, images = built("resnet18", drop_path=0.5).train(), torch.randn(4, 3, 32, 32)
    torch.manual_seed(1)
    first = model(images)
    torch.manual_seed(2)
    assert not torch.equal(model(images), first)


def test_a_rate_of_one_is_refused():
    with pytest.raises(ConfigError, match="drop_path must be from 0 to below 1"):
        built("mobilenetv2", drop_path=1.0)
