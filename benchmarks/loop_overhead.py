"""Time that a training loop adds to each step of a bare PyTorch loop, on a tiny model on the CPU.

All loops do the same work (forward, loss, backward, SGD step) on the same batches held in memory,
in turn, in one process with one thread; ``fit`` also looks at each loss, sets the learning rate,
seeds each step and can be stopped and resumed between any two. Lightning and accelerate join in
where they are installed, with all of their loggers, bars and checkpoints off. Target: ``fit`` at
most +30 microseconds a step, and the least of all loops.

Run: python benchmarks/loop_overhead.py
"""

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from hatcli.engine.loop import fit
from hatcli.engine.training import FitSettings, Training

STEPS, ROUNDS = 2000, 9


class InMemory:
    samples_a_batch, process = 32, 0

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(32, 64, generator=generator)
        self.targets = torch.randint(10, (32,), generator=generator)
        self.names = ["sample"] * 32

    def __len__(self) -> int:
        return STEPS

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        for _ in range(start // 32, STEPS):
            yield self.images, self.targets, self.names


class Stream(IterableDataset[Any]):
    """The same batches as the other libraries take them: without a DataLoader's own work."""

    def __init__(self, batches: InMemory) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets, _ in self.batches.epoch(0):
            yield images, targets


def new_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def new_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def bare(batches: InMemory) -> float:
    model, loss = new_model(), nn.CrossEntropyLoss()
    optimizer = new_optimizer(model)
    started = time.process_time()
    for images, targets, _ in batches.epoch(0):
        value = loss(model(images), targets)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - started


def hat(batches: InMemory) -> float:
    model = new_model()
    events = fit(
        Training(model, new_optimizer(model)),
        batches,
        FitSettings(epochs=1),
        loss=nn.CrossEntropyLoss(),
        prepare=nn.Identity(),
        schedule=lambda step: 1.0,
    )
    started = time.process_time()
    for _ in events:
        pass
    return time.process_time() - started


def with_accelerate(batches: InMemory) -> float:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, loss = new_model(), nn.CrossEntropyLoss()
    model, optimizer = accelerator.prepare(model, new_optimizer(model))
    started = time.process_time()
    for images, targets, _ in batches.epoch(0):
        value = loss(model(images), targets)
        accelerator.backward(value)
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - started


def with_lightning(batches: InMemory) -> float:
    import lightning

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.loss = new_model(), nn.CrossEntropyLoss()

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            images, targets = batch
            return self.loss(self.model(images), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return new_optimizer(self.model)

        def on_train_start(self) -> None:
            self.started = time.process_time()

        def on_train_end(self) -> None:
            self.seconds = time.process_time() - self.started

    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, barebones=True, devices=1
    )
    loader = torch.utils.data.DataLoader(Stream(batches), batch_size=None)
    trainer.fit(module, loader)
    return module.seconds


def loops() -> dict[str, Callable[[InMemory], float]]:
    found: dict[str, Callable[[InMemory], float]] = {"bare loop": bare, "hat": hat}
    for name, loop in (("accelerate", with_accelerate), ("lightning", with_lightning)):
        if find_spec(name) is None:
            print(f"{name} is not installed")
        else:
            found[name] = loop
    return found


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    batches, runs = InMemory(), loops()
    for loop in runs.values():
        loop(batches)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, loop in runs.items():
            times[name].append(loop(batches))
    base = statistics.median(times["bare loop"]) / STEPS
    print(f"{'bare loop':12} {1e6 * base:6.1f} us a step")
    for name in list(runs)[1:]:
        pairs = zip(times[name], times["bare loop"], strict=True)
        added = statistics.median(own - bare for own, bare in pairs) / STEPS
        print(f"{name:12} adds {1e6 * added:6.1f} us  ratio {1 + added / base:.2f}")
    print("target: hat adds at most 30 us, and least of all")


if __name__ == "__main__":
    main()
