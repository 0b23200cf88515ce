"""Checkpoints: written whole or not at all, verified before use, never able to run code.

The file is what ``torch.save`` writes: a zip that holds a CRC of each member. torch doesn't
look at these on loading (a flipped bit loads as another weight), so `load_checkpoint` does.
"""

import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hatcli.disk import sync_to_disk
from hatcli.errors import CheckpointError, UsageError, start_of

FORMAT = "hat-checkpoint"
VERSION = 1


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint under its name in one step: temporary file, fsync, rename.

    Args:
        path: where; its folder must exist. An older file of that name stays whole until the end.
        content: tensors and plain values in dicts, lists and tuples.

    Raises:
        TypeError: a value is of another type, so that a load would refuse the file later.
        CheckpointError: the disk is full or the folder not writable; nothing is left behind.
    """
    _require_plain(content, "checkpoint")
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_to_disk(path.parent)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = _os_reason(error)
        raise CheckpointError(f"{path}: cannot save: {reason}", "the last one is intact") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint after checking every byte of it; tensors are on the CPU.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it is no checkpoint, is damaged, would run code, or holds NaN weights.
    """
    if not path.is_file():
        raise UsageError(f"checkpoint not found: {path}", _neighbours(path))
    verify_container(path)
    content = load_tensors(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a checkpoint of hat",
            "give the plain weights of another project by --weights",
        )
    if content["version"] > VERSION:
        raise CheckpointError(f"{path}: written by a newer hat ({content['hat_version']})")
    require_finite(content.get("state_dict") or {}, path)
    return content


def load_tensors(path: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU, without running code of the file.

    Raises:
        CheckpointError: it can't be read, or holds other objects than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: holds objects other than tensors and plain values",
            "a checkpoint with code in it is never loaded; save its state_dict alone",
        ) from error
    except (
        RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError,
        OverflowError, struct.error,
    ) as error:  # fmt: skip
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: not a checkpoint: {reason}") from error


def load_weights(model: torch.nn.Module, weights: Mapping[str, Any], where: str) -> None:
    """Copy a state_dict into a model; names and shapes must agree exactly.

    Raises:
        CheckpointError: with the first names that differ.
    """
    expected = model.state_dict()
    wrong = [f"missing {name}" for name in expected if name not in weights]
    wrong += [f"unexpected {name}" for name in weights if name not in expected]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, the model needs {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise CheckpointError(
            f"{where}: doesn't fit the model: {'; '.join(wrong[:5])}{more}",
            "the model node differs (num_classes, alpha?), or it is another model's checkpoint",
        )
    model.load_state_dict(weights)


def verify_container(path: Path) -> None:
    """Compare every byte of what ``torch.save`` wrote with its checksum, before it is unpacked.

    Raises:
        CheckpointError: it is damaged, or no such file.
    """
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path}: not a checkpoint: the file is empty")
    with path.open("rb") as file:
        start = file.read(16)
    if start[:1] == b"<":
        raise CheckpointError(f"{path}: not a checkpoint but a web page ({start_of(start)})")
    if start[:2] != b"PK":
        raise CheckpointError(f"{path}: not a checkpoint ({start_of(start)})")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or sum(member.file_size for member in members) > size:
                raise CheckpointError(f"{path}: refused: compressed members (possible bomb)")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: the checkpoint is cut or damaged: {error}") from error
    if damaged is not None:
        raise CheckpointError(
            f"{path}: the checkpoint is damaged: member {damaged!r} fails its checksum",
            _neighbours(path),
        )


def require_finite(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse weights that hold a NaN or an infinity.

    Raises:
        CheckpointError: with the first tensor that does.
    """
    bad = [
        name
        for name, tensor in weights.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if bad:
        raise CheckpointError(
            f"{path}: holds non-finite values in {len(bad)} tensors, first: {bad[0]}"
        )


def _require_plain(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise TypeError(f"{where}: key {key!r} cannot be stored in a checkpoint")
            _require_plain(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _require_plain(item, f"{where}.{position}")
    elif type(value) not in (str, int, float, bool, bytes, type(None)) and not isinstance(
        value, torch.Tensor
    ):
        raise TypeError(f"{where}: a {type(value).__name__} cannot be stored in a checkpoint")


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path.parent} doesn't exist either"
    names = sorted(p.name for p in path.parent.iterdir() if p.name.endswith((".pth.tar", ".pth")))
    others = [name for name in names if name != path.name]
    return f"in that folder: {', '.join(others) or 'no checkpoint'}"


def _os_reason(error: BaseException) -> str:
    """Why a write failed: torch wraps it in a RuntimeError, the OSError is behind it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    return str(error).partition("\n")[0]
