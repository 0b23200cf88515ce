"""From a raw dataset to a pack: look through the source, make the records, publish."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hatcli.data.packers import PACKERS, Packer
from hatcli.data.packers._work import MAX_WORKERS, StopRequest, make_records, watch_stop_signals
from hatcli.data.packs.disk import HINT_RESUME, check_free_space
from hatcli.data.packs.lmdb_file import DATA_FILE
from hatcli.data.packs.publish import Draft, Identity, hold_lock, make_room
from hatcli.errors import DataError, StoppedBySignal, UsageError
from hatcli.events import Job, Note, Progress, Warned

PACK_TYPES = ("lmdb", "mxrecord")

_MOST_DEFAULT_WORKERS = 8
_FEW_SAMPLES = 64  # not worth starting workers for
_READ_BACK_EVERY = 50  # records between two reports


@dataclass(frozen=True)
class PackResult:
    """A published pack.

    Attributes:
        path: the pack's folder.
        meta: what it says of itself.
        size_bytes: of its container file.
        seconds: of this run.
        resumed_at: samples that an earlier run had packed.
        remarks: what may be wrong with the source; each was reported as a warning too.
    """

    path: Path
    meta: dict[str, Any]
    size_bytes: int
    seconds: float
    resumed_at: int = 0
    remarks: list[str] = field(default_factory=list)


def pack(
    dataset: str,
    source_dir: Path,
    target_dir: Path | None,
    split: str,
    *,
    num_workers: int | None = None,
    pack_type: str = "lmdb",
    expect: str = "any",
    overwrite: bool = False,
    restart: bool = False,
    **options: Any,
) -> Job[PackResult]:
    """Pack one split into ``<target_dir or source_dir>/<split>_lmdb``.

    A run that was stopped is gone on with by the same call.

    Args:
        dataset: name of a packer.
        source_dir: holds the raw dataset.
        target_dir: gets the pack; None for the source's own folder.
        split: of the dataset.
        num_workers: processes that make records; 0 for this one, None for one a core. The pack
            doesn't depend on it.
        pack_type: the container, one of `PACK_TYPES`.
        expect: "official" makes it an error when samples or classes aren't as many as published.
        overwrite: replace a pack that is there.
        restart: throw away what an earlier run left.
        options: of the packer.

    Raises:
        HatError: the source, the target or a sample isn't as it should be; nothing but an
            unfinished pack beside the target is left.
        StoppedBySignal: after committing what was ready.
    """
    started = time.monotonic()
    _check_arguments(num_workers, pack_type, expect)
    packer: Packer = PACKERS.build({"type": dataset, **options}, source_dir=source_dir, split=split)
    if expect == "official":
        _check_official(packer, source_dir)
    target = (target_dir or source_dir) / f"{split}_{pack_type}"
    with watch_stop_signals() as stop, hold_lock(target):
        make_room(target, overwrite=overwrite)
        for remark in packer.remarks:
            yield Warned(remark)
        identity = Identity(dataset, split, packer.options, packer.source, packer.stamps)
        draft = Draft(target, identity, restart=restart, size_bytes=packer.estimated_bytes)
        resumed_at = draft.next
        try:
            if not draft.is_complete:
                yield from _fill(draft, packer, num_workers, stop)
            meta = draft.publish()
        finally:
            draft.close()
    found = packer.find_remarks(meta)
    for remark in found:
        yield Warned(remark)
    size = (target / DATA_FILE).stat().st_size
    seconds = time.monotonic() - started
    return PackResult(target, meta, size, seconds, resumed_at, [*packer.remarks, *found])


def _fill(draft: Draft, packer: Packer, num_workers: int | None, stop: StopRequest) -> Job[None]:
    """Make and store what is missing, read it all back, and complete the draft."""
    total = len(packer.stamps)
    missing = total - draft.next
    if num_workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        num_workers = min(cores, _MOST_DEFAULT_WORKERS) if missing >= _FEW_SAMPLES else 0
    check_free_space(draft.partial, packer.estimated_bytes * missing // total, HINT_RESUME)
    if draft.next:
        yield Note(f"going on after {draft.next} of {total} samples")
    try:
        for record in make_records(packer, draft.next, num_workers, stop):
            draft.add(record.data, record.totals)
            yield Progress(f"packing {packer.split}", draft.next, total)
    finally:
        draft.commit()
    _stop_if_asked(stop, draft.next, total)
    for done in draft.finish(packer.describe(draft.totals)):
        _stop_if_asked(stop, draft.next, total)
        if done % _READ_BACK_EVERY == 0 or done == total:
            yield Progress("reading back", done, total)


def _stop_if_asked(stop: StopRequest, done: int, total: int) -> None:
    if stop:
        raise StoppedBySignal(
            stop.signal_number,
            f"stopped at {done} of {total}; run the same command to go on",
        )


def _check_official(packer: Packer, source_dir: Path) -> None:
    found, wanted = len(packer.stamps), packer.official_length
    differs = (
        [] if found == wanted else [f"expected {wanted} samples in {packer.split}, found {found}"]
    )
    differs += packer.unofficial
    if differs:
        raise DataError(
            f"{source_dir}: {'; '.join(differs)}",
            "complete the source, or leave out --expect official",
        )


def _check_arguments(num_workers: int | None, pack_type: str, expect: str) -> None:
    if num_workers is not None and not 0 <= num_workers <= MAX_WORKERS:
        raise UsageError(f"--num-workers {num_workers}: give 0 to {MAX_WORKERS}")
    if pack_type not in PACK_TYPES:
        choices = ", ".join(PACK_TYPES)
        raise UsageError(f"pack type {pack_type!r} unknown; choose {choices}")
    if pack_type != "lmdb":
        raise UsageError(f"pack type {pack_type!r} is not built yet", "leave out --pack-type")
    if expect not in ("any", "official"):
        raise UsageError(f"--expect {expect!r} unknown; choose any, official")
