"""Sources that can't be packed: how each is spoilt, its exit code and what the message says.

A spoiling function takes the source's folder and may return more words for the command line, or
a dict with "src" for another source.
"""

import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
from made_cityscapes import (
    IMAGES_ZIP,
    LABELS_ZIP,
    frame_name,
    image_file,
    label_file,
    pack_cityscapes,
    zip_cityscapes,
)
from PIL import Image
from refusals import a_file_as_source, empty_folder, no_folder

from hatcli.errors import HatError

FRAME = frame_name("aachen", 0)


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
    "split missing": (no_split, 2, "found: gtFine, leftImg8bit"),
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
    "shard of none": (words("--shard", "0/4"), 2, "--shard '0/4': give I/N with I from 1 to N"),
    "shard beyond": (words("--shard", "5/4"), 2, "--shard '5/4': give I/N"),
    "shard of words": (words("--shard", "first"), 2, "--shard 'first': give I/N"),
    "more shards than samples": (words("--shard", "1/5"), 2, "5 shards of 4 samples: give fewer"),
    "on-error unknown": (words("--on-error", "skip"), 2, "choose fail, quarantine"),
    "quarantine of more than all": (words("--max-quarantine", "2"), 2, "give a share up to 1"),
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
    "image HTML": (image_bytes(lambda _: b"<html>sorry"), 1, "not an image (starts with '<html>"),
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
    "zip is HTML": (zipped(lambda _: b"<html>login"), 1, "not a zip archive (starts with '<html>"),
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
