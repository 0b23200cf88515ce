"""A QAT step against a float step, and int_infer against float inference, in torch.

    python benchmarks/quantization/steps.py

One thread, float32, channels_last; the variants run in turn in one process, and the median of the
paired ratios of CPU time counts. A step is forward, loss, backward and SGD on the deployed head.
Targets: QAT with fixed scales at most 1.25 of float, with learned ones 1.3; int_infer 1.6.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hatcli.models import MODELS
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.lower import lower
from hatcli.quantize.prepare import prepare
from hatcli.quantize.qat import start_qat
from hatcli.quantize.spec import QatSpec, read_spec

ROUNDS = 7
STEPS = {"unet": (2, 3, 512, 1024), "vargnetv2": (8, 3, 224, 224)}
PICTURES = {"efficientnet_lite0": (1, 3, 224, 224), "unet": (1, 3, 512, 1024)}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, shape in STEPS.items():
        float_model, graph = models(name, shape)
        variants: dict[str, Callable[[], None]] = {"float": Step(float_model, shape)}
        for scales in ("fixed", "learned"):
            _, own = models(name, shape)
            start_qat(own, QatSpec(scales=scales))
            variants[f"qat, scales {scales}"] = Step(own.train(), shape)
        compare(f"a step of {name} {'x'.join(map(str, shape))}", variants)
    for name, shape in PICTURES.items():
        float_model, graph = models(name, shape)
        integers = lower(graph).graph
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        models_ = {
            "float": float_model.eval(),
            "fake-quantized": graph.eval(),
            "int_infer": integers,
        }
        compare(
            f"a picture of {name} {'x'.join(map(str, shape))}",
            {kind: Inference(model, x) for kind, model in models_.items()},
        )


class Step:
    """A training step whose state lasts, so that every round measures a warm one."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        self.images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            scores: Tensor = model(self.images)
        self.targets = scores.argmax(1)

    def __call__(self) -> None:
        loss: Any = F.cross_entropy(self.model(self.images), self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Inference:
    """A picture through a model."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images

    def __call__(self) -> None:
        with torch.inference_mode():
            self.model(self.images)


def models(name: str, shape: tuple[int, ...]) -> tuple[nn.Module, Any]:
    """The float model that is deployed, and its calibrated graph."""
    torch.manual_seed(0)
    model = MODELS.build({"type": name})
    keep_head: Any = getattr(model, "keep_head", None)
    model = model if keep_head is None else keep_head("4")
    model = model.to(memory_format=torch.channels_last)
    small = torch.randn(2, 3, 128, 128)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(small)
    graph = prepare(model.eval(), read_spec({"observer": {"type": "min_max"}}))
    for _ in calibrate(graph, [small], total=2):
        pass
    return model, graph


def compare(title: str, variants: dict[str, Callable[[], None]]) -> None:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(ROUNDS + 2):
        for name, variant in variants.items():
            started = time.process_time()
            variant()
            if number >= 2:
                times[name].append(time.process_time() - started)
    print(title)
    base = next(iter(times.values()))
    for name, values in times.items():
        ratio = statistics.median(b / a for a, b in zip(base, values, strict=True))
        print(
            f"    {name:24}{1000 * statistics.median(values):8.0f} ms   ratio {ratio:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
