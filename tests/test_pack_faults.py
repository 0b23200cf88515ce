"""Damaged samples, odd images, odd places and a slow disk while packing."""

import io
import json
import os
import subprocess
import sys
import time
import warnings

import lmdb
import numpy as np
import pytest
from made_cityscapes import (
    finish,
    frame_name,
    image_file,
    make_cityscapes,
    pack_cityscapes,
)
from made_imagenet import jpeg, make_folders, pack_imagenet
from made_packer import NumbersPacker
from PIL import Image

from hatcli.cli import run
from hatcli.data.packers._headers import glance
from hatcli.data.packers._images import look_at_image, take_image
from hatcli.data.packs import mounts, publish
from hatcli.data.packs.mounts import remote_file_system
from hatcli.data.packs.reader import open_pack
from hatcli.errors import DataError, HatError
from hatcli.events import Progress, Warned
from hatcli.recipes.packing.pack import Settings, pack, pack_with
from hatcli.recipes.packing.verify import look_at

# Quarantine


@pytest.fixture
def source(tmp_path):
    return make_cityscapes(tmp_path / "cityscapes", train=6, val=0)


def spoil(source, *numbers):
    cities = ("aachen", "bochum", "zurich")
    for number in numbers:
        image_file(source, "train", frame_name(cities[number % 3], number)).write_bytes(b"<html>")


def test_a_damaged_sample_is_left_out_listed_and_counted(source, capsys):
    spoil(source, 1)
    words = ["--src", str(source), "-j", "0", "--on-error", "quarantine"]
    assert run(["pack", "cityscapes", "--split", "train", *words]) == 0
    out, err = capsys.readouterr()
    assert "left out" in out
    assert "left out: not an image" in err
    assert "1 of 6 samples were left out, see" in err
    folder = source / "train_lmdb"
    [line] = (folder / "quarantine.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["name"] == "bochum_000001_000019"
    assert entry["error"].startswith("not an image (starts with '<html>'): leftImg8bit/train/")
    with open_pack(folder) as packed:
        assert packed.meta["quarantine"]["count"] == 1
        assert [sample["name"][:6] for sample in packed] == [
            *["aachen"] * 2,
            "bochum",
            *["zurich"] * 2,
        ]
    assert finish(look_at(folder, False, True)).findings == []
    (folder / "quarantine.jsonl").write_text("")
    assert (
        "isn't the list of the 1 samples left out"
        in finish(look_at(folder, True, False)).findings[0]
    )


def test_more_than_the_share_is_an_error_and_one_is_always_allowed(source):
    spoil(source, 1, 2)
    with pytest.raises(DataError, match="more than 1 of 6 samples are damaged, the last: not"):
        pack_cityscapes(source, on_error="quarantine")
    result = pack_cityscapes(source, on_error="quarantine", max_quarantine=0.34)
    assert (result.left_out, result.meta["length"]) == (2, 4)


def test_nothing_but_damage_is_no_pack(source):
    spoil(source, *range(6))
    with pytest.raises(DataError, match="none of the 6 samples is whole"):
        pack_cityscapes(source, on_error="quarantine", max_quarantine=1)
    assert not (source / "train_lmdb").exists()


@pytest.mark.parametrize("pack_type", ["lmdb", "mxrecord"])
def test_what_is_left_out_survives_a_stop_and_any_number_of_workers(
    tmp_path, monkeypatch, pack_type
):
    monkeypatch.setattr(publish, "BATCH_RECORDS", 2)
    packer = NumbersPacker(12, damaged=(0, 3, 4, 9))
    settings = {"pack_type": pack_type, "on_error": "quarantine", "max_quarantine": 0.5}

    def run_into(target, workers):
        return pack_with(packer, tmp_path, target, Settings(workers, **settings))

    expected = finish(run_into(tmp_path / "whole", 0)).meta
    assert finish(run_into(tmp_path / "parallel", 2)).meta == expected
    job = run_into(tmp_path / "train", 0)
    for event in job:
        if isinstance(event, Progress) and event.done == 7:
            break
    job.close()
    result = finish(run_into(tmp_path / "train", 2))
    assert result.resumed_at == 7
    assert result.meta == expected
    listed = (tmp_path / "train" / "quarantine.jsonl").read_text()
    assert [json.loads(line)["index"] for line in listed.splitlines()] == [0, 3, 4, 9]
    with open_pack(tmp_path / "train") as packed:
        values = [int(sample["values"][0]) for sample in packed]
    assert values == [1, 2, 5, 6, 7, 8, 10, 11]


def test_going_on_without_quarantine_after_one_is_refused(tmp_path):
    packer = NumbersPacker(6, damaged=(1, 4))
    with pytest.raises(DataError, match="more than 1 of 6"):
        finish(pack_with(packer, tmp_path, tmp_path / "t", Settings(0, on_error="quarantine")))
    with pytest.raises(HatError, match="an earlier run left 1 samples out") as caught:
        finish(pack_with(packer, tmp_path, tmp_path / "t", Settings(0)))
    assert "--restart" in caught.value.hint


def test_sums_are_without_what_is_left_out(tmp_path):
    source = make_folders(tmp_path / "imagenet", train=3, val=0)
    next((source / "train").rglob("*.JPEG")).write_bytes(b"")
    result = pack_imagenet(source, on_error="quarantine")
    assert sorted(result.meta["class_images"]) == [2, 3, 3, 3]
    assert finish(look_at(result.path, False, False)).is_whole


# Images of 16 bits, turned images, a quick look

OPTIONS = {"image_format": "source", "check": "decode", "max_pixels": 10_000}
GREY_16 = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16) + 255


def png_16(values, color_type):
    """A PNG of 16 bits a channel; Pillow writes grey ones only."""
    import struct
    import zlib

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


DEEP = {
    "grey": png_16(GREY_16, 0),
    "colour": png_16(np.stack([GREY_16, GREY_16.T, GREY_16], axis=2), 2),
    "alpha": png_16(np.stack([GREY_16] * 3 + [GREY_16.T], axis=2), 6),
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("check", ["decode", "none"])
def test_16_bits_are_an_error_unless_the_upper_8_will_do(kind, check):
    options = {**OPTIONS, "check": check}
    with pytest.raises(DataError, match=r"more than 8 bits a channel: f\.png") as caught:
        take_image(DEEP[kind], "f.png", options)
    assert "--allow-16bit" in caught.value.hint
    fields, totals = take_image(DEEP[kind], "f.png", {**options, "allow_16bit": True})
    assert (fields["image_format"], totals["count.16bit"]) == ("png", 1)
    pixels = np.asarray(Image.open(io.BytesIO(fields["image"])))
    expected = (GREY_16 >> 8).astype(np.uint8)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels if kind == "grey" else pixels[..., 0], expected)
    raw, _ = take_image(DEEP[kind], "f", {**options, "allow_16bit": True, "image_format": "raw"})
    assert np.array_equal(raw["image"][..., 2], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["source", "raw"])
@pytest.mark.parametrize("check", ["decode", "none"])
def test_apply_exif_turns_as_viewers_do(orientation, image_format, check):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3))
    data = jpeg(pixels, exif=exif)
    options = {**OPTIONS, "image_format": image_format, "check": check, "apply_exif": True}
    fields, totals = take_image(data, "f.jpg", options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    stored = fields["image"]
    if image_format == "source":
        assert (stored == data) == (orientation == 1)
        stored = np.asarray(Image.open(io.BytesIO(stored)))
    assert np.array_equal(stored, expected)
    assert (fields["height"], fields["width"]) == expected.shape[:2]
    assert totals["count.exif_applied"] == (orientation != 1)


def test_a_turned_label_has_to_fit_the_turned_image(source):
    path = image_file(source, "train", frame_name("aachen", 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    with pytest.raises(DataError, match="label 64x32 but image 32x64"):
        pack_cityscapes(source, apply_exif=True)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "1", "P", "LA", "RGBA"])
def test_a_glance_sees_what_pillow_sees(mode):
    for kind in ("JPEG", "PNG"):
        try:
            data = jpeg(np.zeros((7, 9, 3)), mode, kind)
        except OSError:
            continue  # not every kind has every mode
        head = glance(data)
        seen = look_at_image(data, "f", max_pixels=100, check="header")
        assert head is not None
        assert head == (seen.format, seen.width, seen.height, seen.colors)


def test_a_glance_leaves_the_rest_to_pillow():
    data = jpeg(np.zeros((7, 9, 3)))
    for other in (
        b"",
        b"<html>",
        DEEP["colour"],
        data[:20],
        data[:2] + b"\xff\xd9",
        b"\xff\xd8\xff",
    ):
        assert glance(other) is None
    with pytest.raises(DataError, match=r"6.3e-05 Mpx exceeds"):
        look_at_image(data, "f", max_pixels=62, check="none")


# Places


def test_a_remote_file_system_is_told(source, monkeypatch, tmp_path):
    listed = tmp_path / "mountinfo"
    listed.write_text(
        f"1 0 8:1 / / rw - ext4 /dev/vda rw\n2 1 0:5 / {source} rw shared:1 - nfs4 host:/x rw\n"
        f"3 1 0:6 / {source}/with\\040space rw - tmpfs none rw\n"
    )
    monkeypatch.setattr(mounts, "MOUNTS", listed)
    assert remote_file_system(source / "deep" / "er") == "nfs4"
    assert remote_file_system(source / "with space") is None
    assert remote_file_system(tmp_path) is None
    events = list(pack("cityscapes", source, None, "train", num_workers=0))
    told = [event.text for event in events if isinstance(event, Warned)]
    assert any(
        "is on a remote file system (nfs4), where LMDB promises nothing" in one for one in told
    )
    events = list(pack("cityscapes", source, None, "train", num_workers=0, pack_type="mxrecord"))
    assert not [event for event in events if "remote" in str(event)]
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "none")
    assert remote_file_system(source) is None


def test_a_pack_is_of_the_old_format_whatever_the_environment_says(source):
    command = [sys.executable, "-m", "hatcli", "pack", "cityscapes", "--split", "train", "-j", "0"]
    environment = {**os.environ, "LMDB_DEFAULT_LIB_VERSION": "1"}
    subprocess.run(
        [*command, "--src", str(source)], check=True, env=environment, capture_output=True
    )
    head = (source / "train_lmdb" / "data.mdb").read_bytes()[16:24]
    assert head == (0xBEEFC0DE).to_bytes(4, "little") + (1).to_bytes(4, "little")


def test_the_engine_is_one_that_survives_damaged_files():
    assert tuple(map(int, lmdb.__version__.split(".")[:1])) >= (3,)


def test_a_closed_output_is_no_noise(source):
    command = f"{sys.executable} -m hatcli pack cityscapes --split train -j 0 --src {source} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr
    assert len(open_pack(source / "train_lmdb")) == 6


def test_a_slow_disk_doesnt_fill_the_memory(tmp_path, monkeypatch):
    """Records that are made wait; of batches no more than two are in memory."""
    from hatcli.data.packs.lmdb import LmdbWriter

    waiting = []
    real = LmdbWriter.commit

    def slow(self, records, named):
        time.sleep(0.05)
        waiting.append(len(records))
        real(self, records, named)

    monkeypatch.setattr(LmdbWriter, "commit", slow)
    monkeypatch.setattr(publish, "BATCH_RECORDS", 5)
    made = []
    packer = NumbersPacker(40)
    make = packer.make
    packer.make = lambda index: made.append(index) or make(index)
    ahead = []
    for _ in pack_with(packer, tmp_path, tmp_path / "train", Settings(0)):
        ahead.append(len(made) - sum(waiting))
    assert max(ahead) <= 15
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_pack(tmp_path / "train")) == 40
