"""What an exported ONNX file says of itself: which checkpoint it is of, and how its check went."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from hatcli.errors import ModelFileError
from hatcli.events import size_text
from hatcli.export.metadata import read_metadata, require_whole


@dataclass(frozen=True)
class Exported:
    """An ONNX file of this program.

    Attributes:
        step: of the checkpoint.
        metrics: of the checkpoint, in percent; None where there is none.
        verdict: of the check at its export, in a few words.
        is_fine: whether the verdict is good.
        facts: names and texts.
    """

    path: Path
    step: str
    metrics: dict[str, float | None]
    verdict: str
    is_fine: bool
    facts: list[tuple[str, str]]


def read_exported(path: Path) -> Exported:
    """Read the metadata of a file; the model isn't run.

    Raises:
        ModelFileError: it can't be read, is damaged, or wasn't exported by this program.
    """
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot read it: {error.strerror or error}") from error
    except DecodeError as error:
        raise ModelFileError(f"{path}: not an ONNX model") from error
    metadata = read_metadata(model)
    if not require_whole(path, data, metadata):
        raise ModelFileError(
            f"{path}: wasn't exported by hat", "export one: hat export --ckpt FILE"
        )
    values = {key.removeprefix("hat."): _value(text) for key, text in metadata.items()}
    parity, check = values.get("parity"), values.get("check")
    if parity:
        verdict, is_fine, found = _parity_facts(parity)
    elif check:
        verdict, is_fine, found = _check_facts(check)
    else:
        verdict, is_fine, found = "not checked", False, []
    facts = [
        ("model of step", str(values.get("step"))),
        ("size", size_text(len(data))),
        ("takes", "uint8 RGB images" if values.get("preprocess") else "prepared float32 images"),
        ("gives", "classes (argmax inside)" if values.get("argmax") else "scores"),
        *found,
    ]
    metrics = dict(values.get("metrics") or {})
    return Exported(path, str(values.get("step")), metrics, verdict, is_fine, facts)


def _parity_facts(parity: Mapping[str, Any]) -> tuple[str, bool, list[tuple[str, str]]]:
    differing, values = parity["differing"], parity["values"]
    is_fine = differing == 0 or not parity["promised"]
    if differing == 0:
        verdict = "gives the same codes as int_infer"
    else:
        verdict = f"differs from int_infer in {differing:,} of {values:,} values"
    facts = [
        ("compared", f"{values:,} values of {parity['images']} images, with {parity['layers']} "
                     "tensors inside"),
        ("differing", f"{differing:,}, by at most {parity['largest']:g} codes"),
        ("promised equal", "yes" if parity["promised"] else "no"),
        ("same class first", f"{100 * parity['same_class']:.2f} %"),
        *_versions(parity),
    ]  # fmt: skip
    return verdict, is_fine, facts


def _check_facts(check: Mapping[str, Any]) -> tuple[str, bool, list[tuple[str, str]]]:
    comparisons: Sequence[Mapping[str, Any]] = check["comparisons"]
    is_fine = all(one["relative"] <= check["tolerance"] for one in comparisons)
    verdict = "gives the same scores as torch" if is_fine else "differs from torch"
    facts = [
        (
            "x".join(map(str, one["shape"])),
            f"largest difference {one['largest']:.2g}, {one['relative']:.2g} of the largest score; "
            f"same class first at {100 * one['same_class']:.2f} %",
        )
        for one in comparisons
    ]
    return verdict, is_fine, [*facts, ("tolerance", f"{check['tolerance']:g}"), *_versions(check)]


def _versions(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = ("onnxruntime", "torch", "processor")
    return [(name, str(entry[name])) for name in names if entry.get(name)]


def _value(text: str) -> Any:
    """Numbers, lists and truth values are JSON; the rest is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
