"""The modules that fake-quantize in a prepared graph: one of activations, one of weights."""

import math
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hatcli.quantize.fake_quantize import (
    CappedScale,
    FakeQuantize,
    LearnedFakeQuantize,
    fake_quantize_weight,
)
from hatcli.quantize.grid import Grid, power_of_two_from
from hatcli.quantize.target import Target
from hatcli.quantize.targets.ort import ort

Mode = Literal["float", "observe", "quantize"]
Activation = Literal["relu", "relu6"]
ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6}

SMALLEST_SCALE = 1e-12  # that a learned scale may reach
ORT = ort()


class ActivationQuantizer(nn.Module):
    """Puts a tensor on its grid, after the ReLU that it takes the place of.

    ``mode`` says what `forward` does: "float" applies the activation alone; "observe" does the
    same and shows the result to the observer; "quantize" rounds to the grid. The grid is in the
    buffers (or, once learned, parameter) ``scale`` and ``zero_point``, so that a state_dict
    holds it.

    Args:
        activation: the ReLU or ReLU6 before the quantization, if any.
        bits: 8 or 16.
        observer: {"type": name, ...} of the observer that will choose the range.
        target: whose grids they are.

    Attributes:
        fixed_grid: what calibration gives it whatever it sees; None where it is to choose.
        leader: the one whose grid it shares, at most one; that one has none.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        activation: Activation | None,
        bits: int,
        observer: dict[str, Any],
        target: Target = ORT,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.bits = bits
        self.target = target
        self.fixed_grid: Grid | None = None
        self.leader: tuple[ActivationQuantizer, ...] = ()  # a tuple isn't taken for a submodule
        self.observer_node = dict(observer)
        self.observer: Any = None  # while calibrating; it isn't part of the state
        self.mode: Mode = "float"
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))
        self._constants: tuple[float, int, int] | None = None

    @property
    def grid(self) -> Grid:
        """The grid as it is now."""
        scale = min(max(abs(float(self.scale.detach())), SMALLEST_SCALE), self._largest_scale)
        if self.target.power_of_two:
            scale = power_of_two_from(scale)
        zero_point = int(self.zero_point)
        return Grid(float(torch.tensor(scale, dtype=torch.float32)), zero_point, self.bits)

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest code minus the zero point that a value may get.

        A ReLU's are those from 0 up, wherever the grid begins; a ReLU6's end at that of 6.
        """
        return bounds_on(self.grid, self.activation)

    def set_grid(self, grid: Grid) -> None:
        """Take over a grid of the same width."""
        assert grid.bits == self.bits
        with torch.no_grad():
            self.scale.fill_(grid.scale)
            self.zero_point.fill_(grid.zero_point)
        self._constants = None

    def learn_scale(self) -> None:
        """Make the scale a parameter, one for all that share it; the zero point stays as it is."""
        if self.fixed_grid is not None or isinstance(self.scale, nn.Parameter):
            return
        for leader in self.leader:
            leader.learn_scale()
            del self.scale
            self.scale = leader.scale
            return
        value = self.scale.detach().clone()
        del self.scale
        self.scale = nn.Parameter(value)

    def forward(self, x: Tensor) -> Tensor:
        """The tensor, of any shape, float32, after the activation and on the grid."""
        if self.mode != "quantize":
            y = x if self.activation is None else ACTIVATIONS[self.activation](x)
            if self.mode == "observe":
                self.observer.observe(y.detach())
            return y
        if isinstance(self.scale, nn.Parameter):
            scale = CappedScale.apply(self.scale, SMALLEST_SCALE, self._largest_scale)
            if self.target.power_of_two:
                scale = rounded_up(scale)
            return LearnedFakeQuantize.apply(x, scale, *self._bounds_of_learned(scale))
        return FakeQuantize.apply(x, *self._fixed())

    @property
    def _largest_scale(self) -> float:
        is_capped = self.activation == "relu6" and self.target.caps_relu6
        return largest_relu6_scale(self.bits) if is_capped else math.inf

    def _bounds_of_learned(self, scale: Tensor) -> tuple[int, int]:
        if self.activation == "relu6" and not self.target.caps_relu6:  # they move with the scale
            grid = Grid(float(scale), int(self.zero_point), self.bits)
            return bounds_on(grid, self.activation)
        return self._fixed()[1:]

    def _fixed(self) -> tuple[float, int, int]:
        """Scale and bounds as numbers; reading a buffer each time would wait for a GPU."""
        if self._constants is None:
            self._constants = (self.grid.scale, *self.bounds)
        return self._constants

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._constants = None

    def extra_repr(self) -> str:
        """For ``print(graph)``."""
        return f"activation={self.activation}, bits={self.bits}, mode={self.mode}"


class WeightQuantizer(nn.Module):
    """Puts each output channel of a weight on a symmetric grid of its own, or all on one.

    Args:
        channels: how many scales there are: one for each output channel, or 1 for all.
        bits: 2 to 8; codes go from -(2**(bits - 1) - 1) to its negative.
        observer: {"type": name, ...} of what chooses the scales.
        power_of_two: whether the scales are rounded up to powers of two.
    """

    scale: Tensor

    def __init__(
        self, channels: int, bits: int, observer: dict[str, Any], *, power_of_two: bool = False
    ) -> None:
        super().__init__()
        self.power_of_two = power_of_two
        self.bits = bits
        self.observer_node = dict(observer)
        self.mode: Mode = "float"
        self.register_buffer("scale", torch.ones(channels))

    @property
    def highest(self) -> int:
        """The largest code."""
        return int(2 ** (self.bits - 1) - 1)

    def learn_scale(self) -> None:
        """Make the scales a parameter."""
        value = self.scale.detach().clone()
        del self.scale
        self.scale = nn.Parameter(value)

    def positive_scale(self) -> Tensor:
        """(channels,) float32, kept above zero."""
        scale = self.scale.abs().clamp_min(SMALLEST_SCALE)
        return rounded_up(scale) if self.power_of_two else scale

    def codes(self, weight: Tensor) -> Tensor:
        """The integers, int8, that stand for a weight (O, ...)."""
        scale = self.positive_scale().reshape(-1, *[1] * (weight.ndim - 1))
        return (weight / scale).round().clamp(-self.highest, self.highest).to(torch.int8)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (O, ...), on the grid unless the mode is "float"."""
        if self.mode != "quantize":
            return weight
        return fake_quantize_weight(weight, self.positive_scale(), self.highest)

    def extra_repr(self) -> str:
        """For ``print(graph)``."""
        return f"bits={self.bits}, mode={self.mode}"


def bounds_on(grid: Grid, activation: Activation | None) -> tuple[int, int]:
    """The smallest and the largest code of a grid, minus its zero point, behind an activation."""
    low = grid.low if activation is None else 0
    high = min(grid.high, round(6 / grid.scale)) if activation == "relu6" else grid.high
    return low, high


def rounded_up(scale: Tensor) -> Tensor:
    """The next powers of two from positive float32 numbers up; the gradient passes."""
    value = scale.detach()
    mantissa, _ = torch.frexp(value)
    power = torch.where(mantissa == 0.5, value, value / mantissa)
    return scale + (power - value) if scale.requires_grad else power


@cache
def largest_relu6_scale(bits: int) -> float:
    """The float32 scale at which the largest code stands for 6, or just below.

    onnxruntime computes a convolution in float where the range behind its ReLU6 goes beyond 6.
    """
    steps = 2**bits - 1
    scale = torch.tensor(6.0 / steps, dtype=torch.float32)
    if float(scale) * steps > 6.0:
        scale = torch.nextafter(scale, torch.tensor(0.0))
    return float(scale)


def set_mode(graph: nn.Module, mode: Mode) -> None:
    """Switch all quantizers of a prepared graph."""
    for module in graph.modules():
        if isinstance(module, ActivationQuantizer | WeightQuantizer):
            module.mode = mode
