"""What onnxruntime computes in float of an exported integer model, why, and what to do."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

from hatcli.errors import ModelFileError
from hatcli.export.preprocess import PREFIX, PREPARED
from hatcli.export.runtime import RUNTIME_ERRORS, shortened

# Operators of the optimised graph that are integer kernels, or move data, or work on shapes.
_MOVING = {
    "ArgMax", "Cast", "Clip", "Concat", "Flatten", "Gather", "Identity", "NhwcMaxPool", "Pad",
    "QuantizeLinear", "DequantizeLinear", "Reshape", "Shape", "Slice", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip
FLOAT = onnx.TensorProto.FLOAT

_ACTIVATIONS = {"HardSigmoid", "HardSwish", "LeakyRelu", "Sigmoid", "Softmax"}
_ALL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
_EXTENDED = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED


@dataclass(frozen=True)
class FloatLayer:
    """A layer that onnxruntime computes in float.

    Attributes:
        layer: its name in the model.
        operator: of ONNX.
        why: the reason.
        remedy: what would make it integers.
    """

    layer: str
    operator: str
    why: str
    remedy: str


@dataclass(frozen=True)
class Fusion:
    """What became of a file in onnxruntime.

    Attributes:
        kernels: operator -> how many of it there are, the most frequent first.
        float_layers: what is computed in float.
    """

    kernels: dict[str, int]
    float_layers: tuple[FloatLayer, ...]


def inspect_fusion(path: Path, *, where: str) -> Fusion:
    """Let onnxruntime optimise a file, and see what is left in float.

    The preprocessing is float by nature, and left out.

    Raises:
        ModelFileError: onnxruntime refuses the file.
    """
    written = onnx.load(str(path))
    kernels = Counter(node.op_type for node in _optimised(path, where, _ALL).graph.node)
    # One level below, float convolutions still have their names.
    optimised = _optimised(path, where, _EXTENDED)
    producers = {output: node for node in written.graph.node for output in node.output}
    initializers = {tensor.name: tensor for tensor in written.graph.initializer}
    original = {node.name: node for node in written.graph.node}
    inferred = onnx.shape_inference.infer_shapes(written).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in inferred}
    left = []
    for node in optimised.graph.node:
        kind = node.op_type
        if kind.startswith("Q") or kind in _MOVING:
            continue
        if any(name.startswith(PREFIX) or name == PREPARED for name in node.output):
            continue
        if all(types.get(name, FLOAT) != FLOAT for name in node.output):
            continue  # on codes, or on sizes
        source = original.get(node.name, node)
        why, remedy = _reason(source, producers, initializers)
        layer = node.name.rpartition("/")[0] or node.output[0]
        layer = layer.removesuffix(".y").removesuffix(".float")
        left.append(FloatLayer(layer, kind, why, remedy))
    return Fusion(dict(kernels.most_common()), tuple(left))


def _optimised(
    path: Path, where: str, level: onnxruntime.GraphOptimizationLevel
) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(target)
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except RUNTIME_ERRORS as error:
            raise ModelFileError(f"{where}: onnxruntime refuses it: {shortened(error)}") from error
        return onnx.load(str(target))


def _reason(
    node: onnx.NodeProto,
    producers: dict[str, onnx.NodeProto],
    initializers: dict[str, onnx.TensorProto],
) -> tuple[str, str]:
    """Why a node stayed float, and the remedy."""
    if node.op_type in ("Conv", "Gemm") and node.input[1] in initializers:
        return "an exception keeps it in float", "take it out of quantize.exceptions"
    zero_points = [
        initializers[producer.input[2]]
        for name in node.input
        if (producer := producers.get(name)) is not None
        and producer.op_type == "DequantizeLinear"
        and len(producer.input) > 2
        and producer.input[2] in initializers
    ]
    if any(tensor.data_type == onnx.TensorProto.UINT16 for tensor in zero_points):
        return "a tensor of 16 bits goes in", "set activation_bits to 8 for the layer before it"
    if node.op_type in ("Conv", "Gemm", "Add", "Mul", "Concat", "GlobalAveragePool"):
        return (
            "onnxruntime has no integer kernel for these types",
            "keep 8 bits on both sides of it",
        )
    remedy = "use ReLU or ReLU6 instead, and train again"
    why = f"onnxruntime has no integer kernel for {node.op_type}"
    return why, remedy if node.op_type in _ACTIVATIONS else "none known"
