"""Let biases make up for the mean error that quantization does to each channel.

The empirical bias correction of Nagel et al., arXiv 1906.04721, section 4.2: layer by layer in
the order in which they run, each bias takes up the mean difference between the float result and
the quantized one on the same images, with all layers before it corrected already.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn

from hatcli.errors import HatError, UsageError
from hatcli.events import Job, Progress
from hatcli.quantize.findings import Finding
from hatcli.quantize.layers import QuantConv2d, QuantLinear
from hatcli.quantize.quantizers import ActivationQuantizer, Mode, set_mode
from hatcli.quantize.stretches import Stretch, Values, cut, fitting, run

LARGE_CORRECTION = 0.1  # of the range of the layer's result


def correct_biases(
    graph: fx.GraphModule, batches: Sequence[Tensor], *, memory_limit: int = 4 << 30
) -> Job[list[Finding]]:
    """Correct the biases of all quantized layers of a calibrated graph.

    All batches go through the graph side by side, a stretch up to the next layer at a time, once
    in float and once quantized. A corrected bias shifts what its layer gave by just as much, so
    that nothing is computed twice. A layer whose batch norm isn't folded stays as it is: in
    training the norm itself takes a mean error out.

    Args:
        graph: calibrated, in mode "quantize"; its biases are changed in place, which a second
            time would take the corrected ones for those of the float model. If anything fails,
            or the job is given up, they are as before.
        batches: (N, 3, H, W) float32 each, all of one height and width; a few hundred images.
        memory_limit: bytes that the tensors between the layers may take; fewer images are used
            where all would need more.

    Returns:
        What was left uncorrected, and where an error was large.

    Raises:
        HatError: a layer makes NaN or inf.
        UsageError: there are no images.
    """
    if sum(map(len, batches)) == 0:
        raise UsageError("bias correction: there are no images", "give it one batch at least")
    graph.eval()
    findings: list[Finding] = []
    layers = _corrected_layers(graph, findings)
    stretches = list(cut(graph, layers))
    if not stretches:
        return findings
    quantized = yield from fitting(graph, stretches, batches, memory_limit, "bias correction")
    exact = [dict(values) for values in quantized]
    biases = {layer: layer.bias.detach().clone() for layer in layers.values()}
    try:
        for done, stretch in enumerate(stretches):
            yield Progress("correcting biases", done, len(stretches), "layers")
            error = _mean(graph, "float", stretch, exact) - _mean(
                graph, "quantize", stretch, quantized
            )
            _correct(stretch.layer, layers[stretch.layer], error)
            for values in quantized:
                _shift(values[stretch.end], error)
            findings += _large(graph, stretch, error)
        yield Progress("correcting biases", len(stretches), len(stretches), "layers")
    except BaseException:
        for layer, bias in biases.items():
            layer.bias.data.copy_(bias)
        raise
    finally:
        set_mode(graph, "quantize")
    return findings


def _corrected_layers(
    graph: fx.GraphModule, findings: list[Finding]
) -> dict[str, QuantConv2d | QuantLinear]:
    modules = dict(graph.named_modules())
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    layers: dict[str, QuantConv2d | QuantLinear] = {}
    kept = []
    for name, times in calls.items():
        module = modules[name]
        if not isinstance(module, QuantConv2d | QuantLinear) or module.weight_quantizer is None:
            continue
        if isinstance(module, QuantConv2d) and module.bn is not None:
            kept.append(name)
        elif times > 1:
            text = f"runs {times} times with one bias, which isn't corrected"
            findings.append(Finding(name, text))
        else:
            layers[name] = module
    if kept:
        text = f"isn't corrected: its batch norm isn't folded (the same for {len(kept)} layers)"
        findings.append(Finding(kept[0], text))
    return layers


@torch.no_grad()
def _mean(graph: nn.Module, mode: Mode, stretch: Stretch, batches: list[Values]) -> Tensor:
    """(O,) float64: the mean, over images and places, of what the stretch's layer gives."""
    set_mode(graph, mode)
    total: Tensor | float = 0.0
    for values in batches:
        for _ in run(graph, stretch, values):
            pass
        result = values[stretch.end]
        total = total + result.mean([0, *range(2, result.ndim)]).double() * len(result)
    assert isinstance(total, Tensor)
    return total / sum(len(values[stretch.end]) for values in batches)


@torch.no_grad()
def _correct(name: str, layer: QuantConv2d | QuantLinear, error: Tensor) -> None:
    if not bool(torch.isfinite(error).all()):
        raise HatError(
            f"{name}: NaN or inf in its result during bias correction",
            "calibrate on the same images: it names the layer where they appear first",
        )
    layer.bias.add_(error.to(layer.bias.dtype))


@torch.no_grad()
def _shift(result: Tensor, error: Tensor) -> None:
    """Add to each channel of (N, O, ...) in place."""
    result.add_(error.to(result.dtype).reshape(1, -1, *[1] * (result.ndim - 2)))


def _large(graph: fx.GraphModule, stretch: Stretch, error: Tensor) -> Iterator[Finding]:
    for user in stretch.end.users:
        quantizer = graph.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(quantizer, ActivationQuantizer):
            grid = quantizer.grid
            share = float(error.abs().max()) / (grid.scale * (2**grid.bits - 1))
            if share > LARGE_CORRECTION:
                yield Finding(
                    stretch.layer,
                    f"quantization shifts a channel by {100 * share:.0f} % of its range: corrected "
                    "on these images, but more bits here may be worth it",
                )
