"""Packs go from one container into another as they are; foreign packs come in without running."""

import os
import pickle
import tempfile
from pathlib import Path

import lmdb
import msgpack
import numpy as np
import pytest
from children import in_child
from made_cityscapes import make_cityscapes, pack_cityscapes
from made_imagenet import jpeg

from hatcli.cli import run
from hatcli.data.datasets.cityscapes import Cityscapes
from hatcli.data.datasets.imagenet import ImageNet
from hatcli.data.packers._foreign import unpack
from hatcli.data.packers._foreign_samples import Fields
from hatcli.data.packs.reader import open_pack
from hatcli.errors import DataError, PackError, UsageError
from hatcli.events import Note, finish
from hatcli.recipes.packing.convert import convert
from hatcli.recipes.packing.verify import look_at


def numpy_map(array, kind=b""):
    """An array as msgpack-numpy stores it."""
    return {
        b"nd": True,
        b"type": array.dtype.str,
        b"kind": kind,
        b"shape": list(array.shape),
        b"data": array.tobytes(),
    }


def write_lmdb(folder, records):
    folder.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(folder), map_size=2**26) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in records.items():
            transaction.put(key, value if isinstance(value, bytes) else msgpack.packb(value))
    return folder


def photo(seed):
    return np.random.default_rng(seed).integers(0, 256, (24, 30, 3), dtype=np.uint8)


def maps(count=12):
    """Encoded photos with labels under decimal keys, which byte order doesn't sort."""
    return {
        b"%d" % n: {"img": jpeg(photo(n)), "target": n % 3, "filename": f"p{n}.jpg"}
        for n in range(count)
    }


def look(path):
    return finish(look_at(path, False, True)).findings


@pytest.mark.parametrize(("old", "new"), [("lmdb", "mxrecord"), ("mxrecord", "lmdb")])
def test_a_pack_keeps_its_content_in_another_container(tmp_path, old, new):
    source = make_cityscapes(tmp_path / "cityscapes", train=5, val=0)
    path = pack_cityscapes(source, pack_type=old).path
    there = finish(convert(path, tmp_path / "there", pack_type=new))
    back = finish(convert(there.path, tmp_path / "back", pack_type=old))
    assert there.path == tmp_path / "there" / f"train_{new}"
    assert there.meta == back.meta == open_pack(path).meta
    assert look(there.path) == []
    if old == "mxrecord":  # LMDB's free pages hold what stood there while packing
        assert (back.path / "data.rec").read_bytes() == (path / "data.rec").read_bytes()


def test_a_damaged_pack_isnt_copied_on(tmp_path):
    source = make_cityscapes(tmp_path / "cityscapes", train=3, val=0)
    path = pack_cityscapes(source).path
    data = bytearray((path / "data.mdb").read_bytes())
    data[data.index(b"IDAT") + 30] ^= 1
    (path / "data.mdb").write_bytes(data)
    with pytest.raises(PackError, match="damaged sample 00000000"):
        finish(convert(path, tmp_path / "there"))
    assert not (tmp_path / "there" / "train_lmdb").exists()


def test_a_stopped_copy_goes_on(tmp_path, monkeypatch):
    from hatcli.data.packs import publish

    source = make_cityscapes(tmp_path / "cityscapes", train=6, val=0)
    path = pack_cityscapes(source).path
    monkeypatch.setattr(publish, "BATCH_RECORDS", 2)
    monkeypatch.setattr("hatcli.recipes.packing.convert._REPORT_EVERY", 1)
    job = convert(path, tmp_path / "there", pack_type="mxrecord")
    for _ in range(5):
        next(job)
    job.close()
    result = finish(convert(path, tmp_path / "there", pack_type="mxrecord"))
    assert result.resumed_at >= 4
    assert result.meta == open_pack(path).meta


def test_a_pack_cant_be_converted_onto_itself_or_to_another_split(tmp_path):
    path = pack_cityscapes(make_cityscapes(tmp_path / "c", train=2, val=0)).path
    with pytest.raises(UsageError, match="replaced by itself"):
        finish(convert(path, path.parent, overwrite=True))
    with pytest.raises(UsageError, match="holds the split train"):
        finish(convert(path, tmp_path / "there", split="val"))


@pytest.mark.parametrize("pack_type", ["lmdb", "mxrecord"])
def test_maps_with_encoded_photos_become_a_pack(tmp_path, capsys, pack_type):
    source = write_lmdb(tmp_path / "foreign", {**maps(), b"__len__": b"12"})
    words = ["--out", str(tmp_path), "--pack-type", pack_type, "-j", "0"]
    assert run(["pack", "convert", str(source), *words]) == 0
    err = capsys.readouterr().err
    for text in ("image: field 'img'", "label: field 'target' (int)", "passed over: b'__len__'"):
        assert text in err
    path = tmp_path / f"train_{pack_type}"
    dataset = ImageNet(str(path))
    assert [dataset[n]["label"] for n in range(12)] == [n % 3 for n in range(12)]
    assert [dataset[n]["name"] for n in range(12)] == [f"p{n}.jpg" for n in range(12)]
    with open_pack(path) as pack:
        assert pack[11]["image"] == jpeg(photo(11))
        assert pack.meta["class_images"] == [4, 4, 4]
    assert look(path) == []


def test_arrays_of_msgpack_numpy_become_pixels_and_label_maps(tmp_path):
    label = np.full((24, 30), 2, dtype=np.int64)
    label[0] = 255
    records = {
        b"%08d" % n: {b"image": numpy_map(photo(n)[..., ::-1]), b"label": numpy_map(label)}
        for n in range(3)
    }
    source = write_lmdb(tmp_path / "foreign", records)
    result = finish(convert(source, tmp_path, fields=Fields(channels="bgr")))
    sample = Cityscapes(str(result.path))[1]
    assert np.array_equal(sample["image"], photo(1))
    assert np.array_equal(sample["label"], label)
    assert result.meta["class_pixels"] == [0, 0, 3 * 23 * 30]
    assert (result.meta["num_classes"], result.meta["ignored_pixels"]) == (3, 90)
    assert result.remarks == ["2 of 3 classes never occur"]
    assert look(result.path) == []


def test_lists_as_dataflow_writes_them_are_understood(tmp_path):
    encoded = np.frombuffer(jpeg(photo(0)), dtype=np.uint8)
    records = {
        b"%08d" % n: [numpy_map(encoded), {b"nd": False, b"type": "<i8", b"data": b"\1" + bytes(7)}]
        for n in range(2)
    }
    source = write_lmdb(tmp_path / "foreign", {**records, b"__keys__": [b"0", b"1"]})
    result = finish(convert(source, tmp_path, fields=Fields(num_classes=5)))
    with open_pack(result.path) as pack:
        assert (pack[1]["image"], pack[1]["label"]) == (jpeg(photo(0)), 1)
    assert result.meta["class_images"] == [0, 2, 0, 0, 0]


@pytest.mark.parametrize(
    "layout", [lambda p: p.transpose(2, 0, 1), lambda p: p[..., 0], lambda p: p[..., :1]]
)
def test_other_layouts_of_arrays_become_height_width_colours(tmp_path, layout):
    records = {b"0": {"image": numpy_map(np.ascontiguousarray(layout(photo(5)))), "label": 0}}
    result = finish(convert(write_lmdb(tmp_path / "foreign", records), tmp_path))
    image = ImageNet(str(result.path))[0]["image"]
    expected = photo(5) if layout(photo(5)).shape[0] == 3 else photo(5)[..., :1].repeat(3, 2)
    assert np.array_equal(image, expected)


MARK = Path(tempfile.gettempdir(), f"hat-test-{os.getpid()}")


class _Evil:
    def __reduce__(self):
        return os.mkdir, (str(MARK),)


PICKLED = {
    "pickle": pickle.dumps({"image": b"", "label": _Evil()}),
    "kind O": {
        "image": {**numpy_map(photo(0)), b"kind": b"O", b"data": pickle.dumps(_Evil())},
        "label": 0,
    },
    "dtype O": {"image": {**numpy_map(photo(0)), b"type": "|O"}, "label": 0},
}


@pytest.mark.parametrize("name", PICKLED)
def test_pickles_are_refused_by_name_and_never_run(tmp_path, name, capsys):
    source = write_lmdb(tmp_path / "foreign", {b"0": PICKLED[name]})
    assert run(["pack", "convert", str(source), "--out", str(tmp_path), "-j", "0"]) == 1
    err = capsys.readouterr().err
    assert "foreign::0" in err
    assert "refused: " in err
    assert "pickle" in err
    assert not MARK.exists()
    assert not (tmp_path / "train_lmdb").exists()


BAD = {
    "complex": ({"image": {b"complex": True, b"data": "1j"}, "label": 0}, "complex number"),
    "structured": ({"image": {**numpy_map(photo(0)), b"kind": b"V"}, "label": 0}, "kind 'V'"),
    "text array": ({"image": {**numpy_map(photo(0)), b"type": "<U3"}, "label": 0}, "'<U3'"),
    "no type": ({"image": {b"nd": True, b"data": b""}, "label": 0}, "without type or data"),
    "odd type": ({"image": {**numpy_map(photo(0)), b"type": "u(1"}, "label": 0}, r"'u\(1'"),
    "shape": ({"image": {**numpy_map(photo(0)), b"shape": [9, 9]}, "label": 0}, "in 2160 bytes"),
    "negative": ({"image": {**numpy_map(photo(0)), b"shape": [-1]}, "label": 0}, "of shape"),
    "ext": ({"image": msgpack.ExtType(5, b"x"), "label": 0}, "unknown ext type 5"),
    "no msgpack": (b"\xc1", "isn't msgpack"),
    "a number": (5, "holds int, not a map or a list"),
    "no image": ({"picture": b"x", "label": 0}, "no field is plainly the image"),
    "no label": ({"image": b"x", "label": "dog"}, "no field is plainly the label"),
    "no picture": ({"image": b"<html>", "label": 0}, "not an image"),
    "label below": ({"image": jpeg(photo(0)), "label": -1}, "label -1 is outside"),
    "float image": ({"image": numpy_map(photo(0) / 2), "label": 0}, "no field is plainly"),
    "map size": (
        {"image": jpeg(photo(0)), "label": numpy_map(np.zeros((5, 6), np.uint8))},
        "label 6x5 but image 30x24",
    ),
    "map values": (
        {"image": jpeg(photo(0)), "label": numpy_map(np.full((24, 30), 300))},
        "label values outside",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cant_be_converted_is_explained(tmp_path, name):
    record, message = BAD[name]
    source = write_lmdb(tmp_path / "foreign", {b"0": record})
    with pytest.raises((DataError, UsageError), match=message) as caught:
        finish(convert(source, tmp_path))
    assert "\n" not in caught.value.message
    assert not (tmp_path / "train_lmdb").exists()


def test_fields_are_what_the_user_says(tmp_path):
    record = {"image": b"thumbnail", "full": jpeg(photo(1)), "label": 5, "fine": 1, "who": "me"}
    source = write_lmdb(tmp_path / "foreign", {b"0": record})
    fields = Fields(image="full", label="fine", name="who")
    job = convert(source, tmp_path, fields=fields)
    events = []
    result = finish(job, events.append)
    assert not [event for event in events if isinstance(event, Note)]
    with open_pack(result.path) as pack:
        assert (pack[0]["image"], pack[0]["label"], pack[0]["name"]) == (jpeg(photo(1)), 1, "me")
    with pytest.raises(UsageError, match="--image-key 'pic'"):
        finish(convert(source, tmp_path, fields=Fields(image="pic")))
    with pytest.raises(UsageError, match="choose rgb, bgr"):
        finish(convert(source, tmp_path, fields=Fields(channels="xyz")))


def test_files_that_are_no_lmdb_are_refused_without_dying(tmp_path):
    source = write_lmdb(tmp_path / "foreign", maps())
    whole = (source / "data.mdb").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text" * 5000, bytes(9000)):
        file = tmp_path / "single.mdb"
        file.write_bytes(damaged)

        def refuse(file=file):
            with pytest.raises(PackError):
                finish(convert(file, tmp_path))

        assert in_child(refuse) == 0
    (tmp_path / "single.mdb").write_bytes(whole)
    assert finish(convert(tmp_path / "single.mdb", tmp_path)).meta["length"] == 12


def test_nothing_and_an_empty_pack_are_explained(tmp_path):
    with pytest.raises(UsageError, match="no pack at"):
        finish(convert(tmp_path / "none", tmp_path))
    with pytest.raises(DataError, match="holds no samples"):
        finish(convert(write_lmdb(tmp_path / "empty", {b"__len__": b"0"}), tmp_path))


def test_plain_values_of_msgpack_numpy_are_numbers():
    value = {b"a": {b"nd": False, b"type": "<f4", b"data": np.float32(1.5).tobytes()}, "b": [1, 2]}
    assert unpack(msgpack.packb(value), "here") == {"a": 1.5, "b": [1, 2]}
