"""An exported integer model against int_infer: code by code, and where the first one differs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from hatcli.errors import CheckFailed
from hatcli.export.onnx import LABELS
from hatcli.export.preprocess import PREFIX, PREPARED
from hatcli.export.runtime import open_session, run_session
from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.base import IntegerOp
from hatcli.quantize.integer.floats import Dequantize, FloatConv2d, FloatFunction, FloatLinear

_HINT = "this processor computes int8 otherwise; see docs/guide/quantization.md"
_AT_ONCE = 16  # tensors compared in one run, so that memory stays bounded


@dataclass(frozen=True)
class Parity:
    """How int_infer and onnxruntime agree.

    Attributes:
        promised: whether every layer is 8-bit integers in onnxruntime's own arithmetic, for which
            no code may differ.
        images: compared.
        layers: tensors inside the model whose every code was compared, on the first images.
        values: output codes (or labels) compared.
        differing: of these.
        largest: the largest difference, in codes; of scores that are floats, in 255ths of what
            they span.
        same_class: share of places, 0 to 1, where both put the same class first.
    """

    promised: bool
    images: int
    layers: int
    values: int
    differing: int
    largest: float
    same_class: float


def is_promised(graph: fx.GraphModule) -> bool:
    """Whether a graph is nothing but integers of 8 bits by onnxruntime's own arithmetic."""
    ops = [op for op in graph.modules() if isinstance(op, IntegerOp)]
    floats = (FloatConv2d, FloatLinear, FloatFunction)
    ruled = any(getattr(op, "arithmetic", None) is not None for op in ops)
    wide = any(op.out is not None and op.out.bits != 8 for op in ops)
    return not wide and not ruled and not any(isinstance(op, floats) for op in ops)


def compare_codes(
    path: Path, graph: fx.GraphModule, batches: Iterable[Tensor], *, where: str
) -> Parity:
    """Run the same images through onnxruntime and the integer graph.

    A file that prepares the images itself is compared behind that: the integer graph gets the
    float32 images that onnxruntime prepared.

    Args:
        batches: images (N, 3, H, W) as the file takes them.
        where: what to call the file in messages.

    Raises:
        CheckFailed: a code differs though none may, or the sizes do, or there is no image.
    """
    session = _session(path, where)
    labels = session.get_outputs()[0].name == LABELS
    promised, step = is_promised(graph), _output_step(graph)
    images = layers = values = differing = same = places = 0
    largest = 0.0
    for batch in batches:
        found, *prepared = run_session(session, batch.numpy(), where=where)
        images_in = torch.from_numpy(prepared[0]) if prepared else batch
        with torch.inference_mode():
            scores = graph(images_in)
        expected = (scores.argmax(1, keepdim=True) if labels else scores).numpy()
        if found.shape != expected.shape:
            raise CheckFailed(f"{where}: gives {found.shape}, int_infer {expected.shape}")
        distance = _distance(found, expected, 1.0 if labels else step)
        images, values = images + len(batch), values + expected.size
        wrong = int((distance > 0).sum())
        differing, largest = differing + wrong, max(largest, float(distance.max(initial=0.0)))
        winners = (found == expected) if labels else found.argmax(1) == expected.argmax(1)
        same, places = same + int(winners.sum()), places + winners.size
        if promised and (wrong or not layers):
            layers = _require_equal_layers(path, graph, images_in, where, wrong)
    if not images:
        raise CheckFailed(f"{where}: no image to compare on")
    return Parity(promised, images, layers, values, differing, largest, same / places)


def _require_equal_layers(
    path: Path, graph: fx.GraphModule, images: Tensor, where: str, wrong: int
) -> int:
    """How many tensors inside were compared: a difference may not show in the result.

    Args:
        wrong: values of the result that differ.
    """
    layers = 0
    for name, differing, total in differing_layers(path, graph, images, where=where):
        if differing:
            raise CheckFailed(
                f"{where}: differs from int_infer, first at {name}: {differing} of {total} codes",
                _HINT,
            )
        layers += 1
    if wrong:
        raise CheckFailed(f"{where}: {wrong} values of the result differ from int_infer", _HINT)
    return layers


def differing_layers(
    path: Path, graph: fx.GraphModule, images: Tensor, *, where: str
) -> Iterable[tuple[str, int, int]]:
    """Each tensor of codes inside, in order: layer, codes that differ, codes in all.

    onnxruntime gives them as further outputs, which leaves its kernels as they are.
    """
    model = _behind_preprocessing(onnx.load(str(path)))
    written = {output for node in model.graph.node for output in node.output}
    grids = _grids(graph)
    names = [name for name in grids if name in written]
    values = _Recorder(graph, set(names)).record(images)
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        for name, found in zip(some, _outputs(model, some, images, where), strict=True):
            expected = values[name].numpy() + grids[name].zero_point
            yield name, int((found != expected).sum()), found.size


class _Recorder(fx.Interpreter):
    """Runs an integer graph and keeps what some of its layers give."""

    def __init__(self, graph: fx.GraphModule, names: set[str]) -> None:
        super().__init__(graph)
        self.names = names
        self.found: dict[str, Tensor] = {}

    @torch.inference_mode()
    def record(self, images: Tensor) -> dict[str, Tensor]:
        """Layer -> centred codes."""
        self.run(images)
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_module" and str(n.target) in self.names:
            self.found[str(n.target)] = value.clone()
        return value


def _grids(graph: fx.GraphModule) -> dict[str, Grid]:
    """Layer -> grid of its result, of those that give codes, in order."""
    found = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            out = getattr(graph.get_submodule(str(node.target)), "out", None)
            if out is not None:
                found[str(node.target)] = out
    return found


def _behind_preprocessing(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model alone, for float32 images, of a file that prepares them itself."""
    if any(PREPARED in node.output for node in model.graph.node):
        nodes = [node for node in model.graph.node if not node.name.startswith(PREFIX)]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.input[0].name = PREPARED
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return model


def _session(path: Path, where: str) -> Any:
    """A session that gives the prepared images too, where the file prepares them."""
    model = onnx.load(str(path))
    if any(PREPARED in node.output for node in model.graph.node):
        model.graph.output.append(onnx.ValueInfoProto(name=PREPARED))
    return open_session(model.SerializeToString(), where=where)


def _outputs(
    model: onnx.ModelProto, names: Sequence[str], images: Tensor, where: str
) -> list[NDArray[Any]]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    own = copy.graph.output[0].name
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != own)
    session = open_session(copy.SerializeToString(), where=where)
    known = [output.name for output in session.get_outputs()]
    found = run_session(session, images.numpy(), where=where)
    return [found[known.index(name)] for name in names]


def _output_step(graph: fx.GraphModule) -> float | None:
    """What one code of the scores stands for; None where they are floats."""
    last = next(iter(reversed(graph.graph.nodes))).all_input_nodes[0]
    op = graph.get_submodule(str(last.target))
    return op.x.scale if isinstance(op, Dequantize) else None


def _distance(
    found: NDArray[Any], expected: NDArray[Any], step: float | None
) -> NDArray[np.float64]:
    if step is None:
        step = max(float(np.ptp(expected)) / 255, float(np.finfo(np.float32).tiny))
    return np.abs(found.astype(np.float64) - expected) / step
