"""Is every byte of a pack as it was written, and every sample legal? Looked at in a process apart.

Foreign or damaged files may kill the process that reads them; then that is the finding.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lmdb.verify import VerifyError
from lmdb.verify import verify as verify_lmdb

from hatcli.data.packs.codec import decode
from hatcli.data.packs.container import data_size, find_pack_type, open_reader
from hatcli.data.packs.digest import ContentDigest
from hatcli.data.packs.frame import unseal
from hatcli.data.packs.joined_reader import shard_folders
from hatcli.data.packs.meta import META_FILE, check_fields, no_pack
from hatcli.data.packs.publish import QUARANTINE_FILE
from hatcli.data.packs.reader import Pack, open_pack
from hatcli.errors import DataError, PackError, UsageError
from hatcli.events import Job, Progress
from hatcli.recipes.packing._sample_checks import SampleChecks
from hatcli.recipes.packing.isolated import Died, run_isolated

MOST_FINDINGS = 20

_REPORT_EVERY_S = 0.2


@dataclass
class Verdict:
    """What was found in one pack.

    Attributes:
        path: of the pack.
        kind: of its container; "" where that can't be told.
        length: samples it should have.
        checked: samples that were read; 0 where only the structure was looked at.
        size_bytes: of its data file; of a joined pack those of all shards.
        findings: what is wrong, at most `MOST_FINDINGS` of them.
        damaged: number of all findings.
        seconds: that it took.
    """

    path: Path
    kind: str = ""
    length: int = 0
    checked: int = 0
    size_bytes: int = 0
    findings: list[str] = field(default_factory=list)
    damaged: int = 0
    seconds: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return self.damaged == 0

    def add(self, finding: str) -> None:
        """Note what is wrong."""
        self.damaged += 1
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(finding)


def verify(
    paths: Sequence[Path], *, fast: bool = False, decode_images: bool = False
) -> Job[list[Verdict]]:
    """Look at packs, one after the other.

    Args:
        paths: folders of packs.
        fast: look at the structure and the metadata only, and read no sample.
        decode_images: decode each image as well.

    Returns:
        A verdict for each path; damage is no exception.

    Raises:
        UsageError: there is no pack at one of the paths.
    """
    for path in paths:
        if find_pack_type(path) is None and not (path / META_FILE).is_file():
            raise no_pack(path)
    verdicts = []
    for path in paths:
        started = time.monotonic()
        try:
            verdict = yield from run_isolated(look_at, path, fast, decode_images)
        except Died as death:
            verdict = Verdict(path, find_pack_type(path) or "")
            verdict.add(f"{path}: reading it killed the process ({death})")
        verdict.seconds = time.monotonic() - started
        verdicts.append(verdict)
    return verdicts


def look_at(path: Path, fast: bool, decode_images: bool) -> Job[Verdict]:
    """Look at one pack in this process, which may not survive it."""
    verdict = Verdict(path, find_pack_type(path) or "")
    try:
        verdict.size_bytes = data_size(path)
        folders = shard_folders(path) if verdict.kind == "joined" else [path]
        for folder in folders:
            _look_at_tree(folder, verdict)
        if not verdict.is_whole:
            return verdict  # LMDB follows the tree without looking
        with open_pack(path) as pack:
            verdict.length = len(pack)
            _compare_copy(path, pack.meta, verdict)
            if verdict.kind != "joined":  # each shard has its own
                _check_quarantine(path, pack.meta.get("quarantine"), verdict)
            if not fast:
                yield from _look_at_samples(pack, verdict, decode_images)
    except (PackError, UsageError) as error:
        verdict.add(error.message)
    return verdict


def _look_at_tree(folder: Path, verdict: Verdict) -> None:
    """LMDB's own structure, by a walk that trusts nothing."""
    if find_pack_type(folder) != "lmdb":
        return
    try:
        for problem in verify_lmdb(str(folder)):  # type: ignore[no-untyped-call]
            verdict.add(f"{folder}: {problem}")
    except VerifyError as error:
        verdict.add(f"{folder}: {error}")


def _compare_copy(path: Path, meta: dict[str, Any], verdict: Verdict) -> None:
    """The readable copy of the metadata against the pack's own."""
    copy = path / META_FILE
    if not copy.is_file():
        return  # readers do without
    try:
        shown = json.loads(copy.read_text(encoding="utf-8"))
        differs = [name for name in meta if json.loads(json.dumps(meta[name])) != shown.get(name)]
    except (ValueError, RecursionError, AttributeError) as error:
        verdict.add(f"{copy}: can't be read ({error})")
        return
    if differs:
        verdict.add(f"{copy}: differs from the pack's metadata in {', '.join(differs)}")


def _check_quarantine(path: Path, said: dict[str, Any] | None, verdict: Verdict) -> None:
    """The list of what was left out."""
    listed = path / QUARANTINE_FILE
    if said is None:
        return
    try:
        content = listed.read_bytes()
    except OSError as error:
        verdict.add(f"{listed}: can't be read ({error.strerror})")
        return
    if hashlib.sha256(content).hexdigest() != said["digest"]:
        verdict.add(f"{listed}: isn't the list of the {said['count']} samples left out")


def _look_at_samples(pack: Pack, verdict: Verdict, decode_images: bool) -> Job[None]:
    path, meta = pack.path, pack.meta
    digest = ContentDigest()
    checks = SampleChecks(meta, decode_images=decode_images)
    reader = open_reader(path, "sequential")
    reported = time.monotonic()

    def take(key: bytes, record: memoryview) -> bool:
        digest.add(key, record)
        sample = decode(unseal(key, record, check=False))
        check_fields(sample, meta["fields"])
        checks.add(sample)
        return True

    for key in map(pack.key_of, range(len(pack))):
        try:
            if reader.read(key, partial(take, key)) is None:
                verdict.add(f"sample {key.decode()} is missing")
        except DataError as error:
            verdict.add(f"sample {key.decode()}: {error.message}")
        verdict.checked += 1
        if time.monotonic() - reported > _REPORT_EVERY_S or verdict.checked == verdict.length:
            reported = time.monotonic()
            yield Progress(f"verifying {path.name}", verdict.checked, verdict.length, "samples")
    reader.close()
    if verdict.is_whole and digest.hexdigest() != meta["content_sha256"]:
        verdict.add(f"{path}: the digest of all samples isn't the one in the metadata")
    for finding in checks.find_wrong_sums() if verdict.is_whole else []:
        verdict.add(f"{path}: {finding}")
