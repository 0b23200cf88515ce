"""A graph cut behind some of its layers, so that values go through it a stretch at a time.

Passes that change one layer after another, each with all before it changed already, keep the
values between two layers instead of running the graph from its start for each of them.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from hatcli.events import Job, Note
from hatcli.quantize.quantizers import set_mode

Values = dict[fx.Node, Tensor]


@dataclass(frozen=True)
class Stretch:
    """The nodes behind one of the layers up to the next one and including it.

    Attributes:
        nodes: each with the nodes that nobody needs behind it.
    """

    nodes: list[tuple[fx.Node, list[fx.Node]]]

    @property
    def end(self) -> fx.Node:
        """The node of the layer that it ends with."""
        return self.nodes[-1][0]

    @property
    def layer(self) -> str:
        """The name of that layer."""
        return str(self.end.target)


@dataclass(frozen=True)
class Memory:
    """Bytes an image.

    Attributes:
        between: what is kept from one stretch to the next, at most, float and quantized.
        within: what is kept inside a stretch, at most, by the batch that goes through it.
    """

    between: int
    within: int


def cut(graph: fx.GraphModule, layers: Container[object]) -> Iterator[Stretch]:
    """The graph up to the last of some layers, given by name, cut behind each of them."""
    nodes = list(graph.graph.nodes)
    ends = [index for index, node in enumerate(nodes) if node.target in layers]
    if not ends:
        return
    nodes = nodes[: ends[-1] + 1]
    last_use = {node: node for node in nodes if node.target not in layers}
    for node in nodes:
        last_use.update(dict.fromkeys(node.all_input_nodes, node))
    stretch: list[tuple[fx.Node, list[fx.Node]]] = []
    for node in nodes:
        if node.op == "call_module":
            unused = [source for source, user in last_use.items() if user is node]
            stretch.append((node, unused))
        if node.target in layers:
            yield Stretch(stretch)
            stretch = []


def run(graph: nn.Module, stretch: Stretch, values: Values) -> Iterator[fx.Node]:
    """Take the values of one batch through a stretch.

    Yields:
        Each node when its value is there and those of its arguments still are.
    """
    for node, unused in stretch.nodes:
        arguments = [values[source] for source in node.args if isinstance(source, fx.Node)]
        assert len(arguments) == len(node.args) + len(node.kwargs)
        values[node] = graph.get_submodule(str(node.target))(*arguments)
        yield node
        for source in unused:
            del values[source]


@torch.no_grad()
def measure(graph: nn.Module, stretches: list[Stretch], values: Values) -> Memory:
    """What one image needs; the quantized values, of which more are apart, stand for both.

    Leaves the graph in mode "quantize".
    """
    set_mode(graph, "quantize")
    between = within = _bytes(values)
    for stretch in stretches:
        for _ in run(graph, stretch, values):
            within = max(within, _bytes(values))
        between = max(between, _bytes(values))
    return Memory(2 * between, within)


def fitting(
    graph: fx.GraphModule,
    stretches: list[Stretch],
    batches: Sequence[Tensor],
    memory_limit: int,
    activity: str,
) -> Job[list[Values]]:
    """The values that each batch begins with, of as many images as the memory has room for.

    Leaves the graph in mode "quantize".

    Args:
        batches: (N, 3, H, W) float32 each, at least one with an image.
        memory_limit: bytes that the tensors between the layers may take.
        activity: what wants to look at them, for the note that tells of fewer images.
    """
    device = next(graph.parameters()).device
    given = [batch.to(device) for batch in batches if len(batch)]
    start = next(node for node in graph.graph.nodes if node.op == "placeholder")
    used = within(memory_limit, given, measure(graph, stretches, {start: given[0][:1].clone()}))
    images, all_images = (sum(map(len, tensors)) for tensors in (used, given))
    if images < all_images:
        yield Note(
            f"{activity} looks at {images} of {all_images} images: "
            f"more would need more than {memory_limit / 2**30:.2g} GiB of memory"
        )
    return [{start: batch} for batch in used]


def within(limit: int, batches: list[Tensor], memory: Memory) -> list[Tensor]:
    """The first images, one at least, that fit a limit in bytes."""
    largest = max(map(len, batches))
    allowed = limit // (memory.between + memory.within)
    if allowed > largest:
        allowed = (limit - largest * memory.within) // memory.between
    left = max(allowed, 1)
    used = []
    for batch in batches:
        if left > 0 and len(batch) > 0:
            used.append(batch[:left])
            left -= len(used[-1])
    return used


def _bytes(values: Values) -> int:
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in values.values()
    }
    return sum(storages.values())
