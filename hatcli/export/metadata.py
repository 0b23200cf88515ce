"""What an exported file carries beside its graph, and the seal that shows damage.

All entries are ``metadata_props`` whose keys begin with "hat.". The last one is the SHA-256 of
every byte before it, so that a reader finds a changed byte anywhere in the file.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import onnx

from hatcli.errors import ModelFileError

PREFIX = "hat."
SEAL = "hat.sha256"


def read_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """All entries of a model, those of other tools too."""
    return {_text(entry.key): _text(entry.value) for entry in model.metadata_props}


def append_metadata(path: Path, entries: Mapping[str, str]) -> None:
    """Add entries at the end of a file in place; no byte before them changes."""
    with path.open("ab") as file:
        file.write(_encoded(entries))


def seal(path: Path) -> None:
    """Append the checksum of the file to it, and make sure that all is on the disk."""
    with path.open("r+b") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, os.SEEK_END)
        file.write(_encoded({SEAL: checksum}))
        file.flush()
        os.fsync(file.fileno())


def is_sealed(data: bytes) -> bool:
    """Whether the bytes of a file end in the checksum of those before it."""
    length = len(_encoded({SEAL: "0" * 64}))
    checksum = hashlib.sha256(data[:-length]).hexdigest()
    return data[-length:] == _encoded({SEAL: checksum})


def require_whole(path: Path, data: bytes, metadata: Mapping[str, str]) -> bool:
    """Whether a file was written by this program; one that was, and has changed, is refused.

    Raises:
        ModelFileError: the file has entries of ours, but not the checksum that belongs to it.
    """
    if not any(key.startswith(PREFIX) for key in metadata):
        return False
    if not is_sealed(data):
        raise ModelFileError(
            f"{path}: damaged, or changed after its export (its checksum doesn't fit)",
            f"export it again; if it was changed on purpose, remove its {PREFIX}* metadata",
        )
    return True


def _text(value: str | bytes) -> str:
    """A string of a protobuf message, which gives bytes where it isn't UTF-8."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _encoded(entries: Mapping[str, str]) -> bytes:
    """A model of nothing but metadata: appended to a file, its entries join the file's."""
    model = onnx.ModelProto()
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()
