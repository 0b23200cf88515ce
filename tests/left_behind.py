"""What a training leaves: its last checkpoint, its log, and whether two of them are the same."""

from pathlib import Path

import torch

STATE = (
    *("state_dict", "ema_state_dict", "ema_updates", "optimizer", "epoch", "samples", "best"),
    *("losses", "random", "history"),
)


def last_in(root: Path | str, step: str = "float") -> Path:
    """The last checkpoint of the only run in a folder."""
    (found,) = Path(root).rglob(f"{step}-checkpoint-last.pth.tar")
    return found


def steps_logged(root: str) -> int:
    """How many steps the logs in a folder tell of."""
    return sum(log.read_text().count("  step ") for log in Path(root).rglob("train.log"))


def same_state(first: dict, second: dict) -> list[str]:
    """Names of all that differs between two checkpoints."""
    different = []

    def compare(one: object, two: object, name: str) -> None:
        if isinstance(one, dict):
            assert one.keys() == two.keys(), name
            for key in one:
                compare(one[key], two[key], f"{name}.{key}")
        elif isinstance(one, list):
            assert len(one) == len(two), name
            for index, item in enumerate(one):
                compare(item, two[index], f"{name}.{index}")
        elif isinstance(one, torch.Tensor):
            if not torch.equal(one, two):
                different.append(name)
        elif one != two:
            different.append(name)

    for key in STATE:
        compare(first[key], second[key], key)
    return different
