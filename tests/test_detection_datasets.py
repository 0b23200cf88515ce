"""Packed VOC and COCO against their raw twins, and against torchvision and pycocotools."""

import contextlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from made_cityscapes import label_file, make_cityscapes
from made_coco import json_file, make_coco
from made_voc import make_voc
from PIL import Image
from pycocotools.coco import COCO
from torchvision import datasets as torchvision_datasets

from hatcli.cli import run
from hatcli.data.classes import VOC_CLASSES
from hatcli.data.datasets import DATASETS
from hatcli.data.datasets.mscoco import annotation_document
from hatcli.data.packs.reader import open_pack
from hatcli.errors import UsageError

real = pytest.mark.skipif("HAT_TEST_DATA" not in os.environ, reason="needs HAT_TEST_DATA")


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return make_voc(tmp_path_factory.mktemp("voc"), train=3, val=2)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("coco"))


def packed(source, out, *words, split="train"):
    words = [*words, "--split", split, "--src", str(source), "--out", str(out), "-j", "0"]
    assert run(["pack", *words]) == 0


def build(name, root, **arguments):
    return DATASETS.build({"type": name, **arguments}, root=root)


def assert_same_samples(one, other):
    assert len(one) == len(other) > 0
    assert one.classes == other.classes
    for index in range(len(one)):
        ours, theirs = one[index], other[index]
        assert list(ours) == list(theirs)
        for key, value in ours.items():
            if isinstance(value, np.ndarray):
                assert value.dtype == theirs[key].dtype
                assert np.array_equal(value, theirs[key])
            else:
                assert value == theirs[key]


def edges_of(target):
    """The boxes, classes and flags that torchvision took out of an XML, by our convention."""
    rows = []
    for one in target["annotation"]["object"]:
        corners = [float(one["bndbox"][name]) for name in ("xmin", "ymin", "xmax", "ymax")]
        box = [corners[0] - 1, corners[1] - 1, corners[2], corners[3]]
        flags = [int(one["difficult"]), int(one["truncated"])]
        rows.append((box, VOC_CLASSES.index(one["name"]), flags))
    return rows


def check_voc_boxes(packed, root, year, split):
    theirs = torchvision_datasets.VOCDetection(root, year=year, image_set=split)
    assert len(packed) == len(theirs)
    for index, (image, target) in enumerate(theirs):
        sample, rows = packed[index], edges_of(target)
        assert np.array_equal(sample["image"], np.asarray(image.convert("RGB")))
        assert f"{sample['name']}.jpg" == target["annotation"]["filename"]
        assert sample["boxes"].tolist() == [box for box, _, _ in rows]
        assert sample["classes"].tolist() == [label for _, label, _ in rows]
        flags = np.stack([sample["difficult"], sample["truncated"]], 1).tolist()
        assert flags == [flag for _, _, flag in rows]


def check_voc_maps(packed, root, year, split):
    theirs = torchvision_datasets.VOCSegmentation(root, year=year, image_set=split)
    assert len(packed) == len(theirs)
    for index, (image, label) in enumerate(theirs):
        sample = packed[index]
        path = f"VOCdevkit/VOC{year}/SegmentationObject/{sample['name']}.png"
        assert np.array_equal(sample["image"], np.asarray(image.convert("RGB")))
        assert np.array_equal(sample["label"], np.asarray(label))
        assert np.array_equal(sample["instance"], np.asarray(Image.open(Path(root, path))))


def check_coco(packed, root, split):
    folder = root / f"{split}2017"
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = torchvision_datasets.CocoDetection(folder, json_file(root, split))
    samples = {packed[index]["image_id"]: packed[index] for index in range(len(packed))}
    assert sorted(samples) == theirs.ids
    for image_id, (image, annotations) in zip(theirs.ids, theirs, strict=True):
        sample = samples[image_id]
        boxes = np.array([one["bbox"] for one in annotations], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert np.array_equal(sample["image"], np.asarray(image))
        assert np.allclose(sample["boxes"], boxes, rtol=0, atol=1e-4)
        ids = [packed.class_ids[index] for index in sample["classes"]]
        assert ids == [one["category_id"] for one in annotations]
        assert sample["areas"].tolist() == [one["area"] for one in annotations]
        assert sample["annotation_ids"].tolist() == [one["id"] for one in annotations]
        assert sample["segmentations"] == [one["segmentation"] for one in annotations]


def test_voc_boxes_are_those_of_the_raw_twin_and_of_torchvision(voc, tmp_path):
    packed(voc, tmp_path, "voc", "--year", "2007", split="val")
    ours = build("VOCDetection", tmp_path, path="val_lmdb")
    assert_same_samples(ours, build("VOCDetectionRaw", voc, split="val", year="2007"))
    check_voc_boxes(ours, voc, "2007", "val")
    sample = ours[0]
    assert (sample["boxes"].dtype, sample["classes"].dtype) == (np.float32, np.int64)
    assert sample["image"].flags.writeable


def test_voc_maps_are_those_of_the_raw_twin_and_of_torchvision(voc, tmp_path):
    packed(voc, tmp_path, "voc", "--year", "2007", "--task", "segmentation")
    for instances in (False, True):
        ours = build("VOCSegmentation", tmp_path, path="train_lmdb", instances=instances)
        raw = build("VOCSegmentationRaw", voc, split="train", year="2007", instances=instances)
        assert_same_samples(ours, raw)
        assert ("instance" in ours[0]) == instances
    check_voc_maps(ours, voc, "2007", "train")
    counts = sum(np.bincount(ours[i]["label"].ravel(), minlength=256) for i in range(3))
    assert ours.class_pixels == tuple(counts[:21])


def test_coco_boxes_are_those_of_the_raw_twin_and_of_torchvision(coco, tmp_path):
    packed(coco, tmp_path, "mscoco")
    for segmentations in (False, True):
        ours = build("CocoDetection", tmp_path, path="train_lmdb", segmentations=segmentations)
        raw = build("CocoDetectionRaw", coco, split="train", segmentations=segmentations)
        assert_same_samples(ours, raw)
    assert ours.class_ids == raw.class_ids == (1, 18, 90)
    check_coco(ours, coco, "train")


def test_a_pack_of_another_task_is_refused(voc, coco, tmp_path):
    packed(voc, tmp_path / "voc", "voc", "--year", "2007")
    packed(coco, tmp_path / "coco", "mscoco")
    for name, folder, message in (
        ("VOCSegmentation", "voc", "a pack of voc for detection, not of voc for segmentation"),
        ("VOCDetection", "coco", "a pack of mscoco for detection, not of voc for detection"),
        ("CocoDetection", "voc", "not a pack of COCO"),
    ):
        with pytest.raises(UsageError, match=message):
            build(name, tmp_path / folder, path="train_lmdb")


def test_instances_that_were_not_packed_can_not_be_asked_for(voc, tmp_path):
    words = ["voc", "--year", "2007", "--task", "segmentation", "--instances", "drop"]
    packed(voc, tmp_path, *words)
    with pytest.raises(UsageError, match="holds no instances"):
        build("VOCSegmentation", tmp_path, path="train_lmdb", instances=True)


@pytest.fixture
def streets(tmp_path):
    root = make_cityscapes(tmp_path / "cityscapes", train=2, val=0, size=(16, 8))
    for path in root.glob("gtFine/*/*/*_labelIds.png"):
        instances = np.asarray(Image.open(path)).astype(np.uint16)
        instances[4:, 8:] = 26 * 1000 + 7
        Image.fromarray(instances).save(str(path).replace("labelIds", "instanceIds"))
    return root


def test_cityscapes_gives_its_instances_when_asked(streets):
    packed(streets, streets, "cityscapes", "--instances")
    ours = build("Cityscapes", streets, path="train_lmdb", instances=True)
    raw = build("CityscapesRaw", streets, split="train", instances=True)
    assert_same_samples(ours, raw)
    path = label_file(streets, "train", ours[0]["name"], "instanceIds")
    assert np.array_equal(ours[0]["instance"], np.asarray(Image.open(path)))
    assert ours[0]["instance"].dtype == np.uint16
    assert "instance" not in build("Cityscapes", streets, path="train_lmdb")[0]


def test_cityscapes_without_instances_says_how_to_get_them(streets):
    packed(streets, streets, "cityscapes")
    with pytest.raises(UsageError, match="holds no instances") as caught:
        build("Cityscapes", streets, path="train_lmdb", instances=True)
    assert caught.value.hint == "pack it with --instances"


@pytest.mark.parametrize(
    ("value", "message"),
    [(34, "instances of no class: {34}"), (40_001, "instances of no class: {40001}")],
)
def test_instances_of_no_class_are_refused(streets, value, message, capsys):
    path = next(streets.glob("gtFine/*/*/*_instanceIds.png"))
    Image.fromarray(np.full((8, 16), value, np.uint16)).save(path)
    words = ["cityscapes", "--instances", "--split", "train", "--src", str(streets), "-j", "0"]
    assert run(["pack", *words]) == 1
    assert message in capsys.readouterr().err
    path.unlink()
    assert run(["pack", *words]) == 1
    assert "1 of 2 images have no label *_gtFine_instanceIds.png" in capsys.readouterr().err


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    for name in ("voc", "coco", "cityscapes"):
        with tarfile.open(Path(os.environ["HAT_TEST_DATA"], f"{name}.tar")) as archive:
            archive.extractall(root, filter="data")
    return root


PACK_TYPES = ["lmdb", "mxrecord"]


@real
@pytest.mark.parametrize("pack_type", PACK_TYPES)
@pytest.mark.parametrize(
    ("year", "split", "length"),
    [("2007", "train", 35), ("2007", "test", 30), ("2012", "val", 10)],
)
def test_the_voc_archive_reads_back_as_torchvision_reads_it(
    miniatures, tmp_path, pack_type, year, split, length
):
    archive = Path(os.environ["HAT_TEST_DATA"])
    for task in ("detection", "segmentation"):
        words = ["voc", "--year", year, "--task", task, "--pack-type", pack_type]
        packed(archive, tmp_path / task, *words, split=split)
    path = f"{split}_{pack_type}"
    boxes = build("VOCDetection", tmp_path / "detection", path=path)
    maps = build("VOCSegmentation", tmp_path / "segmentation", path=path, instances=True)
    assert len(boxes) == len(maps) == length
    raw = build("VOCDetectionRaw", archive, split=split, year=year)
    assert_same_samples(boxes, raw)
    raw = build("VOCSegmentationRaw", archive, split=split, year=year, instances=True)
    assert_same_samples(maps, raw)
    check_voc_boxes(boxes, miniatures / "voc", year, split)
    check_voc_maps(maps, miniatures / "voc", year, split)


@real
@pytest.mark.parametrize("pack_type", PACK_TYPES)
@pytest.mark.parametrize(("split", "length"), [("train", 100), ("val", 50)])
def test_coco_through_a_pack_is_the_same_to_pycocotools(
    miniatures, tmp_path, pack_type, split, length
):
    source = miniatures / "coco"
    packed(source, tmp_path, "mscoco", "--pack-type", pack_type, split=split)
    path = f"{split}_{pack_type}"
    ours = build("CocoDetection", tmp_path, path=path, segmentations=True)
    assert len(ours) == length
    raw = build("CocoDetectionRaw", source, split=split, segmentations=True)
    assert_same_samples(ours, raw)
    check_coco(ours, source, split)
    back = COCO()
    with open_pack(tmp_path / path) as pack, contextlib.redirect_stdout(io.StringIO()):
        back.dataset = annotation_document(pack)
        back.createIndex()
        theirs = COCO(json_file(source, split))
    assert back.dataset == theirs.dataset
    for name in ("anns", "imgs", "cats", "imgToAnns", "catToImgs"):
        assert getattr(back, name) == getattr(theirs, name)
    for image_id in theirs.getImgIds():
        for one in theirs.imgToAnns[image_id]:
            assert back.annToRLE(back.anns[one["id"]]) == theirs.annToRLE(one)


@real
@pytest.mark.parametrize("pack_type", PACK_TYPES)
def test_cityscapes_with_instances_reads_back_as_it_is_on_disk(miniatures, tmp_path, pack_type):
    source = miniatures / "cityscapes"
    words = ["cityscapes", "--instances", "--pack-type", pack_type]
    packed(source, tmp_path, *words, split="val")
    ours = build("Cityscapes", tmp_path, path=f"val_{pack_type}", instances=True)
    assert len(ours) == 26
    assert_same_samples(ours, build("CityscapesRaw", source, split="val", instances=True))
    for sample in (ours[0], ours[25]):
        path = label_file(source, "val", sample["name"], "instanceIds")
        assert np.array_equal(sample["instance"], np.asarray(Image.open(path)))
