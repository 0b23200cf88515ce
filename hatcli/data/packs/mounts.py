"""Which file systems are somewhere else."""

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")

_REMOTE = re.compile(
    r"nfs\d?|cifs|smb\w*|lustre|9p|afs|ceph|gpfs|beegfs|glusterfs|ocfs2|fuse\..+|davfs"
)
_ESCAPE = re.compile(r"\\([0-7]{3})")


def remote_file_system(folder: Path) -> str | None:
    """The kind of a remote file system that holds a folder, e.g. "nfs4"; None for a local one.

    Where the system has no list of mounts, everything counts as local.

    Args:
        folder: need not exist.
    """
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    place = folder.resolve()
    found = ("", "")
    for line in lines:
        before, _, after = line.partition(" - ")
        point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), before.split()[4])
        # Of two mounts on one point the later hides the earlier.
        if place.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, after.split()[0])
    return found[1] if _REMOTE.fullmatch(found[1]) else None
