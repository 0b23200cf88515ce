"""A pack as a sequence of samples, from any process."""

import os
from pathlib import Path
from types import TracebackType
from typing import Any

from hatcli.data.packs.codec import decode
from hatcli.data.packs.frame import unseal
from hatcli.data.packs.lmdb import SharedEnvironment, share_environment
from hatcli.data.packs.meta import (
    META_KEY,
    STATE_KEY,
    check_fields,
    check_meta,
    sample_key,
    unseal_map,
)
from hatcli.errors import DataError, PackError


class Pack:
    """The samples of one pack, in order; made by `open_pack`.

    It may be pickled, and used in forked children: each process opens the file for itself at
    its first read. Threads may share it.

    Attributes:
        path: the pack's folder.
        meta: what the pack says of itself.
    """

    def __init__(self, path: Path, meta: dict[str, Any], *, check: bool = True) -> None:
        self.path = path
        self.meta = meta
        self._check = check
        self._environment: SharedEnvironment | None = None

    def __len__(self) -> int:
        return self.meta["length"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample, decoded; its arrays are the caller's own.

        Raises:
            IndexError: there is no such sample.
            PackError: the sample is damaged; the message names it and the pack.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: no sample {index}, there are {len(self)}")
        key = sample_key(index % len(self))
        environment = self._environment
        if environment is None or environment.pid != os.getpid():
            environment = self._environment = self._reopen()
        try:
            sample = environment.read(key, lambda record: self._decode(key, record))
        except PackError:
            raise
        except DataError as error:
            raise PackError(
                f"sample {key.decode()} in {self.path} cannot be decoded: {error}", _HINT
            ) from error
        if sample is None:
            raise PackError(f"sample {key.decode()} in {self.path} is missing", _HINT)
        return sample

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_environment": None}

    def __enter__(self) -> "Pack":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; a later read opens it again."""
        self._environment = None

    def _decode(self, key: bytes, record: memoryview) -> dict[str, Any]:
        try:
            payload = unseal(key, record, check=self._check)
        except DataError as error:
            raise PackError(
                f"damaged sample {key.decode()}{_name_in(key, record)} in {self.path} ({error})",
                _HINT,
            ) from error
        sample = decode(payload)
        check_fields(sample, self.meta["fields"])
        return sample

    def _reopen(self) -> SharedEnvironment:
        environment, meta = _open(self.path)
        if meta["content_sha256"] != self.meta["content_sha256"]:
            raise PackError(f"{self.path}: another pack took this place while it was in use")
        return environment


_HINT = "copy the pack again, or pack the source again"


def open_pack(path: Path, *, check: bool = True) -> Pack:
    """The pack in a folder; nothing stays open until the first sample is read.

    Args:
        path: folder with data.mdb, e.g. data/cityscapes/train_lmdb.
        check: whether the checksum of each sample is compared when it is read.

    Raises:
        UsageError: there is no pack.
        PackError: it is damaged, unfinished or newer than this program.
    """
    _, meta = _open(path)
    return Pack(path, meta, check=check)


def _open(path: Path) -> tuple[SharedEnvironment, dict[str, Any]]:
    environment = share_environment(path)
    try:
        meta = environment.read(META_KEY, lambda record: unseal_map(META_KEY, record))
        if meta is None:
            raise _without_meta(path, environment)
    except PackError:
        raise
    except DataError as error:
        raise PackError(f"{path}: damaged pack (its metadata: {error})", _HINT) from error
    check_meta(path, meta)
    if environment.count() != meta["length"] + 1:
        found = environment.count() - 1
        raise PackError(f"{path}: metadata says {meta['length']} samples, found {found}", _HINT)
    return environment, meta


def _without_meta(path: Path, environment: SharedEnvironment) -> PackError:
    state = environment.read(STATE_KEY, lambda record: unseal_map(STATE_KEY, record))
    if state is None:
        return PackError(f"{path}: not a hat pack (no metadata)")
    return PackError(
        f"{path}: pack is unfinished ({state.get('next')} of {state.get('length')})",
        f"finish it with 'hat pack {state.get('dataset')} --split {state.get('split')}'",
    )


def _name_in(key: bytes, record: memoryview) -> str:
    """The name in a damaged record, if it can still be read; only for the message."""
    try:
        # A record of a wrong length may reach beyond the file; it isn't touched.
        name = decode(unseal(key, record, check=False)).get("name")
    except DataError:
        return ""
    return f" ({name!r})" if isinstance(name, str) else ""
