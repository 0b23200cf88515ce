"""The second container: RecordIO that others can walk, and an index that can be made again."""

import errno
import os
import subprocess
import sys

import pytest
from children import REFUSED, in_child
from hypothesis import given
from hypothesis import strategies as st
from made_packer import NumbersPacker, build, names_in, numbers_in
from record_io import read_index, walk

from hatcli.data.packs import publish
from hatcli.data.packs.frame import seal, unseal
from hatcli.data.packs.meta import META_KEY, sample_key
from hatcli.data.packs.mxrecord import MxRecordReader, MxRecordWriter
from hatcli.data.packs.reader import open_pack
from hatcli.data.packs.recordio import MAGIC, restore, store
from hatcli.errors import DataError, HatError, PackError


@pytest.fixture
def folder(tmp_path):
    build(tmp_path / "train_mxrecord", NumbersPacker(6, size=20), pack_type="mxrecord")
    return tmp_path / "train_mxrecord"


def change(path, start, new):
    data = bytearray(path.read_bytes())
    data[start : start + len(new)] = new
    path.write_bytes(data)


# The format

PIECES = st.one_of(
    st.just(MAGIC), st.just(MAGIC[:1]), st.just(MAGIC[1:]), st.binary(min_size=1, max_size=5)
)


@given(st.lists(PIECES, max_size=12).map(b"".join))
def test_a_record_with_magics_anywhere_is_walked_by_an_independent_reader(record):
    stored = b"".join(store(record))
    assert list(walk(stored)) == [(0, record)]
    assert restore(stored) == record
    assert len(stored) % 4 == 0
    starts = [place for place in range(0, len(stored), 4) if stored[place : place + 4] == MAGIC]
    flags = [int.from_bytes(stored[place + 4 : place + 8], "little") >> 29 for place in starts]
    assert flags in ([0], [1, *[2] * (len(flags) - 2), 3])


@pytest.mark.parametrize("shift", range(4))
def test_a_magic_cuts_a_record_at_multiples_of_4_only(shift):
    record = bytes(shift) + MAGIC + b"tail"
    expected = [(1, shift), (3, 4)] if shift == 0 else [(0, shift + 8)]
    stored = b"".join(store(record))
    heads = []
    position = 0
    while position < len(stored):
        word = int.from_bytes(stored[position + 4 : position + 8], "little")
        heads.append((word >> 29, word & 0x1FFFFFFF))
        position += 8 + (heads[-1][1] + 3) // 4 * 4
    assert heads == expected


@given(st.binary(max_size=64))
def test_no_bytes_are_taken_for_a_record_that_they_arent(data):
    try:
        record = bytes(restore(data))
    except DataError:
        return
    assert list(walk(data)) == [(0, record)]


def test_a_pack_is_walked_by_an_independent_reader(folder):
    assert names_in(folder) == ["data.idx", "data.rec", "meta.json", "meta.rec"]
    records = list(walk((folder / "data.rec").read_bytes()))
    index = read_index((folder / "data.idx").read_text())
    assert index == {number: offset for number, (offset, _) in enumerate(records)}
    for number, (_, record) in enumerate(records):
        unseal(sample_key(number), record)
    contents, meta = [record for _, record in walk((folder / "meta.rec").read_bytes())]
    unseal(b"__contents__", contents)
    unseal(META_KEY, meta)


# Damage that has a message of its own

DAMAGE = {
    "magic": (
        lambda f: change(f / "data.rec", 0, b"XXXX"),
        r"sample 0000000000 at byte 0: a part starts with b'XXXX'",
    ),
    "length beyond the end": (
        lambda f: change(f / "data.rec", 4, b"\xff\xff\xff\x1f"),
        r"sample 0000000000 at byte 0: a part of 536870911 bytes reaches beyond its record",
    ),
    "continuation without start": (
        lambda f: change(f / "data.rec", 7, b"\x40"),
        r"at byte 0: a part has the flag 2 at the start of a record",
    ),
    "start without continuation": (
        lambda f: change(f / "data.rec", 7, b"\x20"),
        r"sample 0000000000 at byte 0: the head of a part is cut",
    ),
    "offset beyond the end": (
        lambda f: change(f / "data.idx", 11, b"000000000999996"),
        r"data.idx: damaged pack \(line 1: its record can't be at bytes 999996 to",
    ),
    "offset not at a record": (
        lambda f: change(f / "data.idx", 11, b"000000000000004"),
        r"sample 0000000000 at byte 4: a part starts with",
    ),
    "offset of another record": (
        lambda f: change(f / "data.idx", 27 * 2 + 11, (f / "data.idx").read_bytes()[38:53]),
        r"line 2: its record can't be at bytes (\d+) to \1 of",
    ),
    "key of another record": (
        lambda f: change(f / "data.idx", 27, b"0000000003"),
        r"line 2: it is of 0000000003, not of 0000000001",
    ),
    "no number": (
        lambda f: change(f / "data.idx", 15, b"x"),
        r"line 1: b'0000000000\\t0000x",
    ),
    "fewer lines than records": (
        lambda f: (f / "data.idx").write_bytes((f / "data.idx").read_bytes()[:-27]),
        r"data.idx: pack is truncated: 135 bytes of 162 bytes",
    ),
    "more lines than records": (
        lambda f: (f / "data.idx").write_bytes((f / "data.idx").read_bytes() * 2),
        r"data.idx: has 324 bytes, 162 were written",
    ),
    "no index": (
        lambda f: (f / "data.idx").unlink(),
        r"data.idx: cannot be read \(No such file or directory\)",
    ),
    "no data": (lambda f: (f / "data.rec").unlink(), r"data.rec: missing, and the pack isn't a"),
    "no metadata": (lambda f: (f / "meta.rec").unlink(), r"meta.rec: cannot be read"),
    "data cut": (
        lambda f: os.truncate(f / "data.rec", 100),
        r"data.rec: pack is truncated: 100 bytes of",
    ),
    "data longer": (
        lambda f: os.truncate(f / "data.rec", 10**6),
        r"data.rec: has 1000000 bytes, \d+ were written",
    ),
    "a flipped bit of data": (
        lambda f: change(f / "data.rec", 60, b"!"),
        r"damaged sample 0000000000 .* \(checksum differs\)",
    ),
    "a flipped bit of metadata": (
        lambda f: change(f / "meta.rec", 150, b"!"),
        r"damaged pack \(its metadata: checksum differs",
    ),
    "empty metadata": (lambda f: os.truncate(f / "meta.rec", 0), r"meta.rec: damaged pack \(it is"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_explained(name, folder):
    spoil, message = DAMAGE[name]
    spoil(folder)
    with pytest.raises(PackError, match=message) as caught:
        list(open_pack(folder))
    assert caught.value.exit_code == 1
    assert "\n" not in caught.value.message


FORGED = [
    {"records": -1, "first": 0, "data_bytes": 0, "named": []},
    {"records": "6", "first": 0, "data_bytes": 0, "named": []},
    {"records": 6, "first": 0, "named": []},
    {"records": 6, "first": 0, "data_bytes": 0, "named": ["a"]},
    {"records": 6, "first": 0, "data_bytes": 0, "named": 5},
]


@pytest.mark.parametrize("entries", FORGED)
def test_forged_contents_are_refused(entries, folder):
    from hatcli.data.packs.codec import encode

    record = seal(b"__contents__", encode(entries))
    (folder / "meta.rec").write_bytes(b"".join(store(record)))
    with pytest.raises(PackError, match=r"meta.rec: damaged pack \(its|it names"):
        open_pack(folder)


def test_a_file_cut_under_a_reader_is_an_error_and_no_signal(folder):
    pack = open_pack(folder)
    assert pack[0]["name"] == "number 0"
    os.truncate(folder / "data.rec", 40)

    def read():
        pack[5]

    assert in_child(read) == REFUSED
    with pytest.raises(
        PackError, match=r"sample 0000000005 at byte \d+: file ends \d+ bytes early"
    ):
        pack[5]


# An unfinished pack


@pytest.fixture
def draft(tmp_path, monkeypatch):
    """An unfinished pack of 8 of 20 samples, and its target."""
    monkeypatch.setattr(publish, "BATCH_RECORDS", 4)
    target = tmp_path / "train_mxrecord"
    with pytest.raises(HatError, match="number 8 is damaged"):
        build(target, NumbersPacker(damaged=(8,)), pack_type="mxrecord")
    return tmp_path / "train_mxrecord.partial", target


def finish(target):
    build(target, pack_type="mxrecord")
    assert numbers_in(target) == list(range(20))
    assert len(list(walk((target / "data.rec").read_bytes()))) == 20


@pytest.mark.parametrize("tail", [b"", b"x", b"\x0a\x23\xd7\xce" + bytes(5000)])
def test_what_a_stop_left_behind_the_last_batch_is_cut_off(draft, tail):
    partial, target = draft
    for name in ("data.rec", "data.idx"):
        with (partial / name).open("ab") as file:
            file.write(tail)
    (partial / "meta.rec.new").write_bytes(tail)
    finish(target)
    assert names_in(target) == ["data.idx", "data.rec", "meta.json", "meta.rec"]


@pytest.mark.parametrize("index", [None, b"", b"half a line", "cut", "shifted"])
def test_an_index_that_isnt_whole_is_made_again_from_the_data(draft, index):
    partial, target = draft
    path = partial / "data.idx"
    whole = path.read_bytes()
    if index is None:
        path.unlink()
    elif index == "cut":
        path.write_bytes(whole[:-30])
    elif index == "shifted":
        path.write_bytes(whole[-27:] + whole[:-27])
    else:
        path.write_bytes(index)
    finish(target)
    assert (target / "data.idx").read_bytes()[: len(whole)] == whole


def test_a_draft_whose_data_is_damaged_is_refused(draft):
    partial, target = draft
    (partial / "data.idx").unlink()
    change(partial / "data.rec", 2050, b"!!!")
    with pytest.raises(PackError, match=r"sample 0000000000 at byte 0: checksum") as caught:
        build(target, pack_type="mxrecord")
    assert "--restart" in caught.value.hint
    build(target, pack_type="mxrecord", restart=True)


def test_damage_in_a_draft_with_a_whole_index_is_found_before_publishing(draft):
    partial, target = draft
    change(partial / "data.rec", 2050, b"!!!")
    with pytest.raises(PackError, match=r"record b'0000000000' came back damaged \(checksum"):
        build(target, pack_type="mxrecord")
    assert not target.exists()


def test_a_draft_that_got_shorter_is_refused(draft):
    partial, target = draft
    os.truncate(partial / "data.rec", 4000)
    with pytest.raises(PackError, match="pack is truncated: 4 KB of") as caught:
        build(target, pack_type="mxrecord")
    assert "--restart" in caught.value.hint


@pytest.mark.parametrize("call", ["pwritev", "fsync", "ftruncate"])
def test_a_call_that_finds_the_disk_full_leaves_what_was_committed(tmp_path, monkeypatch, call):
    writer = MxRecordWriter(tmp_path)
    first = [(sample_key(number), b"record %d" % number) for number in range(3)]
    second = [(sample_key(number), b"record %d" % number) for number in range(3, 6)]
    writer.commit(first, {})
    with monkeypatch.context() as patch:

        def full(*arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, call, full)
        if call == "ftruncate":
            with pytest.raises(HatError, match=r"cannot write to .*: no space left on device"):
                writer.seal_file()
        else:
            for _ in range(2):
                with pytest.raises(HatError, match=r"cannot write to .*: no space left"):
                    writer.commit(second, {META_KEY: b"meta"})
    assert writer.count() == 3
    assert writer.get(META_KEY) is None
    writer.commit(second, {META_KEY: b"meta"})
    writer.seal_file()
    reader = MxRecordReader(tmp_path)
    assert [reader.read(key, bytes) for key, _ in first + second] == [r for _, r in first + second]


def test_a_short_write_is_gone_on_with(tmp_path, monkeypatch):
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: real(fd, parts[:1], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, [data[:7]], at))
    writer = MxRecordWriter(tmp_path)
    record = b"a record of some length" + MAGIC * 3
    writer.commit([(sample_key(0), record)], {META_KEY: b"meta"})
    assert writer.get(sample_key(0)) == record
    writer.close()


# Size

GROWTH = """
import os, random, sys
from pathlib import Path
from hatcli.data.packs.meta import META_KEY, sample_key
from hatcli.data.packs.mxrecord import MxRecordReader

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

folder, count = Path(sys.argv[1]), int(sys.argv[2])
before = anonymous()
reader = MxRecordReader(folder)
rng = random.Random(1)
for _ in range(2000):
    assert reader.read(sample_key(rng.randrange(count)), len) == 8
print(anonymous() - before)
"""


def test_a_reader_of_a_million_records_takes_next_to_no_memory(tmp_path):
    count = 10**6
    MxRecordWriter(tmp_path).close()
    stored = b"".join(store(b"8 bytes!"))
    (tmp_path / "data.rec").write_bytes(stored * count)
    lines = (b"%010d\t%015d\n" % (number, 16 * number) for number in range(count))
    (tmp_path / "data.idx").write_bytes(b"".join(lines))
    from hatcli.data.packs.contents import Contents, write_contents

    write_contents(tmp_path, Contents(count, 0, 16 * count, {META_KEY: b"meta"}))
    command = [sys.executable, "-c", GROWTH, str(tmp_path), str(count)]
    grown_kib = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown_kib < 2000
