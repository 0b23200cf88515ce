"""Packing ImageNet: which class gets which index, what stands in the pack, what is said."""

import csv
import io
import json
import os
import shutil
import statistics
import tarfile
from pathlib import Path

import numpy as np
import pytest
from made_imagenet import (
    DEVKIT,
    DEVKIT_TAR,
    ID_OF,
    NAMES,
    TRAIN_TAR,
    VAL_TAR,
    WNIDS,
    draw_photo,
    jpeg,
    make_folders,
    make_imagenet,
    meta_mat,
    pack_imagenet,
    tar_of,
    train_files,
    val_files,
    val_wnids,
    write_devkit,
    write_tar,
)
from PIL import Image

from hatcli.cli import run
from hatcli.data.packers.imagenet import imagenet
from hatcli.data.packs.reader import open_pack
from hatcli.errors import DataError, StoppedBySignal
from hatcli.events import Progress, Warned
from hatcli.recipes.packing.pack import Settings, _count_workers, pack


@pytest.fixture
def source(tmp_path):
    return make_imagenet(tmp_path / "imagenet", train=3, val=2)


def samples(result):
    with open_pack(result.path) as packed:
        return list(packed)


def test_images_keep_their_bytes_and_labels_are_places_among_the_sorted_wnids(source):
    files = {
        name.removesuffix(".JPEG"): (wnid, data)
        for wnid, images in train_files(3)
        for name, data in images
    }
    packed = samples(pack_imagenet(source))
    assert len(packed) == len(files) == 12
    for sample in packed:
        wnid, data = files[sample["name"]]
        assert sample["image"] == data
        assert sample["label"] == WNIDS.index(wnid)
        with Image.open(io.BytesIO(data)) as image:
            assert (sample["width"], sample["height"]) == image.size
        assert sample["image_format"] == "jpeg"


def test_validation_labels_are_those_of_the_ground_truth_by_number(source):
    packed = samples(pack_imagenet(source, "val"))
    shown = val_wnids(2)
    assert [sample["label"] for sample in packed] == [WNIDS.index(wnid) for wnid in shown]
    assert [sample["name"] for sample in packed] == [
        f"ILSVRC2012_val_{number:08d}" for number in range(1, len(shown) + 1)
    ]
    assert [sample["image"] for sample in packed] == [data for _, data in val_files(shown)]


def test_train_is_sorted_by_class_and_name(source):
    packed = samples(pack_imagenet(source))
    assert [sample["name"] for sample in packed] == sorted(sample["name"] for sample in packed)
    assert [sample["label"] for sample in packed] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_metadata_tells_classes_and_sizes(source):
    result = pack_imagenet(source)
    meta = result.meta
    assert meta["task"] == "classification"
    assert meta["classes"] == list(NAMES)
    assert meta["wnids"] == WNIDS
    assert meta["class_words"][0] == "tench, Tinca tinca"
    assert (meta["num_classes"], meta["class_images"]) == (4, [3, 3, 3, 3])
    assert meta["counts"] == {"jpeg": 12}
    for side in ("width", "height"):
        numbers = [sample[side] for sample in samples(result)]
        middle = statistics.median_low(numbers)
        assert meta["sizes"][side] == {"min": min(numbers), "median": middle, "max": max(numbers)}


def test_archives_and_folders_give_the_same_content(source, tmp_path):
    folders = make_folders(tmp_path / "folders", train=3, val=2)
    shutil.copy(source / DEVKIT_TAR, folders)
    flat = make_folders(tmp_path / "flat", train=3, val=2)
    for path in flat.glob("val/*/*"):
        path.rename(flat / "val" / path.name)
    for wnid in WNIDS:
        (flat / "val" / wnid).rmdir()
    with tarfile.open(source / DEVKIT_TAR) as archive:
        archive.extractall(flat, filter="data")
    assert (flat / DEVKIT).is_dir()
    for split in ("train", "val"):
        results = [
            pack_imagenet(source, split),
            pack_imagenet(source, split, num_workers=2, overwrite=True),
            pack_imagenet(folders, split),
            pack_imagenet(flat, split),
        ]
        assert len({result.meta["content_sha256"] for result in results}) == 1
        assert {tuple(result.meta["classes"]) for result in results} == {NAMES}


def test_indexes_are_those_of_the_whole_set_on_any_subset(source):
    with_two = [(f"{w}.tar", tar_of(files)) for w, files in train_files(3) if w >= "n02119789"]
    write_tar(source / TRAIN_TAR, with_two)
    result = pack_imagenet(source)
    assert {sample["label"] for sample in samples(result)} == {2, 3}
    assert result.meta["class_images"] == [0, 0, 3, 3]
    assert "2 of 4 classes have no images" in result.remarks


def test_without_a_kit_classes_are_numbered_by_the_folders_of_train(tmp_path):
    source = make_folders(tmp_path / "imagenet", train=2, val=1)
    shutil.rmtree(source / "train" / WNIDS[0])
    shutil.rmtree(source / "val" / WNIDS[0])
    shutil.rmtree(source / "val" / WNIDS[1])
    for split, present in (("train", {0, 1, 2}), ("val", {1, 2})):
        result = pack_imagenet(source, split)
        assert {sample["label"] for sample in samples(result)} == present
        assert result.meta["classes"] == WNIDS[1:]
        said = "3 classes by train; ImageNet has 1000, where these have other indexes"
        assert said in result.remarks


def test_without_kit_and_train_the_folders_of_val_are_counted(tmp_path):
    source = make_folders(tmp_path / "imagenet", train=1, val=1)
    shutil.rmtree(source / "train")
    result = pack_imagenet(source, "val")
    assert result.meta["classes"] == WNIDS
    assert result.meta["source"]["classes"] == "val"


def test_class_archives_without_a_kit_are_counted_too(source):
    (source / DEVKIT_TAR).unlink()
    result = pack_imagenet(source)
    assert result.meta["wnids"] == WNIDS
    assert [sample["label"] for sample in samples(result)] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_photos_are_kept_and_counted(source, mode):
    pixels = np.full((20, 30, 3), 90)
    files = [(f"{w}.tar", tar_of(files)) for w, files in train_files(2)]
    odd = [(f"{WNIDS[0]}_1.JPEG", jpeg(pixels, mode))]
    files = [(name, tar_of(odd) if WNIDS[0] in name else data) for name, data in files]
    write_tar(source / TRAIN_TAR, files)
    result = pack_imagenet(source)
    assert result.meta["counts"] == {"jpeg": 7, {"L": "grey", "CMYK": "cmyk"}[mode]: 1}
    assert samples(result)[0]["image"] == odd[0][1]


def test_a_png_under_a_jpeg_name_is_a_png(tmp_path):
    source = make_folders(tmp_path / "imagenet")
    data = jpeg(np.full((20, 30, 3), 90), kind="PNG")
    (source / "train" / WNIDS[0] / f"{WNIDS[0]}_1.JPEG").write_bytes(data)
    result = pack_imagenet(source)
    assert result.meta["counts"] == {"jpeg": 8, "png": 1}
    assert samples(result)[0]["image_format"] == "png"


def test_raw_and_jpeg_are_what_they_say(source):
    data = dict(train_files(3))[WNIDS[0]][-1][1]
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    raw = samples(pack_imagenet(source, image_format="raw"))[0]
    assert np.array_equal(raw["image"], pixels)
    assert raw["image_format"] == "raw"
    small = samples(pack_imagenet(source, image_format="jpeg:50", overwrite=True))[0]
    with Image.open(io.BytesIO(small["image"])) as image:
        assert image.format == "JPEG"
        assert np.abs(np.asarray(image) - pixels.astype(int)).mean() < 30
    assert len(small["image"]) < len(data)


def broken_notes():
    """A photo whose EXIF can't be read, as some cameras write it; nothing is wrong else."""
    pixels = np.full((20, 30, 3), 90)
    return jpeg(pixels, exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01\3\0")


def two_pictures():
    """A photo with a second one behind it, as some cameras write it."""
    first, second = (Image.new("RGB", (30, 20), color) for color in ("red", "blue"))
    file = io.BytesIO()
    first.save(file, "MPO", save_all=True, append_images=[second])
    return file.getvalue()


def garbled_notes():
    return jpeg(np.full((20, 30, 3), 90), exif=b"Exif\0\0nonsense")


@pytest.mark.parametrize("make", [broken_notes, two_pictures, garbled_notes])
def test_a_whole_photo_with_odd_notes_is_taken(tmp_path, make):
    source = make_folders(tmp_path / "imagenet")
    (source / "train" / WNIDS[0] / f"{WNIDS[0]}_1.JPEG").write_bytes(make())
    result = pack_imagenet(source)
    assert result.meta["counts"] == {"jpeg": 9}
    assert samples(result)[0]["image"] == make()


def test_an_image_that_viewers_would_turn_is_reported(tmp_path):
    source = make_folders(tmp_path / "imagenet")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = jpeg(np.full((20, 30, 3), 90), exif=exif)
    (source / "train" / WNIDS[0] / f"{WNIDS[0]}_1.JPEG").write_bytes(turned)
    result = pack_imagenet(source)
    assert result.meta["counts"]["exif_rotated"] == 1
    assert any("EXIF orientation" in remark for remark in result.remarks)


def test_other_files_are_passed_over_and_reported(tmp_path):
    source = make_folders(tmp_path / "imagenet")
    (source / "train" / "labels.txt").write_text("x")
    (source / "train" / WNIDS[0] / "readme.txt").write_text("x")
    (source / "train" / WNIDS[0] / "._n1.JPEG").write_text("x")
    (source / "train" / "cats").mkdir()
    result = pack_imagenet(source)
    assert result.meta["length"] == 8
    said = next(remark for remark in result.remarks if "passed over" in remark)
    assert said.startswith("3 other files were passed over, first: ")


def test_a_kit_in_any_place_of_its_archive_and_classes_below_others(source):
    records = [(7, "n09999999", "thing", [8]), (8, "n00000001", "dot", [])]
    files = [("data/meta.mat", meta_mat(records))]
    (source / DEVKIT_TAR).unlink()
    (source / DEVKIT / "data").mkdir(parents=True)
    for name, data in files:
        (source / DEVKIT / name).write_bytes(data)
    write_tar(source / TRAIN_TAR, [("./n00000001.tar", tar_of([("./x.JPEG", photo())]))])
    result = pack_imagenet(source)
    assert result.meta["classes"] == ["dot"]
    assert samples(result)[0]["name"] == "n00000001/x"


def photo():
    return draw_photo(np.random.default_rng(0), WNIDS[0])


def test_a_stopped_run_goes_on_and_other_files_are_noticed(tmp_path):
    source = make_folders(tmp_path / "imagenet")
    whole = pack_imagenet(source, target=tmp_path / "whole").meta["content_sha256"]
    job = pack("imagenet", source, None, "train", num_workers=0)
    while not isinstance(next(job), Progress):
        pass
    os.kill(os.getpid(), 15)
    with pytest.raises(StoppedBySignal):
        list(job)
    first = source / "train" / WNIDS[0] / f"{WNIDS[0]}_11.JPEG"
    times = first.stat().st_atime_ns, first.stat().st_mtime_ns
    os.utime(first, (1, 1))
    with pytest.raises(Exception, match=r"differs: source files"):
        pack_imagenet(source)
    os.utime(first, ns=times)
    result = pack_imagenet(source)
    assert (result.resumed_at, result.meta["content_sha256"]) == (1, whole)


def test_counts_other_than_the_published_ones_are_remarks_or_an_error(source):
    events = list(pack("imagenet", source, None, "train", num_workers=0))
    assert Warned("12 images; the published train split has 1281167") in events
    assert any("4 classes by devkit; ImageNet has 1000" in str(event) for event in events)
    with pytest.raises(DataError, match=r"expected 1281167 samples in train, found 12; 4 classes"):
        pack_imagenet(source, expect="official", overwrite=True)


def test_nothing_is_said_of_a_complete_set(source, monkeypatch):
    from hatcli.data.packers import imagenet as module

    monkeypatch.setattr(module, "OFFICIAL_CLASSES", 4)
    monkeypatch.setattr(module, "OFFICIAL_LENGTHS", {"train": 12, "val": 8})
    for split in ("train", "val"):
        assert pack_imagenet(source, split, expect="official").remarks == []


def test_the_command_packs_and_tells_what_is_next(source, monkeypatch, capsys):
    (source.parent / "data").mkdir()
    source.rename(source.parent / "data" / "imagenet")
    monkeypatch.chdir(source.parent)
    assert run(["pack", "imagenet", "--split", "train"]) == 0
    out, err = capsys.readouterr()
    assert "4 of 4 have images" in out
    assert "images a class" in out
    assert "jpeg (12)" in out
    assert " to " in out  # the range of widths and heights, not a line for each size
    assert len(out.splitlines()) < 15
    assert err.splitlines()[-1] == "next: hat pack imagenet --split val"
    words = "--split-name val --pack-type lmdb --num-workers 0 --src-data-dir data/imagenet"
    words += " --target-data-dir data/imagenet"
    assert run(["pack", "imagenet", *words.split()]) == 0
    assert "next: hat train vargconvnet" in capsys.readouterr().err


def test_json_holds_the_metadata(source, capsys):
    assert run(["pack", "imagenet", "--split", "val", "--src", str(source), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == 8
    assert document["meta"]["class_images"] == [2, 2, 2, 2]


def test_help_has_an_example_and_the_options_of_the_packer(capsys):
    assert run(["pack", "imagenet", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("hat pack imagenet --split train", "--image-format", "--check", "--max-pixels"):
        assert word in text


real = pytest.mark.skipif("HAT_TEST_DATA" not in os.environ, reason="needs HAT_TEST_DATA")


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    with tarfile.open(Path(os.environ["HAT_TEST_DATA"], "imagenet10.tar")) as archive:
        archive.extractall(root, filter="data")
    return root / "imagenet10"


@real
def test_the_miniature_has_the_known_counts(miniature):
    train, val = pack_imagenet(miniature), pack_imagenet(miniature, "val")
    assert (train.meta["length"], val.meta["length"]) == (600, 200)
    assert train.meta["num_classes"] == val.meta["num_classes"] == 1000
    assert sorted(train.meta["class_images"])[-11:] == [0] + [60] * 10
    assert train.meta["wnids"][65] == "n01751748"  # ILSVRC2012_ID 490
    assert train.meta["classes"][0] == "tench"
    assert len(set(train.meta["classes"])) == 1000


@real
def test_the_miniature_has_the_known_validation_labels(miniature):
    source = imagenet(miniature, "val")
    labels = {f"{source.name(i)}.JPEG": source.make(i).sample["label"] for i in range(200)}
    with (miniature / "val_sources.csv").open() as file:
        known = {row["name"]: int(row["class_index_sorted"]) for row in csv.DictReader(file)}
    assert labels == known


def test_an_id_of_ilsvrc_is_not_an_index(source):
    shown = val_wnids(2)
    assert [ID_OF[wnid] - 1 for wnid in shown] != [WNIDS.index(wnid) for wnid in shown]
    write_devkit(source, [ID_OF[wnid] for wnid in reversed(shown)])
    packed = samples(pack_imagenet(source, "val"))
    assert [sample["label"] for sample in packed] == [WNIDS.index(w) for w in reversed(shown)]
    assert (source / VAL_TAR).exists()


def test_workers_are_started_for_pixels_and_not_for_copies(source):
    def workers(**options):
        return _count_workers(Settings(), imagenet(source, "train", **options), missing=1000)

    assert workers(check="none") == workers(check="header") == 0
    assert workers() == workers(check="none", image_format="raw") > 0
