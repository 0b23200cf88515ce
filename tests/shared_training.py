"""What each of several processes does in the tests: trainings and evaluations on made-up data."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hatcli.data.loader import Loader
from hatcli.engine.data_parallel import DataParallel
from hatcli.engine.distributed import barrier, from_main, gather, is_main, processes, rank
from hatcli.engine.ema import Ema
from hatcli.engine.evaluation import evaluate
from hatcli.engine.loop import fit
from hatcli.engine.training import FitSettings, Training
from hatcli.errors import DataError
from hatcli.events import EpochDone, StepDone, finish
from hatcli.losses.cross_entropy import CrossEntropy
from hatcli.losses.softmax_focal import SoftmaxFocal
from hatcli.metrics.accuracy import Accuracy
from hatcli.metrics.mean_iou import MeanIoU
from hatcli.metrics.voc_ap import VocAP
from hatcli.models.unet import unet

CLASSES = 5


class Streets:
    """Noise whose labels lie unevenly: of some samples hardly a pixel counts."""

    def __init__(self, length: int = 40, size: int = 32, bad: int | None = None) -> None:
        self.length, self.size, self.bad = length, size, bad

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn = np.random.default_rng(index)
        image = drawn.integers(0, 256, (self.size, self.size, 3), np.uint8)
        if index == self.bad:
            image[:] = 255
        blocks = drawn.integers(0, CLASSES, (self.size // 8, self.size // 8), np.uint8)
        label = blocks.repeat(8, 0).repeat(8, 1)
        label[drawn.random(label.shape) < 0.5 * index / self.length] = 255
        return {"image": image, "label": label, "name": str(index)}


class Noted:
    """Batches, and the names of all samples that were taken."""

    def __init__(self, batch_size: int, dataset: Streets) -> None:
        self.batches = Loader(
            dataset, [], batch_size=batch_size // processes(), shuffle=True, seed=3,
            process=rank(), processes=processes(),
        )  # fmt: skip
        self.names: list[list[str]] = []
        self.samples_a_batch, self.process = self.batches.samples_a_batch, rank()

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]:
        for batch in self.batches.epoch(number, start):
            self.names.append(batch.names)
            yield batch


class Prepared(nn.Module):
    """uint8 to float64; white images become NaN."""

    def forward(self, images: Tensor) -> Tensor:
        whites = (images == 255).flatten(1).all(1)
        return (images.double() / 128 - 1).masked_fill(whites[:, None, None, None], math.nan)


class TwoHeads(nn.Module):
    """Scores of 5 classes at strides 2 and 4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.heads = nn.ModuleList([nn.Conv2d(8, CLASSES, 1), nn.Conv2d(8, CLASSES, 1)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.heads[0](x), self.heads[1](self.deep(x))


def network(name: str = "two heads", *, is_frozen: bool = True) -> nn.Module:
    """A network of float64, whose norms may stay in evaluation mode."""
    torch.manual_seed(0)
    model = (unet(CLASSES, 0.25) if name == "unet" else TwoHeads()).double()
    for module in model.modules():
        if is_frozen and isinstance(module, nn.BatchNorm2d):
            module.training = False
            module.train = lambda mode=True, module=module: module
    return model


def new_training(model: nn.Module) -> Training:
    return Training(model, torch.optim.SGD(model.parameters(), 0.05, 0.9), Ema(model, 0.9))


def events_of(training: Training, batches: Noted, **more: Any) -> Iterator[Any]:
    loss = more.pop("loss", None) or CrossEntropy()
    return fit(
        training,
        batches,
        FitSettings(epochs=more.pop("epochs", 1), log_every=1, **more),
        loss=loss.double(),
        prepare=Prepared(),
        schedule=lambda step: 1 / (1 + step),
        forward=DataParallel(training.model) if processes() > 1 else None,
    )


def state_of(training: Training) -> dict[str, Tensor]:
    assert training.ema is not None
    average = {f"ema.{key}": tensor for key, tensor in training.ema.model.state_dict().items()}
    return {**training.model.state_dict(), **average}


def ten_steps(kind: str, name: str) -> tuple[dict[str, Tensor], list[float], list[list[str]]]:
    """Steps of four samples: the weights, the losses and the names of the samples."""
    losses = {
        "nearest": CrossEntropy(class_weights=[0.5, 2, 1, 1.5, 0.25]),
        "agree": SoftmaxFocal(),
    }
    training = new_training(network(name))
    batches = Noted(4, Streets(size=64 if name == "unet" else 32))
    events = list(events_of(training, batches, loss=losses[kind]))
    assert isinstance(events[-1], EpochDone)
    return state_of(training), [e.loss for e in events if isinstance(e, StepDone)], batches.names


def with_living_norms() -> tuple[dict[str, Tensor], float]:
    """Two epochs whose norms learn, accumulated: all processes must end with the same model."""
    training = new_training(network(is_frozen=False))
    batches = Noted(4, Streets(24))
    events = list(events_of(training, batches, accumulate=2, epochs=2))
    return state_of(training), events[-1].images_per_s


def with_a_part_frozen() -> dict[str, Tensor]:
    """The stem stops learning behind the first epoch: gradients must still come once."""
    training = new_training(network())
    for event in events_of(training, Noted(4, Streets(16)), epochs=3):
        if isinstance(event, EpochDone):
            training.model.stem.requires_grad_(False)
            training.optimizer.param_groups[0]["params"][:] = [
                parameter for parameter in training.model.parameters() if parameter.requires_grad
            ]
    return state_of(training)


def with_an_unused_part(find_unused: bool) -> dict[str, Tensor]:
    """Two steps of a network of which one head isn't asked."""
    model = network()
    model.forward = lambda x: model.heads[0](model.stem(x))
    training = new_training(model)
    forward = DataParallel(model, find_unused=find_unused) if processes() > 1 else None
    batches = Noted(4, Streets(8))
    list(
        fit(
            training, batches, FitSettings(1), loss=CrossEntropy(), prepare=Prepared(),
            schedule=lambda step: 1.0, forward=forward,
        )
    )  # fmt: skip
    return state_of(training)


def some_steps(state: dict[str, Any] | None, steps: int) -> tuple[dict[str, Any], list[list[str]]]:
    """Go on with a training of two epochs for some steps of four samples."""
    training = new_training(network())
    if state is not None:
        training.restore(state)
    batches, done = Noted(4, Streets(20)), 0
    for event in events_of(training, batches, epochs=2):
        done += isinstance(event, StepDone)
        if done == steps:
            break
    return training.state(), batches.names[:steps]


def a_bad_sample() -> None:
    training = new_training(network())
    list(events_of(training, Noted(4, Streets(bad=7))))


def scored(length: int) -> dict[str, float]:
    """Pixels of a network, classes of images and boxes, by one metric each."""
    torch.manual_seed(1)
    model = network().eval()
    loader = Loader(Streets(length), [], batch_size=2, process=rank(), processes=processes())
    metrics = [MeanIoU(CLASSES), Accuracy([1, 2], per_class=True, num_classes=CLASSES), VocAP(2)]

    class Several:
        best_by = "mIoU"

        def update(self, scores: tuple[Tensor, ...], targets: Tensor) -> None:
            metrics[0].update(scores, targets)
            metrics[1].update(scores[0].mean((2, 3)), targets[:, 0, 0].long() % CLASSES)
            metrics[2].update(*boxes_of(targets))

        def compute(self) -> dict[str, float]:
            return {k: v for metric in metrics for k, v in metric.compute().items()}

        def counted(self) -> list[Any]:
            return [metric.counted() for metric in metrics]

        def merge(self, parts: list[Any]) -> None:
            for metric, own in zip(metrics, zip(*parts, strict=True), strict=True):
                metric.merge(own)

        def reset(self) -> None:
            pass

    return finish(
        evaluate(
            model, loader.epoch(0), Several(), prepare=Prepared(), device=torch.device("cpu"),
            total=length,
        )
    )  # fmt: skip


def boxes_of(targets: Tensor) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Detections of equal scores, of which every second is right; so their order counts."""
    found, true = [], []
    for target in targets:
        number = int(target.sum()) % 7
        box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        found.append(
            {
                "boxes": box + number % 2 * 20,
                "scores": torch.ones(1),
                "classes": torch.tensor([number % 2]),
            }
        )
        true.append({"boxes": box, "classes": torch.tensor([number % 2])})
    return found, true


def told() -> tuple[Any, ...]:
    """What the processes tell each other."""
    mine = from_main(lambda: rank() + 10)
    barrier()
    return rank(), processes(), is_main(), mine, gather({"rank": rank()})


def main_fails() -> None:
    from_main(_no_run)


def _no_run() -> None:
    raise DataError("no run here")


def one_fails() -> None:
    if rank() == 1:
        raise DataError("image 7 is damaged")
    barrier()
    barrier()
