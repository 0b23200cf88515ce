"""The layers of a prepared graph: each node of it calls one of these, or a quantizer.

Beside them stand modules of torch as they are: MaxPool2d, AvgPool2d, AdaptiveAvgPool2d(1),
Flatten(1), ZeroPad2d, Upsample (nearest, whole factor), ReLU and ReLU6 that no quantizer could
take in, and, in float parts, LeakyReLU, Sigmoid, Hardsigmoid, Hardswish, SiLU, Softmax and any
Upsample.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hatcli.quantize.quantizers import WeightQuantizer


class QuantConv2d(nn.Module):
    """A convolution whose weight is fake-quantized; its bias stays float until it is lowered.

    Maps (N, I, H, W) to (N, O, H', W') float32.

    Args:
        conv: the convolution to take over; padding_mode "zeros".
        padding: left, right, top, bottom, as ``F.pad`` has them: zeros around the map.

    Attributes:
        weight: (O, I / groups, kh, kw) parameter.
        bias: (O,) parameter, zeros where the convolution had none.
        weight_quantizer: None where the layer stays float.
        bn: the batch norm behind it while it isn't folded.
    """

    weight_quantizer: WeightQuantizer | None
    bn: nn.BatchNorm2d | None

    def __init__(self, conv: nn.Conv2d, padding: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().clone(), conv.weight.requires_grad)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.bias = nn.Parameter(bias.to(self.weight))
        self.stride = (conv.stride[0], conv.stride[1])
        self.dilation = (conv.dilation[0], conv.dilation[1])
        self.groups = conv.groups
        self.padding = padding
        self.weight_quantizer = None
        self.bn = None

    def forward(self, x: Tensor) -> Tensor:
        """The convolution with the weight on its grid, and the batch norm that is left."""
        weight = (
            self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)
        )
        left, right, top, bottom = self.padding
        if left == right and top == bottom:
            padding = (top, left)
        else:
            x, padding = F.pad(x, self.padding), (0, 0)
        y = F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return y if self.bn is None else self.bn(y)

    def extra_repr(self) -> str:
        """For ``print(graph)``."""
        out, per_group, *kernel = self.weight.shape
        return (
            f"{per_group * self.groups}, {out}, kernel={tuple(kernel)}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}"
        )

    def fold(self) -> None:
        """Take the batch norm's running statistics into weight, scales and bias.

        Scaling a channel of a weight by f and its quantization scale by abs(f) gives the same
        codes, so that what was learned with the norm apart still holds.
        """
        if self.bn is None:
            return
        bn = self.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        with torch.no_grad():
            factor = torch.rsqrt(bn.running_var.double() + bn.eps)
            factor = factor if bn.weight is None else factor * bn.weight
            self.weight.copy_(self.weight * factor.reshape(-1, 1, 1, 1))
            offset = 0.0 if bn.bias is None else bn.bias
            self.bias.copy_((self.bias - bn.running_mean) * factor + offset)
            if self.weight_quantizer is not None:
                self.weight_quantizer.scale.mul_(factor.abs())
        self.bn = None


class QuantLinear(nn.Module):
    """A linear layer whose weight is fake-quantized: (N, I) to (N, O) float32."""

    weight_quantizer: WeightQuantizer | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().clone(), linear.weight.requires_grad)
        out = linear.out_features
        bias = torch.zeros(out) if linear.bias is None else linear.bias.detach().clone()
        self.bias = nn.Parameter(bias.to(self.weight))
        self.weight_quantizer = None

    def forward(self, x: Tensor) -> Tensor:
        """The product with the weight on its grid, plus the bias."""
        weight = (
            self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)
        )
        return F.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        """For ``print(graph)``."""
        out, features = self.weight.shape
        return f"{features}, {out}"


class Add(nn.Module):
    """The sum of two tensors of one shape."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Their sum."""
        return a + b


class Multiply(nn.Module):
    """The product of two tensors of shapes that fit each other."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Their product."""
        return a * b


class Concat(nn.Module):
    """Several maps (N, C_i, H, W) behind each other along the channels."""

    def forward(self, *maps: Tensor) -> Tensor:
        """(N, sum of C_i, H, W)."""
        return torch.cat(maps, dim=1)


class UpsampleBilinear2x(nn.Module):
    """Twice the height and width, as ``align_corners=False`` has it.

    As integers it is a nearest upsampling and a fixed depthwise convolution: with [1 2 1] / 4
    along both axes over doubled pixels, the even ones get (x[i-1] + 3 x[i]) / 4 and the odd ones
    (3 x[i] + x[i+1]) / 4, which are the weights of the bilinear interpolation.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 2H, 2W)."""
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def weighted_layers(graph: nn.Module) -> dict[str, Any]:
    """Name -> layer of all `QuantConv2d` and `QuantLinear`, in the order of the modules."""
    return {
        name: module
        for name, module in graph.named_modules()
        if isinstance(module, QuantConv2d | QuantLinear)
    }
