"""An exported file against torch: the same images through both, and where they part."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from hatcli.errors import CheckFailed, ModelFileError
from hatcli.export.onnx import LABELS, SCORES
from hatcli.export.runtime import open_session, run_session, shortened

TOLERANCE = 1e-4

Values = Callable[[Tensor, Collection[str]], dict[str, Tensor]]

_AT_ONCE = 16  # values compared in one run, so that memory stays bounded


@dataclass(frozen=True)
class Comparison:
    """How far onnxruntime is from torch on one batch of images.

    Attributes:
        shape: of the images.
        largest: the largest absolute difference of two scores.
        relative: that over the largest magnitude of torch's scores; this is what the tolerance
            bounds.
        same_class: share of places, 0 to 1, where both put the same class first.
    """

    shape: tuple[int, ...]
    largest: float
    relative: float
    same_class: float


def check_onnx(
    path: Path,
    reference: Callable[[Tensor], Tensor],
    batches: Sequence[Tensor],
    *,
    tolerance: float = TOLERANCE,
    values: Values | None = None,
    name: str | None = None,
) -> list[Comparison]:
    """Compare a file with what it was made from.

    A file that gives labels is held to its scores too, which are looked at inside it; a label
    other than torch's passes where torch's scores of the two differ by no more than twice the
    tolerance.

    Args:
        reference: images as the file takes them to scores (N, classes, ...) float32.
        batches: images to try, each (N, 3, H, W) in the dtype that the file takes.
        tolerance: largest difference allowed, as a share of the largest score.
        values: (images, names) to torch's values of these names inside the graph; with it a
            difference is traced to the first node that shows it.
        name: what to call the file in messages, when ``path`` is a temporary one.

    Raises:
        CheckFailed: the file is not legal, doesn't run, or differs.
    """
    where = name or path.name
    model = _checked_model(path, where)
    results = []
    for images in batches:
        scores = _reference_scores(reference, images, where)
        try:
            comparison = _compare(path, model, images, scores, where)
        except ModelFileError as error:
            raise CheckFailed(error.message, error.hint) from error
        if not comparison.relative <= tolerance:
            first = _first_difference(model, values, images, tolerance) if values else None
            raise CheckFailed(_verdict(where, model, comparison, tolerance, first))
        results.append(comparison)
    return results


def random_images(shape: Sequence[int], seed: int) -> Tensor:
    """Made-up photographs: uint8 (N, C, H, W), smooth areas with edges and noise."""
    draw = torch.Generator().manual_seed(seed)
    n, channels, height, width = shape
    coarse = torch.rand(n, channels, height // 16 + 2, width // 16 + 2, generator=draw)
    areas = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    noise = torch.randn(n, channels, height, width, generator=draw) * 0.05
    steps = (areas * 6).floor() / 6  # bands with sharp borders
    return ((steps + noise) * 255).clamp(0, 255).to(torch.uint8)


def program_values(program: ExportedProgram) -> Values:
    """Look-up of the values inside a traced model, for `check_onnx`."""
    weights: Mapping[str, Any] = {**program.state_dict, **program.constants}
    output = str(program.graph_signature.user_outputs[0])

    def values(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        recorder = _Recorder(program.graph_module, {output, *names})
        arguments = [
            images if spec.kind == InputKind.USER_INPUT else weights[str(spec.target)]
            for spec in program.graph_signature.input_specs
        ]
        with torch.no_grad():
            recorder.run(*arguments)
        return {**recorder.found, SCORES: recorder.found[output]}

    return values


class _Recorder(torch.fx.Interpreter):
    """Runs a graph and keeps the tensors of some of its nodes."""

    def __init__(self, module: torch.fx.GraphModule, names: Collection[str]) -> None:
        super().__init__(module)
        self.names = names
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names and isinstance(value, Tensor):
            self.found[n.name] = value
        return value


def _checked_model(path: Path, where: str) -> onnx.ModelProto:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailed(f"{where}: not a legal ONNX model: {shortened(error)}") from error
    return onnx.load(str(path))


@torch.no_grad()
def _reference_scores(
    reference: Callable[[Tensor], Tensor], images: Tensor, where: str
) -> NDArray[np.float32]:
    shape = "x".join(map(str, images.shape))
    try:
        scores: NDArray[np.float32] = reference(images).numpy()
    except (RuntimeError, AssertionError) as error:  # what torch raises for a shape
        line = str(error).partition("\n")[0]
        raise CheckFailed(
            f"{where}: torch itself fails on images of {shape}: {line}",
            "if the model takes one size only, export with --dynamic none",
        ) from error
    if not np.isfinite(scores).all():
        raise CheckFailed(f"{where}: torch's own scores of images of {shape} are not finite")
    return scores


def _compare(
    path: Path, model: onnx.ModelProto, images: Tensor, expected: NDArray[Any], where: str
) -> Comparison:
    """One batch; a shape or dtype that differs counts as an infinite difference."""
    output = run_session(open_session(path, where=where), images.numpy(), where=where)[0]
    scale = float(np.abs(expected).max())
    if model.graph.output[0].name == LABELS:
        scores = _scores_inside(model, images, where)
        lost = _score_lost(expected, output) / 2
        same = float((expected.argmax(1, keepdims=True) == output).mean()) if lost < np.inf else 0.0
    else:
        scores, lost = output, 0.0
        same = float((expected.argmax(1) == scores.argmax(1)).mean())
    largest = max(_largest_difference(expected, scores), lost)
    relative = largest / scale if scale > 0 else (0.0 if largest == 0 else np.inf)
    return Comparison(tuple(images.shape), largest, relative, same)


def _scores_inside(model: onnx.ModelProto, images: Tensor, where: str) -> NDArray[Any]:
    """What goes into the last node of a model, its argmax."""
    score_name = model.graph.node[-1].input[0]
    return _run_with_outputs(model, [score_name], images, where)[0]


def _run_with_outputs(
    model: onnx.ModelProto, names: Sequence[str], images: Tensor, where: str
) -> list[NDArray[Any]]:
    """Values inside a model, which onnxruntime gives if they are called outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(copy.SerializeToString(), where=where)
    return run_session(session, images.numpy(), where=where)


def _largest_difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Of two arrays; infinite when their shapes differ or one is not finite."""
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(expected.astype(np.float64) - found).max(initial=0.0))


def _score_lost(expected: NDArray[Any], labels: NDArray[Any]) -> float:
    """By how much torch's best score beats its score of the class that the file chose."""
    shape = (expected.shape[0], 1, *expected.shape[2:])
    if labels.shape != shape or labels.min() < 0 or labels.max() >= expected.shape[1]:
        return float("inf")
    chosen = np.take_along_axis(expected, labels, axis=1)
    return float((expected.max(axis=1, keepdims=True) - chosen).max())


def _first_difference(
    model: onnx.ModelProto, values: Values, images: Tensor, tolerance: float
) -> str | None:
    """The first node, in the order of the graph, whose value differs by more than allowed."""
    names = [(node.name, output) for node in model.graph.node for output in node.output]
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        expected = values(images, {output for _, output in some})
        known = [(node, output) for node, output in some if output in expected]
        outputs = [output for _, output in known]
        found = _run_with_outputs(model, outputs, images, model.graph.name) if known else []
        for (node, output), value in zip(known, found, strict=True):
            wanted = expected[output].numpy()
            if not value.dtype.kind == wanted.dtype.kind == "f":
                continue
            scale = float(np.abs(wanted).max(initial=0.0))
            if not _largest_difference(wanted, value) <= tolerance * scale:
                return node
    return None


def _verdict(
    where: str, model: onnx.ModelProto, result: Comparison, tolerance: float, first: str | None
) -> str:
    shape = "x".join(map(str, result.shape))
    return (
        f"{where}: differs from torch by {result.largest:.2g} at output "
        f"{model.graph.output[0].name!r} ({result.relative:.2g} of the largest score; "
        f"{tolerance:g} is allowed) on images of {shape}"
        + (f", first at node {first}" if first else "")
    )
