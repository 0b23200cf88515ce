"""What all integer operations share."""

from typing import Any

import torch
from torch import Tensor, nn

from hatcli.quantize.grid import Grid


class IntegerOp(nn.Module):
    """An operation that is known by its settings and tensors alone.

    Args:
        out: the grid of the result; None where that is float32.
        settings: what else its constructor takes that is no tensor.

    Attributes:
        settings: all of the constructor's arguments that are no tensors; with `tensors` they
            build an equal operation.
    """

    def __init__(self, out: Grid | None, **settings: Any) -> None:
        super().__init__()
        self.out = out
        self.settings: dict[str, Any] = settings if out is None else {"out": out, **settings}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Constructor argument -> tensor."""
        return dict(self.named_buffers(recurse=False))

    def extra_repr(self) -> str:
        """For ``print(graph)``."""
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())


def requantize(accumulated: Tensor, multiplier: Tensor | float, out: Grid) -> Tensor:
    """The centred codes of ``accumulated * multiplier``, rounded half to even; in place.

    ``out = clamp(round(fp32(acc) * fp32(m)))``, as MlasRequantizeOutput of onnxruntime has it.

    Args:
        accumulated: integers that float32 rounds as a conversion from int32 would.
        multiplier: input scale times weight scale over output scale, each step in float32.
    """
    return accumulated.mul_(multiplier).clamp_(out.low, out.high).round_()


def quantize(x: Tensor, out: Grid) -> Tensor:
    """The centred codes of float32 values: ONNX's QuantizeLinear.

    The scale is a tensor on the device: CUDA multiplies by the reciprocal of a plain number.
    """
    return torch.div(x, x.new_tensor(out.scale)).clamp_(out.low, out.high).round_()


def single(value: float) -> Tensor:
    """A number as float32, on which arithmetic rounds as onnxruntime's does."""
    return torch.tensor(value, dtype=torch.float32)
