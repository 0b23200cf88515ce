"""The LMDB container: records by key in one file, written in whole batches, read from anywhere.

The writer keeps LMDB's own durability (each commit reaches the disk) and writes data format 1.
The reader opens an environment once per process and file, checks the file before LMDB maps it
(a cut file would kill the process), and takes a fresh read transaction for each record.
"""

import os
import resource
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import lmdb

from hatcli.data.packs.lmdb_file import DATA_FILE, check_file, check_size
from hatcli.data.packs.meta import no_pack
from hatcli.disk import HINT_RESUME, check_free_space, size_text, sync_to_disk
from hatcli.errors import HatError, PackError

T = TypeVar("T")

FIRST_MAP_BYTES = 2**30  # the file itself grows only with what is written

_LOCK_FILE = "lock.mdb"
_FORMAT_1 = 0  # py-lmdb's number of the engine that writes data format 1
_LARGE_RECORD_BYTES = 2**14
_SLACK_BYTES = 4 * 2**20  # tree pages, the old copies of changed ones, the next metadata


class LmdbWriter:
    """Puts records into a folder's data.mdb; a batch is stored as a whole or not at all.

    Args:
        folder: exists; an unfinished file in it is gone on with.
        map_bytes: address space to start with; it doubles when it is full.

    Raises:
        PackError: the unfinished file is damaged.
        HatError: the folder can't be written, or there isn't the address space.
    """

    def __init__(self, folder: Path, map_bytes: int = FIRST_MAP_BYTES) -> None:
        self._folder = folder
        data = folder / DATA_FILE
        if data.exists() and data.stat().st_size:
            check_file(folder)
            map_bytes = max(map_bytes, 2 * data.stat().st_size)
        try:
            self._environment = lmdb.open(
                str(folder), map_size=map_bytes, mode=0o666, lib_version=_FORMAT_1
            )
        except lmdb.MemoryError as error:
            raise _no_address_space(folder, map_bytes) from error
        except lmdb.Error as error:
            raise HatError(f"cannot write to {folder}: {error}") from error

    @classmethod
    def for_size(cls, folder: Path, size_bytes: int) -> "LmdbWriter":
        """The writer of a folder that will take about so many bytes."""
        return cls(folder, max(FIRST_MAP_BYTES, size_bytes * 6 // 5))

    def get(self, key: bytes) -> bytes | None:
        """The record under a key."""
        try:
            with self._environment.begin() as transaction:
                return transaction.get(key)
        except lmdb.Error as error:
            raise PackError(f"{self._folder}: unfinished pack is damaged ({error})") from error

    def count(self) -> int:
        """Number of records, those with names included."""
        return self._environment.stat()["entries"]

    def commit(
        self, records: Sequence[tuple[bytes, bytes]], named: Mapping[bytes, bytes | None]
    ) -> None:
        """Store a batch durably.

        Args:
            records: (key, record) in key order, all behind those stored before.
            named: records that sort behind all samples, stored anew; None removes one.

        Raises:
            PackError: a key stands already, or the order is wrong.
            HatError: the disk is full or fails; what was committed before stays.
        """
        size = sum(len(record) for _, record in records) + _SLACK_BYTES
        check_free_space(self._folder, size, HINT_RESUME)
        while True:
            try:
                self._put(records, named)
                return
            except lmdb.MapFullError:  # the transaction is dead, so the whole batch again
                self._grow()
            except lmdb.Error as error:
                check_free_space(self._folder, size, HINT_RESUME)
                raise HatError(f"cannot write to {self._folder}: {error}", HINT_RESUME) from error

    def close(self) -> None:
        """Let go of the file; commits are on the disk already."""
        self._environment.close()

    def seal_file(self) -> None:
        """Make a finished file durable and leave nothing but it."""
        self._environment.sync(True)
        pages = self._environment.info()["last_pgno"] + 1
        page_bytes = self._environment.stat()["psize"]
        self.close()
        data = self._folder / DATA_FILE
        if data.stat().st_size != pages * page_bytes:
            raise PackError(f"{data}: {data.stat().st_size} bytes on disk, {pages} pages written")
        sync_to_disk(data)
        (self._folder / _LOCK_FILE).unlink(missing_ok=True)

    def _put(
        self, records: Iterable[tuple[bytes, bytes]], named: Mapping[bytes, bytes | None]
    ) -> None:
        with self._environment.begin(write=True) as transaction:
            for key in named:  # they sort last, and appending fills pages to the brim
                transaction.delete(key)
            for key, record in records:
                if not transaction.put(key, record, append=True, overwrite=False):
                    raise PackError(f"{self._folder}: record {key!r} is there, or out of order")
            for key, value in named.items():
                if value is not None and not transaction.put(key, value, overwrite=False):
                    raise PackError(f"{self._folder}: record {key!r} is there already")

    def _grow(self) -> None:
        map_bytes = 2 * self._environment.info()["map_size"]
        try:
            self._environment.set_mapsize(map_bytes)
        except lmdb.MemoryError as error:
            raise _no_address_space(self._folder, map_bytes) from error


class SharedEnvironment:
    """One opened file, shared by all packs on it in this process; closed with the last of them."""

    def __init__(self, folder: Path, order: str) -> None:
        self.pid = os.getpid()
        self._folder = folder
        environment = _open_read_only(folder, readahead=order == "sequential")
        if order != "sequential" and _has_large_records(folder, environment):
            environment.close()
            environment = _open_read_only(folder, readahead=True)
        self._environment = environment

    def read(self, key: bytes, use: Callable[[memoryview], T]) -> T | None:
        """What ``use`` makes of the record under a key; None when there is none.

        Args:
            key: of the record.
            use: gets a view that is valid only during the call.

        Raises:
            PackError: the tree of pages is damaged.
        """
        try:
            with self._environment.begin(buffers=True) as transaction:
                record = transaction.get(key)
                return None if record is None else use(record)
        except lmdb.Error as error:
            raise PackError(f"{self._folder}: damaged pack ({error})") from error

    def count(self) -> int:
        """Number of records, those with names included."""
        return self._environment.stat()["entries"]

    def close(self) -> None:
        """Unmap the file for all that share it; a reader that is dropped does without."""
        self._environment.close()


_shared: weakref.WeakValueDictionary[tuple[int, int], SharedEnvironment] = (
    weakref.WeakValueDictionary()
)
_shared_lock = threading.Lock()


def share_environment(folder: Path, order: str = "random") -> SharedEnvironment:
    """This process's one environment of a folder's data.mdb; opened and checked when it is new.

    Args:
        folder: of the pack.
        order: "sequential" lets the system read ahead, as it does in any order where records are
            large. LMDB takes this when a file is opened and allows one environment a file and
            process, so of several readers the first decides.

    Raises:
        UsageError: there is no such file.
        PackError: the file isn't LMDB's, is cut, or can't be read.
    """
    data = folder / DATA_FILE
    if not data.is_file():
        raise no_pack(folder)
    status = data.stat()
    with _shared_lock:
        # A second environment on one file in one process is not allowed by LMDB.
        environment = _shared.get((status.st_dev, status.st_ino))
        if environment is None:
            environment = SharedEnvironment(folder, order)
            _shared[status.st_dev, status.st_ino] = environment
    return environment


def _forget_inherited() -> None:
    """In a forked child: drop the parent's environments, so that the child may open its own."""
    for environment in list(_shared.values()):
        environment.close()
    _shared.clear()
    _shared_lock.release()


os.register_at_fork(
    before=_shared_lock.acquire,
    after_in_parent=_shared_lock.release,
    after_in_child=_forget_inherited,
)


def _open_read_only(folder: Path, *, readahead: bool) -> lmdb.Environment:
    check_file(folder)
    try:
        # Read-only media and folders of others have no lock file, and a pack never changes.
        environment = lmdb.open(
            str(folder), readonly=True, lock=False, create=False, readahead=readahead
        )
    except lmdb.MemoryError as error:
        raise _no_address_space(folder, (folder / DATA_FILE).stat().st_size) from error
    except lmdb.Error as error:
        raise PackError(f"{folder}: not a readable LMDB file ({error})") from error
    page_bytes = environment.stat()["psize"]
    try:
        check_size(folder, (environment.info()["last_pgno"] + 1) * page_bytes)
    except PackError:
        environment.close()
        raise
    return environment


def _has_large_records(folder: Path, environment: lmdb.Environment) -> bool:
    """Whether reading ahead pays in any order: each page of a record is read by itself without.

    On a cold disk, records of 150 kB then take five times as long in random order, but those of
    3 kB half as long.
    """
    entries = environment.stat()["entries"]
    return (folder / DATA_FILE).stat().st_size > entries * _LARGE_RECORD_BYTES


def _no_address_space(folder: Path, map_bytes: int) -> HatError:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    allowed = "" if limit == resource.RLIM_INFINITY else f" of the {size_text(limit)} allowed"
    return HatError(
        f"{folder}: no address space for {size_text(map_bytes)}{allowed}", "raise 'ulimit -v'"
    )
