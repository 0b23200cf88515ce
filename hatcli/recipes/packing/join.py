"""Shards that were packed apart become one pack; nothing is copied."""

import time
from pathlib import Path

from hatcli.data.packs.container import data_size
from hatcli.data.packs.joined import publish_joined
from hatcli.data.packs.place import hold_lock, make_room
from hatcli.errors import HatError, UsageError
from hatcli.events import Job, Progress
from hatcli.recipes.packing.info import SHARD_NAME, find_shards, read_info
from hatcli.recipes.packing.pack import PackResult

SHARDS_SUFFIX = ".shards"

_REPORT_EVERY = 50  # records
_MOST_NAMED = 10


def join(folder: Path, *, overwrite: bool = False) -> Job[PackResult]:
    """Publish the pack that consists of all shards in a folder, beside that folder.

    Args:
        folder: SPLIT_TYPE.shards, as ``hat pack DATASET --shard I/N`` fills it.
        overwrite: replace a pack that is there.

    Raises:
        UsageError: there is no such folder, or no shard in it.
        HatError: a shard is missing, unfinished, damaged, or of another source.
    """
    started = time.monotonic()
    shards = _find_all(folder)
    target = folder.with_name(folder.name.removesuffix(SHARDS_SUFFIX))
    total = sum(read_info(shard).meta["length"] for shard in shards)
    with hold_lock(target):
        make_room(target, overwrite=overwrite)
        joining = publish_joined(target, shards)
        try:
            while True:
                done = next(joining)
                if done % _REPORT_EVERY == 0 or done == total:
                    yield Progress("reading shards", done, total, "samples")
        except StopIteration as finished:
            meta = finished.value
    left_out = meta.get("quarantine", {}).get("count", 0)
    seconds = time.monotonic() - started
    return PackResult(target, meta, data_size(target), seconds, left_out=left_out)


def _find_all(folder: Path) -> list[Path]:
    """All shards, in order."""
    if not folder.name.endswith(SHARDS_SUFFIX) or not folder.is_dir():
        beside = folder.with_name(folder.name + SHARDS_SUFFIX)
        hint = f"did you mean {beside}?" if beside.is_dir() else "'hat pack' makes it with --shard"
        raise UsageError(f"no folder of shards: {folder}", hint)
    found = {shard.name: shard for shard in find_shards(folder)}
    if not found:
        raise UsageError(f"no shards in {folder}", "'hat pack DATASET --shard I/N' makes them")
    matches = [SHARD_NAME.fullmatch(name.removesuffix(".partial")) for name in found]
    counts = sorted({int(match[2]) for match in matches if match})
    if len(counts) > 1:
        shown = " and ".join(map(str, counts))
        raise HatError(f"{folder}: shards of {shown} lie together", "move those of one set away")
    missing = [
        f"{number}/{counts[0]}"
        for number in range(1, counts[0] + 1)
        if f"{number}-of-{counts[0]}" not in found
    ]
    if missing:
        shown = ", ".join(missing[:_MOST_NAMED]) + (" ..." if len(missing) > _MOST_NAMED else "")
        raise HatError(
            f"{folder}: {len(missing)} of {counts[0]} shards are missing or unfinished: {shown}",
            "pack them with --shard, then join again",
        )
    return list(found.values())
