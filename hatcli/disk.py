"""Room on the disk, and writing that survives a power cut."""

import os
import shutil
from pathlib import Path

from hatcli.errors import HatError

HINT_RESUME = "free some space; the same command then goes on where it stopped"


def check_free_space(folder: Path, needed_bytes: int, hint: str) -> None:
    """Refuse to go on when a disk has less than is needed.

    Raises:
        HatError: disk full.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        needed = f"need about {size_text(needed_bytes)}, {size_text(free)} free"
        raise HatError(f"disk full at {folder}: {needed}", hint)


def sync_to_disk(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_text(size_bytes: int) -> str:
    """'18.7 GB' in the decimal units of disks."""
    value, unit = float(size_bytes), "bytes"
    for larger in ("KB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.3g} {unit}"
