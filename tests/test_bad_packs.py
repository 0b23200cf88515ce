"""Every bad input has its message, its exit code, at most three lines, and leaves nothing."""

import shutil
import struct
import zipfile
import zlib

import lmdb
import msgpack
import numpy as np
import pytest
from made_cityscapes import (
    IMAGES_ZIP,
    LABELS_ZIP,
    frame_name,
    image_file,
    label_file,
    make_cityscapes,
    pack_cityscapes,
    zip_cityscapes,
)
from PIL import Image

from hatcli.cli import run
from hatcli.data.packs.codec import decode, encode
from hatcli.data.packs.frame import seal, unseal
from hatcli.data.packs.meta import META_KEY, sample_key
from hatcli.data.packs.publish import hold_lock
from hatcli.data.packs.reader import open_pack
from hatcli.errors import HatError

FRAME = frame_name("aachen", 0)


@pytest.fixture
def source(tmp_path):
    return make_cityscapes(tmp_path / "cityscapes", train=4, val=0)


# How each source is spoilt. A function takes the source's folder and may return more words for
# the command line, or a dict with "src" for another source.


def no_folder(source):
    shutil.rmtree(source)


def a_file_as_source(source):
    shutil.rmtree(source)
    source.write_text("x")


def empty_folder(source):
    shutil.rmtree(source)
    source.mkdir()


def no_split(source):
    shutil.rmtree(source / "leftImg8bit" / "train")


def no_label_folder(source):
    shutil.rmtree(source / "gtFine")


def empty_split(source):
    shutil.rmtree(source / "leftImg8bit" / "train")
    (source / "leftImg8bit" / "train").mkdir()


def words(*given):
    return lambda source: list(given)


def packed_already(source):
    pack_cityscapes(source)


def other_options(source):
    path = label_file(source, "train", frame_name("zurich", 2))
    data = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(HatError):
        pack_cityscapes(source)
    path.write_bytes(data)
    return ["--image-format", "raw"]


def target_is_a_file(source):
    (source / "train_lmdb").write_text("x")


def target_folder_is_a_file(source):
    (source / "out").write_text("x")
    return ["--out", str(source / "out")]


def target_is_something_else(source):
    (source / "train_lmdb").mkdir()
    (source / "train_lmdb" / "thesis.txt").write_text("precious")


def image_without_label(source):
    label_file(source, "train", FRAME).unlink()


def label_without_image(source):
    image_file(source, "train", FRAME).unlink()


def label_of_other_size(source):
    Image.new("L", (32, 16)).save(label_file(source, "train", FRAME))


def label_with_unknown_ids(source):
    Image.fromarray(np.full((32, 64), 200, np.uint8)).save(label_file(source, "train", FRAME))


def label_ids_as_train_ids(source):
    for path in list(source.glob("gtFine/train/*/*_labelIds.png")):
        ids = np.full((32, 64), 26, np.uint8)
        ids[0] = 33
        Image.fromarray(ids).save(str(path).replace("labelIds", "labelTrainIds"))
    return ["--labels", "labelTrainIds"]


def train_ids_as_label_ids(source):
    Image.fromarray(np.full((32, 64), 255, np.uint8)).save(label_file(source, "train", FRAME))


def label_in_mode(mode, kind="PNG"):
    def spoil(source):
        Image.new(mode, (64, 32)).save(label_file(source, "train", FRAME), kind)

    return spoil


def image_bytes(make):
    def spoil(source):
        path = image_file(source, "train", FRAME)
        path.write_bytes(make(path.read_bytes()))

    return spoil


def label_bytes(make):
    def spoil(source):
        path = label_file(source, "train", FRAME)
        path.write_bytes(make(path.read_bytes()))

    return spoil


def cut_jpeg(source):
    path = image_file(source, "train", FRAME)
    Image.open(path).save(path, "JPEG", quality=95)
    path.write_bytes(path.read_bytes()[:-300])


def animated(source):
    frames = [Image.new("RGB", (64, 32), color) for color in ("red", "blue")]
    path = image_file(source, "train", FRAME)
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def sixteen_bit_image(source):
    Image.fromarray(np.zeros((32, 64), np.uint16)).save(image_file(source, "train", FRAME))


def claims_to_be_huge(source):
    path = image_file(source, "train", FRAME)
    data = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 20000, 20000) + data[24:29]
    checksum = struct.pack(">I", zlib.crc32(header))
    path.write_bytes(data[:12] + header + checksum + data[33:])


def flip_in_idat(data):
    place = data.index(b"IDAT") + 40
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def same_name_twice(source):
    other = source / "leftImg8bit" / "train" / "bochum" / f"{FRAME}_leftImg8bit.png"
    shutil.copy(image_file(source, "train", FRAME), other)


def zipped(spoil, archive=IMAGES_ZIP, compression=zipfile.ZIP_STORED):
    """Spoil one of the archives of the source."""

    def make(source):
        zips = zip_cityscapes(source, source / "zips", compression=compression)
        path = zips / archive
        spoilt = spoil(path.read_bytes())
        if spoilt is not None:
            path.write_bytes(spoilt)
        return {"src": zips}

    return make


def member_bit(data):
    place = data.index(b"IDAT") + 40
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def encrypted_flag(data):
    spoilt = bytearray(data)
    place = -1
    while (place := data.find(b"PK\1\2", place + 1)) >= 0:
        spoilt[place + 8] |= 1
    return bytes(spoilt)


def forged_size(data):
    spoilt = bytearray(data)
    place = -1
    while (place := data.find(b"PK\1\2", place + 1)) >= 0:
        size = struct.unpack_from("<I", data, place + 24)[0]
        struct.pack_into("<I", spoilt, place + 24, size - 5)
    return bytes(spoilt)


def zip_bomb(source):
    zips = source / "zips"
    zips.mkdir()
    for archive, name in (
        (IMAGES_ZIP, f"leftImg8bit/train/aachen/{FRAME}_leftImg8bit.png"),
        (LABELS_ZIP, f"gtFine/train/aachen/{FRAME}_gtFine_labelIds.png"),
    ):
        with zipfile.ZipFile(zips / archive, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr(name, bytes(64 * 2**20))
    return {"src": zips}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def member_twice(source):
    zips = zip_cityscapes(source, source / "zips")
    name = f"leftImg8bit/train/aachen/{FRAME}_leftImg8bit.png"
    with zipfile.ZipFile(zips / IMAGES_ZIP, "a") as packed:
        packed.writestr(name, b"another")
    return {"src": zips}


BAD_SOURCES = {
    "source missing": (no_folder, 2, "source directory not found"),
    "source is a file": (a_file_as_source, 2, "is a file"),
    "source empty": (empty_folder, 2, f"no leftImg8bit/train/ and no {IMAGES_ZIP}"),
    "split missing": (no_split, 2, "found: ['gtFine', 'leftImg8bit']"),
    "labels missing": (no_label_folder, 2, f"no gtFine/train/ and no {LABELS_ZIP}"),
    "split empty": (empty_split, 2, "no images CITY/*_leftImg8bit.png"),
    "split unknown": (
        words("--split", "training"),
        2,
        "split 'training' unknown; choose train, val, test",
    ),
    "pack type unknown": (
        words("--pack-type", "lmbd"),
        2,
        "pack type 'lmbd' unknown; choose lmdb, mxrecord",
    ),
    "pack type not built": (
        words("--pack-type", "mxrecord"),
        2,
        "pack type 'mxrecord' is not built yet",
    ),
    "workers -1": (words("-j", "-1"), 2, "--num-workers -1: give 0 to 256"),
    "workers a million": (words("-j", "1000000"), 2, "give 0 to 256"),
    "workers a word": (words("-j", "many"), 2, "'many' is not a valid int"),
    "image format unknown": (
        words("--image-format", "jpeg:101"),
        2,
        "image format 'jpeg:101' unknown",
    ),
    "check unknown": (words("--check", "everything"), 2, "'everything' is not one of"),
    "labels unknown": (words("--labels", "colors"), 2, "'colors' is not one of"),
    "expect unknown": (words("--expect", "miracles"), 2, "choose any, official"),
    "count not official": (
        words("--expect", "official"),
        1,
        "expected 2975 samples in train, found 4",
    ),
    "packed already": (packed_already, 1, "already packed (4 samples)"),
    "other options": (other_options, 1, "differs: image_format"),
    "target is a file": (target_is_a_file, 2, "is a file, a directory is needed"),
    "target folder is a file": (target_folder_is_a_file, 2, "is a file, a directory is needed"),
    "target is no pack": (target_is_something_else, 2, "exists and is no pack"),
    "image without label": (image_without_label, 1, "1 of 4 images have no label"),
    "label without image": (label_without_image, 1, "1 of 4 labels have no image"),
    "label size": (label_of_other_size, 1, "label 32x16 but image 64x32"),
    "label ids": (label_with_unknown_ids, 1, "ids outside 0..33: {200}"),
    "label train ids": (label_ids_as_train_ids, 1, "ids outside 0..18 and 255: {26, 33}"),
    "train ids as label ids": (train_ids_as_label_ids, 1, "--labels labelTrainIds"),
    "label palette": (label_in_mode("P"), 1, "single channel PNG, got PNG P"),
    "label RGB": (label_in_mode("RGB"), 1, "single channel PNG, got PNG RGB"),
    "label 1 bit": (label_in_mode("1"), 1, "single channel PNG, got PNG 1"),
    "label JPEG": (label_in_mode("L", "JPEG"), 1, "single channel PNG, got JPEG L"),
    "label float": (label_in_mode("F", "TIFF"), 1, "single channel PNG, got TIFF F"),
    "label cut": (label_bytes(lambda data: data[:-30]), 1, "image is truncated"),
    "image cut": (image_bytes(lambda data: data[:-82]), 1, "truncated (at least 70 bytes missing)"),
    "image without end": (image_bytes(lambda data: data[:-12]), 1, "truncated (no end mark)"),
    "image cut JPEG": (cut_jpeg, 1, "image is truncated"),
    "image HTML": (image_bytes(lambda _: b"<html>sorry"), 1, "not an image (starts with b'<html>"),
    "image empty": (image_bytes(lambda _: b""), 1, "empty file"),
    "image 16 bit": (sixteen_bit_image, 1, "more than 8 bits a channel"),
    "image huge": (claims_to_be_huge, 1, "400 Mpx exceeds --max-pixels 100 Mpx"),
    "image above limit": (words("--max-pixels", "2000"), 1, "exceeds --max-pixels 0.002 Mpx"),
    "image animated": (animated, 1, "more than one frame"),
    "PNG checksum": (image_bytes(flip_in_idat), 1, "damaged PNG (IDAT checksum)"),
    "PNG head checksum": (
        image_bytes(lambda data: data[:17] + b"\7" + data[18:]),
        1,
        "damaged PNG (IHDR checksum)",
    ),
    "zip cut": (zipped(lambda data: data[:-100]), 1, "zip archive is cut or damaged"),
    "zip is HTML": (zipped(lambda _: b"<html>login"), 1, "not a zip archive (starts with b'<html>"),
    "zip empty file": (zipped(lambda _: b""), 1, "not a zip archive (empty)"),
    "zip encrypted": (zipped(encrypted_flag), 1, "member is encrypted"),
    "zip member damaged": (zipped(member_bit), 1, "damaged archive member (Bad CRC-32"),
    "zip deflated damaged": (
        zipped(
            lambda data: data[:200] + bytes([data[200] ^ 255]) + data[201:],
            LABELS_ZIP,
            zipfile.ZIP_DEFLATED,
        ),
        1,
        "damaged archive member",
    ),
    "zip forged size": (zipped(forged_size), 1, "damaged archive member"),
    "zip member twice": (member_twice, 1, "archive has two members of this name"),
    "zip bomb": (zip_bomb, 1, "possible bomb"),
    "same name twice": (same_name_twice, 1, "duplicate sample name"),
    "dataset unknown": (words("DATASET", "citiscapes"), 2, "no dataset 'citiscapes'"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_bad_source_is_explained_and_leaves_no_pack(name, source, capsys):
    spoil, code, message = BAD_SOURCES[name]
    target = source / "train_lmdb"
    more = spoil(source) or []
    before = sorted(target.iterdir()) if target.is_dir() else target.exists()
    if isinstance(more, dict):
        more = ["--src", str(more["src"]), "--out", str(source)]
    elif "DATASET" not in more:
        more = ["--src", str(source), *more]
    command = ["pack", "cityscapes", "--split", "train", "-j", "0", *more]
    if "DATASET" in more:
        command = ["pack", more[1]]
    capsys.readouterr()
    assert run(command) == code
    out, err = capsys.readouterr()
    assert out == ""
    _assert_short(err, message)
    after = sorted(target.iterdir()) if target.is_dir() else target.exists()
    assert after == before


def _assert_short(err, message):
    assert message in err
    assert "Traceback" not in err
    explained = err[err.index("error: ") :].splitlines()
    assert len(explained) <= 3
    assert len(err.splitlines()) <= 4  # a warning about the number of images may come first


def test_a_locked_target_has_its_own_code(source, capsys):
    with hold_lock(source / "train_lmdb"):
        assert run(["pack", "cityscapes", "--split", "train", "--src", str(source)]) == 75
    _assert_short(capsys.readouterr().err, "another pack is writing train_lmdb here (pid ")


def test_a_full_disk_is_told_before_the_start(source, capsys, monkeypatch):
    usage = shutil.disk_usage(source)._replace(free=10)
    monkeypatch.setattr("hatcli.data.packs.disk.shutil.disk_usage", lambda path: usage)
    assert run(["pack", "cityscapes", "--split", "train", "--src", str(source), "-j", "0"]) == 1
    _assert_short(capsys.readouterr().err, "10 bytes free")
    assert not (source / "train_lmdb").exists()


def test_the_missing_source_tells_where_it_comes_from(tmp_path, capsys):
    assert run(["pack", "cityscapes", "--split", "train", "--src", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    for text in (
        IMAGES_ZIP,
        LABELS_ZIP,
        "https://www.cityscapes-dataset.com/downloads/",
        f"csDownload -d {tmp_path} gtFine_trainvaltest.zip leftImg8bit_trainvaltest.zip",
    ):
        assert text in err
    assert len(err.splitlines()) == 3


# How each pack is spoilt. A function takes the folder of a good pack.


def change_records(change):
    """Rewrite the container with other records."""

    def spoil(folder):
        records = {}
        with (
            lmdb.open(str(folder), readonly=True, lock=False) as environment,
            environment.begin() as transaction,
        ):
            records.update(transaction.cursor())
        records = {key: value for key, value in change(dict(records)).items() if value}
        (folder / "data.mdb").unlink()
        with (
            lmdb.open(str(folder), map_size=2**26, lib_version=0) as environment,
            environment.begin(write=True) as transaction,
        ):
            for key, value in records.items():
                transaction.put(key, value)

    return spoil


def change_meta(**entries):
    def change(records):
        meta = decode(unseal(META_KEY, records[META_KEY])) | entries
        meta = {name: value for name, value in meta.items() if value is not None}
        return records | {META_KEY: seal(META_KEY, encode(meta))}

    return change_records(change)


def replace_sample(payload):
    key = sample_key(1)
    return change_records(lambda records: records | {key: seal(key, payload)})


def flip(records):
    key = sample_key(1)
    value = bytearray(records[key])
    value[len(value) // 2] ^= 4
    return records | {key: bytes(value)}


def moved(records):
    return records | {sample_key(1): records[sample_key(2)]}


def data(make):
    def spoil(folder):
        path = folder / "data.mdb"
        path.write_bytes(make(path.read_bytes()))

    return spoil


def format_3(folder):
    shutil.rmtree(folder)
    lmdb.open(str(folder), lib_version=1).close()


def unfinished(folder):
    shutil.rmtree(folder)
    source = folder.parent
    label_file(source, "train", frame_name("zurich", 2)).write_bytes(b"")
    with pytest.raises(HatError):
        pack_cityscapes(source)
    (source / "train_lmdb.partial").rename(folder)


FORGED = msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(["<f4", [3], 0]) + b"123")})
PICKLED = msgpack.packb({b"nd": True, b"kind": b"O", b"data": b"cposix\nsystem\n."})

BAD_PACKS = {
    "missing": (shutil.rmtree, 2, "no pack at"),
    "a file": (lambda f: (shutil.rmtree(f), f.write_text("x")), 2, "no pack at"),
    "truncated": (data(lambda d: d[: len(d) // 2]), 1, "pack is truncated"),
    "empty": (data(lambda _: b""), 1, "not an LMDB file"),
    "garbage": (data(lambda d: b"nonsense" * (len(d) // 8)), 1, "not an LMDB file"),
    "zeros": (data(lambda d: bytes(len(d))), 1, "not an LMDB file"),
    "format 3": (format_3, 1, "written by LMDB 1.x (format 3)"),
    "no metadata": (change_records(lambda r: r | {META_KEY: b""}), 1, "not a hat pack"),
    "foreign metadata": (change_meta(format="other"), 1, "not a hat pack"),
    "unfinished": (unfinished, 1, "pack is unfinished (3 of 4)"),
    "marked unfinished": (change_meta(complete=False), 1, "pack is unfinished"),
    "newer": (change_meta(min_reader=[3, 0]), 1, "pack format 3.0 is newer than this hat (1.x)"),
    "no version": (change_meta(schema=None), 1, "its metadata has no version"),
    "no length": (change_meta(length=-1), 1, "no length"),
    "damaged metadata": (
        change_records(lambda r: r | {META_KEY: r[META_KEY][:-1]}),
        1,
        "damaged pack (its metadata: record says",
    ),
    "length": (change_meta(length=5), 1, "metadata says 5 samples, found 4"),
    "sample missing": (
        change_records(lambda r: {k: v for k, v in r.items() if k != sample_key(1)}),
        1,
        "metadata says 4 samples, found 3",
    ),
    "other key": (
        change_records(lambda r: {b"x" + k if k == sample_key(1) else k: v for k, v in r.items()}),
        1,
        "sample 0000000001 in",
    ),
    "checksum": (change_records(flip), 1, "damaged sample 0000000001 ('aachen_000003_000019') in"),
    "record moved": (change_records(moved), 1, "damaged sample 0000000001"),
    "record cut": (
        change_records(lambda r: r | {sample_key(1): r[sample_key(1)][:20]}),
        1,
        "record says",
    ),
    "bad frame": (
        change_records(lambda r: r | {sample_key(1): b"XX" + r[sample_key(1)][2:]}),
        1,
        "record starts with b'XX'",
    ),
    "malformed": (replace_sample(b"\xc1"), 1, "cannot be decoded: not a sample"),
    "forged array": (replace_sample(FORGED), 1, "array needs 12 bytes, has 3"),
    "pickled array": (replace_sample(PICKLED), 1, "keys must be text"),
    "ext unknown": (
        replace_sample(msgpack.packb({"a": msgpack.ExtType(9, b"")})),
        1,
        "unknown ext type 9",
    ),
    "field missing": (replace_sample(encode({"name": "x"})), 1, "field 'image' is missing"),
}


@pytest.mark.parametrize("name", BAD_PACKS)
def test_a_bad_pack_is_explained(name, source):
    spoil, code, message = BAD_PACKS[name]
    folder = pack_cityscapes(source).path
    spoil(folder)
    with pytest.raises(HatError) as caught:
        list(open_pack(folder))
    assert message in caught.value.message
    assert caught.value.exit_code == code
    assert "\n" not in caught.value.message


def test_unknown_entries_of_a_newer_minor_version_are_passed_over(source):
    folder = pack_cityscapes(source).path
    change_meta(schema=[1, 7], flavour="new")(folder)
    assert len(list(open_pack(folder))) == 4
