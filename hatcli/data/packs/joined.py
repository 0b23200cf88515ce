"""Many shards as one pack: nothing is copied, a small folder names the shards.

Each shard is a complete pack whose records stand under the keys that they have in the unsharded
pack. So the joined pack has the same length, the same samples, the same content digest and, but
for the entry "shards", the same metadata as the pack that one machine would have made. (Where a
shard left damaged samples out, the keys behind them have a gap, and the digest is another.)
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hatcli.data.packers._totals import section, spread
from hatcli.data.packs.container import data_size, find_pack_type, open_reader
from hatcli.data.packs.contents import Contents, write_contents
from hatcli.data.packs.digest import ContentDigest
from hatcli.data.packs.joined_reader import ShardEntry
from hatcli.data.packs.meta import (
    META_FILE,
    META_KEY,
    describe_pack,
    sample_key,
    seal_map,
    write_meta_json,
)
from hatcli.data.packs.place import beside, explain_write_errors, put_in_place
from hatcli.data.packs.reader import open_pack
from hatcli.disk import sync_to_disk
from hatcli.errors import DataError, PackError, UsageError


def publish_joined(target: Path, shards: Sequence[Path]) -> Generator[int, None, dict[str, Any]]:
    """Read all shards once, then publish the pack that consists of them; returns its metadata.

    Yields the number of records read so far. Each record's checksum and each shard's digest are
    compared on the way, so joining verifies the shards; the digest over all is computed by it.
    The caller holds `place.hold_lock(target)` and has called `place.make_room(target)`.
    Publishing is one rename, as of any pack; a run that was stopped begins anew.

    Entries of the shards' metadata are summed by `JOIN_RULES`, and by the rules that a packer
    gives in an entry "join" of the metadata: {name: rule}; all others must be equal.

    Args:
        target: folder of the joined pack, e.g. train_lmdb; the shards are named relative to it,
            so that all may be moved together.
        shards: folders of complete packs whose metadata holds "shard", in any order.

    Raises:
        UsageError: no shards are given, or a folder of them holds no pack.
        PackError: a shard is damaged, missing, given twice, or of another source, other options
            or another number of shards.
    """
    found = find_shards(shards)
    content = join_content([shard.meta for shard in found])
    digest = ContentDigest()
    done = 0
    for shard in found:
        for _ in _read_all(shard, digest):
            done += 1
            yield done
    meta = describe_pack(
        done,
        content,
        content_sha256=digest.hexdigest(),
        payload_bytes=digest.payload_bytes,
        max_record_bytes=digest.max_record_bytes,
    )
    meta["shards"] = [shard.entry(target)._asdict() for shard in found]
    _publish(target, meta)
    return meta


class Shard(NamedTuple):
    """A complete pack that is one part of a split."""

    path: Path
    meta: dict[str, Any]

    @property
    def first(self) -> int:
        """The number of its first key."""
        return self.meta["shard"]["first"]

    def entry(self, target: Path) -> ShardEntry:
        """How the metadata of a joined pack at the target names it."""
        relative = os.path.relpath(self.path.absolute(), target.absolute())
        digest = self.meta["content_sha256"]
        return ShardEntry(Path(relative).as_posix(), self.first, self.meta["length"], digest)


def find_shards(folders: Sequence[Path]) -> list[Shard]:
    """The shards in these folders, in order: all of one split, none missing, none twice.

    Raises:
        UsageError: no folders are given, or one holds no pack.
        PackError: a pack is damaged or no shard, or they don't belong together.
    """
    if not folders:
        raise UsageError("no shards are given", "'hat pack DATASET --shard 1/N' makes one")
    found = []
    for folder in folders:
        meta = open_pack(folder).meta
        if "shard" not in meta or find_pack_type(folder) == "joined":
            raise PackError(f"{folder}: not a shard", "make shards with --shard I/N")
        found.append(Shard(folder, meta))
    found.sort(key=lambda shard: shard.meta["shard"]["index"])
    whole = found[0].meta["shard"]
    for shard in found:
        mine = shard.meta["shard"]
        if (mine["count"], mine["total"]) != (whole["count"], whole["total"]):
            ours = f"{mine['index']} of {mine['count']} of {mine['total']} samples"
            others = f"{whole['count']} of {whole['total']} samples"
            raise PackError(f"{shard.path}: shard {ours}; {found[0].path}: one of {others}")
    indices = [shard.meta["shard"]["index"] for shard in found]
    missing = sorted({*range(1, whole["count"] + 1)} - {*indices})
    if missing:
        listed = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        raise PackError(
            f"{found[0].path.parent}: shards missing: {listed} of {whole['count']}",
            "pack them with --shard I/N, then join again",
        )
    _check_places(found, whole["total"])
    return found


def join_content(metas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The packer's part of the metadata of the whole, from those of all shards in order.

    Raises:
        PackError: an entry that must be equal differs.
    """
    first = metas[0]
    rules = {**JOIN_RULES, **first.get("join", {})}
    totals: Counter[str] = Counter()
    for meta in metas:
        totals.update(meta["shard"].get("totals", {}))
    content = {}
    for name in _in_order(metas):
        if name in _OF_THE_PACK:
            continue
        values = [meta[name] for meta in metas if name in meta]
        rule = rules.get(name, "same")
        if rule not in _RULES:
            raise PackError(f"shards can't be joined: {name!r} has the unknown rule {rule!r}")
        try:
            content[name] = _RULES[rule](values, totals)
        except (TypeError, ValueError) as error:
            raise PackError(f"shards differ in {name!r}: {error}", _HINT_ALIKE) from error
        if rule == "same" and len(values) != len(metas):
            raise PackError(f"shards differ in {name!r}: some lack it", _HINT_ALIKE)
    return content


# How an entry of the metadata is made from those of the shards: "same" where it must be equal,
# "add" for numbers, elementwise in lists and by name in maps, "union" for sorted lists, "sizes"
# for maps of counts or of spreads, "lists" for what was left out.
JOIN_RULES = {
    "class_pixels": "add",
    "class_images": "add",
    "ignored_pixels": "add",
    "boxes": "add",
    "class_boxes": "add",
    "images_without_boxes": "add",
    "counts": "add",
    "label_ids_seen": "union",
    "sizes": "sizes",
    "quarantine": "lists",
}

_HINT_ALIKE = "pack all shards from one source, with the same options and the same hat"
_OF_THE_PACK = {
    *("format", "schema", "min_reader", "complete", "length", "key_format", "options_digest"),
    *("content_sha256", "payload_bytes", "max_record_bytes", "writer", "shard"),
}


def _check_places(shards: Sequence[Shard], total: int) -> None:
    """Whether the shards cover the whole, each sample once."""
    expected = 0
    for shard in shards:
        if shard.first != expected:
            raise PackError(f"{shard.path}: begins at sample {shard.first}, not at {expected}")
        left_out = shard.meta.get("quarantine", {}).get("count", 0)
        expected += shard.meta["length"] + left_out
    if expected != total:
        raise PackError(f"{shards[-1].path}: ends at sample {expected} of {total}")


def _read_all(shard: Shard, digest: ContentDigest) -> Generator[None, None, None]:
    """Add a shard's records to the digest, and compare them with its own."""
    own = ContentDigest()
    reader = open_reader(shard.path, "sequential")

    for number in range(shard.first, shard.first + shard.meta["length"]):
        key = sample_key(number)

        def take(record: memoryview, key: bytes = key) -> bool:
            own.add(key, record)
            digest.add(key, record)
            return True

        try:
            if not reader.read(key, take):
                raise PackError(f"{shard.path}: sample {key.decode()} is missing")
        except PackError:
            raise
        except DataError as error:
            raise PackError(f"{shard.path}: damaged sample {key.decode()} ({error})") from error
        yield
    if own.hexdigest() != shard.meta["content_sha256"]:
        raise PackError(f"{shard.path}: its content isn't what its metadata says")


def _publish(target: Path, meta: dict[str, Any]) -> None:
    partial = beside(target, ".partial")
    with explain_write_errors(partial):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        write_contents(partial, Contents(0, 0, 0, {META_KEY: seal_map(META_KEY, meta)}))
        size = sum(data_size(partial / entry["path"]) for entry in meta["shards"])
        write_meta_json(partial / META_FILE, meta, size)
        sync_to_disk(partial / META_FILE)
    put_in_place(partial, target)


def _in_order(metas: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all entries, as the first metadata that has them orders them."""
    return list(dict.fromkeys(name for meta in metas for name in meta))


def _same(values: Sequence[Any], _: Mapping[str, int]) -> Any:
    for value in values:
        if value != values[0]:
            raise ValueError(f"{_shown(values[0])} and {_shown(value)}")
    return values[0]


def _add(values: Sequence[Any], _: Mapping[str, int]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        names = sorted({name for value in values for name in value})
        return {name: _add([v[name] for v in values if name in v], _) for name in names}
    if isinstance(first, list):
        return [_add(items, _) for items in zip(*values, strict=True)]
    return sum(values)


def _unite(values: Sequence[Any], _: Mapping[str, int]) -> Any:
    return sorted({item for value in values for item in value})


def _join_sizes(values: Sequence[Any], totals: Mapping[str, int]) -> Any:
    """Counts are added; a spread has a median, which only the sums over all samples tell."""
    if all(isinstance(count, int) for count in values[0].values()):
        return _add(values, totals)
    return {side: spread(section(totals, side)) for side in values[0]}


def _join_lists(values: Sequence[Any], _: Mapping[str, int]) -> Any:
    """Of several lists of what was left out, all of which stay in their shards."""
    digest = hashlib.sha256("".join(value["digest"] for value in values).encode())
    return {"count": sum(value["count"] for value in values), "digest": digest.hexdigest()}


_RULES: dict[str, Callable[[Sequence[Any], Mapping[str, int]], Any]] = {
    "same": _same,
    "add": _add,
    "union": _unite,
    "sizes": _join_sizes,
    "lists": _join_lists,
}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
