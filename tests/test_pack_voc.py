"""Packing PASCAL VOC: what goes in, and what stands in the pack."""

import shutil

import numpy as np
import pytest
from made_voc import (
    DETECTION,
    DOG,
    SEGMENTATION,
    devkit,
    file_of,
    make_voc,
    tar_voc,
    write_list,
    xml_of,
)
from PIL import Image

from hatcli.cli import run
from hatcli.data.classes import VOC_CLASSES, VOC_PALETTE
from hatcli.data.packers._voc_xml import read_objects
from hatcli.data.packers.voc import voc
from hatcli.data.packs.reader import open_pack


@pytest.fixture
def source(tmp_path):
    return make_voc(tmp_path / "voc")


def packed(source, arguments=DETECTION, split="train"):
    assert run(["pack", *arguments, "--src", str(source), "--split", split, "-j", "0"]) == 0
    with open_pack(source / f"{split}_lmdb") as pack:
        return pack.meta, [pack[index] for index in range(len(pack))]


def test_a_box_ends_where_the_pixels_of_its_object_end(source):
    _, with_boxes = packed(source)
    shutil.rmtree(source / "train_lmdb")
    _, with_maps = packed(source, SEGMENTATION)
    for boxes, maps in zip(with_boxes, with_maps, strict=True):
        assert boxes["name"] == maps["name"]
        for number, (box, index) in enumerate(
            zip(boxes["boxes"], boxes["classes"], strict=True), 1
        ):
            rows, columns = np.nonzero(maps["instance"] == number)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == edges
            assert set(maps["label"][rows, columns]) == {index + 1}


def test_one_is_taken_from_the_first_corner_only():
    whole = {**DOG, "box": (1, 1, 48, 32)}
    found = read_objects(xml_of("1", (48, 32), [whole]).encode(), "1.xml", clip=False)
    assert found.boxes.tolist() == [[0, 0, 48, 32]]
    assert found.boxes.dtype == np.float32


def test_a_sample_holds_what_the_annotation_says(source):
    objects = [DOG, {**DOG, "name": "person", "box": (30, 1, 30, 1), "difficult": 1}]
    file_of(source, "Annotations").write_text(xml_of("000001", (48, 32), objects))
    meta, samples = packed(source)
    first = samples[0]
    assert first["image"] == file_of(source, "JPEGImages").read_bytes()
    assert (first["image_format"], first["height"], first["width"]) == ("jpeg", 32, 48)
    assert first["boxes"].tolist() == [[1, 2, 20, 30], [29, 0, 30, 1]]
    assert [VOC_CLASSES[index] for index in first["classes"]] == ["dog", "person"]
    assert first["difficult"].tolist() == [0, 1]
    assert first["truncated"].tolist() == [1, 1]
    assert first["poses"] == ["Left", "Left"]
    assert [sample["name"] for sample in samples] == ["000001", "000002", "000003", "000004"]
    boxes = sum(len(sample["boxes"]) for sample in samples)
    assert (meta["boxes"]["total"], sum(meta["class_boxes"])) == (boxes, boxes)
    assert meta["boxes"]["difficult"] == sum(int(s["difficult"].sum()) for s in samples)
    assert (meta["task"], meta["classes"], meta["num_classes"]) == (
        "detection",
        list(VOC_CLASSES),
        20,
    )
    assert meta["sizes"]["width"] == {"min": 48, "median": 48, "max": 48}


def test_maps_are_the_indices_whatever_their_colours(source):
    path = file_of(source, "SegmentationClass")
    image = Image.open(path)
    values = np.asarray(image)
    image.putpalette([7] * 768)
    image.save(path)
    Image.fromarray(np.asarray(Image.open(file_of(source, "SegmentationObject")))).save(
        file_of(source, "SegmentationObject")
    )  # grey, as others write them
    meta, samples = packed(source, SEGMENTATION)
    assert np.array_equal(samples[0]["label"], values)
    assert samples[0]["instance"].dtype == samples[0]["label"].dtype == np.uint8
    counts = np.bincount(np.stack([s["label"] for s in samples]).ravel(), minlength=256)
    assert meta["class_pixels"] == counts[:21].tolist()
    assert meta["ignored_pixels"] == counts[255] == 4
    assert (meta["classes"][0], meta["num_classes"], meta["ignore_index"]) == (
        "background",
        21,
        255,
    )
    assert meta["palette"] == [list(color) for color in VOC_PALETTE]


def test_maps_of_few_colours_have_few_bits_and_the_same_indices(source):
    path = file_of(source, "SegmentationClass")
    values = np.zeros((32, 48), np.uint8)
    values[:, 20:] = 3
    image = Image.fromarray(values)
    image.putpalette([0, 0, 0] * 4)
    image.save(path, bits=2)
    assert path.read_bytes()[24] == 2
    assert np.array_equal(packed(source, SEGMENTATION)[1][0]["label"], values)


def test_instances_can_be_left_out(source):
    shutil.rmtree(devkit(source) / "SegmentationObject")
    meta, samples = packed(source, [*SEGMENTATION, "--instances", "drop"])
    assert "instance" not in samples[0]
    assert "instance" not in meta["fields"]


@pytest.mark.parametrize("place", ["VOC2007", "VOCdevkit", "itself"])
def test_the_devkit_may_stand_anywhere_near(source, place):
    folder = {"VOC2007": source / "VOCdevkit", "VOCdevkit": source, "itself": devkit(source)}
    names = [voc(folder[place], "val", year="2007").name(index) for index in range(2)]
    assert names == ["000005", "000006"]


@pytest.mark.parametrize(
    ("archive", "prefix"),
    [("VOCtrainval_06-Nov-2007.tar", ""), ("VOCtrainval_06-Nov-2007.tar", "./"), ("voc.tar", "x/")],
)
def test_archives_give_what_the_folder_gives(source, tmp_path, archive, prefix):
    tar = tar_voc(source, tmp_path / "tars" / archive, prefix=prefix)
    digests = {packed(place)[0]["content_sha256"] for place in (source, tar.parent)}
    assert len(digests) == 1
    meta, _ = packed(tar.parent, SEGMENTATION, split="val")
    assert meta["source"]["files"] == {"kind": "tar", "name": archive, "bytes": tar.stat().st_size}


def test_another_number_than_the_published_one_is_a_remark(source):
    assert voc(source, "train", year="2007").remarks == [
        "4 images; the published train split has 2501"
    ]
    write_list(source, "mine", ["000002"])
    mine = voc(source, "mine", year="2007")
    assert (mine.remarks, mine.official_length, mine.name(0)) == ([], None, "000002")


def test_boxes_over_the_border_are_cut_off_on_request(source, capsys):
    path = file_of(source, "Annotations")
    path.write_text(xml_of("000001", (48, 32), [{**DOG, "box": (0, 3, 50, 30)}]))
    meta, samples = packed(source, [*DETECTION, "--boxes", "clip"])
    assert samples[0]["boxes"].tolist() == [[0, 2, 48, 30]]
    assert meta["boxes"]["clipped"] == 1
    assert "1 boxes were cut off" in capsys.readouterr().err


def test_what_older_and_newer_annotations_lack_or_add_is_fine():
    text = xml_of("1", (48, 32), [{**DOG, "box": (2.5, 3, 20.25, 30)}])
    text = text.replace("<truncated>1</truncated>", "").replace("<difficult>0</difficult>", "")
    text = text.replace("<pose>Left</pose>", "")
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    found = read_objects(text.replace("</object>", part).encode(), "1.xml", clip=False)
    assert found.boxes.tolist() == [[1.5, 2, 20.25, 30]]
    assert (found.difficult.tolist(), found.truncated.tolist()) == ([0], [0])
    assert found.poses == ["Unspecified"]


def test_an_image_without_objects_has_no_boxes(source):
    file_of(source, "Annotations").write_text(xml_of("000001", (48, 32), []))
    first = packed(source)[1][0]
    assert (first["boxes"].shape, first["classes"].shape, first["poses"]) == ((0, 4), (0,), [])


def test_help_names_the_options(capsys):
    assert run(["pack", "voc", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("hat pack voc --split train", "--year", "--task", "--instances", "--boxes"):
        assert word in text
