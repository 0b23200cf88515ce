"""Plain weights: a state_dict in a file, of another project or of ``hat``.

Unlike a checkpoint it carries no config, and perhaps other names. A model that knows foreign
names has a static method ``weight_names(weights) -> weights`` that gives them its own.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from hatcli.engine.checkpoint import load_tensors, load_weights, require_finite, verify_container
from hatcli.errors import CheckpointError, UsageError

WRAPPERS = ("ema_state_dict", "state_dict", "model")  # where files keep weights, the best first
CHECKSUM = "hat.weights_sha256"
PARALLEL = "module."  # what DistributedDataParallel puts before every name


def load_state_dict_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their names, on the CPU; no code in the file is run.

    Args:
        path: a .safetensors file; or what ``torch.save`` wrote of a state_dict, as it is or in a
            dict under "state_dict" or "model", with "module." before every name or without. Of
            a checkpoint of ``hat`` the averaged weights are taken where it has them.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it is damaged, would run code, holds other things than tensors, or NaN.
    """
    if not path.is_file():
        raise UsageError(f"weights not found: {path}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    weights = _unwrapped(content, path)
    require_finite(weights, path)
    return weights


def load_foreign_weights(model: nn.Module, path: Path) -> None:
    """Copy a file's weights into a model, names and shapes agreeing exactly.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it can't be used, or names or shapes differ.
    """
    weights = load_state_dict_file(path)
    translate: Any = getattr(model, "weight_names", None)
    if translate is not None:
        weights = translate(weights)
    # Released weights often lack these counters, and nothing but a momentum of None needs them.
    counters = {n: t for n, t in model.state_dict().items() if n.endswith(".num_batches_tracked")}
    load_weights(model, {**counters, **weights}, str(path))


def save_safetensors(path: Path, weights: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write tensors, with their checksum among the metadata: the format itself has none.

    Args:
        path: of the file.
        weights: name -> tensor.
        about: further metadata.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    # Tensors that share memory would be refused: each is written by itself.
    owned = {name: tensor.clone() for name, tensor in plain.items()}
    safetensors.torch.save_file(owned, path, {**about, CHECKSUM: _checksum(owned)})


def fingerprint(path: Path) -> str:
    """The first 8 digits of a file's SHA-256, which names of public weights often end in."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def _read_safetensors(path: Path) -> Any:
    try:
        weights = safetensors.torch.load_file(path, device="cpu")
        with safetensors.safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get(CHECKSUM)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
    if expected is not None and expected != _checksum(weights):
        raise CheckpointError(f"{path}: the weights are damaged: their checksum differs")
    return weights


def _checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_torch(path: Path) -> Any:
    """A zip with checksums, or the bare pickle that torch wrote before 1.6."""
    with path.open("rb") as file:
        is_old = file.read(2) == b"\x80\x02"
    if not is_old:
        verify_container(path)
    return load_tensors(path)


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        wrapped = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        content = wrapped[0] if wrapped else content
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: no state_dict, but a {type(content).__name__}")
    if not content:
        raise CheckpointError(f"{path}: holds no tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: no state_dict: {name!r} is a {type(value).__name__}, not a tensor",
                "save the model's state_dict alone",
            )
    start = PARALLEL if all(name.startswith(PARALLEL) for name in content) else ""
    return {name.removeprefix(start): tensor for name, tensor in content.items()}
