"""Faults of the machine, told as what a user can do about them."""

from pathlib import Path

import torch

from hatcli.errors import ConfigError, HatError

_CPU_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "DefaultCPUAllocator",
    "could not create a memory",  # oneDNN's words for its workspace
    "bad_alloc",
    "Cannot allocate memory",
)


def explain(error: Exception, run: Path, accumulate: int) -> HatError | None:
    """What a user can do about an error of torch; None where nothing is known.

    Args:
        run: folder of the run.
        accumulate: batches of a step, as they are.
    """
    if "Expected more than 1 value per channel" in str(error):
        return ConfigError(
            "batch norm has a single value to normalise: one image, at one cell of the deepest map",
            "set train.batch_size to at least 2, or larger crops",
        )
    if "Expected to have finished reduction in the prior iteration" in str(error):
        return ConfigError(
            "some parameters of the model got no gradient, and several processes wait for all",
            "set fit.find_unused=True, which costs time, or train parts that give a score alone",
        )
    return _explain_out_of_memory(error, run, accumulate)


def _explain_out_of_memory(error: Exception, run: Path, accumulate: int) -> HatError | None:
    is_cuda = isinstance(error, torch.OutOfMemoryError)
    is_cpu = isinstance(error, MemoryError) or any(text in str(error) for text in _CPU_TEXTS)
    if not is_cuda and not is_cpu:
        return None
    where = "the GPU" if is_cuda else "this machine"
    peak = ""
    if is_cuda:
        free, total = torch.cuda.mem_get_info()
        most = torch.cuda.max_memory_allocated()
        peak = f" ({most / 2**30:.1f} GiB in use at most, {free / 2**30:.1f} free of "
        peak += f"{total / 2**30:.1f})"
    return HatError(
        f"{where} is out of memory{peak}",
        f"halve train.batch_size and set fit.accumulate={2 * accumulate}: the recipe stays the "
        "same (batch norm sees smaller batches); or fit.precision=bf16, smaller crops, fewer "
        f"--workers. Go on with: hat train --resume-from {run} --allow-config-change",
    )
