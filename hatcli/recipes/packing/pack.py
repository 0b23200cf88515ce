"""From a raw dataset to a pack: look through the source, make the records, publish."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hatcli.data.packers import PACKERS, Packer
from hatcli.data.packers._memory import keep_freed_memory
from hatcli.data.packers._part import Part, parse_shard
from hatcli.data.packers._work import MAX_WORKERS, Refused, make_records
from hatcli.data.packs.container import data_size, find_container
from hatcli.data.packs.mounts import remote_file_system
from hatcli.data.packs.place import hold_lock, make_room
from hatcli.data.packs.publish import QUARANTINE_FILE, Draft, Identity
from hatcli.disk import HINT_RESUME, check_free_space
from hatcli.errors import DataError, HatError, StoppedBySignal, UsageError
from hatcli.events import Job, Note, Progress, Warned
from hatcli.stopping import stop_signals, uninterrupted

MAX_QUARANTINE = 0.001

_MOST_DEFAULT_WORKERS = 8
_FEW_SAMPLES = 64  # not worth starting workers for
_READ_BACK_EVERY = 50  # records between two reports
_MOST_WARNINGS = 10  # of samples that are left out; all of them are in the list


@dataclass(frozen=True)
class Settings:
    """How a pack is made; nothing of this changes what is in it.

    Attributes:
        num_workers: processes that make records; 0 for this one, None for one a core, or none where
            bytes are only copied.
        pack_type: the container, one of `container.PACK_TYPES`.
        on_error: "fail", or "quarantine" to leave damaged samples out.
        max_quarantine: share of the samples that may be left out; one may be in any case.
        overwrite: replace a pack that is there.
        restart: throw away what an earlier run left.
    """

    num_workers: int | None = None
    pack_type: str = "lmdb"
    on_error: str = "fail"
    max_quarantine: float = MAX_QUARANTINE
    overwrite: bool = False
    restart: bool = False

    def check(self) -> None:
        """Refuse wrong values.

        Raises:
            UsageError: one of them is wrong.
        """
        if self.num_workers is not None and not 0 <= self.num_workers <= MAX_WORKERS:
            raise UsageError(f"--num-workers {self.num_workers}: give 0 to {MAX_WORKERS}")
        find_container(self.pack_type)
        if self.on_error not in ("fail", "quarantine"):
            raise UsageError(f"--on-error {self.on_error!r} unknown; choose fail, quarantine")
        if not 0 < self.max_quarantine <= 1:
            raise UsageError(f"--max-quarantine {self.max_quarantine}: give a share up to 1")


@dataclass(frozen=True)
class PackResult:
    """A published pack.

    Attributes:
        path: the pack's folder.
        meta: what it says of itself.
        size_bytes: of its container file.
        seconds: of this run.
        resumed_at: samples that an earlier run had packed.
        left_out: samples that were damaged and are listed in the pack's quarantine file.
        remarks: what may be wrong with the source; each was reported as a warning too.
    """

    path: Path
    meta: dict[str, Any]
    size_bytes: int
    seconds: float
    resumed_at: int = 0
    left_out: int = 0
    remarks: list[str] = field(default_factory=list)


def pack(
    dataset: str,
    source_dir: Path,
    target_dir: Path | None,
    split: str,
    *,
    expect: str = "any",
    shard: str | None = None,
    num_workers: int | None = None,
    pack_type: str = "lmdb",
    on_error: str = "fail",
    max_quarantine: float = MAX_QUARANTINE,
    overwrite: bool = False,
    restart: bool = False,
    **options: Any,
) -> Job[PackResult]:
    """Pack one split into ``<target_dir or source_dir>/<split>_<pack_type>``.

    A run that was stopped is gone on with by the same call.

    Args:
        dataset: name of a packer.
        source_dir: holds the raw dataset.
        target_dir: gets the pack; None for the source's own folder.
        split: of the dataset.
        expect: "official" makes it an error when samples or classes aren't as many as published.
        shard: "2/8" packs the second of eight equal parts, into
            ``<split>_<pack_type>.shards/2-of-8``.
        num_workers: see `Settings`; so for the next five.
        pack_type: of the container.
        on_error: what becomes of a damaged sample.
        max_quarantine: how many may be left out.
        overwrite: replace a pack.
        restart: begin anew.
        options: of the packer.

    Raises:
        HatError: the source, the target or a sample isn't as it should be; nothing but an
            unfinished pack beside the target is left.
        StoppedBySignal: after committing what was ready.
    """
    settings = Settings(num_workers, pack_type, on_error, max_quarantine, overwrite, restart)
    settings.check()
    if expect not in ("any", "official"):
        raise UsageError(f"--expect {expect!r} unknown; choose any, official")
    part = parse_shard(shard) if shard else None
    packer: Packer = PACKERS.build({"type": dataset, **options}, source_dir=source_dir, split=split)
    if expect == "official":
        _check_official(packer, source_dir)
    target = (target_dir or source_dir) / f"{split}_{pack_type}"
    if part is not None:
        packer = Part(packer, part)
        target = target.with_name(f"{target.name}.shards") / str(part)
    return (yield from pack_with(packer, source_dir, target, settings))


def pack_with(
    packer: Packer, source_dir: Path, target: Path, settings: Settings
) -> Job[PackResult]:
    """Pack what a packer makes of a source into a folder; see `pack`."""
    started = time.monotonic()
    keep_freed_memory()
    first = packer.first if isinstance(packer, Part) else 0
    identity = Identity(
        packer.dataset, packer.split, packer.options, packer.source, packer.stamps, first
    )
    with stop_signals(), uninterrupted.noting(), hold_lock(target):
        make_room(target, overwrite=settings.overwrite)
        remarks = [*packer.remarks, *_remarks_on_place(target, settings.pack_type)]
        for remark in remarks:
            yield Warned(remark)
        draft = Draft(
            target,
            identity,
            restart=settings.restart,
            size_bytes=packer.estimated_bytes,
            pack_type=settings.pack_type,
        )
        resumed_at = draft.next
        try:
            if not draft.is_complete:
                yield from _fill(draft, packer, source_dir, settings)
            meta = draft.publish()
        finally:
            draft.close()
    left_out = meta.get("quarantine", {}).get("count", 0)
    found = packer.find_remarks(meta)
    if left_out:
        total = meta["length"] + left_out
        found.append(f"{left_out} of {total} samples were left out, see {target / QUARANTINE_FILE}")
    for remark in found:
        yield Warned(remark)
    seconds = time.monotonic() - started
    return PackResult(
        target, meta, data_size(target), seconds, resumed_at, left_out, [*remarks, *found]
    )


def _fill(draft: Draft, packer: Packer, source_dir: Path, settings: Settings) -> Job[None]:
    """Make and store what is missing, read it all back, and complete the draft."""
    total = len(packer.stamps)
    missing = total - draft.next
    check_free_space(draft.partial, packer.estimated_bytes * missing // total, HINT_RESUME)
    if draft.next:
        yield Note(f"going on after {draft.next} of {total} samples")
    leave_out = settings.on_error == "quarantine"
    if draft.left_out and not leave_out:
        raise HatError(
            f"{draft.partial}: an earlier run left {len(draft.left_out)} samples out",
            "go on with --on-error quarantine, or begin anew with --restart",
        )
    workers = _count_workers(settings, packer, missing)
    try:
        for made in make_records(
            packer,
            draft.next,
            workers,
            first_key=int(draft.next_key),
            leave_out=leave_out,
        ):
            if isinstance(made, Refused):
                yield from _leave_out(draft, packer, made, source_dir, settings)
            else:
                draft.add(made.data, made.totals)
            yield Progress(f"packing {packer.split}", draft.next, total)
    finally:
        draft.commit()
    _stop_if_asked(draft.next, total)
    if not draft.length:
        raise DataError(f"none of the {total} samples is whole")
    for done in draft.finish(packer.describe(draft.totals)):
        _stop_if_asked(draft.next, total)
        if done % _READ_BACK_EVERY == 0 or done == draft.length:
            yield Progress("reading back", done, draft.length)


def _leave_out(
    draft: Draft, packer: Packer, refused: Refused, source_dir: Path, settings: Settings
) -> Job[None]:
    """Note a damaged sample, unless there are too many of them."""
    total = len(packer.stamps)
    limit = max(1, int(total * settings.max_quarantine))
    if len(draft.left_out) == limit:
        raise DataError(
            f"more than {limit} of {total} samples are damaged, the last: {refused.error}",
            f"--max-quarantine {settings.max_quarantine:g} allows no more; mend the source, "
            "or allow a larger share",
        )
    if len(draft.left_out) < _MOST_WARNINGS:
        yield Warned(f"left out: {refused.error}")
    # Without the folder, so that equal sources give equal packs wherever they are.
    error = refused.error.replace(f"{source_dir}{os.sep}", "")
    draft.leave_out({"index": draft.next, "name": refused.name, "error": error})


def _count_workers(settings: Settings, packer: Packer, missing: int) -> int:
    if settings.num_workers is not None:
        return settings.num_workers
    if _only_copies(packer):  # handing over what was read costs more than reading it
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return min(cores, _MOST_DEFAULT_WORKERS) if missing >= _FEW_SAMPLES else 0


def _only_copies(packer: Packer) -> bool:
    """Whether samples are stored as they are read, without a look at their pixels."""
    compressed = any(field.get("codec") in ("zstd", "strips") for field in packer.fields.values())
    keeps_bytes = packer.options.get("image_format") == "source"
    return keeps_bytes and packer.options.get("check") in ("none", "header") and not compressed


def _remarks_on_place(target: Path, pack_type: str) -> list[str]:
    kind = remote_file_system(target.parent)
    if kind is None or pack_type != "lmdb":
        return []
    return [
        f"{target.parent} is on a remote file system ({kind}), where LMDB promises nothing while "
        "it writes; pack on a local disk and copy, or verify the pack afterwards"
    ]


def _stop_if_asked(done: int, total: int) -> None:
    if uninterrupted.is_asked:
        raise StoppedBySignal(
            uninterrupted.asked,
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
