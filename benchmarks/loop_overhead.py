"""Time that ``fit`` adds to each step of a bare PyTorch loop, on a tiny model on the CPU.

Both loops do the same work (forward, loss, backward, SGD step) on the same batches held in
memory, in turn, in one process. Target: at most +30 microseconds a step.
"""

import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

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


def new_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def bare(batches: InMemory) -> float:
    model, loss = new_model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    started = time.process_time()
    for images, targets, _ in batches.epoch(0):
        value = loss(model(images), targets)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - started


def hat(batches: InMemory) -> float:
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    events = fit(
        Training(model, optimizer),
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


def main() -> None:
    torch.set_num_threads(1)
    batches = InMemory()
    bare(batches), hat(batches)
    rounds = [(bare(batches), hat(batches)) for _ in range(ROUNDS)]
    base = statistics.median(first for first, _ in rounds) / STEPS
    added = statistics.median(second - first for first, second in rounds) / STEPS
    print(f"bare loop {1e6 * base:6.1f} us a step; fit adds {1e6 * added:5.1f} us "
          f"(ratio {1 + added / base:.3f}; target: at most +30 us)")  # fmt: skip


if __name__ == "__main__":
    main()
