"""A training of a small network on made-up batches that takes no time."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hatcli.engine import OPTIMIZERS, SCHEDULES
from hatcli.engine.ema import Ema
from hatcli.engine.evaluation import evaluate
from hatcli.engine.loop import fit
from hatcli.engine.training import FitSettings, Training
from hatcli.events import Event


class Blobs:
    """Two classes of 8-pixel pictures that differ in brightness; the same for every epoch."""

    samples_a_batch = 8
    process = 0

    def __init__(self, steps: int = 4, bad_step: int | None = None) -> None:
        self.steps, self.bad_step = steps, bad_step

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        for step in range(start // 8, self.steps):
            generator = torch.Generator().manual_seed(100 * number + step)
            targets = torch.arange(8) % 2
            noise = torch.randn(8, 3, 2, 4, generator=generator)
            images = noise + targets.view(-1, 1, 1, 1)
            if step == self.bad_step:
                images[3, 0, 0, 0] = math.nan
            yield images, targets, [f"e{number}s{step}n{i}" for i in range(8)]


class Share:
    """Share of right answers."""

    best_by = "top1"

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.right = self.seen = 0

    def update(self, scores: Tensor, targets: Tensor) -> None:
        self.right += int((scores.argmax(1) == targets).sum())
        self.seen += len(targets)

    def compute(self) -> dict[str, float]:
        return {"top1": 100 * self.right / max(self.seen, 1)}


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(64, 2),
    )  # fmt: skip


def new_training(ema: float | None = 0.9, **optim: object) -> Training:
    model = small_model()
    node = {"type": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, **optim}
    optimizer = OPTIMIZERS.build(node, model=model)
    return Training(model, optimizer, Ema(model, ema) if ema is not None else None)


def run(training: Training, epochs: int, batches: Blobs | None = None, **settings: object) -> list:
    return list(start(training, epochs, batches, **settings))


def start(
    training: Training, epochs: int, batches: Blobs | None = None, **settings: object
) -> Iterator[Event]:
    batches = batches or Blobs()
    node = {"type": "cosine", "warmup_epochs": 1}
    schedule = SCHEDULES.build(node, steps_per_epoch=len(batches), epochs=6)
    metric = Share()

    def validate(model: nn.Module):
        metric.reset()
        batch = Blobs(2).epoch(99)
        cpu = torch.device("cpu")
        return (
            yield from evaluate(
                model.eval(), batch, metric, prepare=nn.Identity(), device=cpu, total=16
            )
        )

    return fit(
        training,
        batches,
        FitSettings(epochs=epochs, **settings),
        loss=nn.CrossEntropyLoss(),
        prepare=nn.Identity(),
        schedule=schedule,
        validate=validate,
        best_by="top1",
    )


def flat(training: Training) -> dict[str, Tensor]:
    state = {f"model.{k}": v for k, v in training.model.state_dict().items()}
    if training.ema is not None:
        state |= {f"ema.{k}": v for k, v in training.ema.model.state_dict().items()}
    for index, entry in training.optimizer.state_dict()["state"].items():
        state |= {f"optim.{index}.{k}": torch.as_tensor(v) for k, v in entry.items()}
    return {name: tensor.clone() for name, tensor in state.items()}
