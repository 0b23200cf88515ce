"""A training step of ``unet`` on 2x3x512x1024 in four number formats and memory layouts.

Forward, focal loss over five heads, backward, SGD; one thread; the variants run in turn in one
process. Target: bfloat16 autocast with channels_last at most 0.75 of float32 NCHW on a CPU that
has AMX or AVX512-BF16.
"""

import statistics
import time

import torch

from hatcli.config import load_config
from hatcli.data.transforms import BATCH_TRANSFORMS
from hatcli.engine import OPTIMIZERS
from hatcli.engine.device import autocast
from hatcli.losses import LOSSES
from hatcli.models import MODELS

ROUNDS = 5
VARIANTS = {
    "float32 NCHW": (torch.float32, torch.contiguous_format),
    "float32 channels_last": (torch.float32, torch.channels_last),
    "bfloat16 NCHW": (torch.bfloat16, torch.contiguous_format),
    "bfloat16 channels_last": (torch.bfloat16, torch.channels_last),
}


class Step:
    """A training step whose state lasts, so that every round measures a warm one."""

    def __init__(self, dtype: torch.dtype, layout: torch.memory_format) -> None:
        config = load_config("unet")
        torch.manual_seed(0)
        self.dtype = dtype
        self.model = MODELS.build(config["model"]).to(memory_format=layout).train()
        self.optimizer = OPTIMIZERS.build(config["optim"], model=self.model)
        self.loss = LOSSES.build(config["loss"], class_pixels=None)
        self.prepare = BATCH_TRANSFORMS.build(config["batch_transforms"][0])
        images = torch.randint(256, (2, 3, 512, 1024), dtype=torch.uint8)
        self.images = images.contiguous(memory_format=layout)
        self.targets = torch.randint(19, (2, 512, 1024), dtype=torch.uint8)

    def __call__(self) -> float:
        started = time.process_time()
        with autocast(torch.device("cpu"), self.dtype):
            scores = self.model(self.prepare(self.images))
        self.loss(scores, self.targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    steps = {name: Step(*variant) for name, variant in VARIANTS.items()}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            times[name].append(step())
    base = statistics.median(times["float32 NCHW"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:24} {1000 * median:7.0f} ms a step  ratio {median / base:.2f}")


if __name__ == "__main__":
    main()
