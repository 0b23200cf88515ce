"""onnxruntime on the CPU, with errors in one line."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from hatcli.errors import ModelFileError

# Its exceptions have no base class of their own.
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    MemoryError,
    *(
        kind
        for kind in vars(state).values()
        if isinstance(kind, type) and kind.__base__ is Exception
    ),
)

_ONLY_FATAL = 4


def open_session(source: Path | bytes, *, where: object, threads: int = 0) -> Any:
    """An ``InferenceSession`` on the CPU.

    Args:
        source: a file, or the bytes of one that needs no other file.
        where: what to call the model in an error.
        threads: 0 for one per core.

    Raises:
        ModelFileError: onnxruntime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ONLY_FATAL  # what it logs below that is in the exception too
    options.intra_op_num_threads = threads
    model = str(source) if isinstance(source, Path) else source
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise ModelFileError(f"{where}: onnxruntime refuses it: {shortened(error)}") from error


def run_session(session: Any, images: NDArray[Any], *, where: object) -> list[NDArray[Any]]:
    """All outputs for one array of images.

    Raises:
        ModelFileError: the computation fails.
    """
    options = onnxruntime.RunOptions()
    options.log_severity_level = _ONLY_FATAL
    feed = {session.get_inputs()[0].name: np.ascontiguousarray(images)}
    try:
        return session.run(None, feed, options)
    except RUNTIME_ERRORS as error:
        shape = "x".join(map(str, images.shape))
        raise ModelFileError(
            f"{where}: onnxruntime fails on images of {shape}: {shortened(error)}"
        ) from error


def shortened(error: BaseException | str) -> str:
    """The part of an error message of onnx or onnxruntime that a person can use, in one line."""
    text = str(error)
    newest = re.search(r"domain \S+ is till opset (\d+)", text)
    if newest:
        return f"its opset is newer than {newest[1]}"
    text = text.partition("==> Context")[0]
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"^Load model from .* failed:", "", text)
    text = re.sub(r"/onnxruntime_src/.*?\) ", "", text)  # its own file, line and signature
    text = printable(" ".join(text.split()).rstrip(". "))
    return text if len(text) <= 200 else text[:197] + "..."


def printable(text: str | bytes) -> str:
    """Text from a file without what would act on a terminal."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    return "".join(character if character.isprintable() else "?" for character in text)
