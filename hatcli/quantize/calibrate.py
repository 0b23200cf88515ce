"""Find the ranges of all tensors of a prepared graph from a few images."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn

from hatcli.errors import CheckpointError, ConfigError, DataError, HatError, UsageError
from hatcli.events import Job, Progress
from hatcli.quantize import OBSERVERS
from hatcli.quantize.findings import Finding
from hatcli.quantize.grid import SMALLEST_RANGE, Grid
from hatcli.quantize.histogram import extremes
from hatcli.quantize.layers import weighted_layers
from hatcli.quantize.quantizers import (
    SMALLEST_SCALE,
    ActivationQuantizer,
    WeightQuantizer,
    largest_relu6_scale,
    set_mode,
)
from hatcli.quantize.target import GridOf

TINY_RANGE = 1e-6  # below it something upstream is most likely dead


class Observer(Protocol):
    """What chooses the range of an activation."""

    def observe(self, x: Tensor) -> None:
        """Take in a tensor of any shape, float32, finite."""

    def range(self, bits: int) -> tuple[float, float]:
        """The lowest and the highest value that codes of a width should stand for."""
        ...


@runtime_checkable
class WeightObserver(Protocol):
    """What chooses the ranges of a weight."""

    def channel_ranges(self, weight: Tensor, highest: int) -> Tensor:
        """(O,) float32: the magnitude that the highest code of each channel stands for."""
        ...


def calibrate(
    graph: fx.GraphModule, batches: Iterable[Tensor], *, total: int
) -> Job[list[Finding]]:
    """Set all scales and zero points of a prepared graph, which quantizes from then on.

    The graph runs in float32 with its float weights while the observers look on. If anything
    fails, or the job is given up, its scales are as before and its mode is "float".

    Args:
        graph: as `prepare` made it; changed in place.
        batches: (N, 3, H, W) float32 each, as the model wants them.
        total: images in all, for the progress.

    Returns:
        What is odd about single layers and what was made of it.

    Raises:
        CheckpointError: a weight holds NaN or inf.
        ConfigError: an observer's arguments are wrong, or it can't choose ranges of weights.
        DataError: the images hold NaN or inf.
        HatError: a layer makes NaN or inf from good images.
        UsageError: there are no images.
    """
    graph.eval()
    findings: list[Finding] = []
    quantizers = _activation_quantizers(graph)
    scales = dict(_weight_scales(graph, findings))
    try:
        for name, quantizer in quantizers.items():
            quantizer.observer = _build(
                layer_of(name), "observer", quantizer.observer_node, quantizer.target.grid
            )
        set_mode(graph, "observe")
        watch = _Watch(graph)
        yield Progress("calibrating", 0, total)
        for images in batches:
            watch.show(images)
            yield Progress("calibrating", watch.images, total)
        if watch.images == 0:
            raise UsageError("calibration: there are no images", "give it one batch at least")
        ranges = {
            quantizer: _range(layer_of(name), quantizer, watch.ranges[name], findings)
            for name, quantizer in quantizers.items()
        }
        grids = {quantizer: _grid(quantizer, ranges) for quantizer in ranges}
    finally:
        set_mode(graph, "float")
        for quantizer in quantizers.values():
            quantizer.observer = None
    for quantizer, grid in grids.items():
        quantizer.set_grid(grid)
    for weight_quantizer, scale in scales.items():
        with torch.no_grad():
            weight_quantizer.scale.copy_(scale)
    set_mode(graph, "quantize")
    return findings


def layer_of(quantizer: str) -> str:
    """The layer whose result a quantizer of this name holds; "input" for that of the images."""
    return (
        "input" if quantizer == "input_quantizer" else quantizer.removesuffix(".output_quantizer")
    )


class _Watch(fx.Interpreter):
    """Runs a graph, keeps the extremes of each tensor and stops at one that isn't finite."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # it rewrites the messages of errors
        self.images = 0
        self.ranges: dict[str, tuple[float, float]] = {}  # of what each module gave
        self._device = next((tensor.device for tensor in graph.state_dict().values()), None)

    @torch.no_grad()
    def show(self, images: Tensor) -> None:
        """Run one batch, which may be empty."""
        if len(images) == 0:
            return
        self._batch = f"images {self.images + 1} to {self.images + len(images)}"
        self.run(images.to(self._device))
        self.images += len(images)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "output":
            return result
        low, high = extremes(result)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise self._not_finite(n)
        name = str(n.target)
        before = self.ranges.get(name, (low, high))
        self.ranges[name] = (min(low, before[0]), max(high, before[1]))
        return result

    def _not_finite(self, n: fx.Node) -> HatError:
        if n.op == "placeholder":
            return DataError(
                f"calibration: NaN or inf in the input, among {self._batch}",
                "look at the images and at what is done to them before the model",
            )
        return HatError(
            f"{layer_of(str(n.target))}: NaN or inf in its result, among {self._batch}",
            "the float model itself fails on these images; nothing was quantized",
        )


def _activation_quantizers(graph: fx.GraphModule) -> dict[str, ActivationQuantizer]:
    """Name -> quantizer, each once, in the order in which they run."""
    modules = dict(graph.named_modules())
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    return {
        name: module for name in called if isinstance(module := modules[name], ActivationQuantizer)
    }


def _build(layer: str, setting: str, node: Mapping[str, Any], grid_of: GridOf | None = None) -> Any:
    try:
        return OBSERVERS.build(node, **({} if grid_of is None else {"grid_of": grid_of}))
    except ConfigError as error:
        where = f"quantize.{setting} of {layer}"
        raise ConfigError(f"{where}: {error.message}", error.hint) from error


def _weight_scales(
    graph: nn.Module, findings: list[Finding]
) -> Iterable[tuple[WeightQuantizer, Tensor]]:
    for name, layer in weighted_layers(graph).items():
        for key, tensor in layer.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"{name}: NaN or inf in its {key}",
                    "the weights are damaged: take an earlier checkpoint",
                )
        if layer.weight_quantizer is not None:
            yield layer.weight_quantizer, _weight_scale(name, layer, findings)


@torch.no_grad()
def _weight_scale(name: str, layer: Any, findings: list[Finding]) -> Tensor:
    """(O,) float32, positive; (1,) where all channels share one scale.

    A channel without weights gets the largest scale of the others: its codes are 0 at any scale,
    and that of its bias, which the scale is a factor of, is then as fine as theirs.
    """
    quantizer = layer.weight_quantizer
    observer = _build(name, "weight_observer", quantizer.observer_node)
    if not isinstance(observer, WeightObserver):
        kind = quantizer.observer_node["type"]
        raise ConfigError(
            f"quantize.weight_observer of {name}: {kind!r} can't choose the ranges of weights",
            "choose 'min_max' or 'mse'",
        )
    rows = layer.weight.detach().reshape(len(quantizer.scale), -1)
    scale = observer.channel_ranges(rows, quantizer.highest) / quantizer.highest
    dead = scale < SMALLEST_SCALE
    number = int(dead.sum())
    if number == 0:
        return scale
    if number == len(scale):
        findings.append(Finding(name, "all its weights are 0: its result is its bias alone"))
        return torch.full_like(scale, 1 / quantizer.highest)
    findings.append(
        Finding(
            name,
            f"{number} of {len(scale)} output channels have weights of 0 alone: they give "
            "their bias",
        )
    )
    return torch.where(dead, scale.max(), scale)


def _range(
    layer: str,
    quantizer: ActivationQuantizer,
    seen: tuple[float, float],
    findings: list[Finding],
) -> tuple[float, float]:
    """What the observer chose, or all that was seen where that is nothing."""
    if quantizer.fixed_grid is not None:
        grid = quantizer.fixed_grid
        ends = ((grid.low - 0.5) * grid.scale, (grid.high + 0.5) * grid.scale)
        if seen[0] < ends[0] or seen[1] > ends[1]:
            text = f"goes from {seen[0]:.4g} to {seen[1]:.4g}, beyond its fixed grid, which cuts"
            findings.append(Finding(layer, f"{text} it to {ends[0]:.4g} and {ends[1]:.4g}"))
        return seen
    low, high = quantizer.observer.range(quantizer.bits)
    if seen[0] == seen[1]:
        low, high = seen
        rest = "its grid has steps of 1" if low == 0 else "other values will be cut to 0 or to it"
        findings.append(Finding(layer, f"is {low:.4g} everywhere in the images: {rest}"))
    elif max(high, 0.0) - min(low, 0.0) < SMALLEST_RANGE:
        low, high = seen
        text = f"is 0 nearly everywhere: its grid spans the whole range, {low:.4g} to {high:.4g}"
        findings.append(Finding(layer, text))
    elif max(high, 0.0) - min(low, 0.0) < TINY_RANGE:
        text = f"lies between {low:.4g} and {high:.4g}: the layers before it may be dead"
        findings.append(Finding(layer, text))
    return low, high


def _grid(
    quantizer: ActivationQuantizer, ranges: Mapping[ActivationQuantizer, tuple[float, float]]
) -> Grid:
    """The grid of a range, or of those of all that share it."""
    if quantizer.fixed_grid is not None:
        return quantizer.fixed_grid
    leader = quantizer.leader or (quantizer,)
    sharing = [ends for other, ends in ranges.items() if (other.leader or (other,)) == leader]
    low, high = min(low for low, _ in sharing), max(high for _, high in sharing)
    grid = quantizer.target.grid(low, high, quantizer.bits)
    if quantizer.activation == "relu6" and quantizer.target.caps_relu6:
        scale = min(grid.scale, largest_relu6_scale(quantizer.bits))
        grid = Grid(scale, grid.zero_point, grid.bits)
    return grid
