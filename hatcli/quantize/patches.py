"""Single places of a layer's result, and the inputs that each of them is computed from."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hatcli.quantize.layers import QuantConv2d

# For each place: its image, row and column, (P,) int64 each; of (N, O) results the image alone.
Places = tuple[Tensor, ...]


def pick_places(batches: list[Tensor], count: int, generator: torch.Generator) -> list[Places]:
    """Random places of results, the same number in each image.

    Args:
        batches: (N, O, H, W) or (N, O) each.
        count: places for each image, a place may come twice; all of them where there are fewer.
        generator: on the CPU.
    """
    picked: list[Places] = []
    for batch in batches:
        images, size = torch.arange(len(batch)), batch.shape[2:]
        area = size.numel()
        if not size:
            picked.append((images.to(batch.device),))
            continue
        if count >= area:
            where = torch.arange(area).repeat(len(batch))
        else:
            where = torch.randint(area, (len(batch) * count,), generator=generator)
        images = images.repeat_interleave(min(count, area))
        place = (images, where // size[1], where % size[1])
        picked.append(tuple(index.to(batch.device) for index in place))
    return picked


def results(batch: Tensor, places: Places, groups: int) -> Tensor:
    """(groups, P, O / groups): a layer's result (N, O, ...) at places."""
    found = batch[places] if batch.ndim == 2 else batch[places[0], :, places[1], places[2]]
    return found.reshape(len(found), groups, -1).transpose(0, 1)


def patches(layer: Any, batch: Tensor, places: Places) -> Tensor:
    """(groups, P, I / groups * kh * kw): what a layer computes its result at places from.

    The last dimension is in the order of ``layer.weight[0]``.
    """
    if not isinstance(layer, QuantConv2d):
        return batch[places][None]
    padded = F.pad(batch, layer.padding)
    height, width = layer.weight.shape[2:]
    device = batch.device
    rows = places[1][:, None] * layer.stride[0]
    rows = rows + torch.arange(height, device=device) * layer.dilation[0]
    columns = places[2][:, None] * layer.stride[1]
    columns = columns + torch.arange(width, device=device) * layer.dilation[1]
    found = padded[places[0][:, None, None], :, rows[:, :, None], columns[:, None, :]]
    found = found.permute(0, 3, 1, 2).reshape(len(found), layer.groups, -1)
    return found.transpose(0, 1).contiguous()
