"""The place where a pack goes: one writer at a time, and one rename that puts a whole pack there.

While packing, everything lies in ``train_lmdb.partial`` beside the target ``train_lmdb``, and a
lock beside both keeps others out. What stands under the final name is always complete.
"""

import fcntl
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from hatcli.data.packs.container import find_pack_type
from hatcli.data.packs.reader import open_pack
from hatcli.disk import sync_to_disk
from hatcli.errors import DataError, HatError, LockedError, PackError, UsageError


@contextmanager
def hold_lock(target: Path) -> Iterator[None]:
    """Keep every other pack away from a target while the block runs.

    Raises:
        LockedError: another process packs here.
        HatError: the folder of the target can't be written.
    """
    path = beside(target, ".lock")
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
    old = beside(target, ".old")
    with explain_write_errors(target.parent):
        if old.exists() and target.exists():
            shutil.rmtree(old)
        elif old.exists():
            old.rename(target)
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file, a directory is needed")
    if find_pack_type(target) is None:
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


def put_in_place(partial: Path, target: Path) -> None:
    """Give a complete folder its name, durably; the one that had it is removed after that."""
    old = beside(target, ".old")
    with explain_write_errors(target.parent):
        sync_to_disk(partial)
        if target.exists():
            target.rename(old)
        partial.rename(target)
        sync_to_disk(target.parent)
        if old.exists():
            shutil.rmtree(old)


def beside(target: Path, suffix: str) -> Path:
    """The path of a target with something behind its name."""
    return target.with_name(target.name + suffix)


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
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
        with explain_write_errors(path.parent):
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
