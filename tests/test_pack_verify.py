"""``hat pack verify`` finds every damage that a pack can have, and survives it; ``info`` tells."""

import json
import os
import signal

import lmdb
import numpy as np
import pytest
from bad_packs import BAD_PACKS, change_meta, change_records
from children import in_child
from made_cityscapes import frame_name, image_file, make_cityscapes, pack_cityscapes
from made_imagenet import make_imagenet, pack_imagenet
from made_packer import NumbersPacker, build

from hatcli.cli import run
from hatcli.data.packs.codec import decode, encode
from hatcli.data.packs.frame import seal, unseal
from hatcli.data.packs.meta import sample_key
from hatcli.errors import DataError, PackError, UsageError
from hatcli.events import finish
from hatcli.recipes.packing import verify
from hatcli.recipes.packing.info import read_info
from hatcli.recipes.packing.isolated import Died, run_isolated
from hatcli.recipes.packing.verify import look_at


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_cityscapes(tmp_path_factory.mktemp("packs") / "cityscapes", train=4, val=0)


@pytest.fixture
def folder(source, tmp_path):
    return pack_cityscapes(source, target=tmp_path).path


def look(path, *, fast=False, decode_images=False):
    return finish(look_at(path, fast, decode_images))


@pytest.mark.parametrize("pack_type", ["lmdb", "mxrecord"])
def test_a_whole_pack_is_whole(source, tmp_path, capsys, pack_type):
    path = pack_cityscapes(source, target=tmp_path, pack_type=pack_type).path
    assert run(["pack", "verify", str(path), "--decode"]) == 0
    out = capsys.readouterr().out
    assert f"{path}" in out
    assert out.split()[-1] == "whole"


def test_a_look_at_the_structure_reads_no_sample(folder):
    change_records(lambda records: records | {sample_key(1): records[sample_key(2)]})(folder)
    verdict = look(folder, fast=True)
    assert (verdict.is_whole, verdict.checked) == (True, 0)
    assert not look(folder).is_whole


# Those that differ only in who may read them, or that this program may not judge.
FOUND_OTHERWISE = {"missing": "no pack at", "a file": "no pack at"}


@pytest.mark.parametrize("name", sorted(BAD_PACKS.keys() - FOUND_OTHERWISE.keys()))
def test_every_bad_pack_is_found(name, tmp_path):
    folder = pack_cityscapes(make_cityscapes(tmp_path / "source", train=4, val=0)).path
    BAD_PACKS[name][0](folder)
    verdict = look(folder)
    assert verdict.damaged >= 1
    assert all("\n" not in finding for finding in verdict.findings)


def test_several_packs_give_a_table_and_one_exit_code(folder, source, tmp_path, capsys):
    other = pack_cityscapes(source, target=tmp_path / "other").path
    BAD_PACKS["checksum"][0](folder)
    assert run(["pack", "verify", str(other), str(folder), "--json"]) == 3
    out, err = capsys.readouterr()
    first, second = json.loads(out)
    assert (first["whole"], first["read"]) == (True, 4)
    assert (second["whole"], second["damaged"]) == (False, 1)
    assert second["findings"] == ["sample 0000000001: checksum differs"]
    assert f"error: {folder}: damaged pack\n" in err
    assert "Traceback" not in err


def test_no_pack_is_a_wrong_argument(tmp_path, capsys):
    assert run(["pack", "verify", str(tmp_path / "none")]) == 2
    assert "no pack at" in capsys.readouterr().err


def _die(path, fast, decode_images):
    yield from ()
    os.kill(os.getpid(), signal.SIGBUS)


def test_a_pack_that_kills_its_reader_is_damaged(folder, monkeypatch, capsys):
    monkeypatch.setattr(verify, "look_at", _die)
    assert run(["pack", "verify", str(folder)]) == 3
    assert "reading it killed the process (SIGBUS)" in capsys.readouterr().out


def _raise(error):
    yield from ()
    raise error


def test_what_an_isolated_job_raises_comes_out():
    with pytest.raises(DataError, match="in there") as caught:
        finish(run_isolated(_raise, DataError("in there", "do this")))
    assert caught.value.hint == "do this"
    with pytest.raises(ZeroDivisionError):
        finish(run_isolated(_raise, ZeroDivisionError()))
    assert str(Died(-9)) == "SIGKILL"
    assert str(Died(3)) == "exit code 3"


def change_sample(change, key=1):
    """Rewrite one sample, its checksum included, and mend the digest by no means."""

    def spoil(records):
        sample = decode(unseal(sample_key(key), records[sample_key(key)]))
        change(sample)
        return records | {sample_key(key): seal(sample_key(key), encode(sample))}

    return change_records(spoil)


ILLEGAL = {
    "label value": (lambda s: s["label"].fill(77), "label values outside 0..18: 77"),
    "label shape": (
        lambda s: s.update(label=np.zeros((2, 3), np.uint8)),
        "label map of shape (2, 3), image 32x64",
    ),
    "image size": (lambda s: s.update(width=65, label=np.zeros((32, 65), np.uint8)), "said to be"),
    "image format": (lambda s: s.update(image_format="jpeg"), "image is png, said to be jpeg"),
    "other sample": (lambda s: s.update(name="another"), "the digest of all samples isn't"),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_samples_that_are_not_legal_are_found(folder, name):
    change, message = ILLEGAL[name]
    change_sample(change)(folder)
    assert message in look(folder).findings[0]


def test_a_class_that_is_none_is_found(tmp_path):
    folder = pack_imagenet(make_imagenet(tmp_path)).path
    change_sample(lambda sample: sample.update(label=4))(folder)
    assert look(folder).findings == ["sample 0000000001: label 4 is outside 0..3"]


def test_an_image_that_cant_be_decoded_is_found_when_asked_for(tmp_path):
    source = make_cityscapes(tmp_path / "cityscapes", train=2, val=0)
    path = image_file(source, "train", frame_name("aachen", 0))
    data = path.read_bytes()
    place = data.index(b"IDAT") + 20
    path.write_bytes(data[:place] + bytes(20) + data[place + 20 :])
    folder = pack_cityscapes(source, check="none").path
    assert look(folder).is_whole
    assert "image" in look(folder, decode_images=True).findings[0]


def test_sums_that_are_wrong_are_found(folder):
    change_meta(class_pixels=[1] * 19)(folder)
    (folder / "meta.json").unlink()
    assert "the pixels of each class" in look(folder).findings[0]


def test_a_readable_copy_that_says_other_things_is_found(folder):
    copy = folder / "meta.json"
    shown = json.loads(copy.read_text())
    copy.write_text(json.dumps({**shown, "split": "val"}))
    assert "differs from the pack's metadata in split" in look(folder).findings[0]
    copy.write_text("{")
    assert "can't be read" in look(folder).findings[0]


def test_zeroed_pages_are_found_and_kill_nobody(tmp_path):
    folder = tmp_path / "train_lmdb"
    build(folder, NumbersPacker(60, size=60))
    whole = (folder / "data.mdb").read_bytes()

    def look_at_all():
        for page in range(2, len(whole) // 4096):
            damaged = bytearray(whole)
            damaged[page * 4096 : (page + 1) * 4096] = bytes(4096)
            (folder / "data.mdb").write_bytes(damaged)
            verdict = look(folder)
            with lmdb.open(str(folder), readonly=True, lock=False) as environment:
                is_free = environment.stat()["entries"] == 61 and verdict.is_whole
            assert verdict.damaged or is_free

    assert in_child(look_at_all) == 0


def test_info_tells_what_a_pack_is(folder, capsys):
    assert run(["pack", "info", str(folder)]) == 0
    shown = capsys.readouterr().out
    for text in ("complete", "lmdb", "cityscapes train", "64x32 4", "labelIds", "pillow"):
        assert text in shown
    assert run(["pack", "info", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["complete"] is True
    assert document["meta"]["length"] == 4
    assert document["bytes"] == (folder / "data.mdb").stat().st_size
    assert "packed_at" in document


@pytest.mark.parametrize("pack_type", ["lmdb", "mxrecord"])
def test_info_tells_how_far_an_unfinished_pack_is(tmp_path, capsys, pack_type):
    source = make_cityscapes(tmp_path / "cityscapes", train=4, val=0)
    image_file(source, "train", frame_name("zurich", 2)).write_bytes(b"")
    with pytest.raises(DataError):
        pack_cityscapes(source, pack_type=pack_type)
    target = source / f"train_{pack_type}"
    assert run(["pack", "info", str(target)]) == 0
    assert "unfinished, 3 of 4" in capsys.readouterr().out
    info = read_info(target)
    assert info.path == target.with_name(target.name + ".partial")
    assert (info.is_complete, info.meta["next"]) == (False, 3)


def test_info_of_nothing_and_of_something_else_is_explained(tmp_path, folder):
    with pytest.raises(UsageError, match="no pack at"):
        read_info(tmp_path / "none")
    BAD_PACKS["truncated"][0](folder)
    with pytest.raises(PackError, match="truncated"):
        read_info(folder)
