import pytest
import torch
from torch import nn

from hatcli.errors import ConfigError, UsageError
from hatcli.models import MODELS
from hatcli.models.unet import unet
from hatcli.opcount import count

STRIDES = (4, 8, 16, 32, 64)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return unet().eval()


def test_deployed_unet_costs_what_the_manual_publishes(model):
    cost = count(model.keep_head("4"), (1, 3, 1024, 2048))
    assert round(cost.macs / 1e9, 3) == 3.680
    assert round(cost.ops / 1e9, 2) == 7.36
    assert round(cost.params / 1e6, 3) == 0.999


def test_trained_unet_with_all_heads_costs_4_327_gmacs(model):
    cost = count(model, (1, 3, 1024, 2048))
    assert round(cost.macs / 1e9, 3) == 4.327
    assert round(cost.params / 1e6, 3) == 1.380


def test_encoder_and_decoder_have_their_shares(model):
    stages = {row.name: row for row in count(model, (1, 3, 1024, 2048)).at_depth(1)}
    assert round(stages["encoder"].macs / 1e9, 3) == 1.704
    assert round(stages["encoder"].params / 1e6, 3) == 0.216
    assert round(stages["decoder"].macs / 1e9, 3) == 1.724
    assert round(stages["decoder"].params / 1e6, 3) == 0.781


def test_scores_are_a_tuple_finest_first(model):
    scores = model(torch.rand(2, 3, 64, 128))
    assert isinstance(scores, tuple)
    assert [tuple(s.shape) for s in scores] == [(2, 19, 64 // s, 128 // s) for s in STRIDES]


@pytest.mark.parametrize("stride", STRIDES)
def test_a_kept_head_gives_the_same_bits_as_in_the_whole_model(model, stride):
    images = torch.rand(1, 3, 128, 64)
    kept = model.keep_head(str(stride))
    assert torch.equal(kept(images), model(images)[STRIDES.index(stride)])


def test_a_kept_head_shares_its_parameters_and_nothing_of_the_other_heads(model):
    kept = model.keep_head("16")
    whole = dict(model.named_parameters())
    for name, parameter in kept.named_parameters():
        assert parameter is whole[name]
    assert list(kept.heads) == ["16"]
    assert list(kept.decoder.stages) == ["32", "16"]
    assert list(model.heads) == ["4", "8", "16", "32", "64"]  # the whole model is as it was


def test_keeping_a_head_touches_no_train_or_eval_mode():
    frozen = unet(num_classes=2).train()
    frozen.encoder.eval()
    kept = frozen.keep_head("4")
    assert kept.training
    assert not kept.encoder.training
    assert all(not module.training for module in frozen.encoder.modules())
    assert not unet(num_classes=2).eval().keep_head("4").training


def test_a_head_that_does_not_exist_is_refused_with_the_nearest(model):
    with pytest.raises(UsageError, match="no head '46'") as refusal:
        model.keep_head("46")
    assert refusal.value.hint == "did you mean '4'?"


@pytest.mark.parametrize("is_training", [True, False])
def test_unet_is_traceable_and_the_trace_computes_the_same(model, is_training):
    model.train(is_training)
    traced = torch.fx.symbolic_trace(model)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for mine, its in zip(model(images), traced(images), strict=True):
            assert torch.equal(mine, its)
    model.eval()


def test_every_norm_has_the_published_eps_and_every_convolution_a_bias(model):
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(2e-5, 0.1)}
    assert all(convolution.bias is not None for convolution in convolutions)
    assert len(norms) == len(convolutions) == 27 + 4 + 4 * 6 + 5 * 3


def test_the_seed_decides_the_weights():
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(unet(num_classes=2).state_dict()["encoder.stages.2.0.conv.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_fresh_weights_keep_the_scale_of_the_signal():
    torch.manual_seed(0)
    depthwise = unet().encoder.stages["32"][1].depthwise.conv.weight
    assert depthwise.shape == (256, 1, 3, 3)
    assert depthwise.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)


def test_alpha_scales_the_width_and_nearest_is_offered():
    wide = MODELS.build({"type": "unet", "alpha": 0.5, "upsample": "nearest", "num_classes": 3})
    assert wide.decoder.stages["4"].above.pointwise.conv.out_channels == 64
    assert wide(torch.rand(2, 3, 64, 64))[0].shape == (2, 3, 16, 16)


def test_a_unet_without_channels_is_refused():
    with pytest.raises(ConfigError, match=r"alpha=0\.01 and num_classes=19 leave no channel"):
        unet(alpha=0.01)
    with pytest.raises(ConfigError, match="num_classes=0"):
        unet(num_classes=0)
