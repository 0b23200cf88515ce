import pytest
import torch
import torchvision
from torch import nn

from hatcli.config import SHIPPED
from hatcli.errors import ConfigError
from hatcli.models import MODELS
from hatcli.models.efficientnet_lite import EfficientNetLite
from hatcli.models.vargconvnet import DownBlock, vargconvnet
from hatcli.opcount import count

CLASSIFIERS = sorted(path.stem for path in SHIPPED.glob("classification/*.py"))
LITE_SIZES = {0: 224, 1: 240, 2: 260, 3: 280, 4: 300}
TORCHVISION = {"resnet18": "resnet18", "resnet50": "resnet50", "mobilenetv2": "mobilenet_v2"}


def on_meta(name, **arguments):
    """A model that knows shapes and holds no data."""
    with torch.device("meta"):
        return MODELS.build({"type": name, **arguments})


def with_trained_norms(model, seed=0):
    """A model whose normalisations do something, as after training."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "arguments", "side", "gmacs", "params"),
    [
        ("vargconvnet", {}, 224, 4.512, 9.475),
        ("vargnetv2", {}, 224, 0.360, 3.629),
        ("vargnetv2", {"width": 0.5}, 224, 0.131, 1.918),
        ("vargnetv2", {"width": 2.0}, 224, 1.144, 11.070),
        ("tiny_vargnetv2", {}, 224, 0.267, 2.634),
        ("mobilenetv1", {}, 224, 0.569, 4.232),
        ("mobilenetv1", {"alpha": 0.25}, 224, 0.041, 0.470),
        ("efficientnet_lite0", {}, 224, 0.385, 4.652),
        ("efficientnet_lite1", {}, 240, 0.600, 5.417),
        ("efficientnet_lite2", {}, 260, 0.860, 6.092),
        ("efficientnet_lite3", {}, 280, 1.383, 8.197),
        ("efficientnet_lite4", {}, 300, 2.553, 13.007),
    ],
)
def test_a_model_costs_what_is_published(name, arguments, side, gmacs, params):
    cost = count(on_meta(name, **arguments), (1, 3, side, side))
    assert (round(cost.macs / 1e9, 3), round(cost.params / 1e6, 3)) == (gmacs, params)


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_model_costs_what_torchvision_publishes(name):
    published = torchvision.models.get_model_weights(TORCHVISION[name]).DEFAULT.meta
    cost = count(on_meta(name), (1, 3, 224, 224))
    assert round(cost.macs / 1e9, 3) == published["_ops"]
    assert cost.params == published["num_params"]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_state_loads_and_gives_torchvisions_scores(name):
    torch.manual_seed(0)
    theirs = with_trained_norms(torchvision.models.get_model(TORCHVISION[name], weights=None))
    with torch.device("meta"):
        ours = MODELS.build({"type": name})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), assign=True)
    images = torch.randn(2, 3, 65, 96)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours.eval()(images), expected, rtol=0, atol=0)
    assert expected.std() > 0


@pytest.mark.parametrize("side", [64, 112, 97])
@pytest.mark.parametrize("name", [*CLASSIFIERS, "tiny_vargnetv2"])
def test_the_average_is_over_the_whole_map_at_any_size(name, side):
    assert on_meta(name, num_classes=5)(
        torch.empty(2, 3, side, side + 32, device="meta")
    ).shape == (
        2,
        5,
    )


def test_vargconvnet_stays_within_the_cost_of_the_original():
    cost = count(on_meta("vargconvnet"), (1, 3, 224, 224))
    assert 4.30e9 < cost.macs < 4.53e9
    assert 8e6 < cost.params < 10e6


@pytest.fixture(scope="module")
def varg():
    return on_meta("vargconvnet")


def convolutions(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def test_vargconvnet_has_a_deep_stem_of_three_3x3_convolutions(varg):
    stem = [
        (c.in_channels, c.out_channels, c.kernel_size, c.stride) for c in convolutions(varg.stem)
    ]
    assert stem == [
        (3, 32, (3, 3), (2, 2)), (32, 32, (3, 3), (1, 1)), (32, 64, (3, 3), (1, 1)),
    ]  # fmt: skip
    assert sum(isinstance(layer, nn.ReLU) for layer in varg.stem.modules()) == 3
    plain = convolutions(on_meta("vargconvnet", deep_stem=False).stem)
    assert [(c.kernel_size, c.stride) for c in plain] == [((3, 3), (2, 2))]


def test_a_stage_of_vargconvnet_begins_with_5x5_at_stride_2_and_a_pooled_shortcut(varg):
    assert [len(stage) for stage in varg.stages] == [3, 5, 7, 2]
    for stage, groups in zip(varg.stages, [(1, 1), (1, 2), (2, 4), (4, 8)], strict=True):
        first, wide, second, _ = convolutions(stage[0].body)
        assert (first.kernel_size, first.stride, first.groups) == ((5, 5), (2, 2), groups[0])
        assert (second.kernel_size, second.stride, second.groups) == ((3, 3), (1, 1), groups[1])
        assert (wide.kernel_size, wide.groups) == ((1, 1), 1)
        pool, point = stage[0].shortcut.pool, stage[0].shortcut.point
        assert (type(pool), pool.kernel_size, pool.stride) == (nn.AvgPool2d, 2, 2)
        assert [type(layer) for layer in point] == [nn.Conv2d, nn.BatchNorm2d]


def test_every_group_of_vargconvnet_reads_64_channels(varg):
    groups = [c for c in convolutions(varg.stages) if c.kernel_size != (1, 1)]
    assert len(groups) == 2 * (3 + 5 + 7 + 2)
    assert {c.in_channels // c.groups for c in groups} == {64}
    widened = {(c.in_channels, c.out_channels) for c in groups}
    assert widened == {(64, 128), (128, 256), (128, 128), (256, 256), (512, 512)}


def test_vargconvnet_has_a_relu_between_its_convolutions_and_none_after_a_sum(varg):
    for block in (block for stage in varg.stages for block in stage):
        for unit in block.body:
            assert [type(layer) for layer in unit.group][-1] is nn.ReLU
            assert [type(layer) for layer in unit.point] == [nn.Conv2d, nn.BatchNorm2d]
    graph = torch.fx.symbolic_trace(vargconvnet(num_classes=3)).graph
    sums = [node for node in graph.nodes if node.op == "call_function"]
    assert len(sums) == 3 + 5 + 7 + 2
    assert not any("relu" in str(user.target) for node in sums for user in node.users)


def test_vargconvnet_ends_in_1024_averaged_channels_and_normalised_scores(varg):
    top = [(type(layer), getattr(layer, "out_channels", None)) for layer in varg.head.top]
    assert top == [(nn.Conv2d, 1024), (nn.BatchNorm2d, None), (nn.ReLU, None)]
    assert isinstance(varg.head.pool, nn.AdaptiveAvgPool2d)
    assert [type(layer) for layer in varg.head.scores] == [nn.Conv2d, nn.BatchNorm2d]


def test_a_block_sums_its_two_paths():
    block = with_trained_norms(DownBlock(8, 16, groups=2, factor=2))
    for side, halved in ((6, 3), (7, 4)):
        x = torch.randn(1, 8, side, side)
        out = block(x)
        assert out.shape == (1, 16, halved, halved)
        torch.testing.assert_close(out, block.shortcut(x) + block.body(x))
    assert block.shortcut.pool(torch.arange(3.0).view(1, 1, 1, 3)).flatten().tolist() == [0.5, 2.0]


@pytest.mark.parametrize("side", [10, 11])
@pytest.mark.parametrize("kernel", [3, 5])
def test_efficientnet_lite_pads_as_tensorflow_does(side, kernel):
    from hatcli.models.efficientnet_lite import _conv

    layer = _conv(1, 1, side, kernel, 2, relu=False)
    nn.init.ones_(layer.conv.weight)
    x = torch.arange(float(side)).view(1, 1, 1, side).expand(1, 1, side, side).contiguous()
    middle = layer.eval()(x)[0, 0, 3] * (1 + 1e-3) ** 0.5 / kernel  # sums of single rows
    out, half = -(-side // 2), (kernel - 1) // 2
    # "SAME": the windows are spread so that what hangs over is shared, the odd pixel on the right
    over = (out - 1) * 2 + kernel - side
    centres = [half - over // 2 + 2 * index for index in range(out)]
    expected = [sum(range(max(0, c - half), min(side, c + half + 1))) for c in centres]
    torch.testing.assert_close(middle, torch.tensor(expected, dtype=torch.float32))


def test_efficientnet_lite_has_the_norms_of_tensorflow():
    model = on_meta("efficientnet_lite0")
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


PUBLIC_NAMES = {
    "_conv_stem.weight": "stem.conv.weight",
    "_bn0.running_var": "stem.bn.running_var",
    "_blocks.0._depthwise_conv.weight": "blocks.0.layers.depthwise.conv.weight",
    "_blocks.0._bn2.bias": "blocks.0.layers.project.bn.bias",
    "_blocks.13._expand_conv.weight": "blocks.13.layers.expand.conv.weight",
    "_blocks.13._bn0.num_batches_tracked": "blocks.13.layers.expand.bn.num_batches_tracked",
    "_conv_head.weight": "head.conv.weight",
    "_bn1.weight": "head.bn.weight",
    "_fc.bias": "classifier.bias",
}
TIMM_NAMES = {
    "conv_stem.weight": "stem.conv.weight",
    "bn1.bias": "stem.bn.bias",
    "blocks.0.0.conv_dw.weight": "blocks.0.layers.depthwise.conv.weight",
    "blocks.0.0.bn1.weight": "blocks.0.layers.depthwise.bn.weight",
    "blocks.0.0.conv_pw.weight": "blocks.0.layers.project.conv.weight",
    "blocks.0.0.bn2.weight": "blocks.0.layers.project.bn.weight",
    "blocks.1.0.conv_pw.weight": "blocks.1.layers.expand.conv.weight",
    "blocks.1.1.bn2.running_mean": "blocks.2.layers.depthwise.bn.running_mean",
    "blocks.2.0.conv_pwl.weight": "blocks.3.layers.project.conv.weight",
    "conv_head.weight": "head.conv.weight",
    "bn2.weight": "head.bn.weight",
    "classifier.weight": "classifier.weight",
}


@pytest.mark.parametrize("names", [PUBLIC_NAMES, TIMM_NAMES], ids=["package", "timm"])
def test_public_names_of_efficientnet_lite_become_its_own(names):
    renamed = EfficientNetLite.weight_names({name: torch.tensor(0) for name in names})
    assert list(renamed) == list(names.values())


def package_name(own):
    """The public name of one of our tensors, from the table of one block and the top."""
    table = {
        "stem.conv": "_conv_stem", "stem.bn": "_bn0", "head.conv": "_conv_head",
        "head.bn": "_bn1", "classifier": "_fc", "expand.conv": "_expand_conv",
        "expand.bn": "_bn0", "depthwise.conv": "_depthwise_conv", "depthwise.bn": "_bn1",
        "project.conv": "_project_conv", "project.bn": "_bn2",
    }  # fmt: skip
    layer, _, kind = own.rpartition(".")
    start, found, rest = layer.partition(".layers.")
    return f"_{start}.{table[rest]}.{kind}" if found else f"{table[layer]}.{kind}"


@pytest.mark.parametrize("number", LITE_SIZES)
def test_the_whole_public_state_of_efficientnet_lite_is_understood(number):
    own = on_meta(f"efficientnet_lite{number}").state_dict()
    public = {package_name(name): tensor for name, tensor in own.items()}
    assert len(public) == len(own)
    assert list(EfficientNetLite.weight_names(public)) == list(own)
    assert list(EfficientNetLite.weight_names(own)) == list(own)  # its own names stay


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"type": "vargconvnet", "repeats": [1, 2]}, "5 channels, 2 repeats and 4 factors"),
        ({"type": "vargconvnet", "group_width": 48}, "64 and 64 channels .* groups of 48"),
        ({"type": "vargconvnet", "factors": [0, 1, 1, 1]}, "at least 1"),
        ({"type": "vargnetv2", "width": 0.3}, "width 0.3 gives channels that aren't groups of 8"),
        ({"type": "tiny_vargnetv2", "width": 0}, "'tiny_vargnetv2': width 0"),
        ({"type": "mobilenetv1", "alpha": float("nan")}, "alpha must be at least 0.125"),
        ({"type": "mobilenetv2", "dropout": 1.0}, "width 1.0 and dropout 1.0"),
        ({"type": "efficientnet_lite0", "image_size": 0}, "image_size 0"),
    ],
)
def test_arguments_that_make_no_network_are_refused(node, message):
    with pytest.raises(ConfigError, match=message):
        MODELS.build(node)


def test_channels_are_rounded_as_in_the_papers():
    from hatcli.models.blocks import rounded_channels

    assert [rounded_channels(n) for n in (3, 8, 11.9, 12, 35.2, 22.4, 1280)] == [
        8, 8, 16, 16, 32, 24, 1280,
    ]  # fmt: skip
