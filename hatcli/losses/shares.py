"""What a loss is divided by when several processes compute parts of it."""

import torch.distributed as dist
from torch import Tensor


def mean_over_processes(count: Tensor) -> Tensor:
    """How many cells each process has in the mean; for one process, how many it has.

    The gradients of n processes are averaged. Each loss divided by this number instead of by its
    own count gives, averaged, the sum of all losses over the count of all: that of one process
    with the whole batch, however unevenly the labels lie.

    Args:
        count: a scalar without a gradient; unchanged. All processes must call this equally often.
    """
    if not dist.is_initialized():
        return count
    total = count.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
