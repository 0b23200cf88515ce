"""The original's recipe of UNet against our own, at the same computing time on small real data.

Both train the same network on packs in Cityscapes layout whose pictures are about 480x360, with
crops of 320x384, batch 4 and one thread, without workers, so that the time of the process is all
the work there is. A first look measures what an epoch of each costs; the epochs of a run are as
many as fit into the budget, schedules included. The score is the mIoU at the end of the run, over
classes that occur.

Run: python benchmarks/recipes.py DATA [--seconds 300] [--seeds 1] [key=value ...]
``key=value`` changes both recipes. Target: ours at least 1.0 mIoU above the original's, mean of 3
seeds, 2400 seconds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from hatcli.config import Config, load_config
from hatcli.engine.checkpoint import load_checkpoint
from hatcli.events import finish
from hatcli.recipes.check import check_config
from hatcli.recipes.training.train import train_float

RECIPES = ("unet", "unet_augmented")
CROP = (320, 384)
MEASURED_EPOCHS = 2


def settings(name: str, data: Path, epochs: int, seed: int, changes: list[str]) -> Config:
    """The recipe at the size of the data, with its schedule fitted to the epochs."""
    base = load_config(name)
    texts = [
        f"data_rootdir={data.resolve()}", f"epochs={epochs}", f"seed={seed}",
        f"train.transforms.0.height={CROP[0]}",
        f"train.transforms.0.width={CROP[1]}",
        "train.batch_size=4", "train.num_workers=0", "val.num_workers=0",
        f"fit.val_every={epochs}",
    ]  # fmt: skip
    if "milestones" in base["schedule"]:
        shares = [at * epochs // base["epochs"] for at in base["schedule"]["milestones"]]
        texts.append(f"schedule.milestones={shares}")
    if "warmup_epochs" in base["schedule"]:
        texts.append(f"schedule.warmup_epochs={base['schedule']['warmup_epochs'] * epochs / 300}")
    config = load_config(name, [*texts, *changes])
    check_config(config)
    return config


def train(config: Config) -> tuple[float, float]:
    """The mIoU at the end in percent, and the seconds of processor time that it took."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        result = finish(train_float(config, device="cpu", out=Path(folder)))
        return load_checkpoint(result.last)["metrics"]["mIoU"], time.process_time() - started


def epochs_for(name: str, data: Path, seconds: float, changes: list[str]) -> int:
    """As many as fit, by the cost of an epoch and of what a run does once."""
    costs = [train(settings(name, data, n, 0, changes))[1] for n in (1, 1 + MEASURED_EPOCHS)]
    once, each = costs[0], (costs[1] - costs[0]) / MEASURED_EPOCHS
    return max(2, round((seconds - once) / each) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seconds", type=float, default=2400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    arguments, changes = parser.parse_known_args()
    torch.set_num_threads(1)
    means = {}
    for name in arguments.recipes:
        epochs = epochs_for(name, arguments.data, arguments.seconds, changes)
        scores = []
        for seed in range(arguments.seeds):
            config = settings(name, arguments.data, epochs, seed, changes)
            score, seconds = train(config)
            scores.append(score)
            print(f"{name:16} seed {seed}  {epochs} epochs  {seconds:6.0f} s  mIoU {score:.2f}",
                  flush=True)  # fmt: skip
        means[name] = statistics.mean(scores)
    for name, mean in means.items():
        print(f"{name:16} mean mIoU {mean:.2f}")


if __name__ == "__main__":
    main()
