"""What each layer of a graph gives, by its name in the float model, whatever the graph's kind."""

from typing import Any

import torch
from torch import Tensor, fx

from hatcli.quantize.analysis.places import Walk, find_places
from hatcli.quantize.integer.base import IntegerOp
from hatcli.quantize.prepare import INPUT


def layer_results(graph: fx.GraphModule, batch: Tensor) -> dict[str, Tensor]:
    """Layer -> its result (N, C, ...) float32, in the order in which they run; last the scores.

    Args:
        graph: prepared, in any mode, or of integers, whose codes are given as what they stand
            for.
        batch: (N, 3, H, W) float32.
    """
    if any(isinstance(module, IntegerOp) for module in graph.modules()):
        return _Integers(graph).results(batch)
    return _prepared(graph, batch)


@torch.no_grad()
def _prepared(graph: fx.GraphModule, batch: Tensor) -> dict[str, Tensor]:
    walk = Walk(graph)
    ends = {place.ends[-1]: place.name for place in find_places(graph)}
    values = walk.images(batch)
    return {ends[node]: values[node] for node in walk.run(values) if node in ends}


class _Integers(fx.Interpreter):
    """Runs an integer graph; of all that is one layer's the last tensor is its result."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[str, Tensor] = {}

    @torch.no_grad()
    def results(self, batch: Tensor) -> dict[str, Tensor]:
        """As `layer_results`."""
        self.run(batch)
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_module":
            op = self.fetch_attr(str(n.target))
            name = str(n.target).removesuffix(".output_quantizer")
            name = INPUT if name == "input_quantizer" else name
            self.found[name] = value if op.out is None else value.float() * op.out.scale
        return value
