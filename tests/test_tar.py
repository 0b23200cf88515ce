"""Tar archives read in place: what Python's reader finds, or an error; and lists of members."""

import io
import pickle
import tarfile

import numpy as np
import pytest
from made_imagenet import tar_of

from hatcli.data.packers._members import Member, Members, stamps_of
from hatcli.data.packers._tar import Tar
from hatcli.errors import DataError


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_common_form_are_read_as_python_reads_them(tmp_path, form):
    path = tmp_path / "x.tar"
    long = "/".join(["some folder with a long name"] * 4) + "/ünïcode.JPEG"
    names = ["a.JPEG", "b/c.JPEG", "", long] if form != tarfile.USTAR_FORMAT else ["a.JPEG", "b"]
    with tarfile.open(path, "w", format=form) as archive:
        for position, name in enumerate(names):
            member = tarfile.TarInfo(name or "folder")
            member.type = tarfile.REGTYPE if name else tarfile.DIRTYPE
            member.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
            member.size = 700 * position if name else 0
            archive.addfile(member, io.BytesIO(bytes([position]) * 5000))
    ours = [(m.path, m.size_bytes, m.offset) for m in Tar(path).members()]
    with tarfile.open(path) as archive:
        theirs = [(m.name, m.size, m.offset_data) for m in archive.getmembers() if m.isfile()]
    assert ours == theirs
    assert len(ours) >= 2


def test_every_mutant_of_an_archive_is_read_as_a_whole_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.tar"
    good = tar_of([(f"{n}.JPEG", bytes([n + 1]) * 700) for n in range(4)])[: 4 * 1536 + 1024]
    heads = [n for member in range(4) for n in range(1536 * member, 1536 * member + 345)]
    refused = 0
    for _ in range(600):
        mutant = bytearray(good)
        mutant[rng.choice(heads)] ^= 1 << rng.integers(8)
        path.write_bytes(mutant)
        try:
            assert len(list(Tar(path).members())) == 4
        except DataError:
            refused += 1
    assert refused >= 590  # how a header's checksum ends doesn't matter
    for size in range(0, len(good) - 1, 128):
        path.write_bytes(good[:size])
        with pytest.raises(DataError):
            list(Tar(path).members())


def test_mutants_whose_checksums_are_mended_give_members_inside_or_a_data_error(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.tar"
    files = [("x" * 120 + ".JPEG", bytes(700))]
    first, second = tar_of(files), tar_of(files, tarfile.PAX_FORMAT)
    good = first[: 2 * 512 + 512 + 1024] + second  # a long name, the header, the file
    refused = 0
    for _ in range(600):
        mutant = bytearray(good if rng.random() < 0.8 else good[: rng.integers(512, len(good))])
        for place in rng.integers(0, len(first) // 2, 3):
            mutant[place % len(mutant)] = rng.integers(256)
        for start in range(0, len(mutant) - 511, 512):
            if mutant[start + 257 : start + 262] == b"ustar":
                mutant[start + 148 : start + 156] = b" " * 8
                mutant[start + 148 : start + 156] = b"%06o\0 " % sum(mutant[start : start + 512])
        path.write_bytes(mutant)
        try:
            for member in Tar(path).members():
                assert 0 < member.offset <= member.offset + member.size_bytes <= len(mutant)
        except DataError:
            refused += 1
    assert refused > 100


def test_a_million_members_take_tens_of_megabytes():
    members = Members()
    for number in range(1000):
        name = f"n01440764.tar/n01440764_{number}.JPEG"
        members.append(Member(name, 10**5, 10**11 + number, 1_340_000_000 + number, number))
    assert len(pickle.dumps(members)) < 60 * 1000
    copy = pickle.loads(pickle.dumps(members))  # noqa: S301 - our own
    assert list(copy) == list(members)
    assert copy[-1] == members[999]
    stamps = stamps_of(members)
    assert stamps_of(copy)[10:12] == [stamps[10], stamps[11]]
    with pytest.raises(IndexError):
        members[1000]
