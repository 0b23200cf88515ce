"""Packing Cityscapes: what goes in, what stands in the pack, what the command says."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from made_cityscapes import (
    ARCHIVES_OF,
    frame_name,
    image_file,
    label_file,
    make_cityscapes,
    pack_cityscapes,
    save_pair,
    zip_cityscapes,
)
from PIL import Image

from hatcli import stopping
from hatcli.cli import run
from hatcli.data.classes import CITYSCAPES, CITYSCAPES_CLASSES
from hatcli.data.packs import publish
from hatcli.data.packs.reader import open_pack
from hatcli.errors import DataError, StoppedBySignal
from hatcli.events import Progress, Warned
from hatcli.recipes.packing.pack import pack


@pytest.fixture
def source(tmp_path):
    return make_cityscapes(tmp_path / "cityscapes", train=5, val=2, test=2)


def train_ids_of(label_ids):
    table = np.full(256, 255, dtype=np.uint8)
    for label in CITYSCAPES:
        if label.id >= 0:
            table[label.id] = label.train_id
    return table[label_ids]


def test_images_keep_their_bytes_and_labels_become_train_ids(source):
    with open_pack(pack_cityscapes(source).path) as packed:
        for sample in packed:
            image = image_file(source, "train", sample["name"])
            label_ids = np.asarray(Image.open(label_file(source, "train", sample["name"])))
            assert sample["image"] == image.read_bytes()
            assert sample["image_format"] == "png"
            assert (sample["height"], sample["width"]) == (32, 64)
            assert np.array_equal(sample["label"], train_ids_of(label_ids))
            assert sample["label"].dtype == np.uint8


def test_samples_are_sorted_by_city_and_frame(source):
    with open_pack(pack_cityscapes(source).path) as packed:
        names = [sample["name"] for sample in packed]
    assert names == sorted(names)
    assert [name.split("_")[0] for name in names] == [
        "aachen",
        "aachen",
        "bochum",
        "bochum",
        "zurich",
    ]


def test_metadata_tells_classes_pixels_and_ids(source):
    result = pack_cityscapes(source)
    names = [path.name[: -len("_leftImg8bit.png")] for path in source.glob("leftImg8bit/train/*/*")]
    files = [np.asarray(Image.open(label_file(source, "train", name))) for name in names]
    counts = np.bincount(train_ids_of(np.stack(files)).ravel(), minlength=256)
    meta = result.meta
    assert meta["classes"] == list(CITYSCAPES_CLASSES)
    assert meta["class_pixels"] == counts[:19].tolist()
    assert meta["ignored_pixels"] == counts[255]
    assert meta["label_ids_seen"] == np.unique(files).tolist()
    assert meta["id_map"]["26"] == CITYSCAPES_CLASSES.index("car")
    assert meta["num_classes"], meta["ignore_index"] == (19, 255)
    assert meta["sizes"] == {"64x32": 5}
    assert meta["counts"] == {"png": 5}
    assert (meta["dataset"], meta["split"], meta["task"]) == ("cityscapes", "train", "segmentation")


def test_the_readable_copy_says_the_same(source):
    result = pack_cityscapes(source)
    copy = json.loads((result.path / "meta.json").read_text())
    assert copy.items() >= result.meta.items()
    assert copy["data_bytes"] == result.size_bytes == (result.path / "data.mdb").stat().st_size


def test_archives_and_folders_in_any_mix_give_the_same_content(source, tmp_path):
    zips = zip_cityscapes(source, tmp_path / "zips")
    mixes = [tmp_path / "mix0", tmp_path / "mix1"]
    for mix, (folder, archive) in zip(mixes, [ARCHIVES_OF, ARCHIVES_OF[::-1]], strict=True):
        mix.mkdir()
        shutil.copytree(source / folder[0], mix / folder[0])
        shutil.copy(zips / archive[1], mix)
    digests = {
        pack_cityscapes(place, num_workers=workers).meta["content_sha256"]
        for place, workers in [(source, 0), (zips, 0), (mixes[0], 0), (mixes[1], 2)]
    }
    assert len(digests) == 1


def test_equal_sources_give_equal_bytes_wherever_and_whenever(source, tmp_path):
    first = pack_cityscapes(source)
    shutil.copytree(source / "leftImg8bit", tmp_path / "b" / "leftImg8bit")
    shutil.copytree(source / "gtFine", tmp_path / "b" / "gtFine")
    os.utime(image_file(tmp_path / "b", "train", frame_name("aachen", 0)), (1, 1))
    second = pack_cityscapes(tmp_path / "b", num_workers=2)
    assert (first.path / "data.mdb").read_bytes() == (second.path / "data.mdb").read_bytes()


def test_raw_images_are_pixels(source):
    result = pack_cityscapes(source, image_format="raw")
    with open_pack(result.path) as packed:
        sample = packed[0]
    pixels = np.asarray(Image.open(image_file(source, "train", sample["name"])))
    assert np.array_equal(sample["image"], pixels)
    assert (sample["image_format"], result.meta["image_format"]) == ("raw", "raw")


def test_jpeg_images_are_near_and_say_so(source):
    result = pack_cityscapes(source, image_format="jpeg:95")
    with open_pack(result.path) as packed:
        sample = packed[0]
    decoded = Image.open(io.BytesIO(sample["image"]))
    pixels = np.asarray(Image.open(image_file(source, "train", sample["name"])), dtype=int)
    assert (decoded.format, sample["image_format"]) == ("JPEG", "jpeg")
    assert np.abs(np.asarray(decoded) - pixels).mean() < 20
    assert result.meta["image_format"] == "jpeg:95"


def test_label_train_ids_are_taken_as_they_are(source):
    for path in source.glob("gtFine/train/*/*_labelIds.png"):
        train_ids = train_ids_of(np.asarray(Image.open(path)))
        Image.fromarray(train_ids).save(str(path).replace("labelIds", "labelTrainIds"))
    by_id = pack_cityscapes(source)
    by_train_id = pack_cityscapes(source, labels="labelTrainIds", overwrite=True)
    assert by_id.meta["content_sha256"] == by_train_id.meta["content_sha256"]
    assert by_id.meta["class_pixels"] == by_train_id.meta["class_pixels"]


def test_16_bit_labels_are_read_by_value(source):
    path = label_file(source, "train", frame_name("aachen", 0))
    before = pack_cityscapes(source).meta["content_sha256"]
    Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16)).save(path)
    assert pack_cityscapes(source, overwrite=True).meta["content_sha256"] == before


@pytest.mark.parametrize(
    ("mode", "counted"),
    [("L", "grey"), ("P", "palette"), ("RGBA", "rgb+alpha"), ("LA", "grey+alpha"), ("1", "grey")],
)
def test_other_kinds_of_png_are_kept_and_counted(source, mode, counted):
    path = image_file(source, "train", frame_name("aachen", 0))
    Image.open(path).convert(mode).save(path)
    assert pack_cityscapes(source).meta["counts"] == {"png": 5, counted: 1}
    raw = pack_cityscapes(source, image_format="raw", overwrite=True)
    with open_pack(raw.path) as packed:
        assert np.array_equal(packed[0]["image"], np.asarray(Image.open(path).convert("RGB")))


def test_a_jpeg_under_a_png_name_is_a_jpeg(source):
    path = image_file(source, "train", frame_name("aachen", 0))
    Image.open(path).convert("CMYK").save(path, "JPEG")
    result = pack_cityscapes(source)
    assert result.meta["counts"] == {"cmyk": 1, "jpeg": 1, "png": 4}
    with open_pack(result.path) as packed:
        assert [sample["image_format"] for sample in packed].count("jpeg") == 1


def test_an_image_that_viewers_would_turn_is_reported(source):
    path = image_file(source, "train", frame_name("aachen", 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    result = pack_cityscapes(source)
    assert result.meta["counts"]["exif_rotated"] == 1
    remark = "1 images have an EXIF orientation, which is ignored; --apply-exif turns them"
    assert remark in result.remarks


def test_check_none_and_header_skip_what_they_say(source):
    path = image_file(source, "train", frame_name("aachen", 0))
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 40] ^= 1
    path.write_bytes(data)
    for check in ("decode", "header"):
        with pytest.raises(
            DataError, match=r"damaged PNG \(IDAT checksum\): .*aachen_000000_000019"
        ):
            pack_cityscapes(source, check=check)
    assert pack_cityscapes(source, check="none").meta["length"] == 5


def test_placeholder_labels_of_the_test_split_are_reported(source):
    result = pack_cityscapes(source, "test")
    assert result.meta["ignored_pixels"] == 2 * 64 * 32
    assert any("placeholders" in remark for remark in result.remarks)


def test_the_test_split_needs_no_labels(source):
    shutil.rmtree(source / "gtFine")
    result = pack_cityscapes(source, "test")
    assert any("every pixel is stored as ignored" in remark for remark in result.remarks)
    with open_pack(result.path) as packed:
        assert np.all(packed[0]["label"] == 255)


def test_files_of_other_names_are_passed_over(source):
    for name in ("._aachen_000000_000019_leftImg8bit.png", "notes.txt", "Thumbs.db"):
        (source / "leftImg8bit" / "train" / "aachen" / name).write_text("x")
    assert pack_cityscapes(source).meta["length"] == 5


def test_another_number_than_the_published_one_is_a_remark_or_an_error(source):
    events = list(pack("cityscapes", source, None, "train", num_workers=0))
    assert Warned("5 images; the published train split has 2975") in events
    with pytest.raises(DataError, match="expected 2975 samples in train, found 5"):
        pack_cityscapes(source, expect="official", overwrite=True)


def test_progress_counts_to_the_end(source):
    events = list(pack("cityscapes", source, None, "train", num_workers=0))
    counted = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in counted] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_what_is_ready_and_the_same_call_goes_on(source, number):
    expected = pack_cityscapes(source, target=source / "whole").meta["content_sha256"]
    before = signal.getsignal(number)
    job = pack("cityscapes", source, None, "train", num_workers=0)
    while not isinstance(next(job), Progress):
        pass
    os.kill(os.getpid(), number)
    with pytest.raises(StoppedBySignal, match="stopped at 1 of 5; run the same command") as caught:
        list(job)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert not (source / "train_lmdb").exists()
    result = pack_cityscapes(source)
    assert (result.resumed_at, result.meta["content_sha256"]) == (1, expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_reaches_the_workers_too_ends_in_two_lines(tmp_path, number):
    source = make_cityscapes(tmp_path / "cityscapes", train=1, val=0, size=(512, 256))
    for index in range(1, 200):
        for place in (image_file, label_file):
            first = place(source, "train", frame_name("aachen", 0))
            shutil.copy(first, place(source, "train", frame_name("aachen", index)))
    command = [sys.executable, "-m", "hatcli", "pack", "cityscapes", "--split", "train"]
    command += ["--src", str(source), "-j", "2"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    deadline = time.monotonic() + 20
    while not (source / "train_lmdb.partial" / "data.mdb").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.5)  # now workers start, or work
    os.killpg(process.pid, number)
    _, messages = process.communicate(timeout=20)
    assert process.returncode == 128 + number, messages
    assert "of 200; run the same command to go on" in messages
    assert "Traceback" not in messages
    assert len(messages.splitlines()) <= 3
    assert pack_cityscapes(source).meta["length"] == 200


def test_a_second_signal_stops_at_once_unless_it_is_the_same_one_again(source, monkeypatch):
    job = pack("cityscapes", source, None, "train", num_workers=0)
    while not isinstance(next(job), Progress):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(stopping, "_SAME_SIGNAL_S", -1)
    with pytest.raises(StoppedBySignal, match="stopped by SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
    job.close()


def test_a_bad_file_that_was_mended_costs_only_what_came_after(source, monkeypatch):
    monkeypatch.setattr(publish, "BATCH_RECORDS", 2)
    path = label_file(source, "train", frame_name("zurich", 2))
    good = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(DataError, match="empty file"):
        pack_cityscapes(source)
    path.write_bytes(good)
    assert pack_cityscapes(source).resumed_at == 4


def test_the_command_packs_and_tells_shares_and_what_is_next(source, monkeypatch, capsys):
    monkeypatch.chdir(source.parent)
    source.rename(source.parent / "data")
    (source.parent / "data").rename(source.parent / "x")
    (source.parent / "data").mkdir()
    (source.parent / "x").rename(source.parent / "data" / "cityscapes")
    assert run(["pack", "cityscapes", "--split", "train"]) == 0
    out, err = capsys.readouterr()
    assert "data/cityscapes/train_lmdb" in out
    for word in ("images", "bytes", "road", "bicycle", "(ignored)", "share %", "decoded"):
        assert word in out
    assert err.splitlines()[-1] == "next: hat pack cityscapes --split val"
    assert run(["pack", "cityscapes", "--split-name", "val", "--pack-type", "lmdb"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "next: hat train unet"


def test_the_spellings_of_the_tutorial_work(source, tmp_path, capsys):
    words = f"--src-data-dir {source} --split-name train --pack-type lmdb --num-workers 0"
    words += f" --target-data-dir {tmp_path / 'out'}"
    assert run(["pack", "cityscapes", *words.split()]) == 0
    assert (tmp_path / "out" / "train_lmdb" / "data.mdb").exists()
    assert f"--src {source} --out {tmp_path / 'out'}" in capsys.readouterr().err


def test_json_is_one_document_on_stdout(source, capsys):
    assert run(["pack", "cityscapes", "--split", "train", "--src", str(source), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == 5
    assert document["meta"]["num_classes"] == 19
    assert len(document["meta"]["class_pixels"]) == 19


def test_help_has_an_example_and_the_options_of_the_packer(capsys):
    assert run(["pack", "--help"]) == 0
    assert "cityscapes" in capsys.readouterr().out
    assert run(["pack", "cityscapes", "--help"]) == 0
    text = capsys.readouterr().out
    for word in (
        "hat pack cityscapes --split train",
        "--labels",
        "--image-format",
        "--num-workers",
    ):
        assert word in text


def test_help_and_wrong_usage_load_nothing_heavy():
    code = (
        "import sys; from hatcli.cli import run\n"
        "for words in (['pack', '--help'], ['pack', 'cityscapes', '-h'], ['pack', 'citiscapes'],"
        " ['pack', 'cityscapes']): run(words)\n"
        "heavy = {'torch', 'numpy', 'lmdb', 'msgpack', 'PIL', 'zstandard'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_file_of_a_packer_has_the_name_of_its_command():
    from hatcli.data.packers import PACKERS

    for name in PACKERS.names():
        assert PACKERS.part(name).module == f"hatcli.data.packers.{name}"


def test_another_frame_does_not_disturb_the_order(source):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (32, 64, 3)).astype(np.uint8)
    save_pair(source, "train", "bochum_000000_000001", image, np.zeros((32, 64), np.uint8))
    with open_pack(pack_cityscapes(source).path) as packed:
        assert packed[2]["name"] == "bochum_000000_000001"
