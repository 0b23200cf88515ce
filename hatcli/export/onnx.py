"""A float model as ONNX: what is computed, with a graph that can be read."""

import ast
import contextlib
import hashlib
import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.onnx import OnnxExporterError

from hatcli import __version__
from hatcli.errors import ConfigError, HatError, UsageError

Dynamic = Literal["none", "batch", "size", "both"]

INPUT = "images"
SCORES = "scores"
LABELS = "labels"
OPSET = 18
OPSETS = range(18, 26)  # those that the exporter writes without the converter of onnx itself

_LARGEST_FILE = 2**31 - 1  # protobuf
_OPEN_SIZES = {0: "batch", 2: "h", 3: "w"}  # axis -> name in the file


class Deployed(nn.Module):
    """What a file computes: a model, with the preprocessing and the argmax that it holds.

    Args:
        model: float32 (N, 3, H, W) to scores (N, classes, ...).
        preprocess: uint8 (N, 3, H, W) RGB to the model's input, if that is inside the file.
        argmax: whether the result is the index of the best class instead of the scores.
    """

    def __init__(
        self, model: nn.Module, preprocess: nn.Module | None = None, *, argmax: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.argmax = argmax
        self.eval()

    @property
    def input_dtype(self) -> torch.dtype:
        """uint8 with the preprocessing inside, float32 without."""
        return torch.float32 if self.preprocess is None else torch.uint8

    def forward(self, images: Tensor) -> Tensor:
        """Scores, or labels (N, 1, ...) int64, of images (N, 3, H, W) of `input_dtype`."""
        scores = self.scores(images)
        return scores.argmax(dim=1, keepdim=True) if self.argmax else scores

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes, ...) float32, also where the file gives labels.

        Raises:
            ConfigError: the model has several outputs.
        """
        if self.preprocess is not None:
            images = self.preprocess(images)
        scores = self.model(images)
        if not isinstance(scores, Tensor):
            raise ConfigError(
                "the model has several outputs; one can be exported",
                "name it in the config, e.g. deploy.head=4",
            )
        return scores


@dataclass(frozen=True)
class OnnxExport:
    """An exported model that is not written yet.

    Attributes:
        model: the graph; names of its values are names of nodes in `program`.
        program: the same computation in torch, node by node.
    """

    model: onnx.ModelProto
    program: ExportedProgram


def export_onnx(
    deployed: Deployed,
    shape: Sequence[int],
    *,
    dynamic: Dynamic = "none",
    size_divisor: int = 1,
    opset: int = OPSET,
    metadata: Mapping[str, str] | None = None,
) -> OnnxExport:
    """The ONNX graph of a model, unchecked.

    Each batch norm behind a convolution is folded into it. Weights keep the names of the
    parameters, and nodes are named by the module that they come from.

    Args:
        deployed: the computation; one input "images", one output "scores" or "labels".
        shape: (N, C, H, W) of the images.
        dynamic: which of the sizes the file leaves open: N, or H and W, or all three.
        size_divisor: what H and W have to be multiples of.
        opset: one of `OPSETS`.
        metadata: entries for the file; "hat.weights_sha256" is added to them.

    Raises:
        UsageError: the shape or opset can't be had.
        HatError: the model can't be traced.
    """
    check_request(shape, dynamic, size_divisor, opset)
    example = torch.zeros(_example_shape(shape, dynamic, size_divisor), dtype=deployed.input_dtype)
    output = LABELS if deployed.argmax else SCORES
    try:
        # stdout is for results
        with contextlib.redirect_stdout(sys.stderr), _without_hints(), torch.no_grad():
            program = torch.onnx.export(
                deployed,
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[output],
                dynamic_shapes=_open_sizes(dynamic, size_divisor),
            )
    except OnnxExporterError as error:
        raise _explained(error, shape) from error
    if program is None or program.exported_program is None:
        raise HatError("the exporter of torch gave no model")
    model, traced = program.model_proto, program.exported_program
    if model.ByteSize() > _LARGEST_FILE:
        raise HatError(f"the model has {model.ByteSize() / 1e9:.1f} GB; one file holds 2.1 GB")
    _tidy(model, traced)
    for key, value in {**(metadata or {}), "hat.weights_sha256": weights_sha256(model)}.items():
        model.metadata_props.add(key=key, value=value)
    return OnnxExport(model, traced)


@contextlib.contextmanager
def _without_hints() -> Iterator[None]:
    """Keeps back what torch logs of an error beside raising it: a number in its own catalogue."""
    logger = logging.getLogger("torch.export._trace")
    logger.addFilter(_is_no_hint)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_hint)


def _is_no_hint(record: logging.LogRecord) -> bool:
    return "exportdb" not in record.getMessage() and "is unsupported" not in record.getMessage()


def weights_sha256(model: onnx.ModelProto) -> str:
    """A checksum of all weights with their names, independent of the graph around them."""
    checksum = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        checksum.update(tensor.SerializeToString())
    return checksum.hexdigest()


def second_shape(shape: Sequence[int], dynamic: Dynamic, size_divisor: int) -> tuple[int, ...]:
    """Another shape that a file takes: one image more, about half the size; or the same."""
    n, channels, height, width = shape
    if dynamic in ("batch", "both"):
        n += 1
    if dynamic in ("size", "both"):
        height = _half(height // size_divisor) * size_divisor
        width = _half(width // size_divisor) * size_divisor
    return n, channels, height, width


def _half(steps: int) -> int:
    return steps // 2 if steps > 1 else 2


def check_request(shape: Sequence[int], dynamic: str, size_divisor: int, opset: int) -> None:
    """Refuse what no file can have.

    Raises:
        UsageError: the shape, the open sizes or the opset.
    """
    if len(shape) != 4 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise UsageError(f"shape {tuple(shape)}: give N,C,H,W")
    if opset not in OPSETS:
        raise UsageError(f"opset {opset}: choose {OPSETS[0]} to {OPSETS[-1]}")
    if dynamic not in get_args(Dynamic):
        raise UsageError(f"dynamic {dynamic!r}: choose {', '.join(get_args(Dynamic))}")
    if shape[2] % size_divisor or shape[3] % size_divisor:
        nearest = [math.ceil(size / size_divisor) * size_divisor for size in shape[2:]]
        raise UsageError(
            f"shape {shape[2]}x{shape[3]}: this model takes multiples of {size_divisor}",
            f"the next larger size is {nearest[0]}x{nearest[1]}",
        )


def _example_shape(shape: Sequence[int], dynamic: Dynamic, size_divisor: int) -> list[int]:
    """The shape to trace with: an open size must not be 1, which torch takes for fixed."""
    n, channels, height, width = shape
    if dynamic in ("batch", "both"):
        n = max(n, 2)
    if dynamic in ("size", "both"):
        height, width = max(height, 2 * size_divisor), max(width, 2 * size_divisor)
    return [n, channels, height, width]


def open_names(dynamic: Dynamic, size_divisor: int) -> dict[int, str]:
    """Axis of the images -> its name in the file, of those that are left open."""
    names = {0: "batch"} if dynamic in ("batch", "both") else {}
    if dynamic in ("size", "both"):
        step = f"{size_divisor}*" if size_divisor > 1 else ""
        names |= {2: f"{step}h", 3: f"{step}w"}
    return names


def _open_sizes(dynamic: Dynamic, size_divisor: int) -> tuple[dict[int, Any]] | None:
    sizes: dict[int, Any] = {}
    if dynamic in ("batch", "both"):
        sizes[0] = Dim(_OPEN_SIZES[0])
    if dynamic in ("size", "both"):
        for axis in (2, 3):
            step = Dim(_OPEN_SIZES[axis])
            sizes[axis] = size_divisor * step if size_divisor > 1 else step
    return (sizes,) if sizes else None


def _explained(error: BaseException, shape: Sequence[int]) -> HatError:
    """The innermost cause of the exporter's error, which is pages long, in one line."""
    cause = error
    while cause.__cause__ is not None and not isinstance(cause, HatError):
        cause = cause.__cause__
    if isinstance(cause, HatError):
        return cause
    line = (str(cause).strip().splitlines() or [""])[0]
    sizes = ",".join(map(str, shape))
    return HatError(
        f"the model cannot be exported: {type(cause).__name__}: {line[:200]}",
        f"'hat ops TARGET --shape {sizes}' tells whether it takes images of this shape; "
        "its forward must be traceable by torch.export, with operators that ONNX has",
    )


def _tidy(model: onnx.ModelProto, traced: ExportedProgram) -> None:
    """Name things after the model in place, and drop what only the exporter's authors need."""
    graph = model.graph
    names = _parameter_names(graph)
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    taken: Counter[str] = Counter()
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        name = f"{_module_of(node)}/{node.op_type}".removeprefix("/")
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
    symbols = _symbols(traced)
    for value in [*graph.input, *graph.output, *graph.value_info]:
        value.name = names.get(value.name, value.name)
        for size in value.type.tensor_type.shape.dim:
            if size.HasField("dim_param"):
                size.dim_param = re.sub(
                    r"\bs\d+\b", lambda found: symbols.get(found[0], found[0]), size.dim_param
                )
    for part in [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info]:
        part.ClearField("metadata_props")  # holds paths of this machine
    for tensor in graph.initializer:
        tensor.ClearField("metadata_props")
    model.producer_name, model.producer_version = "hat", __version__
    graph.name = "model"


def _parameter_names(graph: onnx.GraphProto) -> dict[str, str]:
    """The exporter's name of each weight -> its name in the model itself.

    "model.stem.conv.weight_bias" is "stem.conv.bias": what folding a batch norm leaves. A name
    that something else in the graph has already stays as it is.
    """
    taken = {value.name for value in graph.input} | {
        name for node in graph.node for name in node.output
    }
    names = {}
    for tensor in graph.initializer:
        name = re.sub(r"\.weight_bias$", ".bias", tensor.name.removeprefix("model."))
        names[tensor.name] = tensor.name if name in taken else name
        taken.add(names[tensor.name])
    return names


def _module_of(node: onnx.NodeProto) -> str:
    """The module that a node computes: the owner of its weights, or where it was traced."""
    for name in node.input:
        if name.endswith(".weight"):
            return name.removesuffix(".weight")
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes: list[str] = ast.literal_eval(entry.value)
            module = scopes[-2] if len(scopes) > 1 else ""
            return "" if module == "model" else module.removeprefix("model.")
    return ""


def _symbols(traced: ExportedProgram) -> dict[str, str]:
    """Torch's names of the open sizes (s77) -> ours (batch, h, w)."""
    images = next(
        node for node in traced.graph.nodes if node.name in traced.graph_signature.user_inputs
    )
    found = {}
    for axis, name in _OPEN_SIZES.items():
        symbol = re.search(r"\bs\d+\b", str(images.meta["val"].shape[axis]))
        if symbol:
            found[symbol[0]] = name
    return found
