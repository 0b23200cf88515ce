"""An ONNX file that can be called like a model, opened with care.

A file that this program wrote is known by its checksum. Any other is first opened and run in a
process of its own, because onnxruntime may crash on a malformed one.
"""

import json
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto
from torch import Tensor

from hatcli.config import Config, from_values
from hatcli.errors import ModelFileError, UsageError
from hatcli.export import probe
from hatcli.export.metadata import read_metadata, require_whole
from hatcli.export.runtime import open_session, printable, run_session, shortened

_DTYPES = {TensorProto.FLOAT: torch.float32, TensorProto.UINT8: torch.uint8}
_STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")


class OnnxModel:
    """An ONNX file of one image input and one output.

    Args:
        path: the file.
        threads: that onnxruntime computes with; 0 for one per core.
        timeout_s: longest time for the trial in a process of its own.

    Attributes:
        metadata: all entries of the file, as text.
        config: the config that it was exported with, if it is one of ours.
        argmax: whether it gives labels (N, 1, ...) int64 instead of scores.
        preprocess: whether it takes uint8 RGB images and prepares them itself.
        input_name: of the images.
        input_shape: (N, C, H, W); an int is fixed, a name or formula ("batch", "64*h") is open.
        input_dtype: float32 or uint8.
        size_divisor: what H and W must be multiples of.

    Raises:
        ModelFileError: it isn't an ONNX model, refers to what it shouldn't, is damaged, or
            onnxruntime refuses it or crashes.
        UsageError: it is a model, but not of one image input and one output.
    """

    def __init__(self, path: Path, *, threads: int = 0, timeout_s: float = 120.0) -> None:
        self.path = path
        self._timeout_s = timeout_s
        data = _read(path)
        model = _parsed(path, data)
        self.metadata = read_metadata(model)
        is_ours = require_whole(path, data, self.metadata)
        _refuse_foreign_operators(path, model)
        data = _self_contained(path, model, data)
        self._read_interface(model)
        self.config = _config(path, self.metadata)
        self.size_divisor = int(self.metadata.get("hat.size_divisor", 1))
        self._untried = None if is_ours else data
        self._tried: set[tuple[int, ...]] = set()
        self._try_apart([])
        self._session = open_session(data, where=path, threads=threads)

    def __call__(self, images: Tensor) -> Tensor:
        """Scores (N, classes, ...) float32, or labels (N, 1, ...) int64 when `argmax`.

        Args:
            images: (N, C, H, W) of `input_dtype`, in any memory format. A file of a fixed N
                takes any other too: it is run as often as needed.

        Raises:
            UsageError: the images have another dtype or size than the file takes.
        """
        self._check_images(images)
        batch = self.input_shape[0]
        if not isinstance(batch, int):
            return self._run(images)
        parts = [self._run(_filled(part, batch)) for part in torch.split(images, batch)]
        return torch.cat(parts)[: len(images)]

    def _run(self, images: Tensor) -> Tensor:
        array = images.cpu().numpy()
        if array.shape not in self._tried:
            self._try_apart([str(array.dtype), *map(str, array.shape)])
            self._tried.add(array.shape)
        output = run_session(self._session, array, where=self.path)[0]
        return torch.from_numpy(np.ascontiguousarray(output)).to(images.device)

    def _try_apart(self, zeros: list[str]) -> None:
        """Open a file of others in another process, and run it there on zeros: DTYPE N C H W."""
        if self._untried is None:
            return
        try:
            done = subprocess.run(
                [sys.executable, "-P", probe.__file__, *zeros],
                input=self._untried,
                capture_output=True,
                timeout=self._timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ModelFileError(
                f"{self.path}: onnxruntime hasn't finished in {self._timeout_s:g} s"
            ) from error
        if done.returncode < 0:
            name = signal.Signals(-done.returncode).name
            raise ModelFileError(
                f"{self.path}: onnxruntime crashed ({name}) on this model; it may be malformed"
            )
        if done.returncode != 0:
            reason = shortened((done.stdout or done.stderr).decode(errors="replace"))
            raise ModelFileError(f"{self.path}: onnxruntime refuses it: {reason}")

    def _read_interface(self, model: onnx.ModelProto) -> None:
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in weights]
        for values, kind in ((inputs, "input"), (model.graph.output, "output")):
            if len(values) != 1:
                names = ", ".join(printable(value.name) for value in values) or "none"
                raise UsageError(
                    f"{self.path}: expected one {kind}, it has {len(values)} ({names})"
                )
        images, output = inputs[0], model.graph.output[0]
        tensor = images.type.tensor_type
        self.input_name = printable(images.name)
        self.input_shape = tuple(
            size.dim_value if size.HasField("dim_value") else size.dim_param or "?"
            for size in tensor.shape.dim
        )
        if tensor.elem_type not in _DTYPES or len(self.input_shape) != 4:
            given = f"{_dtype_name(tensor.elem_type)} {_shape_text(self.input_shape)}"
            raise UsageError(
                f"{self.path}: input {self.input_name!r} is {given}; expected images, "
                f"float32 or uint8 (N, C, H, W)"
            )
        self.input_dtype = _DTYPES[tensor.elem_type]
        self.preprocess = self.input_dtype == torch.uint8
        self.argmax = output.type.tensor_type.elem_type in (TensorProto.INT64, TensorProto.INT32)

    def _check_images(self, images: Tensor) -> None:
        expected = self.input_shape[1:]
        given = tuple(images.shape[1:])
        fits = images.ndim == 4 and all(
            size == have
            for size, have in zip(expected, given, strict=True)
            if isinstance(size, int)
        )
        if not fits or images.dtype != self.input_dtype:
            dtype = str(self.input_dtype).removeprefix("torch.")
            raise UsageError(
                f"{self.path}: input {self.input_name!r} expects {dtype} "
                f"{_shape_text(self.input_shape)}, given "
                f"{str(images.dtype).removeprefix('torch.')} {_shape_text(tuple(images.shape))}",
                "export it for this size, or with --dynamic size" if not fits else None,
            )
        if images.shape[2] % self.size_divisor or images.shape[3] % self.size_divisor:
            raise UsageError(
                f"{self.path}: expects height and width that are multiples of "
                f"{self.size_divisor}, given {images.shape[2]}x{images.shape[3]}"
            )


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise ModelFileError(f"{path}: not an ONNX model but a folder")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: not an ONNX model: there is no such file") from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    if not data:
        raise ModelFileError(f"{path}: not an ONNX model: the file is empty")
    return data


def _parsed(path: Path, data: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path}: not an ONNX model, or cut or damaged") from error
    if not model.HasField("graph") or not model.opset_import:
        raise ModelFileError(f"{path}: not an ONNX model: it has no graph")
    return model


def _refuse_foreign_operators(path: Path, model: onnx.ModelProto) -> None:
    """Operators of other domains, and of opsets to come; the checker lets both pass."""
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            raise ModelFileError(f"{path}: opset {opset.version} is newer than {newest}")
    own = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        if node.domain not in _STANDARD_DOMAINS and (node.domain, node.op_type) not in own:
            name = f"{printable(node.domain)}::{printable(node.op_type)}"
            raise ModelFileError(f"{path}: needs {name}, which is not a standard operator")


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those inside functions and branches too."""
    pending = [*model.graph.node]
    for function in model.functions:
        pending.extend(function.node)
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                pending.extend(graph.node)


def _self_contained(path: Path, model: onnx.ModelProto, data: bytes) -> bytes:
    """Apply the checker, and take in external data, so that the path isn't needed again.

    The checker gets the path, which tells it what external data may be read.
    """
    size = model.ByteSize()
    try:
        onnx.checker.check_model(str(path), full_check=True)
        with warnings.catch_warnings(action="error"):  # of entries that aren't in the standard
            onnx.load_external_data_for_model(model, str(path.parent))
        if model.ByteSize() == size:
            return data
        onnx.checker.check_model(model)
        return model.SerializeToString()
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelFileError(f"{path}: {_checker_text(str(error))}") from error
    except (ValueError, UserWarning, EncodeError) as error:
        raise ModelFileError(f"{path}: external data refused: {shortened(error)}") from error


def _checker_text(text: str) -> str:
    """What the checker of onnx found, in our words where it is a matter of safety."""
    external = re.search(r"TensorProto \( tensor name: (.*?)\) (.*)", text)
    if external:
        name, reason = printable(external[1]), shortened(external[2].rpartition("but ")[2])
        return f"external data of tensor {name!r} refused: {reason}"
    unknown = re.search(r"No Op registered for (\S+) with domain_version of (\d+)", text)
    if unknown:
        return f"needs {printable(unknown[1])}, which is not an operator of opset {unknown[2]}"
    return f"not a legal ONNX model: {shortened(text)}"


def _config(path: Path, metadata: Mapping[str, str]) -> Config | None:
    text = metadata.get("hat.config")
    if text is None:
        return None
    saved = json.loads(text)  # ours: its checksum was right
    return from_values(saved["name"], saved["values"], where=f"the config of {path}")


def _filled(images: Tensor, batch: int) -> Tensor:
    """A batch of the full size; what lacks is the last image again."""
    missing = batch - len(images)
    return torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images


def _shape_text(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"


def _dtype_name(elem_type: int) -> str:
    return TensorProto.DataType.Name(elem_type).lower()
