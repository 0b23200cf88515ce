"""Learn for each weight whether it is rounded up or down: AdaRound.

Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, arXiv 2004.10568.
Layer by layer in the order in which they run, the codes are chosen so that the layer's result on
what the quantized layers before it give is nearest to the result of the float model.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from hatcli.errors import HatError, UsageError
from hatcli.events import Job, Progress
from hatcli.quantize.findings import Finding
from hatcli.quantize.layers import QuantConv2d, QuantLinear
from hatcli.quantize.patches import Places, patches, pick_places, results
from hatcli.quantize.quantizers import ActivationQuantizer, set_mode
from hatcli.quantize.rounding import Problem, learn_codes
from hatcli.quantize.spec import AdaRoundSpec
from hatcli.quantize.stretches import Stretch, Values, cut, fitting, run

MOST_VALUES = 1 << 25  # of the inputs that a layer learns from: 128 MiB
MOST_PLACES = 8192

_DEFAULT = AdaRoundSpec()


def round_weights(
    graph: fx.GraphModule,
    batches: Sequence[Tensor],
    spec: AdaRoundSpec = _DEFAULT,
    *,
    correct: bool = True,
    memory_limit: int = 4 << 30,
) -> Job[list[Finding]]:
    """Learn the rounding of all quantized layers of a calibrated graph, and correct its biases.

    Each weight becomes the value on its grid that its code stands for, so that whatever comes
    after rounds to it; what mode "float" gives from then on is no longer the float model. As both
    passes need that one to compare with, this one does what `correct_biases` does as well: each
    bias takes up the mean error that the learned rounding leaves.

    Args:
        graph: calibrated, in mode "quantize", its batch norms folded; weights and biases are
            changed in place. If anything fails, or the job is given up, they are as before.
        batches: (N, 3, H, W) float32 each, all of one height and width; a few hundred images.
        spec: how long and how fast to learn, and the seed.
        correct: whether biases take up the mean errors.
        memory_limit: bytes that the tensors between the layers may take; fewer images are used
            where all would need more.

    Returns:
        Which layers were left as they were.

    Raises:
        HatError: a layer makes NaN or inf.
        UsageError: there are no images.
    """
    if sum(map(len, batches)) == 0:
        raise UsageError("rounding weights: there are no images", "give it one batch at least")
    graph.eval()
    findings: list[Finding] = []
    layers = _rounded_layers(graph, findings)
    stretches = list(cut(graph, layers))
    if not stretches:
        return findings
    images = yield from fitting(graph, stretches, batches, memory_limit, "AdaRound")
    before = {
        layer: (layer.weight.detach().clone(), layer.bias.detach().clone())
        for layer in layers.values()
    }
    pair = _Pair(graph, images, spec)
    try:
        for done, stretch in enumerate(stretches):
            yield Progress("rounding weights", done, len(stretches), "layers")
            pair.advance(stretch, layers[stretch.layer], correct=correct)
        yield Progress("rounding weights", len(stretches), len(stretches), "layers")
    except BaseException:
        for layer, (weight, bias) in before.items():
            layer.weight.data.copy_(weight)
            layer.bias.data.copy_(bias)
        raise
    finally:
        set_mode(graph, "quantize")
    return findings


def _rounded_layers(graph: fx.GraphModule, findings: list[Finding]) -> dict[str, Any]:
    """Name -> quantized layer, each run once, in the order in which they run."""
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    layers: dict[str, Any] = {}
    for name, times in calls.items():
        module = graph.get_submodule(name)
        if not isinstance(module, QuantConv2d | QuantLinear) or module.weight_quantizer is None:
            continue
        if isinstance(module, QuantConv2d) and module.bn is not None:
            text = "its weights are rounded to the nearest: its batch norm isn't folded"
            findings.append(Finding(name, text))
        elif times > 1:
            text = f"its weights are rounded to the nearest: it runs {times} times"
            findings.append(Finding(name, text))
        else:
            layers[name] = module
    return layers


class _Pair:
    """The same images on their way through the float model and the quantized one."""

    def __init__(self, graph: fx.GraphModule, images: list[Values], spec: AdaRoundSpec) -> None:
        self._graph = graph
        self._spec = spec
        self._exact, self._quantized = images, [dict(values) for values in images]
        self._generator = torch.Generator().manual_seed(spec.seed)

    def advance(self, stretch: Stretch, layer: Any, *, correct: bool) -> None:
        """Go to the next layer, learn its rounding, and take the quantized images through it."""
        end = stretch.end
        self._run("float", stretch, self._exact)
        self._run("quantize", Stretch(stretch.nodes[:-1]), self._quantized)
        wanted = [values[end] for values in self._exact]
        if not all(bool(torch.isfinite(result).all()) for result in wanted):
            raise HatError(
                f"{stretch.layer}: NaN or inf in its result while its rounding is learned",
                "calibrate on the same images: it names the layer where they appear first",
            )
        given = [values[end.all_input_nodes[0]] for values in self._quantized]
        places = pick_places(wanted, self._count(layer, given), self._generator)
        codes = self._learn(stretch, layer, given, wanted, places)
        with torch.no_grad():
            scale = layer.weight_quantizer.positive_scale().detach()
            scale = scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
            layer.weight.copy_(codes.to(layer.weight.dtype) * scale)
        self._run("quantize", Stretch(stretch.nodes[-1:]), self._quantized)
        if correct:
            self._correct(layer, wanted, [values[end] for values in self._quantized])

    @torch.no_grad()
    def _run(self, mode: Any, stretch: Stretch, batches: list[Values]) -> None:
        set_mode(self._graph, mode)
        for values in batches:
            for _ in run(self._graph, stretch, values):
                pass

    def _count(self, layer: Any, given: list[Tensor]) -> int:
        """Places for each image."""
        values = layer.weight[0].numel() * getattr(layer, "groups", 1)
        images = sum(map(len, given))
        return max(1, min(MOST_PLACES, MOST_VALUES // values) // images)

    @torch.no_grad()
    def _learn(
        self,
        stretch: Stretch,
        layer: Any,
        given: list[Tensor],
        wanted: list[Tensor],
        places: list[Places],
    ) -> Tensor:
        """(O, ...) codes of the layer's weights, float32."""
        groups = getattr(layer, "groups", 1)
        problem = Problem(
            weight=layer.weight.detach().reshape(groups, -1, layer.weight[0].numel()),
            scale=layer.weight_quantizer.positive_scale().detach().expand(len(layer.weight)),
            highest=layer.weight_quantizer.highest,
            bias=layer.bias.detach().reshape(groups, 1, -1),
            inputs=torch.cat([patches(layer, x, p) for x, p in zip(given, places, strict=True)], 1),
            targets=torch.cat(
                [results(y, p, groups) for y, p in zip(wanted, places, strict=True)], 1
            ),
            activation=_activation(self._graph, stretch.end),
        )
        return learn_codes(problem, self._spec, self._generator).reshape(layer.weight.shape)

    @torch.no_grad()
    def _correct(self, layer: Any, wanted: list[Tensor], found: list[Tensor]) -> None:
        error = _mean(wanted) - _mean(found)
        layer.bias.add_(error.to(layer.bias.dtype))
        for result in found:
            result.add_(error.to(result.dtype).reshape(1, -1, *[1] * (result.ndim - 2)))


def _mean(batches: list[Tensor]) -> Tensor:
    """(O,) float64: the mean over images and places of (N, O, ...)."""
    sums = [batch.mean([0, *range(2, batch.ndim)]).double() * len(batch) for batch in batches]
    return torch.stack(sums).sum(0) / sum(map(len, batches))


def _activation(graph: fx.GraphModule, node: fx.Node) -> str | None:
    """The ReLU behind a layer, where all that use its result take it from there."""
    users = [graph.get_submodule(str(u.target)) for u in node.users if u.op == "call_module"]
    if len(users) == len(node.users) == 1 and isinstance(users[0], ActivationQuantizer):
        return users[0].activation
    return None
