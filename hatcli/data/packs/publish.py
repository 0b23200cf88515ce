"""An unfinished pack, how it goes on after a stop, and how it becomes a pack.

It lies in ``train_lmdb.partial`` beside its target (see `place`); the container is of any kind.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hatcli.data.packs.background import BackgroundWriter
from hatcli.data.packs.container import data_size, find_container
from hatcli.data.packs.digest import ContentDigest
from hatcli.data.packs.frame import unseal
from hatcli.data.packs.meta import (
    META_FILE,
    META_KEY,
    STATE_KEY,
    describe_pack,
    first_key_number,
    sample_key,
    seal_map,
    unseal_map,
    write_meta_json,
)
from hatcli.data.packs.place import beside, explain_write_errors, put_in_place
from hatcli.disk import sync_to_disk
from hatcli.errors import DataError, HatError, PackError

BATCH_BYTES = 32 * 10**6  # two of them, and LMDB's copy of one, are in memory
BATCH_RECORDS = 1000
STAMPS_FILE = "stamps.jsonl"  # only while packing; not in the container, since it holds times
QUARANTINE_FILE = "quarantine.jsonl"

_HINT_RESTART = "--restart throws the unfinished pack away"


@dataclass(frozen=True)
class Identity:
    """What must be equal for an unfinished pack to be gone on with.

    Attributes:
        options: of the packer, plain values.
        source: what the metadata will say of the source.
        stamps: one a sample, in order; tells one version of a sample's source from another.
            Only those of the samples that are packed already are compared.
        first: number of the first sample's key; of a shard its place in the whole.
    """

    dataset: str
    split: str
    options: Mapping[str, Any]
    source: Mapping[str, Any]
    stamps: Sequence[str]
    first: int = 0


class Draft:
    """The unfinished pack of one target; what is committed survives any stop.

    Args:
        target: folder of the pack to be.
        identity: what is packed.
        restart: throw away what an earlier run left.
        size_bytes: what the pack will take, about.
        pack_type: kind of container, one of `container.PACK_TYPES`.

    Attributes:
        next: index of the first sample that isn't committed, waiting or left out.
        left_out: what was said of each sample that is left out, in order.
        totals: sums over all samples before the next.
        is_complete: whether only publishing is left.
    """

    def __init__(
        self,
        target: Path,
        identity: Identity,
        *,
        restart: bool,
        size_bytes: int,
        pack_type: str = "lmdb",
    ) -> None:
        self.target = target
        self.partial = beside(target, ".partial")
        self.next = 0
        self.left_out: list[dict[str, Any]] = []
        self.totals: Counter[str] = Counter()
        self.is_complete = False
        self._was_resumed = False
        self._identity = identity
        self._waiting: list[tuple[bytes, bytes]] = []
        self._waiting_bytes = 0
        kind = find_container(pack_type)
        with explain_write_errors(self.partial):
            if restart and self.partial.exists():
                shutil.rmtree(self.partial)
            self.partial.mkdir(exist_ok=True)
        try:
            self._writer = BackgroundWriter(kind.open_writer(self.partial, size_bytes))
        except PackError as error:
            raise PackError(error.message, _HINT_RESTART) from error
        try:
            self._resume()
        except BaseException:
            self._writer.close()
            raise

    @property
    def length(self) -> int:
        """Number of samples that the pack has so far."""
        return self.next - len(self.left_out)

    @property
    def next_key(self) -> bytes:
        """The key of the next record."""
        return sample_key(self._identity.first + self.length)

    def add(self, record: bytes, totals: Mapping[str, int]) -> None:
        """Take the next sample's record; full batches are committed.

        Args:
            record: framed under `next_key`.
            totals: what this sample adds to the sums.
        """
        self._waiting.append((self.next_key, record))
        self._waiting_bytes += len(record)
        self.totals.update(totals)
        self.next += 1
        if self._waiting_bytes >= BATCH_BYTES or len(self._waiting) >= BATCH_RECORDS:
            self._hand_over()

    def leave_out(self, what: Mapping[str, Any]) -> None:
        """Pass over the next sample; the next record takes its key.

        Args:
            what: plain values, a line of the pack's list of samples that were left out.
        """
        self.left_out.append(dict(what))
        self.next += 1

    def commit(self) -> None:
        """Make all samples taken so far durable."""
        self._hand_over()
        self._writer.drain()

    def finish(self, content: Mapping[str, Any]) -> Iterator[int]:
        """Store the metadata; where an earlier run began, read every record back before.

        Yields the number of records read back.

        Args:
            content: the packer's part of the metadata; "quarantine" is added where samples were
                left out.
        """
        self._writer.drain()
        digest = self._writer.digest
        if self._was_resumed:
            digest = ContentDigest()
            for done, (key, record) in enumerate(self._read_back(), 1):
                digest.add(key, record, check=False)
                yield done
        if self.left_out:
            content = {**content, "quarantine": self._write_quarantine()}
        meta = describe_pack(
            self.length,
            content,
            content_sha256=digest.hexdigest(),
            payload_bytes=digest.payload_bytes,
            max_record_bytes=digest.max_record_bytes,
        )
        self._writer.commit([], {STATE_KEY: None, META_KEY: seal_map(META_KEY, meta)})
        self.is_complete = True

    def _read_back(self) -> Iterator[tuple[bytes, bytes]]:
        """All records, each one's checksum compared."""
        for number in range(self.length):
            key = sample_key(self._identity.first + number)
            record = self._writer.get(key)
            if record is None:
                raise PackError(f"{self.partial}: record {key!r} got lost", _HINT_RESTART)
            try:
                unseal(key, record)
            except DataError as error:
                raise PackError(
                    f"{self.partial}: record {key!r} came back damaged ({error})", _HINT_RESTART
                ) from error
            yield key, record

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
        with explain_write_errors(self.partial):
            write_meta_json(meta_file, meta, data_size(self.partial))
            sync_to_disk(meta_file)
            (self.partial / STAMPS_FILE).unlink(missing_ok=True)
        put_in_place(self.partial, self.target)
        return meta

    def close(self) -> None:
        """Let go of the files; what isn't committed is lost and will be made again."""
        self._writer.close()

    def _hand_over(self) -> None:
        """Give away what is waiting, to be stored while the next samples are made."""
        self._writer.commit(self._waiting, {STATE_KEY: seal_map(STATE_KEY, self._state())})
        self._waiting = []
        self._waiting_bytes = 0

    def _state(self) -> dict[str, Any]:
        return {
            "dataset": self._identity.dataset,
            "split": self._identity.split,
            "options": dict(self._identity.options),
            "first": self._identity.first,
            "length": len(self._identity.stamps),
            "next": self.next,
            "left_out": self.left_out,
            "totals": dict(self.totals),
        }

    def _resume(self) -> None:
        meta = self._stored(META_KEY)
        state = meta or self._stored(STATE_KEY)
        if state is None and self._writer.count():
            raise PackError(f"{self.partial}: not an unfinished pack", _HINT_RESTART)
        done = _samples_done(state)
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
        self._was_resumed = True
        self.is_complete = meta is not None
        self.left_out = self._read_quarantine() if meta else state.get("left_out", [])
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
        lines = (json.dumps(stamp) + "\n" for stamp in self._identity.stamps)
        self._replace(STAMPS_FILE, lines)  # a line each: there may be millions

    def _write_quarantine(self) -> dict[str, Any]:
        """List what was left out beside the records; what the metadata says of the list."""
        lines = [json.dumps(what, sort_keys=True) + "\n" for what in self.left_out]
        self._replace(QUARANTINE_FILE, lines)
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        return {"count": len(lines), "digest": digest}

    def _read_quarantine(self) -> list[dict[str, Any]]:
        file = self.partial / QUARANTINE_FILE
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def _replace(self, name: str, lines: Iterable[str]) -> None:
        """Write a text file of the unfinished pack, durably and in one step."""
        new = self.partial / f"{name}.new"
        with explain_write_errors(self.partial):
            with new.open("w", encoding="utf-8") as file:
                file.writelines(lines)
            sync_to_disk(new)
            new.rename(self.partial / name)

    def _differences(self, state: Mapping[str, Any], done: int) -> list[str]:
        """Names of the choices that aren't as they were when the unfinished pack was begun."""
        mine, theirs = self._identity, state["options"]
        differs = [name for name in ("dataset", "split") if state[name] != getattr(mine, name)]
        differs += [
            name
            for name in sorted({*mine.options, *theirs})
            if mine.options.get(name) != theirs.get(name)
        ]
        if first_key_number(state) != mine.first:
            differs.append("shard")
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


def _samples_done(state: Mapping[str, Any] | None) -> int:
    """How many samples are packed or left out, by an unfinished pack's state or metadata."""
    if state is None:
        return 0
    if state.get("complete"):
        return state["length"] + state.get("quarantine", {}).get("count", 0)
    return state["next"]
