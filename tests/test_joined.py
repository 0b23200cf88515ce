"""Shards are packs by themselves, and joined they are the pack that one machine would have made."""

import json
import os
import shutil
import signal

import pytest
from children import die_at_call, in_child
from made_packer import NumbersPacker, build, names_in, numbers_in

from hatcli.data.packs import publish
from hatcli.data.packs.codec import encode
from hatcli.data.packs.container import PACK_TYPES, data_size, find_pack_type
from hatcli.data.packs.contents import Contents, read_contents, write_contents
from hatcli.data.packs.frame import seal
from hatcli.data.packs.joined import publish_joined
from hatcli.data.packs.meta import META_KEY
from hatcli.data.packs.place import hold_lock, make_room
from hatcli.data.packs.reader import open_pack
from hatcli.errors import HatError, PackError, UsageError
from hatcli.events import finish

COUNT = 3


@pytest.fixture(scope="module", params=PACK_TYPES)
def shards(request, tmp_path_factory):
    """Three shards of 20 samples beside the place of the whole."""
    folder = tmp_path_factory.mktemp("shards")
    make_shards(folder, request.param)
    return folder


@pytest.fixture
def whole(shards, tmp_path):
    """A joined pack of its own."""
    folder = tmp_path / "packs"
    shutil.copytree(shards, folder)
    join(folder)
    return folder / "train"


def make_shards(folder, pack_type="lmdb", packer=None, **options):
    packer = packer or NumbersPacker(20)
    (folder / "train.shards").mkdir(exist_ok=True)
    for index in range(1, COUNT + 1):
        build(shard(folder, index), packer, shard=(index, COUNT), pack_type=pack_type, **options)


def shard(folder, index):
    return folder / "train.shards" / f"{index}-of-{COUNT}"


def join(folder, shards=None, overwrite=False):
    """Join what is there; return the numbers that were yielded and the metadata."""
    shards = shards if shards is not None else sorted((folder / "train.shards").iterdir())
    counts = []
    with hold_lock(folder / "train"):
        make_room(folder / "train", overwrite=overwrite)
        return counts, finish(publish_joined(folder / "train", shards), counts.append)


def test_a_shard_is_a_pack_by_itself(shards):
    lengths = []
    for index, first in ((1, 0), (2, 6), (3, 13)):
        pack = open_pack(shard(shards, index))
        lengths.append(len(pack))
        assert numbers_in(pack.path) == list(range(first, first + len(pack)))
        assert pack[-1]["name"] == f"number {first + len(pack) - 1}"
        assert pack.key_of(0) == b"%010d" % first
        part = {"index": index, "count": 3, "first": first, "total": 20}
        assert pack.meta["shard"].items() >= part.items()
    assert lengths == [6, 7, 7]


def test_the_joined_pack_is_the_unsharded_one(whole, tmp_path):
    meta = open_pack(whole).meta
    kind = find_pack_type(shard(whole.parent, 1))
    expected = build(tmp_path / "unsharded", NumbersPacker(20), pack_type=kind)
    listed = meta.pop("shards")
    assert meta == expected
    assert [entry["path"] for entry in listed] == [f"../train.shards/{n}-of-3" for n in (1, 2, 3)]
    assert numbers_in(whole) == list(range(20))
    with open_pack(whole) as joined, open_pack(tmp_path / "unsharded") as unsharded:
        assert [joined[-n]["name"] for n in range(1, 21)] == [
            unsharded[-n]["name"] for n in range(1, 21)
        ]
        assert joined.read(7, lambda sample: sample["name"], views=True) == "number 7"


def test_nothing_is_copied(whole):
    assert names_in(whole) == ["meta.json", "meta.rec"]
    assert sum(path.stat().st_size for path in whole.iterdir()) < 10_000
    sizes = [data_size(shard(whole.parent, index)) for index in (1, 2, 3)]
    assert data_size(whole) == sum(sizes)
    assert json.loads((whole / "meta.json").read_text())["data_bytes"] == sum(sizes)
    assert find_pack_type(whole) == "joined"


def test_joining_tells_how_far_it_is(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "packs")
    counts, meta = join(tmp_path / "packs")
    assert counts == list(range(1, 21))
    assert meta == open_pack(tmp_path / "packs" / "train").meta


def test_all_of_it_may_be_moved_together(whole, tmp_path):
    whole.parent.rename(tmp_path / "elsewhere")
    assert numbers_in(tmp_path / "elsewhere" / "train") == list(range(20))


def test_shards_of_several_containers_are_one_pack(tmp_path):
    make_shards(tmp_path)
    shutil.rmtree(shard(tmp_path, 2))
    build(shard(tmp_path, 2), NumbersPacker(20), shard=(2, COUNT), pack_type="mxrecord")
    join(tmp_path)
    assert numbers_in(tmp_path / "train") == list(range(20))


def test_a_joined_pack_is_read_in_forked_children(whole):
    pack = open_pack(whole)
    pack[0], pack[19]

    def read():
        assert [int(sample["values"][0]) for sample in pack] == list(range(20))

    assert in_child(read) == 0
    assert pack[10]["name"] == "number 10"


def test_a_joined_pack_is_not_replaced_unless_asked(whole):
    with pytest.raises(HatError, match=r"already packed \(20 samples\)"):
        join(whole.parent)
    join(whole.parent, overwrite=True)
    assert numbers_in(whole) == list(range(20))
    assert names_in(whole.parent) == ["train", "train.shards"]


def test_shards_with_samples_left_out_are_joined_without_a_hole(tmp_path):
    make_shards(tmp_path, packer=NumbersPacker(20, damaged=(2, 5, 13)), leave_out=True)
    _, meta = join(tmp_path)
    assert meta["length"] == 17
    assert meta["quarantine"]["count"] == 3
    assert numbers_in(tmp_path / "train") == [n for n in range(20) if n not in (2, 5, 13)]
    with open_pack(tmp_path / "train") as pack:
        assert pack[3]["name"] == "number 4"
        assert pack[-1]["name"] == "number 19"


def _kill_at(folder, calls, *, overwrite):
    """Kill joining at each of these calls that change files, until one is behind the last."""
    join(folder)
    digest = open_pack(folder / "train").meta["content_sha256"]
    for call in calls:
        shutil.rmtree(folder / "train")
        if overwrite:
            build(folder / "train", NumbersPacker(3))

        def run(call=call):
            die_at_call(call)
            join(folder, overwrite=overwrite)

        code = in_child(run)
        assert code in (0, -signal.SIGKILL)
        if (folder / "train").exists():
            assert len(numbers_in(folder / "train")) in (3, 20)
        join(folder, overwrite=True)
        assert open_pack(folder / "train").meta["content_sha256"] == digest
        assert names_in(folder) == ["train", "train.shards"]
        if code == 0:
            return call
    return None


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_while_joining_the_same_call_ends_with_the_same_pack(tmp_path, overwrite):
    make_shards(tmp_path)
    assert _kill_at(tmp_path, (2, 4, 6), overwrite=overwrite) is None


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_anywhere_while_joining_the_same_call_ends_with_the_same_pack(tmp_path, overwrite):
    make_shards(tmp_path)
    assert _kill_at(tmp_path, range(100), overwrite=overwrite) > 6


# Shards that don't make a whole


def test_no_shards_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no shards are given"):
        join(tmp_path, [])


def test_a_missing_shard_is_named(shards):
    with pytest.raises(PackError, match=r"shards missing: 2 of 3"):
        join(shards, [shard(shards, 1), shard(shards, 3)])


def test_a_shard_given_twice_is_refused(shards):
    with pytest.raises(PackError, match=r"2-of-3: begins at sample 6, not at 13"):
        join(shards, [shard(shards, index) for index in (1, 2, 2, 3)])


def test_a_pack_that_is_no_shard_is_refused(shards, tmp_path):
    build(tmp_path / "plain")
    with pytest.raises(PackError, match=r"plain: not a shard"):
        join(shards, [shard(shards, 1), tmp_path / "plain"])


@pytest.mark.parametrize(
    ("packer", "message"),
    [
        (NumbersPacker(20, size=499), r"shards differ in 'options': \{'size': 500\} and .*499"),
        (NumbersPacker(21), r"shard 2 of 3 of 21 samples; .*1-of-3: one of 3 of 20 samples"),
    ],
)
def test_a_shard_of_other_options_or_another_source_is_refused(tmp_path, packer, message):
    make_shards(tmp_path)
    shutil.rmtree(shard(tmp_path, 2))
    build(shard(tmp_path, 2), packer, shard=(2, COUNT))
    with pytest.raises(PackError, match=message):
        join(tmp_path)
    assert names_in(tmp_path) == ["train.shards"]


def test_a_shard_of_another_source_of_the_same_size_is_refused(tmp_path):
    other = NumbersPacker(20)
    other.source = {"kind": "made up elsewhere"}
    make_shards(tmp_path)
    shutil.rmtree(shard(tmp_path, 3))
    build(shard(tmp_path, 3), other, shard=(3, COUNT))
    with pytest.raises(PackError, match=r"shards differ in 'source': .* and .*elsewhere"):
        join(tmp_path)


def test_a_damaged_record_of_a_shard_is_found_by_joining(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "packs")
    second = shard(tmp_path / "packs", 2)
    data = max(second.iterdir(), key=lambda path: path.stat().st_size)
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    data.write_bytes(damaged)
    with pytest.raises(PackError, match=r"2-of-3: damaged sample 00000000\d\d \(checksum differs"):
        join(tmp_path / "packs")
    assert names_in(tmp_path / "packs") == ["train.shards"]


def test_a_shard_whose_digest_is_of_other_records_is_refused(tmp_path):
    make_shards(tmp_path, "mxrecord")
    second = shard(tmp_path, 2)
    contents = read_contents(second)
    meta = open_pack(second).meta | {"content_sha256": "0" * 64}
    named = {META_KEY: seal(META_KEY, encode(meta))}
    write_contents(second, contents._replace(named=named))
    with pytest.raises(PackError, match=r"2-of-3: its content isn't what its metadata says"):
        join(tmp_path)


def test_an_unfinished_shard_isnt_gone_on_with_as_another_one(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "BATCH_RECORDS", 2)
    packer = NumbersPacker(20, damaged=(10,))
    packer.stamps = ["alike"] * 20
    with pytest.raises(HatError, match="number 10 is damaged"):
        build(tmp_path / "part", packer, shard=(2, 3))
    with pytest.raises(HatError, match=r"other options is here \(differs: shard\)"):
        build(tmp_path / "part", packer, shard=(1, 3))


# A joined pack that isn't whole any more


def test_a_joined_pack_without_one_of_its_shards_is_refused(whole):
    shutil.rmtree(shard(whole.parent, 2))
    with pytest.raises(PackError, match=r"train: shard ../train.shards/2-of-3 is missing"):
        open_pack(whole)


def test_a_cut_shard_is_found_before_the_first_read(whole):
    data = max(shard(whole.parent, 3).iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(data, data.stat().st_size // 2)
    with pytest.raises(PackError, match="pack is truncated"):
        open_pack(whole)


def test_another_pack_in_the_place_of_a_shard_is_refused(whole):
    place = shard(whole.parent, 2)
    shutil.rmtree(place)
    shutil.copytree(shard(whole.parent, 1), place)
    with pytest.raises(PackError, match=r"shard ../train.shards/2-of-3 isn't the one joined"):
        open_pack(whole)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "it names no shards"),
        ("x", "it names no shards"),
        ([5], "a shard is 5"),
        ([{"path": "/etc", "first": 0, "length": 1, "content_sha256": ""}], "the path of a shard"),
        ([{"path": "a", "first": 0, "length": -1, "content_sha256": ""}], "a shard is"),
        ([{"path": "a", "first": "0", "length": 1, "content_sha256": ""}], "a shard is"),
        ([{"path": "a", "first": n, "length": 3, "content_sha256": ""} for n in (0, 2)], "before"),
        ([{"path": "a", "first": 0, "length": 1}], "a shard is"),
        (None, "data.rec: missing, and the pack isn't a joined one"),
    ],
)
def test_forged_lists_of_shards_are_refused(whole, entries, message):
    meta = open_pack(whole).meta | {"shards": entries}
    named = {META_KEY: seal(META_KEY, encode(meta))}
    write_contents(whole, Contents(0, 0, 0, named))
    with pytest.raises(PackError, match=message):
        open_pack(whole)


def test_a_joined_pack_that_names_itself_is_refused(whole):
    meta = open_pack(whole).meta
    itself = {"path": ".", "first": 0, "length": 20, "content_sha256": meta["content_sha256"]}
    named = {META_KEY: seal(META_KEY, encode(meta | {"shards": [itself]}))}
    write_contents(whole, Contents(0, 0, 0, named))
    with pytest.raises(PackError, match=r"shard \. is missing"):
        open_pack(whole)
    with pytest.raises(UsageError, match="no pack at"):
        data_size(whole)
