"""A split that is packed in parts, by any number of runs, is the pack that one run makes."""

import json
import shutil
import subprocess
import sys

import pytest
from made_cityscapes import frame_name, image_file, make_cityscapes, pack_cityscapes
from made_imagenet import make_imagenet, pack_imagenet

from hatcli.cli import run
from hatcli.data.packers._part import Part, parse_shard
from hatcli.data.packs.reader import open_pack
from hatcli.errors import HatError, PackError, UsageError
from hatcli.events import finish
from hatcli.recipes.packing.join import join


@pytest.fixture
def source(tmp_path):
    return make_cityscapes(tmp_path / "cityscapes", train=7, val=0)


def names(path):
    with open_pack(path) as pack:
        return [sample["name"] for sample in pack]


@pytest.mark.parametrize("pack_type", ["lmdb", "mxrecord"])
def test_joined_shards_are_the_pack_that_one_run_makes(source, capsys, pack_type):
    whole = pack_cityscapes(source, target=source / "whole", pack_type=pack_type)
    for index in (3, 1, 2):
        words = ["--src", str(source), "--pack-type", pack_type, "--shard", f"{index}/3"]
        assert run(["pack", "cityscapes", "--split", "train", "-j", "0", *words]) == 0
    shards = source / f"train_{pack_type}.shards"
    assert f"next: hat pack join {shards}" in capsys.readouterr().err
    assert run(["pack", "join", str(shards)]) == 0
    joined = source / f"train_{pack_type}"
    meta = open_pack(joined).meta
    assert names(joined) == names(whole.path)
    assert meta["content_sha256"] == whole.meta["content_sha256"]
    assert {name for name in meta if meta[name] != whole.meta.get(name)} == {"shards"}
    assert sum(file.stat().st_size for file in joined.iterdir()) < 20_000
    assert run(["pack", "verify", str(joined), str(shards / "2-of-3")]) == 0


def test_classes_and_sizes_are_summed_over_shards(tmp_path):
    source = make_imagenet(tmp_path / "imagenet", train=3)
    whole = pack_imagenet(source, target=tmp_path).meta
    for index in (1, 2, 3, 4, 5):
        shard = pack_imagenet(source, shard=f"{index}/5")
        assert sum(shard.meta["class_images"]) == shard.meta["length"]
    joined = finish(join(source / "train_lmdb.shards")).meta
    for name in ("class_images", "sizes", "counts", "length", "content_sha256"):
        assert joined[name] == whole[name]


def test_parts_are_equal_and_cover_everything(source):
    lengths = []
    following = 0
    for index in (1, 2, 3):
        packed = pack_cityscapes(source, shard=f"{index}/3")
        assert packed.meta["shard"]["first"] == following
        following += packed.meta["length"]
        lengths.append(packed.meta["length"])
    assert sorted(lengths) == [2, 2, 3]
    assert following == 7


def test_shards_at_once_dont_disturb_each_other(source):
    command = [sys.executable, "-m", "hatcli", "pack", "cityscapes", "--split", "train"]
    command += ["--src", str(source), "-j", "0", "--shard"]
    runs = [
        subprocess.Popen(
            [*command, f"{index}/3"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for index in (1, 2, 3)
    ]
    for one in runs:
        _, err = one.communicate(timeout=60)
        assert one.returncode == 0, err
    shards = source / "train_lmdb.shards"
    assert sorted(path.name for path in shards.iterdir()) == ["1-of-3", "2-of-3", "3-of-3"]
    assert len(finish(join(shards)).meta["shards"]) == 3


def test_a_stopped_shard_goes_on_by_itself(source):
    expected = pack_cityscapes(source, target=source / "whole", shard="2/2").meta
    path = image_file(source, "train", sorted(names(source / "whole/train_lmdb.shards/2-of-2"))[-1])
    good = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(HatError, match="empty file"):
        pack_cityscapes(source, shard="2/2")
    path.write_bytes(good)
    result = pack_cityscapes(source, shard="2/2")
    assert result.resumed_at == 3
    assert result.meta["content_sha256"] == expected["content_sha256"]


def test_missing_and_unfinished_shards_are_named(source, capsys):
    pack_cityscapes(source, shard="1/4")
    shards = source / "train_lmdb.shards"
    shutil.copytree(shards / "1-of-4", shards / "3-of-4.partial")
    assert run(["pack", "join", str(shards)]) == 1
    assert "3 of 4 shards are missing or unfinished: 2/4, 3/4, 4/4" in capsys.readouterr().err
    assert not (source / "train_lmdb").exists()
    assert run(["pack", "info", str(shards), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [shard["complete"] for shard in document["shards"]] == [True, True]


def test_shards_of_two_sets_cant_be_joined(source):
    pack_cityscapes(source, shard="1/2")
    pack_cityscapes(source, shard="1/3")
    with pytest.raises(HatError, match="shards of 2 and 3 lie together"):
        finish(join(source / "train_lmdb.shards"))


def test_shards_of_other_options_cant_be_joined(source):
    pack_cityscapes(source, shard="1/2")
    pack_cityscapes(source, shard="2/2", image_format="raw")
    with pytest.raises(PackError, match="shards differ in"):
        finish(join(source / "train_lmdb.shards"))


def test_a_damaged_shard_is_found_when_joining(source):
    for index in (1, 2):
        pack_cityscapes(source, shard=f"{index}/2")
    data = source / "train_lmdb.shards" / "2-of-2" / "data.mdb"
    whole = bytearray(data.read_bytes())
    whole[whole.index(b"IDAT") + 30] ^= 8
    data.write_bytes(whole)
    with pytest.raises(PackError, match="damaged sample 00000000"):
        finish(join(source / "train_lmdb.shards"))
    assert not (source / "train_lmdb").exists()


@pytest.mark.parametrize("folder", ["train_lmdb", "nothing.shards"])
def test_other_folders_cant_be_joined(source, folder):
    pack_cityscapes(source, shard="1/2")
    with pytest.raises(UsageError, match="no folder of shards") as caught:
        finish(join(source / folder))
    assert ("did you mean" in caught.value.hint) == (folder == "train_lmdb")


def test_what_shards_left_out_is_left_out_of_the_whole(source, capsys):
    bad = image_file(source, "train", frame_name("bochum", 1))
    bad.write_bytes(b"")
    for index in (1, 2, 3):
        pack_cityscapes(source, shard=f"{index}/3", on_error="quarantine")
    joined = finish(join(source / "train_lmdb.shards"))
    assert (joined.left_out, joined.meta["length"]) == (1, 6)
    whole = pack_cityscapes(source, target=source / "whole", on_error="quarantine")
    assert names(joined.path) == names(whole.path)
    assert run(["pack", "verify", str(joined.path)]) == 0
    # Copied into one container its keys have no gaps, as those of an unsharded pack.
    assert run(["pack", "convert", str(joined.path), "--out", str(source / "copy")]) == 0
    copy = open_pack(source / "copy" / "train_lmdb")
    assert copy.meta["content_sha256"] == whole.meta["content_sha256"]
    assert copy.meta["quarantine"] == whole.meta["quarantine"]


def test_a_part_passes_on_what_its_packer_is():
    assert (parse_shard("2/8").index, str(parse_shard("2/8"))) == (2, "2-of-8")
    from made_packer import NumbersPacker

    part = Part(NumbersPacker(10), parse_shard("2/3"))
    assert (part.first, len(part.stamps), part.stamps[0], part.stamps[-1]) == (
        3,
        3,
        "sample 3",
        "sample 5",
    )
    assert part.stamps[1:] == ["sample 4", "sample 5"]
    assert part.make(0).sample["values"][0] == 3
    assert part.name(2) == "number 5"
