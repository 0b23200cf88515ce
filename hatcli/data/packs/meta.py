"""What a pack says of itself: the record ``__meta__``, its readable copy, and the schema rules.

Readers refuse a larger major version and ignore unknown entries of a larger minor one.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hatcli import __version__
from hatcli.data.packs.codec import decode, encode
from hatcli.data.packs.frame import seal, unseal
from hatcli.errors import DataError, PackError, UsageError

META_KEY = b"__meta__"
STATE_KEY = b"__state__"  # only while packing
META_FILE = "meta.json"
KEY_FORMAT = "%010d"  # byte order is numeric order, and the keys above sort behind
FORMAT = "hat-pack"
SCHEMA = (1, 0)

_FIELD_TYPES: dict[str, tuple[str, ...]] = {
    "bytes": ("bytes", "memoryview"),
    "int": ("int",),
    "str": ("str",),
    "ndarray": ("ndarray", "Strips", "RawRows"),
    "tensor": ("TensorData",),
}


def no_pack(folder: Path) -> UsageError:
    """The error for a folder that isn't there or holds no pack; its name tells the split."""
    split, _, kind = folder.name.rpartition("_")
    made = f"hat pack DATASET --split {split if split and kind else 'SPLIT'}"
    return UsageError(
        f"no pack at {folder}", f"'{made}' makes one; data_rootdir=FOLDER names another place"
    )


def sample_key(index: int) -> bytes:
    """The key of a sample, counted from 0."""
    return b"%010d" % index


def first_key_number(meta: Mapping[str, Any]) -> int:
    """The number of a pack's first key: 0, or the place in the whole of a shard's first sample.

    Args:
        meta: of a pack, or the state of an unfinished one.
    """
    return meta.get("shard", meta).get("first", 0)


def seal_map(key: bytes, entries: Mapping[str, object]) -> bytes:
    """A map as a framed record, ready to be stored under its key."""
    return seal(key, encode(entries))


def unseal_map(key: bytes, record: bytes | memoryview) -> dict[str, Any]:
    """The map in a framed record.

    Raises:
        DataError: the record is damaged or no map.
    """
    return decode(unseal(key, record))


def describe_pack(
    length: int,
    content: Mapping[str, object],
    *,
    content_sha256: str,
    payload_bytes: int,
    max_record_bytes: int,
) -> dict[str, Any]:
    """The metadata of a complete pack: what the packer says, and what the format asks for.

    Neither time nor host nor path is in it, so that equal sources give equal packs.

    Args:
        length: number of samples.
        content: the packer's part: dataset, split, task, fields, options, classes and so on.
        content_sha256: over key and record of all samples in key order, in hex.
        payload_bytes: all records together, frames included.
        max_record_bytes: the largest record, frame included.
    """
    libraries = ("lmdb", "msgpack", "numpy", "pillow", "zstandard")
    return {
        "format": FORMAT,
        "schema": list(SCHEMA),
        "min_reader": list(SCHEMA),
        "complete": True,
        "length": length,
        "key_format": KEY_FORMAT,
        **content,
        "options_digest": _digest(content.get("options")),
        "content_sha256": content_sha256,
        "payload_bytes": payload_bytes,
        "max_record_bytes": max_record_bytes,
        "writer": {
            "hat": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in libraries},
        },
    }


def check_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """Refuse metadata of another format, of a newer schema, or of an unfinished pack.

    Raises:
        PackError: one of these.
    """
    if meta.get("format") != FORMAT:
        raise PackError(f"{path}: not a hat pack (its metadata says {meta.get('format')!r})")
    least = meta.get("min_reader", meta.get("schema"))
    if not _is_version(least) or not _is_version(meta.get("schema")):
        raise PackError(f"{path}: damaged pack (its metadata has no version)")
    if least[0] > SCHEMA[0]:
        raise PackError(
            f"{path}: pack format {least[0]}.{least[1]} is newer than this hat ({SCHEMA[0]}.x)",
            "upgrade hat, or pack the source again",
        )
    length = meta.get("length")
    if type(length) is not int or length < 0 or not isinstance(meta.get("fields"), dict):
        raise PackError(f"{path}: damaged pack (its metadata has no length or no fields)")
    if not _is_index(meta.get("shard", {"first": 0})):
        raise PackError(f"{path}: damaged pack (its metadata says shard {meta.get('shard')!r})")
    if meta.get("complete") is not True or meta.get("key_format") != KEY_FORMAT:
        raise PackError(f"{path}: pack is unfinished, or its keys are unknown to this hat")


def check_fields(sample: Mapping[str, object], fields: Mapping[str, Any]) -> None:
    """Refuse a sample that lacks a required field or has one of another type.

    Args:
        sample: decoded.
        fields: name -> {"type", "required", and for arrays "dtype"}, as in the metadata.

    Raises:
        DataError: one of these.
    """
    for name, field in fields.items():
        if name not in sample:
            if field.get("required", True):
                raise DataError(f"field {name!r} is missing")
            continue
        value = sample[name]
        kind = field.get("type")
        if type(value).__name__ not in _FIELD_TYPES.get(kind, (kind,)):
            raise DataError(f"field {name!r} is {type(value).__name__}, not {kind}")
        dtype = getattr(value, "dtype", None)
        if (
            dtype is not None
            and "dtype" in field
            and getattr(dtype, "str", dtype) != field["dtype"]
        ):
            raise DataError(f"field {name!r} has dtype {dtype}, not {field['dtype']}")


def write_meta_json(path: Path, meta: Mapping[str, Any], data_bytes: int) -> None:
    """Write the readable copy; ``__meta__`` decides where they differ.

    Args:
        path: of the file.
        meta: of the pack.
        data_bytes: exact size of the container file.
    """
    packed = {
        "data_bytes": data_bytes,
        "packed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
    }
    path.write_text(json.dumps({**meta, **packed}, indent=1) + "\n", encoding="utf-8")


def _digest(value: object) -> str:
    """SHA-256 of plain values, whatever order their keys are in."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _is_index(shard: object) -> bool:
    first = shard.get("first") if isinstance(shard, dict) else None
    return type(first) is int and first >= 0


def _is_version(value: object) -> bool:
    return isinstance(value, list) and [type(part) for part in value] == [int, int]
