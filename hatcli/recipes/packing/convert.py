"""A pack into another container as it is, or a foreign LMDB pack into one of ours."""

import time
from pathlib import Path
from typing import Any

from hatcli.data.packers._foreign import ForeignLmdb, check_structure
from hatcli.data.packers._foreign_samples import Fields, ForeignSamples
from hatcli.data.packers._on_demand import OnDemand
from hatcli.data.packs.container import data_size, find_pack_type, open_reader
from hatcli.data.packs.frame import seal, unseal
from hatcli.data.packs.lmdb_file import DATA_FILE
from hatcli.data.packs.meta import META_KEY, STATE_KEY, first_key_number
from hatcli.data.packs.place import hold_lock, make_room
from hatcli.data.packs.publish import Draft, Identity
from hatcli.data.packs.reader import Pack, open_pack
from hatcli.errors import DataError, PackError, StoppedBySignal, UsageError
from hatcli.events import Job, Note, Progress
from hatcli.recipes.packing.info import read_left_out
from hatcli.recipes.packing.pack import PackResult, Settings, pack_with
from hatcli.stopping import stop_signals, uninterrupted

_REPORT_EVERY = 50  # records
# What a pack says of its container and of this program, which is said anew.
_SAID_ANEW = {
    *("format", "schema", "min_reader", "complete", "length", "key_format", "options_digest"),
    *("content_sha256", "payload_bytes", "max_record_bytes", "writer", "shards", "quarantine"),
}


def convert(
    source: Path,
    target_dir: Path,
    *,
    pack_type: str = "lmdb",
    split: str | None = None,
    fields: Fields | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> Job[PackResult]:
    """Convert a pack into ``<target_dir>/<split>_<pack_type>``.

    The records of a pack of hat stay as they are, byte for byte, and so does the content digest.

    Args:
        source: a pack of hat, a folder with a foreign data.mdb, or such a file.
        target_dir: gets the new pack.
        pack_type: of the new pack.
        split: of a foreign pack; "train" unless given.
        fields: where image, label and name are in a foreign record.
        num_workers: processes for a foreign pack.
        overwrite: replace a pack that is there.

    Raises:
        UsageError: there is nothing to convert, or a field can't be guessed.
        DataError: the source is damaged, or holds what can't be converted.
    """
    settings = Settings(num_workers, pack_type, overwrite=overwrite)
    settings.check()
    if _is_foreign(source):
        samples = ForeignSamples(ForeignLmdb(source), split or "train", fields or Fields())
        for note in samples.notes:
            yield Note(note)
        target = target_dir / f"{samples.split}_{pack_type}"
        return (yield from pack_with(samples, source, target, settings))
    with open_pack(source, order="sequential") as pack:
        if split not in (None, pack.meta["split"]):
            raise UsageError(f"--split {split}: {source} holds the split {pack.meta['split']}")
        target = target_dir / f"{pack.meta['split']}_{pack_type}"
        if target.resolve() == source.resolve():
            raise UsageError(f"{target} would be replaced by itself", "choose another --out")
        return (yield from _copy(pack, target, settings))


def _is_foreign(source: Path) -> bool:
    """Whether this is an LMDB file that isn't hat's."""
    if source.is_file():
        return True
    if find_pack_type(source) != "lmdb":
        return False
    check_structure(source / DATA_FILE)
    reader = open_reader(source)
    return not any(reader.read(key, lambda record: True) for key in (META_KEY, STATE_KEY))


def _copy(pack: Pack, target: Path, settings: Settings) -> Job[PackResult]:
    started = time.monotonic()
    meta = pack.meta
    left_out = read_left_out(pack.path, meta)
    identity = Identity(
        meta["dataset"],
        meta["split"],
        {"content_sha256": meta["content_sha256"]},
        {},
        OnDemand(range(len(pack) + len(left_out)), str),
        first_key_number(meta),
    )
    with stop_signals(), uninterrupted.noting(), hold_lock(target):
        make_room(target, overwrite=settings.overwrite)
        draft = Draft(
            target,
            identity,
            restart=False,
            size_bytes=data_size(pack.path),
            pack_type=settings.pack_type,
        )
        resumed_at = draft.next
        try:
            if not draft.is_complete:
                yield from _copy_records(pack, draft, left_out)
                content = {name: meta[name] for name in meta if name not in _SAID_ANEW}
                for _ in draft.finish(content):
                    _stop_if_asked(draft)
            made = draft.publish()
        finally:
            draft.close()
    seconds = time.monotonic() - started
    size = data_size(target)
    return PackResult(target, made, size, seconds, resumed_at, len(left_out))


def _copy_records(pack: Pack, draft: Draft, left_out: dict[int, dict[str, Any]]) -> Job[None]:
    """Store the records that are missing; each one's checksum is compared."""
    total = len(pack) + len(left_out)
    reader = open_reader(pack.path, "sequential")
    try:
        while draft.next < total:
            _stop_if_asked(draft)
            if draft.next in left_out:
                draft.leave_out(left_out[draft.next])
                continue
            key = pack.key_of(draft.length)
            record = reader.read(key, bytes)
            if record is None:
                raise PackError(f"sample {key.decode()} in {pack.path} is missing")
            try:
                payload = unseal(key, record)
            except DataError as error:
                raise PackError(
                    f"damaged sample {key.decode()} in {pack.path} ({error})"
                ) from error
            # Only behind what a joined shard left out, keys are others here.
            draft.add(record if key == draft.next_key else seal(draft.next_key, bytes(payload)), {})
            if draft.next % _REPORT_EVERY == 0 or draft.next == total:
                yield Progress("copying", draft.next, total, "samples")
    finally:
        draft.commit()
        reader.close()


def _stop_if_asked(draft: Draft) -> None:
    if uninterrupted.is_asked:
        raise StoppedBySignal(
            uninterrupted.asked, f"stopped at {draft.next}; run the same command to go on"
        )
