"""A file gets its name only when it is whole."""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from hatcli.disk import sync_to_disk
from hatcli.errors import HatError, UsageError
from hatcli.export.metadata import seal


@contextlib.contextmanager
def unpublished(
    path: Path, *, overwrite: bool = False, finish: Callable[[Path], None] | None = seal
) -> Iterator[Path]:
    """A temporary name beside ``path`` to write a file to.

    On leaving, the file is sealed, forced to the disk and renamed to ``path``. On an error it is
    removed, and what was at ``path`` before is still there.

    Args:
        finish: the last change of the file, which leaves it on the disk; `seal` is for ONNX, None
            for a file that needs none.

    Raises:
        UsageError: ``path`` exists and isn't to be overwritten.
        HatError: its folder is missing, or can't be written to.
    """
    if not path.parent.is_dir():
        raise HatError(f"{path}: no such folder: {path.parent}", f"make it: mkdir -p {path.parent}")
    _refuse_existing(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if finish is None:
            sync_to_disk(temporary)
        else:
            finish(temporary)
        _refuse_existing(path, overwrite=overwrite)  # another process may have been quicker
        temporary.replace(path)
        sync_to_disk(path.parent)  # makes the new name survive a power cut
    except OSError as error:
        raise HatError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_existing(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise UsageError(f"{path}: is a folder", "name a file, e.g. --onnx-name unet.onnx")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists already", "replace it with --overwrite")
