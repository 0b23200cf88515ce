"""The preparation of images as the first nodes of a file."""

import onnx
import torch
from torch import Tensor, nn

from hatcli.export.onnx import INPUT, SCORES, Deployed, Dynamic, export_onnx

PREPARED = "prepared"  # the float32 images behind the preprocessing
PREFIX = "preprocess."


def prepend(
    model: onnx.ModelProto,
    prepare: nn.Module,
    shape: tuple[int, ...],
    *,
    dynamic: Dynamic,
    size_divisor: int,
) -> None:
    """Put the preprocessing in front of a model in place: it then takes uint8 RGB images.

    Args:
        prepare: uint8 (N, 3, H, W) to the model's float32 input.
    """
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    front = export_onnx(
        Deployed(_AsIs(), prepare),
        shape,
        dynamic=dynamic,
        size_divisor=size_divisor,
        opset=opset,
    ).model.graph
    names = {SCORES: PREPARED, INPUT: INPUT}
    for tensor in front.initializer:
        tensor.name = names.setdefault(tensor.name, PREFIX + tensor.name)
    for node in front.node:
        node.name = PREFIX + node.name
        node.input[:] = [_renamed(name, names) for name in node.input]
        node.output[:] = [_renamed(name, names) for name in node.output]
    for node in model.graph.node:
        node.input[:] = [PREPARED if name == INPUT else name for name in node.input]
    nodes = [*front.node, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(front.initializer)
    model.graph.input[0].CopyFrom(front.input[0])


class _AsIs(nn.Module):
    """A model that does nothing, and yet has a result of its own."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.clone(images)


def _renamed(name: str, names: dict[str, str]) -> str:
    return names.setdefault(name, PREFIX + name) if name else name
