"""Random numbers of a training: those of each step follow from its place, not from what was drawn.

What torch draws in a step (dropout, drop path) depends on (seed, epoch, samples before it,
process), so that a run that goes on in the middle of an epoch draws what it would have drawn.
Python's and NumPy's global generators, which nothing here uses, are kept for a user's own parts:
seeded by epoch, and stored in checkpoints.
"""

import random
from typing import Any

import numpy as np
import torch

_MASK = 2**64 - 1


def seed_step(seed: int, epoch: int, samples: int, process: int, device: torch.device) -> None:
    """Seed what torch draws from, on the CPU and on the device of this process.

    Args:
        samples: of the epoch that all processes had taken before this step.
        process: rank among all processes.
    """
    number = _mixed(seed, epoch, samples, process)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


def seed_epoch(seed: int, epoch: int, process: int) -> None:
    """Seed Python's and NumPy's global generators."""
    number = _mixed(seed, epoch, process)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - the global one is what is meant


def global_state() -> dict[str, Any]:
    """The state of Python's and NumPy's global generators as plain values."""
    version, words, gauss = random.getstate()
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    numbers = state["state"]
    rest = [int(numbers["pos"]), int(state["has_gauss"]), float(state["gauss"])]
    return {
        "python": [version, list(words), gauss],
        "numpy": [numbers["key"].tolist(), *rest],
    }


def restore_global_state(state: dict[str, Any]) -> None:
    """Put back what `global_state` took."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    words_of_numpy = np.array(keys, np.uint32)
    np.random.set_state(("MT19937", words_of_numpy, position, has_gauss, cached))  # noqa: NPY002


def _mixed(*numbers: int) -> int:
    """One well-mixed 64-bit number: torch's CPU generator looks at the lower half alone.

    The mixing is that of SplitMix64 (Steele et al., OOPSLA 2014).
    """
    value = 0
    for number in numbers:
        value = (value ^ number) + 0x9E3779B97F4A7C15 & _MASK
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
        value ^= value >> 31
    return value
