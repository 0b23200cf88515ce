"""An unfinished pack, how it goes on after a stop, and the one rename that makes it a pack.

While packing, everything lies in ``train_lmdb.partial`` beside the target ``train_lmdb``, and a
lock beside both keeps others out. What stands under the final name is always complete.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from hatcli.data.packs.disk import sync_to_disk
from hatcli.data.packs.lmdb import FIRST_MAP_BYTES, LmdbWriter
from hatcli.data.packs.lmdb_file import DATA_FILE
from hatcli.data.packs.meta import (
    META_KEY,
    STATE_KEY,
    describe_pack,
    sample_key,
    seal_map,
    unseal_map,
    write_meta_json,
)
from hatcli.data.packs.reader import open_pack
from hatcli.errors import DataError, HatError, LockedError, PackError, UsageError

BATCH_BYTES = 64 * 10**6
BATCH_RECORDS = 1000
META_FILE = "meta.json"
STAMPS_FILE = "stamps.jsonl"  # only while packing; not in the container, since it holds times

_HINT_RESTART = "--restart throws the unfinished pack away"


@dataclass(frozen=True)
class Identity:
    """What must be equal for an unfinished pack to be gone on with.

    Attributes:
        options: of the packer, plain values.
        source: what the metadata will say of the source.
        stamps: one a sample, in order; tells one version of a sample's source from another.
            Only those of the samples that are packed already are compared.
    """

    dataset: str
    split: str
    options: Mapping[str, Any]
    source: Mapping[str, Any]
    stamps: Sequence[str]


@contextmanager
def hold_lock(target: Path) -> Iterator[None]:
    """Keep every other pack away from a target while the block runs.

    Raises:
        LockedError: another process packs here.
        HatError: the folder of the target can't be written.
    """
    path = _beside(target, ".lock")
    descriptor = _take_lock(path)
    try:
        about = f"pid {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}"
        os.truncate(descriptor, 0)
        os.write(descriptor, about.encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def make_room(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that is taken, and mend what a stop between two renames left.

    Raises:
        UsageError: the target is a file, or a folder that is no pack.
        HatError: a pack is there already and may not be overwritten.
    """
    old = _beside(target, ".old")
    with _explain_write_errors(target.parent):
        if old.exists() and target.exists():
            shutil.rmtree(old)
        elif old.exists():
            old.rename(target)
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file, a directory is needed")
    if not (target / DATA_FILE).exists():
        raise UsageError(f"{target} exists and is no pack", "choose another --out, or move it away")
    if overwrite:
        return
    try:
        length = len(open_pack(target))
    except DataError as error:
        raise PackError(
            f"{error} (and it is in the way)", "use --overwrite to replace it"
        ) from error
    raise HatError(f"{target}: already packed ({length} samples)", "use --overwrite to replace it")


class Draft:
    """The unfinished pack of one target; what is committed survives any stop.

    Attributes:
        next: index of the first sample that isn't committed or waiting.
        totals: sums over all samples before it.
        is_complete: whether only publishing is left.
    """

    def __init__(self, target: Path, identity: Identity, *, restart: bool, size_bytes: int) -> None:
        self.target = target
        self.partial = _beside(target, ".partial")
        self.next = 0
        self.totals: Counter[str] = Counter()
        self.is_complete = False
        self._identity = identity
        self._waiting: list[tuple[bytes, bytes]] = []
        self._waiting_bytes = 0
        with _explain_write_errors(self.partial):
            if restart and self.partial.exists():
                shutil.rmtree(self.partial)
            self.partial.mkdir(exist_ok=True)
        try:
            self._writer = LmdbWriter(self.partial, max(FIRST_MAP_BYTES, size_bytes * 6 // 5))
        except PackError as error:
            raise PackError(error.message, _HINT_RESTART) from error
        try:
            self._resume()
        except BaseException:
            self._writer.close()
            raise

    def add(self, record: bytes, totals: Mapping[str, int]) -> None:
        """Take the next sample's record; full batches are committed.

        Args:
            record: framed under `sample_key(self.next)`.
            totals: what this sample adds to the sums.
        """
        self._waiting.append((sample_key(self.next), record))
        self._waiting_bytes += len(record)
        self.totals.update(totals)
        self.next += 1
        if self._waiting_bytes >= BATCH_BYTES or len(self._waiting) >= BATCH_RECORDS:
            self.commit()

    def commit(self) -> None:
        """Make all samples taken so far durable."""
        self._writer.commit(self._waiting, {STATE_KEY: seal_map(STATE_KEY, self._state())})
        self._waiting.clear()
        self._waiting_bytes = 0

    def finish(self, content: Mapping[str, Any]) -> Iterator[int]:
        """Read every record back, then store the metadata; yields the number of records read.

        Args:
            content: the packer's part of the metadata.
        """
        digest = hashlib.sha256()
        payload_bytes = max_record_bytes = 0
        for index in range(self.next):
            key = sample_key(index)
            record = self._writer.get(key)
            if record is None:
                raise PackError(f"{self.partial}: record {key!r} got lost", _HINT_RESTART)
            digest.update(key)
            digest.update(record)
            payload_bytes += len(record)
            max_record_bytes = max(max_record_bytes, len(record))
            yield index + 1
        meta = describe_pack(
            self.next,
            content,
            content_sha256=digest.hexdigest(),
            payload_bytes=payload_bytes,
            max_record_bytes=max_record_bytes,
        )
        self._writer.commit([], {STATE_KEY: None, META_KEY: seal_map(META_KEY, meta)})
        self.is_complete = True

    def publish(self) -> dict[str, Any]:
        """Give the complete pack its name, durably; the one that had it is removed after that.

        Returns:
            The metadata.
        """
        record = self._writer.get(META_KEY)
        if record is None:
            raise ValueError(f"{self.partial} isn't finished")
        meta = unseal_map(META_KEY, record)
        self._writer.seal_file()
        meta_file = self.partial / META_FILE
        old = _beside(self.target, ".old")
        with _explain_write_errors(self.target.parent):
            write_meta_json(meta_file, meta, (self.partial / DATA_FILE).stat().st_size)
            sync_to_disk(meta_file)
            (self.partial / STAMPS_FILE).unlink(missing_ok=True)
            sync_to_disk(self.partial)
            if self.target.exists():
                self.target.rename(old)
            self.partial.rename(self.target)
            sync_to_disk(self.target.parent)
            if old.exists():
                shutil.rmtree(old)
        return meta

    def close(self) -> None:
        """Let go of the file; what isn't committed is lost and will be made again."""
        self._writer.close()

    def _state(self) -> dict[str, Any]:
        return {
            "dataset": self._identity.dataset,
            "split": self._identity.split,
            "options": dict(self._identity.options),
            "length": len(self._identity.stamps),
            "next": self.next,
            "totals": dict(self.totals),
        }

    def _resume(self) -> None:
        meta = self._stored(META_KEY)
        state = meta or self._stored(STATE_KEY)
        if state is None and self._writer.count():
            raise PackError(f"{self.partial}: not an unfinished pack", _HINT_RESTART)
        done = 0 if state is None else state["length" if meta else "next"]
        if state is None or done == 0:  # nothing to lose, so nothing to compare
            self._write_stamps()
            self.commit()  # from now on the folder says what it is
            return
        differs = self._differences(state, done)
        if differs:
            raise HatError(
                f"{self.partial}: an unfinished pack with other options is here "
                f"(differs: {', '.join(differs)})",
                f"give the same options again, or {_HINT_RESTART}",
            )
        self.next = done
        self.is_complete = meta is not None
        self.totals = Counter(state.get("totals", {}))
        self._write_stamps()

    def _stored(self, key: bytes) -> dict[str, Any] | None:
        record = self._writer.get(key)
        try:
            return None if record is None else unseal_map(key, record)
        except DataError as error:
            raise PackError(
                f"{self.partial}: unfinished pack is damaged ({error})", _HINT_RESTART
            ) from error

    def _write_stamps(self) -> None:
        """Note what is packed from, for the next run to compare; replaced in one step."""
        new = self.partial / f"{STAMPS_FILE}.new"
        with _explain_write_errors(self.partial):
            with new.open("w", encoding="utf-8") as file:  # a line each: there may be millions
                file.writelines(json.dumps(stamp) + "\n" for stamp in self._identity.stamps)
            sync_to_disk(new)
            new.rename(self.partial / STAMPS_FILE)

    def _differences(self, state: Mapping[str, Any], done: int) -> list[str]:
        """Names of the choices that aren't as they were when the unfinished pack was begun."""
        mine, theirs = self._identity, state["options"]
        differs = [name for name in ("dataset", "split") if state[name] != getattr(mine, name)]
        differs += [
            name
            for name in sorted({*mine.options, *theirs})
            if mine.options.get(name) != theirs.get(name)
        ]
        if self._source_differs(state, done):
            differs.append("source files")
        return differs

    def _source_differs(self, state: Mapping[str, Any], done: int) -> bool:
        stamps_file = self.partial / STAMPS_FILE
        if not stamps_file.exists():  # it goes last before publishing
            return state.get("source") != self._identity.source
        if state.get("complete") and done != len(self._identity.stamps):
            return True
        now = iter(self._identity.stamps)
        with stamps_file.open(encoding="utf-8") as file:
            then = islice(file, done)  # what isn't packed yet may have changed
            return any(json.loads(line) != next(now, None) for line in then)


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


@contextmanager
def _explain_write_errors(folder: Path) -> Iterator[None]:
    """Turn what the system says into what a user can mend."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{error.filename} is a file, a directory is needed") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise HatError(f"cannot write to {folder}: {reason}") from error


def _take_lock(path: Path) -> int:
    """The descriptor of the lock file, locked; closing it, or dying, unlocks."""
    while True:
        with _explain_write_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BlockingIOError as error:
            about = os.read(descriptor, 200).decode(errors="replace") or "unknown"
            os.close(descriptor)
            raise LockedError(f"another pack is writing {path.stem} here ({about})") from error
        os.close(descriptor)  # its owner removed it in between: lock the new one
