"""What a pack says of itself, be it complete, unfinished, joined, or a folder of shards."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hatcli.data.packs.container import data_size, find_pack_type, open_reader
from hatcli.data.packs.contents import read_contents
from hatcli.data.packs.meta import META_FILE, META_KEY, STATE_KEY, no_pack, unseal_map
from hatcli.data.packs.publish import QUARANTINE_FILE
from hatcli.data.packs.reader import open_pack
from hatcli.errors import DataError, PackError

SHARD_NAME = re.compile(r"(\d+)-of-(\d+)")


@dataclass(frozen=True)
class PackInfo:
    """One pack.

    Attributes:
        path: where it was found; of an unfinished one the folder that ends in ".partial".
        kind: of its container, "joined", or "shards" for a folder of shards.
        is_complete: whether it can be read.
        size_bytes: of its data file; of several shards together.
        meta: what it says of itself; of an unfinished one "dataset", "split", "options", "next"
            (samples done) and "length" (samples in all); of a folder of shards empty.
        written: when and where it was packed, from the readable copy; not checked.
        shards: of a folder of shards, those that are there, by number.
    """

    path: Path
    kind: str
    is_complete: bool
    size_bytes: int
    meta: dict[str, Any]
    written: dict[str, Any] = field(default_factory=dict)
    shards: "list[PackInfo]" = field(default_factory=list)


def read_info(path: Path) -> PackInfo:
    """What there is to know of a pack without reading its samples.

    Args:
        path: of a pack, complete or not, or of a folder SPLIT_TYPE.shards.

    Raises:
        UsageError: there is none.
        PackError: it can't be opened.
    """
    partial = path.with_name(path.name + ".partial")
    if not path.exists() and partial.is_dir():
        path = partial
    shards = find_shards(path)
    if shards:
        infos = [read_info(shard) for shard in shards]
        size = sum(info.size_bytes for info in infos)
        return PackInfo(path, "shards", False, size, {}, shards=infos)
    kind = find_pack_type(path)
    if kind is None and not (path / META_FILE).is_file():
        raise no_pack(path)
    state = _read_state(path, kind) if path.suffix == ".partial" else None
    if state is not None:
        return PackInfo(path, kind or "", False, data_size(path), state)
    with open_pack(path) as pack:
        return PackInfo(path, kind or "", True, data_size(path), pack.meta, _read_written(path))


def find_shards(folder: Path) -> list[Path]:
    """The shards in a folder, by number; an unfinished one with its ".partial"."""
    if not folder.is_dir():
        return []
    found = {}
    for path in folder.iterdir():
        match = SHARD_NAME.fullmatch(path.name.removesuffix(".partial"))
        if match and path.is_dir():
            key = (int(match[2]), int(match[1]))
            # While a shard is packed anew, both are there, and the complete one counts.
            if key not in found or path.suffix != ".partial":
                found[key] = path
    return [found[key] for key in sorted(found)]


def read_left_out(path: Path, meta: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The samples that a pack left out, each by its place in the source.

    Args:
        path: of the pack.
        meta: of the pack.

    Raises:
        PackError: a list is missing or damaged.
    """
    if not meta.get("quarantine"):
        return {}
    if "shards" not in meta:
        return {entry["index"]: entry for entry in _read_list(path / QUARANTINE_FILE)}
    found = {}
    for shard in meta["shards"]:
        folder = path / shard["path"]
        if (folder / QUARANTINE_FILE).exists():
            for entry in _read_list(folder / QUARANTINE_FILE):
                place = shard["first"] + entry["index"]
                found[place] = {**entry, "index": place}
    return found


def _read_list(file: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise PackError(f"{file}: can't be read ({error})") from error


def _read_state(path: Path, kind: str | None) -> dict[str, Any] | None:
    """The state of an unfinished pack; None where only publishing is left."""
    try:
        if kind == "mxrecord":  # behind what counts there may be the half of a batch
            record = read_contents(path).named.get(STATE_KEY)
            return None if record is None else unseal_map(STATE_KEY, record)
        reader = open_reader(path)
        if reader.read(META_KEY, lambda record: True):
            return None
        return reader.read(STATE_KEY, lambda record: unseal_map(STATE_KEY, record))
    except PackError:
        raise
    except DataError as error:
        raise PackError(f"{path}: unfinished pack is damaged ({error})") from error


def _read_written(path: Path) -> dict[str, Any]:
    try:
        copy = json.loads((path / META_FILE).read_text(encoding="utf-8"))
        return {name: copy[name] for name in ("packed_at", "host") if name in copy}
    except (OSError, ValueError, TypeError):
        return {}  # readers do without the copy
