"""Blocks that several families share: convolutions with batch normalisation, and their start."""

from collections import OrderedDict

from torch import nn


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    *,
    relu: bool = True,
    bias: bool = False,
    bn_eps: float = 1e-5,
    bn_momentum: float = 0.1,
) -> nn.Sequential:
    """A convolution, its batch normalisation and, unless ``relu=False``, a ReLU.

    Maps (N, in_channels, H, W) to (N, out_channels, H', W'), where H' is H / stride rounded up;
    the border is padded with zeros.

    Args:
        kernel: side of the square kernel, odd.
        groups: number of groups of the convolution.
        bias: whether the convolution adds a bias of its own; redundant before the
            normalisation, but some published parameter counts include it.
        bn_momentum: share of the newest batch in the running statistics.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(
        in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias
    )
    layers["bn"] = nn.BatchNorm2d(out_channels, eps=bn_eps, momentum=bn_momentum)
    if relu:
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def separable(
    in_channels: int,
    out_channels: int,
    stride: int = 1,
    kernel: int = 3,
    *,
    relu: bool = True,
    bias: bool = False,
    bn_eps: float = 1e-5,
    bn_momentum: float = 0.1,
) -> nn.Sequential:
    """A depthwise convolution with ReLU, then a pointwise one: MobileNet's block.

    Howard et al., "MobileNets", arXiv 1704.04861. The stride is that of the depthwise half;
    ``relu=False`` leaves out the last ReLU only. Shapes as in `conv_bn`.
    """
    depthwise = conv_bn(
        in_channels,
        in_channels,
        kernel,
        stride,
        groups=in_channels,
        bias=bias,
        bn_eps=bn_eps,
        bn_momentum=bn_momentum,
    )
    pointwise = conv_bn(
        in_channels,
        out_channels,
        relu=relu,
        bias=bias,
        bn_eps=bn_eps,
        bn_momentum=bn_momentum,
    )
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))


def init_weights(model: nn.Module) -> None:
    """Set the start of training in place: He et al., arXiv 1502.01852; norms are the identity.

    The draws come from torch's global generator, which the caller seeds.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # By fan-in: torch's fan-out ignores groups and is far too small for depthwise layers.
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
