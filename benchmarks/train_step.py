"""A training step in four number formats and memory layouts, and compiled where it is asked for.

``unet`` on 2x3x512x1024 (focal loss over five heads) and ``vargnetv2`` on 8x3x224x224: batch
transforms, forward, loss, backward, SGD; one thread; the variants run in turn in one process, and
the fastest step of each counts, since what else the machine does only ever adds time. Target:
bfloat16 autocast with channels_last at most 0.70 of float32 NCHW on a CPU that has AMX or
AVX512-BF16; it is the default there because of these figures.

Run: python benchmarks/train_step.py [--rounds 5] [--compile] [unet] [vargnetv2]
"""

import argparse
import time

import torch

from hatcli.config import load_config
from hatcli.data.transforms import BATCH_TRANSFORMS
from hatcli.engine import OPTIMIZERS
from hatcli.engine.device import autocast
from hatcli.losses import LOSSES
from hatcli.models import MODELS

SHAPES = {"unet": (2, 512, 1024), "vargnetv2": (8, 224, 224)}
VARIANTS = {
    "float32 NCHW": (torch.float32, torch.contiguous_format),
    "float32 channels_last": (torch.float32, torch.channels_last),
    "bfloat16 NCHW": (torch.bfloat16, torch.contiguous_format),
    "bfloat16 channels_last": (torch.bfloat16, torch.channels_last),
}


class Step:
    """A training step whose state lasts, so that every round measures a warm one."""

    def __init__(
        self, name: str, dtype: torch.dtype, layout: torch.memory_format, *, compiled: bool = False
    ) -> None:
        config = load_config(name)
        torch.manual_seed(0)
        self.dtype = dtype
        self.model = MODELS.build(config["model"]).to(memory_format=layout).train()
        self.forward = torch.compile(self.model) if compiled else self.model
        self.optimizer = OPTIMIZERS.build(config["optim"], model=self.model)
        self.loss = LOSSES.build(config["loss"], class_pixels=None)
        self.prepare = BATCH_TRANSFORMS.build(config["batch_transforms"][0])
        count, height, width = SHAPES[name]
        images = torch.randint(256, (count, 3, height, width), dtype=torch.uint8)
        self.images = images.contiguous(memory_format=layout)
        if config["task"] == "segmentation":
            self.targets = torch.randint(19, (count, height, width), dtype=torch.uint8)
        else:
            self.targets = torch.randint(1000, (count,))

    def __call__(self) -> float:
        started = time.process_time()
        with autocast(torch.device("cpu"), self.dtype):
            scores = self.forward(self.prepare(self.images))
        self.loss(scores, self.targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - started


def measure(name: str, rounds: int, *, compiles: bool) -> None:
    steps = {variant: Step(name, *settings) for variant, settings in VARIANTS.items()}
    if compiles:
        for variant in ("float32 channels_last", "bfloat16 channels_last"):
            steps[f"{variant} compiled"] = Step(name, *VARIANTS[variant], compiled=True)
    for variant, step in steps.items():
        first = step()
        if variant.endswith("compiled"):
            print(f"{name:10} {variant:32} {first:7.0f} s for the first step", flush=True)
    times: dict[str, list[float]] = {variant: [] for variant in steps}
    for _ in range(rounds):
        for variant, step in steps.items():
            times[variant].append(step())
    base = min(times["float32 NCHW"])
    for variant, values in times.items():
        fastest = min(values)
        print(f"{name:10} {variant:32} {1000 * fastest:7.0f} ms a step  ratio {fastest / base:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *SHAPES], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names or SHAPES:
        measure(name, arguments.rounds, compiles=arguments.compile)


if __name__ == "__main__":
    main()
